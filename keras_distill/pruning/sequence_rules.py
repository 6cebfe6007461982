"""Rules of layers for sequences: recurrent units, heads of attention, embeddings, and wrappers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_distill._keras_internals import call_arguments
from keras_distill._types import Tensor
from keras_distill.pruning.scale_rules import is_channelwise
from keras_distill.pruning.widths import Axis, New, Rule, Widths

_NUM_GATES = {layers.SimpleRNN: 1, layers.GRU: 3, layers.LSTM: 4}


def embedding(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A table (words, channels)."""
    made = new(output.shape[-1])
    return Widths(made, (Axis(0, 1, made, "makes"),), {"output_dim": made})


def reversible_embedding(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A table (words, channels) that is looked up, and read as a kernel on the way back to the words."""
    given, named = call_arguments(output)
    if not named.get("reverse", given[1] if len(given) > 1 else False):
        return embedding(layer, inputs, output, new)
    words = new(output.shape[-1], "words")
    axis = Axis(0, 1, inputs[0], "reads") if layer.tie_weights else Axis(1, 0, inputs[0], "reads")
    return Widths(words, (axis,), {"output_dim": inputs[0]}, fixed=words)


def recurrent(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A kernel (in, gates · units), a recurrent one (units, gates · units), biases (…, gates · units)."""
    made = new(layer.units)
    activations = [layer.activation, getattr(layer, "recurrent_activation", None)]
    mixed = made[:0] if all(is_channelwise(activation, output) for activation in activations) else made
    gates = np.tile(made, _NUM_GATES[type(layer)])
    axes = [Axis(0, 0, inputs[0], "reads"), Axis(0, 1, gates, "makes")]
    axes += [Axis(1, 0, made, "reads"), Axis(1, 1, gates, "makes")]
    if layer.use_bias:
        axes.append(Axis(2, len(layer.weights[2].shape) - 1, gates, "makes"))
    # States that are given, as a decoder is given its encoder's, are as wide as those that are left.
    if any(len(state) != len(made) for state in inputs[1:]):
        return None
    return Widths(made, tuple(axes), {"units": made}, ((made, *inputs[1:]),), mixed)


def bidirectional(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """Two layers of one configuration: unit i of the one goes with unit i of the other."""
    if type(layer.forward_layer) not in _NUM_GATES or len(inputs) != 1 or layer.return_state:
        return None
    forward = recurrent(layer.forward_layer, inputs, output, new)
    backward = recurrent(layer.backward_layer, inputs, output, new)
    if forward is None or backward is None or layer.forward_layer.units != layer.backward_layer.units:
        return None
    first, second = forward.config["units"], backward.config["units"]
    num_forward = len(layer.forward_layer.weights)
    axes = forward.axes + tuple(replace(axis, weight=axis.weight + num_forward) for axis in backward.axes)
    config = {"layer.config.units": first, "backward_layer.config.units": second}
    made = np.concatenate([first, second]) if layer.merge_mode == "concat" else first
    return Widths(made, axes, config, ((first, second),), np.concatenate([forward.fixed, backward.fixed]))


def multi_head_attention(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """A head is a channel: its slices of query, key and value (in, heads, size) and output (heads, size, out)."""
    if len(inputs) not in (2, 3) or len(layer.output_dense.kernel.shape) != 3:
        return None
    heads, made = new(layer.num_heads, "heads"), new(output.shape[-1])
    query, value, key = (*inputs, inputs[1])[:3]
    axes = _heads(layer, {"query": query, "key": key, "value": value}, heads, heads, made)
    # Written down, the output's width is free of the query's, which it is by default.
    return Widths(made, axes, {"num_heads": heads, "output_shape": made}, heads=heads)


def grouped_query_attention(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
    """Several query heads share a head of keys and values: they stay or go with it."""
    if len(inputs) not in (2, 3) or getattr(layer, "use_gate", False):
        return None
    shared, made = new(layer.num_key_value_heads, "heads"), new(output.shape[-1])
    heads = np.repeat(shared, layer.num_query_heads // layer.num_key_value_heads)
    query, value, key = (*inputs, inputs[1])[:3]
    axes = _heads(layer, {"query": query, "key": key, "value": value}, heads, shared, made)
    counts = {"num_query_heads": heads, "num_key_value_heads": shared}
    return Widths(made, axes, counts, ((inputs[0], made),), heads=shared)


def _heads(
    layer: Any, read: Mapping[str, np.ndarray], heads: np.ndarray, shared: np.ndarray, made: np.ndarray
) -> tuple[Axis, ...]:
    places, axes = weights_of(layer), []
    for name, channels in read.items():
        of_part = heads if name == "query" else shared
        axes += [
            Axis(places[f"{name}/kernel"], 0, channels, "reads"),
            Axis(places[f"{name}/kernel"], 1, of_part, "makes"),
        ]
        if f"{name}/bias" in places:
            axes.append(Axis(places[f"{name}/bias"], 0, of_part, "makes"))
    kernel = places["attention_output/kernel"]
    axes += [Axis(kernel, 0, heads, "reads"), Axis(kernel, 2, made, "makes")]
    if "attention_output/bias" in places:
        axes.append(Axis(places["attention_output/bias"], 0, made, "makes"))
    return tuple(axes)


def time_distributed(rules: Mapping[type | str, Rule]) -> Rule:
    """The rule of the layer inside, for one place in time."""

    def rule(layer: Any, inputs: list[np.ndarray], output: Tensor, new: New) -> Widths | None:
        inner = rules.get(type(layer.layer))
        if inner is None:
            return None
        one_place = keras.KerasTensor((output.shape[0], *output.shape[2:]), dtype=output.dtype)
        widths = inner(layer.layer, inputs, one_place, new)
        config = {} if widths is None else {f"layer.config.{entry}": part for entry, part in widths.config.items()}
        return None if widths is None else replace(widths, config=config)

    return rule


def weights_of(layer: Any) -> dict[str, int]:
    """The place in `layer.weights` of each weight, by its path within the layer: `"query/kernel"`."""
    return {weight.path.split(f"{layer.name}/", 1)[-1]: place for place, weight in enumerate(layer.weights)}
