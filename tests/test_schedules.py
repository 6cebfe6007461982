"""Schedules against hand values, inside compiled functions, and through files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import schedules
from keras_distill.losses import SoftTargets


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (schedules.Linear(1.0, 3.0, length=4), {0: 1.0, 1: 1.5, 4: 3.0, 9: 3.0}),
        (schedules.Cosine(4.0, 0.0, length=3), {0: 4.0, 1: 3.0, 2: 1.0, 3: 0.0, 8: 0.0}),
        (schedules.WarmUp(2.0, length=4), {0: 0.5, 1: 1.0, 3: 2.0, 8: 2.0}),
        (schedules.Steps([5.0, 2.0], boundaries=[3]), {0: 5.0, 2: 5.0, 3: 2.0, 8: 2.0}),
        (schedules.Steps([5.0], boundaries=[]), {0: 5.0, 8: 5.0}),
    ],
)
def test_schedules_have_their_hand_worked_values(schedule, expected):
    for epoch, value in expected.items():
        schedule.begin_epoch(epoch)
        np.testing.assert_allclose(schedule.current, value, atol=1e-6)


def test_epochs_and_steps_each_move_their_own():
    by_epoch, by_step = schedules.Linear(0, 10, length=10), schedules.Linear(0, 10, length=10, unit="steps")
    for schedule in (by_epoch, by_step):
        schedule.begin_epoch(3)
        schedule.end_step()
        schedule.end_step()
    assert float(by_epoch.current) == 3.0
    assert float(by_step.current) == 2.0


@pytest.mark.parametrize("jit_compile", [True, False])
def test_a_compiled_function_reads_the_schedule_anew(jit_compile):
    loss = SoftTargets(schedules.Linear(8.0, 2.0, length=3))
    teacher, student = np.float32([[2.0, 0.0]]), np.float32([[0.0, 1.0]])
    compiled = tf.function(loss.compute_loss, jit_compile=jit_compile)
    for epoch, temperature in ((0, 8.0), (1, 6.0), (3, 2.0)):
        loss.temperature.begin_epoch(epoch)
        expected = SoftTargets(temperature).compute_loss(teacher, student)
        np.testing.assert_allclose(compiled(teacher, student), expected, rtol=1e-5)


def test_a_variable_that_the_caller_moves_is_read_anew():
    temperature = keras.Variable(8.0, trainable=False)
    compiled = tf.function(SoftTargets(temperature).compute_loss)
    teacher, student = np.float32([[2.0, 0.0]]), np.float32([[0.0, 1.0]])
    for value in (8.0, 2.0):
        temperature.assign(value)
        np.testing.assert_allclose(
            compiled(teacher, student), SoftTargets(value).compute_loss(teacher, student), rtol=1e-5
        )


def test_learnt_temperature_climbs_the_loss_by_the_strength_of_the_reversal():
    """θ's gradient is −λ times the plain one; λ = 0 leaves it where it is."""
    teacher, student = np.float32([[2.0, 0.0, -1.0]]), np.float32([[0.0, 1.0, 0.0]])
    theta = tf.Variable(1.0)
    with tf.GradientTape() as tape:
        temperature = 1.0 + 20.0 * tf.sigmoid(theta)
        plain = tf.reduce_mean(_soft(teacher, student, temperature))
    expected = tape.gradient(plain, theta).numpy()
    for strength in (0.0, 0.3, 1.0):
        learnt = schedules.LearntTemperature(reversal=strength)
        with tf.GradientTape() as tape:
            loss = SoftTargets(learnt).compute_loss(teacher, student)
        np.testing.assert_allclose(loss, plain, rtol=1e-6)
        np.testing.assert_allclose(tape.gradient(loss, learnt.theta.value), -strength * expected, rtol=1e-5)


def _soft(teacher, student, temperature):
    p, q = tf.nn.log_softmax(teacher / temperature), tf.nn.log_softmax(student / temperature)
    return temperature**2 * tf.reduce_sum(tf.exp(p) * (p - q), axis=-1)


def test_reversal_grows_with_the_epoch():
    learnt = schedules.LearntTemperature()
    (reversal,) = schedules.schedules_in([learnt])
    for epoch, strength in ((0, 0.0), (5, 0.5), (10, 1.0), (20, 1.0)):
        reversal.begin_epoch(epoch)
        np.testing.assert_allclose(learnt.reversal.current, strength, atol=1e-6)


@pytest.mark.parametrize(
    "value",
    [
        schedules.Linear(8.0, 2.0, 5, unit="steps"),
        schedules.Cosine(8.0, 2.0, 5),
        schedules.WarmUp(3.0, 5),
        schedules.Steps([4.0, 2.0], [3]),
        schedules.LearntTemperature(2.0, 9.0, schedules.Linear(0, 1, 4)),
    ],
)
def test_losses_with_schedules_survive_a_round_trip(value):
    loss = SoftTargets(value)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert restored.get_config() == loss.get_config()
    for part, again in zip(schedules.schedules_in(loss.layers), schedules.schedules_in(restored.layers), strict=True):
        part.position.assign(2.0)
        again.position.assign(2.0)
    np.testing.assert_allclose(restored.temperature.current, loss.temperature.current)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: schedules.Linear(1, 2, 0), "length must be > 0"),
        (lambda: schedules.Linear(1, 2, 3, unit="hours"), "unit must be one of 'epochs', 'steps'"),
        (lambda: schedules.Steps([1, 2], [3, 4]), "there must be 3 values, one more than there are boundaries; got 2"),
        (lambda: schedules.Steps([1, 2, 3], [4, 4]), "boundaries must rise"),
        (lambda: schedules.LearntTemperature(4.0, 4.0), "maximum must be > minimum = 4.0"),
        (lambda: schedules.LearntTemperature(reversal=2.0), "reversal must be between 0 and 1"),
    ],
)
def test_bad_schedules_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_follower_moves_schedules_in_any_keras_fit():
    temperature = schedules.Linear(8.0, 2.0, length=3)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile("sgd", loss=SoftTargets(temperature), jit_compile=False)
    data = np.ones((4, 2), "float32"), np.float32([[1.0, 0.0, 0.0]] * 4)
    model.fit(*data, epochs=3, verbose=0, callbacks=[schedules.FollowSchedules([temperature])])
    assert float(temperature.current) == 4.0
