"""What LiteRT's converter refuses of TensorFlow's graphs, said in operations that it has.

- `x[:, None]` and its like become a slice and an `ExpandDims` for each new axis: LiteRT's slice has none.
- `abs` and `sign` of integers become maxima and minima: LiteRT knows them of floats alone.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")


def rewrite(saved_model: Path) -> None:
    """Rewrites the functions of a SavedModel's graph in place."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = saved_model / "saved_model.pb"
    content = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for meta_graph in content.meta_graphs:
        for function in meta_graph.graph_def.library.function:
            _rewrite_function(function)
    path.write_bytes(content.SerializeToString())


def _rewrite_function(function: Any) -> None:
    nodes = {node.name: node for node in function.node_def}
    added: list[Any] = []
    for node in nodes.values():
        if node.op == "StridedSlice" and _mask(node, "new_axis_mask"):
            added += _without_new_axes(node, nodes)
        elif node.op in ("Abs", "Sign") and node.attr["T"].type in _integers():
            added += _absolute(node) if node.op == "Abs" else _sign(node)
            # The operations call their outputs otherwise.
            _rename(function, f"{node.name}:y:0", f"{node.name}:z:0")
    function.node_def.extend(added)


def _integers() -> tuple[int, ...]:
    import tensorflow as tf

    return tf.int32.as_datatype_enum, tf.int64.as_datatype_enum


def _absolute(node: Any) -> list[Any]:
    """Makes `node`, |x|, the maximum of x and −x; returns the node of −x."""
    negative = _node(f"{node.name}_negative", "Neg", node.attr["T"], list(node.input))
    node.op = "Maximum"
    node.input.insert(1, f"{negative.name}:y:0")
    return [negative]


def _sign(node: Any) -> list[Any]:
    """Makes `node`, the sign of an integer x, the minimum of 1 and max(x, −1); returns the other nodes."""
    import tensorflow as tf

    dtype = tf.as_dtype(node.attr["T"].type).as_numpy_dtype
    one, minus_one = (
        _as_node(f"{node.name}_{name}", np.array(value, dtype)) for name, value in (("one", 1), ("below", -1))
    )
    inputs = [node.input[0], f"{minus_one.name}:output:0", *node.input[1:]]
    larger = _node(f"{node.name}_larger", "Maximum", node.attr["T"], inputs)
    node.op = "Minimum"
    node.input[:] = [f"{larger.name}:z:0", f"{one.name}:output:0"]
    return [one, minus_one, larger]


def _node(name: str, operation: str, kind: Any, inputs: list[str]) -> Any:
    from tensorflow.core.framework import node_def_pb2

    node = node_def_pb2.NodeDef(name=name, op=operation, input=inputs)
    node.attr["T"].CopyFrom(kind)
    return node


def _rename(function: Any, old: str, new: str) -> None:
    for node in function.node_def:
        node.input[:] = [new if name == old else name for name in node.input]
    for name, source in function.ret.items():
        if source == old:
            function.ret[name] = new


def _without_new_axes(node: Any, nodes: Mapping[str, Any]) -> list[Any]:
    """Makes `node`, a slice with new axes, the last `ExpandDims` behind a slice without; returns the other nodes.

    A slice whose bounds are computed stays, and the converter refuses it.
    """
    from tensorflow.core.framework import node_def_pb2

    found = [_constant(nodes.get(name.partition(":")[0])) for name in node.input[1:4]]
    bounds = [bound for bound in found if bound is not None]
    bits = {mask: _mask(node, mask) for mask in _MASKS}
    if len(bounds) < len(found):
        return []
    places = range(len(bounds[0]))
    kept = [place for place in places if not _bit(bits["new_axis_mask"], place)]
    added = []
    controls = [name for name in node.input if name.startswith("^")]
    tensor = node.input[0]
    if kept:
        part = node_def_pb2.NodeDef(name=f"{node.name}_slice", op="StridedSlice", input=[tensor])
        for attribute in ("T", "Index"):
            part.attr[attribute].CopyFrom(node.attr[attribute])
        for mask, value in bits.items():
            new = mask == "new_axis_mask"
            part.attr[mask].i = 0 if new else sum(_bit(value, place) << at for at, place in enumerate(kept))
        for name, bound in zip(("begin", "end", "strides"), bounds, strict=True):
            constant = _as_node(f"{part.name}_{name}", bound[kept])
            part.input.append(f"{constant.name}:output:0")
            added.append(constant)
        part.input.extend(controls)
        added.append(part)
        tensor = f"{part.name}:output:0"
    axes = _new_axes(bits, places)
    for number, axis in enumerate(axes):
        constant = _as_node(f"{node.name}_axis_{number}", np.array(axis, "int32"))
        added.append(constant)
        if number < len(axes) - 1:
            expanded = node_def_pb2.NodeDef(name=f"{node.name}_expanded_{number}", op="ExpandDims")
            added.append(expanded)
        else:
            # It keeps its name, and so those who read it find it.
            expanded = node
            kind = node.attr["T"].type
            node.Clear()
            node.name, node.op = constant.name.removesuffix(f"_axis_{number}"), "ExpandDims"
            node.attr["T"].type = kind
        expanded.attr["T"].type = node.attr["T"].type
        expanded.attr["Tdim"].type = constant.attr["dtype"].type
        expanded.input.extend([tensor, f"{constant.name}:output:0", *(controls if not kept else ())])
        tensor = f"{expanded.name}:output:0"
    return added


def _new_axes(bits: Mapping[str, int], places: Iterable[int]) -> list[int]:
    """Where the new axes are, in the order in which `ExpandDims` makes them.

    Those before an ellipsis count from the front, the first one first; those behind it from the end, the last one
    first.
    """
    places = list(places)
    ellipsis = next((place for place in places if _bit(bits["ellipsis_mask"], place)), len(places))

    def survives(place: int) -> bool:
        # A new axis that is also marked as shrunk is a new axis.
        return bool(_bit(bits["new_axis_mask"], place) or not _bit(bits["shrink_axis_mask"], place))

    new = [place for place in places if _bit(bits["new_axis_mask"], place)]
    front = [sum(map(survives, range(place))) for place in new if place < ellipsis]
    back = [-1 - sum(map(survives, range(place + 1, len(places)))) for place in new if place > ellipsis]
    return [*front, *reversed(back)]


def _mask(node: Any, name: str) -> int:
    # A SavedModel leaves out attributes of the default value, and to ask for one would put an empty one there.
    return node.attr[name].i if name in node.attr else 0


def _bit(mask: int, place: int) -> int:
    return mask >> place & 1


def _constant(node: Any) -> np.ndarray | None:
    import tensorflow as tf

    return tf.make_ndarray(node.attr["value"].tensor) if node is not None and node.op == "Const" else None


def _as_node(name: str, array: np.ndarray) -> Any:
    import tensorflow as tf
    from tensorflow.core.framework import node_def_pb2

    node = node_def_pb2.NodeDef(name=name, op="Const")
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(array))
    node.attr["dtype"].type = node.attr["value"].tensor.dtype
    return node
