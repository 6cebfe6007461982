"""`Projector`: a student's features brought to the teacher's shape, trained with the student and left behind.

Not here: the losses that compare features (`features.py`).
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_count, error_message
from keras_distill._types import Shape, Tensor, TensorTree


def resized(features: Tensor, size: Sequence[int]) -> Tensor:
    """Features `(batch, *places, channels)` with `size` places: block means where they divide, else bilinear.

    Args:
        features: float `(batch, height, width, channels)` or `(batch, time, channels)`.
        size: the number of places along each axis between the batch and the channels.

    Returns:
        Float `(batch, *size, channels)`.

    Example:
        >>> resized(ops.reshape(ops.arange(4, dtype="float32"), (1, 4, 1)), [2])[0, :, 0].numpy().tolist()
        [0.5, 2.5]
    """
    size = tuple(size)
    places = tuple(features.shape[1:-1])
    if places == size:
        return features
    shape = ops.shape(features)
    if all(old % new == 0 for old, new in zip(places, size, strict=True)):
        blocks = [part for old, new in zip(places, size, strict=True) for part in (new, old // new)]
        features = ops.reshape(features, (shape[0], *blocks, shape[-1]))
        return ops.mean(features, axis=tuple(range(2, 2 + 2 * len(size), 2)))
    if len(size) == 1:
        image = ops.image.resize(features[:, :, None], (size[0], 1), data_format="channels_last")
        return image[:, :, 0]
    return ops.image.resize(features, size, data_format="channels_last")


@keras.saving.register_keras_serializable(package="keras_distill")
class Projector(keras.Layer):
    """A linear map of the channels (in images a 1 × 1 convolution), and a change of size where the places differ.

    Args:
        num_channels: the teacher's channels; `None` passes features on until `match` says what they shall become.
        size: the teacher's places, `[height, width]` or `[time]`; `None` keeps the student's.
        name: the layer's name.

    Example:
        >>> Projector(8, [4, 4])(ops.zeros((2, 8, 8, 3))).shape
        TensorShape([2, 4, 4, 8])

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550, section 2.2: the regressor.
    """

    def __init__(
        self,
        num_channels: int | None = None,
        size: Sequence[int] | None = None,
        *,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        self.num_channels = None if num_channels is None else check_count("num_channels", num_channels)
        self.size = None if size is None else [check_count("size", places) for places in size]
        self._make_dense()

    def _make_dense(self) -> None:
        # Over the last axis a dense layer and a 1 × 1 convolution are the same.
        if self.num_channels is not None:
            self.dense = keras.layers.Dense(self.num_channels, name="dense", dtype=self.dtype_policy)

    def match(self, student_shape: Sequence[int | None], teacher_shape: Sequence[int | None]) -> None:
        """Makes the map that student features of one shape need to become the teacher's; none where they are equal.

        Raises:
            ValueError: places of volumes that differ.
        """
        if self.num_channels is not None or tuple(student_shape[1:]) == tuple(teacher_shape[1:]):
            return
        is_sized = None not in (*student_shape[1:-1], *teacher_shape[1:-1])
        if is_sized and tuple(student_shape[1:-1]) != tuple(teacher_shape[1:-1]):
            if len(teacher_shape) > 4:
                remedy = "Give a projector of your own."
                raise ValueError(
                    error_message(
                        "features of rank > 4 must have the same number of places", tuple(student_shape), remedy
                    )
                )
            self.size = [places for places in teacher_shape[1:-1] if places is not None]
        self.num_channels = teacher_shape[-1]
        self._make_dense()
        self.build((None, *student_shape[1:]))

    def build(self, input_shape: Shape) -> None:
        """Makes the kernel and the bias."""
        if self.num_channels is not None:
            self.dense.build(input_shape)

    def call(self, inputs: TensorTree) -> Tensor:
        """Features `(batch, *places, channels)` as `(batch, *size, num_channels)`."""
        if self.num_channels is None:
            return inputs
        if self.size is None:
            return self.dense(inputs)
        # The two commute, since weights of a resize sum to one: the smaller of the two is mapped.
        num_places, num_new = 1, 1
        for old, new in zip(inputs.shape[1:-1], self.size, strict=True):
            num_places, num_new = num_places * old, num_new * new
        if num_new <= num_places:
            return self.dense(resized(inputs, self.size))
        return resized(self.dense(inputs), self.size)

    def compute_output_shape(self, input_shape: Shape) -> tuple:
        """`(batch, *size, num_channels)`."""
        if self.num_channels is None:
            return tuple(input_shape)
        places = input_shape[1:-1] if self.size is None else self.size
        return (input_shape[0], *places, self.num_channels)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "num_channels": self.num_channels, "size": self.size}
