"""Rules of layers that treat each channel by itself: normalisations, scales and activations."""

from typing import Any

import keras
import numpy as np

from keras_distill._types import Tensor
from keras_distill.pruning.widths import Axis, New, Widths


def is_channelwise(activation: Any, output: Tensor) -> bool:
    """Whether a function does with each channel what it does with all: tried on numbers, whatever its name."""
    if activation is None or activation is keras.activations.linear:
        return True
    # Of the output's own rank: a softmax over another axis than the last is channelwise.
    values = np.random.default_rng(0).normal(0.0, 3.0, (*range(2, len(output.shape) + 1), 7)).astype("float32")
    if isinstance(activation, keras.Layer) and activation.weights:
        return False
    try:
        together = keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(values)))
        apart = [
            keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(part)))
            for part in (values[..., :3], values[..., 3:])
        ]
    # A user's function may raise anything; it is then none that we know.
    except Exception:
        return False
    return together.shape == values.shape and np.allclose(
        together, np.concatenate(apart, axis=-1), rtol=1e-5, atol=1e-6, equal_nan=True
    )


def activation(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A function of each channel by itself."""
    return Widths(inputs[0]) if is_channelwise(layer.activation, output) else None


def softmax(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """Over any one axis but the channels'."""
    is_elsewhere = isinstance(layer.axis, int) and layer.axis not in (-1, len(output.shape) - 1)
    return Widths(inputs[0]) if is_elsewhere and len(inputs) == 1 else None


def batch_normalization(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """Scale, offset, mean and variance, as many of them as it has: (channels) each."""
    if len(inputs) != 1 or layer.axis not in (-1, len(output.shape) - 1):
        return None
    return Widths(inputs[0], tuple(Axis(place, 0, inputs[0], "keeps") for place in range(len(layer.weights))))


def group_normalization(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """Statistics run over a group of neighbours: a group stays or goes as a whole."""
    if len(inputs) != 1 or layer.axis not in (-1, len(output.shape) - 1):
        return None
    by_group = np.reshape(inputs[0], (layer.groups, -1))
    axes = tuple(Axis(place, 0, inputs[0], "keeps") for place in range(len(layer.weights)))
    return Widths(inputs[0], axes, {"groups": by_group[:, 0]}, (tuple(by_group.T),))


def prelu(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A slope (…, channels)."""
    return Widths(inputs[0], (Axis(0, len(layer.alpha.shape) - 1, inputs[0], "keeps"),))


def rescaling(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """One scale and one offset for all channels."""
    is_scalar = np.ndim(layer.scale) == 0 and np.ndim(layer.offset) == 0
    return Widths(inputs[0]) if is_scalar else None


def layer_scale(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """ConvNeXt's: one weight (channels) that multiplies."""
    return Widths(inputs[0], (Axis(0, 0, inputs[0], "keeps"),), {"projection_dim": inputs[0]})
