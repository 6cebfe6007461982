"""What holds of every ensemble and of every merge with specialists, whatever the numbers."""

import functools

import keras
import numpy as np
import pytest
from drawn import SHIFTS, TEMPERATURES, logits_of_shape, members, permutations_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax

from keras_distill import Ensemble
from keras_distill.losses import SoftTargets
from keras_distill.specialists import SpecialistEnsemble, merge
from keras_distill.teachers.ensemble import arithmetic_mean, geometric_mean


# Built once, and not while the module is imported.
@functools.cache
def net(seed, units=3):
    kernel = keras.initializers.RandomNormal(stddev=2.0, seed=seed)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, kernel_initializer=kernel)])


@functools.cache
def ensemble_of(combine, times):
    return Ensemble([net(1)] * times, combine, weights=[1, 3][:times])


@pytest.mark.parametrize("combine", ["arithmetic", "geometric"])
@pytest.mark.parametrize("times", [1, 2])
@given(inputs=logits_of_shape((3, 4), 5.0), temperature=TEMPERATURES)
def test_an_ensemble_of_one_model_is_the_model(combine, times, inputs, temperature):
    """Once or twice: at every temperature the same softmax; the geometric mean even the same logits."""
    ensemble, inputs = ensemble_of(combine, times), inputs.astype("float32")
    logits = np.asarray(net(1)(inputs))
    found = np.asarray(ensemble(inputs))
    if combine == "geometric":
        np.testing.assert_allclose(found, logits, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(softmax(found, axis=-1), softmax(logits, axis=-1), rtol=2e-5, atol=1e-7)
    loss = SoftTargets(temperature).per_example(ensemble.soft_targets(inputs), logits)
    np.testing.assert_allclose(loss, 0.0, atol=2e-5 * temperature**2)


@given(data=st.data(), drawn=members())
def test_means_have_no_order_and_stay_between_their_members(data, drawn):
    logits, weights, _ = drawn
    order = data.draw(permutations_of(len(weights)))
    for mean in (arithmetic_mean, geometric_mean):
        found = np.asarray(mean(logits, weights))
        np.testing.assert_allclose(mean(logits[:, order], weights[order]), found, rtol=1e-9, atol=1e-9)
    each = log_softmax(logits, axis=-1)
    arithmetic = np.asarray(arithmetic_mean(logits, weights))
    np.testing.assert_allclose(logsumexp(arithmetic, axis=-1), 0.0, atol=1e-9)
    assert (arithmetic <= each.max(axis=1) + 1e-9).all()
    assert (arithmetic >= each.min(axis=1) - 1e-9).all()
    geometric = np.asarray(geometric_mean(logits, weights))
    # The geometric mean of probabilities is no more than the arithmetic one, before it is scaled to sum to one.
    assert (np.einsum("m,nmc->nc", weights, each) <= arithmetic + 1e-9).all()
    assert (geometric <= logits.max(axis=1) + 1e-9).all()
    assert (geometric >= logits.min(axis=1) - 1e-9).all()


# The merge of specialists


@st.composite
def problems(draw, num_rows=6, limit=10.0):
    """(generalist's logits, [specialists' logits], class sets); one structure, several rows."""
    num_classes = draw(st.integers(3, 8))
    class_sets, specialists = [], []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, num_classes - 1))
        class_sets.append(draw(st.permutations(range(num_classes)))[:size])
        specialists.append(draw(logits_of_shape((num_rows, size + 1), limit)))
    return draw(logits_of_shape((num_rows, num_classes), limit)), specialists, class_sets


def objective(log_q, generalist, specialists, class_sets):
    """−KL(p_g‖q) − Σ KL(p_m‖q) up to a constant, float64, `(rows,)`."""
    total = np.sum(softmax(generalist, axis=-1) * log_q, axis=-1)
    for logits, class_set in zip(specialists, class_sets, strict=True):
        outside = logsumexp(np.delete(log_q, class_set, axis=-1), axis=-1)
        seen = np.concatenate([log_q[:, class_set], outside[:, None]], axis=-1)
        total += np.sum(softmax(logits, axis=-1) * seen, axis=-1)
    return total


few = settings(max_examples=settings().max_examples // 4)


@few
@given(data=st.data(), problem=problems())
def test_no_other_distribution_is_nearer_to_all(data, problem):
    """The optimum against competitors: the generalist, the uniform one, random ones, and ones near by."""
    found, residual = (np.asarray(part, "float64") for part in merge(*problem, 12, return_residual=True))
    np.testing.assert_allclose(logsumexp(found, axis=-1), 0.0, atol=3e-6)
    assert (residual >= 0.0).all()
    best = objective(found, *problem)
    elsewhere = data.draw(logits_of_shape(found.shape, 10.0))
    for rival in (problem[0], np.zeros_like(found), elsewhere, found + 0.01 * elsewhere, found - 0.001 * elsewhere):
        assert (objective(log_softmax(rival, axis=-1), *problem) <= best + 2e-5).all()


@few
@given(data=st.data(), problem=problems())
def test_the_merge_knows_no_constants_and_no_order(data, problem):
    """The optimum may be flat, where rounding decides on the classes' shares; its value never is."""
    generalist, specialists, class_sets = problem
    order = data.draw(permutations_of(len(class_sets)))
    shift = data.draw(SHIFTS)
    renamed = data.draw(permutations_of(generalist.shape[-1]))
    place = np.argsort(renamed)
    found = merge(
        (generalist + shift)[:, renamed],
        [specialists[m] - shift for m in order],
        [[int(place[label]) for label in class_sets[m]] for m in order],
        20,
    )
    back = np.asarray(found, "float64")[:, place]
    expected = np.asarray(merge(*problem, 20), "float64")
    np.testing.assert_allclose(objective(back, *problem), objective(expected, *problem), atol=1e-4)


@few
@given(problem=problems(limit=6.0))
def test_specialists_who_say_what_the_generalist_says_change_nothing(problem):
    generalist, _, class_sets = problem
    echoes = [
        np.concatenate(
            [
                generalist[:, class_set],
                logsumexp(np.delete(generalist, class_set, axis=-1), axis=-1, keepdims=True),
            ],
            axis=-1,
        )
        for class_set in class_sets
    ]
    found = softmax(merge(generalist, echoes, class_sets, 12), axis=-1)
    np.testing.assert_allclose(found, softmax(generalist, axis=-1), atol=1e-4)


@few
@given(data=st.data(), problem=problems())
def test_who_is_not_asked_does_not_count(data, problem):
    generalist, specialists, class_sets = problem
    count = len(class_sets)
    asked = [m for m in range(count) if data.draw(st.booleans())]
    routes = np.zeros((len(generalist), count))
    routes[:, asked] = 1.0
    found = np.asarray(merge(*problem, 12, routes=routes), "float64")
    if not asked:
        np.testing.assert_allclose(found, log_softmax(generalist, axis=-1), atol=1e-5)
        return
    rest = [specialists[m] for m in asked], [class_sets[m] for m in asked]
    alone = np.asarray(merge(generalist, *rest, 12), "float64")
    np.testing.assert_allclose(objective(found, generalist, *rest), objective(alone, generalist, *rest), atol=1e-4)
    few = np.asarray(merge(*problem, 12, routes=routes, max_active=len(asked)), "float64")
    np.testing.assert_allclose(objective(few, generalist, *rest), objective(alone, generalist, *rest), atol=1e-4)


@functools.cache
def specialists():
    return SpecialistEnsemble(net(2, 5), [net(3, 3), net(4, 4)], [[0, 1], [1, 2, 3]], num_routes=1, steps=3)


@few
@given(inputs=logits_of_shape((4, 4), 5.0))
def test_the_generalists_own_choice_decides_who_is_asked(inputs):
    inputs, ensemble = inputs.astype("float32"), specialists()
    generalist = np.asarray(ensemble.generalist(inputs))
    covers = np.array([[1, 0], [1, 1], [0, 1], [0, 1], [0, 0]])
    routes = covers[np.argmax(generalist, axis=-1)]
    np.testing.assert_array_equal(ensemble.routes(generalist), routes)
    others = [np.asarray(model(inputs)) for model in ensemble.specialists]
    expected = merge(generalist, others, ensemble.class_sets, 3, routes=routes)
    np.testing.assert_allclose(ensemble(inputs), expected, atol=2e-4)
