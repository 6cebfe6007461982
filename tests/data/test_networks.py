"""The paper's small nets: the weights they should have, logits out, and dropout in training alone."""

import numpy as np
import pytest

from keras_distill.data import networks


def test_the_papers_student_has_its_1276810_weights():
    # 784·800 + 800 + 800·800 + 800 + 800·10 + 10, by hand.
    assert networks.mlp((28, 28, 1), 10, (800, 800)).count_params() == 1_276_810


def test_the_papers_teacher_has_its_weights_and_bounds():
    teacher = networks.mlp((28, 28, 1), 10, (1200, 1200), 0.5, input_dropout=0.2, max_norm=3.5)
    assert teacher.count_params() == 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 10 + 10
    rates = [layer.rate for layer in teacher.layers if type(layer).__name__ == "Dropout"]
    assert rates == [0.2, 0.5, 0.5]
    norms = [layer.kernel_constraint.max_value for layer in teacher.layers if getattr(layer, "kernel_constraint", None)]
    assert norms == [3.5, 3.5]


@pytest.mark.parametrize("build", [networks.mlp, networks.convnet, networks.separable_convnet])
def test_outputs_are_logits_and_inference_is_deterministic(build):
    model = build((16, 16, 1), 7, dropout=0.5)
    inputs = np.random.default_rng(0).normal(size=(3, 16, 16, 1)).astype("float32")
    outputs = model(inputs, training=False).numpy()
    assert outputs.shape == (3, 7)
    # A linear last layer: no softmax, whose rows would sum to one.
    assert model.layers[-1].activation.__name__ == "linear"
    np.testing.assert_array_equal(outputs, model(inputs, training=False).numpy())
    assert not np.allclose(model(inputs, training=True).numpy(), model(inputs, training=True).numpy())


def test_a_convnet_of_flat_inputs_is_refused():
    with pytest.raises(ValueError, match=r"height, width, channels.*Use mlp"):
        networks.convnet((64,), 10)


def test_one_class_is_no_choice():
    with pytest.raises(ValueError, match="num_classes must be >= 2; got 1"):
        networks.mlp((4,), 1)
