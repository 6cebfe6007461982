"""Random numbers that depend on `(seed, id, view, draw)` and nothing else: the same on every machine and backend.

They are whole numbers until the last step, one exact conversion: there is nothing for a backend to round.
"""

from typing import Any

import keras
import numpy as np

from keras_distill._types import ArrayLike, Tensor

# SplitMix64's increment and multipliers (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
_INCREMENT, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def hashes(seed: int | Tensor, ids: ArrayLike, views: ArrayLike, num_draws: int) -> Tensor:
    """Random 64-bit integers that depend on `(seed, id, view, draw)` and nothing else.

    Args:
        seed: any integer in [0, 2⁶³).
        ids: integers `(batch,)`.
        views: integers `(batch,)`.
        num_draws: how many are wanted for each item.

    Returns:
        uint64 `(batch, num_draws)`: on TensorFlow a tensor, inside of a graph too; elsewhere NumPy's array.

    Example:
        >>> bool((np.asarray(hashes(7, [3, 4], [0, 1], 2))[1] == np.asarray(hashes(7, [4], [1], 2))[0]).all())
        True

    Reference:
        Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 9.
    """
    number: Any = _in_tensorflow if keras.config.backend() == "tensorflow" else _in_numpy
    # NumPy warns where a single number overflows, and in no other case.
    with np.errstate(over="ignore"):
        state = _mix(number(ids) * number(_INCREMENT) + _mix(number(seed) + number(1), number), number)
        state = _mix(state + number(views) * number(_FIRST) + number(_INCREMENT), number)
        steps = number(np.arange(1, num_draws + 1)) * number(_INCREMENT)
        return _mix(state[:, None] + steps[None, :], number)


def uniform(seed: int | Tensor, ids: ArrayLike, views: ArrayLike, num_draws: int) -> Tensor:
    """Numbers in [0, 1), multiples of 2⁻²⁴, made of `hashes`; float32 `(batch, num_draws)`."""
    drawn = hashes(seed, ids, views, num_draws)
    if isinstance(drawn, np.ndarray):
        return (drawn >> np.uint64(40)).astype("float32") * np.float32(2.0**-24)
    import tensorflow as tf

    top = tf.bitwise.right_shift(drawn, tf.constant(40, tf.uint64))
    return tf.cast(tf.cast(top, tf.int64), tf.float32) * np.float32(2.0**-24)


def modulo(drawn: Tensor, limit: int) -> Tensor:
    """Hashes as integers in [0, limit), int64."""
    if isinstance(drawn, np.ndarray):
        return (drawn % np.uint64(limit)).astype(np.int64)
    import tensorflow as tf

    return tf.cast(tf.math.floormod(drawn, tf.constant(limit, tf.uint64)), tf.int64)


def _mix(state: Any, number: Any) -> Any:
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        state = _xor_shifted(state, shift) * number(factor)
    return _xor_shifted(state, 31)


def _xor_shifted(state: Any, shift: int) -> Any:
    if isinstance(state, (np.ndarray, np.uint64)):
        return state ^ (state >> np.uint64(shift))
    import tensorflow as tf

    return tf.bitwise.bitwise_xor(state, tf.bitwise.right_shift(state, tf.constant(shift, tf.uint64)))


def _in_numpy(values: Any) -> Any:
    return np.asarray(values).astype(np.uint64)[()]


def _in_tensorflow(values: Any) -> Any:
    import tensorflow as tf

    return tf.constant(values, tf.uint64) if isinstance(values, int) else tf.cast(values, tf.uint64)
