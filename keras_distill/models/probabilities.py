"""Probabilities where logits are wanted: seen by value, and turned into logits."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import error_message
from keras_distill._types import Tensor

SOFTMAX, SIGMOID = "softmax", "sigmoid"
# What an error says that it received.
ROWS_SUM_TO_ONE = "probabilities: rows in [0, 1] that sum to 1"
VALUES_IN_UNIT_INTERVAL = "probabilities: all values in [0, 1]"
NO_PROBABILITIES = "values that are none: outside of [0, 1], or rows that do not sum to 1"
# How far the sum of a row may be from one: half precision rounds every entry.
_TOLERANCES = {"float16": 1e-2, "bfloat16": 1e-2}
# So many values of logits do not all lie in [0, 1] by chance, as the few of a small batch may.
_SMALLEST_EVIDENCE = 32


def share_of_probabilities(outputs: Tensor, activation: str = SOFTMAX) -> Any:
    """How much of a model's outputs may be what a softmax or a sigmoid gives; a scalar, float32.

    Args:
        outputs: `(..., num_classes)`, logits or probabilities.
        activation: `"softmax"`: the share of rows that have nothing below 0 and sum to 1. `"sigmoid"`: the share of
            values in [0, 1]. 1.0 for probabilities, near 0.0 or 0.5 for logits.

    Example:
        >>> outputs = ops.convert_to_tensor([[0.2, 0.8], [2.0, -1.0]])
        >>> float(share_of_probabilities(outputs)), float(share_of_probabilities(outputs, "sigmoid"))
        (0.5, 0.5)
    """
    tolerance = _TOLERANCES.get(keras.backend.standardize_dtype(outputs.dtype), 2e-3)
    outputs = ops.cast(outputs, "float32")
    if activation == SIGMOID:
        return ops.mean(ops.cast(ops.logical_and(outputs >= 0.0, outputs <= 1.0), "float32"))
    if outputs.shape[-1] == 1:
        tolerance = 0.0
    sums_to_one = ops.abs(ops.sum(outputs, axis=-1) - 1.0) <= tolerance
    # What sums to one and has nothing below zero has nothing above one.
    return ops.mean(ops.cast(ops.logical_and(sums_to_one, ops.min(outputs, axis=-1) >= 0.0), "float32"))


def is_enough(outputs: Tensor, activation: str) -> Any:
    """Whether there are outputs enough for `share_of_probabilities` to tell; a float32 scalar, 1.0 or 0.0."""
    if activation == SOFTMAX:
        return 1.0
    return ops.cast(ops.size(outputs) >= _SMALLEST_EVIDENCE, "float32")


def activation_behind(outputs: Tensor) -> str | None:
    """The activation that gave these values: `"softmax"`, `"sigmoid"`, or `None` where they are no probabilities.

    Example:
        >>> activation_behind([[0.2, 0.8], [0.5, 0.5]]), activation_behind([[0.2], [0.9]]), activation_behind([[2.0]])
        ('softmax', 'sigmoid', None)
    """
    outputs = ops.convert_to_numpy(outputs)
    tolerance = _TOLERANCES.get(str(outputs.dtype), 2e-3)
    values = outputs.astype("float64")
    if not values.size or not np.all((values >= 0.0) & (values <= 1.0 + tolerance)):
        return None
    is_distribution = values.shape[-1] > 1 and np.all(np.abs(values.sum(axis=-1) - 1.0) <= tolerance)
    return SOFTMAX if is_distribution else SIGMOID


def promised_activation(who: str, outputs: Tensor, from_logits: bool) -> str | None:
    """What made the outputs of a model, of which nothing but a promise is known; they are looked at.

    Args:
        who: whose outputs they are, as an error says it.
        outputs: some of them, `(..., num_classes)`.
        from_logits: what was promised: logits, or (`False`) probabilities.

    Returns:
        `"softmax"` or `"sigmoid"` where they are probabilities, as promised; `None` for logits.

    Raises:
        ValueError: they are probabilities where logits were promised, or the other way round.

    Example:
        >>> promised_activation("the outputs", [[0.2, 0.8]], from_logits=False)
        'softmax'
    """
    activation = activation_behind(outputs)
    if from_logits and activation == SOFTMAX:
        remedy = "Pass from_logits=False, or end the model before its softmax."
        raise ValueError(error_message(f"{who} must be logits", ROWS_SUM_TO_ONE, remedy))
    if not from_logits and activation is None:
        expected = "be probabilities, as from_logits=False promises"
        raise ValueError(error_message(f"{who} must {expected}", NO_PROBABILITIES, "Leave from_logits out."))
    return None if from_logits else activation


def logits_of(probabilities: Tensor, activation: str = SOFTMAX) -> Any:
    """Logits of which `activation` makes these probabilities, at least float32.

    For a softmax log p, for a sigmoid log p − log(1 − p). Half precision rounds probabilities to 0 and to 1, of which
    there are no logits: they count as the nearest number that it has. What lies outside of [0, 1] becomes NaN.

    Args:
        probabilities: `(..., num_classes)`, what a softmax or a sigmoid gave.
        activation: `"softmax"` or `"sigmoid"`.

    Example:
        >>> [round(float(logit), 4) for logit in logits_of(ops.sigmoid([-2.0, 0.0, 3.0]), "sigmoid")]
        [-2.0, 0.0, 3.0]
    """
    given = keras.backend.standardize_dtype(probabilities.dtype)
    probabilities = ops.cast(probabilities, "float64" if given == "float64" else "float32")
    smallest = 2.0**-24 if given == "float16" else 1e-30
    logits = ops.log(_at_least(probabilities, smallest))
    if activation == SOFTMAX:
        return logits
    step_below_one = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float64": 2.0**-53}.get(given, 2.0**-24)
    return logits - ops.log(_at_least(1.0 - probabilities, step_below_one))


def _at_least(values: Tensor, smallest: float) -> Any:
    """Values of which rounding has made none too small; what is further below zero than rounding brings it stays."""
    return ops.where(values < -1e-2, values, ops.maximum(values, smallest))


class LogitsOfProbabilities(keras.layers.Layer):
    """`logits_of` as a layer, for graphs."""

    def __init__(self, activation: str, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.activation = activation
        self.supports_masking = True

    def call(self, probabilities: Tensor) -> Any:
        """Logits `(..., num_classes)`, at least float32."""
        return logits_of(probabilities, self.activation)

    def compute_output_spec(self, probabilities: Tensor) -> Any:
        """The probabilities' shape; Keras takes some weighted sums for sparse tensors, which they are not."""
        dtype = "float64" if keras.backend.standardize_dtype(probabilities.dtype) == "float64" else "float32"
        return keras.KerasTensor(probabilities.shape, dtype=dtype)
