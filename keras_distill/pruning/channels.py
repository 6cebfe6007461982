"""Channel groups: which widths of a model are cut together.

Every channel of every tensor's last axis is a number. Layers that make channels (Dense, Conv) give new numbers, layers
that keep them (BatchNormalization, pooling) hand them on, sums unite them. A group is a set of channels that the same
layers make. What no rule knows keeps the width of all that it touches, and is named. Nothing here changes a model.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_distill._checks import error_message
from keras_distill._keras_internals import calls_in_order
from keras_distill._types import Tensor
from keras_distill.models.layer_roles import is_readable


@dataclass(frozen=True)
class Axis:
    """The channels along one axis of one weight.

    Attributes:
        weight: the weight's place in `layer.weights`.
        axis: the axis of that weight.
        channels: the number of each channel along it.
        role: `"makes"` them, `"reads"` them, or `"keeps"` them (a scale, a statistic).
    """

    weight: int
    axis: int
    channels: np.ndarray
    role: str


@dataclass(frozen=True)
class Widths:
    """What a rule says of a layer.

    Attributes:
        output: the channels of the output's last axis.
        axes: the channels along the axes of its weights.
        config: the entries of its configuration that are a width, with the channels that they count.
    """

    output: np.ndarray
    axes: tuple[Axis, ...] = ()
    config: Mapping[str, np.ndarray] = field(default_factory=dict)


# From a layer, the channels of its inputs, its symbolic output and a function that gives new channels, to its widths;
# `None` where the rule does not know this layer.
Rule: TypeAlias = Callable[[Any, list[np.ndarray], Tensor, Callable[[int], np.ndarray]], Widths | None]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are cut together.

    Attributes:
        name: the first layer that makes them; with a number where it makes several groups.
        size: how many channels it has.
        layers: the layers whose weights have these channels.
        channels: the number of each.
        is_free: whether the group may be cut; it may not where an input, an output or an unknown layer has it.
    """

    name: str
    size: int
    layers: tuple[str, ...]
    channels: np.ndarray
    is_free: bool


class ChannelGroups:
    """The channel groups of a model. Printing it shows one line a group.

    Attributes:
        groups: by name, from the inputs to the outputs.
        kept_whole: layers and operations that no rule knows: what they touch keeps its width.
        widths: what the rules said, by `id` of the layer.
    """

    def __init__(self, model: keras.Model, rules: Mapping[type, Rule]):
        self._rules = rules
        self._parents: list[int] = []
        self._spaces: list[str] = []
        self._fixed: set[int] = set()
        self._inputs_of: dict[int, list[np.ndarray]] = {}
        self._outputs_of: dict[int, list[np.ndarray]] = {}
        self.widths: dict[int, tuple[keras.layers.Layer, Widths]] = {}
        self.kept_whole: list[str] = []
        self._walk(model)
        self.groups = {group.name: group for group in self._grouped()}

    def root(self, channels: np.ndarray) -> np.ndarray:
        """One number for all channels that were united."""
        return np.array([self._find(int(channel)) for channel in channels], dtype=int)

    def __str__(self) -> str:
        lines = [
            f"{group.name}: {group.size} channels{'' if group.is_free else ', fixed'} ({', '.join(group.layers)})"
            for group in self.groups.values()
        ]
        return "\n".join([*lines, f"kept whole: {', '.join(self.kept_whole) or 'nothing'}"])

    def _find(self, channel: int) -> int:
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel

    def _unite(self, first: np.ndarray, second: np.ndarray) -> None:
        for one, other in zip(first, second, strict=True):
            self._parents[self._find(int(other))] = self._find(int(one))

    def _new(self, size: int, name: str) -> np.ndarray:
        start = len(self._parents)
        self._parents.extend(range(start, start + size))
        self._spaces.extend([name] * size)
        return np.arange(start, start + size)

    def _fix(self, channels: np.ndarray) -> None:
        self._fixed.update(int(channel) for channel in channels)

    def _new_fixed(self, tensor: Tensor, name: str) -> np.ndarray:
        channels = self._new(_last(tensor), name)
        self._fix(channels)
        return channels

    def _walk(self, model: keras.Model) -> None:
        """Every call of a model's graph; what goes in and comes out keeps its width."""
        channels: dict[int, np.ndarray] = {}
        for node in calls_in_order(model):
            operation, outputs = node.operation, list(node.output_tensors)
            inputs = [channels[id(tensor)] for tensor in node.input_tensors]
            for tensor, found in zip(outputs, self._call(operation, inputs, outputs), strict=True):
                channels[id(tensor)] = found
        for tensor in model.outputs:
            self._fix(channels[id(tensor)])

    def _call(self, operation: Any, inputs: list[np.ndarray], outputs: list[Tensor]) -> list[np.ndarray]:
        if isinstance(operation, keras.layers.InputLayer):
            return [self._new_fixed(tensor, operation.name) for tensor in outputs]
        known = self._inputs_of.get(id(operation))
        is_same = known is not None and [len(part) for part in known] == [len(part) for part in inputs]
        if is_same and self._outputs_of[id(operation)]:
            # A shared layer: its weights have one width, whoever calls it.
            for first, again in zip(known or [], inputs, strict=True):
                self._unite(first, again)
            return self._outputs_of[id(operation)]
        is_nested = isinstance(operation, keras.Model)
        is_first = known is None
        if is_nested and is_first and is_readable(operation):
            self._walk(operation)
        widths = self._widths(operation, inputs, outputs) if is_first and not is_nested else None
        if is_first:
            self._inputs_of[id(operation)] = inputs
            self._outputs_of[id(operation)] = []
        if widths is not None:
            self._outputs_of[id(operation)] = [widths.output]
            if isinstance(operation, keras.layers.Layer):
                self.widths[id(operation)] = (operation, widths)
            return [widths.output]
        if id(operation) in self.widths:
            # Called again on another shape: what it had on the first call is fixed as well.
            for axis in self.widths[id(operation)][1].axes:
                self._fix(axis.channels)
        for part in inputs:
            self._fix(part)
        if operation.name not in self.kept_whole:
            self.kept_whole.append(operation.name)
        return [self._new_fixed(tensor, operation.name) for tensor in outputs]

    def _widths(self, operation: Any, inputs: list[np.ndarray], outputs: list[Tensor]) -> Widths | None:
        # Subclasses may compute anything: only the very class that a rule was written for.
        rule = self._rules.get(type(operation))
        if rule is None or len(outputs) != 1 or not outputs[0].shape or outputs[0].shape[-1] is None:
            return None
        if getattr(operation, "data_format", None) == "channels_first":
            return None
        if getattr(operation, "quantization_mode", None) or getattr(operation, "lora_enabled", False):
            return None
        widths = rule(operation, inputs, outputs[0], lambda size: self._new(size, operation.name))
        if widths is None:
            return None
        if len(inputs) > 1 and not isinstance(operation, keras.layers.Concatenate):
            self._join(inputs, widths.output)
        weights = getattr(operation, "weights", [])
        if any(weights[axis.weight].shape[axis.axis] != len(axis.channels) for axis in widths.axes):
            return None
        return widths if len(widths.output) == outputs[0].shape[-1] else None

    def _join(self, inputs: list[np.ndarray], output: np.ndarray) -> None:
        """Element by element: channel i of the one stands beside channel i of the other."""
        for part in inputs:
            if len(part) == len(output):
                self._unite(output, part)
            else:
                self._fix(part)

    def _grouped(self) -> list[ChannelGroup]:
        members: dict[int, list[int]] = defaultdict(list)
        for channel in range(len(self._parents)):
            members[self._find(channel)].append(channel)
        fixed = {self._find(channel) for channel in self._fixed}
        by_makers: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for root, channels in members.items():
            by_makers[tuple(dict.fromkeys(self._spaces[channel] for channel in channels))].append(root)
        layers_of: dict[int, dict[str, None]] = defaultdict(dict)
        for layer, widths in self.widths.values():
            for axis in widths.axes:
                for root in self.root(axis.channels):
                    layers_of[int(root)][layer.name] = None
        groups, names = [], set()
        for makers, roots in by_makers.items():
            name, number = makers[0], 1
            while name in names:
                number += 1
                name = f"{makers[0]}/{number}"
            names.add(name)
            layers = tuple(dict.fromkeys(name for root in roots for name in layers_of[root]))
            groups.append(ChannelGroup(name, len(roots), layers, np.array(roots), not fixed.intersection(roots)))
        return groups


def channel_groups(model: keras.Model, *, rules: Mapping[type, Rule] | None = None) -> ChannelGroups:
    """Which widths of a model are cut together.

    Args:
        model: a functional or Sequential model; models nested in it are entered, with their inputs and outputs fixed.
        rules: rules for layers of your own, by their class; they go before the built-in ones.

    Raises:
        ValueError: for a subclassed or unbuilt model, which has no graph to read.

    Example:
        >>> import keras
        >>> inner = keras.layers.Dense(8, "relu", name="hidden")
        >>> model = keras.Sequential([keras.Input((4,), name="x"), inner, keras.layers.Dense(3, name="logits")])
        >>> print(channel_groups(model))
        x: 4 channels, fixed (hidden)
        hidden: 8 channels (hidden, logits)
        logits: 3 channels, fixed (logits)
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
    return ChannelGroups(model, {**built_in_rules(), **(rules or {})})


def _last(tensor: Tensor) -> int:
    return int(tensor.shape[-1] or 0) if len(tensor.shape) else 0
