"""A student's past as its teacher, against the average worked out step by step."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.losses import Hint, SoftTargets
from keras_distill.teachers import MovingAverage


def net(head=None):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, name="hidden"),
            layers.BatchNormalization(momentum=0.5),
            layers.Dense(3, activation=head),
        ]
    )


class Weights(keras.callbacks.Callback):
    """Remembers the student's weights after each step."""

    def __init__(self, student):
        super().__init__()
        self.student, self.seen = student, [student.get_weights()]

    def on_train_batch_end(self, batch, logs=None):
        if keras.config.backend() == "jax":
            # Between the steps of an epoch the values are in the hands of the compiled step.
            self.model.jax_state_sync()
        self.seen.append(self.student.get_weights())


@pytest.mark.parametrize("jit_compile", [True, False])
def test_average_follows_each_step_inside_the_compiled_step(jit_compile):
    x = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    student = net()
    teacher = MovingAverage(student, decay=0.6)
    weights = Weights(student)
    distiller = kd.Distiller(teacher, student, SoftTargets(2.0), student_loss_weight=0.5)
    distiller.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=jit_compile)
    distiller.fit(x, np.eye(3)[np.arange(24) % 3], batch_size=4, epochs=1, verbose=0, callbacks=[weights])
    average = weights.seen[0]
    # The step that runs the teacher begins with the weights that the step before it left.
    for seen in weights.seen[:-1]:
        average = [0.6 * mean + 0.4 * now for mean, now in zip(average, seen, strict=True)]
    for ours, expected in zip(teacher.get_weights(), average, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert np.abs(average[0] - weights.seen[0][0]).max() > 1e-3


def test_evaluation_does_not_move_it():
    x, y = np.ones((8, 4), "float32"), np.eye(3)[np.zeros(8, int)]
    student = net()
    teacher = MovingAverage(student, decay=0.5)
    distiller = kd.Distiller(teacher, student, evaluate_distillation=True)
    distiller.compile("sgd", "mse", jit_compile=False)
    student.layers[0].kernel.assign(np.zeros((4, 5)))
    before = teacher.get_weights()
    distiller.evaluate(x, y, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, teacher.get_weights(), strict=True))


def test_it_has_the_students_head_and_layers():
    student = net("softmax")
    teacher = MovingAverage(student)
    x = np.ones((2, 4), "float32")
    np.testing.assert_allclose(teacher(x), student(x), rtol=1e-6)
    distiller = kd.Distiller(teacher, student, [SoftTargets(2.0), Hint("hidden")])
    distiller.compile("sgd", "mse", run_eagerly=True)
    history = distiller.fit(x, np.eye(3)[[0, 1]], epochs=1, verbose=0).history
    # It begins as a copy, but without the batch's own statistics.
    assert np.isfinite(history["distillation_loss"]).all()
    assert not set(map(id, teacher.variables)) & set(map(id, distiller.variables))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="decay must be between 0 and 1"):
        MovingAverage(net(), decay=1.5)
    with pytest.raises(ValueError, match="a Functional or Sequential model"):
        MovingAverage(keras.Sequential([layers.Dense(3)]))
