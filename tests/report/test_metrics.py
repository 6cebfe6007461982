"""Metrics against hand values, SciPy and scikit-learn."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from sklearn.metrics import log_loss

from keras_distill.report import metrics


def random_logits(num_items=500, num_classes=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_items)
    logits = rng.normal(size=(num_items, num_classes)) * 2.0
    logits[np.arange(num_items), labels] += 2.0
    return logits.astype("float32"), labels


def test_error_rate_counts_wrong_answers():
    assert metrics.error_rate([[3, 1, 2], [1, 3, 2], [1, 2, 3], [9, 0, 0]], [0, 0, 2, 1]) == 0.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.0])
def test_softmax_is_scipys(temperature):
    logits, _ = random_logits()
    np.testing.assert_allclose(
        metrics.softmax(logits, temperature),
        scipy.special.softmax(logits.astype("float64") / temperature, axis=-1),
        rtol=1e-12,
    )


def test_likelihood_is_scikit_learns_log_loss():
    logits, labels = random_logits()
    expected = log_loss(labels, scipy.special.softmax(logits.astype("float64"), axis=-1))
    assert metrics.negative_log_likelihood(logits, labels) == pytest.approx(expected, rel=1e-9)


def test_likelihood_of_sure_answers_neither_overflows_nor_vanishes():
    assert metrics.negative_log_likelihood([[1e4, 0.0]], [0]) == 0.0
    assert metrics.negative_log_likelihood([[1e4, 0.0]], [1]) == 1e4


def test_calibration_error_by_hand():
    # Two bins of ten: eight answers at 0.95, six right; two at 0.55, both right.
    probabilities = np.array([0.95] * 8 + [0.55] * 2)
    logits = np.log(np.stack([probabilities, 1 - probabilities], axis=-1))
    labels = np.array([0] * 6 + [1] * 2 + [0] * 2)
    expected = 0.8 * abs(0.95 - 0.75) + 0.2 * abs(0.55 - 1.0)
    assert metrics.expected_calibration_error(logits, labels, num_bins=10) == pytest.approx(expected)


def test_calibration_error_is_that_of_a_loop_over_bins():
    logits, labels = random_logits()
    probabilities = scipy.special.softmax(logits.astype("float64"), axis=-1)
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    expected = 0.0
    for lower in np.arange(15) / 15:
        inside = (confidence > lower) & (confidence <= lower + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert metrics.expected_calibration_error(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_reliability_counts_every_item_once_also_at_the_edges():
    # Confidences of exactly 0.5 and exactly 1.
    bins = metrics.reliability([[0.0, 0.0], [1e4, 0.0]], [0, 0], num_bins=2)
    assert bins.counts.tolist() == [1, 1]
    assert bins.confidences.tolist() == [0.5, 1.0]
    assert np.isnan(metrics.reliability([[1e4, 0.0]], [0], num_bins=2).accuracies[0])


def test_agreement_looks_at_answers_alone():
    first = [[5.0, 0.0], [0.0, 5.0], [1.0, 0.0], [0.0, 1.0]]
    second = [[0.1, 0.0], [0.0, 0.1], [0.0, 1.0], [0.0, 9.0]]
    assert metrics.agreement(first, second) == 0.75


# Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I: the score method.
@pytest.mark.parametrize(
    ("num_errors", "num_items", "expected"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_interval_is_as_published(num_errors, num_items, expected):
    assert metrics.wilson_interval(num_errors, num_items) == pytest.approx(expected, abs=5e-5)


def test_a_surer_interval_is_wider_and_ends_at_0_or_1_exactly():
    # The quantile of 99 % is 2.5758293; without errors the bound is z² / (n + z²).
    lowest, highest = metrics.wilson_interval(0, 50, confidence=0.99)
    assert lowest == 0.0
    assert highest == pytest.approx(2.5758293**2 / (50 + 2.5758293**2), abs=1e-6)
    assert metrics.wilson_interval(50, 50)[1] == 1.0


@pytest.mark.parametrize("scale", [0.2, 1.0, 6.0])
def test_best_temperature_is_scipys_minimum(scale):
    logits, labels = random_logits()
    logits = logits * scale

    def loss(log_temperature):
        scaled = logits.astype("float64") / np.exp(log_temperature)
        return -scipy.special.log_softmax(scaled, axis=-1)[np.arange(len(labels)), labels].mean()

    expected = np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}).x)
    assert metrics.best_temperature(logits, labels) == pytest.approx(expected, rel=1e-5)


def test_best_temperature_stays_within_bounds_when_there_is_no_minimum():
    assert metrics.best_temperature([[9.0, 0.0], [0.0, 9.0]], [0, 1]) == 0.01
    assert metrics.best_temperature([[9.0, 0.0], [0.0, 9.0]], [1, 0]) == 100.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[np.nan, 0.0]], [0], "logits must be finite; got 1 of 2"),
        ([[1.0, 0.0]], [2], r"labels must be in \[0, 2\); got 2"),
        ([[1.0, 0.0]], [0, 1], "there must be 1 labels, one for each row"),
        ([[1.0, 0.0]], [0.5], "integers"),
        ([1.0, 0.0], [0], "must have shape"),
        (np.zeros((0, 3)), np.zeros(0, int), "not empty"),
    ],
)
def test_bad_figures_are_refused(logits, labels, message):
    for metric in (metrics.error_rate, metrics.negative_log_likelihood, metrics.expected_calibration_error):
        with pytest.raises(ValueError, match=message):
            metric(logits, labels)


def test_bad_counts_and_shapes_are_refused():
    with pytest.raises(ValueError, match="num_errors must be <= num_items, 3; got 4"):
        metrics.wilson_interval(4, 3)
    with pytest.raises(ValueError, match="confidence must be > 0 and < 1"):
        metrics.wilson_interval(1, 3, confidence=1.0)
    with pytest.raises(ValueError, match=r"logits_b must have shape \(1, 2\)"):
        metrics.agreement([[1.0, 2.0]], [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="temperature must be > 0"):
        metrics.softmax([[1.0]], 0.0)
