"""What a rule says of a layer: the channels of its output, of its weights and of its configuration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import numpy as np

from keras_distill._types import Tensor


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
        output: the channels of the last axis of every output; a tuple where the outputs differ.
        axes: the channels along the axes of its weights, those of layers inside the layer too.
        config: the entries of its configuration that are a width, with the channels that they count. A shape ends in
            its width. `"layer.config.units"` is an entry of the configuration of a layer inside the layer.
        ties: channels that are cut together, place by place.
        fixed: channels that may not be cut.
        heads: channels that stand for whole heads of attention, whose number `multiple_of` does not round.
        kept_whole: what of the layer could be narrower and is not, for the reader of `channel_groups`.
    """

    output: np.ndarray | tuple[np.ndarray, ...]
    axes: tuple[Axis, ...] = ()
    config: Mapping[str, np.ndarray] = field(default_factory=dict)
    ties: tuple[Sequence[np.ndarray], ...] = ()
    fixed: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    heads: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    kept_whole: tuple[str, ...] = ()

    def and_again(self, other: "Widths") -> "Widths":
        """What is known of a layer after another of its calls."""
        known = {(axis.weight, axis.axis, axis.role) for axis in self.axes}
        more = tuple(axis for axis in other.axes if (axis.weight, axis.axis, axis.role) not in known)
        return replace(self, axes=self.axes + more, config={**other.config, **self.config})


class New(Protocol):
    """Gives new channels to a rule; with a name where a layer makes several kinds."""

    def __call__(self, size: int, name: str = "", /) -> np.ndarray:
        """The numbers of `size` channels."""
        ...


# From a layer, the channels of its inputs in the order in which `call` names them (masks, by name or bool, left out),
# its first symbolic output and a function that gives new channels, to its widths; `None` where the rule does not know
# this layer or this call.
Rule: TypeAlias = Callable[[Any, list[np.ndarray], Tensor, New], Widths | None]
