"""The other side of `conversion.py`: one job, one process, started with `python -m keras_distill.deploy.worker`.

It reads a request, writes a reply, and keeps in the reply how far it came, for the case that it never returns.
Every job writes its file aside; the parent renames it once it was checked.
"""

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

# What to do about operations that are known to fail, by what the converters call them.
ARGMAX_REMEDY = "keras.ops.argmax, argmin and one_hot(argmax) emit it: use keras.ops.top_k(x, 1)[1] instead."
REMEDIES = {
    "Bitcast": ARGMAX_REMEDY,
    "BitwiseAnd": ARGMAX_REMEDY,
    "TensorListReserve": "A recurrent layer needs a fixed batch here: pass batch=1.",
    "Cholesky": "Solve it before export, or unroll an iteration of products.",
    "MatrixSolve": "Solve it before export, or unroll an iteration of products.",
    "MatrixTriangularSolve": "Solve it before export, or unroll an iteration of products.",
    "MatrixInverse": "Invert it before export, or unroll an iteration of products.",
    "LowerBound": "keras.ops.searchsorted emits it: count comparisons instead, ops.sum(x[:, None] >= edges, -1).",
    "UpperBound": "keras.ops.searchsorted emits it: count comparisons instead, ops.sum(x[:, None] > edges, -1).",
}
OTHER_REMEDY = "Replace it by one of plain operations, or serve this model in Keras."


class Refusal(Exception):
    """A failure that is understood, its message whole."""


def main(request_path: str, reply_path: str) -> int:
    """Runs the requested job."""
    request = json.loads(Path(request_path).read_text())
    reply = Reply(Path(reply_path), request["layer_names"])
    try:
        result = JOBS[request["job"]](reply, **request["arguments"])
    except Refusal as refusal:
        reply.write(error=str(refusal))
        return 1
    except Exception as error:
        reply.write(error=explain(request["job"], f"{type(error).__name__}: {error}", request["layer_names"]))
        raise
    reply.write(result=result or {})
    return 0


class Reply:
    """What the parent will read, kept up to date."""

    def __init__(self, path: Path, layer_names: list[str]):
        self.path, self.layer_names = path, layer_names
        self.content: dict[str, Any] = {}

    def write(self, **content: Any) -> None:
        """Adds to the reply."""
        self.content |= content
        self.path.write_text(json.dumps(self.content))


# Naming the layer


def layer_of(text: str, layer_names: list[str]) -> str | None:
    """Returns the innermost layer whose name is a part of a path of `text`, such as `model_1/gru_1/while`.

    Example:
        >>> layer_of("StatefulPartitionedCall/net_1/gru_1/while/TensorArrayV2", ["net", "gru"])
        'gru'
    """
    found = None
    for path in re.findall(r"[\w.\-]+(?:/[\w.\-<>:]+)+", text):
        for part in path.split("/"):
            # Keras numbers the name scope of a layer's call: "gru" traces as "gru_1".
            for candidate in (part, re.sub(r"_\d+$", "", part)):
                if candidate in layer_names:
                    found = candidate
                    break
        if found:
            return found
    return found


def explain(job: str, text: str, layer_names: list[str]) -> str:
    """Turns a converter's outcry into one sentence: the layer, the operation, the remedy."""
    operations = re.findall(
        r"'tf\.(\w+)' op|tf\.(\w+) op|op: \[(\w+)|Tensorflow op \[[^\]]*: (\w+)\]|(\w+)\(tf\.\1", text
    )
    names = [name for match in operations for name in match if name]
    known = [name for name in names if name in REMEDIES] or [name for name in REMEDIES if name in text]
    operation = (known or names or [None])[0]
    layer = layer_of(text, layer_names)
    subject = f"the layer {layer!r}" if layer else "every layer"
    if operation:
        remedy = REMEDIES.get(operation, OTHER_REMEDY)
        return f"{subject} must be convertible by {job}; got the operation {operation}. {remedy}"
    summary = " ".join(text.split())[:400]
    return f"{subject} must be convertible by {job}; got {summary}. {OTHER_REMEDY}"


def layers_that_loop(nodes: Any, layer_names: list[str]) -> list[str]:
    """Returns the layers whose graph has a loop: those that quantisers die of."""
    looping = (layer_of(node.name + "/", layer_names) for node in nodes if node.op in ("While", "StatelessWhile"))
    return sorted({layer for layer in looping if layer})


# Jobs


def convert_to_onnx(
    reply: Reply,
    *,
    saved_model: str,
    path: str,
    opset: int,
    input_names: list[str],
    output_names: list[str],
    metadata: dict,
) -> None:
    """SavedModel → ONNX, checked by `onnx.checker`, dimensions and tensors named, metadata inside."""
    reply.write(stage="reading the traced model")
    import onnx
    import tensorflow as tf
    import tf2onnx

    from keras_distill.deploy import integer_onnx

    _teach_tf2onnx()
    logged_errors = _Listener()
    logging.getLogger("tf2onnx").addHandler(logged_errors)
    loaded = tf.saved_model.load(saved_model)
    function = loaded.signatures["serving_default"]
    reply.write(stage="converting the graph to ONNX")
    model, _ = tf2onnx.convert.from_function(
        SimpleNamespace(get_concrete_function=lambda: function), input_signature=(), opset=opset
    )
    reply.write(stage="checking the ONNX graph")
    _refuse_unknown_operations(model, logged_errors.messages, reply.layer_names)
    # A signature's outputs are in the order of their names.
    tensors = [tensor.name for tensor in function.outputs]
    _rename_outputs(model.graph, dict(zip(tensors, sorted(function.structured_outputs), strict=True)))
    _name_batch(model.graph)
    integer_onnx.finish(model)
    del model.graph.value_info[:]  # they name dimensions that were renamed
    model.producer_name = "keras_distill"
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    names = sorted(tensor.name for tensor in model.graph.input), sorted(tensor.name for tensor in model.graph.output)
    if names != (sorted(input_names), sorted(output_names)):
        raise Refusal(
            f"the tensors must be named {input_names} and {output_names}; got {names}. Rename the model's inputs."
        )
    onnx.save(model, path)


def convert_to_litert(
    reply: Reply, *, saved_model: str, path: str, quantization: str | None, calibration: str | None, metadata: dict
) -> None:
    """SavedModel → LiteRT of built-in operations only, so that no device needs the Flex delegate."""
    reply.write(stage="reading the traced model")
    import tensorflow as tf

    function = tf.saved_model.load(saved_model).signatures["serving_default"]
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
    if any(node.op.startswith("FakeQuantWithMinMax") for node in nodes) and quantization != "float16":
        # It was trained with its ranges: there is nothing to calibrate, and no float32 network to be had.
        quantization, calibration = "as trained", None
    if quantization == "int8":
        reply.write(suspects=layers_that_loop(nodes, reply.layer_names))
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model, signature_keys=["serving_default"])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.experimental_enable_resource_variables = True
    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        assert calibration is not None  # checked by the parent
        with np.load(calibration, allow_pickle=False) as arrays:
            feed = {name: arrays[name] for name in arrays.files}
        num_items = len(next(iter(feed.values())))

        def examples() -> Any:
            for item in range(num_items):
                yield {name: array[item : item + 1] for name, array in feed.items()}

        converter.representative_dataset = examples
    reply.write(stage=f"converting the graph to LiteRT ({quantization or 'float32'})")
    content = converter.convert()
    reply.write(stage="checking the LiteRT model")
    content = _with_litert_metadata(content, metadata)
    flex = sorted(set(re.findall(rb"Flex[A-Z]\w+", content)))
    if flex:
        names = ", ".join(name.decode() for name in flex)
        raise Refusal(f"a LiteRT model must hold built-in operations only; got {names}. {OTHER_REMEDY}")
    Path(path).write_bytes(content)


def quantize_onnx(
    reply: Reply, *, source: str, path: str, mode: str, calibration: str | None, operations: list[str] | None
) -> None:
    """ONNX → int8 ONNX: static QDQ per channel with calibrated ranges, or dynamic."""
    reply.write(stage="folding the graph before quantisation")
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)  # advice for people, and this process has no reader
    folded = f"{path}.folded.onnx"
    # Symbolic shape inference wants sympy and fails on attention.
    quant_pre_process(source, folded, skip_symbolic_shape=True)
    graph = onnx.load(folded).graph
    reply.write(stage=f"quantising ({mode})")
    # Weights of 7 bits (`reduce_range`): without int8 dot products, AVX2 adds two 8-bit products in 16 bits, which
    # saturates. That cost 8 x in logit error (0.186 against 0.022) and 4.5 points of a ConvNet's accuracy, and a file
    # that is quantised on one processor may be served on another.
    try:
        if mode == "dynamic":
            quantization.quantize_dynamic(
                folded,
                path,
                weight_type=quantization.QuantType.QInt8,
                reduce_range=True,
                op_types_to_quantize=operations,
            )
        else:
            assert calibration is not None  # checked by the parent
            last = {output.name for output in graph.output}
            # Ranges come from some hundreds of examples; clipping a hidden value is harmless, clipping a logit is not.
            free = sorted({node.op_type for node in graph.node if last & set(node.output)})
            quantization.quantize_static(
                folded,
                path,
                _CalibrationReader(calibration),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType[{"static": "QInt8", "static-uint8": "QUInt8"}[mode]],
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=operations,
                extra_options={"OpTypesToExcludeOutputQuantization": free},
            )
    finally:
        Path(folded).unlink(missing_ok=True)
    reply.write(stage="checking the quantised ONNX graph")
    onnx.checker.check_model(path, full_check=True)


JOBS: dict[str, Callable[..., Any]] = {
    "to_onnx": convert_to_onnx,
    "to_litert": convert_to_litert,
    "quantize_onnx": quantize_onnx,
}


# What the jobs need


class _Listener(logging.Handler):
    """Collects the errors that tf2onnx only logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class _CalibrationReader:
    """Feeds calibration examples to onnxruntime one at a time, as its interface wants."""

    def __init__(self, path: str):
        with np.load(path, allow_pickle=False) as arrays:
            self.feed = {name: arrays[name] for name in arrays.files}
        self.position, self.num_items = 0, len(next(iter(self.feed.values())))

    def get_next(self) -> dict[str, np.ndarray] | None:
        if self.position == self.num_items:
            return None
        item, self.position = self.position, self.position + 1
        return {name: array[item : item + 1] for name, array in self.feed.items()}


def _teach_tf2onnx() -> None:
    """Operations that tf2onnx does not know and that plain ones make up.

    Exact GELU, Keras's default, is written with erfc; softplus and logaddexp with log1p; CELU and SELU with expm1.
    """
    from tf2onnx.handler import tf_op

    def one(ctx: Any, node: Any) -> str:
        element_type = {1: np.float32, 10: np.float16, 11: np.float64}[ctx.get_dtype(node.output[0])]
        return ctx.make_const(f"{node.name}_one", np.array(1, element_type)).output[0]

    def replace(ctx: Any, node: Any, operation: str, operands: list[str]) -> None:
        dtype, shape = ctx.get_dtype(node.output[0]), ctx.get_shape(node.output[0])
        ctx.remove_node(node.name)
        ctx.make_node(operation, operands, name=node.name, outputs=node.output, dtypes=[dtype], shapes=[shape])

    @tf_op("Erfc")
    class Erfc:
        @classmethod
        def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
            replace(ctx, node, "Sub", [one(ctx, node), ctx.make_node("Erf", node.input).output[0]])

    @tf_op("Expm1")
    class Expm1:
        @classmethod
        def version_7(cls, ctx: Any, node: Any, **_: Any) -> None:
            replace(ctx, node, "Sub", [ctx.make_node("Exp", node.input).output[0], one(ctx, node)])

    @tf_op("Log1p")
    class Log1p:
        @classmethod
        def version_7(cls, ctx: Any, node: Any, **_: Any) -> None:
            replace(ctx, node, "Log", [ctx.make_node("Add", [node.input[0], one(ctx, node)]).output[0]])


def _refuse_unknown_operations(model: Any, logged_errors: list[str], layer_names: list[str]) -> None:
    import onnx

    nodes = list(model.graph.node)
    for node in nodes:
        nodes.extend(inner for attribute in node.attribute for inner in attribute.g.node)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for node in nodes:
        if not onnx.defs.has(node.op_type, max_inclusive_version=versions.get(node.domain, 1), domain=node.domain):
            raise Refusal(explain("to_onnx", f"Tensorflow op [{node.name}: {node.op_type}]", layer_names))
    if logged_errors:
        raise Refusal(explain("to_onnx", " ".join(logged_errors), layer_names))


def _rename_outputs(graph: Any, names: dict[str, str]) -> None:
    for node in graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
        node.input[:] = [names.get(name, name) for name in node.input]
    for tensor in graph.output:
        tensor.name = names.get(tensor.name, tensor.name)


def _name_batch(graph: Any) -> None:
    for tensor in (*graph.input, *graph.output):
        for axis, size in enumerate(tensor.type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):
                size.dim_param = "batch" if axis == 0 else f"{tensor.name}_{axis}"


def _with_litert_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    from keras_distill.deploy.metadata import LITERT_ENTRY

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(json.dumps(metadata, ensure_ascii=False).encode(), np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = LITERT_ENTRY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(content) + 1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
