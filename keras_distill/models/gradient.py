"""The gradient of a scalar, by whichever backend Keras runs on."""

from collections.abc import Callable

import keras
import numpy as np

from keras_distill._types import Tensor


def gradient(function: Callable[[Tensor], Tensor], values: np.ndarray) -> np.ndarray:
    """The gradient of `function`, from a tensor to a scalar, at `values`; it may read weights and must write none.

    Example:
        >>> gradient(lambda x: keras.ops.sum(x**2), np.array([1.0, 3.0], "float32"))
        array([2., 6.], dtype=float32)
    """
    at = keras.ops.convert_to_tensor(values)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(at)
            value = function(at)
        found = tape.gradient(value, at, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    elif keras.config.backend() == "jax":
        import jax

        found = jax.grad(function)(at)
    else:
        import torch

        at.requires_grad_(True)
        (found,) = torch.autograd.grad(function(at), at, allow_unused=True, materialize_grads=True)
    return keras.ops.convert_to_numpy(found)
