"""What losses over logits have in common: a temperature, outputs that may be probabilities, classes that must agree."""

from typing import Any

from keras import ops

from keras_distill._checks import check_positive, error_message
from keras_distill._types import Schedulable, Tensor
from keras_distill.losses.per_example import (
    PerExampleLoss,
    at_least_float32,
    check_same_classes,
    log_probabilities,
    serialized,
)
from keras_distill.schedules import check_schedulable, current


class LogitLoss(PerExampleLoss):
    """A loss over the logits of a softmax, at a temperature.

    A subclass implements `of_logits`. The teacher's outputs may be dense logits or an ensemble's members.

    Args:
        temperature: T > 0; a schedule, a learnt temperature or a `keras.Variable` is read anew at every step.
        from_logits: `False` where the loss is used in plain Keras on models that end in a softmax: both outputs are
            probabilities then. In a `Distiller` the outputs are logits whatever the heads.
    """

    head = "softmax"

    def __init__(self, temperature: Schedulable = 4.0, *, from_logits: bool = True):
        self.temperature = check_schedulable("temperature", temperature, check_positive, "Hinton et al. use 1 to 20.")
        self.from_logits = bool(from_logits)

    def of_logits(self, *arguments: Any, **context: Any) -> Tensor:
        """Returns the loss of each example, `(...)`, of teacher's and student's logits and a temperature."""
        raise NotImplementedError(f"{type(self).__name__} must implement of_logits")

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor, **context: Any) -> Tensor:
        """Returns the loss of each example, `(...)`.

        Args:
            teacher_outputs: logits `(..., num_classes)`, or an ensemble's
                `{"member_logits": (..., members, num_classes), "member_weights": (..., members)}`.
            student_outputs: logits `(..., num_classes)`.
            context: what `reads` names.
        """
        temperature = current(self.temperature)
        teacher_logits = merged_logits(teacher_outputs, temperature) if self.from_logits else teacher_outputs
        if not self.from_logits:
            teacher_logits, student_outputs = log_probabilities(teacher_logits), log_probabilities(student_outputs)
        student_logits = at_least_float32(student_outputs)
        teacher_logits = ops.cast(teacher_logits, student_logits.dtype)
        return self.of_logits(teacher_logits, student_logits, temperature, **context)

    def validate_outputs(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        """Raises `ValueError` where the two differ in rank or classes, or where a softmax would be constant."""
        validate_logits(teacher_outputs, student_outputs)
        check_several_classes(type(self).__name__, student_outputs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"temperature": serialized(self.temperature), "from_logits": self.from_logits}


def merged_logits(teacher_outputs: Tensor, temperature: Schedulable) -> Tensor:
    """One set of logits whose softmax at `temperature` is the teacher's target at that temperature.

    For members that is `T·log Σₘ wₘ·softmax(memberₘ / T)`: right at this temperature only.

    Args:
        teacher_outputs: logits `(..., num_classes)`, or `{"member_logits": …, "member_weights": …}`.
        temperature: T > 0.

    Returns:
        Logits `(..., num_classes)`, at least float32.

    Raises:
        ValueError: top-k or sampled targets, whose other classes are not known one by one.

    Example:
        >>> members = {"member_logits": [[[2.0, 0.0], [0.0, 2.0]]], "member_weights": [[0.5, 0.5]]}
        >>> [round(float(p), 6) for p in ops.softmax(merged_logits(members, 1.0))[0]]
        [0.5, 0.5]
    """
    if not isinstance(teacher_outputs, dict):
        return at_least_float32(teacher_outputs)
    if "member_logits" not in teacher_outputs:
        remedy = "SoftTargets takes top-k and sampled targets; or store the teacher's logits of all classes."
        raise ValueError(
            error_message("the teacher's outputs must be the logits of all classes", sorted(teacher_outputs), remedy)
        )
    member_logits = at_least_float32(teacher_outputs["member_logits"])
    log_weights = ops.log(ops.cast(teacher_outputs["member_weights"], member_logits.dtype))[..., None]
    temperature = ops.cast(temperature, member_logits.dtype)
    log_members = ops.log_softmax(member_logits / temperature, axis=-1)
    return temperature * ops.logsumexp(log_members + log_weights, axis=-2)


def validate_logits(teacher_outputs: Tensor, student_outputs: Tensor) -> None:
    """Raises `ValueError` where the student's logits are not of the rank and the classes of the teacher's."""
    student_shape = tuple(student_outputs.shape)
    if not isinstance(teacher_outputs, dict):
        teacher_shape = tuple(teacher_outputs.shape)
    elif "top_k_logits" in teacher_outputs or "sampled_ids" in teacher_outputs:
        ids = teacher_outputs["sampled_ids" if "sampled_ids" in teacher_outputs else "top_k_ids"]
        teacher_shape = tuple(ids.shape)
        if "classes" in teacher_outputs:
            teacher_shape = (*teacher_shape[:-1], teacher_outputs["classes"].shape[-1])
        elif teacher_shape[-1] <= student_shape[-1]:
            # How many classes such a row was cut or drawn from it does not say itself.
            teacher_shape = (*teacher_shape[:-1], student_shape[-1])
    else:
        shape = tuple(teacher_outputs["member_logits"].shape)
        teacher_shape = (*shape[:-2], shape[-1])
    check_same_classes(teacher_shape, student_shape)


def check_several_classes(loss_name: str, student_outputs: Tensor) -> None:
    """Raises `ValueError` for one class: its softmax is 1 whatever the logit, so the loss would be 0 in silence."""
    if student_outputs.shape[-1] == 1:
        remedy = "For a sigmoid over one unit use keras_distill.losses.BinarySoftTargets."
        raise ValueError(
            error_message(f"{loss_name}'s student outputs must have two or more classes", "1 class", remedy)
        )
