"""The logits of a model as a SavedModel, whichever backend Keras runs on: converters read TensorFlow's graphs alone.

On JAX and PyTorch a model goes there as a `.keras` file, which a worker loads on TensorFlow. So its classes must be had
from modules, and compute with `keras.ops`.
"""

import importlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_distill._checks import error_message
from keras_distill.deploy.conversion import ConversionError, convert
from keras_distill.deploy.trace import Signature, Traced, save_traced, served_model

if TYPE_CHECKING:
    import keras

REMEDY = "Or save the model and export it where KERAS_BACKEND=tensorflow is set."


def save_logits(
    model: "keras.Model",
    served: "keras.Model",
    folder: str,
    signature: Signature,
    *,
    batch: int | None = None,
    from_logits: bool = True,
) -> Traced:
    """Writes the logits of `model` to `folder` as a SavedModel.

    Args:
        model: the Keras model, with its heads; it is the same afterwards.
        served: the model of its logits, from `served_model`.
        folder: where the SavedModel goes.
        signature: from `signature_of`.
        batch: a fixed number of examples a call; `None` leaves it as the model has it.
        from_logits: whether a model whose head can't be read gives logits.

    Raises:
        ConversionError: a `batch` that the model does not take; on another backend than TensorFlow, a model that cannot
            be loaded there.
    """
    import keras

    if keras.config.backend() == "tensorflow":
        return save_traced(served, folder, signature, batch=batch)
    signature.checked_batch(batch)
    classes = _classes_of(model)
    with tempfile.TemporaryDirectory(prefix="keras-distill-model-") as own:
        path = Path(own) / "model.keras"
        try:
            model.save(path)
        except Exception as error:
            # A layer's get_config may raise anything.
            raise ConversionError(_cannot(f"{type(error).__name__}: {error}")) from error
        request = {
            "path": str(path),
            "folder": folder,
            "classes": classes,
            "paths": [item for item in sys.path if item],
            "signature": signature.to_json(),
            "batch": batch,
            "from_logits": from_logits,
        }
        traced = convert("trace", request)
    return Traced(signature.names, tuple(traced["output_names"]), tuple(traced["layer_names"]))


def load_and_save(
    path: str,
    folder: str,
    classes: Mapping[str, Sequence[str]],
    paths: Sequence[str],
    signature: dict[str, Any],
    batch: int | None,
    from_logits: bool,
) -> Traced:
    """What the worker does: loads a `.keras` file on TensorFlow and writes its logits.

    Args:
        path: the file.
        folder: where the SavedModel goes.
        classes: name → (module, where it is in the module) of each class of the model, to be found in `paths`.
        paths: the caller's `sys.path`, to which it may have added since this process began.
        signature: of `Signature.to_json`.
        batch: as in `save_logits`.
        from_logits: as in `save_logits`.

    Raises:
        ConversionError: it cannot.
    """
    import keras

    from keras_distill.models.saving import load_model

    sys.path += [item for item in paths if item not in sys.path]
    try:
        known = {name: attrgetter(place)(importlib.import_module(module)) for name, (module, place) in classes.items()}
        # The caller's own model, out of its own process. Its classes need not be registered.
        with keras.saving.custom_object_scope(known):
            model = load_model(path, compile=False, safe_mode=False)
        called = Signature.from_json(signature)
        return save_traced(served_model(model, called, from_logits), folder, called, batch=batch)
    except Exception as error:
        # What a layer's own code raises on another backend can be anything, and Keras wraps it in pages of advice.
        while (cause := error.__cause__ or error.__context__) is not None and isinstance(cause, Exception):
            error = cause
        raise ConversionError(_cannot(f"{type(error).__name__}: {error}")) from error


def _classes_of(model: "keras.Model") -> dict[str, tuple[str, str]]:
    """Name → (module, where it is in the module) of the classes of a model's layers that are not Keras's or ours."""
    from keras_distill._keras_internals import all_layers

    kinds = {type(layer) for layer in all_layers(model)}
    own = [kind for kind in kinds if kind.__module__.partition(".")[0] not in ("keras", "keras_distill")]
    lost = sorted(kind.__name__ for kind in own if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__)
    if lost:
        raise ConversionError(_cannot(f"classes of the program itself or of a function: {', '.join(lost)}"))
    return {kind.__name__: (kind.__module__, kind.__qualname__) for kind in own}


def _cannot(received: str) -> str:
    import keras

    # A worker is on TensorFlow itself.
    backend = keras.config.backend()
    where = "another backend than TensorFlow" if backend == "tensorflow" else f"the backend {backend}"
    expectation = f"on {where} a model must be one that its .keras file gives back on TensorFlow"
    remedy = "Define its classes in a module and let them compute with keras.ops."
    return error_message(expectation, " ".join(received.split())[:400].rstrip("."), f"{remedy} {REMEDY}")
