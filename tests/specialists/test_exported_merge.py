"""Merged models in the runtimes that serve them, held to Keras."""

import keras
import numpy as np
import pytest
from scipy.special import softmax

from keras_distill.specialists import SpecialistCombiner, SpecialistEnsemble
from keras_distill.teachers import Ensemble

CLASS_SETS = [[0, 1, 2], [2, 3, 4], [1, 4]]


def net(units, seed):
    kernel = keras.initializers.RandomNormal(stddev=2.0, seed=seed)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, kernel_initializer=kernel)])


def combined(steps):
    """The combiner as the end of one model over one input."""
    inputs = keras.Input((4,))
    logits = [net(6, 0)(inputs)] + [net(len(part) + 1, 1 + place)(inputs) for place, part in enumerate(CLASS_SETS)]
    return keras.Model(inputs, SpecialistCombiner(CLASS_SETS, 6, steps=steps)(logits))


def routed(conditional):
    specialists = [net(len(part) + 1, 1 + place) for place, part in enumerate(CLASS_SETS)]
    return SpecialistEnsemble(net(6, 0), specialists, CLASS_SETS, num_routes=2, steps=3, conditional=conditional)


MODELS = {
    "combiner": lambda: combined(4),
    "one-step combiner": lambda: combined(1),
    "conditional ensemble": lambda: routed(True),
    "unconditional ensemble": lambda: routed(False),
    "arithmetic ensemble": lambda: Ensemble([net(6, 0), net(6, 1)], weights=[1, 2]),
    "geometric ensemble": lambda: Ensemble([net(6, 0), net(6, 1)], "geometric"),
}


def run_onnx(path, inputs):
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def run_litert(path, inputs):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    [given], [wanted] = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], inputs.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], inputs)
    interpreter.invoke()
    return interpreter.get_tensor(wanted["index"])


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "litert"])
@pytest.mark.parametrize("name", MODELS)
def test_runtime_agrees_with_keras_to_a_hundred_thousandth(name, runtime, tmp_path):
    from keras_distill.deploy import to_litert, to_onnx

    model = MODELS[name]()
    inputs = np.random.default_rng(0).normal(size=(7, 4)).astype("float32")
    expected = np.asarray(model(inputs, training=False))
    if runtime == "onnx":
        found = run_onnx(to_onnx(model, tmp_path / "model.onnx"), inputs)
    else:
        found = run_litert(to_litert(model, tmp_path / "model.tflite"), inputs)
    np.testing.assert_allclose(softmax(found, axis=-1), softmax(expected, axis=-1), atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def input_address(interpreter):
    """Where the only input lies; nothing may hold on to the array."""
    return interpreter.tensor(interpreter.get_input_details()[0]["index"])().__array_interface__["data"][0]


@pytest.mark.slow
@pytest.mark.parametrize("num_items", [1, 16])
@pytest.mark.parametrize("name", ["combiner", "conditional ensemble", "unconditional ensemble"])
def test_litert_knows_every_size_before_it_runs(name, num_items, tmp_path):
    # Where it does not, its memory moves in the first call, and XNNPACK may answer the next ones wrongly.
    from ai_edge_litert.interpreter import Interpreter

    from keras_distill.deploy import to_litert

    interpreter = Interpreter(str(to_litert(MODELS[name](), tmp_path / "model.tflite")), num_threads=1)
    interpreter.allocate_tensors()
    index = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(index, (num_items, 4))
    interpreter.allocate_tensors()
    before = input_address(interpreter)
    interpreter.set_tensor(index, np.ones((num_items, 4), "float32"))
    interpreter.invoke()
    assert input_address(interpreter) == before
