"""Stores that grow while they are used: each view labelled once, whole in the end, and gone on with after a kill."""

import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_distill import Distiller
from keras_distill.losses import SoftTargets
from keras_distill.targets import Augmentation, Shift, attach, growing, label
from keras_distill.targets.growing import GrowingStore, grow
from keras_distill.targets.manifest import ForeignDatasetError, StaleTeacherError, StoreError, UnfinishedStoreError
from keras_distill.targets.store import SoftTargetStore
from tests.targets.test_store import environment

IMAGES = np.random.default_rng(0).random((1500, 4, 4), dtype=np.float32)
LABELS = np.random.default_rng(1).integers(0, 16, 1500)
ON_TENSORFLOW = keras.config.backend() == "tensorflow"
MOVES = Augmentation(Shift(1), seed=3)
SETTINGS = {"augmentation": MOVES, "views": 2, "dtype": "float32", "teacher_fingerprint": "pixels"}


class Pixels:
    """A teacher whose logits are the pixels: exact whatever the batch; it counts what it has seen."""

    def __init__(self):
        self.num_seen = 0

    def __call__(self, images):
        self.num_seen += len(images)
        return np.asarray(images).reshape(len(images), -1)


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def views_of(ids, views):
    return np.asarray(MOVES(IMAGES[ids], ids, views))


def ask(store, rows):
    """Labels the rows of some numbers, a batch at a time."""
    for start in range(0, len(rows), 100):
        ids, views = rows[start : start + 100] % 1500, rows[start : start + 100] // 1500
        store.label(ids, views, views_of(ids, views))


def epoch_of(batches):
    found = list(batches) if hasattr(batches, "element_spec") else [batches[i] for i in range(len(batches))]
    if not hasattr(batches, "element_spec"):
        batches.on_epoch_end()
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_training_fills_a_store_that_is_byte_for_byte_that_of_label(tmp_path):
    teacher = Pixels()
    batches = attach((IMAGES, LABELS), tmp_path / "grown", teacher=teacher, batch_size=500, **SETTINGS)
    num_before = teacher.num_seen
    # One of two views an epoch: after 20 epochs 1 item in 500,000 lacks one.
    for epoch in range(20):
        for x, y in epoch_of(batches):
            np.testing.assert_array_equal(np.asarray(y["soft_targets"]), np.asarray(x).reshape(len(x), 16))
        if epoch == 0:
            assert teacher.num_seen - num_before == 1500
    if ON_TENSORFLOW:
        # Elsewhere a batch's share is filled up to a power of two.
        assert teacher.num_seen - num_before == 3000
    label(Pixels(), IMAGES, tmp_path / "labelled", **SETTINGS)
    assert contents(tmp_path / "grown") == contents(tmp_path / "labelled")
    # The next call opens it, and asks the teacher for the first batch alone, to see what it is.
    again = Pixels()
    epoch_of(attach((IMAGES, LABELS), tmp_path / "grown", teacher=again, batch_size=500, **SETTINGS))
    assert again.num_seen == 256


def test_each_view_is_labelled_once_whoever_asks(tmp_path):
    store = grow(Pixels(), IMAGES, tmp_path / "s", **SETTINGS)
    ids, views = np.array([5, 7, 5, 9]), np.array([0, 1, 0, 0])
    assert store.label(ids, views, views_of(ids, views)) == 3
    assert store.label(ids, views, views_of(ids, views)) == 0
    assert store.num_labelled == 3
    assert store.has([5, 7, 7], [0, 0, 1]).tolist() == [True, False, True]
    np.testing.assert_array_equal(store.read(ids, views), views_of(ids, views).reshape(4, 16))
    with pytest.raises(ForeignDatasetError, match=r"ids must be in \[0, 1500\); got 1500"):
        store.has([1500], [0])
    with pytest.raises(UnfinishedStoreError, match="3 of 3,000 rows, and not all that were asked for"):
        store.read([6])


def test_a_run_goes_on_with_what_the_last_one_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(growing, "_LEAST_ROWS_A_PIECE", 1024)
    rows = np.random.default_rng(5).permutation(3000)
    first = grow(Pixels(), IMAGES, tmp_path / "s", **SETTINGS)
    ask(first, rows[:1200])
    first._pieces._written.result()
    # Killed: what was not yet a piece is lost.
    first._pieces._take()
    with pytest.raises(UnfinishedStoreError, match="Run the same"):
        SoftTargetStore.open(tmp_path / "s")
    second = grow(Pixels(), IMAGES, tmp_path / "s", **SETTINGS)
    assert second.num_labelled == 1100
    ask(second, rows[1100:1300])
    second.save()
    third = grow(Pixels(), IMAGES, tmp_path / "s", **SETTINGS)
    assert third.num_labelled == 1300
    ask(third, rows)
    third.save()
    label(Pixels(), IMAGES, tmp_path / "labelled", **SETTINGS)
    assert contents(tmp_path / "s") == contents(tmp_path / "labelled")


def test_a_damaged_piece_is_labelled_again(tmp_path):
    store = grow(Pixels(), IMAGES, tmp_path / "s", **SETTINGS)
    ask(store, np.arange(300))
    store.save()
    [piece] = (tmp_path / "s" / "growing").iterdir()
    piece.write_bytes(piece.read_bytes()[:-1])
    assert grow(Pixels(), IMAGES, tmp_path / "s", **SETTINGS).num_labelled == 0


def test_label_finishes_what_training_began(tmp_path):
    store = grow(Pixels(), IMAGES, tmp_path / "s", **SETTINGS)
    ask(store, np.arange(300))
    store.save()
    finished = label(Pixels(), IMAGES, tmp_path / "s", **SETTINGS)
    np.testing.assert_array_equal(finished.read([1400], 1), views_of(np.array([1400]), np.array([1])).reshape(1, 16))
    assert not (tmp_path / "s" / "growing").exists()


def test_a_teacher_that_fails_costs_nothing_that_is_there(tmp_path):
    class Failing(Pixels):
        def __call__(self, images):
            if self.num_seen > 600:
                raise RuntimeError("the device is gone")
            return super().__call__(images)

    store = grow(Failing(), IMAGES, tmp_path / "s", **SETTINGS)
    with pytest.raises(RuntimeError, match="the device is gone"):
        ask(store, np.arange(1500))
    store.save()
    assert grow(Pixels(), IMAGES, tmp_path / "s", **SETTINGS).num_labelled == store.num_labelled > 200


def test_a_piece_that_could_not_be_written_is_written_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(growing, "_LEAST_ROWS_A_PIECE", 500)
    store = grow(Pixels(), IMAGES, tmp_path / "s", **SETTINGS)
    write = growing._Pieces._write

    def full(self, numbers):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(growing._Pieces, "_write", full)
    ask(store, np.arange(500))
    # Said once, by whoever comes next; then there is room again.
    with pytest.raises(OSError, match="No space left"):
        store.save()
    with pytest.raises(OSError, match="No space left"):
        store.save()
    with pytest.warns(UserWarning, match=r"what was labelled last is not written \(.*No space left"):
        growing._save_at_last(store._pieces)
    monkeypatch.setattr(growing._Pieces, "_write", write)
    ask(store, np.arange(500, 700))
    store.save()
    assert grow(Pixels(), IMAGES, tmp_path / "s", **SETTINGS).num_labelled == 700


def test_others_are_refused(tmp_path):
    store = grow(Pixels(), IMAGES, tmp_path / "s", **SETTINGS)
    with pytest.raises(StaleTeacherError):
        attach(IMAGES, tmp_path / "s", teacher=Pixels(), **{**SETTINGS, "teacher_fingerprint": "another"})
    with pytest.raises(ForeignDatasetError):
        attach(IMAGES[::-1], tmp_path / "s", teacher=Pixels(), **SETTINGS)
    with pytest.raises(StoreError, match="num_views must be 3"):
        attach(IMAGES, tmp_path / "s", teacher=Pixels(), **{**SETTINGS, "views": 3})
    with pytest.raises(ValueError, match="a store that grows needs a dataset of arrays; got a generator"):
        attach((batch for batch in [IMAGES]), tmp_path / "t", teacher=Pixels(), **SETTINGS)
    with pytest.raises(ValueError, match="ids must be left out with a teacher"):
        attach(IMAGES, tmp_path / "s", teacher=Pixels(), ids=np.arange(1500), **SETTINGS)
    with pytest.raises(TypeError, match="top_k"):
        attach(IMAGES, tmp_path / "s", top_k=3)
    with pytest.raises(ValueError, match="must be finite"):
        store.label([3], [0], np.full((1, 4, 4), np.nan, np.float32))


def test_a_student_learns_as_from_a_store_that_was_labelled_before(tmp_path):
    teacher = keras.Sequential([keras.Input((4, 4)), keras.layers.Flatten(), keras.layers.Dense(3)])
    labels = LABELS % 3
    label(teacher, IMAGES, tmp_path / "labelled", dtype="float32")
    losses = []
    for options in (
        {"store": tmp_path / "labelled"},
        {"store": tmp_path / "s", "teacher": teacher, "dtype": "float32"},
    ):
        keras.utils.set_random_seed(4)
        student = keras.Sequential([keras.Input((4, 4)), keras.layers.Flatten(), keras.layers.Dense(3)])
        distiller = Distiller(None, student, SoftTargets(2.0))
        distiller.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = distiller.fit(attach((IMAGES, labels), **options), epochs=2, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    # What the two epochs asked for is all there is: the store is whole.
    assert len(SoftTargetStore.open(tmp_path / "s")) == 1500
    assert not isinstance(grow(teacher, IMAGES, tmp_path / "s", dtype="float32"), GrowingStore)


_KILLED = """
import os, signal, sys
import numpy as np
from keras_distill.targets import attach, growing
from tests.targets.test_growing import IMAGES, LABELS, SETTINGS, Pixels, epoch_of

left = int(sys.argv[2])
growing._LEAST_ROWS_A_PIECE = 1024
write = growing._Pieces._write

def killed(self, numbers):
    global left
    write(self, numbers)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

growing._Pieces._write = killed
batches = attach((IMAGES, LABELS), sys.argv[1], teacher=Pixels(), batch_size=500, seed=int(sys.argv[3]), **SETTINGS)
for _ in range(20):
    epoch_of(batches)
"""


@pytest.mark.slow
def test_killed_at_its_pieces_it_goes_on_to_the_bytes_of_an_undisturbed_run(tmp_path):
    deaths = []
    for run in range(6):
        arguments = [sys.executable, "-c", _KILLED, str(tmp_path / "grown"), "1", str(run)]
        deaths.append(subprocess.run(arguments, env=environment(), check=False, capture_output=True).returncode)
        if deaths[-1] == 0:
            break
        assert deaths[-1] == -signal.SIGKILL
    assert deaths[-1] == 0
    assert len(deaths) > 2
    label(Pixels(), IMAGES, tmp_path / "labelled", **SETTINGS)
    assert contents(tmp_path / "grown") == contents(tmp_path / "labelled")
