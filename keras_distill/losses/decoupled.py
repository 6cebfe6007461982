"""Decoupled knowledge distillation (DKD): the target class and the others, each with a weight of its own."""

from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_number, error_message
from keras_distill._types import Schedulable, Tensor
from keras_distill.losses.labels import class_ids
from keras_distill.losses.logit_loss import LogitLoss
from keras_distill.losses.per_example import at_least_float32
from keras_distill.schedules import WarmUp, current


def target_classes(labels: Tensor, teacher_logits: Tensor) -> Tensor:
    """Each item's target class as a one-hot row; where it has no label, the class that the teacher thinks likeliest.

    Args:
        labels: integers `(...)` or `(..., 1)`, negative for "no label"; or one row a class, `(..., num_classes)`, of
            which the largest counts; or `None`.
        teacher_logits: float `(..., num_classes)`.

    Returns:
        Float `(..., num_classes)`, zeros and ones.

    Example:
        >>> target_classes([1, -1], [[5.0, 0.0, 0.0], [0.0, 0.0, 5.0]]).numpy().tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    teacher_logits = ops.convert_to_tensor(teacher_logits)
    classes = ops.cast(ops.argmax(teacher_logits, axis=-1), "int32")
    if labels is not None:
        given = class_ids(labels, teacher_logits)
        classes = ops.where(given < 0, classes, given)
    return ops.one_hot(classes, teacher_logits.shape[-1], dtype=teacher_logits.dtype)


def decoupled_divergence(
    teacher_logits: Tensor,
    student_logits: Tensor,
    targets: Tensor,
    temperature: Schedulable,
    *,
    alpha: Schedulable = 1.0,
    beta: Schedulable = 8.0,
) -> Tensor:
    """T²·(α·TCKD + β·NCKD), for each example, in nats: what soft targets couple, with weights of its own.

    With p the teacher's and q the student's probability of the target class, at temperature T,

        TCKD = p·log(p / q) + (1 − p)·log((1 − p) / (1 − q))
        NCKD = Σ p̂ᵢ·log(p̂ᵢ / q̂ᵢ) over the other classes, p̂ and q̂ scaled to sum to one over them.

    Soft targets are T²·(TCKD + (1 − p)·NCKD): the surer the teacher, the less its dark knowledge counts there.

    Args:
        teacher_logits: float `(..., num_classes)`.
        student_logits: float, the same shape.
        targets: one-hot float, the same shape; see `target_classes`.
        temperature: T > 0.
        alpha: the weight of TCKD.
        beta: the weight of NCKD.

    Returns:
        float `(...)`, at least float32.

    Example:
        >>> teacher, student, target = [[2.0, 0.0, 0.0]], [[2.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]
        >>> loss = decoupled_divergence(teacher, student, target, 1.0, alpha=0.0, beta=1.0)
        >>> round(float(loss[0]), 6)  # ½·log(½ / 0.731) + ½·log(½ / 0.269)
        0.120114

    Reference:
        Zhao et al., "Decoupled Knowledge Distillation", arXiv:2203.08679, sections 3.1 and 3.3, equation 7.
    """
    is_target = ops.cast(targets, "bool")
    teacher_target, teacher_rest, teacher_others = _split_target(teacher_logits, is_target, temperature)
    student_target, student_rest, student_others = _split_target(student_logits, is_target, temperature)
    target_class = ops.exp(teacher_target) * (teacher_target - student_target)
    target_class += ops.exp(teacher_rest) * (teacher_rest - student_rest)
    # At the target both are 0, and so is their difference.
    other_classes = ops.sum(ops.exp(teacher_others) * (teacher_others - student_others), axis=-1)
    return ops.square(ops.cast(temperature, target_class.dtype)) * (alpha * target_class + beta * other_classes)


def _split_target(logits: Tensor, is_target: Tensor, temperature: Schedulable) -> tuple[Any, Any, Any]:
    """Log-probabilities of the target class, of all others together, and of each other among them (0 at the target)."""
    logits = at_least_float32(logits)
    log_probabilities = ops.log_softmax(logits / ops.cast(temperature, logits.dtype), axis=-1)
    target = ops.sum(ops.where(is_target, log_probabilities, 0.0), axis=-1)
    # 1 − p loses all digits where p is near one; the sum of the others does not.
    rest = ops.logsumexp(ops.where(is_target, -1e30, log_probabilities), axis=-1)
    return target, rest, ops.where(is_target, 0.0, log_probabilities - rest[..., None])


@keras.saving.register_keras_serializable(package="keras_distill")
class DecoupledKD(LogitLoss):
    """DKD: what the teacher thinks of the target class and of all the others, each with a weight of its own.

    It reads the labels. Items without one, and `keras.distillation.Distiller`, which hands no labels on, take the
    teacher's likeliest class for the target.

    Args:
        temperature: T > 0.
        alpha: the weight of the target class's divergence (TCKD).
        beta: the weight of the others' (NCKD); the paper's best are 1 to 10, larger for surer teachers.
        warm_up_epochs: over how many epochs the loss grows to its full weight; the authors' code takes 20 of 240.
        from_logits: as in `SoftTargets`.

    Raises:
        ValueError: a weight, a temperature or a length out of range.

    Example:
        >>> loss = DecoupledKD(temperature=4.0, alpha=1.0, beta=8.0)
        >>> round(float(loss.compute_loss([[2.0, 0.0, 1.0]], [[2.0, 0.0, 1.0]], labels=[0])), 6)
        0.0

    Reference:
        Zhao et al., arXiv:2203.08679, section 3.3.
    """

    reads = ("labels",)

    def __init__(
        self,
        temperature: Schedulable = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        warm_up_epochs: float = 0,
        *,
        from_logits: bool = True,
    ):
        super().__init__(temperature, from_logits=from_logits)
        self.alpha, self.beta = check_number("alpha", alpha), check_number("beta", beta)
        if min(self.alpha, self.beta) < 0.0:
            raise ValueError(error_message("alpha and beta must be >= 0", (self.alpha, self.beta)))
        self.warm_up_epochs = check_number("warm_up_epochs", warm_up_epochs)
        self.warm_up = WarmUp(1.0, warm_up_epochs) if warm_up_epochs else 1.0

    def of_logits(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable, labels: Tensor = None
    ) -> Tensor:
        """Returns the loss of each example, `(...)`."""
        targets = target_classes(labels, teacher_logits)
        scale = ops.cast(current(self.warm_up), student_logits.dtype)
        alpha, beta = scale * self.alpha, scale * self.beta
        return decoupled_divergence(teacher_logits, student_logits, targets, temperature, alpha=alpha, beta=beta)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"alpha": self.alpha, "beta": self.beta, "warm_up_epochs": self.warm_up_epochs}
        return {**super().get_config(), **own}
