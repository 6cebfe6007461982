"""What a student costs in the runtime that will serve it: measured before it is trained, predicted before it is built.

A `Meter` converts a model, opens the file in its runtime and times it, and learns from each to predict the next.
Budgets are judged by what is measured; what is predicted chooses what is worth building.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill._inputs import take_rows
from keras_distill._keras_internals import all_layers, calls_in_order
from keras_distill._kit import kit_module
from keras_distill._types import Inputs
from keras_distill.deploy.litert import to_litert
from keras_distill.deploy.onnx import to_onnx, write_quantized
from keras_distill.deploy.tflm import MicroFacts, to_tflm
from keras_distill.deploy.trace import signature_of
from keras_distill.deploy.verify import open_artifact, run_in_batches
from keras_distill.models import multiply_adds
from keras_distill.models.layer_roles import is_readable

RUNTIMES = ("litert", "onnx", "tflm")
PRECISIONS = ("float32", "int8")
_ROUNDS, _SECONDS_PER_ROUND = 7, 0.03


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        num_parameters: weights, those that are not trained too.
        multiply_adds: of one example, as `models.multiply_adds` counts them.
        num_bytes: of the file that is served.
        latency_ms: median of one example a call on one thread.
        arena_bytes: of the memory that a microcontroller works in; `None` for other runtimes.
    """

    num_parameters: int
    multiply_adds: int
    num_bytes: int
    latency_ms: float
    arena_bytes: int | None = None

    def __str__(self) -> str:
        if self.arena_bytes is not None:
            return f"{self.num_bytes:,} bytes and an arena of {self.arena_bytes:,} bytes"
        return f"{self.num_bytes:,} bytes and {self.latency_ms:.4f} ms"

    def share_of(self, max_bytes: float | None, max_latency_ms: float | None, max_arena: float | None = None) -> float:
        """How much of the tighter limit it takes: above 1 it breaks one."""
        shares = [
            taken / limit
            for taken, limit in (
                (self.num_bytes, max_bytes),
                (self.latency_ms, max_latency_ms),
                (self.arena_bytes, max_arena),
            )
            if limit is not None and taken is not None
        ]
        return max(shares)


class Meter:
    """Measures models as files of one runtime, and predicts what others will cost.

    Args:
        runtime: `"litert"`, `"onnx"` or, in int8 alone, `"tflm"`.
        example: one input batch, `(1, …)`, an array or a dict of named ones.
        calibration: some hundred inputs, for int8, likewise.
        metadata: what the served file says of itself (`class_names`, …): it takes bytes too.
    """

    def __init__(self, runtime: str, example: Inputs, calibration: Inputs, metadata: Mapping[str, Any]):
        self._runtime, self._example, self._calibration = runtime, take_rows(example, slice(1)), calibration
        self._metadata = dict(metadata)
        self._known: dict[str, list[tuple[np.ndarray, Cost, str]]] = {precision: [] for precision in PRECISIONS}

    def measure(self, model: keras.Model, precision: str, family: str) -> Cost:
        """Converts and times a model as it will be once it is trained, and learns from it.

        Raises:
            ConversionError: it cannot be converted.
        """
        with tempfile.TemporaryDirectory(prefix="keras-distill-cost-") as folder:
            micro = None
            with _as_if_trained(model):
                if self._runtime == "tflm":
                    path, micro = self._write_micro(model, Path(folder))
                else:
                    path = self.write(model, Path(folder), precision)
            artifact = open_artifact(path)
            feed = self.feed(model, self._example)
            kit = kit_module()
            step = artifact.step(kit.for_one_call(artifact, feed))
            latency = kit.measure({"it": step}, _ROUNDS, _SECONDS_PER_ROUND)["it"]["p50_ms"]
            arena = None if micro is None else micro.arena_bytes
            cost = Cost(model.count_params(), self._work(model), path.stat().st_size, latency, arena)
        self.learn(features_of(model), cost, precision, family)
        return cost

    def feed(self, model: keras.Model, inputs: Inputs) -> dict[str, np.ndarray]:
        """Inputs under the names that a model's files have, which are not always the Keras tensors'."""
        return signature_of(model, self._example).feed(inputs)

    def write(self, model: keras.Model, folder: Path, precision: str) -> Path:
        """Writes the file that is served into a folder."""
        if self._runtime == "tflm":
            return self._write_micro(model, folder)[0]
        options = {"example": self._example, **self._metadata}
        if self._runtime == "litert":
            is_int8 = precision == "int8"
            calibration = self.feed(model, self._calibration) if is_int8 else None
            path = folder / f"{precision}.tflite"
            return to_litert(model, path, quantization="int8" if is_int8 else None, calibration=calibration, **options)
        source = to_onnx(model, folder / "float32.onnx", **options)
        if precision == "float32":
            return source
        # The gate tries more ways to quantise, and ships the fastest: what is measured here is an upper bound.
        path = folder / "int8.onnx"
        calibration = self.feed(model, self._calibration)
        write_quantized(source, path, mode="static", calibration=calibration, operations=None)
        return path

    def logits(self, model: keras.Model, precision: str, inputs: Inputs) -> np.ndarray:
        """What the file of a trained model gives for inputs, in its runtime, `(num_items, num_classes)`."""
        with tempfile.TemporaryDirectory(prefix="keras-distill-logits-") as folder:
            artifact = open_artifact(self.write(model, Path(folder), precision))
            (logits,) = run_in_batches(artifact, self.feed(model, inputs)).values()
        return logits

    def _write_micro(self, model: keras.Model, folder: Path) -> tuple[Path, MicroFacts]:
        path = folder / "int8-tflm.tflite"
        calibration = self.feed(model, self._calibration)
        return path, to_tflm(model, path, calibration=calibration, example=self._example, **self._metadata)

    def learn(self, features: np.ndarray, cost: Cost, precision: str, family: str) -> None:
        """Takes note of what a model of these features costs."""
        self._known[precision].append((features, cost, family))

    def predict(self, model: keras.Model, precision: str, family: str) -> Cost:
        """What a model would probably cost; with nothing measured, a guess from what such models cost elsewhere."""
        features = features_of(model)
        known = self._known[precision]
        latency = _predicted(features, [(f, c.latency_ms, name) for f, c, name in known], _LATENCY[precision], family)
        size = _predicted(features, [(f, float(c.num_bytes), name) for f, c, name in known], _BYTES[precision], family)
        cost = Cost(model.count_params(), self._work(model), round(size), latency)
        if self._runtime != "tflm":
            return cost
        arenas = [(f, float(c.arena_bytes), name) for f, c, name in known if c.arena_bytes is not None]
        return replace(cost, arena_bytes=round(_predicted(features, arenas, _ARENA, family)))

    def _work(self, model: keras.Model) -> int:
        """Multiply-adds of one example: of networks that take images of any size, of the example's."""
        return multiply_adds(
            model, input_shapes=[array.shape[1:] for array in self.feed(model, self._example).values()]
        )


@contextmanager
def _as_if_trained(model: keras.Model) -> Iterator[None]:
    """Gives weights that are all alike values of their own, and takes them back.

    A converter leaves a bias of zeros out, as it does an identical normalisation, and writes equal arrays once; the
    trained student's file has them all, in int8 a sixth more bytes.
    """
    generator = np.random.default_rng(0)
    before = []
    for weight in model.weights:
        values = keras.ops.convert_to_numpy(weight.value)
        if keras.backend.is_float_dtype(weight.dtype) and values.size and (values == values.flat[0]).all():
            before.append((weight, values))
            weight.assign(values + generator.uniform(0.01, 0.02, values.shape))
    try:
        yield
    finally:
        for weight, values in before:
            weight.assign(values)


# What a layer's time is made of: multiply-adds, places of its output, and the call itself.
_KINDS = ("conv", "pointwise", "depthwise", "dense", "pool", "other")
_PARTS = ("work", "places", "calls")
_NAMES = (*(f"{part} {kind}" for part in _PARTS for kind in _KINDS), "weights", "channels", "one")
# Where nothing was measured yet: ms and bytes for one of each, of an ordinary CPU core. Only their ratios matter once
# something was.
_NOTHING = 1e-9
_LATENCY = {
    "float32": np.array(
        [
            *(1e-8, 9e-9, 4e-8, 4e-8, 8e-8, 1e-6),
            *(1e-6, 1e-7, 2e-6, 5e-7, 1e-6, 1e-7),
            *(2e-4, 1e-4, 1e-4, 1e-4, 1e-4, 5e-4),
            *(_NOTHING, _NOTHING, 1e-3),
        ]
    ),
    "int8": np.array(
        [
            *(3e-9, 4e-9, 6e-8, 9e-9, 2e-7, 1e-6),
            *(3e-6, 1e-7, 1e-6, 1e-7, 1e-6, 1e-7),
            *(2e-4, 1e-4, 1e-4, 1e-4, 1e-4, 5e-4),
            *(_NOTHING, _NOTHING, 1.5e-3),
        ]
    ),
}
_BYTES = {
    "float32": np.array([*[_NOTHING] * 12, 300.0, 300.0, 300.0, 200.0, 100.0, 50.0, 4.0, 1.0, 2000.0]),
    "int8": np.array([*[_NOTHING] * 12, 600.0, 600.0, 600.0, 400.0, 200.0, 100.0, 1.0, 12.0, 2500.0]),
}
# Bytes of a microcontroller's memory: activations, of which a few live at a time, and what is kept of every layer.
_ARENA = np.array(
    [*[_NOTHING] * 6, 8.0, 8.0, 8.0, 1.0, 1.0, 1.0, 250.0, 250.0, 250.0, 200.0, 150.0, 100.0, _NOTHING, 8.0, 1000.0]
)
# Kernels compute whole vectors of output channels: 17 cost what 32 do.
_VECTOR = 16
# What converters fold into the layer before, or leave out.
_FOLDED = (
    keras.layers.Activation,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.InputLayer,
    keras.layers.ReLU,
    keras.layers.Reshape,
)
_POOLS = ("AveragePooling", "MaxPooling")
# How strongly a guess is held to against what was measured.
_FAITH = 0.03


def features_of(model: keras.Model) -> np.ndarray:
    """What a model's cost depends on, `(21,)`: see `_NAMES`."""
    found = dict.fromkeys(_NAMES, 0.0)
    found["one"] = 1.0
    found["weights"] = float(model.count_params())
    for layer, input_shape, output_shape in _calls(model):
        if isinstance(layer, _FOLDED):
            continue
        kind = _kind_of(layer)
        places = _size(output_shape[:-1])
        kernels = [tuple(weight.shape) for weight in getattr(layer, "weights", ()) if len(weight.shape) > 1]
        for kernel in kernels:
            # A depthwise kernel's channels are those that come in, times a multiplier.
            channels = _size(kernel[-2:]) if kind == "depthwise" else kernel[-1]
            found[f"work {kind}"] += _size(kernel) / channels * -(-channels // _VECTOR) * _VECTOR * places
            found["channels"] += channels
        if kind == "pool":
            found["work pool"] += _size(input_shape)
        found[f"places {kind}"] += places if kernels else _size(output_shape)
        found[f"calls {kind}"] += 1.0
    return np.array([found[name] for name in _NAMES])


def _calls(model: keras.Model) -> Iterable[tuple[Any, tuple[int, ...], tuple[int, ...]]]:
    """Every call of a layer: the layer, and the shapes of one example that it reads and gives."""
    if not is_readable(model):
        for layer in all_layers(model)[1:]:
            yield layer, (), ()
        return
    for node in calls_in_order(model):
        operation = node.operation
        if isinstance(operation, keras.Model):
            yield from _calls(operation)
        elif node.input_tensors:
            read, given = (tuple(size or 1 for size in tensors[0].shape[1:])
                           for tensors in (node.input_tensors, node.output_tensors))  # fmt: skip
            yield operation, read, given


def _kind_of(layer: Any) -> str:
    """Layers of one kind do their work alike."""
    if isinstance(layer, keras.layers.Dense):
        return "dense"
    if isinstance(layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)):
        return "depthwise"
    if isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)):
        return "pointwise" if max(layer.kernel_size) == 1 else "conv"
    return "pool" if any(name in type(layer).__name__ for name in _POOLS) else "other"


def _size(shape: tuple[int, ...]) -> float:
    return float(np.prod(shape, dtype=float))


def _predicted(
    features: np.ndarray, known: Sequence[tuple[np.ndarray, float, str]], guess: np.ndarray, family: str
) -> float:
    """A linear model without negative terms, fitted to relative errors and held to a guess where little is known.

    What it misses of the family's own members so far, nearer ones more, it is corrected by.
    """
    from scipy.optimize import nnls

    if not known:
        return float(features @ guess)
    measured = np.array([value for _, value, _ in known])
    matrix = np.array([row for row, _, _ in known])
    scale = np.exp(np.mean(np.log(measured / (matrix @ guess))))
    # In units of the guess, so that holding to it means the same for every term.
    unit = scale * guess
    rows = np.vstack([matrix * unit / measured[:, None], _FAITH * np.eye(len(unit))])
    wanted = np.concatenate([np.ones(len(measured)), _FAITH * np.ones(len(unit))])
    weights, _ = nnls(rows, wanted)
    estimates = matrix @ (unit * weights)
    estimate = float(features @ (unit * weights))
    own = [index for index, (_, _, name) in enumerate(known) if name == family]
    if not own:
        return estimate
    distances = np.array([abs(np.log(estimate / estimates[index])) for index in own])
    nearness = 1.0 / (0.1 + distances)
    missed = np.log(measured[own] / estimates[own])
    return estimate * float(np.exp(np.sum(nearness * missed) / (0.5 * 10.0 + np.sum(nearness))))
