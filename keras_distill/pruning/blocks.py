"""Blocks that a model can do without: what is added to a shortcut, and transformer layers.

A residual block goes by its sum giving the shortcut alone; a layer that gives the shape that it takes goes by giving
what it takes. Models that are layers of other models are entered.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_distill._checks import did_you_mean, error_message
from keras_distill._keras_internals import (
    all_layers,
    calls_in_order,
    input_structure,
    is_operation,
    output_structure,
    producer,
    run_again,
)
from keras_distill._types import TensorTree
from keras_distill.models.layer_roles import is_readable
from keras_distill.pruning.traversal import check_readable

EVERY_SECOND = "every second"


@dataclass(frozen=True)
class Block:
    """What can be dropped at one place.

    Attributes:
        name: of the layer that adds the branch to its shortcut, or of the layer that goes; behind `"model/"` in a model
            that is a layer.
        layers: what goes with it: the branch's layers, or the layer itself.
        num_parameters: how many weights they have.
        kinds: the classes of the layers and the shape at the end; alike in blocks of one kind.
        place: which of the call's tensors stays.
    """

    name: str
    layers: tuple[str, ...]
    num_parameters: int
    kinds: tuple[Any, ...]
    place: int

    def __str__(self) -> str:
        return f"{self.name}: {self.num_parameters:,} parameters ({', '.join(self.layers)})"


class Blocks(tuple[Block, ...]):
    """Blocks from the inputs to the outputs. Printing them shows one line a block."""

    def __str__(self) -> str:
        return "\n".join(str(block) for block in self) or "no block that can be dropped"


def residual_blocks(model: keras.Model) -> Blocks:
    """The blocks of a model that `prune(…, drop_blocks=…)` can drop.

    A block is a sum of two tensors of one shape of which one, the shortcut, leads to the other through layers, and no
    smaller block lies between; or a layer of several layers with weights, such as KerasHub's `TransformerEncoder`, that
    gives the shape that it takes. Where a projection lies on the shortcut, as where a stage of a ResNet begins, there
    is none.

    Args:
        model: a functional or Sequential model, built.

    Example:
        >>> from keras import layers
        >>> inputs = keras.Input((4,))
        >>> branch = layers.Dense(4, "relu", name="branch")(inputs)
        >>> model = keras.Model(inputs, layers.Dense(2)(layers.Add(name="sum")([inputs, branch])))
        >>> print(residual_blocks(model))
        sum: 20 parameters (branch)
    """
    check_readable(model)
    return Blocks(_blocks(model, ""))


def without_blocks(model: keras.Model, drop: str | Sequence[str]) -> keras.Model:
    """The model without some of its blocks: a new graph over the same layers, whose weights it shares.

    Args:
        model: a functional or Sequential model, built.
        drop: names from `residual_blocks(model)`; or `"every second"`: of blocks that are alike the second, fourth, ….

    Raises:
        ValueError: a block that is not there, or none at all.
    """
    blocks = {block.name: block for block in residual_blocks(model)}
    names = _every_second(blocks.values()) if drop == EVERY_SECOND else [drop] if isinstance(drop, str) else list(drop)
    for name in names:
        if name not in blocks:
            remedy = did_you_mean(name, blocks) or f"There are: {', '.join(blocks) or 'none'}."
            raise ValueError(error_message("drop_blocks must name residual blocks", repr(name), remedy))
    if not names:
        received = f"{EVERY_SECOND!r}, and no two blocks of {model.name!r} are alike"
        remedy = f"There are: {', '.join(blocks) or 'none'}."
        raise ValueError(error_message("drop_blocks must name residual blocks", received, remedy))
    return _redrawn(model, {name: blocks[name].place for name in names}, "", {})


def _every_second(blocks: Any) -> list[str]:
    alike: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for block in blocks:
        alike[block.kinds].append(block.name)
    return [name for names in alike.values() for name in names[1::2]]


def _redrawn(model: keras.Model, dropped: dict[str, int], path: str, drawn: dict[int, keras.Model]) -> keras.Model:
    def call(operation: Any, *args: Any, **kwargs: Any) -> TensorTree:
        name = path + operation.name
        if name in dropped:
            return _tensors((args, kwargs))[dropped[name]]
        if is_readable(operation) and any(each.startswith(f"{name}/") for each in dropped):
            if id(operation) not in drawn:
                drawn[id(operation)] = _redrawn(operation, dropped, f"{name}/", drawn)
            return drawn[id(operation)](*args, **kwargs)
        return operation(*args, **kwargs)

    inputs = input_structure(model)
    outputs = keras.tree.pack_sequence_as(output_structure(model), keras.tree.flatten(run_again(model, inputs, call)))
    return keras.Model(inputs, outputs, name=model.name)


def _blocks(model: keras.Model, path: str) -> Iterator[Block]:
    nodes = [node for node in calls_in_order(model) if not node.is_input]
    counts = Counter(id(node.operation) for node in nodes)
    # What is called twice is at two places of the graph, and its name says neither.
    once = [node for node in nodes if counts[id(node.operation)] == 1]
    found: dict[int, tuple[int, list[Any]]] = {}
    inside: set[int] = set()
    for node in filter(_is_sum, once):
        place, branch = _branch(node)
        # A block around a block is none: dropping it would drop a part of the network.
        if branch and not any(id(each) in found for each in branch):
            found[id(node)] = place, branch
            inside.update(id(each) for each in branch)
    for node in once:
        if id(node) not in inside and _is_transformer_layer(node):
            found[id(node)] = 0, [node]
    for node in nodes:
        if is_readable(node.operation):
            yield from _blocks(node.operation, f"{path}{node.operation.name}/")
        elif id(node) in found:
            place, branch = found[id(node)]
            layers = [each.operation for each in branch]
            num_parameters = sum(layer.count_params() for layer in layers if isinstance(layer, keras.layers.Layer))
            kinds = (*(type(layer) for layer in layers), tuple(node.output_tensors[0].shape))
            names = tuple(layer.name for layer in layers)
            yield Block(path + node.operation.name, names, num_parameters, kinds, place)


def _is_sum(node: Any) -> bool:
    """Whether a call adds two tensors of one shape, as a layer or as `x + y`."""
    is_add = isinstance(node.operation, keras.layers.Add)
    is_add |= is_operation(node.operation) and type(node.operation).__name__ == "Add"
    shapes = [tensor.shape for tensor in _tensors(node.arguments.args)]
    return is_add and len(shapes) == 2 and shapes[0] == shapes[1]


def _branch(node: Any) -> tuple[int, list[Any]]:
    """Which tensor of a sum leads to the other, and the calls between; no calls where neither does."""
    tensors = _tensors(node.arguments.args)
    for place in (0, 1):
        branch = _between(tensors[place], tensors[1 - place])
        # A position's embedding is made from the tensor it is added to, and is no function of its values.
        if any(each.operation.weights for each in branch if isinstance(each.operation, keras.layers.Layer)) and not all(
            "Embedding" in type(each.operation).__name__ for each in branch
        ):
            return place, branch
    return 0, []


def _between(start: Any, end: Any) -> list[Any]:
    """The calls through which `start` leads to `end`, in their order; none where it does not."""
    leads: dict[int, bool] = {id(start): True}
    calls: dict[int, Any] = {}

    # By hand in place of recursion, which deep networks would exhaust.
    stack = [end]
    while stack:
        tensor = stack[-1]
        if id(tensor) in leads:
            stack.pop()
            continue
        node = producer(tensor)[1]
        sources = [] if node.is_input else list(node.input_tensors)
        unknown = [source for source in sources if id(source) not in leads]
        if unknown:
            stack.extend(unknown)
            continue
        leads[id(tensor)] = any(leads[id(source)] for source in sources)
        if leads[id(tensor)]:
            calls[id(node)] = node
        stack.pop()
    return list(calls.values()) if leads[id(end)] else []


def _is_transformer_layer(node: Any) -> bool:
    """Whether a layer of somebody's own, made of several, gives the one shape that it takes first."""
    layer, tensors = node.operation, _tensors(node.arguments.args)
    is_own = isinstance(layer, keras.layers.Layer) and not isinstance(layer, (keras.Model, keras.layers.Wrapper))
    # An attention layer is a part of a transformer layer.
    if not is_own or type(layer).__module__.startswith("keras.") or isinstance(layer, keras.layers.MultiHeadAttention):
        return False
    parts = [part for part in all_layers(layer)[1:] if part.weights and len(all_layers(part)) == 1]
    is_one = bool(tensors) and len(node.output_tensors) == 1
    return is_one and len(parts) > 1 and tuple(node.output_tensors[0].shape) == tuple(tensors[0].shape)


def _tensors(arguments: TensorTree) -> list[Any]:
    return [part for part in keras.tree.flatten(arguments) if isinstance(part, keras.KerasTensor)]
