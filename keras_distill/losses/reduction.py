"""From one value an example to the scalar that is minimised, as Keras's own losses do it."""

from typing import Any

import keras
from keras import ops

from keras_distill._keras_internals import mask_of
from keras_distill._types import Tensor


class WeightedMean(keras.losses.Loss):
    """Keras's own mean of per-example values: by sample weights, masks and replicas. A bare mean knows none of them."""

    def __init__(self) -> None:
        super().__init__(name="distillation_mean")

    def __call__(self, values: Tensor, mask_carrier: Tensor, sample_weight: Tensor) -> Tensor:
        """The mean of `values` `(batch, …)`, by the mask that `mask_carrier` has and by `sample_weight`.

        A scalar is its own mean; it too is divided by the replicas, each of which adds its whole.
        """
        if len(values.shape) == 0:
            return values / _num_replicas()
        if sample_weight is not None:
            missing = len(values.shape) - len(sample_weight.shape)
            sample_weight = ops.reshape(sample_weight, (*ops.shape(sample_weight), *[1] * max(missing, 0)))
        mask = mask_of(mask_carrier)
        # Features whose length differs from that of the tokens have no mask.
        carrier = mask_carrier if mask is not None and tuple(mask.shape) == tuple(values.shape) else values
        return super().__call__(values, carrier, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The values themselves; `y_pred` only carries the mask."""
        return y_true


def unscaled(loss: Any) -> Tensor:
    """A loss as one device would report it: Keras divides by the replicas before it adds up their gradients."""
    return loss * _num_replicas()


def _num_replicas() -> float:
    """How many devices of TensorFlow's distribution share a step; JAX's mean is over the whole batch already."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return float(tf.distribute.get_strategy().num_replicas_in_sync)
    return 1.0
