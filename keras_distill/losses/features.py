"""What losses over features share, and attention maps.

Layers are named, `"layer"` or `"model/layer"` inside a nested one. Not here: features that are regressed (`hints.py`),
how tokens relate (`self_attention.py`) and how items do (`relations.py`).
"""

from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_positive, error_message
from keras_distill._types import Tensor
from keras_distill.losses.per_example import PerExampleLoss, at_least_float32
from keras_distill.losses.projector import resized


class FeatureLoss(PerExampleLoss):
    """A loss over the outputs of two layers.

    Args:
        teacher_layer_name: the teacher's layer; `None` reads its logits.
        student_layer_name: the student's layer; `None` takes the teacher's name.
    """

    def __init__(self, teacher_layer_name: str | None = None, student_layer_name: str | None = None):
        self.teacher_layer_name = teacher_layer_name
        self.student_layer_name = teacher_layer_name if student_layer_name is None else student_layer_name

    def validate_outputs(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        """Raises `ValueError` where features are no tensors of one rank."""
        check_single(teacher_outputs, student_outputs)
        if len(teacher_outputs.shape) != len(student_outputs.shape):
            remedy = "Name layers of one kind, for example both before the global pooling."
            received = f"{tuple(student_outputs.shape)} against the teacher's {tuple(teacher_outputs.shape)}"
            expected = f"have rank {len(teacher_outputs.shape)}, as the teacher's do"
            raise ValueError(error_message(f"student features must {expected}", received, remedy))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"teacher_layer_name": self.teacher_layer_name, "student_layer_name": self.student_layer_name}


def check_single(teacher_outputs: Tensor, student_outputs: Tensor) -> None:
    """Raises `ValueError` where what is compared is not one tensor of each model."""
    if isinstance(teacher_outputs, dict) or isinstance(student_outputs, dict):
        remedy = "Name the layers, or distil the logits of several members with SoftTargets."
        raise ValueError(
            error_message("features must be one tensor of the teacher and one of the student", "several", remedy)
        )


def attention_map(features: Tensor, power: float = 2.0) -> Tensor:
    """Where a layer looks: the mean over channels of |a|ᵖ at each place, scaled to a vector of length one.

    Args:
        features: float `(batch, *places, channels)`.
        power: p > 0; higher puts more weight on the strongest places.

    Returns:
        float `(batch, num_places)`, at least float32.

    Example:
        >>> [round(float(a), 6) for a in attention_map([[[1.0, 1.0], [0.0, 2.0]]])[0]]  # 1 and 2, over √5
        [0.447214, 0.894427]

    Reference:
        Zagoruyko, Komodakis, "Paying More Attention to Attention", arXiv:1612.03928, section 3.1.
    """
    features = at_least_float32(features)
    energy = ops.square(features) if power == 2.0 else ops.power(ops.abs(features), power)
    energy = ops.mean(energy, axis=-1)
    energy = ops.reshape(energy, (ops.shape(energy)[0], -1))
    return energy * ops.rsqrt(ops.sum(ops.square(energy), axis=-1, keepdims=True) + 1e-12)


def attention_transfer(teacher_features: Tensor, student_features: Tensor, power: float = 2.0) -> Tensor:
    """The squared difference of the two attention maps, the mean over places, for each example.

    The paper's text takes the difference's norm, its authors' code this, with a weight of 1000 / 2 for each layer.

    Args:
        teacher_features: float `(batch, *places, channels)`.
        student_features: float `(batch, *places, channels)`; channels may differ. Where the places differ, the
            larger map is brought to the smaller one's.
        power: as in `attention_map`.

    Returns:
        float `(batch,)`, at least float32.

    Example:
        >>> teacher, student = [[[3.0], [0.0]]], [[[0.0], [2.0]]]
        >>> attention_transfer(teacher, student).numpy().round(6).tolist()  # opposite places: (1 + 1) / 2
        [1.0]

    Reference:
        Zagoruyko, Komodakis, arXiv:1612.03928, section 3.1, equation 2.
    """
    teacher_features, student_features = map(ops.convert_to_tensor, (teacher_features, student_features))
    theirs, ours = teacher_features.shape[1:-1], student_features.shape[1:-1]
    if None not in (*theirs, *ours) and tuple(theirs) != tuple(ours):
        smaller = tuple(min(pair) for pair in zip(theirs, ours, strict=True))
        teacher_features = resized(at_least_float32(teacher_features), smaller)
        student_features = resized(at_least_float32(student_features), smaller)
    student_map = attention_map(student_features, power)
    difference = student_map - ops.cast(attention_map(teacher_features, power), student_map.dtype)
    return ops.mean(ops.square(difference), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class AttentionTransfer(FeatureLoss):
    """Attention transfer: the student looks where the teacher looks, whatever the number of channels.

    Args:
        teacher_layer_name: the teacher's layer, of shape `(batch, height, width, channels)` or `(batch, time, …)`.
        student_layer_name: the student's layer; `None` takes the teacher's name.
        power: as in `attention_map`.

    Raises:
        ValueError: `power` not > 0.

    Example:
        >>> loss = AttentionTransfer("block2")
        >>> round(float(loss.compute_loss([[[3.0], [0.0]]], [[[0.0], [2.0]]])), 6)
        1.0

    Reference:
        Zagoruyko, Komodakis, arXiv:1612.03928, section 3.1.
    """

    def __init__(
        self, teacher_layer_name: str | None = None, student_layer_name: str | None = None, power: float = 2.0
    ):
        super().__init__(teacher_layer_name, student_layer_name)
        self.power = check_positive("power", power)

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Returns the loss of each example, `(batch,)`."""
        return attention_transfer(teacher_outputs, student_outputs, self.power)

    def validate_outputs(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        """Raises `ValueError` where features differ in rank or have no places."""
        super().validate_outputs(teacher_outputs, student_outputs)
        if len(student_outputs.shape) < 3:
            remedy = "Name a layer before the pooling; for vectors use Hint."
            raise ValueError(
                error_message(
                    "features must have shape (batch, places …, channels)", tuple(student_outputs.shape), remedy
                )
            )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "power": self.power}
