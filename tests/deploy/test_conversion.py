"""A converter's outcry becomes one sentence with the layer and the remedy; its death becomes an error."""

import json
import subprocess

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.deploy import ConversionError, conversion, to_litert, to_onnx
from keras_distill.deploy.warm import WarmProcess
from keras_distill.deploy.worker import explain, layer_of


def test_layer_is_found_in_the_name_scopes_of_a_traced_graph():
    text = "StatefulPartitionedCall/model_1/encoder_2/gru_1/while/TensorListReserve"
    assert layer_of(text, ["model", "encoder", "gru"]) == "gru"


def test_layer_whose_own_name_ends_in_a_number_is_found():
    assert layer_of("net/dense_1/MatMul", ["dense", "dense_1"]) == "dense_1"


def test_no_layer_is_named_where_none_is_in_the_text():
    assert layer_of("something/else entirely", ["dense"]) is None


@pytest.mark.parametrize(
    ("outcry", "operation"),
    [
        ("Tensorflow op [a/winner_1/Bitcast: Bitcast] is not supported", "Bitcast"),
        ("loc(\"a/winner_1/x\"): error: 'tf.BitwiseAnd' op is neither a custom op nor a flex op", "BitwiseAnd"),
        ("a/winner_1/Foo: 'tf.Cholesky' op is illegal", "Cholesky"),
    ],
)
def test_explanation_names_layer_operation_and_remedy(outcry, operation):
    sentence = explain("to_onnx", outcry, ["winner"])
    assert "'winner'" in sentence
    assert operation in sentence
    assert sentence.endswith(".")


def test_argmax_is_explained_by_top_k():
    assert "top_k" in explain("to_onnx", "Tensorflow op [n/a_1/b: Bitcast]", ["a"])


def test_a_worker_that_dies_is_an_error_with_its_stage_and_suspects(monkeypatch):
    def die(_, reply_path):
        reply_path.write_text(json.dumps({"stage": "quantising", "suspects": ["gru"]}))
        return subprocess.CompletedProcess([], -11, stderr="noise")

    monkeypatch.setattr(conversion, "_run", die)
    with pytest.raises(ConversionError, match=r"SIGSEGV while quantising.*: gru"):
        conversion.convert("to_litert", {})


def test_a_worker_that_cannot_start_is_an_error_with_its_last_words(monkeypatch):
    monkeypatch.setattr(conversion, "WARM_PROCESS", WarmProcess(["/bin/false"]))
    monkeypatch.setattr(conversion.sys, "executable", "/bin/false")
    with pytest.raises(ConversionError, match="exit code 1 while starting"):
        conversion.convert("to_onnx", {})


def test_a_worker_without_end_is_an_error(monkeypatch):
    monkeypatch.setattr(conversion, "TIME_LIMIT_S", 0.05)
    with pytest.raises(ConversionError, match="must end within"):
        conversion.convert("to_onnx", {})


def winner_takes_all():
    def winner(logits):
        return keras.ops.one_hot(keras.ops.argmax(logits, -1), 4)

    return keras.Sequential([keras.Input((8,)), layers.Dense(4), layers.Lambda(winner, name="winner")])


@pytest.mark.slow
@pytest.mark.parametrize(("make", "name"), [(to_onnx, "a.onnx"), (to_litert, "a.tflite")])
def test_argmax_in_a_model_is_refused_by_name_and_nothing_is_written(make, name, tmp_path):
    with pytest.raises(ConversionError, match=r"'winner'.*top_k"):
        make(winner_takes_all(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("make", [to_onnx, to_litert])
def test_cholesky_is_refused_by_name(make, tmp_path):
    def factor(rows):
        square = keras.ops.matmul(keras.ops.transpose(rows, (0, 2, 1)), rows) + 3.0 * keras.ops.eye(3)
        return keras.ops.reshape(keras.ops.cholesky(square), (-1, 9))

    model = keras.Sequential([keras.Input((4, 3)), layers.Lambda(factor, name="factor"), layers.Dense(2)])
    with pytest.raises(ConversionError, match=r"'factor'.*Cholesky"):
        make(model, tmp_path / ("a.onnx" if make is to_onnx else "a.tflite"))


@pytest.mark.slow
def test_the_segmentation_fault_of_a_full_int8_gru_is_an_error_that_names_it(tmp_path):
    model = keras.Sequential([keras.Input((7, 4)), layers.GRU(8, name="memory"), layers.Dense(3)])
    examples = {"inputs": np.random.default_rng(0).normal(size=(16, 7, 4)).astype("float32")}
    with pytest.raises(ConversionError, match="memory"):
        to_litert(model, tmp_path / "a.tflite", quantization="int8", calibration=examples, batch=1)
    assert list(tmp_path.iterdir()) == []
