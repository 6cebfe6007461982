"""Is a class lost? The recall of each class before and after a conversion, and which falls are no chance.

A class of three examples loses a third of its recall by one rounding, a class of a thousand does not. So a fall counts
where an exact binomial test says that it is none: where a file may turn a share `rate` of right answers into wrong
ones, `right` right answers of a class lose `lost` or more with probability `P(X >= lost)`, `X ~ Binomial(right, rate)`.
The fall is a problem where that is below 1 %, divided by the number of classes that were looked at (Bonferroni).
`rate` is 2 %, or four times the allowed drop of accuracy, or what the other classes lose, whichever is largest.

At 2 % that finds a class that loses both of its two examples (of up to 25 classes), 3 of 20, 11 of 200.
A class of one example is never enough.
"""

import math
from dataclasses import dataclass

import numpy as np

SMALLEST_RATE = 0.02
SIGNIFICANCE = 0.01


@dataclass(frozen=True)
class ClassRecall:
    """What became of one class.

    Attributes:
        index: the class.
        num_examples: examples that have it.
        before: its recall in the reference, in [0, 1].
        after: its recall in the artifact, in [0, 1].
        is_lost: whether the fall is too large for chance.
    """

    index: int
    num_examples: float
    before: float
    after: float
    is_lost: bool


def binomial_tail(at_least: int, num_trials: int, probability: float) -> float:
    """`P(X >= at_least)` for `X ~ Binomial(num_trials, probability)`.

    Example:
        >>> round(binomial_tail(2, 3, 0.5), 6)  # of three coins two or more: 4 of 8
        0.5
    """
    if at_least <= 0 or probability >= 1.0:
        return 1.0
    if at_least > num_trials or probability <= 0.0:
        return 0.0
    first = (
        math.lgamma(num_trials + 1)
        - math.lgamma(at_least + 1)
        - math.lgamma(num_trials - at_least + 1)
        + at_least * math.log(probability)
        + (num_trials - at_least) * math.log1p(-probability)
    )
    count = np.arange(at_least, num_trials)
    # Each term from the one before it: P(k + 1) / P(k) = (n - k) / (k + 1) * p / (1 - p).
    ratios = np.log((num_trials - count) / (count + 1.0)) + math.log(probability) - math.log1p(-probability)
    return min(1.0, float(np.exp(first + np.concatenate([[0.0], np.cumsum(ratios)])).sum()))


def fallen_recalls(
    classes: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    num_classes: int,
    *,
    item_of: np.ndarray | None = None,
    rate: float = SMALLEST_RATE,
) -> list[ClassRecall]:
    """The classes whose recall falls, the deepest fall first.

    Args:
        classes: int `(num_answers,)`, the right classes; what is negative does not count.
        before: int `(num_answers,)`, the reference's answers.
        after: int `(num_answers,)`, the artifact's.
        num_classes: how many classes there are.
        item_of: int `(num_answers,)`, the example that an answer belongs to. The tokens of a text and the pixels of an
            image err together, so each example counts once for each class. `None`: an answer is an example.
        rate: share of right answers that a class may lose, in [0, 1].

    Example:
        >>> classes = np.array([0] * 50 + [1] * 4)
        >>> fallen_recalls(classes, classes, np.zeros(54, int), 2)
        [ClassRecall(index=1, num_examples=4.0, before=1.0, after=0.0, is_lost=True)]
    """
    counted = classes >= 0
    classes, is_right, stays_right = classes[counted], (before == classes)[counted], (after == classes)[counted]
    weights = np.ones(len(classes))
    if item_of is not None and len(classes):
        cell = item_of[counted].astype(np.int64) * num_classes + classes
        weights = 1.0 / np.bincount(cell)[cell]

    def total(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(classes[chosen], weights[chosen], minlength=num_classes)

    num_examples, right, kept = total(np.ones(len(classes), bool)), total(is_right), total(stays_right)
    lost = total(is_right & ~stays_right)
    net = right - kept
    fallen = [
        int(index)
        for index in np.argsort(
            kept / np.maximum(num_examples, 1e-9) - right / np.maximum(num_examples, 1e-9), kind="stable"
        )
        if net[index] > 1e-9
    ]
    num_looked_at = int(np.count_nonzero(right > 0))
    recalls = []
    for index in fallen:
        others = right.sum() - right[index]
        rate_here = max(rate, (lost.sum() - lost[index]) / others if others > 0 else 0.0)
        # Shares of examples are rounded against the verdict: fewer lost, of more.
        chance = binomial_tail(math.floor(net[index] + 1e-9), math.ceil(right[index] - 1e-9), rate_here)
        recalls.append(
            ClassRecall(
                index,
                float(num_examples[index]),
                float(right[index] / num_examples[index]),
                float(kept[index] / num_examples[index]),
                chance < SIGNIFICANCE / num_looked_at,
            )
        )
    return recalls
