"""Deep mutual learning against the paper's equations worked out in NumPy."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill import schedules

ON_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(width, seed, head=None):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((4,)), layers.Dense(width, "tanh"), layers.Dense(3, activation=head)])


def items(count=24):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(count, 4)).astype("float32")
    return x, np.argmax(x[:, :3] + 0.3 * generator.normal(size=(count, 3)), -1)


def divergence(teacher, student, temperature=1.0):
    p, q = (scipy.special.softmax(np.asarray(z, "float64") / temperature, -1) for z in (teacher, student))
    return temperature**2 * scipy.stats.entropy(p, q, axis=-1)


def test_each_student_learns_from_the_mean_of_its_peers():
    x, y = items()
    students = [net(8, 1), net(5, 2), net(3, 3)]
    weight = np.linspace(0, 2, 24).astype("float32")
    logits = [np.asarray(student(x)) for student in students]
    hard = sum(float(ON_LOGITS(y, z, weight)) for z in logits)
    mutual = sum(
        np.mean(weight * divergence(logits[other], logits[k], 2.0)) / 2
        for k in range(3)
        for other in range(3)
        if other != k
    )
    learners = kd.DeepMutualLearning(students, temperature=2.0, mutual_weight=0.7)
    learners.compile(keras.optimizers.SGD(0.0), ON_LOGITS, run_eagerly=True)
    history = learners.fit(x, y, sample_weight=weight, batch_size=24, verbose=0).history
    np.testing.assert_allclose(history["student_loss"], [hard], rtol=1e-5)
    np.testing.assert_allclose(history["mutual_loss"], [mutual], rtol=1e-4)
    np.testing.assert_allclose(history["loss"], [hard + 0.7 * mutual], rtol=1e-4)


def test_update_of_one_takes_its_peer_as_given():
    """A linear student's gradient is x ⊗ ((q − y) + (q − p)) / N, with no part through the peer's p."""
    x, y = items()
    students = [keras.Sequential([keras.Input((4,)), layers.Dense(3)]) for _ in range(2)]
    q, p = (scipy.special.softmax(np.asarray(student(x), "float64"), -1) for student in students)
    gradient = x.T.astype("float64") @ ((q - np.eye(3)[y]) + (q - p)) / 24
    expected = students[0].layers[0].kernel.numpy() - 0.5 * gradient
    learners = kd.DeepMutualLearning(students)
    learners.compile(keras.optimizers.SGD(0.5), ON_LOGITS, jit_compile=False)
    learners.fit(x, y, batch_size=24, verbose=0)
    np.testing.assert_allclose(students[0].layers[0].kernel.numpy(), expected, atol=1e-6)


def test_students_stay_plain_and_each_learns(tmp_path):
    x, y = items(240)
    students = [net(8, 1, "softmax"), net(5, 2, "softmax")]
    learners = kd.DeepMutualLearning(students, temperature=schedules.Linear(2.0, 1.0, 3))
    learners.compile(keras.optimizers.Adam(0.03), "sparse_categorical_crossentropy", metrics=["accuracy"])
    learners.fit(x, y, epochs=12, verbose=0)
    assert float(learners.mutual_loss.temperature.current) == 1.0
    for student in students:
        assert np.mean(np.asarray(student(x)).argmax(-1) == y) > 0.7
        assert type(student) is keras.Sequential
    results = learners.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(results["accuracy"], np.mean(np.asarray(students[0](x)).argmax(-1) == y), rtol=1e-6)
    assert "mutual_loss" not in results
    learners.save(tmp_path / "learners.keras")
    loaded = kd.load_model(tmp_path / "learners.keras")
    for ours, theirs in zip(loaded.students, students, strict=True):
        np.testing.assert_array_equal(ours(x), theirs(x))
    loaded.fit(x, y, epochs=1, verbose=0)


def test_masked_tokens_count_in_no_term():
    tokens = np.array([[3, 1, 0, 0], [2, 0, 0, 0]])
    students = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((4,), dtype="int32")
        hidden = layers.Embedding(5, 6, mask_zero=True, embeddings_initializer="random_normal")(inputs)
        students.append(keras.Model(inputs, layers.Dense(3)(layers.Rescaling(40.0)(hidden))))
    logits = [np.asarray(student(tokens))[tokens > 0] for student in students]
    expected = np.mean(divergence(*logits)) + np.mean(divergence(*logits[::-1]))
    learners = kd.DeepMutualLearning(students)
    learners.compile(keras.optimizers.SGD(0.0), ON_LOGITS, run_eagerly=True)
    history = learners.fit(tokens, np.zeros_like(tokens), verbose=0).history
    np.testing.assert_allclose(history["mutual_loss"], [expected], rtol=1e-4)


def test_without_labels_peers_still_learn_from_each_other():
    x, _ = items()
    students = [net(8, 1), net(5, 2)]
    logits = [np.asarray(student(x)) for student in students]
    learners = kd.DeepMutualLearning(students)
    learners.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    history = learners.fit(x, batch_size=24, verbose=0).history
    expected = np.mean(divergence(*logits)) + np.mean(divergence(*logits[::-1]))
    np.testing.assert_allclose(history["loss"], [expected], rtol=1e-4)
    assert learners.evaluate(x, verbose=0, return_dict=True)["loss"] == 0.0


def test_bad_students_are_refused():
    with pytest.raises(ValueError, match="students must be at least two models; got 1"):
        kd.DeepMutualLearning([net(3, 1)])
    with pytest.raises(ValueError, match="have 3 classes, as the teacher's do; got 2 classes"):
        kd.DeepMutualLearning([net(3, 1), keras.Sequential([keras.Input((4,)), layers.Dense(2)])])
    with pytest.raises(ValueError, match="mutual_weight must be >= 0 and finite"):
        kd.DeepMutualLearning([net(3, 1), net(3, 2)], mutual_weight=-1.0)
    assert tf.executing_eagerly()
