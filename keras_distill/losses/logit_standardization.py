"""Logit standardization: another loss, on logits of mean 0 and standard deviation 1."""

from typing import Any

import keras
from keras import ops

from keras_distill._checks import error_message
from keras_distill._types import Tensor
from keras_distill.losses.logit_loss import merged_logits
from keras_distill.losses.per_example import PerExampleLoss, at_least_float32, serialized
from keras_distill.losses.soft_targets import SoftTargets


def standardized_logits(logits: Tensor) -> Tensor:
    """(z − mean) / standard deviation, over the classes: what is left of logits is their order and proportions.

    Args:
        logits: float `(..., num_classes)`.

    Returns:
        The same shape, at least float32, of mean 0 and standard deviation 1; 0 where all logits are equal.

    Example:
        >>> [round(float(z), 4) for z in standardized_logits([[3.0, 1.0, 2.0, 2.0]])[0]]
        [1.4142, -1.4142, 0.0, 0.0]

    Reference:
        Sun et al., "Logit Standardization in Knowledge Distillation", arXiv:2403.01427, algorithm 1, whose
        deviation divides by the number of classes K. The authors' code and their figure 2 divide by K − 1, which is
        this at a temperature √(K / (K − 1)) times as high.
    """
    logits = at_least_float32(logits)
    centred = logits - ops.mean(logits, axis=-1, keepdims=True)
    return centred * ops.rsqrt(ops.mean(ops.square(centred), axis=-1, keepdims=True) + 1e-12)


@keras.saving.register_keras_serializable(package="keras_distill")
class LogitStandardization(PerExampleLoss):
    """Another logit loss on standardised logits: the student need not match how large the teacher's are.

    Args:
        loss: the loss of logits that is wrapped; its temperature is the paper's base temperature. `None` is
            `SoftTargets(temperature=2.0)`.

    Raises:
        TypeError: `loss` is no loss over logits.

    Example:
        >>> loss = LogitStandardization(SoftTargets(2.0))
        >>> round(float(loss.compute_loss([[2.0, -1.0, 0.5]], [[4.0, -2.0, 1.0]])), 6)  # twice the logits
        0.0

    Reference:
        Sun et al., arXiv:2403.01427, section 4.3, algorithms 1 and 2; λ is 9 beside a hard loss of weight 0.1 there.
    """

    def __init__(self, loss: Any = None):
        loss = SoftTargets(temperature=2.0) if loss is None else loss
        if not isinstance(loss, PerExampleLoss) or loss.teacher_layer_name is not None or loss.head != "softmax":
            raise TypeError(error_message("loss must be a loss over logits, such as SoftTargets", type(loss).__name__))
        self.loss = loss
        self.reads = loss.reads
        self.head = loss.head
        self.from_logits = getattr(loss, "from_logits", True)

    @property
    def layers(self) -> list[keras.Layer]:
        """The wrapped loss's own layers."""
        return self.loss.layers

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor, **context: Any) -> Tensor:
        """Returns the wrapped loss of each example, `(...)`."""
        if isinstance(teacher_outputs, dict):
            # The mean of standardised members, since there is no one set of logits to standardise.
            if "member_logits" not in teacher_outputs:
                merged_logits(teacher_outputs, 1.0)
            members = standardized_logits(teacher_outputs["member_logits"])
            teacher_outputs = {**teacher_outputs, "member_logits": members}
        else:
            teacher_outputs = standardized_logits(teacher_outputs)
        return self.loss.per_example(teacher_outputs, standardized_logits(student_outputs), **context)

    def validate_outputs(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        """Raises `ValueError` where the wrapped loss would."""
        self.loss.validate_outputs(teacher_outputs, student_outputs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"loss": serialized(self.loss)}
