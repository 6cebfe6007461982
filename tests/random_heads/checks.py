"""What holds of every random model: the logits' activation is the model, and a student trains as Keras trains it.

What each model is, `random_models.py` knows from having drawn it; softmax and sigmoid are SciPy's here.
"""

import keras
import numpy as np
import scipy.special

import keras_distill as kd
from keras_distill import losses
from keras_distill.models import forward_pass
from keras_distill.models.heads import MISPLACED as SAID_OF_MISPLACED
from tests.random_models import LINEAR, MISPLACED, SIGMOID, SOFTMAX, UNKNOWN, draw

ACTIVATIONS = {
    SOFTMAX: lambda logits: scipy.special.softmax(logits, axis=-1),
    SIGMOID: scipy.special.expit,
    LINEAR: lambda logits: logits,
    MISPLACED: lambda logits: logits,
    UNKNOWN: lambda logits: logits,
}
# By what an output is: Keras's loss of the labels, and ours of the teacher.
LOSSES = {
    SOFTMAX: ("categorical_crossentropy", losses.SoftTargets),
    SIGMOID: ("binary_crossentropy", losses.BinarySoftTargets),
}
ANY = ("mse", losses.RegressionTargets)


def check_logits(drawn):
    """activation(logits) is the model's output, and so is the pass's own output; what ends the model is known."""
    expected = keras.tree.flatten(drawn.model(drawn.inputs))
    run = forward_pass(drawn.model)
    found = run.activations
    found = list(found.values()) if isinstance(found, dict) else found if isinstance(found, list) else [found]
    assert [MISPLACED if name == SAID_OF_MISPLACED else name for name in found] == list(drawn.truths)
    given = run(drawn.inputs, False)
    for truth, logits, output, wanted in zip(
        drawn.truths, keras.tree.flatten(given.logits), keras.tree.flatten(given.output), expected, strict=True
    ):
        np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ACTIVATIONS[truth](np.asarray(logits, "float64")), wanted, rtol=1e-5, atol=1e-6)


def step(trained, student, x, y):
    """(loss, gradients, all the student's variables after it) of one step from a fixed seed, without an update."""
    import tensorflow as tf

    keras.utils.set_random_seed(1)
    before = [variable.numpy() for variable in student.variables]
    with tf.GradientTape() as tape:
        loss = trained.compute_loss(x, y, trained(x, training=True), training=True)
    gradients = [
        None if gradient is None else tf.convert_to_tensor(gradient).numpy()
        for gradient in tape.gradient(loss, student.trainable_variables)
    ]
    after = [variable.numpy() for variable in student.variables]
    for variable, value in zip(student.variables, before, strict=True):
        variable.assign(value)
    return float(loss), gradients, after


def check_gradients(drawn, seed):
    """With the labels' loss alone a `Distiller` has the loss, gradients and moving statistics that Keras has."""
    model, generator = drawn.model, np.random.default_rng(seed)
    labels = []
    outputs = model(drawn.inputs)
    for output, truth in zip(keras.tree.flatten(outputs), drawn.truths, strict=True):
        values = generator.random(output.shape).astype("float32")
        labels.append(values / values.sum(axis=-1, keepdims=True) if truth == SOFTMAX else values)
    hard = [LOSSES.get(truth, ANY)[0] for truth in drawn.truths]
    soft = [LOSSES.get(truth, ANY)[1]() for truth in drawn.truths]
    if len(labels) == 1:
        labels, hard, soft = labels[0], hard[0], soft[0]
    else:
        names = list(outputs) if isinstance(outputs, dict) else model.output_names
        soft = dict(zip(names, soft, strict=True))
        if isinstance(outputs, dict):
            labels, hard = dict(zip(names, labels, strict=True)), dict(zip(names, hard, strict=True))
    model.compile("sgd", hard)
    distiller = kd.Distiller(None, model, soft, student_loss_weight=1.0)
    distiller.compile("sgd", hard)
    loss, gradients, after = step(model, model, drawn.inputs, labels)
    our_loss, ours, our_after = step(distiller, model, drawn.inputs, labels)
    np.testing.assert_allclose(our_loss, loss, rtol=1e-5)
    for mine, theirs in zip([*ours, *our_after], [*gradients, *after], strict=True):
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def has_loss(drawn):
    """Dropped probabilities have no logarithm, and Keras's losses take a mask of classes for one of items."""
    return not any("mask" in head or "dropout" in head for head in drawn.heads)


def check_models(seeds):
    """Both, of the models of all `seeds`."""
    for seed in seeds:
        drawn = draw(seed)
        check_logits(drawn)
        if has_loss(drawn):
            check_gradients(drawn, seed)
