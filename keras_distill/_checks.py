"""Checks of ranges, shapes and finiteness, and the one form that our errors have.

An error says what was expected, what was received, and the remedy. Nothing here knows Keras.
"""

import difflib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_distill._types import ArrayLike


def error_message(expectation: str, received: object, remedy: str = "") -> str:
    """The one form of an error: what was expected, what was received, and the remedy.

    Args:
        expectation: a whole clause, "temperature must be > 0".
        received: what was given in its place.
        remedy: whole sentences, or nothing.

    Example:
        >>> error_message("temperature must be > 0", -1.0, "Hinton et al. use 1 to 20.")
        'temperature must be > 0; got -1.0. Hinton et al. use 1 to 20.'
    """
    return f"{expectation}; got {received}.{' ' if remedy else ''}{remedy}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question about the nearest of the known names, for a remedy; nothing where none is near.

    Example:
        >>> did_you_mean("distil", ["distill", "ship"])
        'Did you mean distill?'
        >>> did_you_mean("bake", ["distill", "ship"])
        ''
    """
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {nearest[0]}?" if nearest else ""


def check_number(name: str, value: Any, remedy: str = "") -> float:
    """Returns `value` as a float; raises `TypeError` where it is no real number, `ValueError` where it is NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(error_message(f"{name} must be a number", f"{value!r} ({type(value).__name__})", remedy))
    if math.isnan(value):
        raise ValueError(error_message(f"{name} must be a number", "NaN", remedy))
    return float(value)


def check_positive(name: str, value: Any, remedy: str = "") -> float:
    """Returns `value` as a float; raises unless it is finite and > 0."""
    number = check_number(name, value, remedy)
    if not 0.0 < number < math.inf:
        raise ValueError(error_message(f"{name} must be > 0", number, remedy))
    return number


def check_fraction(name: str, value: Any, remedy: str = "") -> float:
    """Returns `value` as a float; raises unless it lies in [0, 1]."""
    number = check_number(name, value, remedy)
    if not 0.0 <= number <= 1.0:
        raise ValueError(error_message(f"{name} must be between 0 and 1", number, remedy))
    return number


def check_count(name: str, value: Any, minimum: int = 1, remedy: str = "") -> int:
    """Returns `value` as an int; raises unless it is a whole number >= `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(error_message(f"{name} must be a whole number", f"{value!r} ({type(value).__name__})", remedy))
    if value < minimum:
        raise ValueError(error_message(f"{name} must be >= {minimum}", int(value), remedy))
    return int(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...], remedy: str = "") -> str:
    """Returns `value`; raises unless it is one of `choices`."""
    if value not in choices:
        expectation = f"{name} must be one of {', '.join(repr(choice) for choice in choices)}"
        raise ValueError(error_message(expectation, repr(value), remedy or did_you_mean(str(value), choices)))
    return value


def check_finite(name: str, values: ArrayLike, remedy: str = "") -> np.ndarray:
    """Returns `values` as an array; raises where any of them is NaN or infinite, and says how many."""
    array = np.asarray(values)
    num_bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if num_bad:
        raise ValueError(
            error_message(f"{name} must be finite", f"{num_bad} of {array.size} values NaN or infinite", remedy)
        )
    return array


def cast_exactly(name: str, values: ArrayLike, dtype: Any) -> np.ndarray:
    """Returns `values` as a contiguous array of `dtype`; raises where whole numbers would be cut or wrapped.

    Args:
        name: what the values are called in an error.
        values: an array.
        dtype: a NumPy type or its name; `None`, and a name that NumPy does not know, leave the values as they are.

    Raises:
        ValueError: `dtype` is an integer or a boolean and does not hold every value.

    Example:
        >>> cast_exactly("the image", np.array([0.0, 255.0]), "uint8")
        array([  0, 255], dtype=uint8)
        >>> cast_exactly("the image", np.array([0.0, 0.5]), "uint8")
        Traceback (most recent call last):
        ValueError: the image must be whole numbers of type uint8; got 0.5 (1 of 2 values). Scale ...
    """
    array = np.asarray(values)
    try:
        wanted = np.dtype(dtype) if dtype is not None else array.dtype
    except TypeError:
        wanted = array.dtype
    # An image in [0, 1] would become all black in uint8.
    if wanted.kind in "iub" and array.dtype.kind in "iuf" and not np.can_cast(array.dtype, wanted, "safe"):
        with np.errstate(invalid="ignore"):
            cast = array.astype(wanted)
        differs = cast != array
        if differs.any():
            received = f"{array[differs][0]:g} ({np.count_nonzero(differs)} of {array.size} values)"
            remedy = "Scale the data as the model was trained, such as from 0 to 255 for images in uint8."
            raise ValueError(error_message(f"{name} must be whole numbers of type {wanted}", received, remedy))
        array = cast
    return np.ascontiguousarray(array, dtype=wanted)


def check_labels(name: str, labels: ArrayLike, num_classes: int, remedy: str = "") -> np.ndarray:
    """Returns `labels`, integers of shape `(num_items,)`; raises where one is not in [0, num_classes)."""
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        received = f"an array of shape {array.shape}, dtype {array.dtype}"
        raise ValueError(error_message(f"{name} must be integers of shape (num_items,)", received, remedy))
    outside = array[(array < 0) | (array >= num_classes)]
    if outside.size:
        raise ValueError(
            error_message(f"{name} must be in [0, {num_classes})", f"{outside[0]} ({outside.size} such)", remedy)
        )
    return array
