"""Transformed teacher matching (TTM, WTTM): the teacher at a temperature, the student without one."""

from typing import Any

import keras
from keras import ops

from keras_distill._types import Schedulable, Tensor
from keras_distill.losses.logit_loss import LogitLoss
from keras_distill.losses.per_example import at_least_float32


def transformed_teacher_divergence(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable, *, weighted: bool = False
) -> Tensor:
    """KL(pᵀ ‖ q), for each example, in nats: pᵀ is the teacher's softmax at temperature T, q the student's at 1.

    Soft targets soften both. Here the student itself has to become as soft as the softened teacher, which is plain
    soft targets and a Rényi entropy that keeps the student from being too sure.

    Args:
        teacher_logits: float `(..., num_classes)`.
        student_logits: float, the same shape.
        temperature: T > 0.
        weighted: multiply each example by Σ pᵢ^(1/T), p being the teacher's softmax at 1: from 1 where the teacher is
            sure to num_classes^(1 − 1/T) where it knows nothing, for T > 1.

    Returns:
        float `(...)`, at least float32.

    Example:
        >>> loss = transformed_teacher_divergence([[4.0, 0.0]], [[1.0, 0.0]], 4.0)
        >>> round(abs(float(loss[0])), 6)  # the student's logits are the teacher's, divided by T
        0.0

    Reference:
        Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv:2402.11148: section 3
        (TTM) and section 4 (the weights of WTTM, the power sum of the teacher's probabilities).
    """
    teacher, student = at_least_float32(teacher_logits), at_least_float32(student_logits)
    teacher = ops.cast(teacher, student.dtype)
    scaled = teacher / ops.cast(temperature, teacher.dtype)
    log_targets = ops.log_softmax(scaled, axis=-1)
    divergence = ops.sum(ops.exp(log_targets) * (log_targets - ops.log_softmax(student, axis=-1)), axis=-1)
    if not weighted:
        return divergence
    log_normaliser = ops.logsumexp(teacher, axis=-1) / ops.cast(temperature, teacher.dtype)
    return ops.exp(ops.logsumexp(scaled, axis=-1) - log_normaliser) * divergence


@keras.saving.register_keras_serializable(package="keras_distill")
class TransformedTeacherMatching(LogitLoss):
    """TTM: the student's own softmax, without a temperature, matches the teacher's at T. WTTM weighs the examples.

    There is no T² in it: the gradient by the student's logits does not shrink as T grows.

    Args:
        temperature: T > 0, of the teacher alone; the paper's best are 2 to 10 or so, with a weight of the distillation
            loss to suit.
        weighted: WTTM: examples of which the teacher is less sure count more.
        from_logits: as in `SoftTargets`.

    Raises:
        ValueError: a temperature out of range.

    Example:
        >>> loss = TransformedTeacherMatching(temperature=2.0)
        >>> round(abs(float(loss.compute_loss([[2.0, 0.0, 1.0]], [[1.0, 0.0, 0.5]]))), 6)
        0.0

    Reference:
        Zheng and Yang, arXiv:2402.11148, sections 3 and 4.
    """

    def __init__(self, temperature: Schedulable = 4.0, *, weighted: bool = False, from_logits: bool = True):
        super().__init__(temperature, from_logits=from_logits)
        self.weighted = bool(weighted)

    def of_logits(self, teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable) -> Tensor:
        """Returns the loss of each example, `(...)`."""
        return transformed_teacher_divergence(teacher_logits, student_logits, temperature, weighted=self.weighted)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "weighted": self.weighted}
