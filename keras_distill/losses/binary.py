"""Soft targets of sigmoid heads: several labels an example, or one unit."""

from typing import Any

import keras
from keras import ops

from keras_distill._types import Schedulable, Tensor
from keras_distill.losses.logit_loss import LogitLoss, merged_logits, validate_logits
from keras_distill.losses.per_example import at_least_float32
from keras_distill.schedules import current


def binary_soft_targets(teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable) -> Tensor:
    """T²·KL of the softened sigmoids, each label a Bernoulli of its own, the mean over labels, in nats.

    With p = σ(v / T) and q = σ(z / T): T²·(p·log(p / q) + (1 − p)·log((1 − p) / (1 − q))). The mean, as
    `BinaryCrossentropy` takes it, so that the two terms keep their proportion.

    Args:
        teacher_logits: v, float `(..., num_labels)`, before the sigmoid.
        student_logits: z, float, the same shape.
        temperature: T > 0.

    Returns:
        float `(...)`, at least float32.

    Example:
        >>> round(float(binary_soft_targets([[0.0]], [[2.0]], 1.0)[0]), 6)  # −½·log(4·σ(2)·σ(−2))
        0.433781

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2, with a sigmoid for the softmax.
    """
    teacher_logits, student_logits = at_least_float32(teacher_logits), at_least_float32(student_logits)
    teacher_logits = ops.cast(teacher_logits, student_logits.dtype)
    temperature = ops.cast(temperature, student_logits.dtype)
    teacher, student = teacher_logits / temperature, student_logits / temperature
    divergence = ops.sigmoid(teacher) * (ops.log_sigmoid(teacher) - ops.log_sigmoid(student))
    divergence += ops.sigmoid(-teacher) * (ops.log_sigmoid(-teacher) - ops.log_sigmoid(-student))
    return ops.square(temperature) * ops.mean(ops.maximum(divergence, 0.0), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class BinarySoftTargets(LogitLoss):
    """Soft targets for sigmoids: multilabel models, and binary ones with a single unit.

    Args:
        temperature: T > 0.
        from_logits: `False` where the loss is used in plain Keras on models that end in a sigmoid.

    Example:
        >>> round(float(BinarySoftTargets(1.0).compute_loss([[0.0]], [[2.0]])), 6)
        0.433781

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2, with a sigmoid for the softmax.
    """

    head = "sigmoid"

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor, **context: Any) -> Tensor:
        """Returns the loss of each example, `(...)`, of logits `(..., num_labels)` or an ensemble's members."""
        temperature = current(self.temperature)
        if not self.from_logits:
            teacher_outputs, student_outputs = map(_sigmoid_logits, (teacher_outputs, student_outputs))
        if isinstance(teacher_outputs, dict):
            teacher_outputs = _merged_sigmoid_logits(teacher_outputs, temperature)
        return binary_soft_targets(teacher_outputs, student_outputs, temperature)

    def validate_outputs(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        """Raises `ValueError` where the two differ in rank or in the number of labels."""
        validate_logits(teacher_outputs, student_outputs)


def _sigmoid_logits(probabilities: Tensor) -> Tensor:
    probabilities = ops.clip(at_least_float32(probabilities), 1e-7, 1.0 - 1e-7)
    return ops.log(probabilities) - ops.log(1.0 - probabilities)


def _merged_sigmoid_logits(teacher_outputs: dict[str, Any], temperature: Schedulable) -> Tensor:
    """T·logit of the members' mean σ(memberₘ / T), in the log domain."""
    if "member_logits" not in teacher_outputs:
        merged_logits(teacher_outputs, temperature)
    members = at_least_float32(teacher_outputs["member_logits"]) / temperature
    log_weights = ops.log(ops.cast(teacher_outputs["member_weights"], members.dtype))[..., None]
    log_on = ops.logsumexp(ops.log_sigmoid(members) + log_weights, axis=-2)
    return temperature * (log_on - ops.logsumexp(ops.log_sigmoid(-members) + log_weights, axis=-2))
