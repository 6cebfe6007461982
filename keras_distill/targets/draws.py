"""Keras's random functions, reading their numbers off a table: what a Keras layer draws, it draws of a view.

A layer draws for a whole batch at a time. Most draw one number, or one row of numbers, for each item of it: such a
layer makes the views of a whole batch at once. Others draw one number for all items (`RandomCrop` one corner): such a
layer is run for each item by itself. Which it is shows in the shapes that it asks for.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._types import Tensor

# Tries of a rejection sampler that accepts 19 of 20.
_NUM_TRIES = 8


class Draws:
    """What stands in for `keras.random` in a layer.

    Attributes:
        shapes: of all that was drawn since `record` or `begin`.
        num_columns: how much of each row of the table was read.
        pairs_items: whether a permutation of the items was asked for: an item meets another one.
    """

    def __init__(self) -> None:
        self._table: Tensor | None = None
        self._singly = False
        self.record()

    def record(self) -> None:
        """From here on numbers are made up, and written down is what was asked for."""
        self.shapes: list[tuple] = []
        self._table, self.num_columns, self.pairs_items = None, 0, False

    def begin(self, table: Tensor, singly: bool) -> None:
        """From here on numbers are those of `table`, float32 `(items, columns)`, in [0, 1).

        Args:
            table: one row an item.
            singly: whether the table has one row, and all that is drawn comes out of it; otherwise the first axis of
                what is drawn is that of the items.
        """
        self.record()
        self._table, self._singly = table, singly

    def uniform(
        self, shape: Sequence, minval: Any = 0.0, maxval: Any = 1.0, dtype: Any = None, seed: Any = None
    ) -> Tensor:
        """As `keras.random.uniform`."""
        drawn = ops.cast(self._unit(shape), dtype or keras.config.floatx())
        return drawn * ops.cast(maxval - minval, drawn.dtype) + ops.cast(minval, drawn.dtype)

    def randint(self, shape: Sequence, minval: Any, maxval: Any, dtype: Any = "int32", seed: Any = None) -> Tensor:
        """As `keras.random.randint`."""
        return ops.cast(ops.floor(self._unit(shape) * float(maxval - minval)) + float(minval), dtype)

    def normal(
        self, shape: Sequence, mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, seed: Any = None
    ) -> Tensor:
        """As `keras.random.normal`."""
        return ops.cast(mean + stddev * self._normal(shape), dtype or keras.config.floatx())

    def gamma(self, shape: Sequence, alpha: Any, dtype: Any = None, seed: Any = None) -> Tensor:
        """As `keras.random.gamma`."""
        return ops.cast(ops.exp(self._log_gamma(shape, alpha)), dtype or keras.config.floatx())

    def beta(self, shape: Sequence, alpha: Any, beta: Any, dtype: Any = None, seed: Any = None) -> Tensor:
        """As `keras.random.beta`; by logarithms, so that an alpha near 0 gives 0 or 1 and not 0 / 0."""
        share = ops.sigmoid(self._log_gamma(shape, alpha) - self._log_gamma(shape, beta))
        return ops.cast(share, dtype or keras.config.floatx())

    def shuffle(self, values: Tensor, axis: int = 0, seed: Any = None) -> Tensor:
        """Of a batch of items and their partners behind them: everybody changes places with the partner."""
        self.pairs_items = True
        if self._table is None:
            return values
        half = ops.shape(values)[0] // 2
        return ops.concatenate([values[half:], values[:half]], axis=0)

    def seed(self, dtype: str) -> Tensor:
        """A seed of two numbers, for what takes a seed and not its numbers."""
        return ops.cast(self._unit((2,)) * float(2**24), dtype)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"keras.random.{name}, which has no stand-in that replays")

    def _unit(self, shape: Sequence) -> Tensor:
        shape = tuple(shape)
        self.shapes.append(shape)
        if self._table is None:
            return ops.convert_to_tensor(np.random.default_rng(0).random(shape, dtype=np.float32))
        kept = shape if self._singly else shape[1:]
        start, self.num_columns = self.num_columns, self.num_columns + math.prod(kept)
        drawn = self._table[:, start : self.num_columns]
        return ops.reshape(drawn, shape if self._singly else (-1, *kept))

    def _normal(self, shape: Sequence) -> Tensor:
        # The middles of 2²⁴ equal parts of (-1, 1).
        return math.sqrt(2.0) * ops.erfinv(2.0 * self._unit(shape) - (1.0 - 2.0**-24))

    def _log_gamma(self, shape: Sequence, alpha: Any) -> Tensor:
        """The logarithm of a sample of Gamma(alpha, 1).

        Reference:
            Marsaglia, Tsang, "A Simple Method for Generating Gamma Variables", ACM TOMS 26 (2000), sections 2 and 6.
        """
        alpha = ops.cast(alpha, "float32")
        # Sampled at alpha + 1 and brought down by a power of a uniform number: the method wants a shape of at least 1.
        scale = alpha + (1.0 - 1.0 / 3.0)
        tries = (*shape, _NUM_TRIES)
        normal, unit = self._normal(tries), self._unit(tries)
        # One more axis for the tries; a number has none to lose.
        spread = ops.expand_dims(scale, -1) if len(getattr(scale, "shape", ())) else scale
        base = 1.0 + normal / ops.sqrt(9.0 * spread)
        cube = ops.where(base > 0.0, base * base * base, 1.0)
        bound = 0.5 * normal * normal + spread * (1.0 - cube + ops.log(cube))
        is_taken = ops.logical_and(base > 0.0, ops.log(unit + 2.0**-25) < bound)
        first = ops.expand_dims(ops.argmax(ops.cast(is_taken, "int32"), axis=-1), -1)
        chosen = ops.equal(ops.arange(_NUM_TRIES), ops.cast(first, "int32"))
        value = ops.sum(ops.where(chosen, cube, 0.0), axis=-1)
        return ops.log(scale * value) + ops.log(self._unit(shape) + 2.0**-25) / alpha


class DrawingBackend:
    """A layer's backend with `Draws` in the place of its random functions."""

    def __init__(self, backend: Any, draws: Draws):
        self.inner, self.random = backend, draws

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class DrawnSeeds(keras.random.SeedGenerator):
    """Seeds out of `Draws`, for the functions that take a seed generator."""

    def __init__(self, draws: Draws):
        # Not the parent's: it has a state, and what replays has none.
        self.draws = draws

    def next(self, ordered: bool = True) -> Tensor:
        """A seed of the view that is being made."""
        return self.draws.seed("uint32" if keras.config.backend() == "jax" else "int64")
