"""What ends a model, found by value: a softmax or a sigmoid that can be taken off, or probabilities that stay.

The graph says which operations end a model, `layer_roles.py` what such operations may do. Whether they do it is tried:
random numbers enter where the reading ends, and what comes out is compared. A head comes off only where
activation(logits) is the model's output on that sample; how it comes off is `head_removal.py`'s.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from keras_distill._keras_internals import producer, twin_of
from keras_distill._types import Tensor
from keras_distill.models.compilation import outside_compilation
from keras_distill.models.layer_roles import Role, is_readable, role_of
from keras_distill.models.probabilities import SIGMOID, SOFTMAX

LINEAR = "linear"
# A softmax whose rows are no distributions over the last axis: no logits have it as their softmax.
MISPLACED = "a softmax over another axis than the last"
# Rows that are distributions, by another function than softmax.
_NORMALISED = "normalised"
# A sample's examples are of very different sizes, so that a clipped or a scaled softmax is told from a softmax.
_SCALES = np.array([1.0, 0.1, 6.0, 30.0], "float32")
_TOLERANCES = {"float16": 5e-3, "bfloat16": 4e-2}


class Head(NamedTuple):
    """What ends one output.

    Attributes:
        activation: `"softmax"` or `"sigmoid"`, what makes the output of its logits; `"linear"`, the output is logits;
            `MISPLACED`; `None` where nothing is known.
        comes_off: whether the layers can be run without the activation. Where not, the logits of a softmax or a
            sigmoid are what `logits_of` makes of the output.
    """

    activation: str | None
    comes_off: bool


def head_activation(model: Any) -> str | None:
    """The name of the activation that ends `model`: "softmax", "sigmoid", "linear"; `None` where it can't be told.

    Example:
        >>> head_activation(keras.Sequential([keras.Input((4,)), layers.Dense(3)]))
        'linear'
        >>> head = layers.TimeDistributed(layers.Dense(3, activation="softmax"))
        >>> head_activation(keras.Sequential([keras.Input((2, 4)), head]))
        'softmax'
    """
    if not is_readable(model) or len(model.outputs) != 1:
        return None
    activation = find_heads(model.outputs)[0].activation
    return activation if activation in (LINEAR, SOFTMAX, SIGMOID) else None


def find_heads(outputs: Sequence[Any]) -> list[Head]:
    """What ends each of a graph's symbolic outputs."""
    with outside_compilation(), keras.StatelessScope():
        return [_head(Place(output)) for output in outputs]


def layer_at_end(output: Any) -> Any:
    """The layer with weights that gave a symbolic output, but for a softmax or a sigmoid and for dropout.

    Returns:
        The layer; `None` where others follow it, or where it is not known.
    """
    tensor = output
    while (role := role_at_end(tensor)) in (Role.IDENTITY, Role.SQUASH):
        tensor = values_read(producer(tensor)[1])[0]
    return producer(tensor)[0] if role is Role.KERNEL else None


def role_at_end(tensor: Tensor) -> Role:
    """What the operation that gave a symbolic tensor is to a head, the functions of its user tried."""
    operation, node, _ = producer(tensor)
    role = role_of(operation)
    if role is Role.SQUASH:
        activation = squash_activation(operation, tensor.shape)
        role = {LINEAR: Role.IDENTITY, None: Role.FUNCTION}.get(activation, Role.SQUASH)
    if role in (Role.IDENTITY, Role.FUNCTION) and len(values_read(node)) != 1:
        return Role.OTHER
    return role


def values_read(node: Any) -> list[Any]:
    """The tensors that a call computes with, without the masks that Keras adds as keywords."""
    given = [part for part in keras.tree.flatten(node.arguments.args) if isinstance(part, keras.KerasTensor)]
    return given or list(node.input_tensors)


def squash_activation(operation: Any, shape: Sequence[int | None]) -> str | None:
    """What an Activation, Lambda or Softmax, or an operation of `keras.ops`, does to a tensor of that shape.

    Returns:
        `"linear"`, `"softmax"`, `"sigmoid"`, `MISPLACED`, `"normalised"` for another function whose rows are
        distributions, or `None`.
    """
    if isinstance(operation, layers.TimeDistributed):
        return squash_activation(operation.layer, (None, *shape[2:]))
    quiet = _with_attributes(operation)
    activation = function_activation(lambda values: _run(quiet, values), shape)
    if activation is None and (isinstance(operation, layers.Softmax) or type(operation).__name__ == "Softmax"):
        return MISPLACED
    return activation


def function_activation(function: Callable, shape: Sequence[int | None]) -> str | None:
    """What a function of a tensor `(batch, …, units)` is, by value; returns what `squash_activation` returns.

    Example:
        >>> function_activation(lambda x: ops.exp(x) / ops.sum(ops.exp(x), axis=-1, keepdims=True), (None, 5))
        'softmax'
    """
    units = shape[-1] or 3
    # As many examples as cost nothing: of few, hardly one has two logits that a clipping would make equal.
    values = _numbers([32 if units <= 1000 else 4, *[3] * (len(shape) - 2), units], seed=1)
    try:
        given = _as_numpy(function(ops.convert_to_tensor(values)))
    except Exception:
        # What wants another shape, dtype or device than these numbers have is none of the functions that we know.
        return None
    if _are_near(given, values):
        return LINEAR
    if values.shape[-1] > 1 and _are_near(given, _softmax(values)):
        return SOFTMAX
    if _are_near(given, _sigmoid(values)):
        return SIGMOID
    if any(_are_near(given, _softmax(values, axis)) for axis in range(1, values.ndim - 1)):
        return MISPLACED
    return _NORMALISED if given.shape == values.shape and _are_distributions(given) else None


class OperationFailed(Exception):
    """An operation of a model does not run on numbers of our own."""


class Place(NamedTuple):
    """A symbolic tensor, and the calls of nested models by which one comes to it, the outermost first.

    A nested model that is called twice has its tensors once, with other values at each call.
    """

    tensor: Any
    calls: tuple[Any, ...] = ()

    def beside(self, tensor: Tensor) -> "Place":
        """Another tensor of the same graph."""
        return Place(tensor, self.calls)

    def into(self, node: Any, index: int) -> "Place":
        """An output of the nested model that `node` calls, inside of it."""
        return Place(node.operation.outputs[index], (*self.calls, node))

    def out(self) -> "Place":
        """A nested model's own input as the tensor that it was called with."""
        node = self.calls[-1]
        position = [id(tensor) for tensor in node.operation.inputs].index(id(self.tensor))
        return Place(keras.tree.flatten(node.arguments.args[0])[position], self.calls[:-1])


def _head(place: Place) -> Head:
    try:
        output, bare, activations, is_moved = _Sample().values(place)
    except OperationFailed:
        # A function of the user's may want shapes or devices that only its own data bring. It stays as it is, and the
        # first batch shows whether it gives probabilities.
        return Head(None, False)
    if len(output.shape) < 2:
        return Head(None, False)
    tolerance = _TOLERANCES.get(keras.backend.standardize_dtype(output.dtype), 1e-4)
    output = _as_numpy(output)
    if bare is not None and activations <= {SOFTMAX, SIGMOID, MISPLACED}:
        logits = _as_numpy(bare)
        if SIGMOID not in activations and output.shape[-1] > 1 and _makes(_softmax, logits, output, tolerance):
            return Head(SOFTMAX, True)
        if activations == {SIGMOID} and _makes(_sigmoid, logits, output, tolerance):
            return Head(SIGMOID, True)
    if activations == {LINEAR} and is_moved:
        return Head(LINEAR, False)
    if None not in activations and _are_distributions(output):
        return Head(SOFTMAX, False)
    if activations == {SIGMOID} and bool(np.all((output >= 0.0) & (output <= 1.0))):
        return Head(SIGMOID, False)
    if is_moved and activations <= {SOFTMAX, MISPLACED, _NORMALISED}:
        return Head(MISPLACED, False)
    return Head(None, False)


class _Values(NamedTuple):
    """What a sample gives at a place.

    Attributes:
        output: the values there.
        bare: the same without the activation; `None` where it cannot be left out.
        activations: what the activations are at which the reading ended, by value; `None` stands for anything.
        is_moved: whether the values were only moved since then.
    """

    output: Any
    bare: Any
    activations: frozenset[str | None]
    is_moved: bool


class _Sample:
    """Values at the places of a graph, computed from random ones where the reading ends."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], _Values] = {}
        self._is_of_full_shape = False

    def values(self, place: Place) -> _Values:
        """The values at a place."""
        key = (id(place.tensor), *map(id, place.calls))
        if key not in self._known:
            self._known[key] = self._computed(place)
        return self._known[key]

    def _computed(self, place: Place) -> _Values:
        operation, node, index = producer(place.tensor)
        role = role_at_end(place.tensor)
        if role is Role.NESTED:
            return self.values(place.into(node, index))
        if isinstance(operation, layers.InputLayer) and place.calls:
            return self.values(place.out())
        if role is Role.KERNEL:
            return self._of_kernel(operation, node.input_tensors[0], place.tensor)
        if role is Role.SQUASH:
            return self._of_squash(node, squash_activation(operation, place.tensor.shape))
        if role is Role.IDENTITY:
            return self.values(place.beside(values_read(node)[0]))
        # Of one of several outputs, such as a Fourier transform's real part, nothing is known.
        if role in (Role.LAYOUT, Role.FUNCTION, Role.MERGE) and len(node.outputs) == 1:
            # What moves or merges values may want the sizes that they have.
            self._is_of_full_shape = True
            return self._through(node, role, [self.values(place.beside(tensor)) for tensor in values_read(node)])
        values = self._random(place.tensor.shape, place.tensor.dtype)
        return _Values(values, values, frozenset([None]), True)

    def _of_kernel(self, layer: keras.layers.Layer, before: Any, after: Any) -> _Values:
        inner = layer.layer if isinstance(layer, layers.TimeDistributed) else layer
        shape = before.shape if self._is_of_full_shape else _smallest_shape(layer, before.shape)
        inputs = self._random(shape, before.dtype)
        output = _run(_with_attributes(layer), inputs)
        if is_readable(inner):
            return _Values(output, None, frozenset([find_heads(inner.outputs)[0].activation]), True)
        activation = function_activation(inner.activation, after.shape if inner is layer else (None, *after.shape[2:]))
        if activation == LINEAR:
            # A layer of transition probabilities makes distributions of distributions: its output is watched.
            # NumPy's softmax: Keras's warns of an axis of one place.
            distributions = ops.cast(ops.convert_to_tensor(_softmax(_as_numpy(inputs))), inputs.dtype)
            is_stochastic = inner is layer and _are_distributions(
                _as_numpy(_run(_with_attributes(layer), distributions))
            )
            return _Values(output, output, frozenset([None if is_stochastic else LINEAR]), True)
        bare = _run(bare_layer(layer), inputs) if is_separable(layer) else None
        return _Values(output, bare, frozenset([activation]), True)

    def _of_squash(self, node: Any, activation: str | None) -> _Values:
        inputs = []
        for tensor in node.input_tensors:
            places = tensor.shape[1:-1]
            if not self._is_of_full_shape:
                places = [3 if size is None else min(size, 3) for size in places]
            inputs.append(self._random([None, *places, tensor.shape[-1]], tensor.dtype))
        # A second tensor is a mask, which takes part in the softmax.
        bare = inputs[0] if len(inputs) == 1 else None
        return _Values(_call(node, inputs), bare, frozenset([activation]), True)

    def _through(self, node: Any, role: Role, before: list[_Values]) -> _Values:
        masks = [self._random(tensor.shape, tensor.dtype) for tensor in node.input_tensors[len(before) :]]
        output = _call(node, [*(values.output for values in before), *masks])
        bare = None
        if role is not Role.MERGE and len(before) == 1 and before[0].bare is not None:
            bare = _call(node, [before[0].bare, *masks])
        activations = frozenset().union(*[values.activations for values in before])
        return _Values(output, bare, activations, role is Role.LAYOUT and all(values.is_moved for values in before))

    def _random(self, shape: Sequence[int | None], dtype: Any) -> Any:
        dtype = keras.backend.standardize_dtype(dtype)
        values = _numbers([4, *[3 if size is None else size for size in shape[1:]]], seed=2 + len(self._known))
        if dtype == "bool":
            # A softmax under a mask that leaves nothing has no distribution to give.
            values = np.ones(values.shape)
        elif "int" in dtype:
            values = np.zeros(values.shape)
        return ops.cast(ops.convert_to_tensor(values), dtype)


# Running a graph's operations on numbers


def is_separable(layer: keras.layers.Layer) -> bool:
    """Whether a kernel can be run without its activation: nothing else looks at what that gives."""
    parts = [layer, layer.layer] if isinstance(layer, layers.TimeDistributed) else [layer]
    return all(part.activity_regularizer is None and part.quantization_mode is None for part in parts)


def bare_layer(layer: keras.layers.Layer) -> Any:
    """A layer with the weights of `layer` whose activation is linear; it is no part of a model."""
    if isinstance(layer, layers.TimeDistributed):
        return _with_attributes(layer, layer=bare_layer(layer.layer))
    return _with_attributes(layer, activation=keras.activations.linear)


def _with_attributes(operation: Any, **attributes: Any) -> Any:
    """The same operation with other attributes, and without the regulariser that would add to its model's losses."""
    if not isinstance(operation, layers.Layer) or (not attributes and operation.activity_regularizer is None):
        return operation
    return twin_of(operation, activity_regularizer=None, **attributes)


def _call(node: Any, values: list[Any]) -> Any:
    """A node's operation on values in the place of its symbolic tensors."""
    by_tensor = {id(tensor): value for tensor, value in zip(node.input_tensors, values, strict=True)}
    arguments, keywords = keras.tree.map_structure(
        lambda part: by_tensor.get(id(part), part), (node.arguments.args, node.arguments.kwargs)
    )
    return _run(_with_attributes(node.operation), *arguments, **keywords)


def _run(operation: Any, *arguments: Any, **keywords: Any) -> Any:
    """An operation in inference, also where a layer that is training runs around us; `OperationFailed` if it raises."""
    is_trained = isinstance(operation, (layers.Lambda, layers.TimeDistributed)) or is_readable(operation)
    try:
        return operation(*arguments, **{**keywords, "training": False} if is_trained else keywords)
    except Exception as error:
        raise OperationFailed(str(error)) from error


def _numbers(shape: list[int], seed: int) -> np.ndarray:
    """Random numbers whose examples are of different sizes; large arrays repeat a block, which costs less."""
    block = np.random.default_rng(seed).normal(size=min(math.prod(shape), 65_521)).astype("float32")
    return np.resize(block, shape) * np.resize(_SCALES, shape[0]).reshape(-1, *[1] * (len(shape) - 1))


def _smallest_shape(layer: keras.layers.Layer, shape: Sequence[int | None]) -> list[int | None]:
    """A shape of inputs for a layer with no more places than it needs: what it does at one it does at all."""
    if isinstance(layer, layers.TimeDistributed):
        return [*shape[:2], *_smallest_shape(layer.layer, [None, *shape[2:]])[1:]]
    if isinstance(layer, layers.Dense):
        return [None, *[2] * (len(shape) - 2), shape[-1]]
    if not hasattr(layer, "kernel_size"):
        return list(shape)
    extents = [1 + (size - 1) * rate for size, rate in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
    places = [extent + 1 for extent in extents]
    return [None, *places, shape[-1]] if layer.data_format == "channels_last" else [None, shape[1], *places]


def _makes(function: Callable, logits: np.ndarray, output: np.ndarray, tolerance: float) -> bool:
    """Whether a function of the logits is the output, in every row of which the logits are finite."""
    if logits.shape != output.shape:
        return False
    # A model's bad weights are found elsewhere, and by their names: its head is what it is.
    rows = np.isfinite(logits).all(axis=-1)
    return _are_near(function(logits[rows]), output[rows], tolerance)


def _are_near(values: np.ndarray, others: np.ndarray, tolerance: float = 1e-4) -> bool:
    if values.shape != others.shape:
        return False
    return np.allclose(values, others, rtol=tolerance, atol=0.1 * tolerance)


def _are_distributions(values: np.ndarray) -> bool:
    return values.shape[-1] > 1 and bool(np.all(values >= 0.0) and np.all(np.abs(values.sum(-1) - 1.0) <= 1e-2))


def _softmax(values: np.ndarray, axis: int = -1) -> np.ndarray:
    with np.errstate(all="ignore"):
        exponentials = np.exp(values - values.max(axis, keepdims=True))
        return exponentials / exponentials.sum(axis, keepdims=True)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * values))


def _as_numpy(values: Tensor) -> np.ndarray:
    return ops.convert_to_numpy(ops.cast(values, "float32"))
