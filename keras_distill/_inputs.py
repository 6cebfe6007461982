"""Inputs of a model as data sets hold them: one array, or a dict of arrays by name, all of as many rows.

Whoever handles inputs asks here, so that nobody else needs to know which of the two they are. Nothing here knows Keras.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_distill._checks import error_message
from keras_distill._types import Inputs, Shape


def arrays_by_name(inputs: Inputs) -> dict[str, np.ndarray]:
    """The arrays with their names; that of a single array is "".

    Example:
        >>> list(arrays_by_name(np.zeros(3))), list(arrays_by_name({"ids": np.zeros(3)}))
        ([''], ['ids'])
    """
    return dict(inputs) if isinstance(inputs, dict) else {"": inputs}


def map_arrays(function: Callable[[np.ndarray], Any], inputs: Inputs) -> Any:
    """What `function` makes of the array, or a dict of what it makes of each.

    Example:
        >>> map_arrays(len, np.zeros(3)), map_arrays(len, {"ids": np.zeros(3)})
        (3, {'ids': 3})
    """
    if isinstance(inputs, dict):
        return {name: function(array) for name, array in inputs.items()}
    return function(inputs)


def num_rows(inputs: Inputs) -> int:
    """How many examples there are.

    Raises:
        ValueError: a dict of nothing, or arrays of different lengths.

    Example:
        >>> num_rows({"ids": np.zeros((3, 8)), "mask": np.zeros((3, 8))})
        3
    """
    lengths = {name: len(array) for name, array in arrays_by_name(inputs).items()}
    if len(set(lengths.values())) != 1:
        received = ", ".join(f"{length} of {name!r}" for name, length in lengths.items()) or "none"
        raise ValueError(
            error_message("named inputs must be one or more arrays of as many rows", received, "Drop no row of one.")
        )
    return next(iter(lengths.values()))


def take_rows(inputs: Inputs, where: "np.ndarray | slice") -> Inputs:
    """The rows at positions, or of a slice, of every array.

    Example:
        >>> take_rows({"ids": np.arange(5)}, slice(2))
        {'ids': array([0, 1])}
    """
    return map_arrays(lambda array: array[where], inputs)


def example_shape(inputs: Inputs) -> Shape:
    """The shape of one example, without the batch axis: a tuple, or a dict of tuples.

    Example:
        >>> example_shape(np.zeros((3, 8, 8, 1))), example_shape({"ids": np.zeros((3, 16))})
        ((8, 8, 1), {'ids': (16,)})
    """
    return map_arrays(lambda array: tuple(array.shape[1:]), inputs)


def only_array(inputs: Inputs, who: str) -> np.ndarray:
    """The array where there is one, whether or not it has a name.

    Args:
        inputs: one array or a dict.
        who: what takes one alone, for the error: "the family mlp".

    Raises:
        ValueError: there are several.
    """
    arrays = arrays_by_name(inputs)
    if len(arrays) != 1:
        remedy = "Join them into one array, or build a model of your own that takes them by name."
        raise ValueError(error_message(f"{who} must have inputs of one array", ", ".join(arrays), remedy))
    return next(iter(arrays.values()))


def described(inputs: Inputs) -> str:
    """Dtypes and shapes in place of values.

    Example:
        >>> described(np.zeros((2, 8), "float32")), described({"ids": np.zeros((2, 8), "int32")})
        ('float32[2, 8]', '{ids: int32[2, 8]}')
    """
    shown = {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays_by_name(inputs).items()}
    return shown[""] if "" in shown else "{" + ", ".join(f"{name}: {text}" for name, text in shown.items()) + "}"
