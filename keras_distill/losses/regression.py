"""Regression: the teacher's plain numbers as targets."""

from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_number, check_positive, error_message
from keras_distill._types import Tensor
from keras_distill.losses.logit_loss import merged_logits, validate_logits
from keras_distill.losses.per_example import PerExampleLoss, at_least_float32


def regression_targets(teacher_values: Tensor, student_values: Tensor, delta: float | None = None) -> Tensor:
    """½·(student − teacher)², or Huber's loss of it, the mean over the last axis, for each example.

    Args:
        teacher_values: float `(..., num_values)`.
        student_values: float, the same shape.
        delta: where Huber's loss turns from a square to a line, in the values' unit; `None` keeps the square.

    Returns:
        float `(...)`, at least float32.

    Example:
        >>> regression_targets([[0.0], [0.0]], [[2.0], [4.0]], delta=3.0).numpy().tolist()
        [2.0, 7.5]

    Reference:
        Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS 2017, section
        3.3, for teachers of regressions.
    """
    student_values = at_least_float32(student_values)
    difference = ops.abs(student_values - ops.cast(teacher_values, student_values.dtype))
    values = 0.5 * ops.square(difference)
    if delta is not None:
        values = ops.where(difference <= delta, values, delta * (difference - 0.5 * delta))
    return ops.mean(values, axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class RegressionTargets(PerExampleLoss):
    """The teacher's numbers as targets, for models that predict quantities and not classes.

    Args:
        delta: where Huber's loss turns from a square to a line; `None` keeps the square.
        margin: `None` learns every prediction of the teacher's. A number learns only those of items whose student is
            worse than the teacher, by this much in squared error, against the labels; items without finite labels are
            learnt from always. It reads the labels.

    Raises:
        ValueError: `delta` not > 0, or `margin` < 0. In a `Distiller`: a model that ends in a softmax or a sigmoid.

    Example:
        >>> loss = RegressionTargets(margin=0.0)
        >>> values = loss.per_example([[1.0], [1.0]], [[3.0], [0.1]], labels=[[0.0], [0.0]])
        >>> values.numpy().tolist()  # the second student is already nearer to the label than its teacher
        [2.0, 0.0]

    Reference:
        Chen et al., NeurIPS 2017, section 3.3, equation 4: the teacher as an upper bound.
    """

    # Numbers are compared as the models give them: those before a sigmoid are others.
    head = "linear"

    def __init__(self, delta: float | None = None, margin: float | None = None):
        self.delta = None if delta is None else check_positive("delta", delta)
        self.margin = None if margin is None else check_number("margin", margin)
        if self.margin is not None and self.margin < 0.0:
            raise ValueError(error_message("margin must be >= 0", self.margin))
        self.reads = () if margin is None else ("labels",)

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor, labels: Tensor = None) -> Tensor:
        """Returns the loss of each example, `(...)`, of numbers `(..., num_values)` or an ensemble's members."""
        if isinstance(teacher_outputs, dict):
            if "member_logits" not in teacher_outputs:
                merged_logits(teacher_outputs, 1.0)
            weights = at_least_float32(teacher_outputs["member_weights"])[..., None]
            teacher_outputs = ops.sum(at_least_float32(teacher_outputs["member_logits"]) * weights, axis=-2)
        values = regression_targets(teacher_outputs, student_outputs, self.delta)
        if labels is None or self.margin is None:
            return values
        labels = ops.reshape(ops.cast(labels, values.dtype), ops.shape(student_outputs))
        student_error = ops.sum(ops.square(ops.cast(student_outputs, values.dtype) - labels), axis=-1)
        teacher_error = ops.sum(ops.square(ops.cast(teacher_outputs, values.dtype) - labels), axis=-1)
        return ops.where(student_error + self.margin <= teacher_error, 0.0, values)

    def validate_outputs(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        """Raises `ValueError` where the two differ in rank or in the number of values."""
        validate_logits(teacher_outputs, student_outputs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"delta": self.delta, "margin": self.margin}
