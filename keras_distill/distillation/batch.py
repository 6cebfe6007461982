"""What a batch brings: inputs, labels, soft targets, and the weight of each item."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_finite, check_number, error_message
from keras_distill._types import Data, Tensor, TensorTree
from keras_distill.losses.labels import are_class_ids, class_ids

LABELS, SOFT_TARGETS, TEACHER_FEATURES = "labels", "soft_targets", "teacher_features"
UNLABELLED = "unlabelled"


def batch_parts(y: TensorTree) -> dict[str, TensorTree]:
    """`y` as labels and soft targets, whichever of them it has."""
    if y is None or (isinstance(y, dict) and UNLABELLED in y):
        return {}
    if isinstance(y, dict) and SOFT_TARGETS in y:
        return {key: value for key, value in y.items() if value is not None}
    return {LABELS: y}


def first_leaf(structure: TensorTree) -> Tensor:
    """The first tensor of a structure."""
    return keras.tree.flatten(structure)[0]


def batch_size_of(x: TensorTree) -> Tensor:
    """The number of items in a batch of inputs."""
    return ops.shape(first_leaf(x))[0]


# The weight of each item


def fit_arguments(y: Data, sample_weight: Tensor) -> tuple[Data, Any]:
    """`y` and `sample_weight` as Keras takes them: it drops the weights of items without a `y`."""
    if sample_weight is None:
        return y, None
    if isinstance(sample_weight, np.ndarray):
        check_finite("sample_weight", sample_weight, "An item that should not count weighs 0.")
    if y is None:
        y = {UNLABELLED: np.zeros(len(sample_weight), "uint8")}
    if isinstance(y, dict) and {SOFT_TARGETS, UNLABELLED} & set(y) and getattr(sample_weight, "ndim", 1) > 1:
        # Beside a `y` of several parts Keras takes a weight for each token only as one for each part.
        sample_weight = keras.tree.map_structure(lambda _: sample_weight, y)
    return y, sample_weight


def item_weights_of(sample_weight: TensorTree) -> Tensor | None:
    """The weights of the items: `fit` on arrays hands out a copy of them for each part of `y`."""
    if isinstance(sample_weight, dict) and {SOFT_TARGETS, UNLABELLED} & set(sample_weight):
        return sample_weight[LABELS] if LABELS in sample_weight else first_leaf(sample_weight)
    return sample_weight


def masked_weights(item_weights: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Sample weights times a mask, `(batch, …)`; `None` where there is neither."""
    if mask is None:
        return item_weights
    return multiplied(ops.cast(mask, "float32"), item_weights)


def multiplied(weights: Tensor, others: Tensor | None) -> Tensor:
    """The product of two weights of the same items, either of which may have one for each token, `(batch, …)`."""
    if others is None:
        return weights
    rank = max(len(weights.shape), len(others.shape))

    def expanded(values: Tensor) -> Tensor:
        return ops.reshape(ops.cast(values, "float32"), (*ops.shape(values), *[1] * (rank - len(values.shape))))

    return expanded(weights) * expanded(others)


@dataclass(frozen=True)
class ClassWeights:
    """Keras's `class_weight`, looked up inside the training step.

    There the labels are in hand wherever they came from, so that arrays, `tf.data`, `PyDataset`s and stored soft
    targets are all weighed alike, on every backend, and what is validated is not weighed at all.

    Attributes:
        first: the smallest class that has a weight of its own, or 0.
        weights: float32, of the classes from `first` on; the last one, 1, is for all others and for "no label".
    """

    first: int
    weights: np.ndarray

    @classmethod
    def of(cls, class_weight: Mapping[int, float]) -> "ClassWeights":
        """From Keras's dictionary.

        Raises:
            TypeError: a class that is no whole number, a weight that is no number.
            ValueError: a weight that is negative or not finite.
        """
        for label, weight in class_weight.items():
            if not isinstance(label, (int, np.integer)):
                raise TypeError(error_message("the keys of class_weight must be classes, whole numbers", repr(label)))
            if not 0.0 <= check_number(f"class_weight[{label}]", weight) < float("inf"):
                raise ValueError(error_message(f"class_weight[{label}] must be >= 0 and finite", weight))
        first = min(0, *class_weight)
        weights = np.ones(max(class_weight) - first + 2, "float32")
        for label, weight in class_weight.items():
            weights[label - first] = weight
        return cls(first, weights)

    def of_items(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """The weight of each item's class, float32.

        Args:
            labels: in any layout that `class_ids` takes.
            outputs: `(batch, …, num_classes)`, what the labels belong to.

        Returns:
            Float32 `(batch, …)`.
        """
        if keras.tree.is_nested(labels):
            remedy = "Give sample_weight instead: class weights do not say which output's classes they mean."
            raise ValueError(error_message("class_weight needs labels of one output", f"{len(labels)} outputs", remedy))
        places = class_ids(labels, outputs) - self.first
        others = len(self.weights) - 1
        is_named = ops.logical_and(places >= 0, places < others)
        return ops.take(self.weights, ops.where(is_named, places, others), axis=0)


def labelled_items(labels: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """Labels and weights with which metrics count labelled items alone.

    Returns:
        The labels, class 0 where there was none, and int32 weights, 0 there and 1 elsewhere; `None` where every item
        has a label, as those of one row a class do.
    """
    if not are_class_ids(labels, outputs):
        return labels, None
    is_labelled = labels >= 0
    return ops.where(is_labelled, labels, ops.zeros_like(labels)), ops.cast(is_labelled, "int32")
