"""The kernels of a quantisation-aware ONNX graph as 8-bit integers, and how many of them there are in a file.

A student that was trained with fake quantisation converts to a graph whose activations pass through QuantizeLinear
and DequantizeLinear, while its kernels are still float32, though on a grid of 255 values a channel. Here they become
the integers that they stand for, and biases the int32 of the accumulators: a runtime then computes in integers.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

_WEIGHTED = ("Conv", "Gemm", "MatMul")
# What moves int8 values and leaves them as they are, so that the scale of its input is that of its output.
_MOVES = ("Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Concat")
# Of a step: what float32 arithmetic loses of a product of a kernel with BatchNorm's factor.
_GRID_TOLERANCE = 0.01


def finish(model: Any) -> list[str]:
    """Replaces, in place, each kernel on an 8-bit grid whose input is 8-bit, and its bias.

    A float model stays as it is. Kernels become uint8 with the zero point 128: the int8 integers with their sign bit
    flipped. On x86 processors without dot-product instructions onnxruntime adds two products of a uint8 and
    an int8 in 16 bits, which saturates (on AVX2 it moved a small network's logits by 36 steps); with
    two uint8 it does not, at the same speed.

    Args:
        model: an `onnx.ModelProto`.

    Returns:
        The names of the nodes whose kernels are integer now.
    """
    from onnx import helper

    graph = _GraphIndex(model)
    nodes, done, absorbed = [], [], set()
    for node in model.graph.node:
        if id(node) in absorbed:
            continue
        scale = graph.scale_of(node.input[0]) if node.op_type in _WEIGHTED else None
        kernel = graph.constants.get(node.input[1]) if node.op_type in _WEIGHTED else None
        grid = _grid(kernel, _channel_axis(node, kernel)) if kernel is not None else None
        if scale is not None and kernel is not None and grid is not None:
            axis, (integers, scales) = _channel_axis(node, kernel), grid
            if node.op_type == "MatMul" and kernel.ndim == 2 and graph.rank(node.input[0]) == 2:
                # Integer matrix products with a bias exist as Gemm alone.
                addition = graph.bias_addition(node)
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
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    graph.drop_unused()
    return done


def kernel_types(path: str | os.PathLike) -> dict[str, str]:
    """The type in which a file holds the kernel of each convolution and dense layer: what ships, not what was meant.

    Args:
        path: an `.onnx` or `.tflite` file.

    Returns:
        Operation → `"int8"`, `"uint8"`, `"float32"`, …, in the order of the graph.
    """
    if Path(path).suffix == ".tflite":
        return dict(_litert_kernel_types(Path(path).read_bytes()))
    import onnx

    return dict(_onnx_kernel_types(onnx.load(os.fspath(path))))


def _onnx_kernel_types(model: Any) -> Iterable[tuple[str, str]]:
    graph = _GraphIndex(model)
    for node in model.graph.node:
        if node.op_type not in _WEIGHTED:
            continue
        source = node.input[1]
        dequantize = graph.producers.get(source)
        if dequantize is not None and dequantize.op_type == "DequantizeLinear":
            source = dequantize.input[0]
        if source in graph.constants:
            yield node.name or node.output[0], str(graph.constants[source].dtype)


def _litert_kernel_types(content: bytes) -> Iterable[tuple[str, str]]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    operators = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    types = {value: name.lower() for name, value in vars(schema.TensorType).items()}
    for subgraph in model.subgraphs:
        for position, operator in enumerate(subgraph.operators):
            code = model.operatorCodes[operator.opcodeIndex]
            name = operators[max(code.builtinCode, code.deprecatedBuiltinCode)]
            if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
                yield f"{name}_{position}", types[subgraph.tensors[operator.inputs[1]].type]


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


class _GraphIndex:
    """Who makes and who reads each tensor of an ONNX graph."""

    def __init__(self, model: Any):
        from onnx import numpy_helper

        self.model, self.graph = model, model.graph
        graph = model.graph
        self._ranks: dict[str, int] = {}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}

    def add(self, name: str, array: np.ndarray) -> str:
        """Adds a constant and returns its name."""
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(array, name))
        self.constants[name] = array
        return name

    def scale_of(self, name: str) -> np.ndarray | None:
        """The scale of an 8-bit tensor that was dequantised; `None` where it is float."""
        node = self.producers.get(name)
        while node is not None and node.op_type in _MOVES:
            node = self.producers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return None
        return self.constants.get(node.input[1])

    def rank(self, name: str) -> int | None:
        """The number of dimensions of a tensor, where the graph says it."""
        import onnx

        if not self._ranks:
            inferred = onnx.shape_inference.infer_shapes(self.model).graph
            values = (*inferred.value_info, *inferred.input, *inferred.output)
            self._ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
        return self._ranks.get(name)

    def bias_addition(self, node: Any) -> Any:
        """The Add of a constant vector that alone reads the output of `node`, or `None`."""
        readers = [reader for reader in self.graph.node if node.output[0] in reader.input]
        if len(readers) != 1 or readers[0].op_type != "Add" or any(o.name == node.output[0] for o in self.graph.output):
            return None
        others = [name for name in readers[0].input if name != node.output[0]]
        is_vector = len(others) == 1 and others[0] in self.constants and self.constants[others[0]].ndim == 1
        return readers[0] if is_vector else None

    def drop_unused(self) -> None:
        """Removes constants that no node reads."""
        nodes = list(self.graph.node)
        for node in nodes:
            # The branches of an If and the body of a Loop read the constants around them.
            nodes.extend(inner for attribute in node.attribute for inner in attribute.g.node)
        used = {name for node in nodes for name in node.input} | {tensor.name for tensor in self.graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
