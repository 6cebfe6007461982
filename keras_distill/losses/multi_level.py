"""Multi-level logit distillation (MLKD): predictions alike one by one, between examples, and between classes."""

import keras
from keras import ops

from keras_distill._types import Schedulable, Tensor
from keras_distill.losses.logit_loss import LogitLoss, merged_logits
from keras_distill.losses.per_example import at_least_float32, log_probabilities, one_for_each
from keras_distill.losses.soft_targets import soft_targets
from keras_distill.schedules import current

# Of the temperature; at 4.0 they are the 2, 3, 4, 5 and 6 of the authors' code.
FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)


def batch_correlation(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable, item_weights: Tensor = None
) -> Tensor:
    """‖P·Pᵀ − Q·Qᵀ‖² / B, a scalar: how alike examples are to each other, of B examples.

    Args:
        teacher_logits: float `(..., num_classes)`; all leading axes are examples. P is their softmax at T.
        student_logits: float, the same shape; Q is theirs.
        temperature: T > 0.
        item_weights: float `(...)`; an example of weight 0 is nobody's partner. `None` weighs all the same.

    Example:
        >>> rows = [[9.0, 0.0], [0.0, 9.0]]
        >>> round(float(batch_correlation(rows, rows, 1.0)), 6)
        0.0

    Reference:
        Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023, section 3: batch-level alignment.
    """
    teacher, student, weights = _items(teacher_logits, student_logits, temperature, item_weights)
    difference = teacher @ ops.transpose(teacher) - student @ ops.transpose(student)
    total = ops.sum(weights[:, None] * weights[None, :] * ops.square(difference))
    return total / ops.maximum(ops.sum(weights), 1e-12)


def class_correlation(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable, item_weights: Tensor = None
) -> Tensor:
    """‖Pᵀ·P − Qᵀ·Q‖² / C, a scalar: which of C classes are likely together.

    Args:
        teacher_logits: float `(..., num_classes)`; all leading axes are examples. P is their softmax at T.
        student_logits: float, the same shape; Q is theirs.
        temperature: T > 0.
        item_weights: float `(...)`, the weight of each example in the sums; `None` weighs all the same.

    Example:
        >>> rows = [[9.0, 0.0], [0.0, 9.0]]
        >>> round(float(class_correlation(rows, rows, 1.0)), 6)
        0.0

    Reference:
        Jin, Wang and Lin, CVPR 2023, section 3: class-level alignment.
    """
    teacher, student, weights = _items(teacher_logits, student_logits, temperature, item_weights)
    # Of rows, not of classes, so that a hundred thousand classes need no matrix of their own; and by the difference of
    # the two, so that nothing cancels where they are near. D = P − Q: ‖Pᵀ·P − Qᵀ·Q‖² = ‖Dᵀ·P + Qᵀ·D‖².
    roots = ops.sqrt(weights)[:, None]
    p, q = roots * teacher, roots * student
    d = p - q
    of_d = d @ ops.transpose(d)
    squares = of_d * (p @ ops.transpose(p) + q @ ops.transpose(q))
    crossed = (p @ ops.transpose(d)) * ops.transpose(q @ ops.transpose(d))
    return ops.maximum(ops.sum(squares + 2.0 * crossed), 0.0) / teacher.shape[-1]


def _items(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable, item_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Both softmaxes as `(num_items, num_classes)`, and weights that are 1 on average where they are above 0."""
    student = at_least_float32(student_logits)
    teacher = ops.cast(teacher_logits, student.dtype)
    temperature = ops.cast(temperature, student.dtype)
    teacher, student = (
        ops.reshape(ops.softmax(logits / temperature, axis=-1), (-1, logits.shape[-1])) for logits in (teacher, student)
    )
    if item_weights is None:
        return teacher, student, ops.ones_like(student[:, 0])
    weights = ops.reshape(ops.cast(item_weights, student.dtype), (-1,))
    count = ops.sum(ops.cast(weights > 0.0, student.dtype))
    return teacher, student, weights * (count / ops.maximum(ops.sum(weights), 1e-12))


@keras.saving.register_keras_serializable(package="keras_distill")
class MultiLevelLogits(LogitLoss):
    """MLKD: soft targets at five temperatures, and at each the likeness of examples and of classes.

    The correlations are the batch's and are added to each example's value; memory grows with the square of the batch.

    Args:
        temperature: T > 0, the middle one of five: half, three quarters, once, five quarters and one and a half times.
        from_logits: as in `SoftTargets`.

    Raises:
        ValueError: a temperature out of range.

    Example:
        >>> loss = MultiLevelLogits()
        >>> round(abs(float(loss.compute_loss([[2.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 1.0]]))), 6)
        0.0

    Reference:
        Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023, section 3. The prediction augmentation there is
        the set of temperatures. Its authors' code also trains on a strongly augmented second view, which is the data's
        affair here, and multiplies parts of the loss by the share of a mask, a half.
    """

    reads = ("item_weights",)

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor, **context: Tensor) -> Tensor:
        """Returns the loss of each example, `(...)`: its own divergences, plus the batch's correlations."""
        if not self.from_logits:
            teacher_outputs, student_outputs = log_probabilities(teacher_outputs), log_probabilities(student_outputs)
        student_logits = at_least_float32(student_outputs)
        item_weights = context.get("item_weights")
        if item_weights is not None:
            item_weights = one_for_each(item_weights, student_logits)
        values = []
        for factor in FACTORS:
            temperature = factor * current(self.temperature)
            # An ensemble's members are merged anew at each temperature.
            teacher_logits = ops.cast(merged_logits(teacher_outputs, temperature), student_logits.dtype)
            values.append(
                soft_targets(teacher_logits, student_logits, temperature)
                + batch_correlation(teacher_logits, student_logits, temperature, item_weights)
                + class_correlation(teacher_logits, student_logits, temperature, item_weights)
            )
        return sum(values[1:], values[0])
