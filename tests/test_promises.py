"""Of some models nothing is known but what the caller says: a promise that is kept is used, one that is not is refused.

Whoever gives what was promised: a teacher beside the student, a callable, stored soft targets, the student, peers,
what is labelled and what is exported. The right losses are SciPy's, from the models' own probabilities.
"""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from keras import layers, ops

import keras_distill as kd
from keras_distill import losses
from keras_distill.models import logits_model
from keras_distill.targets import label

X = np.random.default_rng(0).normal(size=(48, 6)).astype("float32")
NUM_CLASSES = 4


class Net(keras.Model):
    """A model whose graph nobody can read."""

    def __init__(self, activation=None, seed=0, **options):
        super().__init__(**options)
        kernel = keras.initializers.RandomNormal(0.0, 1.5, seed=seed)
        self.head = layers.Dense(NUM_CLASSES, activation, kernel_initializer=kernel)

    def build(self, input_shape):
        self.head.build(input_shape)

    def call(self, x):
        return self.head(x)


class OwnSoftmax(layers.Layer):
    """A last layer of the user's own, at the end of a graph that can be read."""

    def call(self, x):
        return ops.exp(x) / ops.sum(ops.exp(x), axis=-1, keepdims=True)


def net(activation=None, seed=0):
    model = Net(activation, seed)
    model(X[:1])
    return model


def own_ending(seed=0):
    kernel = keras.initializers.RandomNormal(0.0, 1.5, seed=seed)
    dense = layers.Dense(NUM_CLASSES, kernel_initializer=kernel)
    return keras.Sequential([keras.Input((6,)), dense, OwnSoftmax()])


def plain(seed=1):
    kernel = keras.initializers.RandomNormal(0.0, 1.0, seed=seed)
    return keras.Sequential([keras.Input((6,)), layers.Dense(NUM_CLASSES, kernel_initializer=kernel)])


def first_loss(distiller, y=None):
    distiller.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    return distiller.fit(X, y, batch_size=48, verbose=0).history["distillation_loss"][0]


def divergence(teacher_probabilities, student_probabilities):
    p, q = (np.asarray(values, "float64") for values in (teacher_probabilities, student_probabilities))
    return np.mean(scipy.stats.entropy(p, q, axis=-1))


def probabilities(logits):
    return scipy.special.softmax(np.asarray(logits, "float64"), axis=-1)


# Beside the student


@pytest.mark.parametrize("ending", [lambda: net("softmax"), own_ending])
def test_teacher_and_student_promise_each_for_itself(ending):
    teacher, student = ending(), net(seed=1)
    distiller = kd.Distiller(
        teacher, student, losses.SoftTargets(1.0), student_loss_weight=0.0, teacher_from_logits=False
    )
    np.testing.assert_allclose(first_loss(distiller), divergence(teacher(X), probabilities(student(X))), rtol=1e-4)
    other = kd.Distiller(
        student, teacher, losses.SoftTargets(1.0), student_loss_weight=0.0, from_logits=False, teacher_from_logits=True
    )
    np.testing.assert_allclose(first_loss(other), divergence(probabilities(student(X)), teacher(X)), rtol=1e-4)
    loaded = kd.Distiller.from_config(distiller.get_config(), custom_objects={"Net": Net})
    assert (loaded.teacher_from_logits, loaded.student_from_logits) == (False, None)


@pytest.mark.parametrize("who", ["teacher", "student"])
@pytest.mark.parametrize("ending", [lambda: net("softmax"), own_ending])
def test_probabilities_where_logits_are_promised_end_at_the_first_batch(ending, who):
    models = {"teacher": plain(), "student": plain(2)} | {who: ending()}
    before = models["student"].get_weights()
    distiller = kd.Distiller(**models)
    with pytest.raises(ValueError, match=rf"the {who}'s outputs must be logits; got probabilities.*{who}_from_logits"):
        first_loss(distiller)
    assert all(np.array_equal(a, b) for a, b in zip(before, models["student"].get_weights(), strict=True))


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_logits_where_probabilities_are_promised_end_at_the_first_batch(who):
    models = {"teacher": plain(), "student": plain(2)} | {who: net()}
    distiller = kd.Distiller(**models, from_logits=False)
    expected = rf"the {who}'s outputs must be probabilities.*got values that are none.*{who}_from_logits=True"
    with pytest.raises(ValueError, match=expected):
        first_loss(distiller)


def test_a_callable_is_looked_at_too():
    def squashed(x):
        return ops.softmax(x[:, :NUM_CLASSES])

    with pytest.raises(ValueError, match="the teacher's outputs must be logits; got probabilities"):
        first_loss(kd.Distiller(squashed, plain()))
    student = plain()
    distiller = kd.Distiller(
        squashed, student, losses.SoftTargets(1.0), student_loss_weight=0.0, teacher_from_logits=False
    )
    expected = divergence(probabilities(X[:, :NUM_CLASSES]), probabilities(student(X)))
    np.testing.assert_allclose(first_loss(distiller), expected, rtol=1e-4)


@pytest.mark.parametrize("from_logits", [True, False])
def test_soft_targets_of_a_batch_are_logits_whatever_is_promised(from_logits):
    student, logits = plain(), np.log(np.random.default_rng(1).dirichlet(np.ones(NUM_CLASSES), 48)).astype("float32")
    distiller = kd.Distiller(None, student, losses.SoftTargets(1.0), student_loss_weight=0.0, from_logits=from_logits)
    given = first_loss(distiller, {"soft_targets": logits})
    np.testing.assert_allclose(given, divergence(np.exp(logits), probabilities(student(X))), rtol=1e-4)
    with pytest.raises(ValueError, match=r"the soft targets must be logits; got probabilities.*logarithm"):
        first_loss(distiller, {"soft_targets": np.exp(logits)})


def test_probabilities_of_members_are_seen():
    class Members:
        def soft_targets(self, inputs):
            members = ops.stack([ops.softmax(inputs[:, :4]), ops.softmax(inputs[:, 1:5])], axis=-2)
            return {"member_logits": members, "member_weights": 0.5 * ops.ones_like(members[..., 0])}

        def __call__(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="the teacher's outputs must be logits; got probabilities"):
        first_loss(kd.Distiller(Members(), plain()))


def test_sigmoids_are_told_from_logits():
    teacher, student = net("sigmoid"), plain()
    loss = losses.BinarySoftTargets(1.0)
    with pytest.raises(ValueError, match=r"must be logits; got probabilities: all values in \[0, 1\]"):
        first_loss(kd.Distiller(teacher, student, loss))
    p, z = np.asarray(teacher(X), "float64"), np.asarray(student(X), "float64")
    cross = p * np.log(p / scipy.special.expit(z)) + (1 - p) * np.log((1 - p) / scipy.special.expit(-z))
    distiller = kd.Distiller(teacher, student, loss, student_loss_weight=0.0, teacher_from_logits=False)
    np.testing.assert_allclose(first_loss(distiller), np.mean(cross), rtol=1e-4)
    with pytest.raises(ValueError, match=r"must be probabilities.*got values that are none"):
        first_loss(kd.Distiller(net(), student, loss, teacher_from_logits=False))


def test_each_output_is_looked_at():
    inputs = keras.Input((6,))
    dense = [layers.Dense(NUM_CLASSES, name=name) for name in ("first", "second")]
    plainly = keras.Model(inputs, {name: layer(inputs) for name, layer in zip("ab", dense, strict=True)})
    squashed = keras.Model(inputs, {"a": dense[0](inputs), "b": OwnSoftmax()(dense[1](inputs))})
    given = {"a": losses.SoftTargets(), "b": losses.SoftTargets()}
    assert np.isfinite(first_loss(kd.Distiller(plainly, plainly, given)))
    with pytest.raises(ValueError, match="the teacher's outputs must be logits; got probabilities"):
        first_loss(kd.Distiller(squashed, plainly, given))


def test_a_misplaced_softmax_is_refused_before_the_first_batch():
    model = keras.Sequential([keras.Input((3, 4)), layers.Softmax(axis=1)])
    with pytest.raises(ValueError, match=r"teacher under SoftTargets must be softmax over the last axis.*Permute"):
        kd.Distiller(model, keras.Sequential([keras.Input((3, 4)), layers.Dense(4)]))


def test_numbers_of_a_regression_are_not_those_before_a_sigmoid():
    bounded = keras.Sequential([keras.Input((6,)), layers.Dense(2, "sigmoid")])
    free = keras.Sequential([keras.Input((6,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="teacher under RegressionTargets must be linear; got sigmoid"):
        kd.Distiller(bounded, free, losses.RegressionTargets())


# Peers


def test_peers_promise_each_for_itself():
    students = [net("softmax"), plain()]
    learners = kd.DeepMutualLearning(students)
    learners.compile("sgd", jit_compile=False)
    y = np.arange(48) % NUM_CLASSES
    with pytest.raises(ValueError, match=r"outputs of students\[0\] must be logits; got probabilities"):
        learners.fit(X, y, batch_size=48, verbose=0)
    learners = kd.DeepMutualLearning(students, from_logits=[False, True])
    learners.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    p, q = np.asarray(students[0](X), "float64"), probabilities(students[1](X))
    history = learners.fit(X, y, batch_size=48, verbose=0).history
    np.testing.assert_allclose(history["mutual_loss"], [divergence(p, q) + divergence(q, p)], rtol=1e-4)
    assert "promises" not in history
    loaded = kd.DeepMutualLearning.from_config(learners.get_config(), custom_objects={"Net": Net})
    assert loaded.from_logits == [False, True]
    with pytest.raises(ValueError, match="from_logits must be one bool, or 2; got 3"):
        kd.DeepMutualLearning(students, from_logits=[True, True, False])


# Labelling


@pytest.mark.parametrize("ending", [lambda: net("softmax"), own_ending])
@pytest.mark.parametrize("top_k", [None, 2])
def test_labelling_refuses_probabilities_and_takes_them_where_promised(ending, top_k, tmp_path):
    teacher = ending()
    with pytest.raises(ValueError, match=r"must be logits; got probabilities.*from_logits=False"):
        label(teacher, X, tmp_path / "refused", top_k=top_k)
    assert not (tmp_path / "refused").exists()
    store = label(teacher, X, tmp_path / "store", top_k=top_k, dtype="float32", from_logits=False)
    if top_k is None:
        np.testing.assert_allclose(np.exp(store.read(np.arange(48))), teacher(X), rtol=1e-4)
    with pytest.raises(ValueError, match="must be probabilities"):
        label(net(), X, tmp_path / "other", top_k=top_k, from_logits=False)


def test_a_labelling_callable_is_looked_at(tmp_path):
    def squashed(x):
        return np.float32(probabilities(x[:, :NUM_CLASSES]))

    options = {"teacher_fingerprint": "own", "dtype": "float32"}
    with pytest.raises(ValueError, match="the teacher's outputs must be logits; got probabilities"):
        label(squashed, X, tmp_path / "refused", **options)
    store = label(squashed, X, tmp_path / "store", from_logits=False, **options)
    np.testing.assert_allclose(np.exp(store.read(np.arange(48))), squashed(X), rtol=1e-4)


def test_sigmoids_are_labelled_with_their_logits(tmp_path):
    teacher = net("sigmoid")
    store = label(teacher, X, tmp_path / "store", dtype="float32", from_logits=False)
    np.testing.assert_allclose(scipy.special.expit(store.read(np.arange(48))), teacher(X), rtol=1e-4)


def test_a_softmax_of_a_softmax_is_labelled_with_what_it_squashes(tmp_path):
    dense = layers.Dense(NUM_CLASSES, "softmax")
    store = label(keras.Sequential([keras.Input((6,)), dense, layers.Softmax()]), X, tmp_path / "store")
    np.testing.assert_allclose(store.read(np.arange(48)), dense(X), atol=1e-3)


# Export


@pytest.mark.tensorflow
def test_export_refuses_probabilities_before_it_converts(tmp_path):
    from keras_distill.deploy import to_litert, to_onnx, verify

    for model in (net("softmax"), own_ending()):
        for write, name in ((to_onnx, "m.onnx"), (to_litert, "m.tflite")):
            with pytest.raises(ValueError, match=r"must be logits; got probabilities.*from_logits=False"):
                write(model, tmp_path / name)
            assert not (tmp_path / name).exists()
    with pytest.raises(ValueError, match="must be probabilities"):
        to_onnx(net(), tmp_path / "m.onnx", from_logits=False)
    path = to_onnx(net("softmax"), tmp_path / "m.onnx", from_logits=False)
    assert verify(net("softmax"), path, X, from_logits=False).holds
    with pytest.raises(ValueError, match="must be logits; got probabilities"):
        verify(net("softmax"), path, X)


def test_a_model_that_takes_no_random_numbers_is_believed():
    class Picky(layers.Layer):
        """Wants numbers of real data: these stand for paths, words, or prices."""

        def call(self, x):
            if not isinstance(x, keras.KerasTensor) and float(ops.max(x)) < 100.0:
                raise ValueError("no such price")
            return 1.0 * x

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    inputs = keras.Input((3,))
    model = keras.Model(inputs, Picky()(inputs))
    assert logits_model(model) is model
    with pytest.raises(ValueError, match="no such price"):
        logits_model(model, example=np.ones((2, 3), "float32"))
