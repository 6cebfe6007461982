"""A model as the part that is frozen and the part that is trained."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_distill._checks import (
    check_choice,
)
from keras_distill._keras_internals import input_structure, producer
from keras_distill._types import TensorTree
from keras_distill.specialists.specialist import HEAD_NAME, specialist_model

TRAINED = ("head", "last_block", "all")


def frozen_features(generalist: keras.Model, inputs: TensorTree, trained: str) -> Any:
    """What the layers that are not trained make of every example: an array, or several, `(num_items, …)`.

    Args:
        generalist: as `train` takes it.
        inputs: all examples'.
        trained: `"head"` or `"last_block"`; with `"all"` nothing is frozen, and the inputs come back.

    Example:
        >>> import numpy as np
        >>> hidden = keras.layers.Dense(8, "relu", kernel_initializer="ones")
        >>> generalist = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(3)])
        >>> frozen_features(generalist, np.ones((2, 4), "float32"), "head").tolist()[0]
        [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    """
    return TrainedPart(specialist_model(generalist, range(generalist.output_shape[-1])), trained).features(inputs)


class TrainedPart:
    """A model as the part that is frozen and the part that is trained.

    Attributes:
        model: the whole.
        frozen: from the inputs to the tensors that cross into the trained part; `None` where all is trained.
        tail: from there to the outputs.
        of_batches: the model that is trained on batches: `tail`, or the whole with the frozen part in inference mode.
    """

    def __init__(self, model: keras.Model, trained: str):
        self.model = self.tail = self.of_batches = model
        self.frozen: keras.Model | None = None
        layers = _frozen_layers(model, check_choice("trained", trained, TRAINED))
        self.flags = [(layer, layer.trainable) for layer in layers]
        if layers:
            crossing: Any = _crossing(model.outputs, {id(layer) for layer in layers})
            # A tuple: Keras takes batches of lists for something else.
            crossing = crossing[0] if len(crossing) == 1 else tuple(crossing)
            self.frozen = keras.Model(input_structure(model), crossing)
            self.tail = keras.Model(crossing, model.outputs[0])

    def features(self, inputs: TensorTree) -> Any:
        """What the frozen part makes of all examples."""
        return inputs if self.frozen is None else self.frozen.predict(inputs, batch_size=512, verbose=0)

    def inputs(self, inputs: TensorTree, augmentation: Callable | None, features: TensorTree) -> Any:
        """What batches are made of: features, or the inputs where each step sees others; decides `of_batches`."""
        if self.frozen is None:
            return inputs
        if augmentation is None:
            self.of_batches = self.tail
            return self.features(inputs) if features is None else features
        given = keras.tree.map_structure(
            lambda tensor: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype), input_structure(self.frozen)
        )
        self.frozen.trainable = False
        self.of_batches = keras.Model(given, self.tail(self.frozen(given, training=False)))
        return inputs

    def thaw(self) -> None:
        """Gives the frozen layers back their `trainable`."""
        for layer, trainable in self.flags:
            layer.trainable = trainable


def _crossing(outputs: Sequence[Any], frozen: set[int]) -> Sequence[Any]:
    """The tensors that frozen layers hand to those that are trained."""
    found: dict[int, Any] = {}
    seen: set[int] = set()
    waiting = list(outputs)
    while waiting:
        tensor = waiting.pop()
        operation, node, _ = producer(tensor)
        if id(operation) in frozen:
            found[id(tensor)] = tensor
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            waiting += node.input_tensors
    return list(found.values())


def _frozen_layers(model: keras.Model, trained: str) -> list[keras.layers.Layer]:
    hidden = [layer for layer in model.layers if layer.name != HEAD_NAME]
    if trained == "all":
        return []
    if trained == "head":
        return hidden
    with_kernel = [place for place, layer in enumerate(hidden) if any(weight.ndim > 1 for weight in layer.weights)]
    if not with_kernel or not with_kernel[-1]:
        return []
    # An input may come in behind what is frozen: it crosses as it is.
    inputs = [layer for layer in hidden[with_kernel[-1] :] if isinstance(layer, keras.layers.InputLayer)]
    return hidden[: with_kernel[-1]] + inputs
