"""Exports on whichever backend Keras runs on: `make test-jax` runs this on JAX, where only workers have TensorFlow."""

import sys

import keras
import numpy as np
import pytest
from keras import layers
from matrix_models import Subclassed, floats

from keras_distill._kit import kit_module
from keras_distill.deploy import ConversionError, to_litert, to_onnx, verify, worker
from keras_distill.deploy.trace import Signature, signature_of

MAKERS = {"onnx": to_onnx, "tflite": to_litert}
RUNTIMES = pytest.mark.parametrize("runtime", MAKERS)
ELSEWHERE = pytest.mark.skipif(
    keras.config.backend() == "tensorflow", reason="on TensorFlow a model is not loaded anew"
)


def image_classifier():
    inputs = keras.Input((8, 8, 3), name="Image")
    hidden = layers.BatchNormalization()(layers.Conv2D(6, 3, groups=3, activation="relu")(inputs))
    hidden = layers.Dense(8, activation="gelu", dtype="mixed_bfloat16")(layers.Flatten()(hidden))
    model = keras.Model(inputs, layers.Dense(4, activation="softmax", dtype="float32")(hidden))
    statistics = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    statistics.moving_mean.assign(np.linspace(-1, 1, 6))
    return model, floats(8, 8, 3)


def two_of_each():
    first, second = keras.Input((4,), name="b"), keras.Input((4,), name="_a")
    outputs = {"z": layers.Dense(2)(first), "a": layers.LayerNormalization()(layers.Dense(3)(first - 2.0 * second))}
    return keras.Model({"b": first, "_a": second}, outputs), {"b": floats(4), "_a": 2.0 + floats(4)}


def recurrent():
    return keras.Sequential([keras.Input((7, 4)), layers.LSTM(5), layers.Dense(3)]), floats(7, 4)


class Unregistered(layers.Layer):
    """Of a class that Keras was never told of."""

    def call(self, inputs):
        return keras.ops.maximum(inputs, 0.5) * 2.0


def with_own_layer():
    return keras.Sequential([keras.Input((8,)), Unregistered(), layers.Dense(3)]), floats(8)


def subclassed():
    model = Subclassed()
    model(floats(8))
    return model, floats(8)


MODELS = {
    "image": image_classifier,
    "two": two_of_each,
    "recurrent": recurrent,
    "own layer": with_own_layer,
    "subclassed": subclassed,
}


@RUNTIMES
@pytest.mark.parametrize("name", MODELS)
def test_file_answers_as_the_model_on_its_own_backend(name, runtime, tmp_path):
    model, inputs = MODELS[name]()
    answer = keras.tree.map_structure(keras.ops.convert_to_numpy, model(inputs, training=False))
    expected = answer if isinstance(answer, dict) else {"logits": answer}
    path = MAKERS[runtime](model, tmp_path / f"model.{runtime}")
    found = kit_module().open_artifact(path).run(signature_of(model).feed(inputs))
    assert sorted(found) == sorted(expected)
    for output, array in found.items():
        if name == "image":
            array = np.exp(array) / np.exp(array).sum(-1, keepdims=True)
        # bfloat16 has eight bits.
        np.testing.assert_allclose(array, expected[output], atol=2e-2 if name == "image" else 1e-5)
    assert verify(model, path, inputs).holds


def test_verification_finds_other_weights(tmp_path):
    model, inputs = recurrent()
    path = to_onnx(model, tmp_path / "model.onnx")
    model.layers[-1].kernel.assign(keras.ops.convert_to_numpy(model.layers[-1].kernel) + 0.01)
    assert not verify(model, path, inputs).holds


def test_signature_goes_round_through_json():
    model, _ = two_of_each()
    signature = signature_of(model)
    back = Signature.from_json(signature.to_json())
    assert back.names == signature.names == ("_a", "b")
    assert back.to_json() == signature.to_json()
    (packed,) = back.pack([1, 2])
    assert packed == {"_a": 1, "b": 2}


def test_an_export_without_tensorflow_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    reply = worker.Reply(tmp_path / "reply.json", [])
    with pytest.raises(
        worker.Refusal, match=r"an export needs TensorFlow, .*; got .*tensorflow.*pip install tensorflow"
    ):
        worker.trace(reply)


class NumpyInside(layers.Layer):
    """Computes with what no graph of TensorFlow has."""

    def call(self, inputs):
        if keras.config.backend() == "tensorflow":
            raise TypeError("this is no array of mine")
        return inputs


class OfTheProgram(layers.Layer):
    """As if it were defined in the script that runs."""

    __module__ = "__main__"

    def call(self, inputs):
        return inputs


@ELSEWHERE
@RUNTIMES
@pytest.mark.parametrize(
    ("layer", "received"),
    [(OfTheProgram, "classes of the program itself or of a function: OfTheProgram"), (NumpyInside, "no array of mine")],
)
def test_what_cannot_be_loaded_on_tensorflow_is_refused_in_a_sentence(layer, received, runtime, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layer(), layers.Dense(3)])
    with pytest.raises(ConversionError, match=rf"gives back on TensorFlow; got .*{received}.*KERAS_BACKEND=tensorflow"):
        MAKERS[runtime](model, tmp_path / f"model.{runtime}")
    assert list(tmp_path.iterdir()) == []
