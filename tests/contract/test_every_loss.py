"""What holds for every loss of ours, whatever it computes."""

import keras
import numpy as np
import pytest
from backend import dtype_of, for_any_batch_size, gradient, value_and_gradient
from keras import layers, ops

import keras_distill as kd
from keras_distill import losses, schedules

BATCH, CLASSES = 6, 4
OVER_LOGITS = {
    "soft targets": lambda: losses.SoftTargets(3.0),
    "soft targets, scheduled": lambda: losses.SoftTargets(schedules.Linear(6.0, 2.0, 4)),
    "soft targets, learnt": lambda: losses.SoftTargets(schedules.LearntTemperature(reversal=0.5)),
    "decoupled": lambda: losses.DecoupledKD(3.0, 1.0, 4.0),
    "decoupled, warming up": lambda: losses.DecoupledKD(3.0, warm_up_epochs=4),
    "DIST": lambda: losses.DIST(2.0, 1.0, 0.5),
    "standardised": lambda: losses.LogitStandardization(losses.SoftTargets(2.0)),
    "logit matching": lambda: losses.LogitMatching(),
    "transformed teacher": lambda: losses.TransformedTeacherMatching(2.0),
    "transformed teacher, weighted": lambda: losses.TransformedTeacherMatching(2.0, weighted=True),
    "alpha-beta": lambda: losses.AlphaBetaDivergence(2.0, 0.6, 0.3),
    "refined": lambda: losses.RefinedLogits(2.0, 1.0, 2.0),
    "multi-level": lambda: losses.MultiLevelLogits(2.0),
    "binary": lambda: losses.BinarySoftTargets(2.0),
    "regression": lambda: losses.RegressionTargets(delta=1.0),
    "bounded regression": lambda: losses.RegressionTargets(margin=0.5),
}
OVER_FEATURES = {
    "hint": lambda: losses.Hint("map", "map"),
    "hint with projector": lambda: losses.Hint("map", "map", projector=losses.Projector(3)),
    # A layer that casts nothing, so that its slope is looked at in float64.
    "cosine distance": lambda: losses.CosineDistance("map", projector=layers.Identity(autocast=False)),
    "attention relation": lambda: losses.SelfAttentionRelation("map", num_relation_heads=2),
    "attention": lambda: losses.AttentionTransfer("map"),
    "relations": lambda: losses.RelationalKD("map", distance_weight=1.0, angle_weight=2.0),
    "similarities": lambda: losses.SimilarityPreserving("map"),
}
EVERY = {**OVER_LOGITS, **OVER_FEATURES}
pytestmark = [
    pytest.mark.parametrize("name", EVERY),
    # A loss over features alone leaves the head as it is, and Keras says so.
    pytest.mark.filterwarnings("ignore:Gradients do not exist"),
]


def outputs_of(name, batch=BATCH, dtype="float32"):
    shape = (batch, 4, 4, 3) if name in OVER_FEATURES else (batch, CLASSES)
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape).astype(dtype) for _ in range(2)]


def built(name, seed=0):
    keras.utils.set_random_seed(seed)
    loss = EVERY[name]()
    loss.build(*outputs_of(name))
    return loss


def net(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4, 4, 2))
    hidden = layers.Conv2D(3, 3, padding="same", activation="tanh", name="map")(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(hidden)))


def items(count=12):
    generator = np.random.default_rng(3)
    return generator.normal(size=(count, 4, 4, 2)).astype("float32"), generator.integers(0, CLASSES, count)


def expected_over_items(name, loss, teacher, student, x, y):
    """The loss of a batch worked out from the two models' own outputs."""
    if name in OVER_FEATURES:
        pair = teacher.get_layer("map")(x), student.get_layer("map")(x)
    else:
        pair = teacher(x), student(x)
    return float(loss.compute_loss(*pair, labels=labels_for(name, y)))


def labels_for(name, y):
    return np.eye(CLASSES, dtype="float32")[y] if "regression" in name else y


def test_every_class_is_here(name):
    here = {type(make()) for make in EVERY.values()}
    assert type(EVERY[name]()) in here
    public = [getattr(losses, exported) for exported in losses.__all__]
    classes = {item for item in public if isinstance(item, type) and issubclass(item, losses.PerExampleLoss)}
    assert classes - {losses.PerExampleLoss} == here


def test_one_value_an_example(name):
    values = built(name).per_example(*outputs_of(name))
    assert values.shape[0] == BATCH
    assert dtype_of(values) == "float32"
    assert np.all(np.asarray(values) >= 0)


def test_a_student_that_is_its_teacher_loses_nothing(name):
    if name == "hint with projector":
        pytest.skip("a projector of random weights lies between the two")
    teacher, _ = outputs_of(name)
    # Whose own softmax is to be the teacher's at a temperature of 2.
    student = teacher / 2.0 if "transformed" in name else teacher
    np.testing.assert_allclose(built(name).per_example(teacher, student), 0.0, atol=1e-5)


def test_reloaded_it_is_the_same(name):
    loss = built(name)
    loaded = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(loaded) is type(loss)
    assert loaded.get_config() == loss.get_config()
    for layer, again in zip(loss.layers, loaded.layers, strict=True):
        again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(loaded.per_example(*outputs_of(name)), loss.per_example(*outputs_of(name)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_outputs_are_compared_in_float32(name, dtype):
    loss = built(name)
    halves = [ops.cast(values, dtype) for values in outputs_of(name)]
    values = loss.per_example(*halves)
    assert dtype_of(values) == "float32"
    expected = loss.per_example(*[ops.cast(half, "float32") for half in halves])
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)


def test_gradient_is_the_slope_along_a_direction(name):
    loss = built(name)
    # A projector is a float32 layer, and so are schedules' variables: there a wide step stands above the rounding.
    in_float32 = ("hint", "projector", "learnt", "scheduled", "warming")
    dtype = "float32" if any(word in name for word in in_float32) else "float64"
    teacher, student = outputs_of(name, dtype=dtype)
    direction = np.random.default_rng(5).normal(size=student.shape).astype(dtype)
    slope = float(np.sum(gradient(lambda student: loss.compute_loss(teacher, student), student) * direction))
    step = 1e-5 if dtype == "float64" else 3e-2
    up, down = (float(loss.compute_loss(teacher, student + sign * step * direction)) for sign in (1, -1))
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-4 if dtype == "float64" else 2e-2)
    assert slope != 0.0


def test_a_single_item_is_finite(name):
    loss = built(name)
    teacher, student = outputs_of(name, batch=1)
    value, slope = value_and_gradient(lambda student: loss.compute_loss(teacher, student))(
        ops.convert_to_tensor(student)
    )
    assert np.isfinite(value)
    assert slope is None or np.isfinite(slope).all()


@pytest.mark.parametrize("jit_compile", [True, False])
def test_compiled_for_any_batch_size_it_is_the_same(name, jit_compile):
    if jit_compile and name.endswith(("scheduled", "learnt", "warming up", "projector")):
        pytest.skip("XLA compiles the loss of this class once; tests/test_schedules.py has the schedules")
    loss = built(name)

    def value_and_slope(teacher, student):
        return value_and_gradient(lambda student: loss.compute_loss(teacher, student))(student)

    compiled = for_any_batch_size(value_and_slope, outputs_of(name), jit_compile)
    for batch in (BATCH, 3):
        pair = [ops.convert_to_tensor(values) for values in outputs_of(name, batch=batch)]
        value, slope = compiled(*pair)
        np.testing.assert_allclose(value, loss.compute_loss(*pair), rtol=1e-4, atol=1e-6)
        assert np.isfinite(slope).all()


def test_our_distiller_reports_it_and_trains_by_it(name):
    x, y = items()
    loss, teacher, student = built(name), net(1), net(2)
    expected = expected_over_items(name, loss, teacher, student, x, y)
    distiller = kd.Distiller(teacher, student, loss, student_loss_weight=0.0)
    before = student.get_weights()
    distiller.compile(keras.optimizers.SGD(0.1), jit_compile=False, run_eagerly=True)
    data = {"labels": labels_for(name, y), "soft_targets": np.asarray(teacher(x))}
    targets = labels_for(name, y) if name in OVER_FEATURES else data
    history = distiller.fit(x, targets, batch_size=12, epochs=1, verbose=0).history
    np.testing.assert_allclose(history["distillation_loss"], [expected], rtol=1e-4)
    assert any(np.abs(a - b).max() > 1e-9 for a, b in zip(before, student.get_weights(), strict=True))


def test_in_our_distiller_items_of_weight_zero_are_as_if_absent(name):
    x, y = items()
    weights = np.float32([1] * 7 + [0] * 5)
    labels = labels_for(name, y)
    reported = []
    for part, weight in ((slice(0, 12), weights), (slice(0, 7), None)):
        loss, teacher, student = built(name), net(1), net(2)
        distiller = kd.Distiller(teacher, student, loss, student_loss_weight=0.0)
        distiller.compile(keras.optimizers.SGD(0.0), jit_compile=False, run_eagerly=True)
        history = distiller.fit(x[part], labels[part], sample_weight=weight, batch_size=12, epochs=1, verbose=0).history
        reported.append(history["distillation_loss"][0])
    np.testing.assert_allclose(reported[0], reported[1] * 7 / 12, rtol=1e-4)


# Keras's own calls its extractor of features, a model of a list of one, with the one alone.
@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match")
def test_keras_own_distiller_takes_it(name):
    if name == "hint with projector":
        pytest.skip("keras.distillation.Distiller cannot train a projector")
    x, y = items()
    loss, teacher, student = built(name), net(1), net(2)
    # It hands no labels on: losses that read them take the teacher's likeliest class, or do without.
    pair = (
        (teacher.get_layer("map")(x), student.get_layer("map")(x))
        if name in OVER_FEATURES
        else (teacher(x), student(x))
    )
    expected = float(loss.compute_loss(*pair))
    other = keras.distillation.Distiller(teacher, student, loss, student_loss_weight=0.0)
    other.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    other.run_eagerly = True
    history = other.fit(x, y, batch_size=12, epochs=1, verbose=0).history
    np.testing.assert_allclose(history["distillation_loss"], [expected], rtol=1e-4)
