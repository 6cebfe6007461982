"""The files of a quantisation-aware student: integer throughout, and computing what NumPy's integers say."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers
from networks import examples_for, image_network, lively, random_network
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper

from keras_distill import data, deploy
from keras_distill._kit import kit_module
from keras_distill.deploy.integer_onnx import kernel_types
from keras_distill.deploy.ship import ship
from keras_distill.deploy.shipment import Provenance
from keras_distill.quantize_aware import Int8Kernel, quantize_aware

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One convolution with BatchNorm and ReLU, one dense layer, and its two files."""
    inputs = keras.Input((8, 8, 3), name="inputs")
    hidden = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, name="conv")(inputs)))
    student = lively(keras.Model(inputs, layers.Dense(5, name="logits")(layers.Flatten()(hidden))))
    model, folder = quantize_aware(student, examples_for(student)), tmp_path_factory.mktemp("small")
    return model, deploy.to_onnx(model, folder / "small.onnx"), deploy.to_litert(model, folder / "small.tflite")


@pytest.fixture(scope="module")
def every_layer(tmp_path_factory):
    """A network of every kind of layer that stays integer, and its two files."""
    student = image_network(head="softmax")
    model, folder = quantize_aware(student, examples_for(student)), tmp_path_factory.mktemp("every_layer")
    return model, deploy.to_onnx(model, folder / "every.onnx"), deploy.to_litert(model, folder / "every.tflite")


def convolve(integers, kernel):
    """Valid convolution, `(batch, height, width, channels)` by `(height, width, channels, filters)`, in int64."""
    windows = sliding_window_view(integers.astype(np.int64), kernel.shape[:2], axis=(1, 2))
    return np.einsum("bijcxy,xycf->bijf", windows, kernel.astype(np.int64))


def requantize(sums, factor, zero_point, low, high):
    """Rounds accumulators to 8 bits, half away from zero."""
    scaled = sums * factor
    return np.clip(np.sign(scaled) * np.floor(np.abs(scaled) + 0.5) + zero_point, low, high)


def test_litert_computes_the_integers_that_numpy_does(small):
    _, _, path = small
    x = examples_for(small[0], 64)
    # The runtime's reference kernels: the arithmetic of the format, without a delegate's shortcuts.
    interpreter = Interpreter(
        str(path),
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}

    def tensor(index):
        parameters = details[index]["quantization_parameters"]
        return (
            interpreter.get_tensor(index).astype(np.int64),
            parameters["scales"].astype(float),
            parameters["zero_points"],
        )

    checked = []
    for operator in interpreter._get_ops_details():
        if operator["op_name"] not in ("CONV_2D", "FULLY_CONNECTED"):
            continue
        (source, in_scale, in_zero), (kernel, kernel_scale, _), (bias, *_) = map(tensor, operator["inputs"])
        (result, out_scale, out_zero) = tensor(operator["outputs"][0])
        centred = source - in_zero
        is_conv = operator["op_name"] == "CONV_2D"
        sums = convolve(centred, kernel.transpose(1, 2, 3, 0)) if is_conv else centred @ kernel.T
        low = out_zero if is_conv else -128  # the fused ReLU's zero
        expected = requantize(sums + bias, in_scale * kernel_scale / out_scale, out_zero, low, 127)
        # The runtime rounds twice, its factor being an integer and a shift: a half may fall to either side.
        assert np.abs(result - expected).max() <= 1
        assert (result == expected).mean() > 0.998
        checked.append(operator["op_name"])
    assert sorted(checked) == ["CONV_2D", "FULLY_CONNECTED"]


def test_onnxruntime_computes_the_integers_that_numpy_does(small):
    model, path, _ = small
    x = examples_for(model, 64)
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}

    def integers(name):
        node = producers[name]
        values, scales = constants[node.input[0]].astype(np.int64), constants[node.input[1]].astype(float)
        return values - (128 if constants[node.input[0]].dtype == np.uint8 else 0), scales

    steps = [
        (float(constants[node.input[1]]), int(constants[node.input[2]]))
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    ]
    (in_scale, in_zero), (middle_scale, middle_zero), (out_scale, out_zero) = steps
    conv = next(node for node in graph.node if node.op_type == "Conv")
    dense = next(node for node in graph.node if node.op_type == "Gemm")
    (kernel, kernel_scale), (bias, _) = integers(conv.input[1]), integers(conv.input[2])
    centred = np.clip(np.round(x / np.float32(in_scale)) + in_zero, 0, 255) - in_zero
    sums = convolve(centred, kernel.transpose(2, 3, 1, 0)) + bias
    middle = np.clip(np.round(np.maximum(sums, 0) * (in_scale * kernel_scale / middle_scale)) + middle_zero, 0, 255)
    (kernel, kernel_scale), (bias, _) = integers(dense.input[1]), integers(dense.input[2])
    sums = (middle - middle_zero).reshape(len(x), -1).astype(np.int64) @ kernel + bias
    logits = np.clip(np.round(sums * (in_step := middle_scale * kernel_scale) / out_scale) + out_zero, 0, 255)
    assert in_step.shape == (5,)
    actual = onnxruntime.InferenceSession(path).run(None, {"inputs": x})[0]
    difference = np.abs(actual - (logits - out_zero) * out_scale) / out_scale
    assert difference.max() < 1.001
    assert (difference < 0.5).mean() > 0.98


def test_every_kernel_is_integer_in_the_files(every_layer):
    _, *paths = every_layer
    for path, kind in zip(paths, ("uint8", "int8"), strict=True):
        types = kernel_types(path)
        assert len(types) == 8
        assert set(types.values()) == {kind}


@pytest.mark.parametrize("seed", range(6))
def test_every_kernel_of_a_random_network_runs_in_integers(seed, tmp_path):
    student = random_network(seed)
    model = quantize_aware(student, examples_for(student, 64))
    path = deploy.to_onnx(model, tmp_path / "random.onnx")
    types = kernel_types(path)
    assert len(types) == sum(isinstance(layer, Int8Kernel) for layer in model.layers)
    assert set(types.values()) == {"uint8"}
    x = examples_for(student, 64, seed=7)
    ranges = model.get_layer("logits_int8")
    step = (float(ranges.maximum) - float(ranges.minimum)) / 255
    # A hidden value that falls to the other side of a half moves a logit by a step or two, seldom.
    difference = np.abs(kit_module().open_artifact(path)({"inputs": x}) - np.asarray(model(x))) / step
    assert difference.max() < 4.01
    assert (difference < 0.5).mean() > 0.7


def test_litert_file_has_no_float_operation_between_its_ends(every_layer):
    interpreter = Interpreter(str(every_layer[2]))
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    floats = {
        operator["op_name"]
        for operator in interpreter._get_ops_details()
        if any(
            details[index]["dtype"] is np.float32 for index in (*operator["inputs"], *operator["outputs"]) if index >= 0
        )
    }
    assert floats == {"QUANTIZE", "DEQUANTIZE"}


@pytest.mark.parametrize("runtime", [1, 2], ids=["onnxruntime", "litert"])
def test_files_are_within_steps_of_the_keras_model(small, runtime):
    model = small[0]
    verification = deploy.verify(model, small[runtime], examples_for(model, 512, seed=7), precision="int8")
    ranges = model.get_layer("logits_int8")
    step = (float(ranges.maximum) - float(ranges.minimum)) / 255
    assert verification.max_abs_error < 1.01 * step
    assert verification.argmax_agreement >= 0.99
    assert verification.holds


def test_student_without_training_is_an_int8_network_at_once(every_layer):
    model, *paths = every_layer
    x = examples_for(model, 512, seed=7)
    for path in paths:
        assert deploy.verify(model, path, x, precision="int8").argmax_agreement > 0.9


def test_ship_gate_takes_it_as_the_int8_network_that_it_is(tmp_path):
    digits = data.load("digits")
    keras.utils.set_random_seed(0)
    inputs = keras.Input(digits.input_shape, name="inputs")
    hidden = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, padding="same")(inputs)))
    student = keras.Model(inputs, layers.Dense(10, name="logits")(layers.Flatten()(hidden)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    student.fit(digits.train.inputs, digits.train.labels, epochs=6, verbose=0)
    model = quantize_aware(student, digits.train.inputs[:256])
    with pytest.raises(ValueError, match=r"onnx, litert or web; got onnx-int8\. Its onnx and litert files are int8"):
        ship(model, digits, tmp_path / "no", provenance=Provenance("digits"), targets=["onnx", "onnx-int8"])
    shipment = ship(model, digits, tmp_path / "out", provenance=Provenance("digits"), rounds=1)
    assert [outcome.target for outcome in shipment.outcomes if outcome.holds] == ["onnx", "litert"]
    artifacts = deploy.read_bundle(tmp_path / "out")["artifacts"]
    for target, kind in (("onnx", "uint8"), ("litert", "int8")):
        entry = artifacts[target]
        assert (entry["precision"], entry["variant"]) == ("int8", "quantisation-aware")
        assert set(kernel_types(tmp_path / "out" / entry["file"]).values()) == {kind}
        assert entry["verification"]["argmax_agreement"] >= 0.99
        assert entry["verification"]["accuracy"] > 0.9
