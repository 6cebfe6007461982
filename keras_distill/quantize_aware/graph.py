"""The graph of a Functional or Sequential model as a flat list of calls, nested models opened.

Reading only: nothing here knows what int8 is. What each call means to an integer runtime is in `rewriting.py`.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from itertools import count
from typing import Any

import keras

from keras_distill._checks import error_message
from keras_distill._keras_internals import calls_in_order, calls_of, functional_graph, input_structure, output_structure
from keras_distill.models.layer_roles import is_readable


@dataclass(frozen=True)
class Call:
    """One call of a layer or operation.

    Attributes:
        operation: the layer, or the operation of `keras.ops`.
        arguments: what it was called with, Keras's own record.
        keys: the id of each symbolic tensor among the arguments → the key of its value. A nested model that is called
            twice has the same symbolic tensors twice, with other values.
        inputs: the keys of its input tensors.
        outputs: the keys of its output tensors.
    """

    operation: Any
    arguments: Any
    keys: dict[int, int]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def filled(self, values: dict[int, Any]) -> tuple[tuple, dict[str, Any]]:
        """The call's positional and keyword arguments with `values` by key in the place of tensors."""
        return self.arguments.fill_in({identity: values[key] for identity, key in self.keys.items()})


class Graph:
    """A model's calls in an order in which they can be computed.

    Args:
        model: a built Functional or Sequential model; it is only read.
        splits: types of layers whose own activation, unless linear, is listed as a call after theirs.

    Attributes:
        calls: all calls, in order.
        inputs, outputs: the keys of the model's flat inputs and outputs.
        num_calls: operation's id → how often it is called.
        consumers: key → the positions in `calls` that take it.
    """

    def __init__(self, model: keras.Model, splits: Collection[type] = ()):
        self._keys = count()
        self._splits = splits
        self._activations: dict[int, Any] = {}
        self.calls: list[Call] = []
        self.inputs = tuple(next(self._keys) for _ in model.inputs)
        self.outputs = self._open(model, self.inputs)
        self.num_calls = Counter(id(call.operation) for call in self.calls)
        self.consumers: dict[int, list[int]] = {}
        for position, call in enumerate(self.calls):
            for key in call.inputs:
                self.consumers.setdefault(key, []).append(position)

    def only_consumer(self, key: int) -> int | None:
        """The position of the one call that takes `key`; `None` if there are several or it is an output."""
        positions = self.consumers.get(key, [])
        return positions[0] if len(positions) == 1 and key not in self.outputs else None

    def _open(self, model: keras.Model, input_keys: tuple[int, ...]) -> tuple[int, ...]:
        functional = functional_graph(model)
        keys = {id(tensor): key for tensor, key in zip(functional.inputs, input_keys, strict=True)}
        for node in calls_in_order(model):
            if isinstance(node.operation, keras.layers.InputLayer):
                continue
            inputs = tuple(keys[id(tensor)] for tensor in node.input_tensors)
            if is_readable(node.operation):
                outputs = self._open(node.operation, inputs)
            else:
                outputs = tuple(next(self._keys) for _ in node.outputs)
                own = {id(tensor): keys[id(tensor)] for tensor in node.arguments.keras_tensors}
                self.calls.append(Call(node.operation, node.arguments, own, inputs, outputs))
                outputs = self._split(node.operation, node.outputs, outputs)
            keys |= {id(tensor): key for tensor, key in zip(node.outputs, outputs, strict=True)}
        return tuple(keys[id(tensor)] for tensor in functional.outputs)

    def _split(self, layer: Any, tensors: list[Any], keys: tuple[int, ...]) -> tuple[int, ...]:
        """Lists the layer's own activation as a call, if it is to be one; returns the keys of what it gives."""
        if type(layer) not in self._splits or layer.activation is keras.activations.linear:
            return keys
        if id(layer) not in self._activations:
            activation = keras.layers.Activation(layer.activation, name=f"{layer.name}_activation", dtype="float32")
            # Called on a tensor of nobody's graph, so that the user's model learns of no new call.
            activation(keras.KerasTensor(tensors[0].shape))
            self._activations[id(layer)] = activation
        activation = self._activations[id(layer)]
        (node,) = calls_of(activation)
        outputs = (next(self._keys),)
        identity = id(node.arguments.keras_tensors[0])
        self.calls.append(Call(activation, node.arguments, {identity: keys[0]}, keys, outputs))
        return outputs


def ends(model: keras.Model) -> tuple[Any, Any]:
    """The structures of a readable model's symbolic inputs and outputs.

    Raises:
        TypeError: not a Keras model.
        ValueError: one whose graph cannot be read.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(error_message("student must be a keras.Model", type(model).__name__))
    if not is_readable(model):
        remedy = "Build it with keras.Sequential or keras.Model(inputs, outputs): its layers are read from the graph."
        raise ValueError(
            error_message("student must be a built Functional or Sequential model", type(model).__name__, remedy)
        )
    return input_structure(model), output_structure(model)
