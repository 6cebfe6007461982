"""Operations that LiteRT refuses, in operations that it has: files against NumPy."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_distill._kit import kit_module
from keras_distill.deploy import to_litert, to_onnx

pytestmark = pytest.mark.slow


class NewAxes(layers.Layer):
    """New axes before, behind and beside slices, an ellipsis and single places."""

    def call(self, inputs):
        first = inputs[:, None, 1:3, ..., None]  # (batch, 1, 2, 4, 1)
        second = inputs[:, :, None, 2, None]  # (batch, 5, 1, 1)
        third = inputs[..., None, ::2]  # (batch, 5, 1, 2)
        return ops.sum(first, axis=(1, 2, 4)) + ops.sum(second, axis=(1, 2)) + ops.repeat(third[:, 0, 0], 2, axis=-1)


class OfIntegers(layers.Layer):
    def call(self, inputs):
        return ops.cast(ops.stack([ops.abs(inputs), ops.sign(inputs)], axis=-1), "float32")


def test_new_axes_are_where_numpy_has_them(tmp_path):
    inputs = keras.Input((5, 4), name="x")
    model = keras.Model(inputs, NewAxes()(inputs))
    path = to_litert(model, tmp_path / "m.tflite")
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
    first, second, third = x[:, None, 1:3, ..., None], x[:, :, None, 2, None], x[..., None, ::2]
    expected = first.sum((1, 2, 4)) + second.sum((1, 2)) + np.repeat(third[:, 0, 0], 2, axis=-1)
    np.testing.assert_allclose(kit_module().open_artifact(path)({"x": x}), expected, atol=1e-6)


def test_integers_have_an_absolute_value_and_a_sign(tmp_path):
    inputs = keras.Input((4,), dtype="int32", name="x")
    model = keras.Model(inputs, OfIntegers()(inputs))
    path = to_litert(model, tmp_path / "m.tflite")
    x = np.array([[-7, -1, 0, 1], [5, -(2**24), 2**30, -2]], "int32")
    expected = np.stack([np.abs(x), np.sign(x)], axis=-1)
    np.testing.assert_array_equal(kit_module().open_artifact(path)({"x": x}), expected)


def test_a_file_of_which_the_converter_made_something_else_is_made_again(tmp_path):
    """tf2onnx moves transpositions about; of an image of one pixel it then adds (16, 1, 1) to (1, 1, 16)."""
    inputs = keras.Input((1, 1, 16), name="x")
    hidden = layers.Conv2D(16, 3, padding="same", groups=16)(inputs)
    model = keras.Model(inputs, layers.Dense(4)(layers.LayerNormalization()(hidden)))
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(generator.normal(size=weight.shape))
    path = to_onnx(model, tmp_path / "m.onnx")
    x = generator.normal(size=(3, 1, 1, 16)).astype("float32")
    np.testing.assert_allclose(kit_module().open_artifact(path)({"x": x}), model(x), atol=1e-5)
