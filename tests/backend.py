"""What tests ask of whichever backend Keras runs on: a gradient, a compiled function."""

import keras
import numpy as np
from keras import ops


def value_and_gradient(function):
    """A function that gives the sum of `function(values)` and its gradient in the structure of `values`."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        def both(values):
            with tf.GradientTape() as tape:
                tape.watch(values)
                result = ops.sum(function(values))
            # What only some rows reach comes as slices of rows.
            return result, keras.tree.map_structure(tf.convert_to_tensor, tape.gradient(result, values))

        return both
    import jax

    return jax.value_and_grad(lambda values: ops.sum(function(values)))


def gradient(function, values):
    """The gradient of the sum of `function(values)`, as NumPy arrays in the structure of `values`."""
    values = keras.tree.map_structure(ops.convert_to_tensor, values)
    return keras.tree.map_structure(np.asarray, value_and_gradient(function)(values)[1])


def under_xla(function):
    """`function`, compiled by XLA."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    import jax

    return jax.jit(function)


def for_any_batch_size(function, examples, jit_compile):
    """`function` of two arrays, compiled without knowing their batch size where the backend can (TensorFlow)."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        signature = [tf.TensorSpec([None, *values.shape[1:]], tf.float32) for values in examples]
        return tf.function(function, input_signature=signature, jit_compile=jit_compile)
    return under_xla(function) if jit_compile else function


def dtype_of(values):
    """The name of a tensor's dtype."""
    return keras.backend.standardize_dtype(values.dtype)
