"""DIST: correlations between classes and between items in place of values."""

from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_number, error_message
from keras_distill._types import Schedulable, Tensor
from keras_distill.losses.logit_loss import LogitLoss
from keras_distill.losses.per_example import at_least_float32, one_for_each


def inter_class_relation(teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable) -> Tensor:
    """1 − the correlation over classes of the two softened predictions, for each example.

    Args:
        teacher_logits: float `(..., num_classes)`.
        student_logits: float, the same shape.
        temperature: T > 0.

    Returns:
        float `(...)` in [0, 2].

    Example:
        >>> round(float(inter_class_relation([[1.0, 0.0]], [[0.0, 3.0]], 1.0)[0]), 6)  # opposite order
        2.0

    Reference:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv:2205.10536, section 4.2, equation 8.
    """
    student = _softened(student_logits, temperature)
    teacher = ops.cast(_softened(teacher_logits, temperature), student.dtype)
    return 1.0 - _correlation(teacher, student, ops.ones_like(student), axis=-1)


def intra_class_relation(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable, item_weights: Tensor = None
) -> Tensor:
    """1 − the correlation over items of what the two give one class, the mean over classes; a scalar.

    Args:
        teacher_logits: float `(..., num_classes)`; all leading axes are items.
        student_logits: float, the same shape.
        temperature: T > 0.
        item_weights: float `(...)`, the weight of each item in the moments; `None` weighs all the same.

    Returns:
        A scalar in [0, 2]; 1 for a single item, of which no correlation can be told.

    Example:
        >>> rows = [[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
        >>> abs(round(float(intra_class_relation(rows, rows, 1.0)), 5))
        0.0

    Reference:
        Huang et al., arXiv:2205.10536, section 4.3, equation 9.
    """
    student = _softened(student_logits, temperature)
    teacher = ops.cast(_softened(teacher_logits, temperature), student.dtype)
    num_classes = student.shape[-1]
    teacher, student = ops.reshape(teacher, (-1, num_classes)), ops.reshape(student, (-1, num_classes))
    if item_weights is None:
        weights = ops.ones_like(student)
    else:
        weights = ops.reshape(ops.cast(item_weights, student.dtype), (-1, 1)) * ops.ones_like(student)
    return ops.mean(1.0 - _correlation(teacher, student, weights, axis=0))


def _softened(logits: Tensor, temperature: Schedulable) -> Tensor:
    logits = at_least_float32(logits)
    return ops.softmax(logits / ops.cast(temperature, logits.dtype), axis=-1)


def _correlation(first: Tensor, second: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Pearson's, weighted; 0 where one of the two does not vary."""
    shares = ops.divide_no_nan(weights, ops.sum(weights, axis=axis, keepdims=True))
    first, second = _standardized(first, shares, axis), _standardized(second, shares, axis)
    return ops.sum(shares * first * second, axis=axis)


def _standardized(values: Tensor, shares: Any, axis: int) -> Tensor:
    """Probabilities, scaled to mean 0 and variance 1 along an axis; 0 where they do not vary."""
    # A correlation knows no scale, the constant below does: among 50,000 classes variances are as small as it is. So
    # the largest value that counts is made 1 first, and the constant stands for what float32 rounds away.
    largest = ops.stop_gradient(ops.max(ops.where(shares > 0.0, values, 0.0), axis=axis, keepdims=True))
    values = ops.divide_no_nan(values, largest)
    values = values - ops.sum(shares * values, axis=axis, keepdims=True)
    # It keeps the gradient finite where a student begins with equal predictions.
    return values * ops.rsqrt(ops.sum(shares * ops.square(values), axis=axis, keepdims=True) + 1e-12)


@keras.saving.register_keras_serializable(package="keras_distill")
class DIST(LogitLoss):
    """Relations in place of values: T²·(β·inter-class + γ·intra-class relation).

    A much stronger teacher's probabilities are hard to match; their order and proportions are what this asks for.

    Args:
        temperature: T > 0; the paper takes 4 on CIFAR-100, 1 on ImageNet.
        beta: the weight of the relation between the classes of one item.
        gamma: the weight of the relation between the items of one class.
        from_logits: as in `SoftTargets`.

    Raises:
        ValueError: a weight or the temperature out of range.

    Example:
        >>> loss = DIST(temperature=1.0, beta=1.0, gamma=0.0)
        >>> round(float(loss.compute_loss([[1.0, 0.0]], [[0.0, 3.0]])), 6)
        2.0

    Reference:
        Huang et al., arXiv:2205.10536, section 4, equations 8 to 10.
    """

    reads = ("item_weights",)

    def __init__(
        self, temperature: Schedulable = 4.0, beta: float = 1.0, gamma: float = 1.0, *, from_logits: bool = True
    ):
        super().__init__(temperature, from_logits=from_logits)
        self.beta, self.gamma = check_number("beta", beta), check_number("gamma", gamma)
        if min(self.beta, self.gamma) < 0.0:
            raise ValueError(error_message("beta and gamma must be >= 0", (self.beta, self.gamma)))

    def of_logits(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable, item_weights: Tensor = None
    ) -> Tensor:
        """Returns the loss of each example, `(...)`: its own relation, plus the batch's."""
        if item_weights is not None:
            item_weights = one_for_each(item_weights, student_logits)
        inter = inter_class_relation(teacher_logits, student_logits, temperature)
        intra = intra_class_relation(teacher_logits, student_logits, temperature, item_weights)
        return ops.square(ops.cast(temperature, inter.dtype)) * (self.beta * inter + self.gamma * intra)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "beta": self.beta, "gamma": self.gamma}
