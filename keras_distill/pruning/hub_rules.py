"""Rules of KerasHub's layers, which hold layers of their own. The package itself is never imported.

The width of a head is no entry of their configurations (it is the width of the stream by the number of heads), so that
heads stay. The stream is normalised over its channels, and stays as wide as it is.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from keras_distill._types import Tensor
from keras_distill.pruning.scale_rules import is_channelwise
from keras_distill.pruning.sequence_rules import weights_of
from keras_distill.pruning.widths import Axis, New, Widths


def transformer(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """An encoder's or decoder's layer: the width of its feed-forward part."""
    if not is_channelwise(layer.activation, output):
        return None
    hidden = new(layer.intermediate_dim, "feed_forward")
    axes = _feed_forward(weights_of(layer), "feedforward_intermediate_dense", "feedforward_output_dense", hidden)
    return _with_fixed_ends(axes, {"intermediate_dim": hidden}, inputs, output, new)


def vit_encoder(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """All blocks in one layer: their feed-forward parts have one width."""
    places = weights_of(layer)
    blocks = sorted({path.split("/")[0] for path in places if "/mlp/" in path})
    hidden = new(layer.mlp_dim, "feed_forward")
    axes = [_feed_forward(places, f"{block}/mlp/dense_1", f"{block}/mlp/dense_2", hidden) for block in blocks]
    return _with_fixed_ends(tuple(sum(axes, ())), {"mlp_dim": hidden}, inputs, output, new)


def inverted_residual(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A block of MobileNet: the channels between its two convolutions of one pixel, eight by eight.

    The block rounds their number to a multiple of 8. With squeeze and excitation it sets another width as well, which
    is then no entry of its own.
    """
    if layer.squeeze_excite_ratio or layer.expansion % 8:
        return None
    places, name = weights_of(layer), layer.name
    hidden = new(layer.expansion, "expansion")
    axes = [
        Axis(places[f"{name}_conv1/kernel"], 3, hidden, "makes"),
        Axis(places[f"{name}_conv2/kernel"], 3, hidden, "keeps"),
        Axis(places[f"{name}_conv3/kernel"], 2, hidden, "reads"),
    ]
    axes += [
        Axis(place, 0, hidden, "keeps")
        for path, place in places.items()
        if path.startswith((f"{name}_bn1/", f"{name}_bn2/"))
    ]
    widths = _with_fixed_ends(tuple(axes), {"expansion": hidden}, inputs, output, new, ("filters",))
    return replace(widths, ties=(tuple(hidden.reshape(-1, 8).T),))


def _feed_forward(places: dict[str, int], first: str, second: str, hidden: np.ndarray) -> tuple[Axis, ...]:
    return (
        Axis(places[f"{first}/kernel"], 1, hidden, "makes"),
        Axis(places[f"{first}/bias"], 0, hidden, "makes"),
        Axis(places[f"{second}/kernel"], 0, hidden, "reads"),
    )


def _with_fixed_ends(
    axes: tuple[Axis, ...],
    config: dict[str, np.ndarray],
    inputs: list[np.ndarray],
    output: Tensor,
    new: New,
    kept_whole: tuple[str, ...] = ("heads",),
) -> Widths:
    made = new(output.shape[-1])
    return Widths(made, axes, config, fixed=np.concatenate([*inputs, made]), kept_whole=kept_whole)
