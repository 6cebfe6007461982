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

import numpy as np

from keras_distill._checks import cast_exactly, check_count, error_message
from keras_distill._types import Tensor, TensorTree
from keras_distill.deploy.conversion import ConversionError

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
        batch: the number of examples that the model itself fixes; `None` where it takes any.
    """

    arguments: tuple[Any, ...]
    names: tuple[str, ...]
    batch: int | None = None

    @property
    def specs(self) -> list[Any]:
        """The specifications of `arguments`, flattened."""
        import keras

        return keras.tree.flatten(self.arguments)

    def pack(self, tensors: Any) -> tuple[Any, ...]:
        """The positional arguments for flat tensors."""
        import keras

        return tuple(keras.tree.pack_sequence_as(self.arguments, list(tensors)))

    def checked_batch(self, batch: int | None) -> int | None:
        """The number of examples a call of a file: `batch`, or what the model fixes; raises where they differ."""
        if batch is not None:
            check_count("batch", batch)
            if self.batch not in (None, batch):
                remedy = "Leave `batch` out, or build the model with a keras.Input of another batch size."
                raise ConversionError(error_message(f"batch must be {self.batch}, as the model has it", batch, remedy))
        return batch or self.batch

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes."""

        def encoded(part: Any) -> Any:
            if isinstance(part, dict):
                return {"keys": list(part), "parts": [encoded(each) for each in part.values()]}
            if isinstance(part, (list, tuple)):
                return {"parts": [encoded(each) for each in part]}
            return {"shape": list(part.shape), "dtype": str(part.dtype), "name": part.name}

        return {"arguments": encoded(self.arguments), "names": list(self.names), "batch": self.batch}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Signature":
        """The signature of which `to_json` told."""
        import keras

        def decoded(part: dict[str, Any]) -> Any:
            if "parts" not in part:
                return keras.InputSpec(**part)
            parts = [decoded(each) for each in part["parts"]]
            return dict(zip(part["keys"], parts, strict=True)) if "keys" in part else parts

        return cls(tuple(decoded(content["arguments"])), tuple(content["names"]), content["batch"])

    def filled(self, array: np.ndarray) -> np.ndarray:
        """`array`, its last example repeated until there are as many as the model takes a call."""
        missing = (self.batch or len(array)) - len(array)
        return np.concatenate([array, np.repeat(array[-1:], missing, 0)]) if missing else array

    def feed(self, inputs: TensorTree) -> dict[str, Any]:
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

    In the graph itself tensors are numbered, `input_000`, `output_000` and so on: TensorFlow writes small letters,
    refuses a leading underscore, and sorts outputs by name. The converters give them the model's names again.

    Attributes:
        input_names: the names of the inputs, in their order.
        output_names: the names of the outputs, in their order.
        layer_names: the names of all layers, so that an error can name one.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    layer_names: tuple[str, ...]


def signature_of(model: "keras.Model", example: TensorTree = None) -> Signature:
    """Returns how `model` is called, under its own names and with its own batch size.

    An input in a dictionary is called by its key. Another `keras.Input` that was given a name keeps it; others become
    `inputs`, or `inputs_0`, `inputs_1`, ….

    Args:
        model: a built Keras model.
        example: a batch of inputs (array or structure of arrays). Needed by a subclassed model whose inputs are not
            float32, since Keras records only their shapes.

    Raises:
        ValueError: for a model that was never built, or whose inputs fix different numbers of examples.
    """
    import keras

    from keras_distill._keras_internals import input_structure

    tree = keras.tree
    batch = None
    if getattr(model, "inputs", None) and model.built:
        arguments: tuple[Any, ...] = (input_structure(model),)
        batch = _own_batch(model.inputs)
    elif example is not None:
        arguments = (tree.map_structure(_spec_of_array, example),)
    else:
        arguments = _recorded_arguments(model)
    flat = tree.flatten(arguments)
    given = [_key(path[1:]) or _given_name(tensor) for path, tensor in tree.flatten_with_path(arguments)]
    fallbacks = ["inputs"] if len(flat) == 1 else [f"inputs_{position}" for position in range(len(flat))]
    names = _distinct([name or fallback for name, fallback in zip(given, fallbacks, strict=True)])
    specs = [
        keras.InputSpec(shape=(batch, *tensor.shape[1:]), dtype=tensor.dtype, name=name)
        for tensor, name in zip(flat, names, strict=True)
    ]
    return Signature(tuple(tree.pack_sequence_as(arguments, specs)), tuple(names), batch)


def served_model(
    model: "keras.Model", signature: Signature, from_logits: bool, example: TensorTree = None
) -> "keras.Model":
    """`model` as it is served: without its softmax or sigmoid.

    Raises:
        ValueError: it gives probabilities where logits were promised, or the other way round.
    """
    from keras_distill.models.forward_pass import logits_model

    specs = signature.arguments[0] if len(signature.arguments) == 1 else None
    return logits_model(model, from_logits=from_logits, example=example, input_specs=specs)


def save_traced(
    model: "keras.Model", folder: str | os.PathLike, signature: Signature, *, batch: int | None = None
) -> Traced:
    """Writes `model` to `folder` as a SavedModel of float32 logits.

    Args:
        model: the Keras model; it is the same afterwards.
        folder: where the SavedModel goes.
        signature: from `signature_of`.
        batch: a fixed number of examples a call; `None` leaves it as the model has it.

    Raises:
        ConversionError: a `batch` that the model does not take.
    """
    import keras

    from keras_distill._keras_internals import all_layers

    batch = signature.checked_batch(batch)
    specs = [
        keras.InputSpec(shape=(batch, *spec.shape[1:]), dtype=spec.dtype, name=f"input_{place:03}")
        for place, spec in enumerate(signature.specs)
    ]

    output_names: list[str] = []

    def serve(*tensors: Any) -> dict[str, Any]:
        outputs = named_outputs(model(*signature.pack(tensors), training=False), signature.names)
        # Known only while Keras traces: a subclassed model says nowhere what it will return.
        output_names[:] = outputs
        return {f"output_{place:03}": output for place, output in enumerate(outputs.values())}

    with _ONE_AT_A_TIME, as_float32(model), of_known_sizes(model):
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", serve, input_signature=specs)
        archive.write_out(os.fspath(folder), verbose=False)
    layer_names = tuple(layer.name for layer in all_layers(model))
    return Traced(signature.names, tuple(output_names), layer_names)


def named_outputs(outputs: TensorTree, input_names: Sequence[str] = ()) -> dict[str, Any]:
    """Names a model's outputs: `logits`, or `logits_0`, `logits_1`, …, or the names that a dictionary gave them.

    Args:
        outputs: the model's outputs, in any structure.
        input_names: the model's inputs. In a file no output has the name of an input: it gets `_output` at its end.
    """
    import keras
    from keras import ops

    flat = keras.tree.flatten_with_path(outputs)
    fallbacks = ["logits"] if len(flat) == 1 else [f"logits_{position}" for position in range(len(flat))]
    names = [_key(path) or fallback for (path, _), fallback in zip(flat, fallbacks, strict=True)]
    names = _distinct([f"{name}_output" if name in input_names else name for name in names], input_names)
    return {name: ops.cast(output, "float32") for name, (_, output) in zip(names, flat, strict=True)}


def float32_outputs(
    model: "keras.Model", feed: dict[str, Any], signature: Signature, batch_size: int = 512
) -> dict[str, Any]:
    """Returns all outputs of `model` in float32, `{output name: NumPy array}`: what the artifacts are compared with."""
    import keras

    def serve(tensors: Any) -> dict[str, Any]:
        return named_outputs(model(*signature.pack(tensors), training=False), signature.names)

    num_items = len(next(iter(feed.values())))
    batch_size = signature.batch or batch_size
    parts = []
    with as_float32(model), same_state(model):
        run = _compiled(serve, model, signature)
        for start in range(0, num_items, batch_size):
            stop = min(start + batch_size, num_items)
            batch = [signature.filled(feed[name][start:stop]) for name in signature.names]
            outputs = run([keras.ops.convert_to_tensor(array) for array in batch])
            parts.append({name: _as_array(output)[: stop - start] for name, output in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def heads_of(model: "keras.Model", output_names: Sequence[str]) -> dict[str, str | None]:
    """Returns the activation that ends each output, `{output name: "softmax", "sigmoid", "linear", …}`.

    Args:
        model: as the user gave it, with its heads.
        output_names: from `named_outputs`, in its order; `None` stands for what cannot be read.
    """
    import keras

    from keras_distill.models.forward_pass import forward_pass

    flat = keras.tree.flatten(forward_pass(model).activations)
    return dict(zip(output_names, flat, strict=True)) if len(flat) == len(output_names) else {}


def single_call(model: "keras.Model", feed: dict[str, Any], signature: Signature) -> Callable[[], Any]:
    """Returns a function of nothing that runs `model` once on `feed` as a compiled graph, for the stop-watch.

    `model.predict` costs milliseconds around the microseconds of a small network, so it is no measure of it.
    """
    import keras

    run = _compiled(lambda tensors: model(*signature.pack(tensors), training=False), model, signature)
    tensors = [keras.ops.convert_to_tensor(signature.filled(feed[name])) for name in signature.names]
    return lambda: keras.tree.map_structure(_as_array, run(tensors))


def _compiled(serve: Callable[[Any], Any], model: "keras.Model", signature: Signature) -> Callable[[Any], Any]:
    """`serve` of a list of tensors, compiled by the backend; on TensorFlow once, for any batch size."""
    import keras

    if keras.config.backend() != "tensorflow":
        from keras_distill.models.compilation import compiled

        return compiled(serve, model)
    import tensorflow as tf

    specs = [tf.TensorSpec(spec.shape, spec.dtype) for spec in signature.specs]
    run = tf.function(lambda *tensors: serve(list(tensors)), input_signature=specs).get_concrete_function()
    return lambda tensors: run(*tensors)


def _as_array(tensor: Tensor) -> np.ndarray:
    from keras import ops

    return ops.convert_to_numpy(tensor)


@contextmanager
def as_float32(model: "keras.Model") -> Iterator[None]:
    """Lets `model` compute in float32, with its Normalization layers' statistics as plain arrays; then puts all back.

    Mixed policies fill a graph with casts, and bfloat16 has no ONNX kernel. An adapted Normalization
    holds eager tensors, which a converter mistakes for inputs.
    """
    import keras

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


@contextmanager
def of_known_sizes(model: "keras.Model") -> Iterator[None]:
    """Lets specialists answer for a whole call where anybody in it asks, in place of gathering those who do.

    Where LiteRT learns a tensor's size only while it runs, it moves its memory in the first call, and with XNNPACK some
    files, this one among them, then answer later calls wrongly, as chance places that memory (ai-edge-litert 2.3).
    """
    from keras_distill._keras_internals import all_layers

    gathering = [layer for layer in all_layers(model) if getattr(layer, "gathers_examples", False)]
    try:
        for layer in gathering:
            layer.gathers_examples = False
        yield
    finally:
        for layer in gathering:
            layer.gathers_examples = True


@contextmanager
def same_state(model: "keras.Model") -> Iterator[None]:
    """Gives the variables that calls of `model` have changed, such as a recurrent layer's state, their values again."""
    import keras
    from keras import ops

    from keras_distill._keras_internals import all_layers

    # A recurrent layer's states are no variables of the model.
    states = keras.tree.flatten([getattr(layer, "states", None) for layer in all_layers(model)])
    variables = [*model.non_trainable_variables, *(state for state in states if isinstance(state, keras.Variable))]
    before = [(variable, np.array(ops.convert_to_numpy(variable))) for variable in variables]
    try:
        yield
    finally:
        for variable, value in before:
            if not np.array_equal(ops.convert_to_numpy(variable), value):
                variable.assign(value)


def _own_batch(inputs: Sequence[Any]) -> int | None:
    sizes = {tensor.shape[0] for tensor in inputs if len(tensor.shape) and tensor.shape[0] is not None}
    if len(sizes) > 1:
        remedy = "Build it with keras.Inputs of one batch size, or of none."
        raise ValueError(error_message("all inputs must have one batch size", sorted(sizes), remedy))
    return sizes.pop() if sizes else None


def _key(path: Sequence[Any]) -> str | None:
    """The name that a place in a structure has: its keys, if one is a name; `None` where all are numbers."""
    return "_".join(map(str, path)) if any(isinstance(key, str) for key in path) else None


def _distinct(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """`names`, with a number at the end of each that is taken or was there before."""
    distinct: list[str] = []
    for name in names:
        number, candidate = 0, name
        while candidate in distinct or candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        distinct.append(candidate)
    return distinct


def _given_name(tensor: Tensor) -> str | None:
    name = getattr(tensor, "name", None)
    if not name or re.fullmatch(r"(keras_tensor|input_layer)(_\d+)?", name):
        return None
    return name


def _spec_of_array(array: Any) -> Any:
    import keras

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

    def specs_of(structure: TensorTree) -> Any:
        if isinstance(structure, dict):
            return {name: specs_of(shape) for name, shape in structure.items()}
        if all(size is None or isinstance(size, int) for size in structure):
            return keras.InputSpec(shape=(None, *structure[1:]), dtype="float32")
        return type(structure)(specs_of(shape) for shape in structure)

    return tuple(specs_of(shape) for shape in shapes)
