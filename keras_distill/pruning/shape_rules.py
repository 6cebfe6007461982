"""Rules of layers and operations without weights: they hand channels on, tie them, or lay them side by side."""

from typing import Any

import numpy as np

from keras_distill._keras_internals import call_arguments
from keras_distill._types import Tensor
from keras_distill.pruning.widths import New, Widths


def channelwise(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """The output's channels are the input's."""
    return Widths(inputs[0]) if len(inputs) == 1 else None


def elementwise(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """Channel i of the one stands beside channel i of the other; one channel alone is spread over all."""
    widest = [part for part in inputs if len(part) == output.shape[-1]]
    alone = [part for part in inputs if len(part) != output.shape[-1]]
    if not widest:
        return None
    return Widths(widest[0], ties=(widest,), fixed=np.concatenate([np.zeros(0, dtype=int), *alone]))


def concatenate(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """Side by side; along another axis, channel i of the one becomes channel i of all."""
    if layer.axis not in (-1, len(output.shape) - 1):
        return elementwise(layer, inputs, output, new)
    return Widths(np.concatenate(inputs))


def flatten(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """Row-major: all channels of the first place, then all of the next."""
    repeated = _places_side_by_side(inputs[0], output)
    return None if repeated is None else Widths(repeated)


def reshape(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """The new last axis holds whole places, one or several."""
    repeated = _places_side_by_side(inputs[0], output)
    if repeated is None or layer.target_shape[-1] == -1:
        return None
    return Widths(repeated, config={"target_shape": repeated})


def _places_side_by_side(channels: np.ndarray, output: Tensor) -> np.ndarray | None:
    places, rest = divmod(output.shape[-1], max(len(channels), 1))
    return None if rest else np.tile(channels, places)


def permute(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """Any order of the axes that leaves the channels last."""
    return Widths(inputs[0]) if layer.dims[-1] == len(layer.dims) else None


def reduction(operation: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A mean or a sum, over any axes but the channels'."""
    (tensor, *_), _ = call_arguments(output)
    axes = operation.axis if isinstance(operation.axis, (list, tuple)) else [operation.axis]
    over_channels = any(axis is None or axis in (-1, len(tensor.shape) - 1) for axis in axes)
    return None if over_channels else Widths(inputs[0])


def flip(operation: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """Back to front, along any axes but the channels'."""
    return reduction(operation, inputs, output, new)


def get_item(operation: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """`x[:, 0]` and the like: integers and slices of any axes but the channels', which stay last."""
    given, named = call_arguments(output)
    key = named["key"] if "key" in named else given[1]
    parts = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(part, (int, slice)) or part is Ellipsis for part in parts):
        return None
    front, back = _around_ellipsis(parts)
    reaches_channels = back[-1:] if back else front[len(given[0].shape) - 1 :]
    return Widths(inputs[0]) if all(part == slice(None) for part in reaches_channels) else None


def _around_ellipsis(parts: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    place = next((place for place, part in enumerate(parts) if part is Ellipsis), None)
    return (parts, ()) if place is None else (parts[:place], parts[place + 1 :])
