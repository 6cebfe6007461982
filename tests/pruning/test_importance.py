"""Scores against NumPy in float64: activations, and the gradient of the loss by each channel."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.pruning import (
    activations,
    at_random,
    batch_normalization_scales,
    channel_groups,
    norms,
    prune,
    taylor,
)


def perceptron(head=None):
    keras.utils.set_random_seed(3)
    ends = [layers.Dense(3, name="logits"), *([layers.Activation(head)] if head else [])]
    return keras.Sequential([keras.Input((5,)), layers.Dense(6, "relu", name="hidden"), *ends])


def forward(model, inputs):
    """Hidden activations and logits of `perceptron`, in float64."""
    first, first_bias, second, second_bias = (value.astype("float64") for value in model.get_weights())
    hidden = np.maximum(inputs @ first + first_bias, 0.0)
    return hidden, hidden @ second + second_bias


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def data(num_items=50):
    generator = np.random.default_rng(1)
    return generator.normal(size=(num_items, 5)).astype("float32"), generator.integers(0, 3, num_items)


def test_activations_are_the_mean_size_times_the_norm_of_the_readers():
    model, (inputs, _) = perceptron(), data()
    hidden, _ = forward(model, inputs)
    expected = np.abs(hidden).mean(0) * np.linalg.norm(model.layers[1].get_weights()[0].astype("float64"), axis=1)
    found = activations(channel_groups(model), model, inputs, batch_size=16)["hidden"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("head", [None, "softmax"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_taylor_is_the_mean_square_of_gradient_times_activation(head, temperature):
    model, (inputs, labels) = perceptron(head), data()
    hidden, logits = forward(model, inputs)
    errors = (softmax(logits / temperature) - np.eye(3)[labels]) / temperature
    gradients = errors @ model.layers[1].get_weights()[0].astype("float64").T
    groups = channel_groups(model)
    found = taylor(groups, model, inputs, labels, temperature=temperature, batch_size=16)["hidden"]
    np.testing.assert_allclose(found, np.square(gradients * hidden).mean(0), rtol=1e-3, atol=1e-9)


def test_without_labels_half_of_it_is_the_divergence_that_a_small_step_costs():
    """KL(teacher, teacher with a channel times 1 − ε) = ε² · score / 2 + O(ε³), over the draws of the classes."""
    model, (inputs, _) = perceptron(), data(20)
    hidden, logits = forward(model, inputs)
    weights, bias = (value.astype("float64") for value in model.layers[1].get_weights())
    step, expected = 1e-3, []
    for channel in range(6):
        scale = np.ones(6)
        scale[channel] -= step
        moved = softmax((hidden * scale) @ weights + bias)
        own = softmax(logits)
        expected.append(2.0 * (own * np.log(own / moved)).sum(-1).mean() / step**2)
    found = taylor(channel_groups(model), model, np.repeat(inputs, 500, axis=0), batch_size=5000)["hidden"]
    np.testing.assert_allclose(found, expected, rtol=0.1)


def test_taylor_sums_over_all_that_reads_a_channel():
    """Two readers that undo each other: a channel that both read has no effect, whatever each one's gradient."""
    inputs = keras.Input((2,))
    hidden = layers.Dense(2, name="hidden", kernel_initializer="identity")(inputs)
    plus, minus = layers.Dense(2, use_bias=False), layers.Dense(2, use_bias=False)
    model = keras.Model(inputs, layers.Add()([plus(hidden), minus(hidden)]))
    kernel = np.array([[1.0, -1.0], [2.0, -2.0]])
    plus.set_weights([kernel])
    minus.set_weights([kernel * [[-1.0], [1.0]]])
    scores = taylor(channel_groups(model), model, np.ones((4, 2), "float32"), np.zeros(4, int))["hidden"]
    assert scores[0] == pytest.approx(0.0, abs=1e-12)
    assert scores[1] > 1e-7


def test_scales_sum_over_the_normalisations_that_a_channel_passes():
    inputs = keras.Input((4, 4, 1))
    x = layers.BatchNormalization(name="a")(layers.Conv2D(3, 1, name="stem")(inputs))
    x = layers.BatchNormalization(name="b")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    model.get_layer("a").gamma.assign([1.0, -2.0, 0.5])
    model.get_layer("b").gamma.assign([0.25, 1.0, -4.0])
    found = batch_normalization_scales(channel_groups(model))
    np.testing.assert_allclose(found["stem"], [1.25, 3.0, 4.5])


def test_operations_between_and_recurrent_readers_are_looked_through():
    inputs = keras.Input((5,))
    hidden = keras.ops.relu(layers.Dense(6, name="hidden")(inputs))
    read = layers.LSTM(2, name="reader")(layers.Reshape((1, 6))(hidden))
    model = keras.Model(inputs, layers.Dense(2)(read))
    values, _ = data()
    kernel, bias = (value.astype("float64") for value in model.get_layer("hidden").get_weights())
    readers = np.linalg.norm(model.get_layer("reader").get_weights()[0].astype("float64"), axis=1)
    found = activations(channel_groups(model), model, values)["hidden"]
    np.testing.assert_allclose(found, np.maximum(values @ kernel + bias, 0.0).mean(0) * readers, rtol=1e-5)


def test_groups_inside_of_a_layer_have_their_norms():
    inputs = keras.Input((4, 6))
    attention = layers.MultiHeadAttention(3, 2, name="attention")
    model = keras.Model(inputs, layers.Dense(2)(attention(inputs, inputs)))
    groups = channel_groups(model)
    inside = [group.name for group in groups.groups.values() if group.is_free and group.layers == ("attention",)]
    assert inside
    by_norm, values = norms(groups), np.random.default_rng(0).normal(size=(8, 4, 6)).astype("float32")
    for scores in (activations(groups, model, values), taylor(groups, model, values)):
        for name in inside:
            np.testing.assert_array_equal(scores[name], by_norm[name])


def test_chosen_by_name_the_highest_stay():
    model, (inputs, _) = perceptron(), data()
    for name, scores in {
        "activations": activations(channel_groups(model), model, inputs),
        "taylor": taylor(channel_groups(model), model, inputs),
        "random": at_random(channel_groups(model)),
    }.items():
        kept = np.sort(np.argsort(-scores["hidden"])[:3])
        student = prune(model, 0.5, importance=name, calibration=inputs)
        np.testing.assert_array_equal(
            student.get_layer("hidden").get_weights()[0], model.get_layer("hidden").get_weights()[0][:, kept]
        )


def test_several_inputs_nested_models_and_sigmoids_are_run_as_they_are():
    inner_input = keras.Input((4,))
    inner = keras.Model(inner_input, layers.Dense(2)(layers.Dense(6, "relu", name="deep")(inner_input)), name="inner")
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    joined = layers.Concatenate()([inner(first), inner(second)])
    model = keras.Model({"first": first, "second": second}, layers.Dense(1, "sigmoid")(joined))
    generator = np.random.default_rng(0)
    inputs = {name: generator.normal(size=(12, 4)).astype("float32") for name in ("first", "second")}
    groups = channel_groups(model)
    kernel, bias = (value.astype("float64") for value in inner.get_layer("deep").get_weights())
    sizes = sum(np.maximum(each @ kernel + bias, 0.0).mean(0) for each in inputs.values())
    readers = np.linalg.norm(inner.layers[-1].get_weights()[0].astype("float64"), axis=1)
    np.testing.assert_allclose(activations(groups, model, inputs)["deep"], sizes * readers, rtol=1e-5)
    assert np.all(taylor(groups, model, inputs, np.ones(12))["deep"] >= 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": "nroms"}, "Did you mean norms"),
        ({"importance": "taylor"}, "needs calibration data"),
        ({"importance": "activations", "calibration": np.zeros((0, 5))}, "at least|one at least"),
        ({"repair": True}, "repair needs calibration data"),
    ],
)
def test_what_cannot_be_judged_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        prune(perceptron(), 0.5, **options)
