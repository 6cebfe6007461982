"""The merge against SciPy's optimum, closed forms and hand-worked cases; the layer and the model around it."""

import keras
import numpy as np
import pytest
from backend import gradient, under_xla
from scipy.optimize import brentq, minimize
from scipy.special import log_softmax, logsumexp, softmax

from keras_distill.models import compilation
from keras_distill.models.forward_pass import logits_model
from keras_distill.specialists import SpecialistCombiner, SpecialistEnsemble, merge


def objective(q, generalist_logits, specialist_logits, class_sets):
    """−KL(p_g‖q) − Σ KL(p_m‖q) without the terms that do not depend on q, float64, one example."""
    with np.errstate(divide="ignore"):
        log_q = np.maximum(np.log(q), -1e3)
        total = softmax(generalist_logits) @ log_q
        for logits, class_set in zip(specialist_logits, class_sets, strict=True):
            mass = softmax(logits)
            outside = np.delete(q, class_set).sum()
            total += mass[:-1] @ log_q[class_set] + mass[-1] * max(np.log(outside), -1e3)
    return total


def scipy_optimum(start, generalist_logits, specialist_logits, class_sets):
    """The best that L-BFGS finds over logits of q, from `start`."""
    mass, outside, dustbins = softmax(generalist_logits), np.ones((len(class_sets), len(start)), bool), []
    for position, (logits, class_set) in enumerate(zip(specialist_logits, class_sets, strict=True)):
        mass[class_set] += softmax(logits)[:-1]
        dustbins.append(softmax(logits)[-1])
        outside[position, class_set] = False

    def negative(logits):
        log_q = log_softmax(logits)
        log_outside = logsumexp(np.where(outside, log_q, -np.inf), axis=1)
        shares = outside * np.exp(np.minimum(log_q - log_outside[:, None], 0.0))
        gradient = mass + np.array(dustbins) @ shares
        value = mass @ log_q + np.array(dustbins) @ log_outside
        return -value, (1 + len(class_sets)) * np.exp(log_q) - gradient

    options = {"maxiter": 1000, "ftol": 1e-16, "gtol": 1e-11}
    return -minimize(negative, start, jac=True, method="L-BFGS-B", options=options).fun


def random_case(seed, num_classes, num_specialists, scale):
    generator = np.random.default_rng(seed)
    generalist = generator.uniform(-scale, scale, num_classes).astype("float32")
    class_sets, specialists = [], []
    for _ in range(num_specialists):
        size = int(generator.integers(1, max(2, num_classes // 2)))
        class_sets.append(generator.choice(num_classes, size, replace=False).tolist())
        specialists.append(generator.uniform(-scale, scale, size + 1).astype("float32"))
    return generalist, specialists, class_sets


def merge_one(generalist, specialists, class_sets, *args, **kwargs):
    found = merge(generalist[None], [logits[None] for logits in specialists], class_sets, *args, **kwargs)
    return keras.tree.map_structure(lambda value: np.asarray(value[0], "float64"), found)


def distance_to_scipy(case, steps):
    log_q = merge_one(*case, steps)
    q = softmax(log_q)
    wide = [part.astype("float64") for part in case[1]]
    problem = (case[0].astype("float64"), wide, case[2])
    starts = [log_q, 0.5 * np.log(0.5 * softmax(problem[0]) + 0.5 / len(q))]
    return max(scipy_optimum(start, *problem) for start in starts) - objective(q, *problem)


@pytest.mark.parametrize("num_specialists", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("scale", [3.0, 50.0])
def test_ten_steps_come_within_a_millionth_of_a_nat_of_scipys_optimum(num_specialists, scale):
    for seed in range(2):
        case = random_case(seed, [6, 30][seed % 2], num_specialists, scale)
        assert distance_to_scipy(case, 10) < 1e-6


@pytest.mark.parametrize(("steps", "nats"), [(2, 2e-5), (3, 1e-7), (4, 1e-9)])
@pytest.mark.parametrize("scale", [3.0, 10.0, 50.0])
def test_the_distance_to_the_optimum_falls_quadratically(steps, nats, scale):
    """As Newton's method promises near an optimum: every step doubles the digits, or nearly so."""
    for num_specialists in (2, 5, 10):
        for seed in range(4):
            case = random_case(seed, [6, 30][seed % 2], num_specialists, scale)
            assert distance_to_scipy(case, steps) < nats


def test_specialists_that_all_disown_an_example_stay_within_a_ten_thousandth_of_a_nat_in_twelve_steps():
    for seed in range(4):
        generalist, specialists, class_sets = random_case(seed, 20, 5, 50.0)
        for logits in specialists:
            logits[-1] = 50.0
        assert distance_to_scipy((generalist, specialists, class_sets), 12) < 1e-4


def disowned_batch(class_sets, num_classes, scale):
    """128 examples of which every specialist is certain that they are none of its own: the optimum is at a boundary."""
    generator = np.random.default_rng(0)
    generalist = generator.uniform(-scale, scale, (128, num_classes)).astype("float32")
    specialists = [generator.uniform(-scale, scale, (128, len(s) + 1)).astype("float32") for s in class_sets]
    for logits in specialists:
        logits[:, -1] = scale
    return generalist, specialists, class_sets


def objectives(log_q, generalist, specialists, class_sets):
    """`objective` of every row, `(batch,)`."""
    wide = [part.astype("float64") for part in specialists]
    return np.array(
        [
            objective(softmax(row), generalist[place].astype("float64"), [part[place] for part in wide], class_sets)
            for place, row in enumerate(np.asarray(log_q, "float64"))
        ]
    )


def test_ten_steps_are_what_is_taken_unless_it_is_told_otherwise():
    order = np.random.default_rng(1).permutation(24)
    batch = disowned_batch([order[: 2 * size + 1] for size in range(10)], 24, 50.0)
    np.testing.assert_array_equal(merge(*batch), merge(*batch, 10))
    assert np.abs(merge(*batch) - merge(*batch, 3)).max() > 0.1
    assert SpecialistCombiner([[0]], 12).steps == 10
    assert SpecialistEnsemble(net(4, 0), [net(2, 1)], [[0]]).get_config()["steps"] == 10


@pytest.mark.parametrize(("scale", "num_specialists", "nats"), [(3.0, 5, 1e-9), (50.0, 5, 2e-5), (50.0, 10, 1e-4)])
def test_steps_beyond_the_optimum_do_no_harm(scale, num_specialists, nats):
    generator = np.random.default_rng(0)
    class_sets = [generator.choice(24, size + 2, replace=False) for size in range(num_specialists)]
    batch = disowned_batch(class_sets, 24, scale)
    early, late = (objectives(merge(*batch, steps), *batch) for steps in (10, 40))
    assert (early - late).max() < nats
    # Without the solver's refinement a third of ten specialists' examples would lie further apart.
    assert np.mean(np.abs(late - early) > 1e-6) < 0.05


def nested_optimum(generalist, specialists, class_sets):
    """Log q of one example whose sets lie in each other, the smallest first: a chain of two-way splits, float64."""
    mass, dustbins, outside = em_problem(generalist, specialists, class_sets)
    # From outside of the largest set inwards: all that is seen of the outer side against the next layer's own mass.
    sides = [*(outside[::-1] > 0), np.ones(len(mass), bool)]
    seen = mass[sides[0]].sum()
    log_q = np.log(mass) - np.log(seen)
    for side, larger, dustbin in zip(sides[:-1], sides[1:], dustbins[::-1], strict=True):
        seen += dustbin
        own = mass[larger & ~side].sum()
        log_q[side] += np.log(seen / (seen + own))
        log_q[larger & ~side] = np.log(mass[larger & ~side] / (seen + own))
        seen += own
    return log_q


@pytest.mark.parametrize(
    ("scale", "num_specialists", "steps", "nats"), [(3.0, 10, 5, 1e-9), (50.0, 3, 10, 1e-5), (50.0, 5, 20, 1e-4)]
)
def test_sets_that_lie_in_each_other_have_a_closed_form(scale, num_specialists, steps, nats):
    order = np.random.default_rng(1).permutation(24)
    batch = disowned_batch([order[: 2 * size + 1] for size in range(num_specialists)], 24, scale)
    wide = [part.astype("float64") for part in (batch[0], *batch[1])]
    expected = [nested_optimum(wide[0][row], [part[row] for part in wide[1:]], batch[2]) for row in range(len(wide[0]))]
    found, residual = merge(*batch, steps, return_residual=True)
    distance = objectives(expected, *batch) - objectives(found, *batch)
    assert distance.max() < nats
    assert (distance <= np.asarray(residual) + 1e-5).all()


def test_the_last_step_is_one_of_em():
    generalist, specialists, class_sets = random_case(2, 12, 3, 4.0)
    expected = np.log(float64_em(*em_problem(generalist, specialists, class_sets), num_steps=1))
    np.testing.assert_allclose(merge_one(generalist, specialists, class_sets, 1), expected, atol=3e-6)
    assert np.abs(expected - merge_one(generalist, specialists, class_sets)).max() > 1e-3


def number_of_operations(num_specialists, steps, max_active=None):
    layer = SpecialistCombiner([[label] for label in range(num_specialists)], 6, steps, max_active=max_active)
    logits = [np.zeros((1, 6), "float32")] + [np.zeros((1, 2), "float32")] * num_specialists
    return len(compilation.compiled(layer).get_concrete_function(logits).graph.get_operations())


@pytest.mark.tensorflow
def test_one_specialist_costs_no_solver_however_many_the_steps():
    assert number_of_operations(1, 2) == number_of_operations(1, 12)
    assert number_of_operations(2, 2) < number_of_operations(2, 12)


@pytest.mark.tensorflow
def test_the_fewer_may_be_active_the_smaller_is_the_system_that_is_solved():
    two, three, five = (number_of_operations(5, 4, max_active) for max_active in (2, 3, None))
    assert two < three < five
    assert number_of_operations(5, 12, max_active=1) == number_of_operations(5, 2, max_active=1)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_one_active_specialist_is_exact_whatever_the_steps(steps):
    generalist = np.array([1.0, 0.3, -0.5, 0.0], "float32")
    specialist = np.array([2.0, -1.0, 0.4], "float32")
    p_generalist, p_specialist = softmax(generalist.astype("float64")), softmax(specialist.astype("float64"))
    # Inside: the mean. Outside: the dustbin is shared in proportion to the generalist.
    expected = np.zeros(4)
    expected[[2, 0]] = (p_generalist[[2, 0]] + p_specialist[:2]) / 2
    outside = p_generalist[[1, 3]]
    expected[[1, 3]] = (outside + p_specialist[2] * outside / outside.sum()) / 2
    np.testing.assert_allclose(np.exp(merge_one(generalist, [specialist], [[2, 0]], steps)), expected, rtol=3e-6)


def test_generalist_of_weight_one_half_is_as_good_as_every_specialist_twice():
    generalist, specialists, class_sets = random_case(5, 20, 3, 6.0)
    found = merge_one(generalist, specialists, class_sets, generalist_weight=0.5)
    np.testing.assert_allclose(found, merge_one(generalist, specialists * 2, class_sets * 2), atol=1e-4)
    assert np.abs(found - merge_one(generalist, specialists, class_sets)).max() > 0.1


def test_one_active_specialist_beside_a_weighted_generalist_has_a_closed_form():
    generalist, specialist, weight = np.array([1.0, 0.3, -0.5], "float32"), np.array([2.0, -1.0], "float32"), 0.25
    p_generalist, p_specialist = softmax(generalist.astype("float64")), softmax(specialist.astype("float64"))
    inside = (weight * p_generalist[0] + p_specialist[0]) / (1 + weight)
    outside = (1 - inside) * p_generalist[1:] / p_generalist[1:].sum()
    found, residual = merge_one(generalist, [specialist], [[0]], generalist_weight=weight, return_residual=True)
    np.testing.assert_allclose(np.exp(found), [inside, *outside], rtol=3e-6)
    assert residual < 1e-5


@pytest.mark.parametrize("steps", [1, 10])
def test_one_active_specialist_among_several_is_exact(steps):
    generalist, specialists, class_sets = random_case(3, 12, 4, 4.0)
    alone = merge_one(generalist, specialists[2:3], class_sets[2:3], 1)
    routed = merge_one(generalist, specialists, class_sets, steps, routes=np.array([[0, 0, 1, 0]]))
    np.testing.assert_allclose(routed, alone, atol=1e-5)


def test_two_sets_that_share_out_all_classes_have_a_closed_form():
    generalist = np.array([0.2, 1.0, -1.0, 0.5, 0.0], "float32")
    first, second = np.array([1.0, 0.0, 0.7], "float32"), np.array([0.1, 2.0, -0.3, 1.1], "float32")
    p_generalist, p_first, p_second = softmax(generalist), softmax(first), softmax(second)
    mass = p_generalist + np.r_[p_first[:2], p_second[:3]]
    # Outside of one set is inside of the other, so each side's total is simply observed.
    inside_first = (mass[:2].sum() + p_second[-1]) / 3
    expected = np.r_[mass[:2] / mass[:2].sum() * inside_first, mass[2:] / mass[2:].sum() * (1 - inside_first)]
    found = np.exp(merge_one(generalist, [first, second], [[0, 1], [2, 3, 4]]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_disjoint_sets_match_the_root_of_their_one_equation():
    generator = np.random.default_rng(0)
    class_sets = [[0, 1, 2], [3, 4], [5, 6, 7]]
    generalist = generator.normal(size=10)
    specialists = [generator.normal(size=len(class_set) + 1) for class_set in class_sets]
    mass = softmax(generalist)
    dustbins = []
    for logits, class_set in zip(specialists, class_sets, strict=True):
        mass[class_set] += softmax(logits)[:-1]
        dustbins.append(softmax(logits)[-1])
    named = [mass[class_set].sum() for class_set in class_sets]

    def inside(rest_slack):
        """Mass of each set where classes in none have slack `rest_slack`: a/u − d/(1 − u) = rest_slack."""
        shares = []
        for a, d in zip(named, dustbins, strict=True):
            b = rest_slack + a + d
            shares.append((b - np.sqrt(b * b - 4 * rest_slack * a)) / (2 * rest_slack))
        return np.array(shares)

    rest = mass[8:].sum()
    slack = brentq(lambda value: inside(value).sum() + rest / value - 1, 1e-6, 100, xtol=1e-14)
    expected = mass / slack
    for class_set, share, a in zip(class_sets, inside(slack), named, strict=True):
        expected[class_set] = mass[class_set] / a * share
    np.testing.assert_allclose(np.exp(merge_one(generalist, specialists, class_sets)), expected, rtol=2e-5)


def test_specialist_that_agrees_with_the_generalist_changes_nothing():
    generalist = np.random.default_rng(0).normal(size=8).astype("float32") * 3
    class_sets = [[0, 3], [3, 4, 5], [1]]
    specialists = [np.r_[generalist[s], logsumexp(np.delete(generalist, s))].astype("float32") for s in class_sets]
    np.testing.assert_allclose(merge_one(generalist, specialists, class_sets), log_softmax(generalist), atol=2e-5)


def test_order_of_specialists_and_of_classes_in_a_set_changes_nothing():
    generalist, specialists, class_sets = random_case(1, 15, 4, 5.0)
    expected = merge_one(generalist, specialists, class_sets)
    order = [2, 0, 3, 1]
    backwards = [np.r_[logits[:-1][::-1], logits[-1]] for logits in specialists]
    found = merge_one(generalist, [backwards[m] for m in order], [class_sets[m][::-1] for m in order])
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_classes_in_no_set_keep_the_generalists_ratios():
    generalist, specialists, class_sets = random_case(2, 20, 3, 5.0)
    free = sorted(set(range(20)) - set().union(*class_sets))
    assert len(free) > 2
    log_q = merge_one(generalist, specialists, class_sets)
    np.testing.assert_allclose(np.diff(log_q[free]), np.diff(generalist[free]), atol=2e-5)


def test_merged_probabilities_sum_to_one_also_at_extreme_logits():
    for scale in (1.0, 50.0, 1e4):
        generalist, specialists, class_sets = random_case(5, 25, 6, scale)
        log_q = merge_one(generalist, specialists, class_sets)
        assert np.isfinite(log_q).all()
        np.testing.assert_allclose(np.exp(log_q).sum(), 1.0, atol=3e-6)


def test_no_active_specialist_leaves_the_generalist():
    generalist, specialists, class_sets = random_case(4, 9, 3, 4.0)
    found = merge_one(generalist, specialists, class_sets, routes=np.zeros((1, 3)))
    np.testing.assert_allclose(found, log_softmax(generalist.astype("float64")), atol=1e-6)
    alone, residual = merge_one(generalist, [], [], return_residual=True)
    np.testing.assert_allclose(alone, log_softmax(generalist.astype("float64")), atol=1e-6)
    assert residual == 0.0
    assert residual.shape == ()


def test_inactive_specialists_are_as_good_as_absent():
    generalist, specialists, class_sets = random_case(6, 12, 5, 4.0)
    routes = np.array([[1, 0, 1, 0, 1]])
    expected = merge_one(generalist, specialists[::2], class_sets[::2])
    np.testing.assert_allclose(merge_one(generalist, specialists, class_sets, routes=routes), expected, atol=2e-5)
    few = merge_one(generalist, specialists, class_sets, routes=routes, max_active=3)
    np.testing.assert_allclose(few, expected, atol=2e-5)


def test_specialists_beyond_the_most_that_may_be_active_are_as_good_as_absent():
    generalist, specialists, class_sets = random_case(6, 12, 5, 4.0)
    routes = np.array([[0, 1, 1, 0, 1]])
    expected = merge_one(generalist, specialists[1:3], class_sets[1:3])
    found = merge_one(generalist, specialists, class_sets, routes=routes, max_active=2)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def em_problem(generalist_logits, specialist_logits, class_sets, generalist_weight=1.0):
    """The masses observed by name, those of the dustbins, and which classes lie outside of which set; float64."""
    mass = generalist_weight * softmax(generalist_logits.astype("float64"), -1)
    outside, dustbins = [], []
    for logits, class_set in zip(specialist_logits, class_sets, strict=True):
        probabilities = softmax(logits.astype("float64"), -1)
        mass[..., class_set] += probabilities[..., :-1]
        dustbins.append(probabilities[..., -1])
        outside.append(~np.isin(np.arange(mass.shape[-1]), class_set))
    return mass, np.stack(dustbins, -1), np.array(outside, float)


def em_step(q, mass, dustbins, outside):
    q = mass + q * ((dustbins / (q @ outside.T)) @ outside)
    return q / q.sum(-1, keepdims=True)


def float64_em(mass, dustbins, outside, num_steps=20_000):
    """q by EM until nothing moves: slow, plain, and of another method than ours."""
    q = mass / mass.sum(-1, keepdims=True)
    for _ in range(num_steps):
        q = em_step(q, mass, dustbins, outside)
    return q


def test_log_probabilities_themselves_are_right_where_the_objective_is_flat():
    # The objective does not see an error of 1e-4 in float32.
    for seed in range(8):
        generator = np.random.default_rng(seed)
        class_sets = [[0, 1], [1, 2, 3], [4, 5, 6]][: 2 + seed % 2]
        case = (
            generator.normal(size=8),
            [generator.normal(size=len(class_set) + 1) for class_set in class_sets],
            class_sets,
        )
        np.testing.assert_allclose(merge_one(*case), np.log(float64_em(*em_problem(*case))), atol=3e-6)


def sharp_batch(seed, scale, num_specialists=3, num_classes=20):
    """256 examples whose right class stands out by twice the spread of all others, as nets' outputs are."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(2, num_classes // 2, num_specialists)
    class_sets = [generator.choice(num_classes, size, replace=False).tolist() for size in sizes]
    labels = generator.integers(0, num_classes, 256)

    def logits(num_outputs, places):
        return scale * (generator.normal(size=(256, num_outputs)) + 2.0 * np.eye(num_outputs)[places])

    places = [[s.index(label) if label in s else len(s) for label in labels] for s in class_sets]
    specialists = [logits(len(s) + 1, where).astype("float32") for s, where in zip(class_sets, places, strict=True)]
    return logits(num_classes, labels).astype("float32"), specialists, class_sets


# Beside a light generalist, masses that float32 hardly knows decide who gets what the dustbins leave: where the right
# class stands out by twenty nats, a few examples in a hundred are beyond it.
@pytest.mark.parametrize(("scale", "beyond_1e_4", "beyond_1e_2"), [(6.0, 0.004, 0.002), (10.0, 0.033, 0.0065)])
def test_log_probabilities_of_sharp_examples_are_right_beside_a_light_generalist(scale, beyond_1e_4, beyond_1e_2):
    errors = []
    for seed in range(8):
        case = sharp_batch(seed, scale)
        problem = em_problem(*case, generalist_weight=0.1)
        expected = float64_em(*problem, num_steps=10_000)
        found = np.asarray(merge(*case, generalist_weight=0.1), "float64")
        is_converged = np.abs(np.log(em_step(expected, *problem) / expected)).max(-1) < 1e-8
        assert is_converged.mean() > 0.95
        errors.append(np.where(expected > 1e-8, np.abs(found - np.log(expected)), 0.0).max(-1)[is_converged])
    errors = np.concatenate(errors)
    assert np.median(errors) < 3e-6
    assert np.mean(errors > 1e-4) < beyond_1e_4
    assert np.mean(errors > 1e-2) < beyond_1e_2


def test_rows_of_a_batch_do_not_meet():
    cases = [random_case(seed, 12, 3, 5.0) for seed in (7, 8)]
    class_sets = [[0, 1, 2], [2, 3, 4, 5], [9]]
    generator = np.random.default_rng(0)
    generalist = np.stack([case[0] for case in cases])
    specialists = [generator.normal(size=(2, len(class_set) + 1)).astype("float32") * 3 for class_set in class_sets]
    routes = np.array([[1, 1, 0], [1, 1, 1]])
    together = np.asarray(merge(generalist, specialists, class_sets, routes=routes))
    for row in range(2):
        alone = merge_one(
            generalist[row], [part[row] for part in specialists], class_sets, routes=routes[row : row + 1]
        )
        np.testing.assert_allclose(together[row], alone, atol=2e-5)


def test_residual_bounds_the_distance_to_the_optimum():
    for seed in range(4):
        case = random_case(seed, 20, 5, 4.0)
        for steps in (1, 2, 4):
            log_q, residual = merge_one(*case, steps, return_residual=True)
            wide = (case[0].astype("float64"), [part.astype("float64") for part in case[1]], case[2])
            distance = scipy_optimum(log_q, *wide) - objective(softmax(log_q), *wide)
            assert distance <= residual + 1e-5
        assert merge_one(*case, 12, return_residual=True)[1] < 1e-4


def test_gradients_are_those_of_the_optimum():
    generalist, specialists, class_sets = random_case(9, 8, 3, 2.0)
    weights = np.random.default_rng(0).normal(size=8)

    def optimum(parts):
        return weights @ np.log(float64_em(*em_problem(parts[0], parts[1:], class_sets), num_steps=3000))

    found = gradient(
        lambda parts: merge(parts[0], parts[1:], class_sets, 12) * weights.astype("float32"),
        [part[None] for part in (generalist, *specialists)],
    )
    parts = [part.astype("float64") for part in (generalist, *specialists)]
    for position, part in enumerate(parts):
        for place in range(len(part)):
            shifted = []
            for step in (1e-5, -1e-5):
                moved = [other.copy() for other in parts]
                moved[position][place] += step
                shifted.append(optimum(moved))
            np.testing.assert_allclose(found[position][0, place], (shifted[0] - shifted[1]) / 2e-5, atol=2e-3)


def test_layer_gives_float32_under_a_mixed_policy_and_survives_its_config():
    generalist, specialists, class_sets = random_case(1, 10, 3, 5.0)
    inputs = [part[None] for part in (generalist, *specialists)]
    layer = SpecialistCombiner(class_sets, 10, steps=8, max_active=2, generalist_weight=0.5)
    again = SpecialistCombiner.from_config(layer.get_config())
    np.testing.assert_array_equal(layer(inputs), again(inputs))
    keras.config.set_dtype_policy("mixed_float16")
    try:
        mixed = SpecialistCombiner(class_sets, 10)
        # Told to keep float64, as these tests tell it, JAX makes that of every literal number.
        assert keras.config.backend() == "jax" or mixed(inputs).dtype == "float32"
        np.testing.assert_allclose(mixed(inputs), SpecialistCombiner(class_sets, 10)(inputs), atol=1e-6)
        told = SpecialistCombiner(class_sets, 10, dtype="mixed_float16")
        np.testing.assert_allclose(told(inputs), mixed(inputs), atol=1e-6)
    finally:
        keras.config.set_dtype_policy("float32")


def test_layer_runs_in_a_model_of_unknown_batch_size_and_under_xla():
    generalist, specialists, class_sets = random_case(1, 10, 3, 5.0)
    inputs = [keras.Input((len(part),)) for part in (generalist, *specialists)]
    model = keras.Model(inputs, SpecialistCombiner(class_sets, 10, steps=3)(inputs))
    assert model.output_shape == (None, 10)
    batch = [np.repeat(part[None], 3, axis=0) for part in (generalist, *specialists)]
    expected = np.repeat(merge_one(generalist, specialists, class_sets, 3)[None], 3, axis=0)
    np.testing.assert_allclose(model.predict(batch, verbose=0), expected, atol=1e-5)
    compiled = under_xla(lambda *parts: merge(parts[0], parts[1:], class_sets, 3))
    np.testing.assert_allclose(compiled(*batch), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("class_sets", "words"),
    [
        ([[]], r"class_sets\[0\] must hold at least one class"),
        ([[0, 4]], r"in \[0, 4\); got 4"),
        ([[0, -1]], ">= 0; got -1"),
        ([[1, 2, 1]], "each class once; got 1 2 times"),
        ([[0, 1, 2, 3]], "leave out at least one of the 4"),
    ],
)
def test_sets_that_are_none_are_refused(class_sets, words):
    with pytest.raises(ValueError, match=words):
        SpecialistCombiner(class_sets, 4)


@pytest.mark.parametrize(
    ("specialists", "words"),
    [
        ([np.zeros((1, 2))], "dustbin is missing"),
        ([np.zeros((1, 5))], "have 3 outputs"),
        ([], "1 tensors"),
        ([np.array([[0.0, np.nan, 1.0]])], r"specialist_logits\[0\] must be finite; got 1 of 3"),
    ],
)
def test_logits_that_do_not_fit_are_refused(specialists, words):
    with pytest.raises(ValueError, match=words):
        merge(np.zeros((1, 4)), specialists, [[0, 1]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be"),
        ({"max_active": 0}, "max_active must be"),
        ({"generalist_weight": 0.0}, "generalist_weight must be"),
    ],
)
def test_no_steps_no_specialists_at_most_and_a_generalist_without_weight_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        merge(np.zeros((1, 4)), [np.zeros((1, 3))], [[0, 1]], **options)
    with pytest.raises(ValueError, match=words):
        SpecialistCombiner([[0, 1]], 4, **options)


def test_two_classes_are_enough_for_a_specialist():
    found = SpecialistCombiner([[1]], 2)([np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])])
    np.testing.assert_allclose(np.exp(found), [[0.3, 0.7]], rtol=1e-5)  # ½ + 0.1 and ½ + 0.9, halved


def test_generalist_of_other_class_count_is_refused():
    with pytest.raises(ValueError, match="have 5 classes; got 4"):
        SpecialistCombiner([[0, 1]], 5)([np.zeros((1, 4)), np.zeros((1, 3))])


def net(units, seed, activation=None, dtype=None):
    kernel = keras.initializers.RandomNormal(stddev=2.0, seed=seed)
    layer = keras.layers.Dense(units, activation, kernel_initializer=kernel, dtype=dtype)
    return keras.Sequential([keras.Input((4,)), layer], name="namesake")


@pytest.fixture(scope="module")
def ensemble():
    specialists = [net(3, 1), net(4, 2, "softmax"), net(2, 3)]
    return SpecialistEnsemble(net(6, 0), specialists, [[0, 1], [1, 2, 3], [5]], num_routes=1, steps=2)


@pytest.fixture(scope="module")
def examples():
    return np.random.default_rng(0).normal(size=(40, 4)).astype("float32")


def test_ensemble_asks_those_whose_set_holds_the_generalists_best_class(ensemble, examples):
    generalist = np.asarray(logits_model(ensemble.generalist)(examples))
    routes = np.asarray(ensemble.routes(generalist))
    expected = [[float(best in class_set) for class_set in ensemble.class_sets] for best in generalist.argmax(-1)]
    np.testing.assert_array_equal(routes, expected)
    assert 0 < routes.mean() < 1
    logits = [np.asarray(logits_model(specialist)(examples)) for specialist in ensemble.specialists]
    merged = merge(generalist, logits, ensemble.class_sets, 2, routes=routes)
    np.testing.assert_allclose(ensemble(examples), merged, atol=1e-5)
    untouched = routes.sum(-1) == 0
    assert untouched.any()
    np.testing.assert_allclose(
        np.asarray(ensemble(examples))[untouched], log_softmax(generalist[untouched], -1), atol=1e-5
    )


def test_two_routes_ask_for_the_second_class_too(ensemble, examples):
    models = ensemble.generalist, ensemble.specialists
    twice = SpecialistEnsemble(*models, ensemble.class_sets, num_routes=2, steps=2)
    generalist = np.asarray(twice.generalist(examples))
    best_two = np.argsort(-generalist, -1)[:, :2]
    expected = [[float(bool(set(best) & set(s))) for s in twice.class_sets] for best in best_two]
    np.testing.assert_array_equal(twice.routes(generalist), expected)
    # Of three specialists the two classes ask three at most, and all of them count.
    logits = [np.asarray(logits_model(specialist)(examples)) for specialist in twice.specialists]
    merged = merge(generalist, logits, twice.class_sets, 2, routes=expected)
    np.testing.assert_allclose(twice(examples), merged, atol=1e-5)


class Counting(keras.layers.Layer):
    """Counts how often it really runs, and on how many examples."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.runs = self.add_weight(name="runs", shape=(), initializer="zeros", trainable=False)
        self.examples = self.add_weight(name="examples", shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        if not isinstance(inputs, keras.KerasTensor):
            self.runs.assign_add(1.0)
            self.examples.assign_add(keras.ops.cast(keras.ops.shape(inputs)[0], "float32"))
        return inputs


# It counts by a variable in the branch, which JAX's `cond`, a pure function, has no place for.
@pytest.mark.tensorflow
@pytest.mark.parametrize("compiled", [False, True])
def test_specialist_that_no_example_needs_is_not_run(compiled):
    inputs = keras.Input((4,))
    counting = Counting()
    wanted, unwanted = net(2, 1), keras.Model(inputs, keras.layers.Dense(2)(counting(inputs)))
    generalist = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, bias_initializer="zeros", kernel_initializer="zeros")]
    )
    generalist.layers[-1].bias.assign([5.0, 0.0, 0.0])
    ensemble = SpecialistEnsemble(generalist, [wanted, unwanted], [[0], [1]], steps=2)
    counting.runs.assign(0.0)
    run = compilation.compiled(ensemble, ensemble) if compiled else ensemble
    run(np.zeros((3, 4), "float32"))
    assert float(counting.runs.numpy()) == 0.0
    generalist.layers[-1].bias.assign([0.0, 5.0, 0.0])
    run(np.zeros((3, 4), "float32"))
    assert float(counting.runs.numpy()) == 1.0


@pytest.mark.tensorflow
@pytest.mark.parametrize("compiled", [False, True])
def test_specialist_sees_only_the_examples_that_ask_it(compiled, examples):
    inputs, counting = keras.Input((4,)), Counting()
    asked = keras.Model(inputs, net(3, 1)(counting(inputs)))
    ensemble = SpecialistEnsemble(net(6, 0), [asked, net(4, 2)], [[0, 1], [1, 2, 3]], steps=2)
    wanted = np.isin(np.asarray(ensemble.generalist(examples)).argmax(-1), [0, 1])
    counting.examples.assign(0.0)
    (compilation.compiled(ensemble, ensemble) if compiled else ensemble)(examples)
    assert counting.examples.numpy() == wanted.sum()
    assert 0 < wanted.sum() < 40
    models = ensemble.generalist, ensemble.specialists
    everywhere = SpecialistEnsemble(*models, ensemble.class_sets, steps=2, conditional=False)
    np.testing.assert_allclose(ensemble(examples), everywhere(examples), atol=1e-5)


def test_gradients_are_finite_where_examples_ask_none_one_or_several():
    generalist, specialists, class_sets = random_case(9, 8, 3, 20.0)
    routes = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 1]])
    logits = [np.repeat(part[None], 3, axis=0) for part in (generalist, *specialists)]
    gradients = gradient(lambda parts: merge(parts[0], parts[1:], class_sets, routes=routes)[:, 0], logits)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    np.testing.assert_array_equal(gradients[1][0], 0.0)
    np.testing.assert_allclose(gradients[0][0], np.eye(8)[0] - softmax(generalist), atol=1e-6)


def test_ensemble_made_under_a_mixed_policy_gives_its_models_what_it_was_given(ensemble, examples):
    """Its models keep the policy that they were made under: inputs beyond float16 must reach them."""
    large = examples * np.float32(1e5)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        mixed = SpecialistEnsemble(ensemble.generalist, ensemble.specialists, ensemble.class_sets, steps=2)
        np.testing.assert_allclose(mixed(large), ensemble(large), rtol=1e-5)
    finally:
        keras.config.set_dtype_policy("float32")


def test_ensemble_survives_a_save_and_a_load(ensemble, examples, tmp_path):
    ensemble.save(tmp_path / "ensemble.keras")
    again = keras.saving.load_model(tmp_path / "ensemble.keras")
    assert isinstance(again, SpecialistEnsemble)
    assert again.class_sets == ensemble.class_sets
    np.testing.assert_array_equal(again(examples), ensemble(examples))


def test_weight_of_the_generalist_is_the_merges_and_survives_a_config(ensemble, examples):
    weighted = SpecialistEnsemble(
        ensemble.generalist, ensemble.specialists, ensemble.class_sets, num_routes=2, generalist_weight=0.25
    )
    outputs = [np.asarray(logits_model(model)(examples)) for model in (ensemble.generalist, *ensemble.specialists)]
    routes = weighted.routes(outputs[0])
    expected = merge(outputs[0], outputs[1:], ensemble.class_sets, routes=routes, generalist_weight=0.25)
    np.testing.assert_allclose(weighted(examples), expected, atol=1e-4)
    assert np.abs(expected - merge(outputs[0], outputs[1:], ensemble.class_sets, routes=routes)).max() > 0.1
    again = SpecialistEnsemble.from_config(weighted.get_config())
    again.set_weights(weighted.get_weights())
    np.testing.assert_allclose(again(examples), expected, atol=1e-4)


def test_ensemble_predicts_and_evaluates(ensemble, examples):
    np.testing.assert_allclose(ensemble.predict(examples, verbose=0, batch_size=16), ensemble(examples), atol=1e-5)
    ensemble.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = np.arange(40) % 6
    expected = -np.asarray(ensemble(examples), "float64")[np.arange(40), labels].mean()
    np.testing.assert_allclose(ensemble.evaluate(examples, labels, verbose=0), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_outputs", "class_sets", "words"),
    [
        (3, [[0, 1], [2]], "there must be 2 specialists"),
        (2, [[0, 1]], "have 3 outputs, its 2 classes and the dustbin; got 2"),
    ],
)
def test_ensembles_that_do_not_fit_are_refused(num_outputs, class_sets, words):
    with pytest.raises(ValueError, match=words):
        SpecialistEnsemble(net(6, 0), [net(num_outputs, 1)], class_sets)


def test_more_routes_than_classes_are_refused():
    assert SpecialistEnsemble(net(3, 0), [net(2, 1)], [[0]], num_routes=3).get_config()["num_routes"] == 3
    with pytest.raises(ValueError, match="num_routes must be <= 3, the number of classes; got 4"):
        SpecialistEnsemble(net(3, 0), [net(2, 1)], [[0]], num_routes=4)


def test_a_generalist_of_unknown_inputs_is_refused():
    with pytest.raises(ValueError, match="generalist must be a model whose inputs are known"):
        SpecialistEnsemble(keras.Sequential([keras.layers.Dense(3)]), [net(2, 1)], [[0]])


def test_an_ensemble_without_specialists_is_its_generalist(examples):
    alone = SpecialistEnsemble(net(6, 0), [], [])
    np.testing.assert_allclose(alone(examples), log_softmax(np.asarray(net(6, 0)(examples)), axis=-1), atol=1e-5)


def test_what_runs_everywhere_may_be_compiled_by_xla_and_what_is_conditional_may_not():
    """Keras asks every layer."""
    for conditional in (True, False):
        ensemble = SpecialistEnsemble(net(3, 0), [net(2, 1)], [[0]], conditional=conditional)
        assert ensemble.get_layer("routed").supports_jit is not conditional
