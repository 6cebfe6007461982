"""Rules of layers that multiply by a kernel: they read channels and make new ones.

An activation that mixes channels, such as a classifier's softmax, keeps all that it is given; what is read is free.
"""

from typing import Any

import numpy as np

from keras_distill._types import Tensor
from keras_distill.pruning.scale_rules import is_channelwise
from keras_distill.pruning.widths import Axis, New, Widths


def kernel(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """Dense, and convolutions of one group: a kernel (…, in, out) and a bias (out)."""
    if len(inputs) != 1:
        return None
    made, rank = new(output.shape[-1]), len(layer.kernel.shape)
    axes = (Axis(0, rank - 2, inputs[0], "reads"), Axis(0, rank - 1, made, "makes"))
    width = "filters" if hasattr(layer, "filters") else "units"
    return Widths(made, axes + _bias(layer, 1, made), {width: made}, fixed=_mixed(layer, output, made))


def convolution(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """One group, several, or a group a channel."""
    if len(inputs) != 1 or layer.groups == 1:
        return kernel(layer, inputs, output, new)
    one_each = len(inputs[0]) == layer.groups
    return (_depthwise_by_groups if one_each else _grouped)(layer, inputs[0], output, new)


def _grouped(layer: Any, read: np.ndarray, output: Tensor, new: New) -> Widths:
    """A kernel (…, in / groups, out): every group keeps the same places, so that all stay equally wide."""
    made, rank = new(output.shape[-1]), len(layer.kernel.shape)
    of_group = np.reshape(read, (layer.groups, -1))
    axes = (Axis(0, rank - 2, of_group[0], "reads"), Axis(0, rank - 1, made, "makes"))
    ties = (tuple(of_group), tuple(np.reshape(made, (layer.groups, -1))))
    return Widths(made, axes + _bias(layer, 1, made), {"filters": made}, ties, _mixed(layer, output, made))


def _depthwise_by_groups(layer: Any, read: np.ndarray, output: Tensor, new: New) -> Widths:
    """A kernel (…, 1, out) with a group a channel: the number of groups falls."""
    repeated, rank = np.repeat(read, output.shape[-1] // layer.groups), len(layer.kernel.shape)
    axes = (Axis(0, rank - 1, repeated, "keeps"),)
    return Widths(
        repeated,
        axes + _bias(layer, 1, repeated, "keeps"),
        {"filters": repeated, "groups": read},
        fixed=_mixed(layer, output, repeated),
    )


def transposed_convolution(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A kernel (…, out, in) and a bias (out)."""
    if len(inputs) != 1:
        return None
    made, rank = new(output.shape[-1]), len(layer.kernel.shape)
    axes = (Axis(0, rank - 1, inputs[0], "reads"), Axis(0, rank - 2, made, "makes"))
    return Widths(made, axes + _bias(layer, 1, made), {"filters": made}, fixed=_mixed(layer, output, made))


def depthwise_convolution(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A kernel (…, in, multiplier): each channel becomes `multiplier` neighbours."""
    rank, repeated = len(layer.kernel.shape), np.repeat(inputs[0], layer.depth_multiplier)
    axes = (Axis(0, rank - 2, inputs[0], "keeps"), *_bias(layer, 1, repeated, "keeps"))
    return Widths(repeated, axes, fixed=_mixed(layer, output, repeated))


def separable_convolution(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A depthwise kernel (…, in, multiplier), a pointwise one (…, in · multiplier, out) and a bias (out)."""
    made, rank = new(output.shape[-1]), len(layer.depthwise_kernel.shape)
    axes = (
        Axis(0, rank - 2, inputs[0], "keeps"),
        Axis(1, rank - 2, np.repeat(inputs[0], layer.depth_multiplier), "reads"),
        Axis(1, rank - 1, made, "makes"),
    )
    return Widths(made, axes + _bias(layer, 2, made), {"filters": made}, fixed=_mixed(layer, output, made))


def einsum_dense(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """An equation such as `abc,cd->abd`, which is a Dense: the last axis is summed, and another takes its place."""
    read, weights, made_labels = layer.equation.replace("->", ",").split(",")
    is_dense = weights == read[-1] + made_labels[-1] and read[:-1] == made_labels[:-1]
    if not is_dense or layer.bias_axes not in (None, made_labels[-1]):
        return None
    made = new(output.shape[-1])
    axes = (Axis(0, 0, inputs[0], "reads"), Axis(0, 1, made, "makes"))
    bias = () if layer.bias_axes is None else (Axis(1, 0, made, "makes"),)
    return Widths(made, axes + bias, {"output_shape": made}, fixed=_mixed(layer, output, made))


def _bias(layer: Any, place: int, channels: np.ndarray, role: str = "makes") -> tuple[Axis, ...]:
    return (Axis(place, 0, channels, role),) if layer.use_bias else ()


def _mixed(layer: Any, output: Tensor, made: np.ndarray) -> np.ndarray:
    """The channels that the activation mixes: all or none."""
    return made[:0] if is_channelwise(layer.activation, output) else made
