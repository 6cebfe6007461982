"""A Keras model as a SavedModel with named inputs and float32 logits: what every converter starts from.

The model is traced here, in the caller's process, where its classes are known; the converters, which crash,
get the graph alone. The work-arounds that Keras 3 models need before tracing live here too, and are undone after it.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_distill._checks import cast_exactly, check_count, error_message

if TYPE_CHECKING:
    import keras


# A model's policies are changed while it is traced, so two conversions may not trace it at once.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Signature:
    """How a model is called.

    Attributes:
        arguments: the positional arguments of the call, each a structure of `keras.InputSpec`.
        names: a name for each tensor of `arguments`, flattened.
    """

    arguments: tuple[Any, ...]
    names: tuple[str, ...]

    @property
    def specs(self) -> list[Any]:
        """The specifications of `arguments`, flattened."""
        import keras

        return keras.tree.flatten(self.arguments)

    def pack(self, tensors: Any) -> tuple[Any, ...]:
        """The positional arguments for flat tensors."""
        import keras

        return tuple(keras.tree.pack_sequence_as(self.arguments, list(tensors)))

    def feed(self, inputs: Any) -> dict[str, Any]:
        """Named float32 or integer arrays for a runtime, from one array, a list, or a dictionary of our names."""
        import keras

        if isinstance(inputs, dict) and set(inputs) == set(self.names):
            arrays = [inputs[name] for name in self.names]
        else:
            arrays = keras.tree.flatten(inputs)
        if len(arrays) != len(self.names):
            received = f"{len(arrays)}"
            raise ValueError(error_message(f"there must be {len(self.names)} input arrays ({self.names})", received))
        feed = {}
        for name, spec, array in zip(self.names, self.specs, arrays, strict=True):
            array = cast_exactly(f"the input {name!r}", array, spec.dtype)
            fits = len(array.shape) == len(spec.shape) and all(
                wanted in (None, size) for wanted, size in zip(spec.shape[1:], array.shape[1:], strict=True)
            )
            if not fits:
                remedy = "Give the model data of the shape that it was built for."
                wanted = ("batch", *spec.shape[1:])
                raise ValueError(
                    error_message(f"the input {name!r} must have shape {wanted}", str(array.shape), remedy)
                )
            feed[name] = array
        return feed


@dataclass(frozen=True)
class Traced:
    """What the graph alone does not say.

    Attributes:
        output_names: the names of the outputs.
        layer_names: the names of all layers, so that an error can name one.
    """

    output_names: tuple[str, ...]
    layer_names: tuple[str, ...]


def signature_of(model: "keras.Model", example: Any = None) -> Signature:
    """Returns how `model` is called, with names that a device can use.

    A `keras.Input` that was given a name keeps it; others become `inputs`, or `inputs_0`, `inputs_1`, ….

    Args:
        model: a built Keras model.
        example: a batch of inputs (array or structure of arrays). Needed by a subclassed model whose inputs are not
            float32, since Keras records only their shapes.

    Raises:
        ValueError: for a model that was never built.
    """
    import keras

    tree = keras.tree
    if isinstance(model, keras.Sequential) and model.built and model.inputs:
        arguments: tuple[Any, ...] = (model.inputs[0],)
    elif getattr(model, "inputs", None):
        arguments = (model.input,)
    elif example is not None:
        arguments = (tree.map_structure(_spec_of_array, example),)
    else:
        arguments = _recorded_arguments(model)
    flat = tree.flatten(arguments)
    fallbacks = ["inputs"] if len(flat) == 1 else [f"inputs_{position}" for position in range(len(flat))]
    names = [_given_name(tensor) or fallback for tensor, fallback in zip(flat, fallbacks, strict=True)]
    if len(set(names)) != len(names):
        names = [f"{name}_{position}" for position, name in enumerate(names)]
    specs = [
        keras.InputSpec(shape=(None, *tensor.shape[1:]), dtype=tensor.dtype, name=name)
        for tensor, name in zip(flat, names, strict=True)
    ]
    return Signature(tuple(tree.pack_sequence_as(arguments, specs)), tuple(names))


def save_traced(
    model: "keras.Model", folder: str | os.PathLike, signature: Signature, *, batch: int | None = None
) -> Traced:
    """Writes `model` to `folder` as a SavedModel of float32 logits.

    Args:
        model: the Keras model; it is the same afterwards.
        folder: where the SavedModel goes.
        signature: from `signature_of`.
        batch: a fixed number of examples a call; `None` leaves it open.
    """
    import keras

    from keras_distill._keras_internals import all_layers

    if batch is not None:
        check_count("batch", batch)
    specs = [
        keras.InputSpec(shape=(batch, *spec.shape[1:]), dtype=spec.dtype, name=spec.name) for spec in signature.specs
    ]

    output_names: list[str] = []

    def serve(*tensors: Any) -> dict[str, Any]:
        outputs = named_outputs(model(*signature.pack(tensors), training=False))
        # Known only while Keras traces: a subclassed model says nowhere what it will return.
        output_names[:] = outputs
        return outputs

    with _ONE_AT_A_TIME, as_float32(model):
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", serve, input_signature=specs)
        archive.write_out(os.fspath(folder), verbose=False)
    return Traced(tuple(output_names), tuple(layer.name for layer in all_layers(model)))


def named_outputs(outputs: Any) -> dict[str, Any]:
    """Names a model's outputs: `logits`, or `logits_0`, `logits_1`, …, or the names that a dictionary gave them."""
    from keras import ops

    if not isinstance(outputs, dict):
        flat = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        outputs = {"logits": flat[0]} if len(flat) == 1 else {f"logits_{i}": tensor for i, tensor in enumerate(flat)}
    return {name: ops.cast(tensor, "float32") for name, tensor in outputs.items()}


def float32_outputs(
    model: "keras.Model", feed: dict[str, Any], signature: Signature, batch_size: int = 512
) -> dict[str, Any]:
    """Returns all outputs of `model` in float32, `{output name: NumPy array}`: what the artifacts are compared with."""
    import keras
    import numpy as np
    import tensorflow as tf

    specs = [tf.TensorSpec(spec.shape, spec.dtype, spec.name) for spec in signature.specs]

    @tf.function(input_signature=specs)
    def serve(*tensors: Any) -> dict[str, Any]:
        return named_outputs(model(*signature.pack(tensors), training=False))

    num_items = len(next(iter(feed.values())))
    parts = []
    with as_float32(model):
        run = serve.get_concrete_function()
        for start in range(0, num_items, batch_size):
            batch = [keras.ops.convert_to_tensor(feed[name][start : start + batch_size]) for name in signature.names]
            parts.append({name: np.asarray(output) for name, output in run(*batch).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def heads_of(model: "keras.Model", output_names: Sequence[str]) -> dict[str, str | None]:
    """Returns the activation that ends each output, `{output name: "softmax", "sigmoid", "linear", …}`.

    Args:
        model: as the user gave it, with its heads.
        output_names: from `named_outputs`, in its order; `None` stands for what cannot be read.
    """
    import keras

    from keras_distill.models.forward_pass import forward_pass

    activations = forward_pass(model).activations
    if isinstance(activations, dict):
        return {name: activations.get(name) for name in output_names}
    flat = keras.tree.flatten(activations)
    return dict(zip(output_names, flat, strict=True)) if len(flat) == len(output_names) else {}


def single_call(model: "keras.Model", feed: dict[str, Any], signature: Signature) -> Callable[[], Any]:
    """Returns a function of nothing that runs `model` once on `feed` as a compiled graph, for the stop-watch.

    `model.predict` costs milliseconds around the microseconds of a small network, so it is no measure of it.
    """
    import tensorflow as tf

    specs = [tf.TensorSpec(spec.shape, spec.dtype, spec.name) for spec in signature.specs]

    @tf.function(input_signature=specs)
    def serve(*tensors: Any) -> Any:
        return model(*signature.pack(tensors), training=False)

    run = serve.get_concrete_function()
    tensors = [tf.convert_to_tensor(feed[name]) for name in signature.names]
    return lambda: tf.nest.map_structure(lambda tensor: tensor.numpy(), run(*tensors))


@contextmanager
def as_float32(model: "keras.Model") -> Iterator[None]:
    """Lets `model` compute in float32, with its Normalization layers' statistics as plain arrays; then puts all back.

    Mixed policies fill a graph with casts, and bfloat16 has no ONNX kernel. An adapted Normalization
    holds eager tensors, which a converter mistakes for inputs.
    """
    import keras
    import numpy as np

    from keras_distill._keras_internals import all_layers

    policies, statistics = [], []
    for layer in all_layers(model):
        if layer.compute_dtype in ("float16", "bfloat16") and layer.quantization_mode is None:
            policies.append((layer, layer.dtype_policy))
        if isinstance(layer, keras.layers.Normalization) and getattr(layer, "mean", None) is not None:
            statistics.append((layer, layer.mean, layer.variance))
    try:
        for layer, _ in policies:
            layer.dtype_policy = "float32"
        for layer, mean, variance in statistics:
            # As arrays they become constants of the graph.
            layer.mean, layer.variance = np.asarray(mean), np.asarray(variance)
        yield
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy
        for layer, mean, variance in statistics:
            layer.mean, layer.variance = mean, variance


def _given_name(tensor: Any) -> str | None:
    name = getattr(tensor, "name", None)
    if not name or re.fullmatch(r"(keras_tensor|input_layer)(_\d+)?", name):
        return None
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def _spec_of_array(array: Any) -> Any:
    import keras
    import numpy as np

    array = np.asarray(array)
    dtype = "float32" if array.dtype.kind == "f" else str(array.dtype)
    return keras.InputSpec(shape=(None, *array.shape[1:]), dtype=dtype)


def _recorded_arguments(model: "keras.Model") -> tuple[Any, ...]:
    import keras

    config = model.get_build_config() if model.built else None
    if not config:
        remedy = "Call it once on a batch, or pass `example`."
        raise ValueError(
            error_message(f"the model {model.name!r} must be built", "a model that was never called", remedy)
        )
    shapes = config["shapes_dict"].values() if "shapes_dict" in config else [config["input_shape"]]

    def specs_of(structure: Any) -> Any:
        if isinstance(structure, dict):
            return {name: specs_of(shape) for name, shape in structure.items()}
        if all(size is None or isinstance(size, int) for size in structure):
            return keras.InputSpec(shape=(None, *structure[1:]), dtype="float32")
        return type(structure)(specs_of(shape) for shape in structure)

    return tuple(specs_of(shape) for shape in shapes)
