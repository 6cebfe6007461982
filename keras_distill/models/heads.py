"""What ends a model: its softmax or sigmoid, found in the graph and taken off.

The whole pass of a model, its logits beside its output and features, is `forward_pass.py`'s.
"""

from typing import Any

import keras
from keras import ops

from keras_distill._keras_internals import has_own_call, input_structure, producer

SQUASHING = {"softmax", "sigmoid"}


def head_activation(model: Any) -> str | None:
    """The name of the activation that ends `model`: "softmax", "sigmoid", "linear"; `None` where it can't be read.

    Example:
        >>> head_activation(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        'linear'
    """
    if not is_readable(model) or len(model.outputs) != 1:
        return None
    return strip_head(model.outputs[0])[1]


def is_readable(model: Any) -> bool:
    """Whether `model` is a built Functional or Sequential whose `call` is Keras's own."""
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        return False
    return has_own_call(model)


def looks_like_probabilities(outputs: Any) -> Any:
    """The share of rows that lie in [0, 1] and sum to one: 1.0 for a softmax, near 0.0 for logits; scalar float32.

    Example:
        >>> float(looks_like_probabilities(ops.convert_to_tensor([[0.2, 0.8], [2.0, -1.0]])))
        0.5
    """
    outputs = ops.cast(outputs, "float32")
    tolerance = 1e-2 if outputs.shape[-1] is None or outputs.shape[-1] > 1 else 0.0
    sums_to_one = ops.abs(ops.sum(outputs, axis=-1) - 1.0) <= tolerance
    in_range = ops.all(ops.logical_and(outputs >= 0.0, outputs <= 1.0), axis=-1)
    return ops.mean(ops.cast(ops.logical_and(sums_to_one, in_range), "float32"))


class WithoutActivation(keras.layers.Layer):
    """A layer (Dense, a convolution, …) as it is before its activation; the weights are its own."""

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        super().__init__(name=f"{layer.name}_without_activation", dtype=layer.dtype_policy, **kwargs)
        self.layer = layer
        self.supports_masking = layer.supports_masking
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The layer's output with a linear activation, `(..., units)`."""
        # Every kind of layer reads `self.activation` when called; sharing the call shares the weights for all of them.
        # A twin of the same attributes, since another thread may be calling the layer itself.
        twin = object.__new__(type(self.layer))
        twin.__dict__.update(self.layer.__dict__, activation=keras.activations.linear)
        return twin(inputs)


def log_probabilities(probabilities: Any) -> Any:
    """The logarithm of probabilities, at least float32, where zero counts as 1e-30."""
    probabilities = ops.cast(probabilities, keras.backend.result_type(probabilities.dtype, "float32"))
    return ops.log(ops.maximum(probabilities, 1e-30))


def strip_head(tensor: Any) -> tuple[Any, str | None]:
    """(the tensor before its squashing activation, that activation's name or "linear"; `None` where unknown)."""
    operation, node, tensor_index = producer(tensor)
    name = _activation_name(operation)
    if is_readable(operation):
        inner, activation = strip_head(operation.outputs[tensor_index])
        if inner is operation.outputs[tensor_index]:
            return tensor, activation
        inner_model = keras.Model(input_structure(operation), inner, name=f"{operation.name}_logits")
        return inner_model(*node.arguments.args), activation
    if isinstance(operation, (keras.layers.Softmax, keras.layers.Activation)) or _is_squashing_op(operation):
        if name in SQUASHING:
            return node.input_tensors[0], name
        # A cast to float32 under a mixed policy, as Keras's guide writes it: what ends the model is before it.
        before, activation = strip_head(node.input_tensors[0])
        return (tensor, activation) if before is node.input_tensors[0] else (before, activation)
    if name in SQUASHING:
        return WithoutActivation(operation)(*node.arguments.args), name
    return tensor, name


def _activation_name(operation: Any) -> str | None:
    if isinstance(operation, keras.layers.Softmax):
        return "softmax"
    if _is_squashing_op(operation):
        return type(operation).__name__.lower()
    activation = getattr(operation, "activation", None)
    return getattr(activation, "__name__", None)


def _is_squashing_op(operation: Any) -> bool:
    return not isinstance(operation, keras.layers.Layer) and type(operation).__name__.lower() in SQUASHING


def reactivate(tensor: Any, logits: Any, activation: str | None) -> Any:
    """The model's own output out of its logits, so that the last layer does not run twice."""
    if logits is tensor:
        return tensor
    return keras.layers.Activation(activation, dtype=tensor.dtype)(logits)
