"""Fingerprints: whether a teacher or a dataset is the one that a store was made from."""

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import error_message

if TYPE_CHECKING:
    pass


def fingerprint(teacher: Callable) -> str:
    """A hash of what a teacher is: its configuration and its weights, whatever names Keras gave its layers.

    Args:
        teacher: a Keras model, or anything with an attribute `fingerprint`.

    Returns:
        32 hexadecimal digits.

    Raises:
        ValueError: a callable of which nothing is known.

    Example:
        >>> def model(units):
        ...     return keras.Sequential([keras.Input((2,)), keras.layers.Dense(units, kernel_initializer="ones")])
        >>> fingerprint(model(3)) == fingerprint(model(3)), fingerprint(model(3)) == fingerprint(model(4))
        (True, False)
    """
    given = getattr(teacher, "fingerprint", None)
    if isinstance(given, str):
        return given
    if not isinstance(teacher, keras.Model):
        remedy = "Pass teacher_fingerprint=…, any text that changes whenever the teacher does."
        raise ValueError(
            error_message("the teacher must be a Keras model or have a fingerprint", repr(teacher), remedy)
        )
    digest = hashlib.sha256()
    try:
        config = keras.saving.serialize_keras_object(teacher)
    except NotImplementedError:
        # A subclassed model that cannot be written down is known by its class and its weights.
        config = {"class_name": type(teacher).__name__, "module": type(teacher).__module__}
    digest.update(json.dumps(_nameless(config), sort_keys=True, default=repr).encode())
    for weight in teacher.weights:
        values = np.ascontiguousarray(ops.convert_to_numpy(weight))
        digest.update(f"{values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:32]


def inputs_fingerprint(inputs: Any) -> str:
    """A hash of arrays: their shapes, dtypes, and up to 256 items evenly spaced from the first to the last."""
    digest = hashlib.sha256()
    for array in keras.tree.flatten(inputs):
        digest.update(f"{array.dtype} {array.shape}".encode())
        for position in np.unique(np.linspace(0, len(array) - 1, 256).astype(np.int64)):
            digest.update(np.ascontiguousarray(array[position]).tobytes())
    return digest.hexdigest()[:32]


def _nameless(config: Any) -> Any:
    """`config` without the names of layers: Keras numbers them by how many were made before."""
    names: dict[str, str] = {}

    def collect(part: Any) -> None:
        if isinstance(part, dict):
            if isinstance(part.get("name"), str):
                names.setdefault(part["name"], f"name {len(names)}")
            for value in part.values():
                collect(value)
        elif isinstance(part, (list, tuple)):
            for value in part:
                collect(value)

    def rename(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: rename(value) for key, value in part.items() if key != "compile_config"}
        if isinstance(part, (list, tuple)):
            return [rename(value) for value in part]
        return names.get(part, part) if isinstance(part, str) else part

    collect(config)
    return rename(config)
