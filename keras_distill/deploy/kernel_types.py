"""In which arithmetic each convolution and dense layer of a file runs: what ships, not what was meant.

A LiteRT file runs as it is written. onnxruntime rewrites a graph when it opens it, and computes in integers only where
it finds the patterns that it knows; so here it opens the file, and its own graph is read.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from keras_distill.deploy.onnx_graph import OnnxGraph

# onnxruntime's operations that have a kernel, and the place of the kernel among their inputs.
_INTEGER = {
    "ConvInteger": 1,
    "DynamicQuantizeLSTM": 1,
    "DynamicQuantizeMatMul": 1,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "QAttention": 1,
    "QGemm": 3,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
}
_FLOAT = ("Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
# What onnxruntime may put between a constant and its reader.
_PASSES = ("DequantizeLinear", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_LITERT = {
    "CONV_2D": 1,
    "CONV_3D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "FULLY_CONNECTED": 1,
    "TRANSPOSE_CONV": 1,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": 2,
}


def kernel_types(path: str | os.PathLike) -> dict[str, str]:
    """The type of each kernel as its runtime computes with it, on this processor.

    Args:
        path: an `.onnx` or `.tflite` file.

    Returns:
        Operation → `"int8"`, `"uint8"`, `"float32"`, …, in the order of the graph. Products of two activations have no
        kernel and are left out.
    """
    if Path(path).suffix == ".tflite":
        return dict(_litert_kernel_types(Path(path).read_bytes()))
    return dict(_onnx_kernel_types(path))


def float_kernels(path: str | os.PathLike) -> list[str]:
    """The operations of a quantised file whose kernels its runtime computes with in float."""
    return [name for name, kind in kernel_types(path).items() if kind.startswith("float")]


def _onnx_kernel_types(path: str | os.PathLike) -> Iterable[tuple[str, str]]:
    import onnx

    own_names = [_name_of(node) for node in _all_nodes(onnx.load(os.fspath(path), load_external_data=False).graph)]
    optimized = _optimized(path)
    graph = OnnxGraph(optimized)
    for node in _all_nodes(optimized.graph):
        is_float = node.op_type in _FLOAT
        place = _INTEGER.get(node.op_type, 1 if is_float else None)
        kernel = _constant(graph, node.input[place]) if place is not None and len(node.input) > place else None
        if kernel is None:
            continue
        # Fused operations are called by one of theirs, with something after it.
        name = max((own for own in own_names if _name_of(node).startswith(own)), key=len, default=_name_of(node))
        is_half = graph.constants[kernel].dtype == "float16"
        yield name, ("float16" if is_half else "float32") if is_float else str(graph.constants[kernel].dtype)


def _optimized(path: str | os.PathLike) -> Any:
    """The graph that onnxruntime makes of a file, an `onnx.ModelProto`."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="keras-distill-optimized-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = os.path.join(folder, "optimized.onnx")
        onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _all_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _all_nodes(attribute.g)


def _name_of(node: Any) -> str:
    return node.name or node.output[0]


def _constant(graph: OnnxGraph, name: str) -> str | None:
    """The constant that a tensor is, or is made of by a change of form alone."""
    while name not in graph.constants:
        node = graph.producers.get(name)
        if node is None or node.op_type not in _PASSES:
            return None
        name = node.input[0]
    return name


def _litert_kernel_types(content: bytes) -> Iterable[tuple[str, str]]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    operators = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    types = {value: name.lower() for name, value in vars(schema.TensorType).items()}
    for subgraph in model.subgraphs:
        for position, operator in enumerate(subgraph.operators):
            code = model.operatorCodes[operator.opcodeIndex]
            name = operators[max(code.builtinCode, code.deprecatedBuiltinCode)]
            if name in _LITERT:
                yield f"{name}_{position}", types[subgraph.tensors[operator.inputs[_LITERT[name]]].type]
