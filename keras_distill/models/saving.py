"""Reading back `.keras` files, those that hold classes of ours too; every way it can fail is said in one sentence."""

import os
import zipfile
from collections.abc import Callable
from typing import Any

import keras

from keras_distill._checks import error_message

# Up to so many bytes members may be packed, as other tools than Keras do.
_SMALL = 64 << 20


def load_model(
    path: str | os.PathLike, teacher: Callable | None = None, *, compile: bool = True, safe_mode: bool = True
) -> Any:
    """Loads a `.keras` file, whichever of our classes or of Keras's it holds.

    Args:
        path: the file.
        teacher: given to a loaded `Distiller`, which was saved without it.
        compile: whether the model comes with its optimizer, if it was saved with one.
        safe_mode: refuse files that would run code of their own (Lambda layers).

    Raises:
        ValueError: there is no such file; it is no `.keras` file or is damaged; it holds code, or layers that
            are not registered.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "student.keras"
        >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(path)
        >>> load_model(path).output_shape
        (None, 3)
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(
            error_message("a model must be a .keras file", f"{path}, which does not exist", "Check the path.")
        )
    if not path.endswith(".keras") or not zipfile.is_zipfile(path):
        remedy = "Save the model with model.save('NAME.keras')."
        raise ValueError(error_message("a model must be a .keras file", f"{path}, which is none", remedy))
    _check_unpacked_size(path)
    # Keras finds a registered class only once its module was imported, and ours are imported on first use.
    from keras_distill import distillation, losses, quantize_aware, specialists, teachers  # noqa: F401

    try:
        model = keras.saving.load_model(path, compile=compile, safe_mode=safe_mode)
    except Exception as error:
        # Keras raises whatever the file made its parts raise.
        raise ValueError(_explain(path, error)) from error
    if teacher is not None:
        model.set_teacher(teacher)
    return model


def _check_unpacked_size(path: str) -> None:
    """Raises `ValueError` where a file would unpack to far more than it is: Keras stores members as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(member.file_size for member in archive.infolist())
    except (ValueError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(_explain(path, error)) from error
    if num_bytes > max(_SMALL, 4 * os.path.getsize(path)):
        expected = "have about its own size once unpacked"
        received = f"{num_bytes:,} bytes out of {os.path.getsize(path):,}"
        raise ValueError(
            error_message(f"{path} must {expected}", received, "No model.save() wrote it: do not trust it.")
        )


def _explain(path: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "safe_mode" in text or "unsafe" in text.lower():
        remedy = "If you trust its author, pass safe_mode=False (--trust-code on the command line): the code runs here."
        return error_message(
            f"{path} must contain no Python code", "a Lambda layer or another function stored as code", remedy
        )
    if "Could not locate" in text or "could not be found" in text or "not registered" in text:
        remedy = "Import the module that registers it (--import MODULE on the command line)."
        return error_message(f"{path} must consist of layers that Keras knows", text[:240], remedy)
    remedy = "The file may be damaged, or saved by another version of Keras: save the model again."
    return error_message(
        f"{path} must be a .keras file that Keras opens", f"{type(error).__name__}: {text[:240]}", remedy
    )
