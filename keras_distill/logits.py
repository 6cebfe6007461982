"""A model as logits, its own output and named features, in ONE pass.

Everything in this house exchanges logits, while users' models end as they like. Where a model's graph can be
read (Functional, Sequential, nested ones), a softmax or sigmoid at its end is found and taken off: the
layers and their weights are shared, the user's model stays as it was. Where it cannot (subclassed
models, callables), the caller says whether the outputs are logits.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill._checks import complaint

_SQUASHING = {"softmax", "sigmoid"}


class Outputs(NamedTuple):
    """What one pass of a model gives.

    Attributes:
        logits: float `(..., num_classes)`, before softmax or sigmoid; a structure of such for several outputs.
        output: what the model itself returns.
        features: the outputs of the named layers.
    """

    logits: Any
    output: Any
    features: dict[str, Any]


def logits_model(model: keras.Model, *, from_logits: bool = True) -> keras.Model:
    """A model with the same weights whose outputs are logits.

    Args:
        model: a built Functional or Sequential model with any head, or a subclassed one.
        from_logits: what a model that cannot be read gives: logits, or (`False`) probabilities,
            whose logarithm is then taken.

    Returns:
        `model` itself where there is nothing to take off; otherwise a new model that shares its layers.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
        >>> x = ops.ones((1, 4))
        >>> bool(ops.all(ops.isclose(ops.softmax(logits_model(model)(x)), model(x))))
        True
    """
    if not is_readable(model):
        return model if from_logits else LogarithmOfProbabilities(model)
    model_input, model_output = _ends(model)
    stripped = keras.tree.map_structure(lambda tensor: _strip(tensor)[0], model_output)
    unchanged = all(a is b for a, b in zip(keras.tree.flatten(stripped), model.outputs, strict=True))
    return model if unchanged else keras.Model(model_input, stripped, name=f"{model.name}_logits")


def head_activation(model: Any) -> str | None:
    """The name of the activation that ends `model`: "softmax", "sigmoid", "linear"; `None` where it can't be read.

    Example:
        >>> head_activation(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        'linear'
    """
    if not is_readable(model) or len(model.outputs) != 1:
        return None
    return _strip(model.outputs[0])[1]


class OnePass:
    """A function `(inputs, training) -> Outputs` that runs a model once.

    Attributes:
        symbolic: `Outputs` of symbolic tensors, whose shapes are known before any batch; `None` where the model's
            graph cannot be read.
        activations: the activation that ends each output, shaped as the outputs are; `None` where unknown.
    """

    def __init__(self, run: Callable[[Any, bool], Outputs], symbolic: Outputs | None = None, activations: Any = None):
        self._run = run
        self.symbolic = symbolic
        self.activations = activations

    def __call__(self, inputs: Any, training: bool) -> Outputs:
        """Runs the model on a batch."""
        return self._run(inputs, training)


def one_pass(model: Callable, *, layer_names: Iterable[str] = (), from_logits: bool = True) -> OnePass:
    """A function `(inputs, training) -> Outputs` that runs `model` once.

    Args:
        model: a built Keras model, or any callable.
        layer_names: the layers whose outputs are wanted as `features`: `"layer"`, or `"model/layer"` for a layer of a
            model that is itself a layer.
        from_logits: as in `logits_model`.

    Raises:
        ValueError: a layer is named that the model has not, or of a model whose graph cannot be read.
    """
    names = list(layer_names)
    if not is_readable(model):
        if names:
            received = f"{type(model).__name__} {getattr(model, 'name', '')}".strip()
            remedy = "Features are read from the graph; build the model with keras.Sequential or keras.Model(...)."
            raise ValueError(complaint("a model with named features", "Functional or Sequential", received, remedy))
        return OnePass(lambda inputs, training: _opaque_pass(model, inputs, training, from_logits))

    model_input, model_output = _ends(model)
    if any("/" in name for name in names):
        model_output, features = _opened(model, model_input, names)
    else:
        features = {name: _layer_output(model, name) for name in names}
    stripped = keras.tree.map_structure(_strip, model_output)
    heads = keras.tree.map_structure_up_to(model_output, lambda pair: pair[0], stripped)
    # The activation is applied to the logits again, rather than the last layer twice.
    output = keras.tree.map_structure_up_to(
        model_output, lambda tensor, pair: _reactivate(tensor, *pair), model_output, stripped
    )
    symbolic = Outputs(heads, output, features)
    graph = keras.Model(model_input, symbolic._asdict(), name=f"{getattr(model, 'name', 'model')}_in_one_pass")
    activations = keras.tree.map_structure_up_to(model_output, lambda pair: pair[1], stripped)
    return OnePass(lambda inputs, training: Outputs(**graph(inputs, training=training)), symbolic, activations)


def is_readable(model: Any) -> bool:
    """Whether `model` is a built Functional or Sequential whose `call` is Keras's own."""
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        return False
    return type(model).call.__module__.startswith("keras.")


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


class LogarithmOfProbabilities(keras.Model):
    """A model whose graph cannot be read and that gives probabilities, as one that gives logits."""

    def __init__(self, model: Callable, **kwargs: Any):
        super().__init__(**kwargs)
        self.model = model

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The logarithm of the model's probabilities, `(..., num_classes)`."""
        return _opaque_pass(self.model, inputs, training, from_logits=False).logits


def _opaque_pass(model: Callable, inputs: Any, training: bool, from_logits: bool) -> Outputs:
    output = model(inputs, training=training) if isinstance(model, keras.Model) else model(inputs)
    logits = output if from_logits else keras.tree.map_structure(_log_probabilities, output)
    return Outputs(logits, output, {})


def _log_probabilities(probabilities: Any) -> Any:
    probabilities = ops.cast(probabilities, keras.backend.result_type(probabilities.dtype, "float32"))
    return ops.log(ops.maximum(probabilities, 1e-30))


def _ends(model: keras.Model) -> tuple[Any, Any]:
    """The structures of a readable model's symbolic inputs and outputs."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    # `model.input` and `model.output` are flat lists; only these two keep dicts as the user wrote them.
    return model._inputs_struct, model._outputs_struct


def _strip(tensor: Any) -> tuple[Any, str | None]:
    """(the tensor before its squashing activation, that activation's name or "linear"; `None` where unknown)."""
    operation, node_index, tensor_index = tensor._keras_history
    node = operation._inbound_nodes[node_index]
    name = _activation_name(operation)
    if is_readable(operation):
        inner, activation = _strip(operation.outputs[tensor_index])
        if inner is operation.outputs[tensor_index]:
            return tensor, activation
        inner_model = keras.Model(_ends(operation)[0], inner, name=f"{operation.name}_logits")
        return inner_model(*node.arguments.args), activation
    if isinstance(operation, (keras.layers.Softmax, keras.layers.Activation)) or _is_squashing_op(operation):
        if name in _SQUASHING:
            return node.input_tensors[0], name
        # A cast to float32 under a mixed policy, as Keras's guide writes it: what ends the model is before it.
        before, activation = _strip(node.input_tensors[0])
        return (tensor, activation) if before is node.input_tensors[0] else (before, activation)
    if name in _SQUASHING:
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
    return not isinstance(operation, keras.layers.Layer) and type(operation).__name__.lower() in _SQUASHING


def _reactivate(tensor: Any, logits: Any, activation: str | None) -> Any:
    if logits is tensor:
        return tensor
    return keras.layers.Activation(activation, dtype=tensor.dtype)(logits)


def _opened(model: keras.Model, inputs: Any, names: Iterable[str]) -> tuple[Any, dict[str, Any]]:
    """The model's outputs and features with the nested models that `names` reach into taken apart.

    A nested model is one node of the outer graph, its layers' outputs belong to a graph of its own. So the outer graph
    is drawn again from its inputs, with the same layers, and with the nested one's own layers in place of its node.
    """
    inner_names: dict[str, list[str]] = {}
    for name in names:
        head, _, rest = name.partition("/")
        inner_names.setdefault(head, []).extend([rest] if rest else [])
    for head, rests in inner_names.items():
        _layer_output(model, head)
        if rests and not is_readable(model.get_layer(head)):
            received = type(model.get_layer(head)).__name__
            raise ValueError(complaint(f"layer {head!r} of {model.name!r}", "Functional or Sequential", received))
    features: dict[str, Any] = {}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if inner_names.get(layer.name):
            outputs, inner = _opened(layer, args[0], inner_names[layer.name])
            features.update({f"{layer.name}/{name}": feature for name, feature in inner.items()})
        else:
            outputs = layer(*args, **kwargs)
        if layer.name in inner_names:
            features[layer.name] = outputs
        return outputs

    # A built Sequential keeps the functional graph of its layers.
    graph = getattr(model, "_functional", None) or model
    # Older Keras asks for the first, newer ones have it as a default.
    outputs = graph._run_through_graph(inputs, operation_fn=lambda operation: operation, call_fn=call)
    return outputs, {name: feature for name, feature in features.items() if name in set(names)}


def _layer_output(model: keras.Model, name: str) -> Any:
    try:
        return model.get_layer(name).output
    except ValueError as error:
        names = ", ".join(layer.name for layer in model.layers)
        raise ValueError(
            complaint(f"layer name {name!r}", f"a layer of {model.name!r}", f"none: it has {names}")
        ) from error
