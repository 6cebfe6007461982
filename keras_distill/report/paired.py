"""Two models on the same examples: error rates, differences and their intervals, of one training each or of several.

Over several trainings examples and seeds are crossed random effects, since all trainings see the same examples.
"""

import math
from dataclasses import dataclass

import numpy as np

from keras_distill.report.metrics import wilson_interval

# How seldom a difference of no meaning is called one, in both directions together; intervals are of 95 %.
SIGNIFICANCE = 0.05
_NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """Candidate less baseline, per example: below zero the candidate is better.

    Attributes:
        mean: of errors a share in [−1, 1], of negative log likelihood nats.
        low: of the 95 % interval; −∞ where the examples are too few to bound it.
        high: of the 95 % interval; ∞ likewise.
        p_value: how often two models of no difference differ so much; two-sided.
        degrees_of_freedom: of the t distribution that the interval over several seeds has; `None` for other intervals.
    """

    mean: float
    low: float
    high: float
    p_value: float
    degrees_of_freedom: float | None = None

    def one_sided_low(self) -> float:
        """The lower bound of a one-sided interval of 95 %, of an interval by a t distribution."""
        from scipy.stats import t

        one_sided, two_sided = t.ppf([1.0 - SIGNIFICANCE, 1.0 - SIGNIFICANCE / 2], self.degrees_of_freedom)
        return self.mean - (self.mean - self.low) * float(one_sided / two_sided)


@dataclass(frozen=True)
class Rate:
    """A share of wrong answers with its 95 % interval (Wilson), over all seeds.

    Attributes:
        rate: in [0, 1].
        low: of the interval.
        high: of the interval.
    """

    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.rate:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]"


def rate_of(wrong: np.ndarray) -> Rate:
    """Of wrong answers, bool, `(num_seeds, num_items)`.

    The answers of several seeds to one example are not as many examples: Wilson's interval is that of as many
    independent answers as would have the variance which the mean has.
    """
    num_seeds, num_items = wrong.shape
    rate = float(wrong.mean())
    if num_seeds == 1:
        return Rate(rate, *wilson_interval(int(wrong.sum()), num_items))
    from scipy.stats import t

    parts, effective = contributions(wrong.astype("float64"))
    variance = sum(parts)
    # Seeds that all err alike, or never, are no more than one of them.
    independent = rate * (1.0 - rate) / variance if variance > 0.0 else float(num_items)
    quantile = float(t.ppf(1.0 - SIGNIFICANCE / 2, effective))
    shrunk = 1.0 + quantile**2 / independent
    centre = (rate + quantile**2 / (2 * independent)) / shrunk
    reach = quantile * math.sqrt(rate * (1.0 - rate) / independent + (quantile / (2 * independent)) ** 2) / shrunk
    return Rate(rate, max(centre - reach, 0.0), min(centre + reach, 1.0))


def difference_of_errors(candidate: np.ndarray, baseline: np.ndarray) -> Difference:
    """Of wrong answers, bool, `(num_seeds, num_items)` each."""
    from scipy.stats import binomtest

    differences = candidate.astype("float64") - baseline
    if len(candidate) > 1 and np.ptp(differences) > 0.0:
        return difference_of(differences, largest=1.0)
    # Several pairs that never differ, or everywhere alike, are one: that none was seen does not say that there is none.
    candidate, baseline = candidate[:1], baseline[:1]
    only_candidate = int(np.count_nonzero(candidate & ~baseline))
    only_baseline = int(np.count_nonzero(baseline & ~candidate))
    differing = only_candidate + only_baseline
    p_value = float(binomtest(only_candidate, differing).pvalue) if differing else 1.0
    num_items = candidate.shape[1]
    return Difference((only_candidate - only_baseline) / num_items, *newcombe(candidate[0], baseline[0]), p_value)


def newcombe(
    candidate: np.ndarray, baseline: np.ndarray, confidence: float = 1.0 - SIGNIFICANCE
) -> tuple[float, float]:
    """Newcombe's interval for the difference of two shares of the same items: Wilson's of each, squared and added.

    The covariance of the two answers takes back what adding the squares of their errors counts twice.
    """
    num_items = len(candidate)
    both, neither = int((candidate & baseline).sum()), int((~candidate & ~baseline).sum())
    only = int((candidate & ~baseline).sum()), int((baseline & ~candidate).sum())
    sides = [
        (int(each.sum()), *wilson_interval(int(each.sum()), num_items, confidence)) for each in (candidate, baseline)
    ]
    (wrong, low, high), (other_wrong, other_low, other_high) = sides
    product = wrong * (num_items - wrong) * other_wrong * (num_items - other_wrong)
    covariance = float(both * neither - only[0] * only[1])
    if covariance > 0:
        # Newcombe's correction for continuity.
        covariance = max(covariance - num_items / 2, 0.0)
    phi = covariance / math.sqrt(product) if product else 0.0
    share, other_share = wrong / num_items, other_wrong / num_items

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(down**2 - 2 * phi * down * up + up**2, 0.0))

    difference = share - other_share
    return (
        difference - reach(share - low, other_high - other_share),
        difference + reach(high - share, other_share - other_low),
    )


def difference_of(values: np.ndarray, largest: float = math.inf) -> Difference:
    """Of values that differ by example, and by seed where there are several, `(num_seeds, num_items)`.

    One example says nothing of others: the interval then has no bounds but `±largest`. Values that are all the same but
    for rounding have no spread of which an interval could be made; a t interval or a bootstrap would have no width
    however few they are. They are judged by the sign test, `p = 2 · 0.5^num_items`: its interval has no bounds up to
    five examples, and is the value itself from six on.
    """
    from scipy import stats

    num_items, mean = values.shape[1], float(values.mean())
    if not np.any(values):
        return Difference(0.0, 0.0, 0.0, 1.0)
    if num_items == 1 or np.allclose(values, mean, rtol=1e-9, atol=0.0):
        p_value = 2.0 * 0.5**num_items
        low, high = (mean, mean) if p_value < SIGNIFICANCE else (-largest, largest)
        return Difference(mean, low, high, p_value)
    if len(values) == 1:
        return _bootstrapped(values[0])
    parts, effective = contributions(values)
    variance = sum(parts)
    reach = stats.t.ppf(1.0 - SIGNIFICANCE / 2, effective) * math.sqrt(variance)
    p_value = 2.0 * stats.t.sf(abs(mean) / math.sqrt(variance), effective)
    return Difference(mean, mean - float(reach), mean + float(reach), float(p_value), effective)


def contributions(values: np.ndarray) -> tuple[tuple[float, float, float], float]:
    """What seeds, examples and their interplay contribute to the variance of the mean of `(num_seeds, num_items)`.

    Mean squares of a two-way table without repetition. What the interplay explains by itself is in both effects and
    counts once, so that it is subtracted; an effect below it is none.

    Returns:
        The three contributions, and Satterthwaite's degrees of freedom of their sum.
    """
    num_seeds, num_items = values.shape
    mean, by_seed, by_item = values.mean(), values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    freedom = np.array([num_seeds - 1, max(num_items - 1, 1), (num_seeds - 1) * max(num_items - 1, 1)], "float64")
    squares = np.array(
        [
            num_items * np.square(by_seed - mean).sum(),
            num_seeds * np.square(by_item - mean).sum(),
            np.square(values - by_seed - by_item + mean).sum(),
        ]
    )
    seed, item, rest = (float(square) for square in squares / freedom / values.size)
    parts = (max(seed, rest), max(item, rest), -rest)
    # What seeds show, however little, is known to their few degrees of freedom. Where the interplay stands for them, it
    # is known much better: to count it with theirs would make the interval of three equal seeds twice as wide.
    squares_over_freedom = np.square([seed, max(item, rest)]) / freedom[:2]
    variance = sum(parts)
    effective = variance**2 / float(squares_over_freedom.sum()) if variance > 0.0 else freedom[1]
    return parts, float(effective)


def _bootstrapped(values: np.ndarray) -> Difference:
    """The mean of differences of one training each, over examples drawn again and again."""
    generator = np.random.default_rng(0)
    num_items = len(values)
    # In portions that fit into memory.
    portion = max(1, 4_000_000 // num_items)
    sizes = [min(portion, _NUM_RESAMPLES - start) for start in range(0, _NUM_RESAMPLES, portion)]
    means = np.concatenate([values[generator.integers(0, num_items, (size, num_items))].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, [SIGNIFICANCE / 2, 1.0 - SIGNIFICANCE / 2])
    # The share of means on the other side of zero, of which there is always the one that was seen.
    beyond = min(np.count_nonzero(means <= 0.0), np.count_nonzero(means >= 0.0))
    return Difference(float(values.mean()), float(low), float(high), min(1.0, 2 * (beyond + 1) / (_NUM_RESAMPLES + 1)))
