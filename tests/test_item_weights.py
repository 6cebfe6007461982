"""Class weights, sample weights and missing labels: one truth, whatever the data and the layout of the labels."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.distillation.batch import ClassWeights
from keras_distill.losses.labels import are_class_ids, class_ids

NUM_ITEMS, NUM_CLASSES, TEMPERATURE, LABEL_SHARE = 24, 3, 2.0, 0.3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(NUM_ITEMS, 5)).astype("float32")
LABELS = RNG.integers(0, NUM_CLASSES, NUM_ITEMS)
TEACHER_LOGITS = RNG.normal(size=(NUM_ITEMS, NUM_CLASSES)).astype("float32")
PROBABILITIES = 0.8 * np.eye(NUM_CLASSES, dtype="float32")[LABELS] + np.float32(0.2 / NUM_CLASSES)
CLASS_WEIGHT = {0: 0.5, 2: 3.0}
WEIGHTS = RNG.uniform(0.1, 2.0, NUM_ITEMS).astype("float32")
LAYOUTS = {
    "flat": LABELS,
    "float": LABELS.astype("float32"),
    "column": LABELS[:, None],
    "one-hot": np.eye(NUM_CLASSES, dtype="float32")[LABELS],
    "probabilities": PROBABILITIES,
}
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
DENSE = keras.losses.CategoricalCrossentropy(from_logits=True)
on_tensorflow = pytest.mark.tensorflow


def network(seed=0, length=None):
    shape = (5,) if length is None else (length, 5)
    kernel = np.random.default_rng(seed).normal(size=(5, NUM_CLASSES)).astype("float32")
    model = keras.Sequential([keras.Input(shape), layers.Dense(NUM_CLASSES)])
    model.set_weights([kernel, np.zeros(NUM_CLASSES, "float32")])
    return model


def log_softmax(logits):
    logits = np.asarray(logits, "float64")
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def soft_loss(teacher_logits, student_logits):
    """T²·KL of each item, in float64."""
    teacher, student = log_softmax(teacher_logits / TEMPERATURE), log_softmax(student_logits / TEMPERATURE)
    return TEMPERATURE**2 * (np.exp(teacher) * (teacher - student)).sum(axis=-1)


def hard_loss(labels, student_logits):
    """Cross-entropy of each item; 0 where it has no label."""
    log_probabilities = log_softmax(student_logits)
    if labels.shape == log_probabilities.shape:
        return -(labels * log_probabilities).sum(axis=-1)
    labels = labels.reshape(log_probabilities.shape[:-1]).astype(int)
    picked = np.take_along_axis(log_probabilities, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return np.where(labels < 0, 0.0, -picked)


def classes_of(labels):
    return labels.argmax(-1) if labels.ndim == 2 and labels.shape[-1] == NUM_CLASSES else labels.ravel().astype(int)


def expected_loss(labels, class_weight, sample_weight):
    weights = np.array([(class_weight or {}).get(label, 1.0) for label in classes_of(labels)])
    weights = weights * (1.0 if sample_weight is None else sample_weight)
    logits = network()(X).__array__()
    hard = (weights * hard_loss(labels, logits)).sum() / (classes_of(labels) >= 0).sum()
    return LABEL_SHARE * hard + (1.0 - LABEL_SHARE) * (weights * soft_loss(TEACHER_LOGITS, logits)).mean()


class Batches(keras.utils.PyDataset):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


def arrays(x, y, sample_weight):
    return {"x": x, "y": y, "sample_weight": sample_weight}


def pipeline(x, y, sample_weight):
    import tensorflow as tf

    parts = (x, y) if sample_weight is None else (x, y, sample_weight)
    return {"x": tf.data.Dataset.from_tensor_slices(parts).batch(NUM_ITEMS)}


def py_dataset(x, y, sample_weight):
    return {"x": Batches((x, y) if sample_weight is None else (x, y, sample_weight))}


KINDS = [arrays, pytest.param(pipeline, marks=on_tensorflow), py_dataset]


def fit(data, loss, metrics=(), **options):
    teacher = None if options.pop("stored", False) else network(seed=1)
    distiller = kd.Distiller(teacher, network(), kd.losses.SoftTargets(TEMPERATURE), student_loss_weight=LABEL_SHARE)
    distiller.compile(keras.optimizers.SGD(0.0), loss, metrics=list(metrics), run_eagerly=True)
    return distiller.fit(**data, batch_size=NUM_ITEMS, shuffle=False, verbose=0, **options).history


@pytest.mark.parametrize("sample_weight", [None, WEIGHTS], ids=["", "sample weights"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_class_weights_weigh_every_layout_of_every_kind_of_data_alike(kind, layout, sample_weight):
    labels = LAYOUTS[layout]
    targets = {"labels": labels, "soft_targets": TEACHER_LOGITS}
    loss = DENSE if labels.shape == (NUM_ITEMS, NUM_CLASSES) else SPARSE
    history = fit(kind(X, targets, sample_weight), loss, class_weight=CLASS_WEIGHT, stored=True)
    assert history["loss"][0] == pytest.approx(expected_loss(labels, CLASS_WEIGHT, sample_weight), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_items_without_a_label_weigh_one(kind):
    partly = np.where(np.arange(NUM_ITEMS) % 3 == 0, -1, LABELS)
    history = fit(
        kind(X, {"labels": partly, "soft_targets": TEACHER_LOGITS}, None),
        SPARSE,
        class_weight=CLASS_WEIGHT,
        stored=True,
    )
    assert history["loss"][0] == pytest.approx(expected_loss(partly, CLASS_WEIGHT, None), rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_beside_the_teacher_the_labels_loss_is_that_of_plain_keras(layout):
    labels = LAYOUTS[layout]
    loss = DENSE if labels.shape == (NUM_ITEMS, NUM_CLASSES) else SPARSE
    plain = network()
    plain.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
    expected = plain.fit(X, labels, batch_size=NUM_ITEMS, class_weight=CLASS_WEIGHT, verbose=0).history["loss"]
    found = fit(arrays(X, labels, None), loss, class_weight=CLASS_WEIGHT)["student_loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_every_token_is_weighed_by_its_own_class():
    inputs = RNG.normal(size=(6, 4, 5)).astype("float32")
    labels = RNG.integers(0, NUM_CLASSES, (6, 4))
    teacher_logits = RNG.normal(size=(6, 4, NUM_CLASSES)).astype("float32")
    distiller = kd.Distiller(
        None, network(length=4), kd.losses.SoftTargets(TEMPERATURE), student_loss_weight=LABEL_SHARE
    )
    distiller.compile(keras.optimizers.SGD(0.0), SPARSE, run_eagerly=True)
    y = {"labels": labels, "soft_targets": teacher_logits}
    of_items = np.linspace(0.5, 2.0, 6).astype("float32")
    found = distiller.fit(inputs, y, sample_weight=of_items, class_weight=CLASS_WEIGHT, batch_size=6, verbose=0)
    logits = network(length=4)(inputs).__array__()
    weights = np.vectorize(lambda label: CLASS_WEIGHT.get(label, 1.0))(labels) * of_items[:, None]
    values = LABEL_SHARE * hard_loss(labels, logits) + (1.0 - LABEL_SHARE) * soft_loss(teacher_logits, logits)
    assert found.history["loss"][0] == pytest.approx((weights * values).mean(), rel=1e-5)


@pytest.mark.parametrize("stored", [False, True])
def test_what_is_validated_is_not_weighed_by_class(stored):
    y = {"labels": LABELS, "soft_targets": TEACHER_LOGITS} if stored else LABELS
    options = {"validation_split": 0.5, "stored": stored}
    weighed = fit(arrays(X, y, None), SPARSE, class_weight=CLASS_WEIGHT, **options)
    plain = fit(arrays(X, y, None), SPARSE, **options)
    assert weighed["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-6)
    assert abs(weighed["loss"][0] - plain["loss"][0]) > 1e-3


def test_other_class_weights_reach_a_step_that_was_compiled_before():
    distiller = kd.Distiller(network(seed=1), network())
    distiller.compile(keras.optimizers.SGD(0.0), SPARSE)
    losses = [
        distiller.fit(X, LABELS, batch_size=NUM_ITEMS, class_weight=class_weight, verbose=0).history["student_loss"][0]
        for class_weight in (None, {0: 2.0}, {0: 4.0}, None)
    ]
    logits = network()(X).__array__()
    is_zero = hard_loss(LABELS, logits)[LABELS == 0].sum() / NUM_ITEMS
    np.testing.assert_allclose(np.diff(losses), [is_zero, 2 * is_zero, -3 * is_zero], rtol=1e-4)


def test_weighted_metrics_know_class_weights_and_plain_ones_do_not():
    distiller = kd.Distiller(network(seed=1), network())
    accuracy = keras.metrics.SparseCategoricalAccuracy
    distiller.compile(
        keras.optimizers.SGD(0.0), SPARSE, metrics=[accuracy("plain")], weighted_metrics=[accuracy("weighed")]
    )
    history = distiller.fit(X, LABELS, batch_size=NUM_ITEMS, class_weight=CLASS_WEIGHT, verbose=0).history
    right = network()(X).__array__().argmax(-1) == LABELS
    weights = np.array([CLASS_WEIGHT.get(label, 1.0) for label in LABELS])
    assert history["plain"][0] == pytest.approx(right.mean(), rel=1e-6)
    assert history["weighed"][0] == pytest.approx((weights * right).sum() / weights.sum(), rel=1e-6)


@pytest.mark.parametrize(
    ("class_weight", "error", "message"),
    [
        ({0: -1.0}, ValueError, r"class_weight\[0\] must be >= 0 and finite; got -1.0"),
        ({1: float("nan")}, ValueError, r"class_weight\[1\] must be a number; got NaN"),
        ({"cat": 1.0}, TypeError, "the keys of class_weight must be classes, whole numbers; got 'cat'"),
    ],
)
def test_class_weights_that_mean_nothing_are_refused(class_weight, error, message):
    with pytest.raises(error, match=message):
        ClassWeights.of(class_weight)


def test_class_weights_of_several_outputs_are_refused():
    inputs = keras.Input((5,))
    student = keras.Model(inputs, {name: layers.Dense(3, name=name)(inputs) for name in ("a", "b")})
    loss = {"a": kd.losses.SoftTargets(), "b": kd.losses.SoftTargets()}
    distiller = kd.Distiller(student, student, loss)
    distiller.compile("sgd", {"a": SPARSE, "b": SPARSE}, run_eagerly=True)
    with pytest.raises(ValueError, match="class_weight needs labels of one output; got 2 outputs"):
        distiller.fit(X, {"a": LABELS, "b": LABELS}, class_weight=CLASS_WEIGHT, verbose=0)


# Items without a label in metrics


@pytest.mark.parametrize("layout", ["flat", "float", "column"])
def test_metrics_count_labelled_items_alone(layout):
    is_labelled = np.arange(NUM_ITEMS) % 3 > 0
    partly = np.where(is_labelled, LABELS, -1).reshape(LAYOUTS[layout].shape).astype(LAYOUTS[layout].dtype)
    metrics = [
        "accuracy",
        keras.metrics.SparseTopKCategoricalAccuracy(2, name="top_2"),
        keras.metrics.MeanIoU(NUM_CLASSES, sparse_y_pred=False, name="iou"),
    ]
    history = fit(arrays(X, partly, None), SPARSE, metrics, validation_data=(X, partly))
    logits = network()(X).__array__()[is_labelled]
    labels, found = LABELS[is_labelled], logits.argmax(-1)
    top_2 = np.argsort(-logits)[:, :2]
    union = [((found == k) | (labels == k)).sum() for k in range(NUM_CLASSES)]
    expected = {
        "accuracy": (found == labels).mean(),
        "top_2": (top_2 == labels[:, None]).any(axis=1).mean(),
        "iou": np.mean([((found == k) & (labels == k)).sum() / union[k] for k in range(NUM_CLASSES)]),
    }
    for name, value in expected.items():
        assert history[name][0] == pytest.approx(value, rel=1e-5), name
        assert history[f"val_{name}"][0] == pytest.approx(value, rel=1e-5), name


def test_training_without_labels_is_validated_with_them():
    distiller = kd.Distiller(network(seed=1), network())
    distiller.compile(keras.optimizers.SGD(0.0), SPARSE, metrics=["accuracy"])
    history = distiller.fit(X, validation_data=(X, LABELS), batch_size=NUM_ITEMS, verbose=0, epochs=2).history
    assert "accuracy" not in history
    right = network()(X).__array__().argmax(-1) == LABELS
    assert history["val_accuracy"] == pytest.approx([right.mean()] * 2, rel=1e-6)


def test_labels_of_any_layout_are_classes():
    outputs = np.zeros((2, 3), "float32")
    assert class_ids(np.array([1.0, -1.0]), outputs).__array__().tolist() == [1, -1]
    assert class_ids(np.array([[0.1, 0.2, 0.7], [0.5, 0.4, 0.1]]), outputs).__array__().tolist() == [2, 0]
    assert are_class_ids(np.zeros((2, 1)), outputs)
    assert not are_class_ids(np.zeros((2, 3)), outputs)
    assert not are_class_ids(np.zeros(2), np.zeros((2, 1)))


# A refused fit


@pytest.mark.parametrize(
    "refused",
    [
        {"x": X, "y": np.zeros((NUM_ITEMS, 7))},
        {"x": X[:, :3], "y": LABELS},
        {"x": X, "y": {"a": LABELS, "b": LABELS}},
        {"x": X, "y": {"labels": LABELS, "soft_targets": np.zeros((NUM_ITEMS, 5), "float32")}},
    ],
    ids=["labels of another shape", "inputs of another width", "labels of two outputs", "targets of other classes"],
)
def test_a_fit_that_was_refused_leaves_the_next_one_alone(refused):
    distiller = kd.Distiller(network(seed=1), network())
    distiller.compile(keras.optimizers.SGD(0.0), SPARSE, metrics=["accuracy"])
    with pytest.raises(Exception):  # noqa: B017, PT011  # Keras's own, of whichever kind the backend raises
        distiller.fit(**refused, verbose=0)
    history = distiller.fit(X, LABELS, batch_size=NUM_ITEMS, verbose=0).history
    right = network()(X).__array__().argmax(-1) == LABELS
    assert history["accuracy"][0] == pytest.approx(right.mean(), rel=1e-6)
    student_loss = hard_loss(LABELS, network()(X).__array__()).mean()
    assert history["student_loss"][0] == pytest.approx(student_loss, rel=1e-5)
