"""Refined logit distillation (RLD): what a wrong teacher still has to say, without what is wrong in it."""

from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_number, error_message
from keras_distill._types import Schedulable, Tensor
from keras_distill.losses.decoupled import target_classes
from keras_distill.losses.logit_loss import LogitLoss
from keras_distill.losses.per_example import at_least_float32

_NOWHERE = -1e30


def sample_confidence(
    teacher_logits: Tensor, student_logits: Tensor, targets: Tensor, temperature: Schedulable
) -> Tensor:
    """T²·KL(b ‖ c), for each example, in nats: how sure to be, whatever the teacher is sure of.

    b is (the teacher's highest probability, the rest), c is (the student's probability of the target class, the rest):
    the student becomes as sure of the *right* class as the teacher is of its own.

    Args:
        teacher_logits: float `(..., num_classes)`.
        student_logits: float, the same shape.
        targets: one-hot float, the same shape; see `target_classes`.
        temperature: T > 0.

    Returns:
        float `(...)`, at least float32.

    Example:
        >>> wrong, right, target = [[2.0, 0.0]], [[0.0, 2.0]], [[0.0, 1.0]]
        >>> round(abs(float(sample_confidence(wrong, right, target, 1.0)[0])), 6)
        0.0

    Reference:
        Sun et al., "Knowledge Distillation with Refined Logits", arXiv:2408.07703, "sample confidence".
    """
    student = at_least_float32(student_logits)
    temperature = ops.cast(temperature, student.dtype)
    teacher = ops.cast(teacher_logits, student.dtype) / temperature
    student = student / temperature
    highest = ops.one_hot(ops.argmax(teacher, axis=-1), teacher.shape[-1], dtype="bool")
    teacher_pair, student_pair = _of_one(teacher, highest), _of_one(student, ops.cast(targets, "bool"))
    divergence = sum(ops.exp(p) * (p - q) for p, q in zip(teacher_pair, student_pair, strict=True))
    return ops.square(temperature) * divergence


def masked_correlation(
    teacher_logits: Tensor, student_logits: Tensor, targets: Tensor, temperature: Schedulable
) -> Tensor:
    """T²·KL between the two softmaxes over the classes that the teacher thinks less likely than the target.

    The target itself, and whatever the teacher put before it, are left out: they are what it may have wrong.

    Args:
        teacher_logits: float `(..., num_classes)`.
        student_logits: float, the same shape.
        targets: one-hot float, the same shape; see `target_classes`.
        temperature: T > 0.

    Returns:
        float `(...)`, at least float32; 0 where fewer than two classes are left.

    Example:
        >>> teacher, student = [[3.0, 1.0, 0.0, 0.0]], [[9.0, 2.0, 1.0, 1.0]]
        >>> target = [[0.0, 1.0, 0.0, 0.0]]  # the last two classes are left, and there the two agree
        >>> round(abs(float(masked_correlation(teacher, student, target, 1.0)[0])), 6)
        0.0

    Reference:
        Sun et al., arXiv:2408.07703, "masked correlation".
    """
    student = at_least_float32(student_logits)
    temperature = ops.cast(temperature, student.dtype)
    teacher = ops.cast(teacher_logits, student.dtype)
    of_target = ops.sum(ops.where(ops.cast(targets, "bool"), teacher, 0.0), axis=-1, keepdims=True)
    is_left = teacher < of_target
    log_p = ops.log_softmax(ops.where(is_left, teacher / temperature, _NOWHERE), axis=-1)
    log_q = ops.log_softmax(ops.where(is_left, student / temperature, _NOWHERE), axis=-1)
    parts = ops.where(is_left, ops.exp(log_p) * (log_p - log_q), 0.0)
    return ops.square(temperature) * ops.sum(parts, axis=-1)


def _of_one(logits: Tensor, is_one: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of one class and of all others together, `(...)` each."""
    log_probabilities = ops.log_softmax(logits, axis=-1)
    one = ops.sum(ops.where(is_one, log_probabilities, 0.0), axis=-1)
    # 1 − p loses all digits where p is near one; the sum of the others does not.
    return one, ops.logsumexp(ops.where(is_one, _NOWHERE, log_probabilities), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class RefinedLogits(LogitLoss):
    """RLD: the teacher's confidence and the order of its unlikely classes, without its mistakes.

    It reads the labels. Items without one, and `keras.distillation.Distiller`, which hands no labels on, take the
    teacher's likeliest class for the target; then nothing is a mistake.

    Args:
        temperature: T > 0.
        alpha: the weight of `sample_confidence`.
        beta: the weight of `masked_correlation`.
        from_logits: as in `SoftTargets`.

    Raises:
        ValueError: a weight or the temperature out of range.

    Example:
        >>> loss = RefinedLogits(temperature=1.0, alpha=1.0, beta=0.0)
        >>> round(abs(float(loss.compute_loss([[2.0, 0.0]], [[0.0, 2.0]], labels=[1]))), 6)
        0.0

    Reference:
        Sun et al., arXiv:2408.07703. The authors' code gives `sample_confidence` a temperature of its own, and lets the
        loss grow over the first 20 of 240 epochs: `distillation_loss_weights=WarmUp(…)` does the same.
    """

    reads = ("labels",)

    def __init__(
        self, temperature: Schedulable = 4.0, alpha: float = 1.0, beta: float = 8.0, *, from_logits: bool = True
    ):
        super().__init__(temperature, from_logits=from_logits)
        self.alpha, self.beta = check_number("alpha", alpha), check_number("beta", beta)
        if min(self.alpha, self.beta) < 0.0:
            raise ValueError(error_message("alpha and beta must be >= 0", (self.alpha, self.beta)))

    def of_logits(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable, labels: Tensor = None
    ) -> Tensor:
        """Returns the loss of each example, `(...)`."""
        targets = target_classes(labels, teacher_logits)
        confidence = sample_confidence(teacher_logits, student_logits, targets, temperature)
        return self.alpha * confidence + self.beta * masked_correlation(
            teacher_logits, student_logits, targets, temperature
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta}
