"""What each of Keras's layers does with channels, one small rule a kind of layer.

A rule of your own takes five lines::

    def gain_rule(layer, inputs, output, new):
        # one weight of shape (channels,) that multiplies its input
        return Widths(inputs[0], (Axis(0, 0, inputs[0], "keeps"),))

    prune(teacher, 0.5, rules={Gain: gain_rule})

LayerNormalization, GroupNormalization and softmax have none: their statistics run over the channels, so that a channel
whose readers are zero still counts, and cutting it would change the others.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_distill._types import Tensor
from keras_distill.pruning.channels import Axis, Rule, Widths

New = Callable[[int], np.ndarray]


def built_in_rules() -> dict[type, Rule]:
    """The rules for Keras's own layers, by class."""
    rules: dict[type, Rule] = {layers.Dense: _kernel, layers.Embedding: _embedding, layers.Flatten: _flatten}
    rules |= dict.fromkeys([layers.Conv1D, layers.Conv2D, layers.Conv3D], _kernel)
    rules |= dict.fromkeys([layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose], _transposed)
    rules |= dict.fromkeys([layers.DepthwiseConv1D, layers.DepthwiseConv2D], _depthwise)
    rules |= dict.fromkeys([layers.SeparableConv1D, layers.SeparableConv2D], _separable)
    rules |= {layers.BatchNormalization: _batch_normalization, layers.PReLU: _prelu, layers.Activation: _activation}
    rules |= {layers.Concatenate: _concatenate, layers.Reshape: _reshape, layers.Rescaling: _rescaling}
    merging = [layers.Add, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum, layers.Subtract]
    rules |= dict.fromkeys(merging, _elementwise)
    return rules | dict.fromkeys(_CHANNELWISE, _channelwise)


# Each channel by itself, without weights.
_CHANNELWISE = (
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.Identity,
    layers.ActivityRegularization,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.UpSampling1D,
    layers.UpSampling2D,
)
_ELEMENTWISE_ACTIVATIONS = frozenset(
    {
        "linear",
        "relu",
        "relu6",
        "elu",
        "selu",
        "gelu",
        "silu",
        "hard_silu",
        "sigmoid",
        "hard_sigmoid",
        "tanh",
        "softplus",
        "softsign",
        "leaky_relu",
        "exponential",
        "mish",
        "celu",
    }
)


def _is_elementwise(layer: Any) -> bool:
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", None)
    # By value: a user's function may have any name.
    return activation is None or (name in _ELEMENTWISE_ACTIVATIONS and activation is keras.activations.get(name))


def _kernel(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A kernel (…, in, out) and a bias (out)."""
    if len(inputs) != 1 or not _is_elementwise(layer) or getattr(layer, "groups", 1) != 1:
        return None
    made, rank = new(output.shape[-1]), len(layer.kernel.shape)
    axes = [Axis(0, rank - 2, inputs[0], "reads"), Axis(0, rank - 1, made, "makes")]
    if layer.use_bias:
        axes.append(Axis(1, 0, made, "makes"))
    return Widths(made, tuple(axes), {"filters" if hasattr(layer, "filters") else "units": made})


def _transposed(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A kernel (…, out, in) and a bias (out)."""
    if len(inputs) != 1 or not _is_elementwise(layer):
        return None
    made, rank = new(output.shape[-1]), len(layer.kernel.shape)
    axes = [Axis(0, rank - 1, inputs[0], "reads"), Axis(0, rank - 2, made, "makes")]
    if layer.use_bias:
        axes.append(Axis(1, 0, made, "makes"))
    return Widths(made, tuple(axes), {"filters": made})


def _depthwise(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A kernel (…, in, multiplier): each channel becomes `multiplier` neighbours."""
    if not _is_elementwise(layer):
        return None
    rank, repeated = len(layer.kernel.shape), np.repeat(inputs[0], layer.depth_multiplier)
    axes = [Axis(0, rank - 2, inputs[0], "keeps")] + ([Axis(1, 0, repeated, "keeps")] if layer.use_bias else [])
    return Widths(repeated, tuple(axes))


def _separable(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    if not _is_elementwise(layer):
        return None
    made, rank = new(output.shape[-1]), len(layer.depthwise_kernel.shape)
    axes = [
        Axis(0, rank - 2, inputs[0], "keeps"),
        Axis(1, rank - 2, np.repeat(inputs[0], layer.depth_multiplier), "reads"),
        Axis(1, rank - 1, made, "makes"),
    ]
    if layer.use_bias:
        axes.append(Axis(2, 0, made, "makes"))
    return Widths(made, tuple(axes), {"filters": made})


def _embedding(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    made = new(output.shape[-1])
    return Widths(made, (Axis(0, 1, made, "makes"),), {"output_dim": made})


def _batch_normalization(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    if len(inputs) != 1 or layer.axis not in (-1, len(output.shape) - 1):
        return None
    return Widths(inputs[0], tuple(Axis(place, 0, inputs[0], "keeps") for place in range(len(layer.weights))))


def _prelu(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    rank = len(layer.alpha.shape)
    return Widths(inputs[0], (Axis(0, rank - 1, inputs[0], "keeps"),))


def _activation(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    return Widths(inputs[0]) if _is_elementwise(layer) else None


def _rescaling(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    is_scalar = np.ndim(layer.scale) == 0 and np.ndim(layer.offset) == 0
    return Widths(inputs[0]) if is_scalar else None


def _channelwise(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    return Widths(inputs[0]) if len(inputs) == 1 else None


def _elementwise(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    widest = [part for part in inputs if len(part) == output.shape[-1]]
    return Widths(widest[0]) if widest else None


def _concatenate(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    return Widths(np.concatenate(inputs)) if layer.axis in (-1, len(output.shape) - 1) else None


def _flatten(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    places, rest = divmod(output.shape[-1], max(len(inputs[0]), 1))
    return None if rest else Widths(np.tile(inputs[0], places))


def _reshape(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """Row-major: where the last axis has as many places as before, its channels stay where they are."""
    if len(inputs[0]) != output.shape[-1] or layer.target_shape[-1] == -1:
        return None
    return Widths(inputs[0], config={"target_shape": inputs[0]})
