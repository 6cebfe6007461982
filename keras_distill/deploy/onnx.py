"""A Keras model as an ONNX file: named tensors, open batch, metadata inside, valid or not written at all."""

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_distill._checks import check_choice, error_message
from keras_distill._files import whole_file
from keras_distill._types import ArrayLike, TensorTree
from keras_distill.deploy.calibration import save_calibration
from keras_distill.deploy.conversion import convert
from keras_distill.deploy.metadata import describe
from keras_distill.deploy.on_tensorflow import save_logits
from keras_distill.deploy.trace import served_model, signature_of
from keras_distill.deploy.warm import WARM_PROCESS

if TYPE_CHECKING:
    import keras

OPSET = 18


def to_onnx(
    model: "keras.Model",
    path: str | os.PathLike,
    *,
    example: TensorTree = None,
    batch: int | None = None,
    from_logits: bool = True,
    class_names: Sequence[str] | None = None,
    preprocessing: str | None = None,
    temperature: float | None = None,
    licence: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `model` as an ONNX file that gives float32 logits.

    A softmax or sigmoid head is left out of the artifact; the model itself keeps it. Mixed policies are
    exported in float32. The conversion runs in a process of its own and its result is checked before it appears.
    Inputs and outputs keep the model's names, in its order; an output of an input's name gets `_output` at its end.

    Args:
        model: a built Keras model: Sequential, Functional or subclassed.
        path: where the file goes; must end in `.onnx`.
        example: a batch of inputs; needed for subclassed models whose inputs are not float32.
        batch: examples a call; `None` leaves the dimension open, under the name `batch`, or as the model fixes it.
        from_logits: what a model gives whose head cannot be found: logits, or (`False`) probabilities, of which the
            logits are exported.
        class_names: names of the classes, in the order of the logits.
        preprocessing: what the caller does to an example first, in words.
        temperature: divisor of the logits before the softmax, for calibrated probabilities.
        licence: the licence of the model.
        provenance: where the model comes from, any JSON object.

    Returns:
        `path`.

    Raises:
        ConversionError: a layer cannot be converted, or keeps a state between calls, which an ONNX file does not; the
            message names it and the remedy. Also a `batch` other than the one that the model fixes.
        ValueError: the model was never built, gives other than it promises, or `path` does not end in `.onnx`.
    """
    if Path(path).suffix != ".onnx":
        raise ValueError(error_message("the path of an ONNX file must end in .onnx", repr(os.fspath(path))))
    metadata = describe(class_names, preprocessing, temperature, licence, provenance)
    with tempfile.TemporaryDirectory(prefix="keras-distill-onnx-") as folder, whole_file(path) as aside:
        request, layer_names = trace_for_onnx(model, folder, example=example, batch=batch, from_logits=from_logits)
        request |= {"path": os.path.abspath(aside), "metadata": metadata}
        result = convert("to_onnx", request, layer_names)
    if result["float_layers"]:
        names = ", ".join(map(repr, result["float_layers"]))
        warnings.warn(
            f"These were trained for int8, and onnxruntime computes them in float32 on this processor: {names}. They "
            "take the time of the float32 model.",
            stacklevel=2,
        )
    return Path(path)


def trace_for_onnx(
    model: "keras.Model",
    folder: str,
    *,
    example: TensorTree = None,
    batch: int | None = None,
    from_logits: bool = True,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Writes the logits of `model` to `folder` as a SavedModel: what of a conversion happens in this process.

    Returns:
        The request for `convert("to_onnx", …)`, in which `"path"` is yet to be named, and the names of the layers.

    Raises:
        ConversionError, ValueError: as `to_onnx`.
    """
    signature = signature_of(model, example)
    served = served_model(model, signature, from_logits, example)
    WARM_PROCESS.start()
    traced = save_logits(model, served, folder, signature, batch=batch, from_logits=from_logits)
    request = {
        "saved_model": folder,
        "opset": OPSET,
        "input_names": list(traced.input_names),
        "output_names": list(traced.output_names),
        "metadata": {},
    }
    return request, tuple(traced.layer_names)


def quantize_onnx(
    source: str | os.PathLike,
    path: str | os.PathLike,
    *,
    mode: str = "static",
    calibration: Mapping[str, Any] | ArrayLike | None = None,
    operations: Sequence[str] | None = None,
) -> Path:
    """Writes the float32 ONNX file `source` as an int8 one, its metadata kept.

    A warning names the operations that onnxruntime computes in float32 all the same on this processor.

    Args:
        source: the float32 file.
        path: where the int8 file goes; must end in `.onnx`.
        mode: `"static"` (signed activations) or `"static-uint8"`: ranges calibrated beforehand, QDQ, weights per
            channel, the logits not clipped; or `"dynamic"`: ranges found at every call, which suits dense layers alone
            (a dynamic convolution is several times slower than float32).
        calibration: `{input name: array}`, or the array of the only input, for the static modes, cast to the input's
            dtype; never from the test set.
        operations: the ONNX operations to quantise; `None` means all that onnxruntime can.

    Returns:
        `path`.

    Raises:
        ConversionError: the quantiser failed.
        ValueError: a static mode without calibration data.
    """
    float_layers = write_quantized(source, path, mode=mode, calibration=calibration, operations=operations)
    if float_layers:
        remedy = ' mode="static-uint8" may keep them in integers.' if mode == "static" else ""
        names = ", ".join(map(repr, float_layers))
        warnings.warn(f"onnxruntime computes these in float32 on this processor: {names}.{remedy}", stacklevel=2)
    return Path(path)


def write_quantized(
    source: str | os.PathLike,
    path: str | os.PathLike,
    *,
    mode: str,
    calibration: Mapping[str, Any] | ArrayLike | None,
    operations: Sequence[str] | None,
) -> list[str]:
    """As `quantize_onnx`; returns the operations that onnxruntime computes in float32 all the same."""
    check_choice("mode", mode, ("static", "static-uint8", "dynamic"))
    with tempfile.TemporaryDirectory(prefix="keras-distill-quantize-") as folder, whole_file(path) as aside:
        request = {
            "source": os.path.abspath(source),
            "path": os.path.abspath(aside),
            "mode": mode,
            "calibration": save_calibration(calibration, folder) if mode != "dynamic" else None,
            "operations": list(operations) if operations is not None else None,
        }
        return convert("quantize_onnx", request)["float_layers"]
