"""Data that already lies on this machine: the folder that the environment variable `KERAS_DISTILL_DATA` names."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_distill._checks import error_message

VARIABLE = "KERAS_DISTILL_DATA"


def find(*names: str) -> Path | None:
    """The first of `names` that exists in the folder `KERAS_DISTILL_DATA`, or `None`.

    Raises:
        NotADirectoryError: the variable is set to something that is no folder: a typing error that would
            otherwise end in a long download.
    """
    setting = os.environ.get(VARIABLE)
    if not setting:
        return None
    folder = Path(setting).expanduser()
    if not folder.is_dir():
        raise NotADirectoryError(
            error_message(f"{VARIABLE} must be a folder", f"{setting!r}", "Unset it to download instead.")
        )
    return next((folder / name for name in names if (folder / name).exists()), None)


def read_arrays(path: Path, required: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads every array of an `.npz`, never unpickling anything.

    Args:
        path: the file.
        required: names of arrays that must be there, each whole or in named parts, `NAME/PART`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a corrupt file, one with pickled objects, or one that lacks a required array.
    """
    if not path.is_file():
        raise FileNotFoundError(error_message(f"{path!s} must be an .npz file", "no such file"))
    name = ""
    try:
        # Opened here, since NumPy leaves a file open that it cannot read.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {}
            for name in archive.files:
                arrays[name] = archive[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        received, remedy = f"{error}", "Write it again with numpy.savez."
        if "allow_pickle" in received:
            # NumPy advises to unpickle, which runs whatever the file says.
            received = f"Python objects in {name}" if name else "a file of another kind"
            remedy = "Write it with numpy.savez, from arrays of numbers or of fixed-length strings alone."
        raise ValueError(
            error_message(f"{path!s} must be a readable .npz of plain arrays", received, remedy)
        ) from error
    missing = [
        name for name in required if name not in arrays and not any(key.startswith(f"{name}/") for key in arrays)
    ]
    if missing:
        received = f"no {', '.join(missing)} among {', '.join(arrays) or 'no arrays'}"
        raise ValueError(error_message(f"{path!s} must be an .npz file that holds {', '.join(required)}", received))
    return arrays
