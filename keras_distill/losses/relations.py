"""Losses over how items relate: distances, angles and similarities within a batch.

A batch is compared with itself, so the sizes of the two layers are free. What a pair or a triple adds is
shared among its items, so that the mean over the batch is the papers' loss; an item of weight 0 is nobody's partner.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_number, error_message
from keras_distill._types import Tensor
from keras_distill.losses.features import FeatureLoss
from keras_distill.losses.per_example import at_least_float32


def _rows(features: Tensor) -> Tensor:
    """Each item's features as one row, `(batch, num_features)`."""
    features = at_least_float32(features)
    return ops.reshape(features, (ops.shape(features)[0], -1))


def _partner_weights(rows: Tensor, item_weights: Tensor) -> Tensor:
    """How much item j counts as a partner of item i: j's weight, 0 on the diagonal; `(batch, batch)`."""
    others = 1.0 - ops.eye(ops.shape(rows)[0], dtype=rows.dtype)
    return others if item_weights is None else others * ops.cast(item_weights, rows.dtype)[None, :]


def _huber(difference: Tensor) -> Tensor:
    # Its derivative is the difference itself, cut off at ±1: told so, the way back is a single product, where autodiff
    # would go back through every operation of the value.
    slope = ops.stop_gradient(ops.clip(difference, -1.0, 1.0))
    return slope * (difference - 0.5 * slope)


def _squared_distances(rows: Tensor) -> Tensor:
    # Products of centred rows lose fewer digits, and no (batch, batch, features) tensor is made.
    rows = rows - ops.mean(rows, axis=0, keepdims=True)
    norms = ops.sum(ops.square(rows), axis=-1)
    return ops.maximum(norms[:, None] + norms[None, :] - 2.0 * ops.matmul(rows, ops.transpose(rows)), 0.0)


def _safe_root(squares: Tensor, scale: Tensor) -> Tensor:
    """The square root, 0 with gradient 0 where the square is no more than rounding of `scale`."""
    # Eight units in the last place: a square is a sum of three numbers as large as the largest.
    is_positive = squares > 8.0 * float(np.finfo(keras.backend.standardize_dtype(squares.dtype)).eps) * scale
    return ops.where(is_positive, ops.sqrt(ops.where(is_positive, squares, 1.0)), 0.0)


def pairwise_distances(features: Tensor, item_weights: Tensor = None) -> Tensor:
    """Euclidean distances between the items of a batch, divided by their mean over all pairs.

    Args:
        features: float `(batch, …)`.
        item_weights: float `(batch,)` or `None`; the weight of each item in the mean.

    Returns:
        float `(batch, batch)`, 0 on the diagonal.

    Example:
        >>> pairwise_distances([[0.0], [1.0], [3.0]]).numpy().round(4).tolist()
        [[0.0, 0.5, 1.5], [0.5, 0.0, 1.0], [1.5, 1.0, 0.0]]

    Reference:
        Park et al., "Relational Knowledge Distillation", arXiv:1904.05068, section 3.2.1, equations 6 and 7.
    """
    rows = _rows(features)
    squares = _squared_distances(rows)
    weights = _partner_weights(rows, item_weights)
    if item_weights is not None:
        weights *= ops.cast(item_weights, weights.dtype)[:, None]
    distances = (1.0 - ops.eye(ops.shape(rows)[0], dtype=rows.dtype)) * _safe_root(squares, ops.max(squares))
    mean = ops.divide_no_nan(ops.sum(weights * distances), ops.sum(weights))
    return ops.divide_no_nan(distances, mean)


def distance_relation(teacher_features: Tensor, student_features: Tensor, item_weights: Tensor = None) -> Tensor:
    """Huber's loss of the scaled distances, the mean over each item's pairs.

    Args:
        teacher_features: float `(batch, …)`.
        student_features: float `(batch, …)`; another size is fine.
        item_weights: float `(batch,)` or `None`.

    Returns:
        float `(batch,)`; 0 for a single item.

    Example:
        >>> distance_relation([[0.0], [1.0]], [[0.0, 0.0], [5.0, 5.0]]).numpy().tolist()  # one distance: always 1
        [0.0, 0.0]

    Reference:
        Park et al., arXiv:1904.05068, section 3.2.1, equation 8.
    """
    student = pairwise_distances(student_features, item_weights)
    teacher = ops.cast(pairwise_distances(teacher_features, item_weights), student.dtype)
    weights = _partner_weights(student, item_weights)
    return ops.divide_no_nan(ops.sum(weights * _huber(student - teacher), axis=1), ops.sum(weights, axis=1))


def _cosines(features: Tensor) -> Tensor:
    """cos∠ of i, j, k at the vertex j, `(j, i, k)`; 0 where j is i or k."""
    rows = _rows(features)
    rows = rows - ops.mean(rows, axis=0, keepdims=True)
    products = ops.matmul(rows, ops.transpose(rows))
    # ⟨xᵢ − xⱼ, xₖ − xⱼ⟩ from the products alone: the differences themselves would be features times larger.
    to_vertex = products - 0.5 * ops.diagonal(products)[:, None]
    dots = products[None] - to_vertex[:, :, None] - to_vertex[:, None, :]
    squares = _squared_distances(rows)
    lengths = _safe_root(squares, ops.max(squares))
    inverse = ops.where(lengths > 0.0, 1.0 / ops.where(lengths > 0.0, lengths, 1.0), 0.0)
    return dots * inverse[:, :, None] * inverse[:, None, :]


def angle_relation(teacher_features: Tensor, student_features: Tensor, item_weights: Tensor = None) -> Tensor:
    """Huber's loss of the angles' cosines, the mean over the pairs that each item is the vertex of.

    Its memory grows with the batch's cube: 8 MB at 128 items, 512 MB at 512, in float32.

    Args:
        teacher_features: float `(batch, …)`.
        student_features: float `(batch, …)`; another size is fine.
        item_weights: float `(batch,)` or `None`.

    Returns:
        float `(batch,)`; 0 for fewer than three items.

    Example:
        >>> line, corner = [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]
        >>> [round(float(value), 4) for value in angle_relation(line, corner)]  # cosines 1, −1, 1 and 0.71, 0, 0.71
        [0.0429, 0.5, 0.0429]

    Reference:
        Park et al., arXiv:1904.05068, section 3.2.2, equations 9 and 10.
    """
    student = _cosines(student_features)
    teacher = ops.cast(_cosines(teacher_features), student.dtype)
    values = _huber(student - teacher)
    weights = ops.ones(ops.shape(student)[:1], student.dtype)
    if item_weights is not None:
        weights = ops.cast(item_weights, student.dtype)
    # Products with vectors, for a tensor of weights would be as large as that of the angles. Where the vertex is one of
    # the two both cosines are 0; where the two are one item they are taken off.
    squares = ops.square(weights)
    same = ops.matmul(ops.diagonal(values, axis1=1, axis2=2), squares)
    total = ops.matmul(ops.matmul(values, weights), weights) - same
    sums = ops.square(ops.sum(weights) - weights) - (ops.sum(squares) - squares)
    return ops.divide_no_nan(total, sums)


@keras.saving.register_keras_serializable(package="keras_distill")
class RelationalKD(FeatureLoss):
    """RKD: the distances and angles between the items of a batch, as the teacher's features have them.

    Args:
        teacher_layer_name: the teacher's layer, best an embedding; `None` reads its logits.
        student_layer_name: the student's layer; `None` takes the teacher's name.
        distance_weight: the weight of the distances; the paper takes 25 for classes, 1 for metrics.
        angle_weight: the weight of the angles; 50 and 2 there. 0 leaves the cubic memory out.

    Raises:
        ValueError: a weight < 0.

    Example:
        >>> loss = RelationalKD("embedding", distance_weight=1.0, angle_weight=0.0)
        >>> round(float(loss.compute_loss([[0.0], [1.0], [3.0]], [[0.0], [2.0], [6.0]])), 6)  # the same proportions
        0.0

    Reference:
        Park et al., arXiv:1904.05068, section 3.2.
    """

    reads = ("item_weights",)

    def __init__(
        self,
        teacher_layer_name: str | None = None,
        student_layer_name: str | None = None,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
    ):
        super().__init__(teacher_layer_name, student_layer_name)
        self.distance_weight = check_number("distance_weight", distance_weight)
        self.angle_weight = check_number("angle_weight", angle_weight)
        if min(self.distance_weight, self.angle_weight) < 0.0:
            weights = (self.distance_weight, self.angle_weight)
            raise ValueError(error_message("distance_weight and angle_weight must be >= 0", weights))

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor, item_weights: Tensor = None) -> Tensor:
        """Returns each item's share of the loss, `(batch,)`."""
        item_weights = _one_an_item(item_weights)
        if not self.angle_weight:
            return self.distance_weight * distance_relation(teacher_outputs, student_outputs, item_weights)
        values = self.angle_weight * angle_relation(teacher_outputs, student_outputs, item_weights)
        if not self.distance_weight:
            return values
        return values + self.distance_weight * distance_relation(teacher_outputs, student_outputs, item_weights)

    def validate_outputs(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        """Any two tensors of a batch can be compared."""

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"distance_weight": self.distance_weight, "angle_weight": self.angle_weight}
        return {**super().get_config(), **own}


def _one_an_item(item_weights: Tensor) -> Tensor:
    """Weights `(batch, …)` as `(batch,)`: the mean of a sequence's tokens'."""
    if item_weights is None or len(item_weights.shape) == 1:
        return item_weights
    return ops.mean(item_weights, axis=tuple(range(1, len(item_weights.shape))))


def similarities(features: Tensor, item_weights: Tensor = None) -> Tensor:
    """The products of every two items' features, each row scaled to length one.

    Args:
        features: float `(batch, …)`.
        item_weights: float `(batch,)` or `None`; how much each partner counts in the row's length.

    Returns:
        float `(batch, batch)`.

    Example:
        >>> [round(float(value), 4) for value in similarities([[3.0, 0.0], [4.0, 0.0]])[0]]
        [0.6, 0.8]

    Reference:
        Tung, Mori, "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682, section 3, equations 1 and 2.
    """
    rows = _rows(features)
    products = ops.matmul(rows, ops.transpose(rows))
    squares = ops.square(products)
    if item_weights is not None:
        squares *= ops.cast(item_weights, squares.dtype)[None, :]
    return products * ops.rsqrt(ops.sum(squares, axis=1, keepdims=True) + 1e-12)


def similarity_preserving(teacher_features: Tensor, student_features: Tensor, item_weights: Tensor = None) -> Tensor:
    """The mean squared difference of an item's similarities to the batch.

    Args:
        teacher_features: float `(batch, …)`.
        student_features: float `(batch, …)`; another size is fine.
        item_weights: float `(batch,)` or `None`.

    Returns:
        float `(batch,)`; their mean is ‖G_T − G_S‖² / batch².

    Example:
        >>> teacher, student = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]  # told apart, and not
        >>> [round(float(value), 4) for value in similarity_preserving(teacher, student)]
        [0.2929, 0.2929]

    Reference:
        Tung, Mori, arXiv:1907.09682, section 3, equation 4.
    """
    student = similarities(student_features, item_weights)
    squares = ops.square(student - ops.cast(similarities(teacher_features, item_weights), student.dtype))
    if item_weights is None:
        return ops.mean(squares, axis=1)
    weights = ops.cast(item_weights, squares.dtype)
    return ops.divide_no_nan(ops.sum(weights[None, :] * squares, axis=1), ops.sum(weights))


@keras.saving.register_keras_serializable(package="keras_distill")
class SimilarityPreserving(FeatureLoss):
    """SP: items that excite the teacher's layer alike shall excite the student's alike.

    Args:
        teacher_layer_name: the teacher's layer; `None` reads its logits.
        student_layer_name: the student's layer; `None` takes the teacher's name.

    Example:
        >>> loss = SimilarityPreserving("block3")
        >>> round(float(loss.compute_loss([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]])), 4)
        0.2929

    Reference:
        Tung, Mori, arXiv:1907.09682, section 3; the loss's weight is 3000 there.
    """

    reads = ("item_weights",)

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor, item_weights: Tensor = None) -> Tensor:
        """Returns each item's share of the loss, `(batch,)`."""
        return similarity_preserving(teacher_outputs, student_outputs, _one_an_item(item_weights))

    def validate_outputs(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        """Any two tensors of a batch can be compared."""
