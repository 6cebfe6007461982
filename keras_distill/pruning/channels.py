"""Channel groups: which widths of a model are cut together.

Every channel of every tensor's last axis is a number. Layers that make channels (Dense, Conv) give new numbers, layers
that keep them (BatchNormalization, pooling) hand them on, sums tie them. A group is a set of channels that the same
layers make. What no rule knows keeps the width of all that it touches, and is named. Nothing here changes a model.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error_message
from keras_distill._keras_internals import calls_in_order, class_path, functional_graph, inputs_by_argument
from keras_distill._types import Tensor
from keras_distill.models.layer_roles import is_readable
from keras_distill.models.multiply_adds import multiply_adds_of_weights
from keras_distill.pruning.partition import Partition
from keras_distill.pruning.widths import Rule, Widths


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are cut together.

    Attributes:
        name: the first layer that makes them; with a number, or what they are, where it makes several groups.
        size: how many places it has. A place is what stays or goes as one: a channel, several that are tied (those that
            GroupNormalization takes together), or a head of attention.
        layers: the layers whose weights have these channels.
        channels: the number of each place.
        widths: how many channels each place has, one row for each tensor that a layer makes of them, shape
            `(num_tensors, size)`. Heads of attention are no channels and have no row.
        is_free: whether the group may be cut; it may not where an input, an output or an unknown layer has it.
    """

    name: str
    size: int
    layers: tuple[str, ...]
    channels: np.ndarray
    widths: np.ndarray
    is_free: bool


class ChannelGroups:
    """The channel groups of a model. Printing it shows one line a group.

    Attributes:
        groups: by name, from the inputs to the outputs.
        kept_whole: layers and operations that no rule knows, or of which a part stays: what they touch keeps its width.
        widths: what the rules said, by `id` of the layer.
        inputs_of: the channels of the inputs of each model inside the model, by its `id`.
    """

    def __init__(self, model: keras.Model, rules: Mapping[type | str, Rule]):
        self._model = model
        self._rules = rules
        self._channels = Partition()
        self._makers: list[str] = []
        self._heads: list[np.ndarray] = []
        self._unknown: set[int] = set()
        self.widths: dict[int, tuple[keras.layers.Layer, Widths]] = {}
        self.inputs_of: dict[int, list[np.ndarray]] = {}
        self.kept_whole: list[str] = []
        inputs = [self._new_fixed(tensor, tensor.name) for tensor in functional_graph(model).inputs]
        for output in self._walk(model, inputs):
            self._channels.fix(output)
        self._roots = self._channels.roots()
        self._named = self._named_roots()
        self._group_of = np.zeros(len(self._roots), dtype=int)
        for place, roots in enumerate(self._named.values()):
            self._group_of[roots] = place
        self.groups = {group.name: group for group in self._grouped()}

    def root(self, channels: np.ndarray) -> np.ndarray:
        """One number for all channels that were tied, shape `(len(channels),)`."""
        return self._roots[np.asarray(channels, dtype=int)]

    def shares(self) -> dict[str, tuple[float, float | None]]:
        """Of each group, the share of the model's parameters and multiply-adds in weights that have its channels.

        A kernel that one group makes and another reads counts for both. The second is `None` where the length of an
        axis is unknown.
        """
        parameters = self._model.count_params()
        try:
            costs = multiply_adds_of_weights(self._model)
        except ValueError:
            costs = None
        weights: dict[str, dict[int, Any]] = {name: {} for name in self.groups}
        for layer, widths in self.widths.values():
            for axis in widths.axes:
                weight = layer.weights[axis.weight]
                for name in self._names(axis.channels):
                    weights[name][id(weight)] = weight
        return {
            name: (
                sum(int(np.prod(weight.shape)) for weight in found.values()) / max(parameters, 1),
                None if costs is None else sum(costs.get(place, 0) for place in found) / max(sum(costs.values()), 1),
            )
            for name, found in weights.items()
        }

    def __str__(self) -> str:
        shares, lines = self.shares(), []
        for group in self.groups.values():
            parameters, costs = shares[group.name]
            cost = "" if costs is None else f", {costs:.1%} of the multiply-adds"
            fixed = "" if group.is_free else ", fixed"
            where = f"{parameters:.1%} of the parameters{cost}"
            lines.append(f"{group.name}: {group.size} channels{fixed}; {where} ({', '.join(group.layers)})")
        return "\n".join([*lines, f"kept whole: {', '.join(self.kept_whole) or 'nothing'}"])

    def _new(self, size: int, name: str) -> np.ndarray:
        self._makers.append(name)
        return self._channels.new(size)

    def _new_fixed(self, tensor: Tensor, name: str) -> np.ndarray:
        channels = self._new(_last(tensor), name)
        self._channels.fix(channels)
        return channels

    def _walk(self, model: keras.Model, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Every call of a model's graph, from the channels of its inputs to those of its outputs."""
        graph = functional_graph(model)
        channels = {id(tensor): given for tensor, given in zip(graph.inputs, inputs, strict=True)}
        for node in calls_in_order(model):
            if not isinstance(node.operation, keras.layers.InputLayer):
                found = self._call(node, [channels[id(tensor)] for tensor in node.input_tensors])
                channels |= zip(map(id, node.output_tensors), found, strict=True)
        return [channels[id(tensor)] for tensor in graph.outputs]

    def _call(self, node: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
        operation, outputs = node.operation, list(node.output_tensors)
        if is_readable(operation):
            # A shared model is built once: its inputs have one width, whoever calls it.
            for first, again in zip(self.inputs_of.setdefault(id(operation), inputs), inputs, strict=True):
                self._tie(first, again)
            return self._walk(operation, inputs)
        is_layer = isinstance(operation, keras.layers.Layer)
        channels = {id(tensor): part for tensor, part in zip(node.input_tensors, inputs, strict=True)}
        features = []
        for name, tensor in inputs_by_argument(node):
            # A mask has no channels, be it of integers or floats.
            if is_layer and (tensor.dtype == "bool" or name.endswith("mask")):
                self._channels.fix(channels[id(tensor)])
            else:
                features.append(channels[id(tensor)])
        is_unknown = id(operation) in self._unknown or _has_arrays(node)
        widths = None if is_unknown else self._rule(operation, features, outputs)
        if widths is None:
            return self._keep_whole(operation, inputs, outputs)
        for tied in widths.ties:
            self._channels.tie(*tied)
        self._channels.fix(widths.fixed)
        self._heads.append(widths.heads)
        for kept in widths.kept_whole:
            self._name(f"{operation.name}: {kept}")
        if is_layer:
            self._record(operation, widths)
        return list(widths.output) if isinstance(widths.output, tuple) else [widths.output] * len(outputs)

    def _rule(self, operation: Any, inputs: list[np.ndarray], outputs: list[Tensor]) -> Widths | None:
        # Subclasses may compute anything: only the very class that a rule was written for.
        rule = self._rules.get(type(operation)) or self._rules.get(class_path(operation))
        if rule is None or any(not tensor.shape or tensor.shape[-1] is None for tensor in outputs):
            return None
        if getattr(operation, "data_format", None) == "channels_first":
            return None
        if getattr(operation, "quantization_mode", None) or getattr(operation, "lora_enabled", False):
            return None

        made: list[np.ndarray] = []

        def new(size: int, name: str = "") -> np.ndarray:
            made.append(self._new(size, f"{operation.name}/{name}" if name else operation.name))
            return made[-1]

        widths = rule(operation, inputs, outputs[0], new)
        if widths is not None and _fits(widths, operation, outputs):
            return widths
        for part in made:
            # Channels of nothing: not to be cut.
            self._channels.fix(part)
        return None

    def _record(self, operation: Any, widths: Widths) -> None:
        """What a layer's weights and configuration are; called again, they are what they were."""
        known = self.widths.get(id(operation))
        if known is None:
            self.widths[id(operation)] = (operation, widths)
            return
        merged = known[1].and_again(widths)
        for axis in merged.axes:
            for other in widths.axes:
                if (axis.weight, axis.axis) == (other.weight, other.axis):
                    self._channels.tie(axis.channels, other.channels)
        for entry, channels in widths.config.items():
            self._tie(merged.config[entry], channels)
        self.widths[id(operation)] = (operation, merged)

    def _tie(self, first: np.ndarray, again: np.ndarray) -> None:
        """Widths of two calls, where what is called has one width; on inputs of several widths, that is fixed."""
        if len(first) == len(again):
            self._channels.tie(first, again)
        else:
            self._channels.fix(first)
            self._channels.fix(again)

    def _keep_whole(self, operation: Any, inputs: list[np.ndarray], outputs: list[Tensor]) -> list[np.ndarray]:
        self._unknown.add(id(operation))
        # Called before in a way that a rule knows: what it had then is fixed as well.
        known = self.widths.get(id(operation))
        touched = [] if known is None else [*known[1].config.values(), *(axis.channels for axis in known[1].axes)]
        for part in [*inputs, *touched]:
            self._channels.fix(part)
        self._name(operation.name)
        return [self._new_fixed(tensor, operation.name) for tensor in outputs]

    def _name(self, kept: str) -> None:
        if kept not in self.kept_whole:
            self.kept_whole.append(kept)

    def _named_roots(self) -> dict[str, np.ndarray]:
        """Channels of one root are cut together; roots with the same makers are channels of one group."""
        makers_of: dict[int, list[int]] = defaultdict(list)
        for root, maker in np.unique(np.stack([self._roots, self._channels.spaces()], axis=1), axis=0).tolist():
            makers_of[root].append(maker)
        roots_of: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for root in sorted(makers_of):
            roots_of[tuple(makers_of[root])].append(root)
        named: dict[str, np.ndarray] = {}
        for makers, roots in roots_of.items():
            name, number = self._makers[makers[0]], 1
            while name in named:
                number += 1
                name = f"{self._makers[makers[0]]}/{number}"
            named[name] = np.array(roots)
        return named

    def _grouped(self) -> list[ChannelGroup]:
        is_fixed = np.zeros(len(self._roots), dtype=bool)
        is_fixed[self.root(self._channels.fixed())] = True
        layers: dict[str, dict[str, None]] = {name: {} for name in self._named}
        for layer, widths in self.widths.values():
            for axis in widths.axes:
                for name in self._names(axis.channels):
                    layers[name][layer.name] = None
        widths_of = self._widths()
        return [
            ChannelGroup(name, len(roots), tuple(layers[name]), roots, widths_of[name], not is_fixed[roots].any())
            for name, roots in self._named.items()
        ]

    def _widths(self) -> dict[str, np.ndarray]:
        """Of each group, how many channels of each call of `new` each of its places has."""
        is_counted = np.ones(len(self._roots), dtype=bool)
        is_counted[np.concatenate([np.zeros(0, dtype=int), *self._heads])] = False
        spaces, group_of = self._channels.spaces(), np.where(is_counted, self._group_of[self._roots], -1)
        widths = {}
        for number, (name, roots) in enumerate(self._named.items()):
            channels = np.flatnonzero(group_of == number)
            makers, rows = np.unique(spaces[channels], return_inverse=True)
            widths[name] = np.zeros((len(makers), len(roots)), dtype=int)
            np.add.at(widths[name], (rows, np.searchsorted(roots, self._roots[channels])), 1)
        return widths

    def _names(self, channels: np.ndarray) -> list[str]:
        """The groups that have some of the channels."""
        names = list(self._named)
        return [names[place] for place in np.unique(self._group_of[self.root(channels)])]


def channel_groups(model: keras.Model, *, rules: Mapping[type | str, Rule] | None = None) -> ChannelGroups:
    """Which widths of a model are cut together.

    Args:
        model: a functional or Sequential model; models nested in it are entered.
        rules: rules for layers of your own, by their class; they go before the built-in ones.

    Raises:
        ValueError: for a subclassed or unbuilt model, which has no graph to read.

    Example:
        >>> import keras
        >>> inner = keras.layers.Dense(8, "relu", name="hidden")
        >>> model = keras.Sequential([keras.Input((4,), name="x"), inner, keras.layers.Dense(3, name="logits")])
        >>> print(channel_groups(model))
        x: 4 channels, fixed; 47.8% of the parameters, 57.1% of the multiply-adds (hidden)
        hidden: 8 channels; 95.5% of the parameters, 100.0% of the multiply-adds (hidden, logits)
        logits: 3 channels, fixed; 40.3% of the parameters, 42.9% of the multiply-adds (logits)
        kept whole: nothing
    """
    from keras_distill.pruning.rules import built_in_rules

    if not is_readable(model):
        raise ValueError(
            error_message(
                "pruning needs a built functional or Sequential model",
                f"{type(model).__name__}",
                "Rebuild a subclassed model as keras.Model(inputs, outputs) from its layers.",
            )
        )
    return ChannelGroups(model, built_in_rules(rules or {}))


def _last(tensor: Tensor) -> int:
    return int(tensor.shape[-1] or 0) if len(tensor.shape) else 0


def _has_arrays(node: Any) -> bool:
    """Whether a call was given arrays, which stay as wide as they are: in `x + weights` of `keras.ops`, say."""
    given = keras.tree.flatten([list(node.arguments.args), dict(node.arguments.kwargs)])
    return any(
        not isinstance(value, keras.KerasTensor) and len(np.shape(value)) > 0 and np.shape(value)[-1] != 1
        for value in given
        if hasattr(value, "shape")
    )


def _fits(widths: Widths, operation: Any, outputs: list[Tensor]) -> bool:
    """Whether weights and outputs are as wide as a rule says."""
    weights = getattr(operation, "weights", [])
    found = widths.output if isinstance(widths.output, tuple) else (widths.output,) * len(outputs)
    return all(weights[axis.weight].shape[axis.axis] == len(axis.channels) for axis in widths.axes) and all(
        len(part) == tensor.shape[-1] for part, tensor in zip(found, outputs, strict=True)
    )
