"""The join against the store itself: every item meets its own targets, in any order, and `fit` takes it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, data
from keras_distill.data import Split
from keras_distill.data.networks import mlp
from keras_distill.losses import SoftTargets
from keras_distill.targets.augmentation import Augmentation, Shift
from keras_distill.targets.batches import StoredBatches
from keras_distill.targets.dataset import attach
from keras_distill.targets.labelling import label
from keras_distill.targets.manifest import ForeignDatasetError
from keras_distill.teachers import Ensemble

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.random((103, 6, 6, 1), dtype=np.float32)
LABELS = GENERATOR.integers(0, 4, 103)


def network(seed=0, width=8, num_classes=4):
    kernels = [keras.initializers.GlorotUniform(seed=2 * seed), keras.initializers.GlorotUniform(seed=2 * seed + 1)]
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(width, "relu", kernel_initializer=kernels[0]),
            keras.layers.Dense(num_classes, kernel_initializer=kernels[1]),
        ]
    )


@pytest.fixture(scope="module")
def teacher():
    return network(5, width=16)


@pytest.fixture(scope="module")
def store(teacher, tmp_path_factory):
    return label(teacher, IMAGES, tmp_path_factory.mktemp("store") / "s", dtype="float32", batch_size=32)


@pytest.fixture(scope="module")
def shifted(teacher, tmp_path_factory):
    shifts = Augmentation(Shift(1, exhaustive=True))
    return label(teacher, IMAGES, tmp_path_factory.mktemp("store") / "s", dtype="float32", augmentation=shifts)


def test_every_batch_meets_the_teachers_own_logits(teacher, store):
    batches = attach(Split(IMAGES, LABELS), store, batch_size=20)
    assert len(batches) == 6
    num_seen = 0
    for x, y in batches:
        np.testing.assert_allclose(y["soft_targets"], teacher(x), rtol=1e-4, atol=1e-5)
        num_seen += len(x)
        assert set(y) == {"labels", "soft_targets"}
    assert num_seen == 103


def test_each_epoch_is_another_order_of_all_items_and_the_seed_repeats_it(store):
    def orders(seed):
        batches = attach((IMAGES, np.arange(103)), store, batch_size=20, seed=seed)
        return [np.concatenate([y["labels"] for _, y in batches]) for _ in range(3)]

    first = orders(1)
    for order in first:
        np.testing.assert_array_equal(np.sort(order), np.arange(103))
    assert not np.array_equal(first[0], first[1])
    np.testing.assert_array_equal(first, orders(1))
    assert not np.array_equal(first[0], orders(2)[0])
    assert abs(np.corrcoef(first[0], np.arange(103))[0, 1]) < 0.35


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_many_small_batches_are_each_item_once_with_its_own_targets(teacher, store, drop_remainder):
    """Targets are read for many batches at a time: here three times, the last one with a part of a batch."""
    batches = attach((IMAGES, np.arange(103)), store, batch_size=3, drop_remainder=drop_remainder)
    sizes, seen = [], []
    for x, y in batches:
        np.testing.assert_allclose(y["soft_targets"], teacher(x), rtol=1e-4, atol=1e-5)
        sizes.append(len(x))
        seen += y["labels"].numpy().tolist()
    assert sizes == [3] * 34 + [1] * (not drop_remainder)
    assert len(batches) == len(sizes)
    assert len(set(seen)) == len(seen) == 102 + (not drop_remainder)
    assert batches.element_spec[0].shape == (3 if drop_remainder else None, 6, 6, 1)


def test_without_shuffling_items_come_in_order_with_their_weights(store):
    weights = np.linspace(0, 1, 103).astype("float32")
    batches = attach((IMAGES, LABELS, weights), store, batch_size=50, shuffle=False, drop_remainder=True)
    x, y, w = (np.concatenate(parts) for parts in zip(*[(x, y["labels"], w) for x, y, w in batches], strict=True))
    np.testing.assert_array_equal(x, IMAGES[:100])
    np.testing.assert_array_equal(y, LABELS[:100])
    np.testing.assert_array_equal(w, weights[:100])


def test_a_part_in_another_order_meets_its_targets_by_its_ids(teacher, store):
    ids = np.random.default_rng(3).permutation(103)[:41]
    for x, y in attach((IMAGES[ids], LABELS[ids]), store, batch_size=10, ids=ids):
        np.testing.assert_allclose(y["soft_targets"], teacher(x), rtol=1e-4, atol=1e-5)


def test_a_shuffled_filtered_stream_meets_its_targets_by_its_ids(teacher, store):
    stream = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).enumerate()
    stream = stream.filter(lambda i, element: element[1] != 2).shuffle(50, seed=1).batch(16)
    num_seen = 0
    for x, y in attach(stream, store):
        np.testing.assert_allclose(y["soft_targets"], teacher(x), rtol=1e-4, atol=1e-5)
        num_seen += len(x)
    assert num_seen == np.count_nonzero(LABELS != 2)


def test_single_examples_and_streams_without_labels_are_joined_too(teacher, store):
    stream = tf.data.Dataset.from_tensor_slices(IMAGES).enumerate()
    _, y = next(iter(attach(stream.skip(7), store)))
    np.testing.assert_allclose(y["soft_targets"], teacher(IMAGES[[7]])[0], rtol=1e-4, atol=1e-5)
    assert list(y) == ["soft_targets"]


@pytest.mark.parametrize("as_stream", [False, True])
def test_the_student_sees_bit_for_bit_what_the_teacher_saw(teacher, shifted, as_stream):
    given = (IMAGES, LABELS)
    if as_stream:
        given = tf.data.Dataset.from_tensor_slices(given).enumerate().shuffle(103, seed=0).batch(20)
    seen = set()
    for epoch in range(2):
        for x, y in (
            attach(given, shifted, batch_size=20) if epoch == 0 else attach(given, shifted, batch_size=20, seed=5)
        ):
            np.testing.assert_allclose(y["soft_targets"], teacher(x), rtol=1e-4, atol=1e-5)
            seen |= {image.numpy().tobytes() for image in x}
    views = Augmentation(Shift(1, exhaustive=True))
    everything = {image.tobytes() for v in range(9) for image in views(IMAGES, np.arange(103), np.full(103, v)).numpy()}
    assert seen <= everything
    assert len(seen) > 150


def test_views_change_from_epoch_to_epoch(shifted):
    batches = attach((IMAGES, np.arange(103)), shifted, batch_size=103, shuffle=False)
    first, second = (next(iter(batches))[0].numpy() for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("layer", [keras.layers.MixUp(1.0), keras.layers.CutMix()])
def test_labels_are_blended_as_the_items_are(teacher, tmp_path, layer):
    # A picture that says by its brightness which item it is: how much of whom is in a view can be read off it.
    pictures = np.broadcast_to(2.0 ** np.arange(6, dtype="float32")[:, None, None, None], (6, 6, 6, 1))
    blended = Augmentation(layer, seed=2)
    store = label(teacher, pictures, tmp_path / "s", augmentation=blended, views=2, dtype="float32")
    labels = np.array([0, 1, 2, 3, 0, 1])
    ids = np.arange(6)
    for x, y in attach((pictures, labels), store, batch_size=6, shuffle=False).repeat(2):
        np.testing.assert_allclose(y["soft_targets"], teacher(x), rtol=1e-4, atol=1e-4)
        seen = []
        for view in range(2):
            partners = np.asarray(blended.partners(ids, np.full(6, view), 6))
            mean, own, other = (np.asarray(x).mean((1, 2, 3)), pictures[:, 0, 0, 0], pictures[partners, 0, 0, 0])
            share = np.divide(mean - other, own - other, out=np.ones(6), where=own != other)[:, None]
            seen.append(share * np.eye(4)[labels] + (1 - share) * np.eye(4)[labels[partners]])
        distance = np.abs(np.stack(seen) - y["labels"].numpy()).max(axis=-1).min(axis=0)
        # CutMix takes the share of a box whose edges lie between pixels.
        np.testing.assert_allclose(distance, 0.0, atol=1e-4 if isinstance(layer, keras.layers.MixUp) else 0.4)


@pytest.mark.parametrize("join", [attach, StoredBatches], ids=["tensorflow", "numpy"])
def test_labels_to_blend_may_have_any_layout_and_must_be_known(teacher, tmp_path, join):
    blended = Augmentation(keras.layers.MixUp(1.0), seed=2)
    store = label(teacher, IMAGES, tmp_path / "s", augmentation=blended, dtype="float32")

    def labels_of(labels):
        batches = join((IMAGES, labels), store, batch_size=103, shuffle=False)
        return np.asarray((batches[0] if join is StoredBatches else next(iter(batches)))[1]["labels"])

    expected = labels_of(LABELS)
    np.testing.assert_allclose(expected.sum(-1), 1.0, atol=1e-6)
    for labels in (LABELS[:, None], LABELS.astype("float32"), np.eye(4)[LABELS], np.eye(4, dtype="int32")[LABELS]):
        np.testing.assert_array_equal(labels_of(labels), expected)
    for labels, message in (
        (np.where(LABELS == 2, -1, LABELS), r"must be in \[0, 4\); got -1 \(\d+ such\)\. Of an item without a label"),
        (np.eye(5)[LABELS], r"must have shape \(num_items,\) or \(num_items, 4\); got \(103, 5\)"),
        ({"a": LABELS, "b": LABELS}, r"got \(103,\), \(103,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            labels_of(labels)


def test_the_order_and_the_views_follow_from_the_seed_alone(shifted):
    def epoch():
        batches = attach((IMAGES, np.arange(103)), shifted, batch_size=103, seed=7)
        return [array.numpy() for x, y in batches for array in (x, y["labels"])]

    orders = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        orders.append(epoch())
    for one, other in zip(*orders, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_stream_of_single_items_is_refused_where_views_are_made(shifted):
    stream = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).enumerate()
    with pytest.raises(ValueError, match=r"must come in batches where its store holds views; got items\. Batch it"):
        attach(stream, shifted)


def test_top_k_and_member_stores_give_what_the_losses_take(teacher, tmp_path):
    label(teacher, IMAGES, tmp_path / "k", top_k=2)
    label(Ensemble([network(1), network(2)]), IMAGES, tmp_path / "m", members=True)
    for name, keys in (
        ("k", {"top_k_logits", "top_k_ids", "log_tail", "classes"}),
        ("m", {"member_logits", "member_weights"}),
    ):
        x, y = next(iter(attach((IMAGES, LABELS), tmp_path / name, batch_size=30)))
        assert set(y["soft_targets"]) == keys
        assert np.isfinite(SoftTargets(3.0).per_example(y["soft_targets"], teacher(x))).all()


def distil(teacher, batches, temperature=4.0, epochs=3, student=None, learning_rate=0.01):
    """The loss of each step of a fresh student, and its weights."""
    student = student or network(9)
    distiller = Distiller(teacher, student, SoftTargets(temperature), student_loss_weight=0.3)
    distiller.compile(
        keras.optimizers.Adam(learning_rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    losses = Steps()
    distiller.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[losses])
    return np.array(losses.values), student.get_weights()


class Steps(keras.callbacks.Callback):
    """The loss of each step: Keras logs the mean of the epoch so far, so the metrics start anew at each."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(logs["loss"])


def without_targets(batches):
    return batches.map(lambda x, y: (x, y["labels"]))


def test_a_store_gives_the_same_student_as_the_teacher_beside_it(teacher, store):
    from_store, weights = distil(None, attach((IMAGES, LABELS), store, batch_size=20))
    beside, expected = distil(teacher, without_targets(attach((IMAGES, LABELS), store, batch_size=20)))
    assert len(beside) == 18
    np.testing.assert_allclose(from_store, beside, rtol=1e-5)
    for found, weight in zip(weights, expected, strict=True):
        np.testing.assert_allclose(found, weight, rtol=1e-3, atol=1e-5)


def test_arrays_with_targets_read_from_a_store_give_the_same_student_too(teacher, store):
    ids = np.random.default_rng(3).permutation(103)
    x, y = IMAGES[ids], LABELS[ids]
    settings = {"batch_size": 20, "epochs": 2, "shuffle": False, "verbose": 0}
    weights = []
    for beside, targets in ((None, {"labels": y, "soft_targets": store.read(ids)}), (teacher, y)):
        student = network(9)
        distiller = Distiller(beside, student, SoftTargets(4.0))
        distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        distiller.fit(x, targets, **settings)
        weights.append(student.get_weights())
    for found, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_store_of_views_gives_the_same_student_as_the_teacher_beside_it(teacher, shifted):
    from_store, _ = distil(None, attach((IMAGES, LABELS), shifted, batch_size=20))
    beside, _ = distil(teacher, without_targets(attach((IMAGES, LABELS), shifted, batch_size=20)))
    np.testing.assert_allclose(from_store, beside, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.needs_data
def test_mnist_1200_to_800_from_a_store_is_the_same_student_as_beside_the_teacher(tmp_path):
    """The paper's pair on MNIST's first 12,800 digits, T = 20: every step's loss within 1e-5.

    Where the CPU's products of matrices round a row alike in any company, which is tried, every step is that close in
    shuffled batches as well; where they do not, two runs drift apart there as any two roundings do.
    """
    split = data.load("mnist").train
    split = Split(split.inputs[:12_800], split.labels[:12_800])
    keras.utils.set_random_seed(1)
    teacher = mlp((28, 28, 1), 10, (1200, 1200))
    teacher.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    teacher.fit(split.inputs, split.labels, batch_size=256, verbose=0)
    store = label(teacher, split, tmp_path / "s", dtype="float32", batch_size=128)
    first = mlp((28, 28, 1), 10, (800, 800))

    def losses(beside, shuffle):
        student = keras.models.clone_model(first)
        student.set_weights(first.get_weights())
        batches = attach(split, store, batch_size=128, shuffle=shuffle)
        batches = batches if beside is None else without_targets(batches)
        return distil(beside, batches, 20.0, epochs=1, student=student, learning_rate=1e-3)[0]

    np.testing.assert_allclose(losses(None, False), losses(teacher, False), rtol=1e-5)
    from_store, beside = losses(None, True), losses(teacher, True)
    shuffled = attach(split, store, batch_size=128)
    rounds_alike = all(np.array_equal(teacher(x, training=False), y["soft_targets"]) for x, y in shuffled)
    np.testing.assert_allclose(from_store[:20], beside[:20], rtol=1e-5)
    np.testing.assert_allclose(from_store, beside, rtol=1e-5 if rounds_alike else 1e-3)


@pytest.mark.parametrize("kept", [{"members": True}, {"temperature": 4.0}])
def test_an_ensembles_store_gives_the_same_student_as_the_ensemble(tmp_path, kept):
    ensemble = Ensemble([network(seed) for seed in range(10)])
    store = label(ensemble, IMAGES, tmp_path / "s", dtype="float32", **kept)
    from_store, _ = distil(None, attach((IMAGES, LABELS), store, batch_size=20), epochs=1)
    beside, _ = distil(ensemble, without_targets(attach((IMAGES, LABELS), store, batch_size=20)), epochs=1)
    np.testing.assert_allclose(from_store, beside, rtol=1e-5)


def test_top_k_of_all_classes_gives_the_same_student_as_the_dense_store(teacher, store, tmp_path):
    label(teacher, IMAGES, tmp_path / "k", top_k=4, dtype="float32")
    from_top_k, _ = distil(None, attach((IMAGES, LABELS), tmp_path / "k", batch_size=20), epochs=1)
    dense, _ = distil(None, attach((IMAGES, LABELS), store, batch_size=20), epochs=1)
    np.testing.assert_allclose(from_top_k, dense, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ((IMAGES[:50], LABELS[:50]), {}, "number of items must be 50"),
        ((IMAGES[::-1], LABELS), {}, "data set's fingerprint"),
        ((IMAGES, LABELS), {"ids": np.arange(103) + 1}, r"ids must be in \[0, 103\)"),
    ],
)
def test_data_that_were_not_labelled_are_refused(store, given, settings, message):
    with pytest.raises(ForeignDatasetError, match=message):
        attach(given, store, **settings)


def test_streams_without_ids_and_ids_of_the_wrong_shape_are_refused(store):
    with pytest.raises(ValueError, match=r"dataset\.enumerate\(\)"):
        attach(tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)), store)
    with pytest.raises(ValueError, match="ids must be integers of shape"):
        attach((IMAGES, LABELS), store, ids=np.arange(5))
    with pytest.raises(ValueError, match="the same length"):
        attach((IMAGES, LABELS[:5]), store)


def test_an_id_outside_the_store_stops_the_stream(store):
    stream = tf.data.Dataset.from_tensor_slices(IMAGES).enumerate(start=50).batch(103)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"ids must be in \[0, 103\)"):
        next(iter(attach(stream, store)))
