"""Whoever joins a store to items brings those that were labelled, or hears of it."""

import keras
import numpy as np
import pytest

from keras_distill.targets import label
from keras_distill.targets.batches import StoredBatches
from keras_distill.targets.known_items import KnownItems
from keras_distill.targets.manifest import ForeignDatasetError
from keras_distill.targets.shards import create, finish, write_shard
from keras_distill.targets.store import SoftTargetStore
from tests.targets.test_store import dense_manifest, random_rows

X = np.random.default_rng(0).normal(size=(500, 4)).astype("float32")
Y = np.arange(500)


def ten_times(inputs):
    return 10 * inputs


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "s"
    return label(ten_times, X, path, teacher_fingerprint="ten times", dtype="float32", batch_size=50)


@pytest.fixture(scope="module")
def store_of_batches(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "s"
    batches = ((X[at : at + 30], Y[at : at + 30]) for at in range(0, 500, 30))
    return label(ten_times, batches, path, teacher_fingerprint="ten times", dtype="float32", num_items=500)


def swapped(*positions):
    x = X.copy()
    x[list(positions)] = X[list(positions[::-1])]
    return x


@pytest.mark.parametrize("given", [X[::-1], X + 1e-6, swapped(0, 499), swapped(250, 251)])
def test_arrays_that_were_not_labelled_are_refused(store, given):
    with pytest.raises(ForeignDatasetError):
        StoredBatches((given, Y), store)
    StoredBatches((given, Y), store, check_items=False)


def test_arrays_are_held_to_the_marks_of_a_labelled_stream(store_of_batches):
    batches = StoredBatches((X, Y), store_of_batches, batch_size=100)
    for at in range(5):
        x, y = batches[at]
        np.testing.assert_array_equal(y["soft_targets"], 10 * x)
    with pytest.raises(
        ForeignDatasetError, match=r"item 0 must be the one that was labelled; got another one \(16 of 16"
    ):
        StoredBatches((X[::-1], Y), store_of_batches)
    with pytest.raises(ForeignDatasetError, match=r"item 499 .* \(1 of 16"):
        StoredBatches((swapped(499, 400), Y), store_of_batches)


def test_ids_of_other_items_are_refused(store):
    ids = np.random.default_rng(0).permutation(500)[:200]
    StoredBatches((X[ids], Y[ids]), store, ids=ids)
    with pytest.raises(ForeignDatasetError, match="must be the one that was labelled"):
        StoredBatches((X[ids], Y[ids]), store, ids=np.roll(ids, 1))
    StoredBatches((X[ids], Y[ids]), store, ids=np.roll(ids, 1), check_items=False)


def test_smaller_inputs_for_the_student_are_taken_when_it_is_said(store):
    with pytest.raises(ForeignDatasetError):
        StoredBatches((X[:, :2], Y), store)
    x, y = StoredBatches((X[:, :2], Y), store, check_items=False, shuffle=False, batch_size=10)[0]
    assert x.shape == (10, 2)
    np.testing.assert_array_equal(y["soft_targets"], 10 * X[:10])


def test_a_store_without_marks_knows_nothing_and_refuses_nothing(tmp_path):
    manifest = dense_manifest()
    rows, _ = random_rows(manifest)
    create(tmp_path, manifest)
    for index in range(4):
        write_shard(tmp_path, manifest, index, rows[slice(*manifest.shard_rows(index))])
    finish(tmp_path, manifest)
    KnownItems(SoftTargetStore.open(tmp_path)).check(np.arange(50), np.zeros((50, 3)))


def test_an_item_that_was_another_one_in_another_view_is_found(tmp_path):
    manifest = dense_manifest(num_items=16, num_views=2)
    rows, _ = random_rows(manifest)
    create(tmp_path, manifest)
    for index in range(2):
        marks = np.arange(1, 17, dtype=np.uint64)
        marks[7] += index
        write_shard(tmp_path, manifest, index, rows[slice(*manifest.shard_rows(index))], marks)
    finish(tmp_path, manifest)
    with pytest.raises(
        ForeignDatasetError, match="item 7 must be the one that was labelled; got another one in another"
    ):
        KnownItems(SoftTargetStore.open(tmp_path))


# Streams


@pytest.mark.tensorflow
@pytest.mark.parametrize("size", [None, 1, 40])
def test_a_stream_that_shuffles_before_it_counts_is_stopped(store, size):
    import tensorflow as tf

    from keras_distill.targets.dataset import attach

    def stream(is_wrong):
        examples = tf.data.Dataset.from_tensor_slices((X, Y))
        counted = examples.shuffle(500, seed=1).enumerate() if is_wrong else examples.enumerate().shuffle(500, seed=1)
        return counted if size is None else counted.batch(size)

    for x, y in attach(stream(is_wrong=False), store):
        np.testing.assert_array_equal(y["soft_targets"], 10 * x.numpy())
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"must be the one that was labelled.*check_items=False"):
        list(attach(stream(is_wrong=True), store))
    assert len(list(attach(stream(is_wrong=True), store, check_items=False))) == len(list(stream(is_wrong=True)))


@pytest.mark.tensorflow
def test_a_stream_of_several_inputs_is_held_to_the_marks_of_its_arrays(tmp_path):
    import tensorflow as tf

    from keras_distill.targets.dataset import attach

    halves = {"right": X[:, 2:], "left": X[:, :2]}
    inputs = {name: keras.Input((2,), name=name) for name in halves}
    teacher = keras.Model(inputs, keras.layers.Concatenate()([inputs["left"], inputs["right"]]))
    store = label(teacher, halves, tmp_path / "s", dtype="float32")
    stream = tf.data.Dataset.from_tensor_slices((halves, Y)).enumerate().shuffle(500).batch(50)
    for x, y in attach(stream, store):
        np.testing.assert_array_equal(y["soft_targets"], np.concatenate([x["left"], x["right"]], axis=1))
    exchanged = {"right": X[:, :2], "left": X[:, 2:]}
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be the one that was labelled"):
        list(attach(tf.data.Dataset.from_tensor_slices((exchanged, Y)).enumerate().batch(50), store))


@pytest.mark.tensorflow
def test_a_store_of_a_batched_stream_joins_its_examples(tmp_path):
    import tensorflow as tf

    from keras_distill.targets.dataset import attach

    teacher = keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(10.0)])
    batched = tf.data.Dataset.from_tensor_slices((X, Y)).batch(64)
    store = label(teacher, batched, tmp_path / "s", dtype="float32")
    for x, y in attach(batched.unbatch().enumerate().shuffle(100).batch(64), store):
        np.testing.assert_array_equal(y["soft_targets"], 10 * x.numpy())
