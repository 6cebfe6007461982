"""A LiteRT file in TensorFlow Lite for Microcontrollers (TFLM): what it computes with, and the memory that it takes.

This runs in the worker: TFLM writes its reasons to standard error, and where an arena is far too small it crashes.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras_distill._kit import kit_module

# The built-in operations that TFLM has, by LiteRT's names, as of the package of October 2026. `MicroMutableOpResolver`
# has a method for each, which `method_of` names.
OPERATIONS = {
    "ABS", "ADD", "ADD_N", "ARG_MAX", "ARG_MIN", "ASSIGN_VARIABLE", "AVERAGE_POOL_2D", "BATCH_MATMUL",
    "BATCH_TO_SPACE_ND", "BROADCAST_ARGS", "BROADCAST_TO", "CALL_ONCE", "CAST", "CEIL", "CONCATENATION", "CONV_2D",
    "COS", "CUMSUM", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE", "DEQUANTIZE", "DIV", "DYNAMIC_UPDATE_SLICE", "ELU",
    "EMBEDDING_LOOKUP", "EQUAL", "EXP", "EXPAND_DIMS", "FILL", "FLOOR", "FLOOR_DIV", "FLOOR_MOD",
    "FULLY_CONNECTED", "GATHER", "GATHER_ND", "GREATER", "GREATER_EQUAL", "HARD_SWISH", "IF", "L2_NORMALIZATION",
    "L2_POOL_2D", "LEAKY_RELU", "LESS", "LESS_EQUAL", "LOG", "LOGICAL_AND", "LOGICAL_NOT", "LOGICAL_OR",
    "LOGISTIC", "LOG_SOFTMAX", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "NEG",
    "NOT_EQUAL", "PACK", "PAD", "PADV2", "PRELU", "QUANTIZE", "READ_VARIABLE", "REDUCE_ALL", "REDUCE_MAX",
    "REDUCE_MIN", "RELU", "RELU6", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "ROUND",
    "RSQRT", "SELECT_V2", "SHAPE", "SIN", "SLICE", "SOFTMAX", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH", "SPLIT",
    "SPLIT_V", "SQRT", "SQUARE", "SQUARED_DIFFERENCE", "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "SVDF", "TANH",
    "TRANSPOSE", "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNPACK", "VAR_HANDLE", "WHILE", "ZEROS_LIKE",
}  # fmt: skip
# Where the method is not the operation's name in camel case.
_METHODS = {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
_FLOATS = ("FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16")
_REMEDY = "Replace it by one of plain operations, or ship this model for litert."


def method_of(operation: str) -> str:
    """The method of `MicroMutableOpResolver` that registers an operation.

    Example:
        >>> method_of("DEPTHWISE_CONV_2D"), method_of("RELU6"), method_of("CUMSUM")
        ('AddDepthwiseConv2D', 'AddRelu6', 'AddCumSum')
    """
    return _METHODS.get(operation) or "Add" + "".join(part.title() for part in operation.split("_"))


def facts_of(path: str, layer_of: Callable[[str], str | None]) -> dict[str, Any]:
    """What TFLM says of a LiteRT file, after it has run it once on zeros.

    Args:
        path: the file.
        layer_of: the layer that a tensor's name tells of, if any.

    Returns:
        `operations`: LiteRT's names, once each, ascending; `arena_bytes`, the smallest arena that it runs in;
        `used_bytes`, what it holds of that once it has begun, of which activations share `activation_bytes`; `version`
        of the package.

    Raises:
        ValueError: an operation that TFLM lacks or that is computed in float, or an arena past what is tried here.
    """
    from importlib.metadata import version

    nodes = list(operations_of(path))
    for operation, name, types in nodes:
        where = f"the layer {layer!r}" if (layer := layer_of(name)) else f"the tensor {name.split(';')[0]!r}"
        if operation not in OPERATIONS:
            raise ValueError(f"every operation must be one that TFLM has; got {operation} in {where}. {_REMEDY}")
        # Those two are only the edges of what is computed in float.
        floats = sorted(set(types) & set(_FLOATS)) if operation not in ("DEQUANTIZE", "QUANTIZE") else []
        if floats:
            raise ValueError(
                f"every operation must be computed in int8; got {operation} in {where}, in {floats[0].lower()}: the "
                f"converter has no int8 of it. {_REMEDY}"
            )
    with _heard() as words:
        try:
            printed = _run(path, kit_module().TFLM_ARENA)
        except Exception as error:
            reason = _reason(words(), nodes, layer_of) or f"{type(error).__name__}: {error}."
            raise ValueError(f"TFLM must run the model; got {reason} {_REMEDY}") from None
    total, shared = (_number(word, printed) for word in ("total", "head"))
    return {
        "operations": sorted({operation for operation, *_ in nodes}),
        "arena_bytes": _smallest_arena(path, total),
        "used_bytes": total,
        "activation_bytes": shared,
        "version": version("tflite-micro"),
    }


def shorten_names(path: str, layer_of: Callable[[str], str | None]) -> None:
    """Calls the tensors of a LiteRT file after their layers, and constants nothing: a converter's names take kilobytes.

    Inputs and outputs keep theirs.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    content = Path(path).read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for graph in model.subgraphs:
        written = {place for node in graph.operators for place in node.outputs}
        for place, tensor in enumerate(graph.tensors):
            if place not in {*graph.inputs, *graph.outputs}:
                name = tensor.name.decode(errors="replace")
                tensor.name = (layer_of(name) or name.split(";")[0]).encode() if place in written else b""
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    Path(path).write_bytes(bytes(builder.Output()))


def operations_of(path: str | os.PathLike) -> Iterator[tuple[str, str, Sequence[str]]]:
    """The operations of a LiteRT file in their order: name, the first output's name, the types of all tensors."""
    from ai_edge_litert import schema_py_generated as schema

    def names(enumeration: Any) -> dict[int, str]:
        return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}

    codes, types = names(schema.BuiltinOperator), names(schema.TensorType)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(Path(path).read_bytes(), 0))
    for graph in model.subgraphs:
        for node in graph.operators if graph.operators is not None else ():
            code = model.operatorCodes[node.opcodeIndex]
            name = codes[max(code.builtinCode, code.deprecatedBuiltinCode)]
            places = [place for place in (*node.outputs, *node.inputs) if place >= 0]
            called = graph.tensors[places[0]].name.decode(errors="replace") if places else "none"
            custom = code.customCode.decode(errors="replace") if code.customCode else name
            yield custom, called, [types[graph.tensors[place].type] for place in places]


def _run(path: str, arena_bytes: int) -> str:
    """What TFLM prints of its arena after one call on zeros."""
    import numpy as np
    from tflite_micro import runtime

    content = Path(path).read_bytes()
    # Of a large arena, untouched pages cost nothing.
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena_bytes)
    inputs = runtime.schema_fb.Model.GetRootAs(content, 0).Subgraphs(0).InputsLength()
    for place in range(inputs):
        details = interpreter.get_input_details(place)
        interpreter.set_input(np.zeros(details["shape"], details["dtype"]), place)
    interpreter.invoke()
    with _heard() as words:
        interpreter.print_allocations()
        return words()


def _smallest_arena(path: str, used_bytes: int) -> int:
    """The smallest arena that the file runs in, in bytes: by bisection, each try in a process of its own.

    It is more than what TFLM prints: that is what stays, and while the interpreter plans its memory it takes some more,
    which in small networks is a fifth of the arena.
    """
    low, high = used_bytes - 1, used_bytes
    while not _runs_in(path, high):
        low, high = high, high + max(256, high // 4)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _runs_in(path, middle) else (middle, high)
    return high


def _runs_in(path: str, arena_bytes: int) -> bool:
    """Whether a file runs in an arena of this size; where it is far too small, TFLM does not raise but crashes."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            _run(path, arena_bytes)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@contextmanager
def _heard() -> Iterator[Callable[[], str]]:
    """Yields what was written to standard error inside, by native code too; nothing of it reaches the terminal."""
    place = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)

        def words() -> str:
            held.seek(0)
            return held.read().decode(errors="replace")

        try:
            yield words
        finally:
            os.dup2(place, 2)
            os.close(place)


def _number(word: str, printed: str) -> int:
    found = re.search(rf"Arena allocation {word} (\d+) bytes", printed)
    if found is None:
        raise ValueError(f"TFLM must print its allocations; got {printed[:200]!r}. Install another tflite-micro.")
    return int(found[1])


def _reason(words: str, nodes: Sequence[tuple[str, str, Any]], layer_of: Callable[[str], str | None]) -> str:
    """TFLM's own words about a file that it does not run, with the layer."""
    if re.search("[Ff]ailed to (resize|allocate)|Unable to allocate", words):
        limit = kit_module().TFLM_ARENA
        return f"a model whose arena is more than {limit:,} bytes, which no microcontroller has. Make it smaller."
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    if found := re.search(r"Node (\w+) \(number (\d+)", words):
        name = nodes[int(found[2])][1] if int(found[2]) < len(nodes) else ""
        layer = layer_of(name)
        said = next((line for line in lines if "Node" not in line), "no reason")
        return f"{found[1]} in the layer {layer or name!r}: {said.rstrip('.')}."
    return f"{' / '.join(lines)[:300].rstrip('.')}." if lines else ""
