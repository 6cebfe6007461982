"""The merge against float64, with a certificate, over 2,816 problems of every sort."""

import numpy as np
import pytest
from certified import SORTS, objective_and_gap, optimum, problem_of
from scipy.special import logsumexp

from keras_distill.specialists import merge

NUM_PROBLEMS = 128
# What float32 log probabilities can tell of an objective, beside what the certificate itself leaves open.
ROUNDING = 1e-5


@pytest.mark.parametrize("sort", SORTS)
def test_the_merge_is_as_near_to_the_optimum_as_its_residual_says_and_as_is_promised(sort):
    case = SORTS[sort](NUM_PROBLEMS, 0)
    problem = problem_of(case)
    best, certificate = optimum(problem)
    assert certificate.max() < ROUNDING
    log_q, residual = case.merged(merge)
    np.testing.assert_allclose(np.exp(log_q).sum(axis=1), 1.0, atol=1e-5)
    distance = objective_and_gap(best, problem)[0] - objective_and_gap(log_q, problem)[0]
    assert (distance <= residual + certificate).all()
    assert distance.max() < ROUNDING
    assert residual.max() < 1e-3


def test_one_active_specialist_is_exact_down_to_where_float32_ends():
    case = SORTS["one specialist, ±50, three classes"](2_000, 1)
    problem = problem_of(case)
    # One step of EM: what the dustbin holds is shared out among the classes outside, in proportion to their masses.
    is_outside = problem.outside[0] > 0
    log_outside = logsumexp(problem.log_mass[:, is_outside], axis=1, keepdims=True)
    log_share = np.logaddexp(0.0, problem.log_dustbins - log_outside)
    expected = problem.log_mass + np.where(is_outside, log_share, 0.0) - np.log(problem.total)[:, None]
    log_q, _ = case.merged(merge)
    np.testing.assert_allclose(log_q, expected, atol=1e-4)


def test_the_residual_says_where_too_few_steps_were_taken():
    case = SORTS["±50, nested"](NUM_PROBLEMS, 2)
    problem = problem_of(case)
    best, certificate = optimum(problem)
    log_q, residual = case.merged(merge, steps=3)
    distance = objective_and_gap(best, problem)[0] - objective_and_gap(log_q, problem)[0]
    assert distance.max() > 1e-2
    assert (distance <= residual + certificate).all()
