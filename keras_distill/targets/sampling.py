"""Sampled rows: a few classes drawn from all of a teacher's, so that in expectation they are the whole target.

The k largest logits leave the same classes out every time, and a student inherits that. Here every class is kept with a
known probability, and what is kept is weighted by its reciprocal (Horvitz and Thompson's estimator). Of all ways to
draw k numbers that are p in expectation this one has the smallest squared error: a class with more than a threshold τ
is certain, and of the others each is kept with the probability p / τ and weighs τ. The certain shares and the drawn
ones, (k − certain) · τ, sum to one whatever is drawn, so no row is louder than another.

NumPy in double precision, not the backend's arithmetic: a share of 1e-9 among 32,000 others is lost in a cumulative sum
of float32. The format is in `store.py`, the loss in `keras_distill.losses`.

Reference:
    Fearnhead, Clifford, "On-line inference for hidden Markov models via particle filters", J. R. Stat. Soc. B 65, 2003,
    section 3: the threshold, and that it is optimal. Madow, Annals of Mathematical Statistics 20, 1949: systematic
    sampling. Anshumann et al., "Sparse Logit Sampling", arXiv:2503.16870: sampled targets for distillation.
"""

import numpy as np

from keras_distill._checks import error_message
from keras_distill.targets.manifest import NUM_COUNTS

# Of a chunk's cumulative sums in double precision: 1 MiB, which a cache holds.
_CLASSES_AT_ONCE = 1 << 17
# A class this much (relatively) below the threshold is certain too, so that no rounding makes room for it twice.
_MARGIN = 1e-6


def uniforms(seed: int, rows: np.ndarray, num_places: int = 1) -> np.ndarray:
    """A number in [0, 1) for each place of each row: the same for the same seed and row, whoever asks for it.

    Args:
        seed: in [0, 2⁶³).
        rows: int64 `(n,)`, places in a store: view · num_items + id.
        num_places: decisions a row.

    Returns:
        float64 `(n, num_places)`.

    Example:
        >>> numbers = uniforms(0, np.arange(1000), 2)
        >>> bool(np.array_equal(numbers[7:9], uniforms(0, np.array([7, 8]), 2))), round(float(numbers.mean()), 1)
        (True, 0.5)
    """
    # Whole numbers wrap around, as SplitMix64 has it.
    with np.errstate(over="ignore"):
        state = _mixed(np.asarray(rows, np.uint64) + _mixed(np.array([seed], np.uint64)))
        places = _mixed(np.arange(1, num_places + 1, dtype=np.uint64))
        state = _mixed(state[:, None] + places)
    return (state >> np.uint64(11)) * 2.0**-53


def thresholds(largest: np.ndarray, log_rest: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many classes are certain, and the share from which on they are.

    With b certain classes τ is what the others have, over the k − b places that are left; b is the smallest for which
    the (b + 1)-th share is below τ.

    Args:
        largest: `(n, k)`, the largest logits over the temperature, falling.
        log_rest: `(n,)`, the log-sum-exp of all others; −inf where there are none.

    Returns:
        The number of certain classes, int64 `(n,)`; log τ on the scale of `largest`, `(n,)`; the log-sum-exp of all.

    Example:
        >>> shares = np.array([[0.5, 0.2, 0.1]])  # and 0.2 in all others
        >>> certain, log_threshold, _ = thresholds(np.log(shares), np.log([0.2]))
        >>> certain.tolist(), np.exp(log_threshold).round(6).tolist()  # 0.25 for two places
        ([1], [0.25])
    """
    k = largest.shape[-1]
    # Of each column and all that follow it, summed from the end so that a small rest is not lost beside what is large.
    backwards = np.concatenate([log_rest[:, None], largest[:, ::-1]], axis=-1)
    log_sums = np.logaddexp.accumulate(backwards, axis=-1)[:, :0:-1]
    log_thresholds = log_sums - np.log(k - np.arange(k))
    is_drawn = largest < log_thresholds - _MARGIN
    num_certain = np.where(is_drawn.any(axis=-1), is_drawn.argmax(axis=-1), k)
    # Where all k are certain nothing else has a share, and any threshold below the smallest of them is right.
    nothing_drawn = np.concatenate([log_thresholds, largest[:, -1:]], axis=-1)
    return num_certain, np.take_along_axis(nothing_drawn, num_certain[:, None], axis=-1)[:, 0], log_sums[:, 0]


def draw(
    logits: np.ndarray, largest_ids: np.ndarray, uniforms: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """k classes of each row, each at most once, and how many 255ths of the target each stands for.

    Args:
        logits: float32 `(n, num_classes)`.
        largest_ids: integers `(n, k)`, the classes of the k largest of them, falling.
        uniforms: float64 `(n, 2)`, in [0, 1): which classes, and how their shares are rounded.
        temperature: at which the shares are those of the target.

    Returns:
        The classes, int64 `(n, k)`, the one with the largest logit first; and counts, uint8 `(n, k)`, which sum to 255
        in every row. A class is in the row with a count of 255 times its share in expectation.

    Raises:
        ValueError: logits that are not finite.

    Example:
        >>> logits = np.log(np.array([[0.5, 0.2, 0.1, 0.1, 0.1]], "float32")).repeat(4000, axis=0)
        >>> ids, counts = draw(logits, np.tile([0, 1, 2], (4000, 1)), uniforms(0, np.arange(4000), 2), 1.0)
        >>> ids[0].tolist(), counts[0].tolist(), sorted(set(counts[:, 0].tolist()))  # 255 / 2 is rounded either way
        ([0, 1, 3], [128, 63, 64], [127, 128])
        >>> (np.bincount(ids.ravel(), counts.ravel()) / 4000 / 255).round(2).tolist()
        [0.5, 0.2, 0.1, 0.1, 0.1]
    """
    num_bad = logits.size - int(np.count_nonzero(np.isfinite(logits)))
    if num_bad:
        received = f"{num_bad} NaN or infinite values"
        raise ValueError(
            error_message("the teacher's logits must be finite", received, "Look at the teacher's inputs and weights.")
        )
    size = max(1, _CLASSES_AT_ONCE // logits.shape[-1])
    parts = []
    for start in range(0, len(logits), size):
        chunk = slice(start, start + size)
        parts.append(_drawn(logits[chunk], largest_ids[chunk], uniforms[chunk], temperature))
    ids, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
    return ids, counts


def _drawn(
    logits: np.ndarray, largest_ids: np.ndarray, uniforms: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    k = largest_ids.shape[-1]
    shares, num_certain, cumulative = inclusion(logits, largest_ids, temperature)
    ids = largest_ids.astype(np.int64)
    for row in np.flatnonzero(num_certain < k).tolist():
        ids[row, num_certain[row] :] = systematic(cumulative[row], k - num_certain[row], uniforms[row, 0])
    order = np.argsort(-np.take_along_axis(logits, ids, axis=-1), axis=-1, kind="stable")
    # What is certain has the largest logits, and all that is drawn has the same share.
    return np.take_along_axis(ids, order, axis=-1), rounded(shares, uniforms[:, 1:])


def rounded(shares: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Shares `(n, k)` as whole 255ths that sum to 255, each up or down, and right in expectation; uint8 `(n, k)`.

    The marks of a ruler with 255 of them, laid at `uniforms` `(n, 1)`: how many fall into each share.
    """
    ends = np.cumsum(shares, axis=-1) * NUM_COUNTS
    ends[:, -1] = NUM_COUNTS
    return np.diff(np.floor(ends + uniforms), axis=-1, prepend=0.0).astype(np.uint8)


def inclusion(
    logits: np.ndarray, largest_ids: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The shares that a row's k places have, how many of them are certain, and the line from which the others come.

    Args:
        logits: float32 `(n, num_classes)`, finite.
        largest_ids: integers `(n, k)`, the classes of the k largest of them, falling.
        temperature: T > 0.

    Returns:
        float64 `(n, k)`, which sum to one: of the certain classes their own, of each drawn one the threshold. The
        number of certain ones, int64 `(n,)`. And the cumulative shares of all other classes, float64
        `(n, num_classes)`, on a scale of their own.
    """
    k = largest_ids.shape[-1]
    largest = np.take_along_axis(logits, largest_ids, axis=-1)
    relative = (largest.astype(np.float64) - largest[:, -1:]) / temperature
    # Relative to the k-th largest: beside it nothing that may be drawn is lost to rounding. Each of the k is 1 here.
    line = np.exp(np.minimum((logits - largest[:, -1:]) / np.float32(temperature), 0.0))
    rest = np.maximum(line.sum(axis=-1, dtype=np.float64) - k, 0.0)
    with np.errstate(divide="ignore"):
        num_certain, log_threshold, log_total = thresholds(relative, np.log(rest))
    is_certain = np.arange(k) < num_certain[:, None]
    shares = np.exp(np.where(is_certain, relative, log_threshold[:, None]) - log_total[:, None])
    # The largest class that is not certain has at most num_classes times the k-th's share: no overflow.
    np.put_along_axis(line, largest_ids, np.exp(np.where(is_certain, -np.inf, relative)).astype(line.dtype), axis=-1)
    return shares, num_certain, np.cumsum(line, axis=-1, dtype=np.float64)


def systematic(cumulative: np.ndarray, num_drawn: int, uniform: float | np.ndarray) -> np.ndarray:
    """Classes at evenly spaced points of the line on which each has the length of its share: Madow's sampling.

    Args:
        cumulative: float64 `(num_classes,)`, sums of shares, none of them more than a `num_drawn`-th of all.
        num_drawn: how many.
        uniform: where the first point lies, in [0, 1), as a share of the distance between two.

    Returns:
        int64 `(num_drawn,)`, rising; `(draws, num_drawn)` for `uniform` `(draws, 1)`.
    """
    points = (np.arange(num_drawn) + uniform) * (cumulative[-1] / num_drawn)
    # Rounded up, the last point would lie behind the end.
    return np.searchsorted(cumulative, np.minimum(points, np.nextafter(cumulative[-1], 0.0)), side="right")


def _mixed(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output function; uint64, shaped as `state`."""
    state = (state + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
