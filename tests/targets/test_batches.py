"""The join in NumPy: every item meets its own targets, in an order that several workers agree on without a word."""

import keras
import numpy as np
import pytest

from keras_distill import targets
from keras_distill.targets.batches import StoredBatches, attach, permuted
from keras_distill.targets.manifest import ForeignDatasetError

NUM_ITEMS = 50
X = np.random.default_rng(0).normal(size=(NUM_ITEMS, 3)).astype("float32")
Y = np.arange(NUM_ITEMS) % 3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The teacher's logits are ten times the inputs, so that a batch shows whose targets it holds."""
    path = tmp_path_factory.mktemp("batches") / "store"
    return targets.label(lambda x: 10 * x, X, path, teacher_fingerprint="ten times", dtype="float32")


def epoch_of(batches):
    return [batches[index] for index in range(len(batches))]


def inputs_of(epoch):
    return np.concatenate([batch[0] for batch in epoch])


def test_every_item_comes_once_an_epoch_with_its_own_labels_and_targets(store):
    weights = np.linspace(1, 2, NUM_ITEMS)
    epoch = epoch_of(StoredBatches((X, Y, weights), store, batch_size=8))
    assert [len(batch[0]) for batch in epoch] == [8] * 6 + [2]
    inputs = inputs_of(epoch)
    np.testing.assert_array_equal(np.sort(inputs[:, 0]), np.sort(X[:, 0]))
    which = [int(np.flatnonzero((row == X).all(1))[0]) for row in inputs]
    np.testing.assert_array_equal(np.concatenate([y["labels"] for _, y, _ in epoch]), Y[which])
    np.testing.assert_array_equal(np.concatenate([y["soft_targets"] for _, y, _ in epoch]), 10 * inputs)
    np.testing.assert_array_equal(np.concatenate([weight for *_, weight in epoch]), weights[which])


def test_epochs_differ_and_the_seed_repeats_them(store):
    batches, again = (StoredBatches(X, store, batch_size=8, seed=3) for _ in range(2))
    first = inputs_of(epoch_of(batches))
    batches.on_epoch_end()
    assert not np.array_equal(inputs_of(epoch_of(batches)), first)
    np.testing.assert_array_equal(inputs_of(epoch_of(again)), first)
    np.testing.assert_array_equal(inputs_of(epoch_of(StoredBatches(X, store, shuffle=False))), X)


@pytest.mark.parametrize("num_workers", [2, 4])
def test_the_workers_shares_make_the_batches_of_one(store, num_workers):
    whole = epoch_of(StoredBatches((X, Y), store, batch_size=8, seed=1))
    shares = [
        epoch_of(StoredBatches((X, Y), store, batch_size=8, seed=1, process=worker, num_processes=num_workers))
        for worker in range(num_workers)
    ]
    assert {len(share) for share in shares} == {7 if num_workers == 2 else 6}, "two items are too few for four workers"
    for batch, *parts in zip(whole, *shares, strict=False):
        np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), batch[0])
        targets_of_all = np.concatenate([part[1]["soft_targets"] for part in parts])
        np.testing.assert_array_equal(targets_of_all, batch[1]["soft_targets"])


def test_ids_of_a_part_find_their_rows(store):
    ids = np.array([40, 3, 17])
    [(inputs, y)] = epoch_of(StoredBatches(X[ids], store, ids=ids))
    np.testing.assert_array_equal(y["soft_targets"], 10 * inputs)


def test_views_are_those_that_the_teacher_saw(tmp_path):
    images = np.random.default_rng(1).uniform(size=(10, 4, 4, 1)).astype("float32")
    shift = targets.Augmentation(targets.Shift(1, exhaustive=True))
    store = targets.label(
        lambda x: x.reshape(len(x), -1), images, tmp_path / "s", teacher_fingerprint="pixels", augmentation=shift
    )
    batches = StoredBatches(images, store, batch_size=10)
    [(inputs, y)] = epoch_of(batches)
    np.testing.assert_allclose(inputs.reshape(10, -1), y["soft_targets"], atol=1e-3)
    assert not np.array_equal(np.sort(inputs[:, 0, 0, 0]), np.sort(images[:, 0, 0, 0])), "no view was moved"


@pytest.mark.parametrize("num_items", [1, 2, 3, 10, 64, 1000])
def test_a_permutation_of_any_length(num_items):
    found = permuted(np.arange(num_items), num_items, [7, 0])
    np.testing.assert_array_equal(np.sort(found), np.arange(num_items))


def test_places_of_a_permutation_are_as_good_as_drawn():
    # Chi-square of where position 0 of 10 goes, over 2000 keys: 9 degrees of freedom, 99.9 % below 27.9.
    places = [int(permuted(np.array([0]), 10, [key, 0])[0]) for key in range(2000)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9
    # Neighbours are sent apart: the rank correlation of 1000 positions with their images is that of noise.
    images = permuted(np.arange(1000), 1000, [0, 0])
    assert abs(np.corrcoef(np.arange(1000), images)[0, 1]) < 4 / np.sqrt(1000)


def test_a_distiller_trains_from_it_on_this_backend(store):
    student = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, kernel_initializer="zeros")])
    import keras_distill as kd

    distiller = kd.Distiller(None, student, kd.losses.SoftTargets(10.0), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.5))
    distiller.fit(attach(X, store.path, batch_size=10), epochs=60, shuffle=False, verbose=0)
    # The teacher is linear: its softmax needs ten times the identity, up to a constant of each row.
    kernel = np.asarray(student.layers[0].kernel)
    np.testing.assert_allclose(kernel - kernel.mean(1, keepdims=True), 10 * np.eye(3) - 10 / 3, atol=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9, "num_processes": 2}, "batch_size must be a multiple of 2"),
        ({"process": 2, "num_processes": 2}, "process must be in"),
        ({"ids": np.arange(3)}, "ids must be integers of shape"),
    ],
)
def test_bad_options_are_refused(store, options, message):
    with pytest.raises(ValueError, match=message):
        StoredBatches((X, Y), store, **options)


def test_other_data_are_refused(store):
    with pytest.raises(ForeignDatasetError):
        StoredBatches(X + 1, store)
