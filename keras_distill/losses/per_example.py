"""What all our losses have in common: one value for each example, reduced by the caller."""

from typing import Any

import keras
from keras import ops

from keras_distill._checks import error_message
from keras_distill._types import Tensor


class PerExampleLoss(keras.distillation.DistillationLoss):
    """A distillation loss that knows its value for every example.

    Sample weights, masks, class weights and replicas can only be respected before the mean is taken, so a
    subclass implements `per_example` and our `Distiller` reduces. `keras.distillation.Distiller`
    wants a scalar and calls `compute_loss`, which is the plain mean. `model.compile(loss=…)` calls the object with
    `(y_true, y_pred)`, the teacher's outputs as `y_true`.

    Constructor arguments are attributes of the same name; those that are layers (schedules, projectors) are trained,
    moved and saved by the `Distiller`, and are no part of the student.

    Attributes:
        teacher_layer_name: the teacher's layer whose output the loss reads; `None` reads its logits.
        student_layer_name: the student's layer whose output the loss reads; `None` reads its logits.
        mask_layer_name: the student's layer, mostly an input, whose output `(batch, tokens)` is not 0 at the tokens
            that count; `None` takes the mask that Keras keeps with what the loss reads of the student, if any.
        reads: what `per_example` wants beyond the outputs, as keyword arguments: `"labels"`, the batch's labels or
            `None`; `"mask"`, bool `(batch, tokens)` or `None`, for losses that relate tokens to each other;
            `"item_weights"`, sample weights times masks, `(batch, …)` or `None`, for losses that relate
            items to each other, where an item of weight 0 must not be anybody's partner.
        head: the activation that makes probabilities of the logits it compares: `"softmax"`, `"sigmoid"`; `"linear"`
            where it compares the models' own numbers, or `None` where it is no matter.
    """

    teacher_layer_name: str | None = None
    student_layer_name: str | None = None
    mask_layer_name: str | None = None
    reads: tuple[str, ...] = ()
    head: str | None = None

    @property
    def layers(self) -> list[keras.Layer]:
        """The layers that the loss has of its own: schedules, learnt temperatures, projectors."""
        return [value for value in vars(self).values() if isinstance(value, keras.Layer)]

    def build(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        """Makes what the loss trains of its own, once the outputs' shapes are known; nothing by default."""

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Returns the loss of each example, float, shaped as the outputs without their last axis."""
        raise NotImplementedError(f"{type(self).__name__} must implement per_example")

    def compute_loss(self, teacher_outputs: Tensor, student_outputs: Tensor, **kwargs: Any) -> Tensor:
        """Returns the mean of `per_example`, a scalar.

        Raises:
            ValueError: a mask is named, which only our `Distiller` looks up.
        """
        if self.mask_layer_name is not None:
            expectation = f"{type(self).__name__} with a mask_layer_name must be trained by keras_distill.Distiller"
            remedy = "It looks the mask up and takes the mean over what is no padding; this is a plain mean."
            raise ValueError(error_message(expectation, repr(self.mask_layer_name), remedy))
        context = {name: value for name, value in kwargs.items() if name in self.reads}
        return ops.mean(self.per_example(teacher_outputs, student_outputs, **context))

    def __call__(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The loss of each example, as `model.compile(loss=…)` calls it: the teacher's outputs are `y_true`."""
        self.validate_outputs(y_true, y_pred)
        return self.per_example(y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        raise NotImplementedError(f"{type(self).__name__} must implement get_config")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PerExampleLoss":
        """Builds the loss that `get_config` described."""
        return cls(**{name: restored(value) for name, value in config.items()})


def serialized(value: Any) -> Tensor:
    """A constructor's argument as a config holds it: a number, or the config of a schedule, layer or loss."""
    # A variable is the caller's, who moves it; what a file can keep of it is its value.
    if isinstance(value, keras.Variable):
        return float(value.numpy())
    is_plain = value is None or isinstance(value, (bool, int, float, str, list, tuple))
    return value if is_plain else keras.saving.serialize_keras_object(value)


def restored(value: Any) -> Tensor:
    """What `serialized` was given."""
    return keras.saving.deserialize_keras_object(value) if isinstance(value, dict) and "class_name" in value else value


def at_least_float32(values: Tensor) -> Tensor:
    """`values` as a tensor in which sums over many entries are right: half precision becomes float32."""
    values = ops.convert_to_tensor(values)
    return ops.cast(values, sum_dtype(values))


def sum_dtype(values: Tensor) -> str:
    """The dtype in which sums over a tensor's entries are right: its own if it is float64, else float32.

    Keras's own promotion makes float32 of float64 on JAX, also where JAX has been told to keep it.
    """
    return "float64" if keras.backend.standardize_dtype(values.dtype) == "float64" else "float32"


def log_probabilities(probabilities: Tensor) -> Tensor:
    """The logarithm of probabilities, which is logits whose softmax they are; 0 becomes log(1e-30)."""
    return ops.log(ops.maximum(at_least_float32(probabilities), 1e-30))


def one_for_each(item_weights: Tensor, outputs: Tensor) -> Tensor:
    """Weights `(batch, …)` for every entry of the outputs' leading axes: a sequence's weight is each token's."""
    if len(item_weights.shape) == len(outputs.shape):
        item_weights = item_weights[..., 0]
    missing = len(outputs.shape) - 1 - len(item_weights.shape)
    weights = ops.reshape(item_weights, (*ops.shape(item_weights), *[1] * missing))
    return ops.broadcast_to(weights, ops.shape(outputs)[:-1])


def check_same_classes(teacher_shape: tuple, student_shape: tuple) -> None:
    """Raises `ValueError` where two outputs differ in rank or in the number of classes."""
    if len(teacher_shape) != len(student_shape):
        remedy = f"The teacher's are {teacher_shape}: distil outputs of one kind, or reshape one of them."
        raise ValueError(error_message(f"student outputs must have rank {len(teacher_shape)}", student_shape, remedy))
    if teacher_shape[-1] != student_shape[-1]:
        remedy = "Teacher and student must name the same classes in the same order."
        expected = f"have {teacher_shape[-1]} classes, as the teacher's do"
        raise ValueError(error_message(f"student outputs must {expected}", f"{student_shape[-1]} classes", remedy))
