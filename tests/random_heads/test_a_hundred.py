"""A hundred random models quickly, and sixty as an exported file; the two thousand stand beside."""

import keras
import numpy as np
import pytest

from keras_distill.deploy import to_onnx
from tests.random_heads.checks import ACTIVATIONS, check_gradients, check_logits, has_loss
from tests.random_models import LINEAR, MISPLACED, SIGMOID, SOFTMAX, UNKNOWN, draw

# Masks that a user's last layers drop: Keras says so, and they are dropped in both passes.
pytestmark = pytest.mark.filterwarnings("ignore:(?s).*destroy the mask")

FEW = range(100)


@pytest.mark.parametrize("start", FEW[::50])
def test_activation_of_the_logits_is_the_model(start):
    for seed in range(start, start + 50):
        check_logits(draw(seed))


@pytest.mark.tensorflow
@pytest.mark.parametrize("start", FEW[::50])
def test_labels_train_a_student_as_keras_does(start):
    for seed in range(start, start + 50, 2):
        drawn = draw(seed)
        if has_loss(drawn):
            check_gradients(drawn, seed)


def exported(drawn, path, onnxruntime):
    """Logits of one file that holds all the models, and what the models themselves give."""
    feed, inputs, outputs, expected = {}, [], [], []
    for number, one in enumerate(drawn):
        arrays = keras.tree.flatten(one.inputs)
        own = [
            keras.Input(array.shape[1:], dtype=array.dtype, name=f"in_{number}_{position}")
            for position, array in enumerate(arrays)
        ]
        feed |= dict(zip((tensor.name for tensor in own), arrays, strict=True))
        inputs += own
        outputs += keras.tree.flatten(one.model(keras.tree.pack_sequence_as(one.inputs, own)))
        expected += keras.tree.flatten(one.model(one.inputs))
    session = onnxruntime.InferenceSession(to_onnx(keras.Model(inputs, outputs), path))
    return session.run([f"logits_{position}" for position in range(len(outputs))], feed), expected


@pytest.mark.slow
@pytest.mark.tensorflow
def test_sixty_exported_models_give_the_logits(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    drawn = [model for seed in range(5000, 5100) if is_exportable(model := draw(seed))][:60]
    assert len(drawn) == 60
    # A conversion takes seconds however small the model, and one of all sixty longer than six of ten.
    logits, expected = [], []
    for start in range(0, 60, 10):
        given, wanted = exported(drawn[start : start + 10], tmp_path / f"{start}.onnx", onnxruntime)
        logits += given
        expected += wanted
    truths = [truth for one in drawn for truth in one.truths]
    assert {SOFTMAX, SIGMOID, LINEAR, UNKNOWN} <= set(truths)
    for truth, given, wanted in zip(truths, logits, expected, strict=True):
        np.testing.assert_allclose(ACTIVATIONS[truth](given.astype("float64")), wanted, rtol=1e-4, atol=1e-5)


def is_exportable(drawn):
    """What gives probabilities unseen, or over another axis, is refused: `tests/deploy/` tests that."""
    return MISPLACED not in drawn.truths and "own softmax" not in drawn.heads
