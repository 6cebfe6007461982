"""From one value an example to the scalar that is minimised, as Keras's own losses do it."""

from typing import Any

import keras
from keras import ops

from keras_distill._keras_internals import set_mask
from keras_distill._types import Tensor


class WeightedMean(keras.losses.Loss):
    """Keras's own mean of per-example values: by sample weights, masks and replicas. A bare mean knows none of them."""

    def __init__(self) -> None:
        super().__init__(name="distillation_mean")

    def __call__(self, values: Tensor, mask: Tensor | None, sample_weight: Tensor | None) -> Tensor:
        """The mean of `values` `(batch, …)`, by a mask of the same shape and by `sample_weight`.

        A scalar is its own mean; it too is divided by the replicas, each of which adds its whole.
        """
        if len(values.shape) == 0:
            return values / _num_replicas()
        if sample_weight is not None:
            missing = len(values.shape) - len(sample_weight.shape)
            sample_weight = ops.reshape(sample_weight, (*ops.shape(sample_weight), *[1] * max(missing, 0)))
        # Keras reads masks off what it is given; a mask of another shape is not that of these values.
        values = ops.convert_to_tensor(values)
        if mask is not None and is_mask_of(mask, values):
            set_mask(values, ops.cast(mask, "bool"))
        return super().__call__(values, values, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The values themselves; `y_pred` only carries the mask."""
        return y_true


def is_mask_of(mask: Tensor, values: Tensor) -> bool:
    """Whether a mask may be that of values: one entry for each, as far as the shapes are known."""
    sizes = zip(mask.shape, values.shape, strict=False)
    return len(mask.shape) == len(values.shape) and all(one == other or None in (one, other) for one, other in sizes)


def unscaled(loss: Any) -> Tensor:
    """A loss as one device would report it: Keras divides by the replicas before it adds up their gradients."""
    return loss * _num_replicas()


def _num_replicas() -> float:
    """How many devices of TensorFlow's distribution share a step; JAX's mean is over the whole batch already."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return float(tf.distribute.get_strategy().num_replicas_in_sync)
    return 1.0
