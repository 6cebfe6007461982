"""`multiply_adds`: how many multiply-adds a model takes for one example.

Counted as the field counts them: the products of kernels and those of attention, at each place where they are made,
in padding too. Biases, normalisations, activations, pooling and lookups are left out. The model is run once on zeros,
and each call's shapes are noted: layers inside of layers, nested and shared models count as often as they run.
"""

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
from keras import layers

from keras_distill._checks import error_message
from keras_distill._keras_internals import all_layers, all_operations, input_structure, is_operation, watched_calls
from keras_distill._types import Shape

# The multiply-adds of one call: of each weight, by its place in `layer.weights`; of no weight under `None`.
Counted: TypeAlias = dict[int | None, int]
# From a layer, the shapes of its arguments by name, and the shape of its output, to what the call takes.
CountingRule: TypeAlias = Callable[[Any, Mapping[str, Any], Shape], Counted]


def multiply_adds(model: keras.Model, *, input_shapes: Sequence[Shape] | None = None) -> int:
    """How many multiply-adds `model` takes for one example.

    Products that layers of your own make without a Keras layer are not seen.

    Args:
        model: a built functional, Sequential or nested model.
        input_shapes: one shape an input of `model.inputs`, without the batch; needed where an axis is unknown.

    Raises:
        ValueError: for a model without inputs, or with an axis of unknown length that `input_shapes` does not give.

    Example:
        >>> import keras
        >>> stem = keras.layers.Conv2D(4, 3)
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), stem, keras.layers.Flatten(), keras.layers.Dense(10)])
        >>> multiply_adds(model)  # 6 × 6 × 3 × 3 × 3 × 4 + 144 × 10
        5328
    """
    return sum(multiply_adds_of_weights(model, input_shapes=input_shapes).values())


def multiply_adds_of_weights(
    model: keras.Model, *, input_shapes: Sequence[Shape] | None = None
) -> dict[int | None, int]:
    """`multiply_adds` by the `id` of the weight that is multiplied; under `None`, those of no weight."""
    totals: dict[int | None, int] = defaultdict(int)
    # Inside of a recurrent layer its cell runs once a step, or once a compiled loop: the layer's rule counts it.
    inside: list[Any] = []

    def watch(operation: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        signature, rule = inspect.signature(call), _rule_of(operation)

        def watching(*args: Any, **kwargs: Any) -> Any:
            is_whole = isinstance(operation, layers.RNN)
            inside.extend([operation] if is_whole else [])
            output = call(*args, **kwargs)
            if is_whole:
                inside.pop()
            if rule is not None and not inside:
                shapes = keras.tree.map_structure(_shape, dict(signature.bind(*args, **kwargs).arguments))
                for place, count in rule(operation, shapes, _first_shape(output)).items():
                    totals[None if place is None else id(operation.weights[place])] += count
            return output

        return watching

    # The batch of one is shaped before anything is watched.
    batch = _zeros(model, input_shapes)
    watched = [part for part in [*all_layers(model), *all_operations(model)] if _rule_of(part) is not None]
    with watched_calls(watched, watch):
        model(batch, training=False)
    return dict(totals)


def _zeros(model: keras.Model, input_shapes: Sequence[Shape] | None) -> Any:
    if not getattr(model, "inputs", None):
        expectation = "multiply_adds needs a built functional or Sequential model"
        raise ValueError(error_message(expectation, type(model).__name__, "Call it on keras.Model(inputs, outputs)."))
    shapes = [tensor.shape[1:] for tensor in model.inputs] if input_shapes is None else [*input_shapes]
    if len(shapes) != len(model.inputs) or any(size is None for shape in shapes for size in shape):
        raise ValueError(
            error_message(
                f"multiply_adds needs the shapes of {len(model.inputs)} inputs, with every axis known",
                shapes,
                "Give input_shapes=[(height, width, channels)], one shape an input, without the batch.",
            )
        )
    arrays = [
        keras.ops.zeros((1, *shape), dtype=tensor.dtype) for shape, tensor in zip(shapes, model.inputs, strict=True)
    ]
    return keras.tree.pack_sequence_as(input_structure(model), arrays)


def _shape(value: Any) -> Any:
    return tuple(value.shape) if hasattr(value, "shape") else value


def _first_shape(output: Any) -> Shape:
    return tuple(keras.tree.flatten(output)[0].shape)


def _rule_of(operation: Any) -> CountingRule | None:
    if is_operation(operation):
        return _OPERATIONS.get(type(operation).__name__)
    # A subclass multiplies by the kernel of its class, whatever it does beside.
    return next((rule for kind, rule in _LAYERS.items() if isinstance(operation, kind)), None)


def _size(layer: Any, place: int) -> int:
    return math.prod(layer.weights[place].shape)


def _places(shape: Shape, layer: Any) -> int:
    """How many places an image or a sequence has, whatever its channels."""
    spatial = shape[2:] if getattr(layer, "data_format", None) == "channels_first" else shape[1:-1]
    return math.prod(int(size) for size in spatial)


def _kernel_place(layer: Any) -> int:
    """The largest weight: quantised layers and adapters move the kernel away from the first place."""
    return max(range(len(layer.weights)), key=lambda place: _size(layer, place))


def _kernel(layer: Any, shapes: Mapping[str, Any], output: Shape) -> Counted:
    place = _kernel_place(layer)
    return {place: _size(layer, place) * _places(output, layer)}


def _transposed(layer: Any, shapes: Mapping[str, Any], output: Shape) -> Counted:
    place = _kernel_place(layer)
    return {place: _size(layer, place) * _places(shapes["inputs"], layer)}


def _separable(layer: Any, shapes: Mapping[str, Any], output: Shape) -> Counted:
    return {place: _size(layer, place) * _places(output, layer) for place in (0, 1)}


def _einsum_dense(layer: Any, shapes: Mapping[str, Any], output: Shape) -> Counted:
    return {_kernel_place(layer): _einsum(layer.equation, shapes["inputs"], tuple(layer.kernel.shape))}


def _recurrent(layer: Any, shapes: Mapping[str, Any], output: Shape) -> Counted:
    """Every kernel once a step."""
    steps = shapes["sequences"][1]
    weights = enumerate(layer.weights)
    # The bias of a GRU has two rows, and is added.
    kernels = [place for place, weight in weights if len(weight.shape) > 1 and "bias" not in weight.path.split("/")[-1]]
    return {place: _size(layer, place) * steps for place in kernels}


def _convolutional_recurrent(layer: Any, shapes: Mapping[str, Any], output: Shape) -> Counted:
    places = _places(output[:1] + output[2:], layer) if layer.return_sequences else _places(output, layer)
    return {place: _size(layer, place) * places * shapes["sequences"][1] for place in (0, 1)}


def _reverse_embedding(layer: Any, shapes: Mapping[str, Any], output: Shape) -> Counted:
    """A table of words read as a kernel: only the way back multiplies."""
    if not shapes.get("reverse", False):
        return {}
    return {0 if layer.tie_weights else 1: math.prod(output) * layer.output_dim}


def _heads(layer: Any, shapes: Mapping[str, Any], output: Shape) -> Counted:
    """Queries with keys and weights with values; the projections are layers of their own."""
    is_plain = isinstance(layer, layers.MultiHeadAttention)
    width = (
        layer.num_heads * (layer.key_dim + layer.value_dim) if is_plain else layer.num_query_heads * 2 * layer.head_dim
    )
    return {None: width * math.prod(shapes["query"][1:-1]) * math.prod(shapes["value"][1:-1])}


def _attention(layer: Any, shapes: Mapping[str, Any], output: Shape) -> Counted:
    query, value, key = (*shapes["inputs"], shapes["inputs"][1])[:3]
    return {None: query[-2] * value[-2] * (key[-1] + value[-1])}


def _dot(layer: Any, shapes: Mapping[str, Any], output: Shape) -> Counted:
    axes = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return {None: math.prod(output[1:]) * shapes["inputs"][0][axes]}


def _matmul(operation: Any, shapes: Mapping[str, Any], output: Shape) -> Counted:
    return {None: math.prod(output) * shapes["x1"][-1]}


def _einsum_operation(operation: Any, shapes: Mapping[str, Any], output: Shape) -> Counted:
    return {None: _einsum(operation.subscripts, *shapes["operands"])}


def _einsum(equation: str, *operands: Shape) -> int:
    """The product of the lengths of all axes, those that are summed too."""
    lengths: dict[str, int] = {}
    for labels, shape in zip(equation.split("->")[0].replace(" ", "").split(","), operands, strict=True):
        front, _, back = labels.partition("...")
        lengths |= zip(front, shape, strict=False)
        lengths |= zip(back[::-1], shape[::-1], strict=False)
        for axis, length in enumerate(shape[len(front) : len(shape) - len(back)] if "..." in labels else ()):
            lengths[f"...{axis - len(shape)}"] = max(int(length), lengths.get(f"...{axis - len(shape)}", 1))
    return math.prod(int(length) for length in lengths.values())


_LAYERS: dict[type, CountingRule] = {
    layers.Dense: _kernel,
    layers.EinsumDense: _einsum_dense,
    layers.SeparableConv1D: _separable,
    layers.SeparableConv2D: _separable,
    layers.Conv1DTranspose: _transposed,
    layers.Conv2DTranspose: _transposed,
    layers.Conv3DTranspose: _transposed,
    layers.Conv1D: _kernel,
    layers.Conv2D: _kernel,
    layers.Conv3D: _kernel,
    layers.DepthwiseConv1D: _kernel,
    layers.DepthwiseConv2D: _kernel,
    layers.ConvLSTM1D: _convolutional_recurrent,
    layers.ConvLSTM2D: _convolutional_recurrent,
    layers.ConvLSTM3D: _convolutional_recurrent,
    layers.RNN: _recurrent,
    layers.ReversibleEmbedding: _reverse_embedding,
    layers.MultiHeadAttention: _heads,
    layers.GroupQueryAttention: _heads,
    layers.Attention: _attention,
    layers.Dot: _dot,
}
_OPERATIONS: dict[str, CountingRule] = {"Matmul": _matmul, "Einsum": _einsum_operation}
