"""Layers inside a layer that is no model, such as the queries of an attention: what they give, beside the layer's own.

A layer's graph is its Python code, which cannot be drawn again. So the layer is run as it is, once, with the inner one
in its place watched; twins of both are watched, so that the user's layers stay untouched whoever else is running them.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_distill._checks import did_you_mean, error_message
from keras_distill._keras_internals import sublayers, twin_of
from keras_distill._types import Tensor, TensorTree


def inner_layer(layer: keras.layers.Layer, path: str) -> keras.layers.Layer:
    """The layer at `path`, `"self_attention_layer/query"`, inside a layer.

    Raises:
        ValueError: there is none, or several.
    """
    name, _, rest = path.partition("/")
    found = [each for each in sublayers(layer) if each.name == name]
    if len(found) != 1:
        names = [each.name for each in sublayers(layer)]
        received = f"{len(found)} of this name" if found else f"none: it has {', '.join(names) or 'no layers'}"
        expectation = f"{name!r} must name a layer inside {layer.name!r} ({type(layer).__name__})"
        raise ValueError(error_message(expectation, received, did_you_mean(name, names)))
    return inner_layer(found[0], rest) if rest else found[0]


class WithInnerOutputs(keras.layers.Layer):
    """A layer that gives, beside its own output, those of layers inside it; the weights are its own.

    Args:
        layer: the layer.
        paths: the layers inside it, as `inner_layer` takes them.
        constants: arguments of its call, by name, that are no tensors.

    Raises:
        ValueError: in a call, an inner layer that does not run exactly once in it.
    """

    def __init__(self, layer: keras.layers.Layer, paths: Iterable[str], constants: dict[str, Any], **kwargs: Any):
        super().__init__(dtype=layer.dtype_policy, **kwargs)
        self.layer = layer
        self.paths = list(paths)
        self.constants = dict(constants)
        self.supports_masking = layer.supports_masking
        self.built = True

    def call(self, inputs: TensorTree, training: bool | None = None, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """The layer's output, and by its path the output of each inner layer."""
        given: dict[str, list[Tensor]] = {path: [] for path in self.paths}
        # Whether it trains, the inner calls read from Keras's context.
        output = _watched(self.layer, given, "")(inputs, **self.constants, **kwargs)
        for path, outputs in given.items():
            if len(outputs) != 1:
                expectation = f"layer {path!r} must run once in each call of {self.layer.name!r}"
                remedy = "Name another layer inside it, or the layer itself."
                raise ValueError(error_message(expectation, f"{len(outputs)} times", remedy))
        return output, {path: outputs[0] for path, outputs in given.items()}

    def compute_mask(self, inputs: TensorTree, previous_mask: Tensor) -> Tensor:
        """The mask of the layer's own output."""
        return self.layer.compute_mask(inputs, previous_mask)


def with_inner_outputs(
    layer: keras.layers.Layer, paths: Sequence[str], args: tuple, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Tensor]]:
    """A symbolic call of a layer together with what layers inside it give; see `WithInnerOutputs`."""
    for path in paths:
        inner_layer(layer, path)
    (_, inputs), *others = inspect.signature(layer.call).bind(*args, **kwargs).arguments.items()
    arguments = dict(others)
    # Keras takes no tensors beside constants among arguments that it does not know by name.
    is_constant = {
        name: not any(isinstance(part, keras.KerasTensor) for part in keras.tree.flatten(value))
        for name, value in arguments.items()
    }
    constants = {name: value for name, value in arguments.items() if is_constant[name]}
    tensors = {name: value for name, value in arguments.items() if not is_constant[name]}
    return WithInnerOutputs(layer, paths, constants)(inputs, **tensors)


def _watched(layer: keras.layers.Layer, given: dict[str, list[Tensor]], path: str) -> Any:
    """A twin of a layer that notes in `given` what it and the layers inside it give, each under its path."""
    changes: dict[str, Any] = {}
    for inner in sublayers(layer):
        inner_path = f"{path}{inner.name}"
        if any(f"{each}/".startswith(f"{inner_path}/") for each in given):
            twin = _watched(inner, given, f"{inner_path}/")
            changes |= {
                name: _replaced(value, inner, twin) for name, value in vars(layer).items() if _holds(value, inner)
            }
    twin = twin_of(layer, **changes)
    if path.rstrip("/") in given:
        vars(twin)["call"] = _noting(twin.call, given[path.rstrip("/")])
    return twin


def _noting(call: Any, outputs: list[Tensor]) -> Any:
    def noted(*args: Any, **kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        outputs.append(output)
        return output

    return noted


def _holds(value: Any, layer: keras.layers.Layer) -> bool:
    return value is layer or (isinstance(value, (list, tuple)) and any(each is layer for each in value))


def _replaced(value: Any, layer: keras.layers.Layer, twin: keras.layers.Layer) -> Any:
    return twin if value is layer else [twin if each is layer else each for each in value]
