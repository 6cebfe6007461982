"""What layers inside a layer give, beside its own output, against the same computed by hand."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill._keras_internals import mask_of
from keras_distill.models.forward_pass import forward_pass


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """Layers as attributes, in a list and inside one another; `num_calls` of one of them."""

    def __init__(self, num_calls=1, **kwargs):
        super().__init__(**kwargs)
        self.num_calls = num_calls
        self.first = layers.Dense(4, name="first")
        self.rest = [layers.Dense(4, name="second"), layers.Dropout(0.5, name="dropout")]
        self.supports_masking = True

    def call(self, inputs, scale=None, factor=1.0):
        x = self.rest[0](self.first(inputs) * factor)
        for _ in range(self.num_calls):
            x = self.rest[1](x)
        return x if scale is None else x * scale


@keras.saving.register_keras_serializable("tests")
class Outer(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = Block(name="block")

    def call(self, inputs, training=None):
        return self.block(inputs, training=training) + 1.0


def data(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def one_block(num_calls=1):
    keras.utils.set_random_seed(0)
    inputs, scale = keras.Input((5, 3), name="inputs"), keras.Input((5, 1), name="scale")
    hidden = Block(num_calls, name="block")(inputs, scale=scale, factor=2.0)
    return keras.Model([inputs, scale], layers.Dense(2, "softmax", name="head")(hidden))


def test_inner_layers_give_what_they_compute_by_hand_and_the_layer_what_it_always_gave():
    model, x = one_block(), [data(2, 5, 3), data(2, 5, 1)]
    names = ["block/first", "block/second", "block", "scale"]
    features = forward_pass(model, layer_names=names)(x, False).features
    block = model.get_layer("block")
    first = x[0] @ block.first.kernel.numpy() + block.first.bias.numpy()
    second = 2.0 * first @ block.rest[0].kernel.numpy() + block.rest[0].bias.numpy()
    expected = [first, second, second * x[1], x[1]]
    for name, value in zip(names, expected, strict=True):
        np.testing.assert_allclose(features[name], value, rtol=1e-5, atol=1e-6)


def test_a_layer_inside_a_layer_inside_a_layer_trains_as_the_pass_does():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(Outer(name="outer")(inputs)))
    run, x = forward_pass(model, layer_names=["outer/block", "outer/block/dropout"]), data(64, 3)
    for training in (True, False):
        features = run(x, training).features
        np.testing.assert_array_equal(features["outer/block"], features["outer/block/dropout"])
        dropped = np.mean(np.asarray(features["outer/block/dropout"]) == 0.0)
        assert (0.3 < dropped < 0.7) if training else dropped == 0.0


def test_the_mask_of_a_watched_layer_is_what_it_would_be():
    tokens = keras.Input((4,), dtype="int32")
    embedded = layers.Embedding(9, 3, mask_zero=True)(tokens)
    model = keras.Model(tokens, layers.Dense(2)(Block(name="block")(embedded)))
    run = forward_pass(model, layer_names=["block/first", "block"])
    x = np.array([[1, 2, 0, 0]])
    outputs = run(x, False)
    np.testing.assert_array_equal(mask_of(outputs.features["block"]), [[True, True, False, False]])
    np.testing.assert_array_equal(mask_of(outputs.logits), [[True, True, False, False]])


@pytest.mark.parametrize(("num_calls", "times"), [(0, "0 times"), (2, "2 times")])
def test_a_layer_that_does_not_run_once_is_refused(num_calls, times):
    with pytest.raises(ValueError, match=f"'dropout' must run once in each call of 'block'; got {times}"):
        forward_pass(one_block(num_calls), layer_names=["block/dropout"])


def test_layers_that_are_not_there_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'frist' must name a layer inside 'block' .Block.; got none: it has first"):
        forward_pass(one_block(), layer_names=["block/frist"])
