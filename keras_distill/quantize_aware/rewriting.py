"""`quantize_aware`: a float student becomes the int8 network that it will be.

The rules are those of the integer runtimes. Every tensor between integer layers is int8, with one scale and
zero point; pooling, padding and reshaping keep both, so their input and output share a range, and so do
all tensors that are concatenated. An addition has three scales of its own in every runtime that we export to.
"""

import warnings
from typing import Any

import keras
from keras import ops

from keras_distill._checks import error_message
from keras_distill._keras_internals import all_layers, is_operation
from keras_distill._types import Data, Shape, Tensor
from keras_distill.models.heads import function_activation
from keras_distill.quantize_aware.calibration import batches, calibrate, in_float
from keras_distill.quantize_aware.fake_quantization import FakeQuantize
from keras_distill.quantize_aware.graph import Call, Graph, ends
from keras_distill.quantize_aware.kernel import Int8Kernel

# Logits beyond everything that calibration and training saw must not be clipped into a tie.
LOGITS_MARGIN = 0.1
# Of the largest answer: what folding BatchNorm and another order of sums may move.
SAME_ANSWER = 1e-3

_KERNELS = {
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Dense,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
}
_SAME_SCALE = {
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.Permute,
    keras.layers.Reshape,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
}
_AVERAGES = {keras.layers.AveragePooling1D, keras.layers.AveragePooling2D}
_MEANS = {keras.layers.GlobalAveragePooling1D, keras.layers.GlobalAveragePooling2D}
_HEADS = {"softmax", "sigmoid", "log_softmax"}


def quantize_aware(
    student: keras.Model,
    calibration_data: Data,
    *,
    ranges: str = "tracked",
    momentum: float = 0.99,
    batch_size: int = 64,
) -> keras.Model:
    """A Keras model with the student's weights that rounds wherever an integer runtime does.

    Dense, Conv1D, Conv2D, DepthwiseConv2D and SeparableConv2D get int8 kernels, BatchNorm is folded into the layer
    before it, ReLU and ReLU6 are fused; hard-swish, addition, concatenation, pooling, padding and reshaping stay
    in int8. Everything else stays float, and a warning names it. Logits get a range that does not clip. Train the
    result like any Keras model, as the student of a `Distiller` above all; `FreezeRanges` settles it in the
    last epochs. A softmax at the end is kept, in float. A layer that its own configuration does not give back cannot
    be copied: the model has the student's own, and a warning names it.

    Args:
        student: a built Functional or Sequential model in float32, best one that is already trained. Not changed.
        calibration_data: some hundreds of training examples as the model takes them, or a `tf.data.Dataset` of batches.
        ranges: what training does with the ranges: `"tracked"` (they follow the batches), `"learnt"` (the loss moves
            them) or `"frozen"` (they stay as calibrated).
        momentum: how much of a tracked range is kept at each batch, in [0, 1].
        batch_size: examples of a batch of calibration.

    Returns:
        A Functional model of the student's inputs and outputs; it saves and loads as any.

    Raises:
        TypeError: `student` is no Keras model.
        ValueError: a model that cannot be read, is already quantised, is not float32 or has nothing to quantise; no
            calibration data, NaN in them or in a range, or a constant activation.

    Example:
        >>> import numpy as np
        >>> layers = [keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(3, name="logits")]
        >>> student = keras.Sequential([keras.Input((4,), name="inputs"), *layers])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> [layer.name for layer in quantize_aware(student, x).layers]
        ['inputs', 'inputs_int8', 'hidden', 'hidden_int8', 'logits', 'logits_int8']

    Reference:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference, CVPR 2018.
    """
    symbolic_inputs, symbolic_outputs = ends(student)
    _check(student)
    graph = Graph(student, splits=_KERNELS)
    plan = _Plan(graph)
    if not plan.kernels:
        remedy = "It needs a Dense, Conv1D, Conv2D, DepthwiseConv2D or SeparableConv2D with channels last."
        raise ValueError(error_message("student must have a layer that int8 can speed up", student.name, remedy))
    if plan.float_calls:
        names = ", ".join(f"{call.operation.name!r} ({type(call.operation).__name__})" for call in plan.float_calls)
        warnings.warn(
            f"These stay float32: {names}. An integer runtime dequantises before each of them and quantises after it, "
            "so their weights stay four times as big and their arithmetic gets no faster.",
            stacklevel=2,
        )

    def emitted(is_foreign_shared: bool) -> tuple[keras.Model, _Emission]:
        inputs = keras.tree.map_structure(
            lambda tensor: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name), symbolic_inputs
        )
        emission = _Emission(graph, plan, {"ranges": ranges, "momentum": momentum}, is_foreign_shared)
        outputs = emission.run(keras.tree.flatten(inputs))
        model = keras.Model(inputs, keras.tree.pack_sequence_as(symbolic_outputs, outputs), name=student.name)
        calibrate(model, calibration_data, batch_size=batch_size)
        return model, emission

    model, emission = emitted(False)
    if emission.has_foreign_copies and not _answers_alike(student, model, calibration_data, batch_size):
        # A configuration that leaves a part of the layer out gives another layer back, and nothing raises.
        model, emission = emitted(True)
    if emission.shared:
        names = ", ".join(f"{name!r} ({type(layer).__name__})" for name, layer in emission.shared.items())
        warnings.warn(
            f"These cannot be copied, as get_config and from_config do not give them back: {names}. The model has the "
            "student's own layers, so training it trains these of the student, too.",
            stacklevel=2,
        )
    return model


class _Plan:
    """What becomes of each call.

    Attributes:
        kinds: one word a call: kernel, add, mean, activation, hard_swish, same, average, concatenate, head, float,
            or absorbed into the call before it.
        kernels: position of a kernel → (its BatchNorm or `None`, its activation's name).
        range_of: key → the representative of all keys that share its range.
        results: position → the key that holds the call's value once what follows is absorbed.
        quantized: the representatives of the ranges that an integer layer reads or writes.
        logits: the representatives of the ranges of the model's logits.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.kinds = [_kind(call, graph) for call in graph.calls]
        self.kernels: dict[int, tuple[Any, str]] = {}
        self.additions: dict[int, str] = {}
        self.results: dict[int, int] = {}
        for position, kind in enumerate(self.kinds):
            if kind in ("kernel", "add"):
                self._absorb(position, kind)
        # A BatchNorm that no kernel took up is a multiplication by itself, which stays float.
        self.kinds = ["float" if kind == "norm" else kind for kind in self.kinds]
        # A forest of disjoint sets, one tree a range: what moves or averages int8 values hands their scale on, so each
        # of its inputs joins the set of its output. A concatenation joins all of its inputs.
        self._parents: dict[int, int] = {}
        for call, kind in zip(graph.calls, self.kinds, strict=True):
            if kind in ("same", "average", "concatenate"):
                for key in call.inputs:
                    self._parents[self.range_of(key)] = self.range_of(call.outputs[0])
        self.quantized = self._quantized()
        # What a softmax or sigmoid at the end reads, for exports end there; and the outputs, where there is none.
        heads = [call.inputs[0] for call, kind in zip(graph.calls, self.kinds, strict=True) if kind == "head"]
        self.logits = {self.range_of(key) for key in (*graph.outputs, *heads)}

    @property
    def float_calls(self) -> list[Call]:
        """The calls that stay float, but for a head: exports end in logits."""
        return [call for call, kind in zip(self.graph.calls, self.kinds, strict=True) if kind == "float"]

    def range_of(self, key: int) -> int:
        """The representative of all keys that share the range of `key`."""
        while key in self._parents and self._parents[key] != key:
            key = self._parents[key]
        return key

    def num_sources(self, representative: int) -> int:
        """How many computed tensors share a range: 1 unless they are concatenated."""
        carried = ("same", "average", "concatenate", "absorbed")
        computed = [
            self.results.get(position, call.outputs[0])
            for position, (call, kind) in enumerate(zip(self.graph.calls, self.kinds, strict=True))
            if kind not in carried
        ]
        return sum(self.range_of(key) == representative for key in (*self.graph.inputs, *computed))

    def _absorb(self, position: int, kind: str) -> None:
        """Takes BatchNorm and a rectifier that follow, and nobody else reads, into the call at `position`."""
        graph, call = self.graph, self.graph.calls[position]
        norm, activation, result = None, "linear", call.outputs[0]
        following = graph.only_consumer(result)
        # A layer that is called twice has one kernel: folding the BatchNorm behind one call would change the other.
        is_single = graph.num_calls[id(call.operation)] == 1
        if kind == "kernel" and following is not None and self.kinds[following] == "norm" and is_single:
            candidate = graph.calls[following]
            # And a BatchNorm that is called twice has statistics of two tensors, which one kernel cannot take up.
            if graph.num_calls[id(candidate.operation)] == 1:
                norm, result = candidate.operation, candidate.outputs[0]
                self.kinds[following] = "absorbed"
                following = graph.only_consumer(result)
        if following is not None and self.kinds[following] == "activation" and is_single:
            # Fused: a range that begins at 0 makes the runtime clip there, where it rounds anyway.
            activation, result = _activation(graph.calls[following].operation), graph.calls[following].outputs[0]
            self.kinds[following] = "absorbed"
        self.results[position] = result
        if kind == "kernel":
            self.kernels[position] = (norm, activation)
        else:
            self.additions[position] = activation

    def _quantized(self) -> set[int]:
        # Not those of "same", "average" and "concatenate": between float layers these stay float too. Between integer
        # ones they share a range that is found here by its other end.
        found = set()
        for position, (call, kind) in enumerate(zip(self.graph.calls, self.kinds, strict=True)):
            if kind in ("kernel", "add", "mean", "activation", "hard_swish"):
                keys = (*call.inputs, self.results.get(position, call.outputs[0]))
                found |= {self.range_of(key) for key in keys}
        return found


class _Emission:
    """Builds the new graph, call after call, and copies the weights.

    Attributes:
        shared: name → layer of the student that stands in the new graph itself, as it could not be copied.
        has_foreign_copies: whether a layer of a class that is not Keras's own was copied.
    """

    def __init__(self, graph: Graph, plan: _Plan, options: dict[str, Any], is_foreign_shared: bool = False):
        self.graph, self.plan, self.options = graph, plan, options
        self.is_foreign_shared = is_foreign_shared
        self.shared: dict[str, Any] = {}
        self.has_foreign_copies = False
        self.values: dict[int, Any] = {}
        self._layers: dict[Any, Any] = {}
        self._names: set[str] = set()

    def run(self, inputs: list[Any]) -> list[Any]:
        """The new model's flat outputs for its flat symbolic `inputs`."""
        for key, tensor in zip(self.graph.inputs, inputs, strict=True):
            self.values[key] = self._rounded(key, tensor, tensor.name)
        for position, (call, kind) in enumerate(zip(self.graph.calls, self.plan.kinds, strict=True)):
            if kind == "absorbed":
                continue
            # What comes next in the graph reads what the last absorbed call gave.
            key = self.plan.results.get(position, call.outputs[0])
            if kind == "kernel":
                self.values[key] = self._rounded(key, self._kernel(position), call.operation.name)
            elif kind == "add":
                total = self._copy(call)
                if self.plan.additions[position] != "linear":
                    name = self._unique(f"{call.operation.name}_{self.plan.additions[position]}")
                    total = keras.layers.Activation(self.plan.additions[position], name=name, dtype="float32")(total)
                self.values[key] = self._rounded(key, total, call.operation.name)
            elif kind in ("same", "concatenate"):
                # Not rounded again: these choose or move int8 values. An average does round, to the same scale.
                self.values[key] = self._copy(call)
            else:
                outputs = keras.tree.flatten(self._copy(call))
                for key, tensor in zip(call.outputs, outputs, strict=True):
                    self.values[key] = tensor if kind == "head" else self._rounded(key, tensor, call.operation.name)
        return [self.values[key] for key in self.graph.outputs]

    def _kernel(self, position: int) -> Any:
        call = self.graph.calls[position]
        layer = call.operation
        norm, activation = self.plan.kernels[position]
        (tensor,), _ = call.filled(self.values)
        if type(layer) is keras.layers.SeparableConv2D:
            depthwise, layer = _separated(layer)
            tensor = self._int8_kernel((id(call.operation), "depthwise"), depthwise)(tensor)
            tensor = self._fake_quantize((id(call), "depthwise"), depthwise.name)(tensor)
        return self._int8_kernel(id(call.operation), layer, norm, activation)(tensor)

    def _int8_kernel(
        self, identity: Any, layer: Any, norm: keras.layers.Layer = None, activation: str = "linear"
    ) -> Int8Kernel:
        """A built `Int8Kernel` with copies of `layer` and `norm`, both built, and of their weights."""

        def make() -> Int8Kernel:
            weights = layer.get_weights()
            options: dict[str, Any] = {"activation": "linear"}
            shape = layer.get_build_config()["input_shape"]
            norm_copy = None
            if norm is not None:
                norm_copy = _built(norm, layer.compute_output_shape(shape), norm.get_weights())
                # γ (x + b − μ) / σ + β is BatchNorm of x with the mean μ − b: a bias before it moves there, since
                # the layer has one shift of its own, and that is BatchNorm's.
                if layer.use_bias:
                    options["use_bias"] = False
                    norm_copy.moving_mean.assign(norm_copy.moving_mean - weights.pop())
            copy = _built(layer, shape, weights, **options)
            return Int8Kernel(copy, norm_copy, activation, name=self._unique(layer.name), dtype="float32")

        return self._once(identity, make)

    def _copy(self, call: Call) -> Any:
        """The call on the new values, of a copy of its layer with the same weights."""
        arguments, keywords = call.filled(self.values)
        operation = call.operation
        is_layer = isinstance(operation, keras.layers.Layer)
        is_foreign = is_layer and not type(operation).__module__.startswith("keras.")

        def clone() -> Any:
            name = {"name": self._unique(operation.name)} if is_layer else {}
            return type(operation).from_config(operation.get_config() | name)

        if operation.name not in self.shared and not (is_foreign and self.is_foreign_shared):
            try:
                copy = self._once(id(operation), clone)
                # It has weights only once it was called, and the same ones at every further call.
                outputs = copy(*arguments, **keywords)
                if is_layer:
                    copy.set_weights(operation.get_weights())
                self.has_foreign_copies |= is_foreign
                return outputs
            except Exception:
                # What a constructor says to a configuration that it does not know can be anything. A call that is wrong
                # in itself is so below as well.
                if not is_foreign:
                    raise
        self.shared[operation.name] = operation
        return operation(*arguments, **keywords)

    def _rounded(self, key: int, tensor: Tensor, name: str) -> Any:
        representative = self.plan.range_of(key)
        if representative not in self.plan.quantized:
            return tensor
        is_logits = representative in self.plan.logits
        return self._fake_quantize(
            representative,
            name,
            # A mean over batches would settle between the tensors of one range, and clip the widest of them.
            holds_peaks=is_logits or self.plan.num_sources(representative) > 1,
            margin=LOGITS_MARGIN if is_logits else 0.0,
        )(tensor)

    def _fake_quantize(self, identity: Any, name: str, **options: Any) -> FakeQuantize:
        return self._once(
            ("range", identity),
            lambda: FakeQuantize(name=self._unique(f"{name}_int8"), dtype="float32", **self.options, **options),
        )

    def _once(self, identity: Any, make: Any) -> Any:
        if identity not in self._layers:
            self._layers[identity] = make()
        return self._layers[identity]

    def _unique(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self._names:
            candidate, number = f"{name}_{number}", number + 1
        self._names.add(candidate)
        return candidate


def _answers_alike(student: keras.Model, model: keras.Model, calibration_data: Data, batch_size: int) -> bool:
    """Whether `model`, before rounding, answers a batch as the student does."""
    inputs = next(batches(calibration_data, batch_size))
    with in_float(model):
        pairs = zip(keras.tree.flatten(student(inputs)), keras.tree.flatten(model(inputs)), strict=True)
        return all(
            float(ops.max(ops.abs(own - other))) <= SAME_ANSWER * float(ops.max(ops.abs(own))) for own, other in pairs
        )


def _check(student: keras.Model) -> None:
    for layer in all_layers(student):
        if isinstance(layer, (FakeQuantize, Int8Kernel)) or getattr(layer, "quantization_mode", None) is not None:
            remedy = "Quantise the float model that it was made from."
            raise ValueError(
                error_message("student must be a float model", f"layer {layer.name!r}, quantised already", remedy)
            )
        if layer.compute_dtype in ("float16", "bfloat16", "float64"):
            remedy = "Rebuild the student with keras.config.set_dtype_policy('float32') and set_weights."
            received = f"layer {layer.name!r} with {layer.dtype_policy.name}"
            raise ValueError(error_message("student must have the dtype policy float32", received, remedy))


def _kind(call: Call, graph: Graph) -> str:
    operation, kind = call.operation, type(call.operation)
    num_inputs = len(call.inputs)
    of_ops = is_operation(operation)
    if kind in _KERNELS and num_inputs == 1 and _is_plain_kernel(operation):
        return "kernel"
    if kind is keras.layers.BatchNormalization and num_inputs == 1 and _is_plain_norm(call):
        return "norm"
    if (kind is keras.layers.Add or (of_ops and kind.__name__ == "Add")) and num_inputs == 2:
        return "add"
    if kind is keras.layers.Concatenate or (of_ops and kind.__name__ == "Concatenate"):
        return "concatenate"
    if kind in _SAME_SCALE and num_inputs == 1:
        return "same"
    if kind in _AVERAGES:
        return "average"
    if kind in _MEANS and num_inputs == 1:
        return "mean"
    activation = _activation(operation)
    is_activation = kind in (keras.layers.Activation, keras.layers.ReLU, keras.layers.Softmax) or of_ops
    if is_activation and activation in ("relu", "relu6"):
        return "activation"
    if is_activation and activation == "hard_silu":
        return "hard_swish"
    if is_activation and activation in _HEADS and _is_at_end(call.outputs[0], graph):
        return "head"
    return "float"


def _is_at_end(key: int, graph: Graph) -> bool:
    """Whether a value is an output of the model, or only moved on its way there."""
    following = graph.only_consumer(key)
    if following is None:
        return key in graph.outputs
    call = graph.calls[following]
    return type(call.operation) in _SAME_SCALE and _is_at_end(call.outputs[0], graph)


def _activation(operation: Any) -> str:
    """The name of what `operation` applies: linear, relu, relu6, hard_silu, softmax, …; "other" where it is unknown."""
    if isinstance(operation, keras.layers.ReLU):
        plain = not operation.negative_slope and not operation.threshold
        return {None: "relu", 6.0: "relu6"}.get(operation.max_value, "other") if plain else "other"
    if isinstance(operation, keras.layers.Softmax):
        return "softmax"
    if not isinstance(operation, keras.layers.Layer):
        names = {"Relu": "relu", "Relu6": "relu6", "HardSilu": "hard_silu", "Softmax": "softmax", "Sigmoid": "sigmoid"}
        return names.get(type(operation).__name__, "other")
    function = getattr(operation, "activation", None)
    known = ("linear", "relu", "relu6", "hard_silu", *_HEADS)
    name = next((name for name in known if function is keras.activations.get(name)), None)
    if name is None and function is not None:
        # A softmax under another name, such as TensorFlow's own.
        name = function_activation(function, (None, 5))
    return name if name in known else "other"


def _is_plain_kernel(layer: Any) -> bool:
    """Whether integer runtimes have this kernel: channels last, no groups, no dilation, nothing beside it."""
    return (
        getattr(layer, "data_format", "channels_last") == "channels_last"
        and getattr(layer, "groups", 1) == 1
        and all(rate == 1 for rate in keras.tree.flatten(getattr(layer, "dilation_rate", 1)))
        and layer.activity_regularizer is None
        and not getattr(layer, "lora_enabled", False)
    )


def _is_plain_norm(call: Call) -> bool:
    layer = call.operation
    rank = len(call.arguments.keras_tensors[0].shape)
    is_last = layer.axis in (-1, rank - 1)
    return is_last and not getattr(layer, "renorm", False) and not getattr(layer, "synchronized", False)


def _built(layer: Any, input_shape: Shape, weights: list[Any], **options: Any) -> Any:
    """A layer like `layer` but for `options`, with `weights`."""
    copy = type(layer).from_config(layer.get_config() | options)
    copy.build(input_shape)
    copy.set_weights(weights)
    return copy


def _separated(layer: keras.layers.SeparableConv2D) -> tuple[Any, Any]:
    """A separable convolution as the two that a runtime computes."""
    depthwise = keras.layers.DepthwiseConv2D(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        use_bias=False,
        depthwise_regularizer=layer.depthwise_regularizer,
        depthwise_constraint=layer.depthwise_constraint,
        trainable=layer.trainable,
        name=f"{layer.name}_depthwise",
    )
    pointwise = keras.layers.Conv2D(
        layer.filters,
        1,
        use_bias=layer.use_bias,
        kernel_regularizer=layer.pointwise_regularizer,
        bias_regularizer=layer.bias_regularizer,
        kernel_constraint=layer.pointwise_constraint,
        bias_constraint=layer.bias_constraint,
        trainable=layer.trainable,
        name=layer.name,
    )
    input_shape = layer.get_build_config()["input_shape"]
    depthwise.build(input_shape)
    pointwise.build(depthwise.compute_output_shape(input_shape))
    weights = layer.get_weights()
    depthwise.set_weights(weights[:1])
    pointwise.set_weights(weights[1:])
    return depthwise, pointwise
