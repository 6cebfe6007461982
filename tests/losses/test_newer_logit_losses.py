"""Transformed teacher, α-β-divergence, refined and multi-level logits against independent NumPy in float64."""

import numpy as np
import pytest
from backend import gradient
from in_numpy import draw, kl, numerical_gradient, softmax

from keras_distill import losses

TEACHER, STUDENT = draw(7, 5), draw(7, 5, seed=1)
LABELS = np.random.default_rng(2).integers(0, 5, 7)
ONE_HOT = np.eye(5)[LABELS]


# Each as the paper writes it, an example at a time.


def numpy_transformed(teacher, student, temperature, weighted):
    powers = softmax(teacher) ** (1.0 / temperature)
    totals = powers.sum(axis=-1)
    return (totals if weighted else 1.0) * kl(powers / totals[:, None], softmax(student))


def numpy_alpha_beta(teacher, student, temperature, alpha, beta):
    p, q, total = softmax(teacher, temperature), softmax(student, temperature), alpha + beta
    parts = p**alpha * q**beta - alpha / total * p**total - beta / total * q**total
    return -(temperature**2) * parts.sum(axis=-1) / (alpha * beta)


def numpy_refined(teacher, student, labels, temperature, alpha, beta):
    values = []
    for z, s, label in zip(teacher, student, labels, strict=True):
        p, q = softmax(z, temperature), softmax(s, temperature)
        confidence = kl([p.max(), 1 - p.max()], [q[label], 1 - q[label]])
        left = np.flatnonzero(z < z[label])
        correlation = kl(softmax(z[left], temperature), softmax(s[left], temperature)) if len(left) else 0.0
        values.append(temperature**2 * (alpha * confidence + beta * correlation))
    return np.array(values)


def numpy_multi_level(teacher, student, temperature):
    value = np.zeros(len(teacher))
    for one in (temperature * factor for factor in (0.5, 0.75, 1.0, 1.25, 1.5)):
        p, q = softmax(teacher, one), softmax(student, one)
        value += one**2 * kl(p, q)
        value += np.linalg.norm(p @ p.T - q @ q.T) ** 2 / len(p)
        value += np.linalg.norm(p.T @ p - q.T @ q) ** 2 / p.shape[1]
    return value


CASES = {
    "transformed": (losses.TransformedTeacherMatching(3.0), lambda s: numpy_transformed(TEACHER, s, 3.0, False)),
    "weighted": (
        losses.TransformedTeacherMatching(3.0, weighted=True),
        lambda s: numpy_transformed(TEACHER, s, 3.0, True),
    ),
    "alpha-beta": (losses.AlphaBetaDivergence(2.0, 0.7, 0.5), lambda s: numpy_alpha_beta(TEACHER, s, 2.0, 0.7, 0.5)),
    "refined": (losses.RefinedLogits(3.0, 0.7, 5.0), lambda s: numpy_refined(TEACHER, s, LABELS, 3.0, 0.7, 5.0)),
    "multi-level": (losses.MultiLevelLogits(4.0), lambda s: numpy_multi_level(TEACHER, s, 4.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_formulas(name):
    loss, expected = CASES[name]
    context = {"labels": LABELS} if name == "refined" else {}
    np.testing.assert_allclose(loss.per_example(TEACHER, STUDENT, **context), expected(STUDENT), rtol=1e-9)
    found = gradient(lambda student: loss.compute_loss(TEACHER, student, **context), STUDENT)
    np.testing.assert_allclose(found, numerical_gradient(lambda s: expected(s).mean(), STUDENT), atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_extremes_are_finite(name):
    loss, _ = CASES[name]
    teacher, student = np.float32([[1e4, -1e4, 0.0, 0.0, 5.0]]), np.float32([[-1e4, 1e4, 0.0, 0.0, 5.0]])
    assert np.isfinite(loss.per_example(teacher, student)).all()
    slope = gradient(lambda student: loss.compute_loss(teacher, student), student)
    assert np.isfinite(slope).all()


# Transformed teacher


def test_at_temperature_one_the_transformed_teacher_is_soft_targets():
    for weighted in (False, True):
        found = losses.transformed_teacher_divergence(TEACHER, STUDENT, 1.0, weighted=weighted)
        np.testing.assert_allclose(found, losses.soft_targets(TEACHER, STUDENT, 1.0), rtol=1e-10)


def test_weights_are_one_for_a_sure_teacher_and_grow_as_it_doubts():
    student = np.zeros((2, 5))
    plain, weighted = (
        np.asarray(
            losses.transformed_teacher_divergence(
                np.array([[60.0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0]]), student, 2.0, weighted=w
            )
        )
        for w in (False, True)
    )
    # The power sum at γ = ½ of a teacher that is all but sure, and of one that is all but ignorant: 1 and √5.
    np.testing.assert_allclose((weighted / plain)[0], 1.0, rtol=1e-9)
    assert 2.1 < (weighted / plain)[1] < np.sqrt(5)


# α-β


def test_alpha_beta_has_both_divergences_as_its_ends():
    p, q = softmax(TEACHER, 2.0), softmax(STUDENT, 2.0)
    ends = losses.AlphaBetaDivergence.forward_kl(2.0), losses.AlphaBetaDivergence.reverse_kl(2.0)
    for loss, expected in zip(ends, (kl(p, q), kl(q, p)), strict=True):
        np.testing.assert_allclose(loss.per_example(TEACHER, STUDENT), 4.0 * expected, rtol=1e-9)
    np.testing.assert_allclose(
        ends[0].per_example(TEACHER, STUDENT), losses.SoftTargets(2.0).per_example(TEACHER, STUDENT), rtol=1e-9
    )
    hellinger = 4.0 * 2.0 * ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(axis=-1)
    found = losses.AlphaBetaDivergence.alpha_divergence(0.5, 2.0).per_example(TEACHER, STUDENT)
    np.testing.assert_allclose(found, hellinger, rtol=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.6), (0.6, 0.0), (0.0, 0.0)])
def test_alpha_beta_is_continuous_where_a_number_is_zero(alpha, beta):
    at = losses.alpha_beta_divergence(TEACHER, STUDENT, 1.0, alpha=alpha, beta=beta)
    near = numpy_alpha_beta(TEACHER, STUDENT, 1.0, alpha + 1e-5, beta + 1e-5)
    np.testing.assert_allclose(at, near, rtol=1e-3)


def test_alpha_beta_of_two_squares_is_the_squared_distance():
    found = losses.alpha_beta_divergence(TEACHER, STUDENT, 1.0, alpha=1.0, beta=1.0)
    np.testing.assert_allclose(found, 0.5 * ((softmax(TEACHER) - softmax(STUDENT)) ** 2).sum(axis=-1), rtol=1e-9)


def test_alpha_beta_keeps_its_digits_where_the_two_are_near():
    # In float32 the terms of the formula cancel; the second-order expansion is ½ Σ p^(α+β) (Δ log)².
    teacher = TEACHER.astype("float32")
    student = (TEACHER + 1e-3 * STUDENT).astype("float32")
    p = softmax(teacher)
    difference = np.log(softmax(student)) - np.log(p)
    expected = 0.5 * (p**0.9 * difference**2).sum(axis=-1)
    found = losses.alpha_beta_divergence(teacher, student, 1.0, alpha=0.6, beta=0.3)
    np.testing.assert_allclose(found, expected, rtol=3e-2)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="alpha and beta must be >= 0"):
        losses.AlphaBetaDivergence(2.0, -0.5, 1.0)
    with pytest.raises(ValueError, match="alpha and beta must be >= 0"):
        losses.RefinedLogits(2.0, 1.0, -1.0)


# Refined


def test_refined_without_labels_is_decoupled_without_the_share_of_the_target():
    """Where the teacher is right, confidence is TCKD and correlation NCKD: equation 7 of Zhao et al."""
    decoupled = losses.DecoupledKD(3.0, 1.0, 4.0).per_example(TEACHER, STUDENT)
    np.testing.assert_allclose(losses.RefinedLogits(3.0, 1.0, 4.0).per_example(TEACHER, STUDENT), decoupled, rtol=1e-9)


def test_refined_says_nothing_of_classes_that_a_wrong_teacher_put_first():
    teacher, target = np.array([[3.0, 2.0, 1.0, 0.0]]), np.array([[0.0, 0.0, 1.0, 0.0]])
    one = losses.masked_correlation(teacher, draw(1, 4), target, 1.0)
    np.testing.assert_allclose(one, 0.0, atol=1e-12)  # one class is left, and nothing to compare
    student = draw(1, 4)
    slope = gradient(
        lambda s: losses.masked_correlation(np.array([[9.0, 3.0, 1.0, 0.0]]), s, np.eye(4)[[1]], 1.0)[0], student
    )
    np.testing.assert_allclose(np.asarray(slope)[0, :2], 0.0, atol=1e-12)


# Multi-level


def test_multi_level_merges_members_at_each_temperature():
    members, weights = draw(7, 3, 5, seed=4), np.full((7, 3), 1 / 3)
    loss = losses.MultiLevelLogits(2.0)
    value = np.zeros(7)
    for one in (1.0, 1.5, 2.0, 2.5, 3.0):
        p, q = softmax(members, one).mean(axis=1), softmax(STUDENT, one)
        value += one**2 * kl(p, q) + np.linalg.norm(p @ p.T - q @ q.T) ** 2 / 7
        value += np.linalg.norm(p.T @ p - q.T @ q) ** 2 / 5
    found = loss.per_example({"member_logits": members, "member_weights": weights}, STUDENT)
    np.testing.assert_allclose(found, value, rtol=1e-9)
