"""Sequences of different length, padded in memory and not on disk: stores whose items are the tokens that count.

Such a store is as any other; its `id_scheme` is `"token"`, and an id is the place of a token among those of all
sequences that are no padding, one after the other. Whoever joins it has the mask, and the mask tells the ids.
"""

import keras
import numpy as np

from keras_distill._checks import error_message
from keras_distill._types import ArrayLike, TensorTree

TOKEN = "token"


def token_mask(mask: str | ArrayLike, inputs: TensorTree) -> np.ndarray:
    """Which tokens count, bool `(num_sequences, tokens)`.

    Args:
        mask: the name of an input, or an array `(num_sequences, tokens)`, not 0 at tokens that count.
        inputs: an array or a dict of arrays, `(num_sequences, …)`.

    Raises:
        ValueError: no such input, another shape, no numbers, or no token that counts.
    """
    if isinstance(mask, str):
        names = list(inputs) if isinstance(inputs, dict) else []
        if mask not in names:
            received = f"{mask!r}; the inputs are {', '.join(map(repr, names)) or 'one array without a name'}"
            raise ValueError(error_message("mask must name an input, or be an array", received))
        mask = inputs[mask]
    values = np.asarray(mask)
    if values.dtype.kind not in "biuf" or (values.dtype.kind == "f" and not np.isfinite(values).all()):
        received = f"dtype {values.dtype}" if values.dtype.kind != "f" else "NaN or infinite ones"
        raise ValueError(error_message("mask must hold booleans or finite numbers", received, "0 is padding."))
    found = values != 0
    num_sequences = len(keras.tree.flatten(inputs)[0])
    if found.ndim != 2 or len(found) != num_sequences:
        expectation = f"mask must have shape ({num_sequences}, tokens), one row a sequence"
        raise ValueError(error_message(expectation, found.shape))
    if not found.any():
        raise ValueError(error_message("mask must be other than 0 at one token or more", "padding alone"))
    return found


def token_ids(mask: np.ndarray) -> np.ndarray:
    """The id of each token, int64 `(num_sequences, tokens)`; at padding that of a token nearby, for some number.

    Example:
        >>> token_ids(np.array([[True, True, False], [False, True, False]])).tolist()
        [[0, 1, 1], [1, 2, 2]]
    """
    ids = np.cumsum(mask.reshape(-1), dtype=np.int64).reshape(mask.shape) - 1
    return np.maximum(ids, 0)
