"""A model as logits, its own output and named features, in ONE pass.

Everything in this house exchanges logits, while users' models end as they like. Where a model's graph can be
read (Functional, Sequential, nested ones), a softmax or sigmoid at its end is found and taken off: the
layers and their weights are shared, the user's model stays as it was. Where it cannot (subclassed
models, callables), the caller says whether the outputs are logits.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras

from keras_distill._checks import error_message
from keras_distill._keras_internals import input_structure, output_structure, run_again
from keras_distill.models.heads import is_readable, log_probabilities, reactivate, strip_head


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
        >>> from keras import ops
        >>> x = ops.ones((1, 4))
        >>> bool(ops.all(ops.isclose(ops.softmax(logits_model(model)(x)), model(x))))
        True
    """
    if not is_readable(model):
        return model if from_logits else LogarithmOfProbabilities(model)
    model_input, model_output = input_structure(model), output_structure(model)
    stripped = keras.tree.map_structure(lambda tensor: strip_head(tensor)[0], model_output)
    unchanged = all(a is b for a, b in zip(keras.tree.flatten(stripped), model.outputs, strict=True))
    return model if unchanged else keras.Model(model_input, stripped, name=f"{model.name}_logits")


class ForwardPass:
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


def forward_pass(model: Callable, *, layer_names: Iterable[str] = (), from_logits: bool = True) -> ForwardPass:
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
            raise ValueError(
                error_message("a model with named features must be Functional or Sequential", received, remedy)
            )
        return ForwardPass(lambda inputs, training: _opaque_pass(model, inputs, training, from_logits))

    model_input, model_output = input_structure(model), output_structure(model)
    if any("/" in name for name in names):
        model_output, features = _opened(model, model_input, names)
    else:
        features = {name: _layer_output(model, name) for name in names}
    stripped = keras.tree.map_structure(strip_head, model_output)
    heads = keras.tree.map_structure_up_to(model_output, lambda pair: pair[0], stripped)
    # The activation is applied to the logits again, rather than the last layer twice.
    output = keras.tree.map_structure_up_to(
        model_output, lambda tensor, pair: reactivate(tensor, *pair), model_output, stripped
    )
    symbolic = Outputs(heads, output, features)
    graph = keras.Model(model_input, symbolic._asdict(), name=f"{getattr(model, 'name', 'model')}_forward_pass")
    activations = keras.tree.map_structure_up_to(model_output, lambda pair: pair[1], stripped)
    return ForwardPass(lambda inputs, training: Outputs(**graph(inputs, training=training)), symbolic, activations)


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
    logits = output if from_logits else keras.tree.map_structure(log_probabilities, output)
    return Outputs(logits, output, {})


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
            raise ValueError(
                error_message(f"layer {head!r} of {model.name!r} must be Functional or Sequential", received)
            )
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

    outputs = run_again(model, inputs, call)
    return outputs, {name: feature for name, feature in features.items() if name in set(names)}


def _layer_output(model: keras.Model, name: str) -> Any:
    try:
        return model.get_layer(name).output
    except ValueError as error:
        names = ", ".join(layer.name for layer in model.layers)
        raise ValueError(
            error_message(f"{name!r} must name a layer of {model.name!r}", f"none: it has {names}")
        ) from error
