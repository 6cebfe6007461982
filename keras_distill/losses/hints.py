"""Losses that bring a student's features to the teacher's, place by place: hints, and the cosine of hidden states.

A place is a pixel of a map or a token of a sequence; of sequences with padding a mask says which tokens count.
"""

from typing import Any

import keras
from keras import ops

from keras_distill._checks import error_message
from keras_distill._types import Tensor
from keras_distill.losses.features import FeatureLoss
from keras_distill.losses.per_example import at_least_float32, serialized
from keras_distill.losses.projector import Projector


class ProjectedFeatureLoss(FeatureLoss):
    """A loss of the teacher's features and of the student's behind a projector.

    A subclass implements `of_features`.

    Args:
        teacher_layer_name: the teacher's layer; `None` reads its logits.
        student_layer_name: the student's layer; `None` takes the teacher's name.
        projector: a Keras layer from the student's features to the teacher's; `None` is a `Projector` made to match.
        mask_layer_name: as in `PerExampleLoss`.

    Raises:
        TypeError: `projector` is no layer.
    """

    def __init__(
        self,
        teacher_layer_name: str | None = None,
        student_layer_name: str | None = None,
        projector: keras.Layer | None = None,
        *,
        mask_layer_name: str | None = None,
    ):
        super().__init__(teacher_layer_name, student_layer_name)
        if projector is not None and not isinstance(projector, keras.Layer):
            raise TypeError(error_message("projector must be a Keras layer or None", type(projector).__name__))
        # The features' own precision would round the small updates of a projector away.
        self.projector = Projector(dtype="float32") if projector is None else projector
        self.mask_layer_name = mask_layer_name

    def of_features(self, teacher_features: Tensor, student_features: Tensor) -> Tensor:
        """Returns the loss of each place of each example, `(batch, …)`, of features of one shape."""
        raise NotImplementedError(f"{type(self).__name__} must implement of_features")

    def build(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        """Makes the projector that the two shapes need, if any, and its weights."""
        self._check_rank(teacher_outputs, student_outputs)
        student_shape, teacher_shape = tuple(student_outputs.shape), tuple(teacher_outputs.shape)
        if isinstance(self.projector, Projector):
            self.projector.match(student_shape, teacher_shape)
        if not self.projector.built:
            self.projector.build((None, *student_shape[1:]))

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Returns the loss of each place of each example, `(batch, …)`."""
        return self.of_features(teacher_outputs, self.projector(ops.convert_to_tensor(student_outputs)))

    def validate_outputs(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        """Raises `ValueError` where features differ in rank, or in shape with no projector between them."""
        self._check_rank(teacher_outputs, student_outputs)
        teacher_shape = tuple(teacher_outputs.shape)
        if self.projector.built:
            student_shape = tuple(self.projector.compute_output_shape(tuple(student_outputs.shape)))
        else:
            student_shape = tuple(student_outputs.shape)
        differ = any(
            ours is not None and theirs is not None and ours != theirs
            for theirs, ours in zip(teacher_shape[1:], student_shape[1:], strict=True)
        )
        if differ:
            remedy = "keras_distill.Distiller builds and trains the projector that they need."
            expected = f"have shape {teacher_shape[1:]} an item, as the teacher's do"
            raise ValueError(error_message(f"student features must {expected}", student_shape[1:], remedy))

    def _check_rank(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        super().validate_outputs(teacher_outputs, student_outputs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"projector": serialized(self.projector), "mask_layer_name": self.mask_layer_name}
        return {**super().get_config(), **own}


def hint(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """½·(student − teacher)², the mean over channels, for each place of each example.

    The paper sums over places and channels; the mean leaves a weight its meaning when the layer changes.

    Args:
        teacher_features: float `(batch, …, channels)`.
        student_features: float, the same shape, after the projector.

    Returns:
        float `(batch, …)`, at least float32.

    Example:
        >>> hint([[1.0, 2.0]], [[3.0, 2.0]]).numpy().tolist()
        [1.0]

    Reference:
        Romero et al., arXiv:1412.6550, section 2.2, equation 3.
    """
    student_features = at_least_float32(student_features)
    difference = student_features - ops.cast(teacher_features, student_features.dtype)
    return 0.5 * ops.mean(ops.square(difference), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class Hint(ProjectedFeatureLoss):
    """FitNets' hints: the student's features, through a projector, regress the teacher's.

    Where the shapes differ, the `Distiller` builds a projector, trains it with the student and saves it with itself;
    the student never holds it. `keras.distillation.Distiller` can train no projector: equal shapes only.

    Args:
        teacher_layer_name: the teacher's layer; `None` reads its logits.
        student_layer_name: the student's layer; `None` takes the teacher's name.
        projector: a Keras layer from the student's features to the teacher's; `None` is a `Projector` made to match.
        mask_layer_name: the student's layer that says which tokens are no padding, such as the input `"padding_mask"`
            of KerasHub's models; `None` takes the mask that Keras keeps with the features, if any.

    Raises:
        TypeError: `projector` is no layer.

    Example:
        >>> loss = Hint("hidden")
        >>> float(loss.compute_loss([[1.0, 2.0]], [[3.0, 2.0]]))
        1.0

    Reference:
        Romero et al., arXiv:1412.6550, section 2.2.
    """

    def of_features(self, teacher_features: Tensor, student_features: Tensor) -> Tensor:
        """Returns `hint` of each place, `(batch, …)`."""
        return hint(teacher_features, student_features)


def cosine_distance(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """1 − cos of the angle between the two vectors, for each place of each example.

    Args:
        teacher_features: float `(batch, …, channels)`.
        student_features: float, the same shape, after the projector.

    Returns:
        float `(batch, …)` in [0, 2], at least float32; 1 where a vector is zero.

    Example:
        >>> cosine_distance([[2.0, 0.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 1.0]]).numpy().tolist()
        [0.0, 1.0]

    Reference:
        Sanh et al., "DistilBERT, a distilled version of BERT", arXiv:1910.01108, section 3; PyTorch's
        `CosineEmbeddingLoss` with target 1.
    """
    student_features = at_least_float32(student_features)
    teacher_features = ops.cast(teacher_features, student_features.dtype)

    def direction(features: Tensor) -> Tensor:
        return features * ops.rsqrt(ops.sum(ops.square(features), axis=-1, keepdims=True) + 1e-12)

    cosine = ops.sum(direction(teacher_features) * direction(student_features), axis=-1)
    # Where the two agree, rounding may bring the cosine above 1.
    return ops.maximum(1.0 - cosine, 0.0)


@keras.saving.register_keras_serializable(package="keras_distill")
class CosineDistance(ProjectedFeatureLoss):
    """DistilBERT's cosine loss: hidden states point where the teacher's do, whatever their length.

    Where the widths differ, the `Distiller` builds a projector, as for `Hint`; DistilBERT itself is as wide as BERT.

    Args:
        teacher_layer_name: the teacher's layer, such as its last block; `None` reads its logits.
        student_layer_name: the student's layer; `None` takes the teacher's name.
        projector: a Keras layer from the student's features to the teacher's; `None` is a `Projector` made to match.
        mask_layer_name: the student's layer that says which tokens are no padding, as for `Hint`.

    Raises:
        TypeError: `projector` is no layer.

    Example:
        >>> loss = CosineDistance("transformer_layer_11", "transformer_layer_5", mask_layer_name="padding_mask")
        >>> loss.per_example([[[2.0, 0.0], [1.0, 0.0]]], [[[3.0, 0.0], [0.0, 1.0]]]).numpy().tolist()
        [[0.0, 1.0]]

    Reference:
        Sanh et al., arXiv:1910.01108, section 3.
    """

    def of_features(self, teacher_features: Tensor, student_features: Tensor) -> Tensor:
        """Returns `cosine_distance` of each place, `(batch, …)`."""
        return cosine_distance(teacher_features, student_features)
