"""A quantisation-aware ONNX graph as one that computes in integers.

A student that was trained with fake quantisation converts to a graph whose activations pass through QuantizeLinear
and DequantizeLinear, while its kernels are still float32, though on a grid of 255 values a channel. Here kernels become
the integers that they stand for, and biases the int32 of the accumulators. A runtime computes in integers only where
such pairs stand directly before and after an operation; so what would stand between them, a rectifier or a move, works
on the integers too. Every rewriting is exact: the same integers leave the graph, but for the rounding of a bias.
"""

from typing import Any

import numpy as np

from keras_distill.deploy.kernel_types import kernel_types
from keras_distill.deploy.onnx_graph import OnnxGraph

__all__ = ["finish", "kernel_types"]

_WEIGHTED = ("Conv", "Gemm", "MatMul")
# What moves 8-bit values and leaves them as they are, so that the scale of its input is that of its output.
_MOVES = ("Concat", "Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
# Of a step: what float32 arithmetic loses of a product of a kernel with BatchNorm's factor.
_GRID_TOLERANCE = 0.01


def finish(model: Any) -> list[str]:
    """Lets, in place, everything between 8-bit activations compute in integers; a float model stays as it is.

    Kernels become uint8 with the zero point 128: the int8 integers with their sign bit
    flipped. On x86 processors without dot-product instructions onnxruntime adds two products of a uint8 and
    an int8 in 16 bits, which saturates (on AVX2 it moved a small network's logits by 36 steps); with
    two uint8 it does not, at the same speed.

    Args:
        model: an `onnx.ModelProto`.

    Returns:
        The names of the nodes whose kernels are integer now.
    """
    done = _make_kernels_integer(model)
    _round_before_moves(model)
    _rectify_integers(model)
    _move_integers(model)
    OnnxGraph(model).drop_unused()
    return done


def _make_kernels_integer(model: Any) -> list[str]:
    """Replaces each kernel on an 8-bit grid whose input is 8-bit, and its bias."""
    from onnx import helper

    graph = OnnxGraph(model)
    nodes, done, absorbed = [], [], set()
    for node in model.graph.node:
        if id(node) in absorbed:
            continue
        scale = _scale_of(graph, node.input[0]) if node.op_type in _WEIGHTED else None
        kernel = graph.constants.get(node.input[1]) if node.op_type in _WEIGHTED else None
        grid = _grid(kernel, _channel_axis(node, kernel)) if kernel is not None else None
        if scale is not None and kernel is not None and grid is not None:
            axis, (integers, scales) = _channel_axis(node, kernel), grid
            if node.op_type == "MatMul" and kernel.ndim == 2 and graph.rank(node.input[0]) == 2:
                # Integer matrix products with a bias exist as Gemm alone.
                addition = _bias_addition(graph, node)
                node.op_type = "Gemm"
                if addition is not None:
                    absorbed.add(id(addition))
                    node.input.append(next(name for name in addition.input if name != node.output[0]))
                    node.output[0] = addition.output[0]
            name = f"{node.name or node.output[0]}_kernel"
            nodes.append(
                helper.make_node(
                    "DequantizeLinear",
                    [
                        graph.add(f"{name}_integers", (integers + 128).astype(np.uint8)),
                        graph.add(f"{name}_scales", scales),
                        graph.add(f"{name}_zero_points", np.full(len(scales), 128, np.uint8)),
                    ],
                    [name],
                    name=f"{name}_dequantize",
                    axis=axis,
                )
            )
            node.input[1] = name
            bias = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
            if bias is not None and bias.shape == scales.shape:
                steps = scales.astype(np.float64) * float(scale)
                limit = np.iinfo(np.int32).max
                counts = np.clip(np.round(bias / steps), -limit, limit).astype(np.int32)
                name = f"{name}_bias"
                tensors = [graph.add(f"{name}_integers", counts), graph.add(f"{name}_scales", steps.astype(np.float32))]
                nodes.append(helper.make_node("DequantizeLinear", tensors, [name], name=f"{name}_dequantize", axis=0))
                node.input[2] = name
            done.append(node.name)
        nodes.append(node)
    graph.replace_nodes(nodes)
    return done


def _round_before_moves(model: Any) -> None:
    """Lets a rounding come before a move of float values that nothing else reads, next to what computes them."""
    graph = OnnxGraph(model)
    nodes = list(model.graph.node)
    places = {id(node): place for place, node in enumerate(nodes)}
    for quantize in model.graph.node:
        if quantize.op_type != "QuantizeLinear":
            continue
        while (move := graph.producers.get(quantize.input[0])) is not None:
            # Of Concat there are several inputs, and Pad brings a value of its own.
            is_alone = len(graph.readers(move.output[0])) == 1 and not graph.is_output(move.output[0])
            if move.op_type not in _MOVES or move.op_type in ("Concat", "Pad") or not is_alone:
                break
            result = quantize.output[0]
            quantize.input[0], quantize.output[0] = move.input[0], f"{move.output[0]}_integers"
            move.input[0], move.output[0] = quantize.output[0], result
            graph.producers |= {quantize.output[0]: quantize, result: move}
            # Each takes the other's place, which is after all that it reads.
            first, second = places[id(move)], places[id(quantize)]
            nodes[first], nodes[second] = quantize, move
            places[id(quantize)], places[id(move)] = first, second
    graph.replace_nodes(nodes)


def _rectify_integers(model: Any) -> None:
    """Lets a rectifier before a rounding follow it instead, where onnxruntime would not take it into the rounding.

    Rounding keeps order and 0.0 is exact, so max(x, 0), rounded, is x, rounded, and clipped at the zero point. Only
    where that is the lowest integer does the rounding clip by itself; a range that a rectified and a signed tensor
    share, as those do that are concatenated, goes below it, and a rectifier between a product and its rounding leaves
    the product in float32.
    """
    from onnx import helper

    graph = OnnxGraph(model)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        source = graph.producers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if source is None or source.op_type not in ("Relu", "Clip") or len(node.input) < 3:
            continue
        scale, zero_point = (graph.constants.get(name) for name in node.input[1:3])
        ends = _ends_of_rectifier(graph, source)
        if scale is None or zero_point is None or scale.size != 1 or ends is None:
            continue
        smallest, largest = np.iinfo(zero_point.dtype).min, np.iinfo(zero_point.dtype).max
        # As QuantizeLinear computes: in float32, half to even.
        low, high = (
            float(np.clip(np.round(np.float32(end) / np.float32(scale.item())) + int(zero_point), smallest, largest))
            for end in ends
        )
        if (low, high) == (smallest, largest):
            continue
        result = node.output[0]
        node.input[0], node.output[0] = source.input[0], f"{result}_unrectified"
        bounds = [
            graph.add(f"{result}_{name}", np.array(end, zero_point.dtype))
            for name, end in (("low", low), ("high", high))
        ]
        nodes.append(helper.make_node("Clip", [node.output[0], *bounds], [result], name=f"{node.name}_rectified"))
    graph.replace_nodes(nodes)


def _ends_of_rectifier(graph: OnnxGraph, node: Any) -> tuple[float, float] | None:
    """The smallest and the largest value that a Relu or a Clip lets through; `None` where they are no constants."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    ends = [-np.inf, np.inf]
    for place, name in enumerate(node.input[1:3]):
        if name:
            if name not in graph.constants:
                return None
            ends[place] = float(graph.constants[name])
    return ends[0], ends[1]


def _move_integers(model: Any) -> None:
    """Lets moves work on integers: DequantizeLinear after them, not before.

    onnxruntime passes it through some of them by itself, and not through padding and concatenation: what follows those
    would compute in float32.
    """
    from onnx import helper

    graph = OnnxGraph(model)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type not in _MOVES or len(node.output) != 1:
            continue
        num_tensors = len(node.input) if node.op_type == "Concat" else 1
        sources: list[Any] = [graph.producers.get(name) for name in node.input[:num_tensors]]
        parameters = [_activation_parameters(graph, source) for source in sources]
        if parameters[0] is None or any(each != parameters[0] for each in parameters):
            continue
        first = sources[0]
        if node.op_type == "Pad" and not _pad_with(graph, node, first.input[2]):
            continue
        for place, source in enumerate(sources):
            node.input[place] = source.input[0]
        result = node.output[0]
        node.output[0] = f"{result}_integers"
        dequantize = helper.make_node(
            "DequantizeLinear", [node.output[0], *first.input[1:]], [result], name=f"{node.name or result}_dequantize"
        )
        nodes.append(dequantize)
        graph.producers[result] = dequantize
    graph.replace_nodes(nodes)


def _activation_parameters(graph: OnnxGraph, node: Any) -> tuple[float, int, str] | None:
    """(scale, zero point, its type) of a DequantizeLinear of activations; `None` for any other node."""
    if node is None or node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[0] in graph.constants:
        return None
    scale, zero_point = (graph.constants.get(name) for name in node.input[1:])
    if scale is None or zero_point is None or scale.size != 1:
        return None
    return float(scale.item()), int(zero_point.item()), str(zero_point.dtype)


def _pad_with(graph: OnnxGraph, node: Any, zero_point: str) -> bool:
    """Lets a Pad of zeros pad with the zero point; returns whether it did, or pads with no constant at all."""
    mode = next((attribute.s for attribute in node.attribute if attribute.name == "mode"), b"constant")
    if mode != b"constant":
        return True
    value = node.input[2] if len(node.input) > 2 else ""
    if value and (value not in graph.constants or np.any(graph.constants[value])):
        return False
    others = list(node.input)
    node.input[:] = [*others[:2], zero_point, *others[3:]]
    return True


def _scale_of(graph: OnnxGraph, name: str) -> np.ndarray | None:
    """The scale of an 8-bit tensor that was dequantised; `None` where it is float."""
    node = graph.producers.get(name)
    while node is not None and node.op_type in _MOVES:
        node = graph.producers.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        return None
    return graph.constants.get(node.input[1])


def _bias_addition(graph: OnnxGraph, node: Any) -> Any:
    """The Add of a constant vector that alone reads the output of `node`, or `None`."""
    readers = graph.readers(node.output[0])
    if len(readers) != 1 or readers[0].op_type != "Add" or graph.is_output(node.output[0]):
        return None
    others = [name for name in readers[0].input if name != node.output[0]]
    is_vector = len(others) == 1 and others[0] in graph.constants and graph.constants[others[0]].ndim == 1
    return readers[0] if is_vector else None


def _channel_axis(node: Any, kernel: np.ndarray) -> int:
    """The axis of the kernel along which the output's channels lie."""
    if node.op_type == "Conv":
        return 0
    is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if is_transposed else kernel.ndim - 1


def _grid(kernel: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(integers in −127 … 127, scales) of a kernel whose every channel reaches ±127 steps; `None` if it is none."""
    if kernel.dtype != np.float32 or kernel.ndim < 2:
        return None
    others = tuple(other for other in range(kernel.ndim) if other != axis)
    scales = np.abs(kernel).max(others, keepdims=True) / 127.0
    # A channel of zeros has any scale.
    scales = np.where(scales > 0, scales, 1.0)
    steps = kernel / scales
    integers = np.round(steps)
    if np.abs(steps - integers).max() > _GRID_TOLERANCE:
        return None
    return integers, scales.reshape(-1).astype(np.float32)
