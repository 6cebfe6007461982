"""Families of students: from a shape and one width to a model.

A shape is what a search looks for: how deep, and how the width is shared out. The width is what a budget leaves room
for; it is found, not searched. Every family grows with it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import keras
import numpy as np

from keras_distill._checks import error_message
from keras_distill.data import networks
from keras_distill.pruning import ChannelGroups, channel_groups, prune

if TYPE_CHECKING:
    import optuna

Shape: TypeAlias = Mapping[str, float]
# A teacher's groups are cut in so many stages, each with a share of its own.
_NUM_STAGES = 4
# Of a stage against the others.
_LEAST_SHARE = 0.25


@dataclass(frozen=True)
class Entry:
    """One number of a shape: where it lies, and what it is unless somebody searches.

    Attributes:
        low: the least value.
        high: the greatest.
        default: where a search begins.
        is_whole: whether it counts something.
    """

    low: float
    high: float
    default: float
    is_whole: bool = False


class Family(ABC):
    """Students of one kind.

    Attributes:
        name: of the family.
        entries: what its shapes consist of, by name.
        learning_rate: where a search for Adam's rate begins.
    """

    name: str
    entries: Mapping[str, Entry]
    learning_rate: float = 3e-3

    @abstractmethod
    def build(self, shape: Shape, width: float) -> keras.Model:
        """A student from inputs to logits; with the global seed's weights where they are new.

        Args:
            shape: a value for each entry.
            width: in (0, 1]; 1 is the widest of the family.
        """

    def default(self) -> dict[str, float]:
        """The shape to begin with."""
        return {name: entry.default for name, entry in self.entries.items()}

    def suggest(self, trial: "optuna.Trial") -> dict[str, float]:
        """A shape that Optuna draws."""
        return {
            name: trial.suggest_int(f"{self.name}.{name}", int(entry.low), int(entry.high))
            if entry.is_whole
            else trial.suggest_float(f"{self.name}.{name}", entry.low, entry.high)
            for name, entry in self.entries.items()
        }


class Pruned(Family):
    """Students cut from the teacher: its layers and weights, fewer channels.

    The channel groups that may be cut are divided into stages, in the order of the graph; each keeps `width` times its
    own share of its channels.

    Args:
        teacher: a functional or Sequential model.

    Raises:
        ValueError: nothing of it can be cut.
    """

    name = "pruned"
    learning_rate = 1e-3

    def __init__(self, teacher: keras.Model):
        self._teacher = teacher
        self._groups: ChannelGroups = channel_groups(teacher)
        free = [group.name for group in self._groups.groups.values() if group.is_free and group.size > 1]
        if not free:
            kept = ", ".join(self._groups.kept_whole) or "its inputs and outputs"
            raise ValueError(error_message("the teacher must have channels that can be cut", f"none beside {kept}"))
        self._stages = [list(stage) for stage in np.array_split(free, min(_NUM_STAGES, len(free)))]
        self.entries = {f"stage{number}": Entry(_LEAST_SHARE, 1.0, 1.0) for number in range(1, len(self._stages) + 1)}
        # The widths of one stage alone are what one width says.
        if len(self._stages) == 1:
            self.entries = {}

    def build(self, shape: Shape, width: float) -> keras.Model:
        """The teacher, cut."""
        keep = {}
        for number, stage in enumerate(self._stages, start=1):
            share = width * shape.get(f"stage{number}", 1.0) / max([*shape.values(), 1e-9])
            keep.update(dict.fromkeys(map(str, stage), min(1.0, max(share, 1e-9))))
        return prune(self._teacher, keep)


class ConvNet(Family):
    """Plain convolutions of stride 2, then a dense layer: `networks.convnet`."""

    name = "convnet"

    def __init__(self, input_shape: Sequence[int], num_classes: int):
        self._input_shape, self._num_classes = tuple(input_shape), num_classes
        deepest = _deepest(self._input_shape)
        self.entries = {
            "depth": Entry(1, deepest, min(2, deepest), is_whole=True),
            "growth": Entry(1.0, 2.5, 2.0),
            "dense": Entry(0.5, 4.0, 2.0),
        }

    def build(self, shape: Shape, width: float) -> keras.Model:
        """Filters that grow from block to block, and a dense layer in proportion to the last."""
        widths = _growing(256 * width, shape["growth"], int(shape["depth"]))
        dense = max(2, round(shape["dense"] * widths[-1]))
        return networks.convnet(self._input_shape, self._num_classes, widths, dense_width=dense)


class SeparableConvNet(Family):
    """Depthwise-separable convolutions and global pooling: `networks.separable_convnet`."""

    name = "separable_convnet"

    def __init__(self, input_shape: Sequence[int], num_classes: int):
        self._input_shape, self._num_classes = tuple(input_shape), num_classes
        deepest = _deepest(self._input_shape) + 1
        self.entries = {
            "depth": Entry(2, deepest, min(3, deepest), is_whole=True),
            "growth": Entry(1.0, 2.5, 2.0),
        }

    def build(self, shape: Shape, width: float) -> keras.Model:
        """Filters that grow from stage to stage."""
        widths = _growing(256 * width, shape["growth"], int(shape["depth"]))
        return networks.separable_convnet(self._input_shape, self._num_classes, widths)


class MLP(Family):
    """Fully connected layers: `networks.mlp`."""

    name = "mlp"

    def __init__(self, input_shape: Sequence[int], num_classes: int):
        self._input_shape, self._num_classes = tuple(input_shape), num_classes
        self.entries = {"depth": Entry(1, 3, 2, is_whole=True), "growth": Entry(0.3, 1.0, 0.7)}

    def build(self, shape: Shape, width: float) -> keras.Model:
        """Units that become fewer from layer to layer."""
        widths = _growing(2048 * width, shape["growth"], int(shape["depth"]))
        return networks.mlp(self._input_shape, self._num_classes, widths)


class Own(Family):
    """A user's own family.

    Args:
        name: what it is called.
        build: from a width in (0, 1] to a built model that ends in logits.
    """

    def __init__(self, name: str, build: Callable[[float], keras.Model]):
        self.name, self.entries, self._build = name, {}, build

    def build(self, shape: Shape, width: float) -> keras.Model:
        """Whatever the user builds."""
        return self._build(width)


def hand_made(input_shape: Sequence[int], num_classes: int) -> list[Family]:
    """The families that suit inputs of a shape, so that pruning has to earn its place.

    Example:
        >>> [family.name for family in hand_made((28, 28, 1), 10)], [family.name for family in hand_made((104,), 2)]
        (['convnet', 'separable_convnet', 'mlp'], ['mlp'])
    """
    is_image = len(input_shape) == 3 and min(input_shape[:2]) >= 4
    images: list[Family] = [ConvNet(input_shape, num_classes), SeparableConvNet(input_shape, num_classes)]
    return [*(images if is_image else []), MLP(input_shape, num_classes)]


def _deepest(input_shape: Sequence[int]) -> int:
    """How often an image is halved until two pixels are left along its shorter side, four times at most."""
    return max(1, min(4, int(math.log2(max(2, min(input_shape[:2])))) - 1)) if len(input_shape) == 3 else 1


def _growing(first: float, growth: float, depth: int) -> list[int]:
    """Widths in geometric progression whose greatest is `first`, at least 1 each.

    Example:
        >>> _growing(64, 2.0, 3), _growing(64, 0.5, 2)
        ([16, 32, 64], [64, 32])
    """
    widths = [growth**position for position in range(depth)]
    return [max(1, round(first * width / max(widths))) for width in widths]
