"""A model run over a whole data set: the logits of any number of items."""

from collections.abc import Callable

import keras
import numpy as np

from keras_distill._inputs import num_rows, take_rows
from keras_distill._types import Inputs, Teacher, TensorTree
from keras_distill.models.compilation import compiled
from keras_distill.models.fixed_batch import fixed_batch_of, in_portions
from keras_distill.models.forward_pass import logits_model

BATCH_SIZE = 512


def logits_function(model: Teacher) -> Callable[[Inputs], np.ndarray]:
    """A function from inputs to the logits of a model, in batches of 512.

    Args:
        model: a Keras model with any head, or a teacher of any other kind.

    Returns:
        A function from inputs, an array `(num_items, …)` or a dict of such, to logits `(num_items, …, num_classes)`.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])
        >>> logits_function(model)(np.zeros((1000, 2), "float32")).shape
        (1000, 3)
    """
    run: Callable[[Inputs], TensorTree] = model
    if isinstance(model, keras.Model):
        bare = logits_model(model)
        run = lambda inputs: bare(inputs, training=False)  # noqa: E731
        # TensorFlow is fast without, too.
        if keras.config.backend() != "tensorflow":
            run = compiled(run, bare)
        if (size := fixed_batch_of(model)) is not None:
            run = in_portions(run, size)

    def logits_of(inputs: Inputs) -> np.ndarray:
        starts = range(0, num_rows(inputs), BATCH_SIZE)
        portions = (take_rows(inputs, slice(start, start + BATCH_SIZE)) for start in starts)
        return np.concatenate([keras.ops.convert_to_numpy(run(portion)) for portion in portions])

    return logits_of


def all_logits(model: Teacher, inputs: Inputs) -> np.ndarray:
    """The logits of a model for all inputs; see `logits_function`."""
    return logits_function(model)(inputs)
