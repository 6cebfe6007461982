import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from keras_distill.deploy.integer_onnx import finish, kernel_types


def on_grid(shape, channel_axis, seed=0):
    """A float32 kernel of 255 values a channel, and the integers that it stands for."""
    generator = np.random.default_rng(seed)
    integers = generator.integers(-127, 128, shape)
    np.moveaxis(integers, channel_axis, -1)[(0,) * (len(shape) - 1)] = 127
    scales = generator.uniform(0.001, 0.02, shape[channel_axis])
    return (integers * np.expand_dims(scales, [a for a in range(len(shape)) if a != channel_axis])).astype(
        "float32"
    ), integers


def rounded_graph(nodes, constants, input_shape, output_shape):
    """A model that rounds its input to 8 bits, then `nodes`, from "rounded" to "output"."""
    constants = {"scale": np.float32(0.02), "zero": np.uint8(128), **constants}
    rounding = [
        helper.make_node("QuantizeLinear", ["inputs", "scale", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["rounded"]),
    ]
    graph = helper.make_graph(
        [*rounding, *nodes],
        "graph",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, output_shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model, inputs):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"inputs": inputs})[0]


def initializers(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_convolution_becomes_its_integers_and_computes_the_same():
    kernel, integers = on_grid((4, 3, 3, 3), 0)
    bias = np.array([0.5, -1.0, 0.0, 2.0], "float32")
    nodes = [
        helper.make_node("Transpose", ["rounded"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "kernel", "bias"], ["output"], name="conv"),
    ]
    model = rounded_graph(nodes, {"kernel": kernel, "bias": bias}, [2, 8, 8, 3], [2, 4, 6, 6])
    inputs = np.random.default_rng(1).uniform(-3, 3, (2, 8, 8, 3)).astype("float32")
    before = run(model, inputs)
    assert finish(model) == ["conv"]
    onnx.checker.check_model(model, full_check=True)
    # A bias may move by half a step of the accumulator, 0.02 · 0.02 / 2.
    np.testing.assert_allclose(run(model, inputs), before, atol=3e-4)
    constants = initializers(model)
    np.testing.assert_array_equal(constants["conv_kernel_integers"].astype(int) - 128, integers)
    np.testing.assert_allclose(
        constants["conv_kernel_bias_integers"], np.round(bias / (0.02 * constants["conv_kernel_scales"].astype(float)))
    )
    assert "kernel" not in constants


def test_dense_layer_and_its_bias_become_one_integer_gemm():
    kernel, integers = on_grid((6, 4), 1)
    bias = np.arange(4, dtype="float32")
    nodes = [
        helper.make_node("MatMul", ["rounded", "kernel"], ["product"], name="dense"),
        helper.make_node("Add", ["product", "bias"], ["output"]),
    ]
    model = rounded_graph(nodes, {"kernel": kernel, "bias": bias}, ["batch", 6], ["batch", 4])
    inputs = np.random.default_rng(1).uniform(-3, 3, (5, 6)).astype("float32")
    before = run(model, inputs)
    assert finish(model) == ["dense"]
    assert [node.op_type for node in model.graph.node][-1] == "Gemm"
    np.testing.assert_allclose(run(model, inputs), before, atol=3e-4)
    np.testing.assert_array_equal(initializers(model)["dense_kernel_integers"].astype(int) - 128, integers)


def test_dense_layer_over_sequences_stays_a_product():
    kernel, _ = on_grid((6, 4), 1)
    nodes = [
        helper.make_node("MatMul", ["rounded", "kernel"], ["product"], name="dense"),
        helper.make_node("Add", ["product", "bias"], ["output"]),
    ]
    model = rounded_graph(nodes, {"kernel": kernel, "bias": np.ones(4, "float32")}, [2, 3, 6], [2, 3, 4])
    inputs = np.random.default_rng(1).uniform(-3, 3, (2, 3, 6)).astype("float32")
    before = run(model, inputs)
    finish(model)
    assert [node.op_type for node in model.graph.node][-2:] == ["MatMul", "Add"]
    np.testing.assert_allclose(run(model, inputs), before, atol=1e-4)


@pytest.mark.parametrize("reason", ["kernel off the grid", "float input"])
def test_float_layers_stay_as_they_are(reason, tmp_path):
    kernel, _ = on_grid((6, 4), 1)
    source = "rounded"
    if reason == "kernel off the grid":
        kernel = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    else:
        source = "sine"
    nodes = [
        helper.make_node("Sin", ["rounded"], ["sine"]),
        helper.make_node("MatMul", [source, "kernel"], ["output"], name="dense"),
    ]
    model = rounded_graph(nodes, {"kernel": kernel}, ["batch", 6], ["batch", 4])
    assert finish(model) == []
    onnx.save(model, tmp_path / "model.onnx")
    assert kernel_types(tmp_path / "model.onnx") == {"dense": "float32"}


def test_channel_of_zeros_stays_zero():
    kernel, _ = on_grid((6, 4), 1)
    kernel[:, 2] = 0.0
    model = rounded_graph(
        [helper.make_node("MatMul", ["rounded", "kernel"], ["output"], name="dense")],
        {"kernel": kernel},
        [1, 6],
        [1, 4],
    )
    finish(model)
    assert run(model, np.ones((1, 6), "float32"))[0, 2] == 0.0


# Activations between integer operations: each graph rounds its output as it does its input, and every convolution must
# run in integers in onnxruntime's own graph.


def conv(name, source, seed, filters=4, channels=4, **attributes):
    """(node, its constants) of a convolution of 3 × 3 on the grid, channels first."""
    kernel, _ = on_grid((filters, channels, 3, 3), 0, seed)
    return helper.make_node("Conv", [source, f"{name}_weights"], [name], name=name, **attributes), {
        f"{name}_weights": kernel
    }


def rounding(source, result, scale="coarse", zero="middle"):
    """Two nodes that round a tensor to 8 bits."""
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [f"{result}_integers"]),
        helper.make_node("DequantizeLinear", [f"{result}_integers", scale, zero], [result]),
    ]


def network(*parts):
    """A model of nodes and (node, constants) pairs, from "rounded" (batch, 4, 8, 8) to "last", which it rounds."""
    nodes, constants = [], {"coarse": np.float32(0.05), "middle": np.uint8(100), "lowest": np.uint8(0)}
    for part in (*parts, *rounding("last", "output")):
        node, own = part if isinstance(part, tuple) else (part, {})
        nodes.append(node)
        constants |= own
    return rounded_graph(nodes, constants, ["batch", 4, 8, 8], ["batch", 4, "height", "width"])


def rectified(**bounds):
    """A convolution, a rectifier whose range goes below zero, another convolution."""
    names = list(bounds)
    kind = "Clip" if bounds else "Relu"
    first, constants = conv("first", "rounded", 1)
    constants |= {name: np.float32(value) for name, value in bounds.items()}
    rectifier = helper.make_node(kind, ["first", *names], ["rectified"])
    return network((first, constants), rectifier, *rounding("rectified", "hidden"), conv("last", "hidden", 2))


def turned_before_it_is_rounded():
    """As a convolution over a sequence is: its one row goes away between the rectifier and the rounding."""
    return network(
        conv("first", "rounded", 1),
        helper.make_node("Relu", ["first"], ["rectified"]),
        helper.make_node("Transpose", ["rectified"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("Transpose", ["turned"], ["again"], perm=[0, 1, 3, 2]),
        *rounding("again", "hidden"),
        conv("last", "hidden", 2),
    )


def padded(value=None):
    pads = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)} | (
        {} if value is None else {"value": np.float32(value)}
    )
    pad = helper.make_node("Pad", ["rounded", *pads], ["padded"])
    # Two readers, or onnxruntime makes the padding the convolution's own.
    return network(
        (pad, pads),
        conv("left", "padded", 1),
        conv("right", "padded", 2),
        *rounding("left", "left_rounded"),
        *rounding("right", "right_rounded"),
        helper.make_node("Add", ["left_rounded", "right_rounded"], ["last"]),
    )


def concatenated(second_zero="middle"):
    return network(
        conv("left", "rounded", 1),
        conv("right", "rounded", 2),
        *rounding("left", "left_rounded"),
        *rounding("right", "right_rounded", zero=second_zero),
        helper.make_node("Concat", ["left_rounded", "right_rounded"], ["both"], axis=1),
        conv("last", "both", 3, channels=8),
    )


def moved():
    """Pooled, cut and turned on the way to the next convolution."""
    starts = {"starts": np.array([1]), "ends": np.array([5]), "axes": np.array([2])}
    return network(
        helper.make_node("MaxPool", ["rounded"], ["pooled"], kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1]),
        (helper.make_node("Slice", ["pooled", *starts], ["cut"]), starts),
        helper.make_node("Transpose", ["cut"], ["turned"], perm=[0, 1, 3, 2]),
        conv("last", "turned", 3),
    )


GRAPHS = {
    "ReLU": rectified,
    "ReLU6": lambda: rectified(low=0.0, high=6.0),
    "Clip below zero": lambda: rectified(low=-1.0, high=2.0),
    "moves before the rounding": turned_before_it_is_rounded,
    "Pad": padded,
    "Pad with a zero": lambda: padded(0.0),
    "Concat": concatenated,
    "moves": moved,
}


@pytest.mark.parametrize("name", GRAPHS)
def test_what_stands_between_integer_convolutions_works_on_integers_and_gives_the_same(name, tmp_path):
    model = GRAPHS[name]()
    inputs = np.random.default_rng(1).uniform(-3, 3, (2, 4, 8, 8)).astype("float32")
    before = run(model, inputs)
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert finish(model) == convolutions
    onnx.checker.check_model(model, full_check=True)
    # float32 sums in another order may fall on the other side of a half: one step of 0.05, in few places.
    difference = np.abs(run(model, inputs) - before)
    assert difference.max() < 0.051
    assert (difference > 0.01).mean() < 0.01
    assert before.std() > 0.5
    onnx.save(model, tmp_path / "model.onnx")
    assert kernel_types(tmp_path / "model.onnx") == dict.fromkeys(convolutions, "uint8")


def test_padding_with_another_value_stays_float():
    model = padded(0.5)
    inputs = np.random.default_rng(1).uniform(-3, 3, (2, 4, 8, 8)).astype("float32")
    before = run(model, inputs)
    finish(model)
    np.testing.assert_allclose(run(model, inputs), before, atol=0.051)
    (pad,) = [node for node in model.graph.node if node.op_type == "Pad"]
    assert pad.input[2] == "value"


def test_tensors_of_two_ranges_are_not_concatenated_as_integers():
    model = concatenated(second_zero="lowest")
    inputs = np.random.default_rng(1).uniform(-3, 3, (2, 4, 8, 8)).astype("float32")
    before = run(model, inputs)
    finish(model)
    np.testing.assert_allclose(run(model, inputs), before, atol=0.051)


def test_kernel_type_is_what_runs_and_not_what_the_file_holds(tmp_path):
    # Nothing rounds the output of the convolution, so onnxruntime multiplies its integer kernel back to float32.
    node, constants = conv("alone", "rounded", 1)
    tanh = helper.make_node("Tanh", ["alone"], ["output"])
    model = rounded_graph([node, tanh], constants, ["batch", 4, 8, 8], ["batch", 4, "height", "width"])
    assert finish(model) == ["alone"]
    assert initializers(model)["alone_kernel_integers"].dtype == np.uint8
    onnx.save(model, tmp_path / "model.onnx")
    assert kernel_types(tmp_path / "model.onnx") == {"alone": "float32"}
