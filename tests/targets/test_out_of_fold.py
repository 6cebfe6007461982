"""Out-of-fold targets against a teacher that knows its training set by heart: the nearest neighbour."""

import json
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_distill.targets.augmentation import Augmentation
from keras_distill.targets.dataset import attach
from keras_distill.targets.folds import assign_folds
from keras_distill.targets.labelling import label
from keras_distill.targets.manifest import ForeignDatasetError, Manifest, StaleTeacherError, StoreError
from keras_distill.targets.store import SoftTargetStore
from tests.targets.test_store import environment, tree

NUM_ITEMS, NUM_CLASSES = 120, 3
# No two alike, and labels that say nothing of the inputs: all that can be known of an item is the item itself.
INPUTS = np.random.default_rng(0).normal(size=(NUM_ITEMS, 4)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, NUM_CLASSES, NUM_ITEMS)
EVERY = np.arange(NUM_ITEMS)


class NearestNeighbour:
    """Logits of 9 for the label of the nearest item that it has seen, of 0 for others."""

    def __init__(self, inputs, labels, name="", num_classes=NUM_CLASSES):
        self.seen, self.labels, self.num_classes = np.asarray(inputs), np.asarray(labels), num_classes
        self.fingerprint = f"nearest of {len(labels)}{name}"

    def __call__(self, inputs):
        distances = np.square(np.asarray(inputs)[:, None] - self.seen).sum(axis=-1)
        return 9.0 * np.eye(self.num_classes, dtype="float32")[self.labels[distances.argmin(axis=1)]]


def nearest_neighbour(inputs, labels, fold):
    return NearestNeighbour(inputs, labels, f", without fold {fold}")


def nearest_elsewhere(fold_of):
    """The label of each item's nearest neighbour in another fold, item by item."""
    found = []
    for item in range(NUM_ITEMS):
        others = np.flatnonzero(fold_of != fold_of[item])
        found.append(LABELS[others[np.linalg.norm(INPUTS[others] - INPUTS[item], axis=1).argmin()]])
    return np.array(found)


def labelled(path, make_teacher=nearest_neighbour, **settings):
    options = {"folds": 5, "make_teacher": make_teacher, "batch_size": 16, "dtype": "float32", **settings}
    return label(None, (INPUTS, LABELS), path, **options)


def test_who_knows_its_items_by_heart_says_so_in_sample_and_cannot_out_of_fold(tmp_path):
    in_sample = label(NearestNeighbour(INPUTS, LABELS), INPUTS, tmp_path / "in sample", dtype="float32")
    np.testing.assert_array_equal(in_sample.read(EVERY), 9.0 * np.eye(NUM_CLASSES)[LABELS])
    store = labelled(tmp_path / "out of fold", rows_per_shard=50)
    expected = nearest_elsewhere(assign_folds(LABELS, 5))
    np.testing.assert_array_equal(store.read(EVERY), 9.0 * np.eye(NUM_CLASSES)[expected])
    assert np.mean(expected == LABELS) < 0.5
    assert sorted(tree(tmp_path / "out of fold"))[0] == "manifest.json"
    assert len(tree(tmp_path / "out of fold")) == 4


def test_each_teacher_sees_the_other_folds_and_nothing_else(tmp_path):
    seen = {}

    def make_teacher(inputs, labels, fold):
        seen[fold] = inputs, labels
        return nearest_neighbour(inputs, labels, fold)

    labelled(tmp_path / "s", make_teacher, fold_seed=3)
    fold_of = assign_folds(LABELS, 5, seed=3)
    assert sorted(seen) == [0, 1, 2, 3, 4]
    for fold, (inputs, labels) in seen.items():
        np.testing.assert_array_equal(inputs, INPUTS[fold_of != fold])
        np.testing.assert_array_equal(labels, LABELS[fold_of != fold])


def test_groups_stay_together(tmp_path):
    """Each item twice: a twin in another fold would give the answer away."""
    twice, labels = np.repeat(INPUTS, 2, axis=0), np.repeat(LABELS, 2)
    groups = np.repeat(EVERY, 2)
    options = {"folds": 4, "make_teacher": nearest_neighbour, "dtype": "float32"}
    given_away = label(None, (twice, labels), tmp_path / "split", **options)
    kept = label(None, (twice, labels), tmp_path / "grouped", groups=groups, **options)
    right = [np.mean(store.read(np.arange(240)).argmax(-1) == labels) for store in (given_away, kept)]
    assert right[0] > 0.7
    assert right[1] < 0.5


def test_numpys_whole_numbers_are_whole_numbers(tmp_path):
    numbers = {name: np.int64(value) for name, value in {"folds": 3, "top_k": 2, "batch_size": 16}.items()}
    assert labelled(tmp_path / "s", **numbers).manifest == labelled(tmp_path / "t", folds=3, top_k=2).manifest


def test_the_manifest_says_so_and_other_manifests_are_as_they_were(tmp_path):
    store = labelled(tmp_path / "s")
    assert store.manifest.folds["num_folds"] == 5
    assert store.manifest.folds["made_by"] == f"{__name__}:nearest_neighbour"
    file = tmp_path / "s" / "manifest.json"
    assert Manifest.from_json(file.read_text(), file) == store.manifest
    label(NearestNeighbour(INPUTS, LABELS), INPUTS, tmp_path / "plain")
    assert not {"folds", "runtime"} & set(json.loads((tmp_path / "plain" / "manifest.json").read_text()))
    # Of all teachers together: one other teacher makes another fingerprint.
    other = labelled(tmp_path / "other", lambda x, y, fold: NearestNeighbour(x, y, f", without fold {max(fold, 1)}"))
    assert other.manifest.teacher_fingerprint != store.manifest.teacher_fingerprint
    assert labelled(tmp_path / "named", teacher_fingerprint="mine").manifest.teacher_fingerprint == "mine"


def test_a_finished_store_is_returned_and_nobody_is_trained(tmp_path):
    def untrained(inputs, labels, fold):
        raise AssertionError("trained again")

    untrained.fingerprint = f"{__name__}:nearest_neighbour"
    labelled(tmp_path / "s", views=1)
    before = tree(tmp_path / "s")
    assert labelled(tmp_path / "s", untrained).manifest.folds["num_folds"] == 5
    assert tree(tmp_path / "s") == before


def test_a_run_that_ends_early_goes_on_at_the_first_fold_that_is_not_there(tmp_path):
    whole, made = tree(labelled(tmp_path / "whole").path), []

    def make_teacher(inputs, labels, fold):
        made.append(fold)
        if made == [0, 1, 2]:
            raise KeyboardInterrupt
        return nearest_neighbour(inputs, labels, fold)

    make_teacher.fingerprint = f"{__name__}:nearest_neighbour"
    with pytest.raises(KeyboardInterrupt):
        labelled(tmp_path / "s", make_teacher)
    # As SIGKILL in the midst of a fold leaves it.
    (tmp_path / "s" / ".partial-folds" / ".partial-002-0123" / "shards").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"must be a store.*a folder in which an out-of-fold labelling was begun"):
        label(nearest_neighbour(INPUTS, LABELS, 0), INPUTS, tmp_path / "s")
    with pytest.raises(StoreError, match=r"labels must be .* as asked for now"):
        label(None, (INPUTS, LABELS[::-1].copy()), tmp_path / "s", folds=5, make_teacher=make_teacher, batch_size=16)
    with pytest.raises(StoreError, match="top_k must be 2, as asked for now; got None"):
        labelled(tmp_path / "s", make_teacher, top_k=2)
    labelled(tmp_path / "s", make_teacher)
    assert made == [0, 1, 2, 2, 3, 4]
    assert tree(tmp_path / "s") == whole


def test_processes_share_the_folds_and_the_last_one_puts_them_together(tmp_path):
    whole = tree(labelled(tmp_path / "whole").path)
    assert labelled(tmp_path / "s", process=1, num_processes=2) is None
    assert labelled(tmp_path / "s", process=0, num_processes=2).manifest.folds["num_folds"] == 5
    assert labelled(tmp_path / "s", process=1, num_processes=2).manifest.folds["num_folds"] == 5
    assert tree(tmp_path / "s") == whole


def test_a_damaged_shard_is_labelled_again_where_the_same_teachers_can_be_made(tmp_path):
    whole = tree(labelled(tmp_path / "s", rows_per_shard=32).path)
    shard = sorted((tmp_path / "s" / "shards").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    labelled(tmp_path / "s", rows_per_shard=32)
    assert tree(tmp_path / "s") == whole
    shard.unlink()
    others = lambda inputs, labels, fold: NearestNeighbour(inputs, labels, "another")  # noqa: E731
    others.fingerprint = f"{__name__}:nearest_neighbour"
    with pytest.raises(StaleTeacherError):
        labelled(tmp_path / "s", others, rows_per_shard=32)


def test_views_are_those_of_the_item_in_the_whole_data_set(tmp_path):
    """A teacher of the image itself: what the store holds is what `attach` replays."""
    images = np.random.default_rng(2).random((40, 4, 4), dtype="float32")

    def make_teacher(inputs, labels, fold):
        def teacher(inputs):
            return np.asarray(inputs).reshape(-1, 16)

        teacher.fingerprint = "itself"
        return teacher

    augmentation = Augmentation(keras.layers.RandomFlip("horizontal"), seed=5)
    data = (images, np.arange(40) % 2)
    options = {"augmentation": augmentation, "views": 3, "dtype": "float32"}
    store = label(None, data, tmp_path / "s", folds=4, make_teacher=make_teacher, **options)
    plain = label(make_teacher(images, None, 0), images, tmp_path / "plain", **options)
    for view in range(3):
        np.testing.assert_array_equal(store.read(np.arange(40), view), plain.read(np.arange(40), view))
    for inputs, targets in attach(data, store, batch_size=8):
        np.testing.assert_array_equal(targets["soft_targets"], inputs.numpy().reshape(-1, 16))


def test_kinds_of_rows_and_marks_are_those_of_any_store(tmp_path):
    top = labelled(tmp_path / "top", top_k=2, rows_per_shard=48)
    expected = nearest_elsewhere(assign_folds(LABELS, 5))
    np.testing.assert_array_equal(top.read(EVERY)["top_k_ids"][:, 0], expected)
    swapped = INPUTS.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    with pytest.raises(ForeignDatasetError):
        attach((swapped, LABELS), top)
    plain = label(NearestNeighbour(INPUTS, LABELS), INPUTS, tmp_path / "plain", batch_size=16, rows_per_shard=48)
    for found, wanted in zip(top.marks(), plain.marks(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_keras_models_named_inputs_and_a_split_are_taken(tmp_path):
    def make_teacher(inputs, labels, fold):
        keras.utils.set_random_seed(fold)
        named = {name: keras.Input(array.shape[1:], name=name) for name, array in inputs.items()}
        logits = keras.layers.Dense(NUM_CLASSES)(keras.layers.Concatenate()(list(named.values())))
        return keras.Model(named, keras.layers.Softmax()(logits))

    inputs = {"left": INPUTS[:, :1], "right": INPUTS[:, 1:]}
    from keras_distill.data import Split

    found = label(None, Split(inputs, LABELS), tmp_path / "s", folds=2, make_teacher=make_teacher, dtype="float32")
    fold_of = assign_folds(LABELS, 2)
    for fold in range(2):
        teacher = make_teacher(inputs, LABELS, fold)
        kernel, bias = teacher.get_weights()
        expected = INPUTS[fold_of == fold].astype("float64") @ kernel.astype("float64") + bias
        np.testing.assert_allclose(found.read(EVERY[fold_of == fold]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"folds": 1}, ValueError, r"folds must be >= 2; got 1\."),
        ({"folds": 121}, ValueError, "folds must be at most as many as there are items; got 121 for 120"),
        (
            {"make_teacher": None},
            TypeError,
            r"that makes a teacher for each; got none\. Pass make_teacher=…",
        ),
        (
            {"make_teacher": lambda x, y: "a teacher"},
            TypeError,
            r"must be a function \(inputs, labels, fold\); got one",
        ),
        ({"make_teacher": lambda x, y, fold: "a teacher"}, TypeError, "must return a teacher: a model, or a function"),
        ({"runtime": "auto"}, ValueError, "runtime must be 'keras' with folds; got 'auto'"),
        ({"mask": "padding"}, ValueError, "mask must be left out with folds"),
        ({"engine": "local"}, ValueError, "engine must be left out with folds"),
        (
            {"augmentation": Augmentation(keras.layers.MixUp(0.2))},
            ValueError,
            "must keep to one item with folds; got MixUp",
        ),
    ],
)
def test_what_cannot_be_is_said(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        labelled(tmp_path / "s", **settings)
    assert SoftTargetStoreIsNotThere(tmp_path / "s")


def SoftTargetStoreIsNotThere(path):  # reads as a sentence above
    return not (path / "manifest.json").exists()


def test_other_classes_from_fold_to_fold_and_data_without_labels_are_said(tmp_path):
    def make_teacher(inputs, labels, fold):
        return NearestNeighbour(inputs, labels, num_classes=3 + (fold == 2))

    with pytest.raises(ValueError, match=r"num_classes of fold 2's teacher must be 3, as of fold 0's; got 4\."):
        labelled(tmp_path / "s", make_teacher)
    for dataset in (INPUTS, (INPUTS,), (INPUTS, None)):
        with pytest.raises(ValueError, match=r"folds need a dataset with labels, \(inputs, labels\)"):
            label(None, dataset, tmp_path / "t", folds=2, make_teacher=nearest_neighbour)
    with pytest.raises(ValueError, match="there must be 120 labels, one for every item"):
        label(None, (INPUTS, LABELS[:7]), tmp_path / "t", folds=2, make_teacher=nearest_neighbour)
    with pytest.raises(ValueError, match=r"the teacher must be None with folds"):
        label(nearest_neighbour, (INPUTS, LABELS), tmp_path / "t", folds=2, make_teacher=nearest_neighbour)
    with pytest.raises(ValueError, match="groups must be left out without folds"):
        label(NearestNeighbour(INPUTS, LABELS), INPUTS, tmp_path / "t", groups=EVERY)
    with pytest.raises(ValueError, match="the teacher must be a model or a function without folds"):
        label(None, INPUTS, tmp_path / "t")


KILL = """
import os, signal, sys
import tests.targets.test_out_of_fold as there

path, moment, last = sys.argv[1], sys.argv[2], int(sys.argv[3])

def make_teacher(inputs, labels, fold):
    if (moment, fold) == ("training", last):
        os.kill(os.getpid(), signal.SIGKILL)
    teacher = there.nearest_neighbour(inputs, labels, fold)
    def answer(given):
        if (moment, fold) == ("labelling", last):
            os.kill(os.getpid(), signal.SIGKILL)
        return teacher(given)
    answer.fingerprint = teacher.fingerprint
    return answer

make_teacher.fingerprint = "by heart"
there.labelled(path, make_teacher)
"""


@pytest.mark.slow
def test_a_store_killed_at_every_turn_is_byte_for_byte_that_of_an_undisturbed_run(tmp_path):
    """SIGKILL while a teacher trains and while it labels, each time to a process of its own."""

    def by_heart(inputs, labels, fold):
        return nearest_neighbour(inputs, labels, fold)

    by_heart.fingerprint = "by heart"
    labelled(tmp_path / "whole", by_heart)
    for moment, fold in (("training", 1), ("labelling", 1), ("labelling", 3)):
        command = [sys.executable, "-c", KILL, str(tmp_path / "killed"), moment, str(fold)]
        done = subprocess.run(command, env=environment(), capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (tmp_path / "killed" / "manifest.json").exists()
    labelled(tmp_path / "killed", by_heart)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert SoftTargetStore.open(tmp_path / "killed").manifest.folds["made_by"] == "by heart"


def test_sampled_rows_and_calibrated_teachers_are_out_of_fold_too(tmp_path):
    expected = nearest_elsewhere(assign_folds(LABELS, 5))
    options = {"sample": 2, "seed": 3}
    sampled = labelled(tmp_path / "sampled", **options)
    assert (sampled.manifest.kind, sampled.manifest.sampling_seed) == ("sampled", 3)
    rows = sampled.read(EVERY)
    # Of a class at exp(9) : 1 : 1 hardly another one is drawn.
    drawn = np.take_along_axis(rows["sampled_ids"], rows["sampled_shares"].argmax(-1)[:, None], -1)[:, 0]
    assert np.mean(drawn == expected) > 0.99
    assert labelled(tmp_path / "sampled", **options).manifest == sampled.manifest
    with pytest.raises(StoreError, match="sampling_seed must be 4, as asked for now; got 3"):
        labelled(tmp_path / "sampled", **options | {"seed": 4})

    # Labels that neighbours tell something of, or there were nothing to calibrate.
    labels = (INPUTS[:, 0] > 0).astype(int) + (INPUTS[:, 1] > 0)
    options = {"folds": 5, "make_teacher": nearest_neighbour, "dtype": "float32", "calibrate": True}
    options["teacher_fingerprint"] = "mine"
    calibrated = label(None, (INPUTS, labels), tmp_path / "calibrated", **options)
    logits, fold_of = calibrated.read(EVERY), assign_folds(labels, 5)
    for fold in range(5):
        # The temperature at which -log p of the right answers is least: with a share r of them right among 3 classes,
        # 9 / T = log(2 r / (1 - r)), found on items that the fold's teacher has not seen.
        right = np.mean(logits[fold_of == fold].argmax(-1) == labels[fold_of == fold])
        gaps = np.ptp(logits[fold_of == fold], axis=-1)
        np.testing.assert_allclose(gaps, np.log(2 * right / (1 - right)), rtol=1e-2)
    assert calibrated.manifest.teacher_fingerprint != "mine"
    again = label(None, (INPUTS, labels), tmp_path / "calibrated", **options)
    assert again.manifest == calibrated.manifest


def softened(inputs, labels, fold):
    """A teacher that is often wrong, and too sure."""
    kernel = np.random.default_rng(fold).normal(size=(INPUTS.shape[1], NUM_CLASSES)).astype("float32")
    centres = np.stack([inputs[labels == each].mean(axis=0) for each in range(NUM_CLASSES)])

    def teacher(x):
        return -30.0 * np.square(x[:, None] - centres).sum(-1).astype("float32") + 0.1 * x @ kernel

    teacher.fingerprint = f"fold {fold}"
    return teacher


def test_a_store_goes_on_with_the_calibration_that_it_was_begun_with(tmp_path):
    some = INPUTS[:60], LABELS[:60]

    def killed(inputs, labels, fold):
        if fold == 2:
            raise KeyboardInterrupt
        return softened(inputs, labels, fold)

    killed.fingerprint = softened.fingerprint = "softened"
    with pytest.raises(KeyboardInterrupt):
        labelled(tmp_path / "s", killed, calibrate=(INPUTS, LABELS))
    for other in (some, True, False):
        with pytest.raises(StoreError, match="calibrated_on must be"):
            labelled(tmp_path / "s", softened, calibrate=other)
    labelled(tmp_path / "s", softened, calibrate=(INPUTS, LABELS))
    for other in (some, True, False):
        with pytest.raises(StoreError, match="calibrated_on must be"):
            labelled(tmp_path / "s", softened, calibrate=other)
    assert labelled(tmp_path / "s", softened, calibrate=(INPUTS, LABELS)).manifest.folds["calibrated_on"]
