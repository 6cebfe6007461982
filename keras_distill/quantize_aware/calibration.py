"""The range of every tensor of activations: first seen in the float model, in the end left alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_count, check_finite, error_message
from keras_distill._keras_internals import all_layers, calls_in_order, input_structure
from keras_distill._types import Data, Logs, TensorTree
from keras_distill.quantize_aware.fake_quantization import FakeQuantize
from keras_distill.quantize_aware.kernel import Int8Kernel

NO_DATA = "Pass some hundreds of training examples, as the model takes them; labels are not needed."


def calibrate(model: keras.Model, calibration_data: Data, *, batch_size: int = 64) -> None:
    """Sets every range of a quantised `model` from its float activations on `calibration_data`.

    A range is the mean over batches of the batches' extremes: one outlier in one batch should not cost all other values
    resolution. Where peaks are held (logits, shared ranges) it is the extreme of all.

    Args:
        model: what `quantize_aware` gave.
        calibration_data: inputs as the model takes them (an array, or a structure of arrays), or a `tf.data.Dataset` of
            batches, with or without labels. Training examples; never the test set.
        batch_size: examples a batch, where arrays are given.

    Raises:
        ValueError: no data, NaN or infinite inputs or activations, a constant activation.
    """
    layers = _layers(model, FakeQuantize)
    seen: dict[str, list[tuple[float, float]]] = {layer.name: [] for layer in layers}
    with in_float(model):
        recorders = _recorders(model, layers)
        for inputs in batches(calibration_data, batch_size):
            for name, (low, high) in recorders(inputs).items():
                seen[name].append((float(low), float(high)))
    if not layers or not seen[layers[0].name]:
        raise ValueError(error_message("calibration_data must hold at least one example", "none", NO_DATA))
    for layer in layers:
        lows, highs = np.array(seen[layer.name]).T
        if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
            remedy = "Look at the student's weights and at the scaling of the calibration data."
            expected = "be finite for finite inputs"
            raise ValueError(
                error_message(f"the activations at {layer.name!r} must {expected}", "NaN or infinite", remedy)
            )
        low, high = (lows.min(), highs.max()) if layer.holds_peaks else (lows.mean(), highs.mean())
        layer.set_range(float(low), float(high))


@contextmanager
def in_float(model: keras.Model) -> Iterator[keras.Model]:
    """Lets eager calls of a quantised `model` compute without any rounding: BatchNorm folded, all else as the student.

    Example:
        >>> from keras_distill.quantize_aware import quantize_aware
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> with in_float(quantize_aware(student, x)) as model:
        ...     bool(np.allclose(model(x), student(x), atol=1e-5))
        True
    """
    layers = _layers(model, (FakeQuantize, Int8Kernel))
    try:
        for layer in layers:
            layer.is_active = False
        yield model
    finally:
        for layer in layers:
            layer.is_active = True


def is_quantized(model: keras.Model) -> bool:
    """Whether `model` is a network that `quantize_aware` made, or holds one.

    Example:
        >>> is_quantized(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        False
    """
    return bool(_layers(model, (FakeQuantize, Int8Kernel)))


def freeze(model: keras.Model) -> None:
    """Leaves every range and every BatchNorm statistic of `model` as it is: training then computes what ships.

    Args:
        model: a quantised model, or one that holds one, such as a `Distiller`. Compile it again, or call
            `make_train_function(force=True)`, if it has already trained.

    Raises:
        ValueError: nothing in it is quantised.
    """
    layers = _layers(model, (FakeQuantize, Int8Kernel))
    if not layers:
        remedy = "Make it with keras_distill.quantize_aware.quantize_aware(student, calibration_data)."
        raise ValueError(error_message(f"the model {model.name!r} must be quantised", "a float model", remedy))
    for layer in layers:
        layer.freeze()


class FreezeRanges(keras.callbacks.Callback):
    """Freezes ranges and BatchNorm statistics for the last epochs: the weights settle on the network that ships.

    Args:
        num_last_epochs: how many epochs train with everything frozen.

    Example:
        >>> callback = FreezeRanges(num_last_epochs=2)

    Reference:
        Krishnamoorthi, 2018, section 3.2.2: freezing the statistics removes the jitter that batches bring.
    """

    def __init__(self, num_last_epochs: int = 1):
        super().__init__()
        self.num_last_epochs = check_count("num_last_epochs", num_last_epochs)
        self._is_done = False

    def on_train_begin(self, logs: Logs = None) -> None:
        """Begins anew: the callback may have served another model."""
        self._is_done = False

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Freezes at the beginning of the first of the last epochs, also where training resumes later than that."""
        if self._is_done or epoch < self.params["epochs"] - self.num_last_epochs:
            return
        freeze(self.model)
        # What is frozen is part of the traced step; the next batch runs the new one.
        self.model.make_train_function(force=True)
        self._is_done = True


def _recorders(model: keras.Model, layers: list[FakeQuantize]) -> Any:
    """A function from a batch to `{layer name: (smallest, largest) value}` of what reaches each layer."""
    tensors: dict[str, list[Any]] = {layer.name: [] for layer in layers}
    for node in calls_in_order(model):
        if node.operation.name in tensors:
            tensors[node.operation.name] += node.input_tensors
    taps = keras.Model(input_structure(model), tensors)

    def record(inputs: TensorTree) -> dict[str, tuple[Any, Any]]:
        values = taps(inputs, training=False)
        return {
            name: (min(ops.min(value) for value in group), max(ops.max(value) for value in group))
            for name, group in values.items()
        }

    return record


def batches(calibration_data: Data, batch_size: int) -> Iterator[Any]:
    """Calibration data as batches of inputs, checked."""
    if calibration_data is None:
        raise ValueError(error_message("calibration_data must hold at least one example", None, NO_DATA))
    if hasattr(calibration_data, "element_spec"):
        for batch in calibration_data:
            inputs = batch[0] if isinstance(batch, tuple) else batch
            keras.tree.map_structure(lambda array: check_finite("calibration_data", array), inputs)
            yield inputs
        return
    arrays = keras.tree.map_structure(lambda array: check_finite("calibration_data", array), calibration_data)
    counts = {len(array) if array.ndim else 0 for array in keras.tree.flatten(arrays)}
    if counts == {0}:
        raise ValueError(error_message("calibration_data must hold at least one example", "none", NO_DATA))
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            error_message("calibration_data must have equally many examples for every input", sorted(counts), NO_DATA)
        )
    for start in range(0, counts.pop(), batch_size):
        yield keras.tree.map_structure(lambda array: array[start : start + batch_size], arrays)  # noqa: B023


def _layers(model: keras.Model, kinds: Any) -> list[Any]:
    return [layer for layer in all_layers(model) if isinstance(layer, kinds)]
