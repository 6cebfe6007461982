"""What a dataset is here: three splits of inputs and labels in memory, and the names of the classes."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from keras_distill._checks import check_count, check_labels, error_message
from keras_distill._inputs import arrays_by_name, described, example_shape, num_rows, take_rows
from keras_distill._types import Inputs, Shape
from keras_distill.data.preparation import Preparation


@dataclass(frozen=True)
class Split:
    """Examples with their labels. An example's id is its position.

    Stored soft targets are joined to examples by that id, so the order of a split never depends on
    anything but the data itself.

    Attributes:
        inputs: `(num_items, ...)`, or a dict of such arrays, named as the model names its inputs. Images are float32
            in [0, 1] with a channel axis; networks flatten them.
        labels: int32, `(num_items,)`, in [0, num_classes).

    Raises:
        ValueError: arrays of different lengths.

    Example:
        >>> import numpy as np
        >>> len(Split(np.zeros((3, 8, 8, 1), "float32"), np.array([0, 1, 1], "int32")))
        3
        >>> Split({"token_ids": np.zeros((2, 16), "int32"), "mask": np.ones((2, 16), "bool")}, np.array([0, 1]))
        Split(inputs={token_ids: int32[2, 16], mask: bool[2, 16]}, labels=int64[2])
    """

    inputs: Inputs
    labels: np.ndarray

    def __post_init__(self) -> None:
        num_inputs = num_rows(self.inputs)
        if num_inputs != len(self.labels):
            received = f"{num_inputs} inputs and {len(self.labels)} labels"
            raise ValueError(error_message("a split must have as many inputs as labels", received))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        """Sizes in place of values: a hundred thousand pixels say nothing."""
        return f"Split(inputs={described(self.inputs)}, labels={described(self.labels)})"

    def take(self, positions: np.ndarray) -> "Split":
        """The examples at `positions`, integers of shape `(num_taken,)`, in that order."""
        return Split(take_rows(self.inputs, positions), self.labels[positions])


@dataclass(frozen=True)
class Dataset:
    """A named dataset, ready for `model.fit`.

    Attributes:
        name: what `load` was asked for.
        train: what the weights are fitted on.
        validation: what temperatures, loss weights and epochs are chosen on; never part of `test`.
        test: what is reported. Where a dataset has an official test set, this is exactly that.
        class_names: one name a class, in the order of the labels.
        licence: the terms that the data comes under, as far as its authors state them.
        preparation: what made the inputs out of raw rows (a table's columns, texts), or `None` where they came as
            arrays. It ships with the student.

    Raises:
        ValueError: an empty split, a label outside the classes, or splits of other input names or another shape.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    licence: str
    preparation: Preparation | None = None

    def __post_init__(self) -> None:
        for split_name in ("train", "validation", "test"):
            split: Split = getattr(self, split_name)
            subject = f"the {split_name} split of {self.name!r}"
            if not len(split):
                raise ValueError(
                    error_message(f"{subject} must hold at least one example", "none", "Add examples to it.")
                )
            check_labels(f"the labels in {subject}", split.labels, self.num_classes)
        self._check_alike()

    def _check_alike(self) -> None:
        splits = {name: arrays_by_name(getattr(self, name).inputs) for name in ("train", "validation", "test")}
        for split_name, arrays in splits.items():
            if set(arrays) != set(splits["train"]):
                expectation = f"the splits of {self.name!r} must have inputs of the same names"
                received = f"{_names(splits['train'])} in train and {_names(arrays)} in {split_name}"
                raise ValueError(error_message(expectation, received))
        for name in splits["train"]:
            shapes = sorted({arrays[name].shape[1:] for arrays in splits.values()})
            if len(shapes) > 1:
                of_one = f", those of {name!r} too" if name else ""
                received = " and ".join(map(str, shapes))
                raise ValueError(
                    error_message(f"the splits of {self.name!r} must have examples of one shape{of_one}", received)
                )

    def __repr__(self) -> str:
        """Sizes in place of values, and no more class names than a line holds."""
        names = ", ".join(self.class_names[:10]) + (", …" if self.num_classes > 10 else "")
        splits = "\n".join(f"  {name}: {getattr(self, name)}" for name in ("train", "validation", "test"))
        prepared = "" if self.preparation is None else f"\n  prepared: {self.preparation.description}"
        return f"Dataset {self.name!r}, {self.num_classes} classes: {names}\n{splits}{prepared}"

    @property
    def num_classes(self) -> int:
        """How many classes there are, also where some have no example."""
        return len(self.class_names)

    @property
    def input_shape(self) -> Shape:
        """The shape of one example, without the batch axis; of named inputs a dict of such shapes."""
        return example_shape(self.train.inputs)


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "one array without a name"


def stratified_positions(labels: np.ndarray, num_taken: int, seed: int = 0) -> np.ndarray:
    """Chooses `num_taken` of the positions of `labels`, each class in proportion, the same ones every time.

    Shuffled examples are laid out class after class and taken at equal distances: so every class of c
    examples gives c · num_taken / num_items of them, rounded up or down, however few they are.

    Args:
        labels: integers, `(num_items,)`.
        num_taken: how many to choose, from 1 to `num_items` − 1.
        seed: of the shuffle.

    Returns:
        Integers, `(num_taken,)`, ascending.

    Example:
        >>> labels = np.repeat([0, 1], [90, 10])
        >>> np.bincount(labels[stratified_positions(labels, 10)])
        array([9, 1])
    """
    num_taken = check_count("num_taken", num_taken)
    if num_taken >= len(labels):
        raise ValueError(error_message(f"num_taken must be < {len(labels)}, the number of examples", num_taken))
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    equally_spaced = ((np.arange(num_taken) + 0.5) * len(labels) / num_taken).astype(int)
    return np.sort(by_class[equally_spaced])


def carve(split: Split, num_taken: int, seed: int = 0) -> tuple[Split, Split]:
    """Divides `split` into what remains and `num_taken` stratified examples, both in their old order."""
    taken = stratified_positions(split.labels, num_taken, seed)
    remains = np.setdiff1d(np.arange(len(split)), taken)
    return split.take(remains), split.take(taken)
