"""The other side of `conversion.py`: one job, one process, started with `python -m keras_distill.deploy.worker`.

It reads a request, writes a reply, and keeps in the reply how far it came, for the case that it never returns.
Every job writes its file aside; the parent renames it once it was checked.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

# What to do about operations that are known to fail, by what the converters call them.
ARGMAX_REMEDY = "keras.ops.argmax, argmin and one_hot(argmax) emit it: use keras.ops.top_k(x, 1)[1] instead."
REMEDIES = {
    "Bitcast": ARGMAX_REMEDY,
    "BitwiseAnd": ARGMAX_REMEDY,
    "TensorListReserve": "A recurrent layer needs a fixed batch here: pass batch=1.",
    "Complex": "Neither ONNX nor LiteRT has complex numbers as keras.ops.fft needs them: multiply by the matrices of "
    "cosines and sines instead.",
    "Cholesky": "Solve it before export, or unroll an iteration of products.",
    "MatrixSolve": "Solve it before export, or unroll an iteration of products.",
    "MatrixTriangularSolve": "Solve it before export, or unroll an iteration of products.",
    "MatrixInverse": "Invert it before export, or unroll an iteration of products.",
    "LowerBound": "keras.ops.searchsorted emits it: count comparisons instead, ops.sum(x[:, None] >= edges, -1).",
    "UpperBound": "keras.ops.searchsorted emits it: count comparisons instead, ops.sum(x[:, None] > edges, -1).",
}
OTHER_REMEDY = "Replace it by one of plain operations, or serve this model in Keras."


# Shape and dtype of an input.
Spec: TypeAlias = tuple[tuple[int | None, ...], np.dtype]


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


def trace(reply: Reply, **arguments: Any) -> dict[str, Any]:
    """`.keras` file of another backend → SavedModel."""
    reply.write(stage="loading the model on TensorFlow")
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        remedy = "pip install tensorflow beside this backend, or save the model and export it where TensorFlow is."
        raise Refusal(f"an export needs TensorFlow, whose graphs the converters read; got {error}. {remedy}") from None
    from keras_distill.deploy.conversion import ConversionError
    from keras_distill.deploy.on_tensorflow import load_and_save

    try:
        traced = load_and_save(**arguments)
    except ConversionError as error:
        raise Refusal(str(error)) from error
    return {"output_names": traced.output_names, "layer_names": traced.layer_names}


def convert_to_onnx(
    reply: Reply,
    *,
    saved_model: str,
    path: str,
    opset: int,
    input_names: list[str],
    output_names: list[str],
    metadata: dict,
) -> dict[str, list[str]]:
    """SavedModel → ONNX, checked by `onnx.checker`, dimensions and tensors named, metadata inside.

    Returns the layers that were trained for int8 and that onnxruntime computes in float32.
    """
    reply.write(stage="reading the traced model")
    import onnx
    import tensorflow as tf
    import tf2onnx

    from keras_distill.deploy import integer_onnx

    _teach_tf2onnx()
    outcries = _Listener()
    logging.getLogger("tf2onnx").addHandler(outcries)
    _let_functions_be_inlined(Path(saved_model))
    loaded = tf.saved_model.load(saved_model)
    function = loaded.signatures[SIGNATURE]
    _refuse_state(saved_model, function, reply.layer_names)
    reply.write(stage="converting the graph to ONNX")
    # A signature's outputs are in the order of their names.
    inputs, outputs = _own_inputs(function), [tensor.name for tensor in function.outputs]
    graph = tf2onnx.tf_loader.from_function(function, inputs, outputs)
    _hold_captured_tensors(graph, function)
    feed = _random_inputs(function)
    # Not every model takes what is drawn; then nothing can be compared.
    answers = _answers(function, feed) if _takes_what_is_drawn(function) else None
    names = dict(zip([*sorted(inputs), *outputs], [*input_names, *output_names], strict=True))
    for with_transposes in (True, False):
        try:
            model = _as_onnx(graph, inputs, outputs, opset, with_transposes)
            reply.write(stage="checking the ONNX graph")
            _refuse_unknown_operations(model, outcries.messages, reply.layer_names)
            _rename_tensors(model.graph, names)
            _name_batch(model.graph)
            _name_kernels(model.graph)
            integer_onnx.finish(model)
            del model.graph.value_info[:]  # they name dimensions that were renamed
            model.producer_name = "keras_distill"
            for key, value in metadata.items():
                model.metadata_props.add(key=key, value=value)
            onnx.checker.check_model(model, full_check=True)
            found = [tensor.name for tensor in model.graph.input], [tensor.name for tensor in model.graph.output]
            if found != (input_names, output_names):
                raise Refusal(
                    f"the tensors must be named {input_names} and {output_names}; got {found}. {OTHER_REMEDY}"
                )
            onnx.save(model, path)
            reply.write(stage="running the ONNX file")
            _refuse_what_does_not_run(path, function, input_names, reply.layer_names)
            if answers is not None:
                _refuse_other_answers(path, dict(zip(input_names, feed.values(), strict=True)), answers)
            break
        except (Refusal, onnx.shape_inference.InferenceError):
            # tf2onnx moves transpositions about to save some, and does so wrongly where sizes of 1 hide the axes.
            if not with_transposes or outcries.messages:
                raise
    return {"float_layers": _layers_in_float(model.graph, path, reply.layer_names)}


def convert_to_litert(
    reply: Reply,
    *,
    saved_model: str,
    path: str,
    input_names: list[str],
    output_names: list[str],
    quantization: str | None,
    calibration: str | None,
    metadata: dict,
) -> None:
    """SavedModel → LiteRT of built-in operations only, so that no device needs the Flex delegate."""
    reply.write(stage="reading the traced model")
    import tensorflow as tf

    from keras_distill.deploy import litert_graph

    litert_graph.rewrite(Path(saved_model))
    loaded = tf.saved_model.load(saved_model)
    function = loaded.signatures[SIGNATURE]
    nodes = _all_nodes(function)
    is_whole = quantization == "int8-io"
    if any(node.op.startswith("FakeQuantWithMinMax") for node in nodes) and quantization != "float16":
        # It was trained with its ranges: there is nothing to calibrate, and no float32 network to be had.
        quantization, calibration = "as trained", None
    if quantization in ("int8", "int8-io"):
        reply.write(suspects=layers_that_loop(nodes, reply.layer_names))
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model, signature_keys=[SIGNATURE])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.experimental_enable_resource_variables = True
    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if is_whole:
        converter.inference_input_type = converter.inference_output_type = tf.int8
    if quantization in ("int8", "int8-io"):
        assert calibration is not None  # checked by the parent
        numbered = {name: f"input_{place:03}" for place, name in enumerate(input_names)}
        tensors = [function.graph.get_tensor_by_name(name) for name in sorted(_own_inputs(function))]
        specs = {
            name: (tuple(tensor.shape), np.dtype(tensor.dtype.as_numpy_dtype))
            for name, tensor in zip(input_names, tensors, strict=True)
        }
        batches = list(calibration_batches(calibration, specs))
        converter.representative_dataset = lambda: (
            {numbered[name]: array for name, array in batch.items()} for batch in batches
        )
    reply.write(stage=f"converting the graph to LiteRT ({quantization or 'float32'})")
    content = converter.convert()
    reply.write(stage="checking the LiteRT model")
    content = _named_litert(content, input_names, output_names, metadata)
    flex = sorted(set(re.findall(rb"Flex[A-Z]\w+", content)))
    if flex:
        names = ", ".join(name.decode() for name in flex)
        raise Refusal(f"a LiteRT model must hold built-in operations only; got {names}. {OTHER_REMEDY}")
    Path(path).write_bytes(content)
    reply.write(stage="running the LiteRT file")
    _refuse_what_does_not_run(path, function, input_names, reply.layer_names)


def quantize_onnx(
    reply: Reply, *, source: str, path: str, mode: str, calibration: str | None, operations: list[str] | None
) -> dict[str, list[str]]:
    """ONNX → int8 ONNX: static QDQ per channel with calibrated ranges, or dynamic.

    Returns the operations that were to be quantised and that onnxruntime computes in float32.
    """
    reply.write(stage="folding the graph before quantisation")
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from keras_distill.deploy.kernel_types import float_kernels

    logging.getLogger().setLevel(logging.ERROR)  # advice for people, and this process has no reader
    folded = f"{path}.folded.onnx"
    # Symbolic shape inference wants sympy and fails on attention.
    quant_pre_process(source, folded, skip_symbolic_shape=True)
    graph = onnx.load(folded).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [tensor for tensor in graph.input if tensor.name not in weights]
    specs = {tensor.name: _spec_of_onnx(tensor.type.tensor_type) for tensor in inputs}
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
            # Every operation of such a type is freed, or none. A Gemm computes in integers all the same; a convolution
            # does so only where its output is rounded.
            free = sorted({node.op_type for node in graph.node if last & set(node.output)} - {"Conv"})
            quantization.quantize_static(
                folded,
                path,
                _CalibrationReader(calibration_batches(calibration, specs)),
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
    kinds = {node.name: node.op_type for node in onnx.load(path).graph.node}
    wanted = [name for name in float_kernels(path) if operations is None or kinds.get(name) in operations]
    return {"float_layers": [name.removeprefix("StatefulPartitionedCall/") for name in wanted]}


def run_on_tflm(reply: Reply, *, path: str) -> dict[str, Any]:
    """What the interpreter for microcontrollers says of a LiteRT file, whose tensors get short names."""
    reply.write(stage="running the file on TFLM")
    from keras_distill.deploy.micro import facts_of, shorten_names

    def own_layer_of(name: str) -> str | None:
        return layer_of(f"{name}/", reply.layer_names)

    try:
        facts = facts_of(path, own_layer_of)
    except ValueError as error:
        raise Refusal(str(error)) from None
    shorten_names(path, own_layer_of)
    return facts


JOBS: dict[str, Callable[..., Any]] = {
    "trace": trace,
    "to_onnx": convert_to_onnx,
    "to_litert": convert_to_litert,
    "quantize_onnx": quantize_onnx,
    "run_on_tflm": run_on_tflm,
}


# What the jobs need


class _Listener(logging.Handler):
    """Collects the errors that tf2onnx only logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _spec_of_onnx(tensor_type: Any) -> Spec:
    import onnx

    shape = tuple(size.dim_value or None for size in tensor_type.shape.dim)
    return shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))


def calibration_batches(path: str, specs: Mapping[str, Spec]) -> Iterator[dict[str, np.ndarray]]:
    """Calibration examples, one at a time or, for a model that takes no other number, so many.

    Args:
        path: the file that `save_calibration` wrote.
        specs: shape, the batch's axis first, and dtype of each input by its name.
    """
    from keras_distill._checks import cast_exactly

    with np.load(path, allow_pickle=False) as arrays:
        feed = {name.removeprefix("input/"): arrays[name] for name in arrays.files}
    names = sorted(specs)
    if set(feed) == {""} and len(names) == 1:
        # An array without a name is of the only input.
        feed = {names[0]: feed[""]}
    if set(feed) != set(names):
        received = "one array without a name" if set(feed) == {""} else sorted(feed)
        raise Refusal(f"calibration must be of the inputs {names}; got {received}. Use these names.")
    for name, (shape, dtype) in specs.items():
        try:
            feed[name] = cast_exactly(f"calibration[{name!r}]", feed[name], dtype)
        except ValueError as error:
            raise Refusal(str(error)) from None
        found = feed[name].shape
        if len(found) != len(shape) or any(a not in (None, b) for a, b in zip(shape[1:], found[1:], strict=True)):
            wanted = ("examples", *shape[1:])
            raise Refusal(f"calibration[{name!r}] must have shape {wanted}; got {found}. Give what the model takes.")
    size, num_items = specs[names[0]][0][0] or 1, len(feed[names[0]])
    for start in range(0, num_items, size):
        places = np.minimum(np.arange(start, start + size), num_items - 1)
        yield {name: array[places] for name, array in feed.items()}


class _CalibrationReader:
    """Feeds calibration examples to onnxruntime, as its interface wants."""

    def __init__(self, batches: Iterator[dict[str, np.ndarray]]):
        self.batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


# TensorFlow's graphs


SIGNATURE = "serving_default"


def _all_nodes(function: Any) -> list[Any]:
    graph = function.graph.as_graph_def()
    return [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]


def _own_inputs(function: Any) -> list[str]:
    """The names of a function's inputs, without those for the tensors and variables that it has captured."""
    num_own = len(function.inputs) - len(function.captured_inputs)
    return [tensor.name for tensor in function.inputs[:num_own]]


def _let_functions_be_inlined(saved_model: Path) -> None:
    """Takes off what keeps TensorFlow from inlining a function: tf2onnx knows operations alone.

    Keras compiles grouped convolutions with XLA on their own (`_XlaMustCompile`), and models of `tf.function` may do
    the same; in an ONNX file there is no XLA.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    path = saved_model / "saved_model.pb"
    content = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for meta_graph in content.meta_graphs:
        graph = meta_graph.graph_def
        functions = graph.library.function
        for holder in (*functions, *graph.node, *(node for function in functions for node in function.node_def)):
            for attribute in ("_XlaMustCompile", "_noinline"):
                holder.attr.pop(attribute, None)
    path.write_bytes(content.SerializeToString())


def _hold_captured_tensors(graph: Any, function: Any) -> None:
    """Puts the tensors that a function has captured into its frozen graph, as constants in place of inputs.

    A layer that holds a tensor made outside of its call, such as position ids, gives the graph an input for it.
    """
    import tensorflow as tf

    num_own = len(function.inputs) - len(function.captured_inputs)
    values = {
        placeholder.name.partition(":")[0]: value
        for placeholder, value in zip(function.inputs[num_own:], function.captured_inputs, strict=True)
        if value.dtype != tf.resource
    }
    for node in graph.node:
        if node.op == "Placeholder" and node.name in values:
            value = values[node.name]
            node.op = "Const"
            node.attr.clear()
            node.attr["dtype"].type = value.dtype.as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value.numpy()))


def _refuse_state(saved_model: str, function: Any, layer_names: list[str]) -> None:
    """Raises where the model's answer depends on its earlier calls: an ONNX file would answer as at the first one."""
    import tensorflow as tf

    writes = [node for node in _all_nodes(function) if re.fullmatch(r"Assign\w*VariableOp|Resource\w+", node.op)]
    if not writes:
        return
    # That a variable is written says nothing yet: BatchNorm's statistics in training mode, for one, are never read.
    # A copy answers, whose variables nobody freezes afterwards.
    try:
        copy = tf.saved_model.load(saved_model)
        answer, feed = copy.signatures[SIGNATURE], _random_inputs(function)
        first, second = answer(**feed), answer(**feed)
        is_steady = all(np.allclose(first[name], second[name], rtol=1e-5, atol=1e-6, equal_nan=True) for name in first)
    except Exception:
        # An input that nobody can guess. What can't be shown to be steady is not.
        is_steady = False
    if not is_steady:
        layer = next(filter(None, (layer_of(node.name + "/", layer_names) for node in writes)), None)
        raise Refusal(
            "every layer of an ONNX file must give the same answer again at the next call; got "
            f"{repr(layer) if layer else 'one'}, which keeps a state between calls, its own or that of random numbers. "
            "Let the model take the state as an input and give the new one as an output (return_state=True), or use "
            "to_litert, whose files keep it."
        )


def _random_inputs(function: Any) -> dict[str, np.ndarray]:
    """Inputs that nearly any model takes, by the numbered names: small floats, and zeros for integers."""
    generator = np.random.default_rng(0)
    feed = {}
    for name in _own_inputs(function):
        tensor = function.graph.get_tensor_by_name(name)
        guesses = [2, *[24] * (len(tensor.shape) - 1)]
        shape = [size or guess for size, guess in zip(tensor.shape, guesses, strict=True)]
        values = generator.normal(size=shape) if tensor.dtype.is_floating else np.zeros(shape)
        feed[name.partition(":")[0]] = values.astype(tensor.dtype.as_numpy_dtype)
    return feed


def _takes_what_is_drawn(function: Any) -> bool:
    """Whether `_random_inputs` are of the model's sizes: of one that is open and not the batch's nobody knows."""
    return all(None not in tuple(function.graph.get_tensor_by_name(name).shape)[1:] for name in _own_inputs(function))


def _refuse_what_does_not_run(path: str, function: Any, input_names: list[str], layer_names: list[str]) -> None:
    """Raises where a file cannot be opened and called once in its runtime: converters write such files, too."""
    from keras_distill._kit import kit_module

    try:
        artifact = kit_module().open_artifact(path)
        if _takes_what_is_drawn(function):
            artifact.step(dict(zip(input_names, _random_inputs(function).values(), strict=True)))()
    except Exception as error:
        job = "to_onnx" if path.endswith(".onnx") else "to_litert"
        raise Refusal(explain(job, f"{type(error).__name__}: {error}", layer_names)) from None


# ONNX


def _as_onnx(graph: Any, inputs: list[str], outputs: list[str], opset: int, with_transposes: bool) -> Any:
    """A frozen graph as an `onnx.ModelProto`; `with_transposes` lets tf2onnx save transpositions."""
    import tensorflow as tf
    from tf2onnx import optimizer, tf_loader, tfonnx

    optimizers = optimizer._get_optimizers().copy()
    if not with_transposes:
        del optimizers["optimize_transpose"]
    with tf.device("/cpu:0"), tf.Graph().as_default():
        tf.import_graph_def(graph, name="")
        graph = tf_loader.tf_optimize(inputs, outputs, graph)
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph, name="")
        converted = tfonnx.process_tf_graph(
            imported, continue_on_error=True, opset=opset, input_names=inputs, output_names=outputs
        )
        return optimizer.optimize_graph(converted, optimizers=optimizers).make_model("keras_distill")


def _answers(function: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """What a function answers to `feed`, in the order of its outputs; `None` where it cannot or may round by itself."""
    if any(node.op.startswith("FakeQuantWithMinMax") for node in _all_nodes(function)):
        return None
    try:
        answers = function(**feed)
    except Exception:
        # Zeros and noise are not what every model takes.
        return None
    return [np.asarray(answers[name], "float64") for name in sorted(answers)]


def _refuse_other_answers(path: str, feed: dict[str, np.ndarray], answers: list[np.ndarray]) -> None:
    """Raises where a file's outputs are further from the model's than rounding is: 1 % of how much they vary."""
    from keras_distill._kit import kit_module

    artifact = kit_module().open_artifact(path)
    found = artifact.run(feed)
    for name, expected in zip(artifact.output_names, answers, strict=True):
        given = np.asarray(found[name], "float64")
        if not np.isfinite(expected).all():
            continue
        scale = max(float(expected.std()), 1e-3 * float(np.abs(expected).max(initial=0.0)), 1e-6)
        distance = float(np.sqrt(np.mean(np.square(given - expected)))) if given.shape == expected.shape else np.inf
        if not distance <= 0.01 * scale:
            raise Refusal(
                f"the ONNX file must answer as the model does; got {name!r} {distance:.2g} away from it, where it "
                f"varies by {scale:.2g}: the converter is mistaken. {OTHER_REMEDY}"
            )


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


def _rename_tensors(graph: Any, names: dict[str, str]) -> None:
    """Renames tensors everywhere in `graph`, and those that had one of the new names out of their way."""
    graphs = [graph]
    for each in graphs:  # grows: the branches of an If, the body of a Loop
        graphs += [attribute.g for node in each.node for attribute in node.attribute if attribute.HasField("g")]
    lists = [names_of for each in graphs for node in each.node for names_of in (node.input, node.output)]
    tensors = [tensor for each in graphs for tensor in (*each.input, *each.output, *each.initializer, *each.value_info)]
    taken = {name for names_of in lists for name in names_of} | {tensor.name for tensor in tensors}
    moves = dict(names)
    for name in sorted(taken & set(names.values()) - set(names)):
        number = 0
        while (moved := f"{name}_{number}") in taken or moved in names.values():
            number += 1
        moves[name] = moved
        taken.add(moved)
    for names_of in lists:
        names_of[:] = [moves.get(name, name) for name in names_of]
    for tensor in tensors:
        tensor.name = moves.get(tensor.name, tensor.name)


def _name_kernels(graph: Any) -> None:
    """Calls what tf2onnx has made of several operations after their layer again, where an input tells it."""
    for node in graph.node:
        # The first input of a convolution is the layer before it; a recurrent layer has turned its own.
        inputs = {"Conv": node.input[1:], "Gemm": node.input[1:], "MatMul": node.input[1:], "LSTM": node.input}
        scopes = [name.rpartition("/")[0] for name in inputs.get(node.op_type, ()) if "/" in name]
        if scopes and "/" not in node.name:
            node.name = f"{scopes[-1]}/{node.name}"


def _layers_in_float(graph: Any, path: str, layer_names: list[str]) -> list[str]:
    """The layers of a quantisation-aware graph, saved at `path`, that onnxruntime computes in float32 all the same."""
    from keras_distill.deploy.kernel_types import float_kernels

    quantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    kernels = {node.name for node in graph.node if len(node.input) > 1 and node.input[1] in quantized}
    if not kernels:
        return []
    return [layer_of(name + "/", layer_names) or name for name in float_kernels(path) if name in kernels]


def _name_batch(graph: Any) -> None:
    for tensor in (*graph.input, *graph.output):
        for axis, size in enumerate(tensor.type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):
                size.dim_param = "batch" if axis == 0 else f"{tensor.name}_{axis}"


# LiteRT


def _named_litert(content: bytes, input_names: list[str], output_names: list[str], metadata: dict[str, str]) -> bytes:
    """A LiteRT file whose tensors have the model's names and order, with `metadata` inside."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    from keras_distill.deploy.metadata import LITERT_ENTRY

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    (signature,) = model.signatureDefs
    subgraph = model.subgraphs[signature.subgraphIndex]
    for kind, names in (("inputs", input_names), ("outputs", output_names)):
        # The numbers in their names are the model's order.
        ends = sorted(getattr(signature, kind), key=lambda end: end.name)
        for end, name in zip(ends, names, strict=True):
            end.name = subgraph.tensors[end.tensorIndex].name = name.encode()
        setattr(signature, kind, ends)
        setattr(subgraph, kind, np.array([end.tensorIndex for end in ends], np.int32))
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
