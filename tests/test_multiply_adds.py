"""Multiply-adds against closed forms and the figures that papers give."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_distill.models.multiply_adds import multiply_adds, multiply_adds_of_weights


def model_of(shape, *parts):
    inputs = x = keras.Input(shape)
    for part in parts:
        x = part(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    ("shape", "layer", "expected"),
    [
        ((5,), layers.Dense(7), 5 * 7),
        ((6, 5), layers.Dense(7), 6 * 5 * 7),
        ((8, 8, 6), layers.Conv2D(4, 3, strides=2, padding="same"), 4 * 4 * 3 * 3 * 6 * 4),
        ((8, 8, 6), layers.Conv2D(4, 3, groups=2), 6 * 6 * 3 * 3 * 3 * 4),
        ((9, 6), layers.Conv1D(4, 2), 8 * 2 * 6 * 4),
        ((4, 4, 4, 2), layers.Conv3D(3, 2), 27 * 8 * 2 * 3),
        ((8, 8, 6), layers.DepthwiseConv2D(3, depth_multiplier=2), 6 * 6 * 9 * 6 * 2),
        ((8, 8, 6), layers.SeparableConv2D(4, 3), 6 * 6 * (9 * 6 + 6 * 4)),
        ((8, 8, 6), layers.Conv2DTranspose(4, 3, strides=2), 8 * 8 * 9 * 6 * 4),
        ((7, 5), layers.EinsumDense("abc,cde->abde", (None, 2, 3)), 7 * 5 * 2 * 3),
        ((7, 5), layers.EinsumDense("...c,cd->...d", 3), 7 * 5 * 3),
        ((7, 5), layers.LSTM(4), 7 * 4 * 4 * (5 + 4)),
        ((7, 5), layers.GRU(4, return_sequences=True), 7 * 3 * 4 * (5 + 4)),
        ((7, 5), layers.SimpleRNN(4), 7 * 4 * (5 + 4)),
        ((7, 5), layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)]), 7 * (4 * 4 * (5 + 4) + 3 * 3 * (4 + 3))),
        ((7, 5), layers.Bidirectional(layers.LSTM(4)), 2 * 7 * 4 * 4 * (5 + 4)),
        ((7, 5), layers.TimeDistributed(layers.Dense(3)), 7 * 5 * 3),
        ((7, 6, 6, 5), layers.ConvLSTM2D(2, 3, padding="same"), 7 * 36 * 9 * 4 * 2 * (5 + 2)),
        ((7, 5), layers.BatchNormalization(), 0),
        ((8, 8, 2), layers.GlobalAveragePooling2D(), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else "",
)
def test_a_layer_takes_what_its_closed_form_says(shape, layer, expected):
    assert multiply_adds(model_of(shape, layer)) == expected


def test_attention_takes_its_projections_and_both_of_its_products():
    query, value = keras.Input((7, 6)), keras.Input((9, 5))
    model = keras.Model([query, value], layers.MultiHeadAttention(3, 4, 2)(query, value))
    projections = 7 * 6 * 12 + 9 * 5 * 12 + 9 * 5 * 6 + 7 * 6 * 6
    assert multiply_adds(model) == projections + 3 * 7 * 9 * (4 + 2)
    grouped = model_of((7, 6), lambda x: layers.GroupQueryAttention(4, 6, 3)(x, x))
    assert multiply_adds(grouped) == 7 * 6 * (24 + 2 * 12 + 24) + 6 * 7 * 7 * 2 * 4


def test_products_of_tensors_are_counted():
    one, other = keras.Input((7, 6)), keras.Input((9, 6))
    scores = ops.einsum("btc,bsc->bts", one, other)
    model = keras.Model([one, other], [ops.matmul(scores, other), layers.Dot((2, 2))([one, other])])
    assert multiply_adds(model) == 3 * 7 * 9 * 6


def test_shared_and_nested_models_count_as_often_as_they_run():
    inner = model_of((5,), layers.Dense(4), layers.Dense(3))
    first, second = keras.Input((5,)), keras.Input((5,))
    model = keras.Model([first, second], layers.Add()([inner(first), inner(second)]))
    assert multiply_adds(model) == 2 * (5 * 4 + 4 * 3)


def test_a_tied_table_multiplies_on_its_way_back_alone():
    tokens = keras.Input((6,), dtype="int32")
    table = layers.ReversibleEmbedding(11, 4)
    assert multiply_adds(keras.Model(tokens, table(layers.Dense(4)(table(tokens)), reverse=True))) == 6 * (16 + 44)


def test_a_quantized_layer_counts_as_before():
    model = model_of((6,), layers.Dense(8), layers.Dense(3))
    model.layers[1].quantize("int8")
    assert multiply_adds(model) == 6 * 8 + 8 * 3


def test_each_weight_has_its_share():
    model = model_of((8, 8, 6), layers.SeparableConv2D(4, 3, name="separable"))
    depthwise, pointwise, _ = model.get_layer("separable").weights
    assert multiply_adds_of_weights(model) == {id(depthwise): 36 * 54, id(pointwise): 36 * 24}


def test_the_model_answers_as_before():
    model = model_of((8, 8, 3), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2))
    inputs = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    before = model(inputs)
    multiply_adds(model)
    assert all("call" not in vars(layer) for layer in model.layers)
    np.testing.assert_array_equal(model(inputs), before)


def test_unknown_lengths_are_asked_for():
    model = keras.Sequential([keras.Input((None, 5)), layers.Dense(3)])
    with pytest.raises(ValueError, match="Give input_shapes"):
        multiply_adds(model)
    assert multiply_adds(model, input_shapes=[(4, 5)]) == 4 * 5 * 3


def test_a_model_without_inputs_is_refused():
    with pytest.raises(ValueError, match="built functional or Sequential"):
        multiply_adds(keras.Sequential([layers.Dense(3)]))


# Millions, from the papers: MobileNet 569, MobileNetV2 300, ResNet-50 3.8e9, VGG-16 15.5e9.
@pytest.mark.parametrize(
    ("name", "published", "within"),
    [("MobileNet", 569, 0.5), ("MobileNetV2", 300, 1), ("ResNet50", 3_860, 5), ("VGG16", 15_470, 5)],
)
def test_networks_take_what_their_papers_say(name, published, within):
    model = getattr(keras.applications, name)(weights=None)
    assert multiply_adds(model) / 1e6 == pytest.approx(published, abs=within)
