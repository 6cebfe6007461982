"""A model as logits, its own output and named features, in ONE pass.

Everything in this house exchanges logits, while users' models end as they like. Where a model's graph can be
read (Functional, Sequential, nested ones), a softmax or sigmoid at its end is found and taken off: the
layers and their weights are shared, the user's model stays as it was. Probabilities that cannot be taken apart (an
average of softmaxes) become their logarithm. Where nothing is known of the end (subclassed models, callables, layers of
the user's own), the caller says whether the outputs are logits.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_distill._checks import did_you_mean, error_message
from keras_distill._keras_internals import calls_in_order, input_structure, output_structure, producer, run_again
from keras_distill._types import TensorTree
from keras_distill.models.compilation import outside_compilation
from keras_distill.models.head_removal import separate
from keras_distill.models.heads import MISPLACED, Head, find_heads
from keras_distill.models.inner_layers import with_inner_outputs
from keras_distill.models.layer_roles import is_readable
from keras_distill.models.probabilities import SOFTMAX, logits_of, promised_activation


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


def logits_model(
    model: keras.Model, *, from_logits: bool = True, example: TensorTree = None, input_specs: Any = None
) -> keras.Model:
    """A model with the same weights whose outputs are logits.

    A model of whose end nothing is known runs once here, on a few inputs, to see whether it gives what it promises.

    Args:
        model: a built Functional or Sequential model with any head, or a subclassed one.
        from_logits: what a model gives whose head cannot be found: logits, or (`False`) probabilities.
        example: a batch of inputs for that, of which the first are enough; `None` draws them at random.
        input_specs: the shapes and dtypes of the inputs of a subclassed model, which does not say them; a structure of
            `keras.InputSpec`. Without these or an example it is believed, and its probabilities are a softmax's.

    Returns:
        `model` itself where there is nothing to take off; otherwise a new model that shares its layers.

    Raises:
        ValueError: a softmax over another axis than the last, probabilities where logits are promised, or the other
            way round.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
        >>> from keras import ops
        >>> x = ops.ones((1, 4))
        >>> bool(ops.all(ops.isclose(ops.softmax(logits_model(model)(x)), model(x))))
        True
    """
    heads = find_heads(model.outputs) if is_readable(model) else []
    if any(head.activation == MISPLACED for head in heads):
        remedy = "Move the classes last before the softmax, with keras.layers.Permute, or end the model before it."
        raise ValueError(
            error_message(f"the head of {model.name!r} must be a softmax over the last axis", MISPLACED, remedy)
        )
    if not heads or any(head.activation is None for head in heads):
        heads = _with_what_is_shown(heads, model, from_logits, example, input_specs)
    if not is_readable(model):
        return model if from_logits else LogitsModel(model, [head.activation or SOFTMAX for head in heads])
    pairs = separate(model.outputs, heads)
    if all(pair.logits is output for pair, output in zip(pairs, model.outputs, strict=True)):
        return model
    logits = keras.tree.pack_sequence_as(output_structure(model), [pair.logits for pair in pairs])
    return keras.Model(input_structure(model), logits, name=f"{model.name}_logits")


class ForwardPass:
    """A function `(inputs, training) -> Outputs` that runs a model once.

    Attributes:
        symbolic: `Outputs` of symbolic tensors, whose shapes are known before any batch; `None` where the model's
            graph cannot be read.
        activations: the activation that ends each output, shaped as the outputs are: `"softmax"`, `"sigmoid"`,
            `"linear"`, `MISPLACED`, or `None` where it cannot be told.
        from_logits: what the outputs were taken for whose activation cannot be told: logits, or probabilities.
    """

    def __init__(
        self,
        run: Callable[[Any, bool], Outputs],
        symbolic: Outputs | None = None,
        activations: Any = None,
        from_logits: bool = True,
    ):
        self._run = run
        self.symbolic = symbolic
        self.activations = activations
        self.from_logits = from_logits

    def __call__(self, inputs: TensorTree, training: bool) -> Outputs:
        """Runs the model on a batch."""
        return self._run(inputs, training)


def forward_pass(
    model: Callable, *, layer_names: Iterable[str] = (), from_logits: bool = True, activation: str = SOFTMAX
) -> ForwardPass:
    """A function `(inputs, training) -> Outputs` that runs `model` once.

    Args:
        model: a built Keras model, or any callable.
        layer_names: the layers whose outputs are wanted as `features`: `"layer"`, or `"model/layer"` for a layer of a
            model that is itself a layer.
        from_logits: what outputs are whose head cannot be found: logits, or (`False`) probabilities.
        activation: what made such probabilities, `"softmax"` or `"sigmoid"`.

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
        taken_for = None if from_logits else activation
        return ForwardPass(
            lambda inputs, training: _opaque_pass(model, inputs, training, taken_for), from_logits=from_logits
        )

    model_input, model_output = input_structure(model), output_structure(model)
    if any("/" in name for name in names):
        model_output, features = _opened(model, model_input, names)
    else:
        features = {name: _layer_output(model, name) for name in names}
    flat_outputs = keras.tree.flatten(model_output)
    heads = find_heads(flat_outputs)
    # Of what nothing is known, the caller tells.
    told = [Head(activation, False) if head.activation is None and not from_logits else head for head in heads]
    pairs = separate(flat_outputs, told, also_read=keras.tree.flatten(features))

    def as_outputs(parts: Iterable[Any]) -> Any:
        return keras.tree.pack_sequence_as(model_output, list(parts))

    symbolic = Outputs(as_outputs(pair.logits for pair in pairs), as_outputs(pair.output for pair in pairs), features)
    graph = keras.Model(model_input, symbolic._asdict(), name=f"{getattr(model, 'name', 'model')}_forward_pass")
    activations = as_outputs(head.activation for head in heads)
    return ForwardPass(
        lambda inputs, training: Outputs(**graph(inputs, training=training)), symbolic, activations, from_logits
    )


class LogitsModel(keras.Model):
    """A model whose graph cannot be read and that gives probabilities, as one that gives logits.

    Args:
        model: the model.
        activations: what made its probabilities, `"softmax"` or `"sigmoid"`, for each of its outputs.
    """

    def __init__(self, model: Callable, activations: Sequence[str], **kwargs: Any):
        super().__init__(**kwargs)
        self.model = model
        self.activations = list(activations)
        self.built = getattr(model, "built", True)

    def call(self, inputs: TensorTree, training: bool = False) -> Any:
        """The logits of the model's probabilities, `(..., num_classes)`."""
        output = _run(self.model, inputs, training)
        flat = keras.tree.flatten(output)
        activations = self.activations * len(flat) if len(self.activations) == 1 else self.activations
        logits = [logits_of(values, activation) for values, activation in zip(flat, activations, strict=True)]
        return keras.tree.pack_sequence_as(output, logits)


def _run(model: Callable, inputs: TensorTree, training: bool) -> Any:
    return model(inputs, training=training) if isinstance(model, keras.Model) else model(inputs)


def _with_what_is_shown(
    heads: list[Head], model: keras.Model, from_logits: bool, example: TensorTree, input_specs: Any
) -> list[Head]:
    """The heads of a model, with what a few inputs show of those of which nothing is known."""
    if input_specs is None and is_readable(model):
        input_specs = input_structure(model)
    given, inputs = [], None
    if example is not None:
        inputs = _first(example, model)
    elif input_specs is not None:
        inputs = _drawn(input_specs)
    try:
        if inputs is not None:
            given = keras.tree.flatten(_run_aside(model, inputs))
    except Exception:
        if example is not None:
            raise
        # Numbers at random are not what every model takes. The data that it is then run on show the same.
    heads = heads or [Head(None, False)] * max(len(given), 1)
    if not given:
        return [Head(None if from_logits else SOFTMAX, False) if head.activation is None else head for head in heads]
    who = f"the outputs of {model.name!r}"
    return [
        Head(promised_activation(who, values, from_logits), False) if head.activation is None else head
        for head, values in zip(heads, given, strict=True)
    ]


def _run_aside(model: keras.Model, inputs: TensorTree) -> Any:
    """The outputs of a model in inference, whose variables stay as they are, such as the state of a recurrent layer."""
    # A model that was never called makes its variables first, which a scope without state does not let it do.
    with outside_compilation(), keras.StatelessScope() if model.built else nullcontext():
        return _run(model, inputs, False)


def _first(example: TensorTree, model: keras.Model) -> Any:
    """The first eight inputs; all of them for a model that takes batches of one size only."""
    fixed = any(tensor.shape[0] is not None for tensor in getattr(model, "inputs", None) or [])
    return example if fixed else keras.tree.map_structure(lambda values: values[:8], example)


def _drawn(specs: Any) -> Any:
    """Eight inputs at random, or as many as a batch must have; zeros for integers."""
    generator = np.random.default_rng(0)

    def draw(spec: Any) -> Any:
        shape = [spec.shape[0] or 8, *[4 if size is None else size for size in spec.shape[1:]]]
        values = generator.normal(size=shape) if keras.backend.is_float_dtype(spec.dtype) else np.zeros(shape)
        return ops.convert_to_tensor(values, spec.dtype)

    return keras.tree.map_structure(draw, specs)


def _opaque_pass(model: Callable, inputs: TensorTree, training: bool, activation: str | None) -> Outputs:
    output = _run(model, inputs, training)
    logits = output
    if activation is not None:
        logits = keras.tree.map_structure(lambda probabilities: logits_of(probabilities, activation), output)
    return Outputs(logits, output, {})


def _opened(
    model: keras.Model, inputs: TensorTree, names: Iterable[str], training: bool | None = None
) -> tuple[Any, dict[str, Any]]:
    """The model's outputs and features with the nested models that `names` reach into taken apart.

    A nested model is one node of the outer graph, its layers' outputs belong to a graph of its own. So the outer graph
    is drawn again from its inputs, with the same layers, and with the nested one's own layers in place of its node.
    A layer that is no model and that `names` reach into is run with those inside it watched.
    """
    inner_names: dict[str, list[str]] = {}
    for name in names:
        head, _, rest = name.partition("/")
        inner_names.setdefault(head, []).extend([rest] if rest else [])
    for head in inner_names:
        _layer_output(model, head)
    given = dict(zip(_input_names(model), keras.tree.flatten(inputs), strict=True))
    features: dict[str, Any] = {name: given[name] for name in inner_names if name in given}

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        # A model that was called with `training=False` hands that to its layers.
        if training is not None and "training" in inspect.signature(layer.call).parameters:
            kwargs = {**kwargs, "training": training}
        if inside := inner_names.get(layer.name):
            if is_readable(layer):
                outputs, inner = _opened(layer, args[0], inside, kwargs.get("training"))
            else:
                outputs, inner = with_inner_outputs(layer, inside, args, kwargs)
            features.update({f"{layer.name}/{name}": feature for name, feature in inner.items()})
        else:
            outputs = layer(*args, **kwargs)
        if layer.name in inner_names:
            features[layer.name] = outputs
        return outputs

    outputs = run_again(model, inputs, call)
    return outputs, {name: feature for name, feature in features.items() if name in set(names)}


def _input_names(model: keras.Model) -> list[str]:
    """The names of a model's input layers, in the order of its flat inputs."""
    return [producer(tensor)[0].name for tensor in keras.tree.flatten(input_structure(model))]


def _layer_output(model: keras.Model, name: str) -> Any:
    try:
        layer = model.get_layer(name)
    except ValueError as error:
        names = [layer.name for layer in model.layers]
        expectation = f"{name!r} must name a layer of {model.name!r}"
        raise ValueError(
            error_message(expectation, f"none: it has {', '.join(names)}", did_you_mean(name, names))
        ) from error
    # A layer that another model has too was called there as well.
    calls = [node.output_tensors for node in calls_in_order(model) if node.operation is layer]
    if len(calls) != 1:
        remedy = "Give the call that is meant a layer of its own behind it: keras.layers.Identity(name=...)."
        raise ValueError(
            error_message(f"{name!r} must be called once in {model.name!r}", f"{len(calls)} calls", remedy)
        )
    return calls[0][0] if len(calls[0]) == 1 else calls[0]
