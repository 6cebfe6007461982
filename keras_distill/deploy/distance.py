"""How far an output is from the one expected, in its own unit and as a share of how much it varies. NumPy alone."""

import math
from dataclasses import dataclass

import numpy as np

# What stays in a processor's cache: twice as fast as the whole at once.
VALUES_AT_A_TIME = 1 << 16
LARGEST_USUAL_SPREAD = 10.0
SMALLEST_SHARE = 1e-3
# An error of half the spread: nothing that is left tells one input from another.
LOST = 0.5
# Of fewer rows nobody knows how far one value varies by itself.
FEWEST_ROWS_FOR_A_VALUE = 8


@dataclass(frozen=True)
class Distance:
    """How far an output is from the one expected, both `(num_rows, num_values)` and finite.

    Attributes:
        num_rows: how many rows were compared.
        num_values: how many values a row has.
        max_abs_error: the largest difference.
        rmse: root of the mean squared difference.
        spread: how much the expected values vary from row to row, the root of their mean variance.
        margin_rmse: `rmse` of what an answer depends on: of classes, after each row's mean was taken off.
        margin_spread: `spread` likewise.
        absolute: the allowed distance of a value near 0, of the value where it is largest.
        num_far: how many values are farther off than allowed.
        num_lost_rows: how many rows have little in common with the expected ones: their error is more than half the
            spread.
        lost_values: the values that have little in common with the expected ones: their error is more than half their
            own spread, which is at least a twentieth of the widest.
        lost_faint_values: those of a smaller spread.
    """

    num_rows: int
    num_values: int
    max_abs_error: float
    rmse: float
    spread: float
    margin_rmse: float
    margin_spread: float
    absolute: float
    num_far: int
    num_lost_rows: int
    lost_values: tuple[int, ...]
    lost_faint_values: tuple[int, ...]

    @property
    def relative_error(self) -> float:
        """The error as a share of the spread; 0 without an error."""
        return _share(self.rmse, self.spread)

    @property
    def relative_margin_error(self) -> float:
        """The error of what an answer depends on, as a share of its spread."""
        return _share(self.margin_rmse, self.margin_spread)


def distance_of(
    expected: np.ndarray, found: np.ndarray, relative: float, absolute: float, *, of_classes: bool = False
) -> Distance:
    """Compares two outputs in pieces that fit into memory.

    Args:
        expected: the reference, float `(num_rows, num_values)`, finite.
        found: the artifact's, of the same shape.
        relative: allowed share of a value.
        absolute: allowed distance beside it, in the output's unit, of a value that varies by 10 at most; of one that
            varies more, what is near 0 is rounded as what it was summed up from, and the allowed distance grows.
        of_classes: whether a row's mean means nothing, as before a softmax.

    Example:
        >>> distance_of(np.array([[1.0], [3.0]]), np.array([[1.5], [3.0]]), 0.0, 0.1).num_far
        1
    """
    num_rows, num_values = expected.shape
    step = max(1, VALUES_AT_A_TIME // num_values)
    pieces = [slice(start, start + step) for start in range(0, num_rows, step)]
    mean = expected.mean(0, dtype="float64")
    error, square, variance = (np.zeros(num_values) for _ in range(3))
    margin_error = margin_square = margin_variance = largest = 0.0
    for piece in pieces:
        wanted = expected[piece].astype("float64")
        difference = found[piece] - wanted
        largest = max(largest, float(np.max(np.abs(difference))))
        error += np.sum(difference**2, 0)
        square += np.sum(wanted**2, 0)
        variance += np.sum((wanted - mean) ** 2, 0)
        if of_classes:
            wanted -= wanted.mean(-1, keepdims=True)
            difference -= difference.mean(-1, keepdims=True)
            margin_error += float(np.sum(difference**2))
            margin_square += float(np.sum(wanted**2))
            margin_variance += float(np.sum((wanted - (mean - mean.mean())) ** 2))
    size = num_rows * num_values
    # Of a few rows little is known about the spread, of one nothing: then a share of the values' size stands in.
    share = 1.0 / num_rows if num_rows < FEWEST_ROWS_FOR_A_VALUE else SMALLEST_SHARE
    widths, sizes = np.sqrt(variance / num_rows), np.sqrt(square / num_rows)

    def spread_of(variance: float, square: float) -> float:
        return max(math.sqrt(variance / size), share * math.sqrt(square / size))

    rmse, spread = math.sqrt(error.sum() / size), spread_of(variance.sum(), square.sum())
    margin_rmse, margin_spread = rmse, spread
    if of_classes:
        margin_rmse, margin_spread = math.sqrt(margin_error / size), spread_of(margin_variance, margin_square)
    # Each value has its own, for a price may stand beside a rate.
    allowed = absolute * np.maximum(1.0, np.maximum(widths, share * sizes) / LARGEST_USUAL_SPREAD)
    num_far = num_lost_rows = 0
    for piece in pieces:
        difference = found[piece].astype("float64") - expected[piece]
        if math.isfinite(absolute):
            num_far += int(np.count_nonzero(np.abs(difference) > allowed + relative * np.abs(expected[piece])))
        if of_classes:
            difference -= difference.mean(-1, keepdims=True)
        num_lost_rows += int(np.count_nonzero(np.sqrt(np.mean(difference**2, -1)) > LOST * margin_spread))
    lost = faint = np.zeros(num_values, bool)
    if num_rows >= FEWEST_ROWS_FOR_A_VALUE:
        # What varies by less than float32 resolves does not vary.
        lost = (np.sqrt(error / num_rows) > LOST * np.maximum(widths, 0.01 * sizes)) & (widths > 1e-6 * sizes)
        faint = widths < 0.05 * widths.max()
    return Distance(
        num_rows,
        num_values,
        largest,
        rmse,
        spread,
        margin_rmse,
        margin_spread,
        float(allowed.max()),
        num_far,
        num_lost_rows,
        tuple(np.flatnonzero(lost & ~faint).tolist()),
        tuple(np.flatnonzero(lost & faint).tolist()),
    )


def explained_variance(targets: np.ndarray, rows: np.ndarray) -> float | None:
    """R²: the share of the targets' variance that the values explain, the mean over the values that vary.

    Args:
        targets: float64 `(num_rows, num_values)`.
        rows: the same shape.

    Returns:
        At most 1; negative where the targets' mean would be nearer; `None` where no target varies.

    Example:
        >>> explained_variance(np.array([[0.0], [2.0]]), np.array([[0.5], [1.5]]))
        0.75
    """
    variance = np.var(targets, 0)
    varies = variance > 0.0
    if not varies.any():
        return None
    error = np.mean((rows[:, varies] - targets[:, varies]) ** 2, 0)
    return float(np.mean(1.0 - error / variance[varies]))


def drop_beyond_chance(targets: np.ndarray, rows: np.ndarray, found: np.ndarray) -> float:
    """How much R² drops from `rows` to `found`, less what chance explains: 1.645 standard errors of the paired rows.

    Rounding takes some values nearer to their targets and others away. Of fewer than eight rows no error is known: 0.

    Args:
        targets: float64 `(num_rows, num_values)`.
        rows: the reference, the same shape.
        found: the artifact's, the same shape.
    """
    variance = np.var(targets, 0)
    varies = variance > 0.0
    if len(targets) < FEWEST_ROWS_FOR_A_VALUE or not varies.any():
        return 0.0
    more = (found[:, varies] - targets[:, varies]) ** 2 - (rows[:, varies] - targets[:, varies]) ** 2
    drops = np.mean(more / variance[varies], -1)
    return float(drops.mean() - 1.645 * drops.std(ddof=1) / math.sqrt(len(drops)))


def _share(error: float, spread: float) -> float:
    return 0.0 if error == 0.0 else (error / spread if spread else math.inf)
