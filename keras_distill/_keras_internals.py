"""Every private part of Keras that this package uses: one small function each; no other file uses any.

Keras has no public way to walk a model's graph, to read the mask of a tensor, or to say at which epoch a `fit` begins.
A new version of Keras that moves one of these breaks this file alone; `tests/test_keras_internals.py` runs each
function. Tried on Keras 3.12 and 3.15 with TensorFlow 2.19 and 2.21.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
from keras.src import backend as _backend

from keras_distill._types import Tensor, TensorTree

_NEWEST_TRIED = (3, 15)

if tuple(int(part) for part in keras.__version__.split(".")[:2]) > _NEWEST_TRIED:
    warnings.warn(
        f"keras_distill was tried on Keras up to {'.'.join(map(str, _NEWEST_TRIED))} and runs on Keras "
        f"{keras.__version__}. If something fails, install an older one or a newer keras-distill.",
        stacklevel=2,
    )

# Graphs


def input_structure(model: keras.Model) -> Any:
    """A functional model's symbolic inputs, nested as the user wrote them: `model.input` is a flat list."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model._inputs_struct


def output_structure(model: keras.Model) -> Any:
    """A functional model's symbolic outputs, nested as the user wrote them."""
    return model.outputs[0] if isinstance(model, keras.Sequential) else model._outputs_struct


def producer(tensor: keras.KerasTensor) -> tuple[Any, Any, int]:
    """The operation that gave a symbolic tensor, the node of that call, and the tensor's place among its outputs."""
    operation, node_index, tensor_index = tensor._keras_history
    return operation, operation._inbound_nodes[node_index], tensor_index


def calls_of(operation: Any) -> list[Any]:
    """The nodes of an operation's symbolic calls, in their order."""
    return list(operation._inbound_nodes)


def calls_in_order(model: keras.Model) -> Iterator[Any]:
    """The nodes of a functional model's graph, from its inputs to its outputs."""
    nodes_by_depth = functional_graph(model)._nodes_by_depth
    for depth in sorted(nodes_by_depth, reverse=True):
        yield from nodes_by_depth[depth]


def functional_graph(model: keras.Model) -> keras.Model:
    """The functional model itself; of a built Sequential the one that it keeps of its layers."""
    return getattr(model, "_functional", None) or model


def run_again(model: keras.Model, inputs: TensorTree, call: Callable[..., Any]) -> Any:
    """The outputs of a functional model drawn again from `inputs`, with `call(operation, *args, **kwargs)` for each."""
    # Keras 3.12 wants `operation_fn`; newer versions have it as a default.
    return functional_graph(model)._run_through_graph(inputs, operation_fn=lambda operation: operation, call_fn=call)


def run_on_data(model: keras.Model, inputs: TensorTree, call: Callable[..., Any]) -> list[Any]:
    """The outputs, flat, of a functional model run on a batch as its own call would, with `call` for each operation."""
    graph = functional_graph(model)
    tensors = graph._standardize_inputs(inputs)
    return keras.tree.flatten(graph._run_through_graph(tensors, operation_fn=lambda operation: operation, call_fn=call))


def has_own_call(model: keras.Model) -> bool:
    """Whether `model` runs as its graph says: its class does not override the `call` of Functional or Sequential."""
    return type(model).call.__module__.startswith("keras.")


def is_operation(operation: Any) -> bool:
    """Whether `operation` is one of `keras.ops` in a graph, and no layer."""
    return type(operation).__module__.startswith("keras.src.ops") and not isinstance(operation, keras.layers.Layer)


def all_layers(model: keras.Layer) -> list[Any]:
    """`model` and every layer inside it, at any depth."""
    return list(model._flatten_layers())


def sublayers(layer: keras.layers.Layer) -> list[Any]:
    """The layers that a layer holds itself, in the order in which it was given them."""
    return list(layer._layers)


def twin_of(layer: keras.layers.Layer, /, **attributes: Any) -> keras.layers.Layer:
    """A layer with the attributes and weights of `layer`, but for some; it is no part of a model.

    The losses that it adds, and those that Keras clears when it is called, are not the layer's.
    """
    twin = object.__new__(type(layer))
    twin.__dict__.update(layer.__dict__, **{"_losses": [], **attributes})
    return twin


# Tensors


def mask_of(tensor: Tensor) -> Any:
    """The mask that Keras keeps with a layer's output, or `None`.

    On TensorFlow it is an attribute of the tensor; JAX's arrays take none, and Keras keeps a list beside them.
    """
    return _backend.get_keras_mask(tensor)


def set_mask(tensor: Tensor, mask: Tensor) -> None:
    """Keeps `mask` with `tensor`, where losses and metrics look for it."""
    _backend.set_keras_mask(tensor, mask)


# Training


def compiled_loss(model: keras.Model) -> Any:
    """What `compile(loss=…)` became, called with `(y, y_pred, sample_weight)`; `None` where there is no loss."""
    return model._compile_loss


def update_compiled_metrics(
    model: keras.Model,
    y: TensorTree,
    y_pred: TensorTree,
    sample_weight: TensorTree,
    counted: Callable[[Any, Any], tuple[Any, Any]],
) -> None:
    """Updates the compiled metrics as Keras does, with weights also for those that Keras gives none.

    Args:
        model: a compiled model.
        y: what `compile(metrics=…)` measures against, nested as the outputs are.
        y_pred: the model's outputs.
        sample_weight: of the weighted metrics; one for all outputs, or nested as they are; or `None`.
        counted: from one output's `(y, y_pred)` to its `y` and the weights that count in every metric, or `None`.
    """
    metrics = model._compile_metrics
    if metrics is None:
        return
    if not metrics.built:
        metrics.build(y, y_pred)
    targets, outputs = metrics._flatten_y(y), metrics._flatten_y(y_pred)
    weights = [None] * len(targets) if sample_weight is None else metrics._flatten_y(sample_weight)
    if len(weights) < len(targets):
        weights = [weights[0]] * len(targets)
    groups = zip(metrics._flat_metrics, metrics._flat_weighted_metrics, targets, outputs, weights, strict=True)
    for plain, weighted, target, output, weight in groups:
        target, of_item = counted(target, output)
        if plain:
            plain.update_state(target, output, of_item)
        if weighted:
            if weight is not None and of_item is not None:
                of_item = weight * keras.ops.cast(of_item, weight.dtype)
            weighted.update_state(target, output, weight if of_item is None else of_item)


def metrics_result(model: keras.Model, with_compiled: bool = True) -> dict[str, Any]:
    """The values of a model's metrics; without those that `compile` gave where there were no labels to build them by.

    Args:
        model: a compiled model.
        with_compiled: `False` leaves them out in any case.
    """
    compiled = model._compile_metrics
    results: dict[str, Any] = {}
    for metric in model.metrics:
        if metric is not compiled or (with_compiled and compiled.built):
            value = metric.result()
            results.update(value if isinstance(value, dict) else {metric.name: value})
    return results


def build_optimizer(model: keras.Model) -> None:
    """Makes the optimizer's variables before the first step, where all that is trained is known.

    Keras does so on JAX. On TensorFlow the first step would make them, and a step that makes variables is traced,
    and compiled, a second time without them.
    """
    optimizer = model.optimizer
    # Layers that the first batch builds bring variables of which the optimizer has to know as well.
    if optimizer is None or optimizer.built or not all(layer.built for layer in all_layers(model)):
        return
    # Under a strategy its scope decides on which devices they are.
    with model.distribute_strategy.scope() if hasattr(model, "distribute_strategy") else nullcontext():
        optimizer.build(model.trainable_variables)


def forget_compiled_data(model: keras.Model) -> None:
    """Lets compiled metrics and losses be built anew for the next data that they see."""
    for part in (getattr(model, "_compile_metrics", None), getattr(model, "_compile_loss", None)):
        if part is not None:
            part.built = False


def begin_at(model: keras.Model, epoch: int | None) -> None:
    """Lets a `fit` begin at `epoch`, whatever its `initial_epoch` says; `None` lets it begin where it says."""
    model._initial_epoch = epoch


def give_back_variables(model: keras.Model, values: dict[str, Any]) -> None:
    """Gives a model's variables values that Keras's step for JAX took from them.

    Args:
        values: lists of arrays under `"trainable_variables"`, `"non_trainable_variables"`, `"metrics_variables"` and,
            in training, `"optimizer_variables"`.
    """
    model._jax_state, model._jax_state_synced = values, False
    model.jax_state_sync()


def sync_variables(model: keras.Model) -> None:
    """Gives a model's variables their present values, which JAX's compiled step holds until then."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


# Calls


@contextmanager
def watched_calls(
    operations: Iterable[Any], watch: Callable[[Any, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """While it is open, each of the layers and operations runs `watch(operation, call)` in place of its `call`."""
    watched = [(operation, "quantized_call" if _is_quantized(operation) else "call") for operation in operations]
    for operation, name in watched:
        # Beside `Layer.__setattr__`, which tracks what it is given.
        vars(operation)[name] = watch(operation, getattr(operation, name))
    try:
        yield
    finally:
        for operation, name in watched:
            vars(operation).pop(name, None)


def all_operations(model: keras.Model) -> list[Any]:
    """Every operation of `keras.ops` in the graph of a functional model and of the models inside it."""
    graphs = [functional_graph(layer) for layer in all_layers(model) if hasattr(functional_graph(layer), "operations")]
    found = {id(part): part for graph in graphs for part in graph.operations if is_operation(part)}
    return list(found.values())


def _is_quantized(operation: Any) -> bool:
    return getattr(operation, "quantization_mode", None) is not None


def call_arguments(tensor: Tensor) -> tuple[list[Any], dict[str, Any]]:
    """What the call that gave a symbolic tensor was given, by position and by name; tensors among it are symbolic."""
    arguments = producer(tensor)[1].arguments
    return list(arguments.args), dict(arguments.kwargs)


def inputs_by_argument(node: Any) -> list[tuple[str, keras.KerasTensor]]:
    """The symbolic inputs of a call, each with the name of the argument that holds it, in the order of the signature.

    `node.input_tensors` has named ones last, and in the order of the alphabet.
    """
    given = inspect.signature(node.operation.call).bind(*node.arguments.args, **node.arguments.kwargs).arguments
    return [
        (name, value)
        for name, values in given.items()
        for value in keras.tree.flatten(values)
        if isinstance(value, keras.KerasTensor)
    ]


def class_path(operation: Any) -> str:
    """Where the class of an operation or layer lives, without the private part: `"keras.ops.Relu"`."""
    kind = type(operation)
    if is_operation(operation):
        return f"keras.ops.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}".replace(".src.", ".")
