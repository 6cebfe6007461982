"""Logit matching: squared differences of logits, the limit of soft targets at high temperature."""

from typing import Any

import keras
from keras import ops

from keras_distill._types import Schedulable, Tensor
from keras_distill.losses.logit_loss import LogitLoss
from keras_distill.losses.per_example import at_least_float32


def logit_matching(teacher_logits: Tensor, student_logits: Tensor, center: bool = True) -> Tensor:
    """Σ (z − v)² / (2·num_classes) of zero-meaned logits, for each example: what soft targets become as T grows.

    T²·KL tends to it, with an error of order 1/T; its gradient is (z − v) / num_classes.

    Args:
        teacher_logits: v, float `(..., num_classes)`.
        student_logits: z, float, the same shape.
        center: whether each row's mean is taken off first, as a softmax would; `False` matches the constant too.

    Returns:
        float `(...)`, at least float32.

    Example:
        >>> round(float(logit_matching([[1.0, 0.0]], [[4.0, 1.0]])[0]), 6)  # ±0.5 against ±1.5
        0.5

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2.1, equations 2 to 4.
    """
    difference = at_least_float32(student_logits)
    difference = difference - ops.cast(at_least_float32(teacher_logits), difference.dtype)
    if center:
        difference = difference - ops.mean(difference, axis=-1, keepdims=True)
    return 0.5 * ops.mean(ops.square(difference), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class LogitMatching(LogitLoss):
    """Matching logits: the limit of soft targets at high temperature, where all of the teacher's logits count.

    Args:
        center: whether each row's mean is taken off first, as a softmax would.
        from_logits: as in `SoftTargets`.

    Example:
        >>> round(float(LogitMatching().compute_loss([[1.0, 0.0]], [[4.0, 1.0]])), 6)
        0.5

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2.1; Ba, Caruana, arXiv:1312.6184, section 2.2.
    """

    def __init__(self, center: bool = True, *, from_logits: bool = True):
        # Members are merged as at temperature 1.
        super().__init__(1.0, from_logits=from_logits)
        self.center = bool(center)

    def of_logits(self, teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable) -> Tensor:
        """Returns the loss of each example, `(...)`."""
        return logit_matching(teacher_logits, student_logits, self.center)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"center": self.center, "from_logits": self.from_logits}
