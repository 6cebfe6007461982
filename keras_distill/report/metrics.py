"""How good a classifier is, from its logits: error, NLL, calibration, agreement, intervals.

Plots and pages are elsewhere; everything here takes and returns numbers.
"""

from dataclasses import dataclass

import numpy as np

from keras_distill._checks import check_count, check_finite, check_fraction, check_labels, check_positive, error_message
from keras_distill._types import ArrayLike

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0


def log_softmax(logits: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """Log probabilities of `softmax(logits / temperature)` over the last axis, float64, in nats.

    Example:
        >>> np.exp(log_softmax([[0.0, 0.0]])).tolist()
        [[0.5, 0.5]]
    """
    scaled = np.asarray(logits, "float64") / check_positive("temperature", temperature)
    shifted = scaled - scaled.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(logits: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of `logits` softened by `temperature`, over the last axis, float64.

    Example:
        >>> softmax([[2.0, 0.0]], temperature=2.0).round(3).tolist()
        [[0.731, 0.269]]

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2, equation 1.
    """
    return np.exp(log_softmax(logits, temperature))


def error_rate(logits: ArrayLike, labels: ArrayLike) -> float:
    """Share of items whose most probable class is not their label, in [0, 1].

    Args:
        logits: float, `(num_items, num_classes)`.
        labels: integers, `(num_items,)`.

    Raises:
        ValueError: no items, NaN logits, labels out of range, lengths that differ.

    Example:
        >>> error_rate([[2.0, 1.0], [2.0, 1.0]], [0, 1])
        0.5
    """
    logits, labels = _checked(logits, labels)
    return float(np.mean(logits.argmax(axis=-1) != labels))


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0) -> float:
    """Mean of −log p(label), in nats: 0 is certain and right, log(num_classes) knows nothing.

    Args:
        logits: float, `(num_items, num_classes)`.
        labels: integers, `(num_items,)`.
        temperature: divides the logits first.

    Example:
        >>> round(negative_log_likelihood([[0.0, 0.0]], [1]), 6)
        0.693147
    """
    logits, labels = _checked(logits, labels)
    return float(-log_softmax(logits, temperature)[np.arange(len(labels)), labels].mean())


@dataclass(frozen=True)
class Reliability:
    """What a reliability diagram shows: items in bins of equal width by the probability of their predicted class.

    Attributes:
        edges: of the bins, from 0 to 1, `(num_bins + 1,)`. A bin holds what is above its lower edge, up to its upper.
        counts: items a bin, int, `(num_bins,)`.
        confidences: mean probability of the predicted class a bin; NaN where the bin is empty.
        accuracies: share of right predictions a bin; NaN where the bin is empty.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray


def reliability(logits: ArrayLike, labels: ArrayLike, num_bins: int = 15) -> Reliability:
    """Compares confidence with accuracy, bin by bin.

    Args:
        logits: float, `(num_items, num_classes)`.
        labels: integers, `(num_items,)`.
        num_bins: how many bins share [0, 1].

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, 2017, section 2.
    """
    logits, labels = _checked(logits, labels)
    num_bins = check_count("num_bins", num_bins)
    confidence = softmax(logits).max(axis=-1)
    is_right = logits.argmax(axis=-1) == labels
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    # An empty bin has no mean: 0/0 is the NaN that is wanted.
    with np.errstate(invalid="ignore"):
        confidences = np.bincount(bins, weights=confidence, minlength=num_bins) / counts
        accuracies = np.bincount(bins, weights=is_right, minlength=num_bins) / counts
    return Reliability(edges, counts, confidences, accuracies)


def expected_calibration_error(logits: ArrayLike, labels: ArrayLike, num_bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over the bins, each weighed by its items, in [0, 1].

    `Σ_b (n_b / n) · |accuracy_b − confidence_b|`

    Args:
        logits: float, `(num_items, num_classes)`.
        labels: integers, `(num_items,)`.
        num_bins: how many bins share [0, 1].

    Example:
        >>> round(expected_calibration_error(np.log([[0.8, 0.2], [0.8, 0.2]]), [0, 1]), 6)  # sure 0.8, right 0.5
        0.3

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3.
    """
    bins = reliability(logits, labels, num_bins)
    gaps = np.abs(bins.accuracies - bins.confidences)
    return float(np.nansum(gaps * bins.counts) / bins.counts.sum())


def agreement(logits_a: ArrayLike, logits_b: ArrayLike) -> float:
    """Share of items for which both models predict the same class, in [0, 1].

    Args:
        logits_a: float, `(num_items, num_classes)`.
        logits_b: float, the same shape.

    Example:
        >>> agreement([[2.0, 1.0], [2.0, 1.0]], [[3.0, 0.0], [0.0, 3.0]])
        0.5
    """
    logits_a, logits_b = _checked_logits(logits_a), _checked_logits(logits_b)
    if logits_a.shape != logits_b.shape:
        raise ValueError(error_message(f"logits_b must have shape {logits_a.shape}, as logits_a", logits_b.shape))
    return float(np.mean(logits_a.argmax(axis=-1) == logits_b.argmax(axis=-1)))


def wilson_interval(num_errors: int, num_items: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of error rates that `num_errors` of `num_items` do not contradict.

    Good also for few or no errors, where the usual ± is zero wide.

    Args:
        num_errors: errors seen.
        num_items: items tried.
        confidence: how often such intervals cover the true rate.

    Returns:
        Lowest and highest rate, both in [0, 1].

    Example:
        >>> [round(bound, 4) for bound in wilson_interval(0, 100)]
        [0.0, 0.037]

    Reference:
        Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    num_items = check_count("num_items", num_items)
    num_errors = check_count("num_errors", num_errors, minimum=0)
    if num_errors > num_items:
        raise ValueError(error_message(f"num_errors must be <= num_items, {num_items}", num_errors))
    if check_fraction("confidence", confidence) in (0.0, 1.0):
        raise ValueError(error_message("confidence must be > 0 and < 1", confidence))
    # Not for all who import metrics: it takes longer to load than NumPy and this file together.
    from scipy.stats import binomtest

    interval = binomtest(num_errors, num_items).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def best_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature that makes the labels most likely: above 1 the model was too sure of itself.

    The negative log likelihood is convex in 1/T, so bisection of its slope finds the one minimum.
    Choose it on validation data, never on the test set.

    Args:
        logits: float, `(num_items, num_classes)`.
        labels: integers, `(num_items,)`.

    Returns:
        T in [0.01, 100]; the bounds stand for "none is low enough" (every prediction right) and
        "none is high enough" (worse than guessing).

    Example:
        >>> logits = 3.0 * np.log([[0.8, 0.2]] * 5)  # three times surer than its four of five right allow
        >>> round(best_temperature(logits, [0, 0, 0, 0, 1]), 6)
        3.0

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2.
    """
    values, classes = _checked(logits, labels)
    values = values - values.max(axis=-1, keepdims=True)
    of_label = values[np.arange(len(classes)), classes]

    def slope(log_inverse: float) -> float:
        """The derivative of the NLL with respect to 1/T."""
        expected = (softmax(values, np.exp(-log_inverse)) * values).sum(axis=-1)
        return float(np.mean(expected - of_label))

    low, high = -np.log(HIGHEST_TEMPERATURE), -np.log(LOWEST_TEMPERATURE)
    if slope(low) >= 0.0:
        return HIGHEST_TEMPERATURE
    if slope(high) <= 0.0:
        return LOWEST_TEMPERATURE
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0.0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def _checked_logits(logits: ArrayLike) -> np.ndarray:
    logits = np.asarray(logits, "float64")
    if logits.ndim != 2 or not logits.size:
        received = f"shape {logits.shape}"
        raise ValueError(error_message("logits must have shape (num_items, num_classes), not empty", received))
    return check_finite("logits", logits)


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    logits = _checked_logits(logits)
    labels = check_labels("labels", labels, logits.shape[-1])
    if len(labels) != len(logits):
        raise ValueError(
            error_message(f"there must be {len(logits)} labels, one for each row of the logits", len(labels))
        )
    return logits, labels
