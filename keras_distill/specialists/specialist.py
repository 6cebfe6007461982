"""A specialist as a model: a copy of the generalist with outputs for its classes and a dustbin for the others."""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_distill._checks import (
    check_choice,
    error_message,
)
from keras_distill._keras_internals import input_structure, producer
from keras_distill.models.heads import layer_at_end

DUSTBINS = ("sum", "unit")


def dustbin_correction(share_in_data: float, special_share: float) -> float:
    """What to add to a dustbin's logit after training on batches with `special_share` special examples; nats.

    Example:
        >>> round(dustbin_correction(0.1, 0.5), 4)  # 9 of 10 items belong in the dustbin, in training 1 of 2 did
        2.1972
    """
    return math.log((1.0 - share_in_data) / (1.0 - special_share)) - math.log(share_in_data / special_share)


def collapse(logits: np.ndarray, class_set: Sequence[int]) -> np.ndarray:
    """A generalist's logits as those of a specialist: its classes, then the log of the sum over all others.

    Args:
        logits: `(num_items, num_classes)`.
        class_set: the specialist's classes.

    Returns:
        float32 `(num_items, len(class_set) + 1)`; its softmax sums the generalist's.

    Example:
        >>> np.exp(collapse(np.log([[0.5, 0.2, 0.3]]), [2])).round(3).tolist()
        [[0.3, 0.7]]
    """
    rest = np.delete(logits, list(class_set), axis=1)
    highest = rest.max(axis=1, keepdims=True)
    dustbin = highest + np.log(np.exp(rest - highest).sum(axis=1, keepdims=True))
    return np.concatenate([logits[:, list(class_set)], dustbin], axis=1)


def specialist_model(generalist: keras.Model, class_set: Sequence[int], dustbin: str = "sum") -> keras.Model:
    """A copy of the generalist with outputs for some of its classes, and a dustbin where they are not all.

    With the dustbin `"sum"` it says exactly what the generalist says, its other classes taken together. A `"unit"`
    starts from the mean of the others' columns, as often as they are.

    Raises:
        ValueError: the generalist is neither Functional nor Sequential, or does not end in a Dense layer.
    """
    check_choice("dustbin", dustbin, DUSTBINS)
    if not getattr(generalist, "inputs", None):
        remedy = "Build it with keras.Sequential or keras.Model(inputs, outputs)."
        raise ValueError(
            error_message("generalist must be Functional or Sequential", type(generalist).__name__, remedy)
        )
    copy = keras.models.clone_model(generalist)
    copy.set_weights(generalist.get_weights())
    dense = [layer for layer in copy.layers if isinstance(layer, keras.layers.Dense)]
    num_classes = generalist.output_shape[-1]
    if not dense or dense[-1].units != num_classes:
        received = f"none in {generalist.name!r}" if not dense else f"one of {dense[-1].units} units"
        raise ValueError(error_message(f"the generalist's last Dense layer must have {num_classes} units", received))
    old = dense[-1]
    if layer_at_end(copy.outputs[0]) is not old:
        last = producer(copy.outputs[0])[0].name
        remedy = f"What follows {old.name!r}, but for a softmax or dropout, would be lost."
        raise ValueError(error_message("the generalist must end in a Dense layer", repr(last), remedy))
    classes = list(class_set)
    rest = [label for label in range(num_classes) if label not in set(classes)]
    kernel = old.kernel.numpy()
    bias = old.bias.numpy() if old.use_bias else np.zeros(num_classes, "float32")
    kernels, biases = [kernel[:, classes]], [bias[classes]]
    if rest and dustbin == "sum":
        kernels.append(kernel[:, rest])
        biases.append(bias[rest])
    elif rest:
        kernels.append(kernel[:, rest].mean(axis=1, keepdims=True))
        biases.append(bias[rest].mean(keepdims=True) + np.log(len(rest)))
    head_weights = [np.concatenate(kernels, axis=1), np.concatenate(biases)]
    head = keras.layers.Dense(head_weights[1].size, dtype="float32", name=HEAD_NAME)
    outputs = head(old.input)
    if rest and dustbin == "sum":
        others = ops.logsumexp(outputs[:, len(classes) :], axis=-1, keepdims=True)
        outputs = ops.concatenate([outputs[:, : len(classes)], others], axis=-1)
    inputs = input_structure(copy)
    specialist = keras.Model(inputs, outputs, name=f"{generalist.name}_specialist")
    head.set_weights(head_weights)
    return specialist


HEAD_NAME = "specialist_logits"


def raise_dustbin(specialist: keras.Model, num_special: int, by: float) -> None:
    """Adds `by` to the dustbin's logit: to one unit's bias, or to those of all that it sums."""
    bias = specialist.get_layer(HEAD_NAME).bias
    bias.assign(bias.numpy() + by * (np.arange(bias.shape[0]) >= num_special))
