"""A Keras model as a LiteRT (TFLite) file of built-in operations, in float32, float16 or int8."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_distill._checks import check_choice, error_message
from keras_distill._files import whole_file
from keras_distill._types import ArrayLike, TensorTree
from keras_distill.deploy.calibration import save_calibration
from keras_distill.deploy.conversion import ConversionError, convert
from keras_distill.deploy.metadata import describe
from keras_distill.deploy.on_tensorflow import save_logits
from keras_distill.deploy.trace import served_model, signature_of
from keras_distill.deploy.warm import WARM_PROCESS

if TYPE_CHECKING:
    import keras

QUANTIZATIONS = ("dynamic", "int8", "int8-io", "float16")


def to_litert(
    model: "keras.Model",
    path: str | os.PathLike,
    *,
    quantization: str | None = None,
    calibration: Mapping[str, Any] | ArrayLike | None = None,
    example: TensorTree = None,
    batch: int | None = None,
    from_logits: bool = True,
    class_names: Sequence[str] | None = None,
    preprocessing: str | None = None,
    temperature: float | None = None,
    licence: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `model` as a LiteRT file that takes float inputs and gives float32 logits.

    Only built-in operations are used, so that no device needs the Flex delegate. Recurrent layers convert with a
    fixed batch alone; where `batch` is `None` and an open batch fails because of them, the file is written for batch 1.

    Args:
        model: a built Keras model: Sequential, Functional or subclassed.
        path: where the file goes; must end in `.tflite`.
        quantization: `None` (float32), `"float16"` (half the bytes), `"dynamic"` (int8 weights, ranges found at every
            call) or `"int8"` (int8 throughout between float inputs and outputs; needs `calibration`).
        calibration: `{input name: array}`, or the array of the only input: some hundreds of training or validation
            examples, cast to the input's dtype; never from the test set.
        batch: examples a call; `None` leaves it open where the model allows, or as the model fixes it.
        example: as `to_onnx` takes it, and what follows too.
        from_logits: what a model gives whose head cannot be found.
        class_names: names of the classes, in the order of the logits.
        preprocessing: what the caller does to an example first, in words.
        temperature: divisor of the logits before the softmax, for calibrated probabilities.
        licence: the licence of the model.
        provenance: where the model comes from, any JSON object.

    Returns:
        `path`.

    Raises:
        ConversionError: a layer cannot be converted; the message names it and the remedy. Also a `batch` other than the
            one that the model fixes.
        ValueError: the model was never built, gives other than it promises, int8 lacks calibration data, or `path` does
            not end in `.tflite`.
    """
    if Path(path).suffix != ".tflite":
        raise ValueError(error_message("the path of a LiteRT file must end in .tflite", repr(os.fspath(path))))
    if quantization is not None:
        check_choice("quantization", quantization, QUANTIZATIONS)
    metadata = describe(class_names, preprocessing, temperature, licence, provenance)
    signature = signature_of(model, example)
    served = served_model(model, signature, from_logits, example)
    WARM_PROCESS.start()
    with tempfile.TemporaryDirectory(prefix="keras-distill-litert-") as folder, whole_file(path) as aside:
        request = {
            "path": os.path.abspath(aside),
            "quantization": quantization,
            "calibration": save_calibration(calibration, folder) if quantization in ("int8", "int8-io") else None,
            "metadata": metadata,
        }

        def attempt(batch: int | None) -> None:
            saved_model = os.path.join(folder, f"batch-{batch}")
            traced = save_logits(model, served, saved_model, signature, batch=batch, from_logits=from_logits)
            names = {"input_names": list(traced.input_names), "output_names": list(traced.output_names)}
            convert("to_litert", request | names | {"saved_model": saved_model}, traced.layer_names)

        try:
            attempt(batch)
        except ConversionError as error:
            if batch is not None or "TensorListReserve" not in str(error):
                raise
            attempt(1)
    return Path(path)
