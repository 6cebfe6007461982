"""Families of students: from a shape and one width to a model.

A shape is what a search looks for: how deep, and how the width is shared out. The width is what a budget leaves room
for; it is found, not searched. Every family grows with it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import keras
import numpy as np

from keras_distill._checks import error_message
from keras_distill._inputs import example_shape, take_rows
from keras_distill._types import Inputs
from keras_distill.data import networks
from keras_distill.pruning import channel_groups, prune, reestimate_batch_normalization, residual_blocks
from keras_distill.pruning.blocks import without_blocks
from keras_distill.pruning.input_size import with_smaller_input
from keras_distill.targets.fingerprints import fingerprint

if TYPE_CHECKING:
    import optuna

Shape: TypeAlias = Mapping[str, float]
# A teacher's groups are cut in so many stages, each with a share of its own.
_NUM_STAGES = 4
# Of a stage against the others.
_LEAST_SHARE = 0.25
_MOST_DROPPED = 8
_SMALLEST = 0.5


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

    @property
    def identity(self) -> str:
        """What tells it from another of the same name."""
        return self.name

    @abstractmethod
    def build(self, shape: Shape, width: float) -> keras.Model:
        """A student from inputs to logits; with the global seed's weights where they are new.

        Args:
            shape: a value for each entry.
            width: in (0, 1]; 1 is the widest of the family.
        """

    def begin(self, shape: Shape, width: float) -> keras.Model:
        """A student as its training begins; `build` alone says what it costs."""
        return self.build(shape, width)

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
    """Students cut from the teacher: its layers and weights, fewer channels, fewer blocks, smaller images.

    The channel groups that may be cut are divided into stages, in the order of the graph; each keeps `width` times its
    own share of its channels. Where BatchNormalization scales a channel, channels of the largest scales stay.

    Args:
        teacher: a functional or Sequential model.
        calibration: inputs of the training split, `(num_items, …)`, on which BatchNormalization's statistics are put
            right before a student is trained.

    Raises:
        ValueError: nothing of it can be cut.
    """

    name = "pruned"

    def __init__(self, teacher: keras.Model, calibration: Inputs):
        self._teacher, self._calibration = teacher, calibration
        self._blocks = [block.name for block in residual_blocks(teacher)]
        self._wholes: dict[tuple[int, float], tuple[keras.Model, list[list[str]]]] = {}
        _, stages = self._whole(0, 1.0)
        entries = {f"stage{number}": Entry(_LEAST_SHARE, 1.0, 1.0) for number in range(1, len(stages) + 1)}
        # The share of one stage alone is what the width says.
        self.entries: dict[str, Entry] = entries if len(stages) > 1 else {}
        if self._blocks:
            self.entries["dropped"] = Entry(0, min(_MOST_DROPPED, len(self._blocks)), 0, is_whole=True)
        with suppress(ValueError):
            # A network that is made for one size says so.
            self._whole(0, _SMALLEST)
            self.entries["scale"] = Entry(_SMALLEST, 1.0, 1.0)

    def build(self, shape: Shape, width: float) -> keras.Model:
        """The teacher, cut."""
        # Few scales, so that few graphs are looked through.
        scale = round(shape.get("scale", 1.0) * 8) / 8
        whole, stages = self._whole(int(shape.get("dropped", 0)), scale)
        shares = [shape.get(f"stage{number}", 1.0) for number in range(1, len(stages) + 1)]
        keep = {
            group: min(1.0, max(width * share / max(shares), 1e-9))
            for share, stage in zip(shares, stages, strict=True)
            for group in stage
        }
        return prune(whole, keep, importance="scales")

    def begin(self, shape: Shape, width: float) -> keras.Model:
        """The teacher, cut, with statistics of its own."""
        student = self.build(shape, width)
        reestimate_batch_normalization(student, self._calibration)
        return student

    def _whole(self, num_dropped: int, scale: float) -> tuple[keras.Model, list[list[str]]]:
        """The teacher without some blocks, on images of another size, and the groups of its stages."""
        if (num_dropped, scale) not in self._wholes:
            model = self._teacher
            if num_dropped:
                # Every second one, then the others.
                order = [*self._blocks[1::2], *self._blocks[::2]]
                model = without_blocks(model, order[:num_dropped])
            model = with_smaller_input(model, scale) if scale < 1.0 else model
            groups = channel_groups(model)
            free = [group.name for group in groups.groups.values() if group.is_free and group.size > 1]
            if not free:
                kept = ", ".join(groups.kept_whole) or "its inputs and outputs"
                raise ValueError(error_message("the teacher must have channels that can be cut", f"none beside {kept}"))
            stages = [list(map(str, stage)) for stage in np.array_split(free, min(_NUM_STAGES, len(free)))]
            self._wholes[num_dropped, scale] = model, stages
        return self._wholes[num_dropped, scale]


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


class TextBag(Family):
    """The mean of token vectors, then one hidden layer: `networks.text_bag`."""

    name = "text_bag"

    def __init__(self, length: int, vocabulary_size: int, num_classes: int):
        self._length, self._vocabulary_size, self._num_classes = length, vocabulary_size, num_classes
        self.entries = {"hidden": Entry(1.0, 8.0, 4.0)}

    def build(self, shape: Shape, width: float) -> keras.Model:
        """A table whose vectors grow with the width, and a hidden layer in proportion to them."""
        size = max(1, round(256 * width))
        hidden = max(2, round(shape["hidden"] * size))
        return networks.text_bag(self._length, self._vocabulary_size, self._num_classes, size, hidden_width=hidden)


class TextConv(Family):
    """Token vectors and one convolution over neighbours: `networks.text_conv`."""

    name = "text_conv"

    def __init__(self, length: int, vocabulary_size: int, num_classes: int):
        self._length, self._vocabulary_size, self._num_classes = length, vocabulary_size, num_classes
        self.entries = {"filters": Entry(1.0, 8.0, 4.0), "kernel": Entry(2, 5, 3, is_whole=True)}

    def build(self, shape: Shape, width: float) -> keras.Model:
        """A table whose vectors grow with the width, and filters in proportion to them."""
        size = max(1, round(256 * width))
        return networks.text_conv(
            self._length,
            self._vocabulary_size,
            self._num_classes,
            size,
            num_filters=max(2, round(shape["filters"] * size)),
            kernel_size=int(shape["kernel"]),
        )


class Own(Family):
    """A user's own family.

    Args:
        name: what it is called.
        build: from a width in (0, 1] to a built model that ends in logits.
        inputs: some of the data's, an array or a dict of named ones, of which one example is tried.
        num_classes: that its models must answer with.
    """

    def __init__(self, name: str, build: Callable[[float], keras.Model], inputs: Inputs, num_classes: int):
        self.name, self.entries, self._build = name, {}, build
        self._example, self._num_classes = take_rows(inputs, slice(1)), num_classes

    @property
    def identity(self) -> str:
        """Its name, and what its function builds, from the narrowest to the widest."""
        built = []
        for width in (1.0 / 512.0, 0.125, 1.0):
            keras.utils.set_random_seed(0)
            # Of a width that cannot be built the search says so.
            with suppress(ValueError):
                built.append(fingerprint(self.build({}, width)))
        return " ".join([self.name, *built])

    def build(self, shape: Shape, width: float) -> keras.Model:
        """Whatever the user builds.

        Raises:
            ValueError: the function raises, whatever it raises, or gives no model of the data's inputs and classes.
        """
        try:
            model = self._build(width)
        except Exception as error:
            received = f"{type(error).__name__}: {error} at width {width:.3g}"
            raise ValueError(error_message(f"the family {self.name} must build a model", received)) from error
        given = example_shape(self._example)
        expectation = f"the family {self.name} must build a model from {given} to {self._num_classes} logits"
        if not isinstance(model, keras.Model) or not model.built:
            received = "one that is not built" if isinstance(model, keras.Model) else type(model).__name__
            raise ValueError(error_message(expectation, received, "Begin it with a keras.Input."))
        try:
            outputs = model(self._example, training=False)
        except Exception as error:
            raise ValueError(error_message(expectation, " ".join(str(error).split()))) from error
        if tuple(getattr(outputs, "shape", ())) != (1, self._num_classes):
            shapes = keras.tree.map_structure(lambda each: tuple(each.shape[1:]), outputs)
            raise ValueError(error_message(expectation, f"outputs of shape {shapes}"))
        return model


def hand_made(input_shape: Sequence[int], num_classes: int) -> list[Family]:
    """The families that suit inputs of a shape, so that pruning has to earn its place.

    Example:
        >>> [family.name for family in hand_made((28, 28, 1), 10)], [family.name for family in hand_made((104,), 2)]
        (['convnet', 'separable_convnet', 'mlp'], ['mlp'])
    """
    is_image = len(input_shape) == 3 and min(input_shape[:2]) >= 4
    images: list[Family] = [ConvNet(input_shape, num_classes), SeparableConvNet(input_shape, num_classes)]
    return [*(images if is_image else []), MLP(input_shape, num_classes)]


def for_texts(length: int, vocabulary_size: int, num_classes: int) -> list[Family]:
    """The families that suit token ids.

    Example:
        >>> [family.build(family.default(), 0.125).count_params() for family in for_texts(48, 4000, 77)]
        [142157, 150349]
    """
    return [TextBag(length, vocabulary_size, num_classes), TextConv(length, vocabulary_size, num_classes)]


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
