"""What a dataset is here: three splits of inputs and labels in memory, and the names of the classes."""

from dataclasses import dataclass

import numpy as np

from keras_distill._checks import check_count, check_labels, error_message


@dataclass(frozen=True)
class Split:
    """Examples with their labels. An example's id is its position.

    Stored soft targets are joined to examples by that id, so the order of a split never depends on
    anything but the data itself.

    Attributes:
        inputs: `(num_items, ...)`. Images are float32 in [0, 1] with a channel axis; networks flatten them.
        labels: int32, `(num_items,)`, in [0, num_classes).

    Example:
        >>> import numpy as np
        >>> len(Split(np.zeros((3, 8, 8, 1), "float32"), np.array([0, 1, 1], "int32")))
        3
    """

    inputs: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            received = f"{len(self.inputs)} inputs and {len(self.labels)} labels"
            raise ValueError(error_message("a split must have as many inputs as labels", received))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        """Sizes in place of values: a hundred thousand pixels say nothing."""
        return f"Split(inputs={_shape(self.inputs)}, labels={_shape(self.labels)})"

    def take(self, positions: np.ndarray) -> "Split":
        """The examples at `positions`, integers of shape `(num_taken,)`, in that order."""
        return Split(self.inputs[positions], self.labels[positions])


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

    Raises:
        ValueError: an empty split, a label outside the classes, or splits of different shape.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    licence: str

    def __post_init__(self) -> None:
        shapes = set()
        for split_name in ("train", "validation", "test"):
            split: Split = getattr(self, split_name)
            subject = f"the {split_name} split of {self.name!r}"
            if not len(split):
                raise ValueError(
                    error_message(f"{subject} must hold at least one example", "none", "Add examples to it.")
                )
            check_labels(f"the labels in {subject}", split.labels, self.num_classes)
            shapes.add(split.inputs.shape[1:])
        if len(shapes) > 1:
            received = " and ".join(str(shape) for shape in sorted(shapes))
            raise ValueError(error_message(f"the splits of {self.name!r} must have examples of one shape", received))

    def __repr__(self) -> str:
        """Sizes in place of values, and no more class names than a line holds."""
        names = ", ".join(self.class_names[:10]) + (", …" if self.num_classes > 10 else "")
        splits = "\n".join(f"  {name}: {getattr(self, name)}" for name in ("train", "validation", "test"))
        return f"Dataset {self.name!r}, {self.num_classes} classes: {names}\n{splits}"

    @property
    def num_classes(self) -> int:
        """How many classes there are, also where some have no example."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example, without the batch axis."""
        return self.train.inputs.shape[1:]


def _shape(array: np.ndarray) -> str:
    """An array's dtype and shape, "float32[719, 8, 8, 1]"."""
    return f"{array.dtype}{list(array.shape)}"


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
