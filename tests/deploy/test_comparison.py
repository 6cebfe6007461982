"""The rules by which one output is judged, each at its edge, and its figures against NumPy, SciPy and scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import r2_score

from keras_distill.deploy.answers import answer_of, coded, coded_labels, threshold_of, without_ruled_out
from keras_distill.deploy.comparison import compare_output
from keras_distill.deploy.distance import VALUES_AT_A_TIME, distance_of, drop_beyond_chance, explained_variance
from keras_distill.deploy.flips import flips_of


@pytest.fixture
def normal():
    """Standard normal numbers of a shape, others at each call."""
    generator = np.random.default_rng(0)
    return lambda *shape: generator.normal(size=shape)


def distance(expected, found, **options):
    return distance_of(expected, found, 0.0, 0.1, **options)


# Distances


@pytest.mark.parametrize("num_rows", [1, 10, VALUES_AT_A_TIME // 3 + 7])
@pytest.mark.parametrize("of_classes", [False, True])
def test_distances_are_numpy_s_in_one_piece_and_in_several(num_rows, of_classes, normal):
    expected, error = normal(num_rows, 5) * [1, 2, 3, 4, 5] + 7, 0.3 * normal(num_rows, 5)
    found = distance(expected, expected + error, of_classes=of_classes)
    assert found.max_abs_error == pytest.approx(np.abs(error).max())
    assert found.rmse == pytest.approx(np.sqrt(np.mean(error**2)))
    # Of a few rows the spread is not known: then a share of the size stands in.
    share = 1 / num_rows if num_rows < 8 else 1e-3
    spread = max(np.sqrt(expected.var(0).mean()), share * np.sqrt(np.mean(expected**2)))
    assert found.spread == pytest.approx(spread)
    assert found.num_far == np.count_nonzero(np.abs(error) > 0.1)
    if of_classes:
        centred, error = (array - array.mean(1, keepdims=True) for array in (expected, error))
        spread = max(np.sqrt(centred.var(0).mean()), share * np.sqrt(np.mean(centred**2)))
    assert found.margin_rmse == pytest.approx(np.sqrt(np.mean(error**2)))
    assert found.margin_spread == pytest.approx(spread)
    assert found.num_lost_rows == np.count_nonzero(np.sqrt(np.mean(error**2, 1)) > 0.5 * spread)


def test_a_value_of_which_little_is_left_is_lost_and_a_faint_one_apart(normal):
    expected = normal(100, 4) * [1.0, 1.0, 0.02, 0.0005]
    found = expected.copy()
    for value in range(1, 4):
        found[:, value] = -expected[:, value]
    result = distance(expected, found)
    assert result.lost_values == (1,)
    assert result.lost_faint_values == (2, 3)
    # Of fewer than eight rows nobody knows.
    assert distance(expected[:7], found[:7]).lost_values == ()


def test_a_small_unit_beside_a_large_one_has_its_own_tolerance(normal):
    expected = normal(100, 2) * [1e6, 1.0]
    found = expected + normal(100, 2) * [1.0, 0.01]
    # A price of a million is rounded to a tenth in float32, a rate of one is not.
    assert distance_of(expected, found, 1e-4, 1e-4).num_far > 50
    assert distance_of(expected, expected + normal(100, 2) * [1.0, 1e-6], 1e-4, 1e-4).num_far == 0
    for precision in ("float32", "float16", "int8"):
        swapped = np.stack([expected[:, 0], -expected[:, 1]], 1)
        assert compare_output("a", expected, swapped, precision=precision, answer="distance").problems


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("answer", ["argmax", "threshold"])
@pytest.mark.parametrize("share_masked", [0.1, 0.7])
def test_logits_that_are_ruled_out_hide_nothing_of_the_others(answer, share_masked, precision, normal):
    expected = 3 * normal(300, 10)
    is_masked = normal(300, 10) < stats.norm.ppf(share_masked)
    is_masked[np.arange(300), np.arange(300) % 10] = False
    error = {"float32": 1e-6, "float16": 1e-3, "int8": 0.02}[precision]
    found = expected + error * normal(300, 10)
    rough = -1e9 * (1 + error * normal(300, 10))
    masked = np.where(is_masked, -1e9, expected)
    assert not compare_output(
        "a", masked, np.where(is_masked, rough, found), precision=precision, answer=answer
    ).problems
    order = np.roll(np.arange(10), 1)
    for changed in (expected[:, order], 2.5 * expected):
        result = compare_output("a", masked, np.where(is_masked, -1e9, changed), precision=precision, answer=answer)
        assert result.problems
        assert result.spread < 10
    assert compare_output("a", masked, found, precision=precision, answer=answer).problems


def test_what_is_merely_low_is_not_ruled_out(normal):
    for rows in (
        1e5 * normal(300, 4),
        normal(300, 4) - 5000,
        np.array([[0.002, -4.0]]),
        np.array([[1.0, -1e9], [-1e9, -1e9]]),
        np.array([[1e9, 1.0], [-1e9, 2.0]]),
    ):
        assert without_ruled_out(rows, rows)[0] is rows


def test_explained_variance_is_scikit_learn_s(normal):
    targets, rows = normal(50, 3) * [1, 10, 100], normal(50, 3)
    assert explained_variance(targets, rows) == pytest.approx(r2_score(targets, rows))
    assert explained_variance(np.ones((50, 3)), rows) is None


def test_a_drop_of_r2_counts_where_the_paired_rows_say_so(normal):
    targets = normal(200, 1)
    rows = targets + 0.5 * normal(200, 1)
    noisy, worse = rows + 0.05 * normal(200, 1), rows + 0.5 * np.sign(rows - targets)
    more = ((worse - targets) ** 2 - (rows - targets) ** 2)[:, 0] / targets.var()
    expected = more.mean() - stats.norm.ppf(0.95) * stats.sem(more)
    assert drop_beyond_chance(targets, rows, worse) == pytest.approx(expected, rel=1e-3)
    assert drop_beyond_chance(targets, rows, noisy) < 0.005
    assert drop_beyond_chance(targets[:7], rows[:7], worse[:7]) == 0.0


# Rules at their edges


@pytest.mark.parametrize(("precision", "share"), [("float32", 0.01), ("float16", 0.1), ("int8", 0.5)])
def test_the_error_is_at_most_a_share_of_what_varies(precision, share, normal):
    scale = {"float32": 1e-3, "float16": 0.05, "int8": 1.0}[precision]
    expected = scale * normal(500, 4)
    direction = normal(500, 4)
    direction *= expected.std(0) / np.sqrt(np.mean(direction**2, 0))
    for factor in (0.9, 1.1):
        found = compare_output(
            "a", expected, expected + factor * share * direction, precision=precision, answer="argmax"
        )
        assert any("of how much they vary" in problem for problem in found.problems) == (factor > 1)


def test_a_regression_in_int8_keeps_99_percent_of_its_variance(normal):
    expected, direction = normal(5000, 1), normal(5000, 1)
    for share in (0.09, 0.11):
        found = compare_output("a", expected, expected + share * direction, precision="int8", answer="distance")
        assert found.agreement == pytest.approx(1 - share**2, abs=1e-3)
        assert bool(found.problems) == (share > 0.1)


def test_a_tie_is_four_errors_wide_and_never_more_than_a_fifth_of_the_spread(normal):
    expected = 3.0 * normal(400, 2)
    for error, width in ((0.01, 0.04), (2.0, 0.2 * np.sqrt(np.var((expected[:, 0] - expected[:, 1]) / 2)))):
        for factor in (0.9, 1.1):
            rows, found = expected.copy(), expected + error * np.sign(normal(400, 1)) * [1, -1]
            rows[0], found[0] = [factor * width, 0.0], [0.0, 0.01]
            result = distance(rows, found, of_classes=True)
            flips = flips_of(rows, found, "argmax", 0.0, result)
            assert flips.is_tie[list(flips.positions).index(0)] == (factor < 1)


def test_answers_outside_ties_may_be_one_in_a_hundred(normal):
    expected = np.eye(2)[np.arange(1000) % 2] * 5
    for num_flips in (10, 11):
        found = expected + 0.001 * normal(1000, 2)
        found[:num_flips] = found[:num_flips, ::-1]
        result = compare_output("a", expected, found, precision="int8", answer="argmax")
        assert any("ties apart" in problem for problem in result.problems) == (num_flips > 10)
        assert not compare_output(
            "a", expected, found, precision="int8", answer="argmax", max_accuracy_drop=0.01
        ).problems


def test_rows_that_are_lost_may_be_one_in_a_hundred_or_a_single_one(normal):
    for num_rows, allowed in ((1000, 10), (50, 1)):
        expected = normal(num_rows, 3)
        for num_lost in (allowed, allowed + 1):
            found = expected.copy()
            found[:num_lost] += [2.0, 2.0, 3.5]
            result = compare_output("a", expected, found, precision="int8", answer="threshold")
            said = [problem for problem in result.problems if "rows" in problem]
            assert bool(said) == (num_lost > allowed)


def test_faint_values_of_a_few_are_a_problem_and_of_many_a_remark(normal):
    for num_values in (4, 40):
        expected = normal(200, num_values)
        expected[:, 0] *= 0.02
        found = expected.copy()
        found[:, 0] *= -1
        result = compare_output("a", expected, found, precision="int8", answer="distance")
        assert any("at 0 have little in common" in problem for problem in result.problems) == (num_values == 4)
        assert any("at 0, which vary little, are lost" in remark for remark in result.remarks) == (num_values == 40)


@pytest.mark.parametrize(("num_lost", "num_gained"), [(4, 0), (5, 0), (9, 3), (10, 3), (3, 3), (0, 5)])
def test_ties_that_turn_wrong_count_where_a_sign_test_says_so(num_lost, num_gained, normal):
    num_rows = 100
    expected = np.tile([0.001, 0.0], (num_rows, 1)) + np.eye(2)[[0]] * 5
    labels = np.zeros(num_rows, int)
    expected[: num_lost + num_gained] = [0.001, 0.0]
    labels[num_lost : num_lost + num_gained] = 1
    found = expected.copy()
    found[: num_lost + num_gained] = [0.0, 0.001]
    # Errors elsewhere, so that a thousandth is within them.
    found[num_lost + num_gained :] += 0.01 * np.sign(normal(num_rows - num_lost - num_gained, 2))
    result = compare_output("a", expected, found, labels, precision="int8", answer="argmax")
    test = stats.binomtest(num_lost, num_lost + num_gained, alternative="greater").pvalue
    drop = (num_lost - num_gained) / num_rows
    assert result.accuracy_drop == pytest.approx(drop)
    assert any("accuracy drops" in problem for problem in result.problems) == (drop > 0.005 and test < 0.05)
    assert any("accuracy drops" in remark for remark in result.remarks) == (drop > 0.005 and test >= 0.05)


def test_a_class_that_the_labels_never_name_is_watched_through_the_reference_s_answers():
    expected = np.tile([5.0, 0.0, 0.0], (1000, 1))
    expected[:5] = [0.0, 5.0, 0.0]
    found = expected.copy()
    found[:5] = [5.0, 4.0, 0.0]
    labels = np.zeros(1000, int)
    result = compare_output("a", expected, found, labels, precision="int8", answer="argmax")
    assert result.accuracy_drop < 0.0
    assert any("class 1 from 100% to 0% of 5 inputs that the float32 model takes" in each for each in result.problems)


# What the answer is


@pytest.mark.parametrize(
    ("head", "shape", "labels", "answer"),
    [
        ("softmax", (6, 3), None, "argmax"),
        ("softmax", (6, 1), None, "argmax"),
        ("sigmoid", (6, 1), None, "threshold"),
        ("sigmoid", (6, 3), None, "threshold"),
        ("sigmoid", (6, 3), np.arange(6) % 3, "argmax"),
        ("linear", (6, 3), None, "argmax"),
        ("linear", (6, 1), None, "distance"),
        ("linear", (6,), None, "distance"),
        ("tanh", (6, 3), None, "distance"),
        (None, (6, 3), np.arange(6) % 3, "argmax"),
        (None, (6, 3), np.eye(3)[np.arange(6) % 3], "argmax"),
        (None, (6, 3), np.full((6, 3), 1 / 3), "argmax"),
        (None, (6, 3), np.tile([1, 0, 1], (6, 1)), "threshold"),
        (None, (6, 3), np.tile([0.5, 2.0, -1.0], (6, 1)), "distance"),
        (None, (6, 1), np.arange(6) % 2, "threshold"),
        (None, (6,), np.arange(6) % 2, "threshold"),
        (None, (6, 1), np.arange(6), "distance"),
        (None, (6, 4, 3), np.zeros((6, 4), int), "argmax"),
        (None, (6, 4, 3), np.eye(3)[np.zeros((6, 4), int)], "argmax"),
    ],
)
def test_the_answer_follows_the_head_and_the_labels(head, shape, labels, answer):
    assert answer_of(head, np.zeros(shape), labels) == answer


def test_yes_begins_at_zero_of_logits_and_at_a_half_of_shares():
    assert threshold_of("sigmoid", np.array([[0.2], [0.7]])) == 0.0
    assert threshold_of(None, np.array([[-0.2], [0.7]])) == 0.0
    assert threshold_of(None, np.array([[0.2], [0.7]])) == 0.5
    assert threshold_of(None, np.array([[-1.4], [0.8]]), from_logits=False) == 0.0


def test_answers_and_labels_have_one_code():
    rows = np.array([[1.0, -1.0], [-2.0, 3.0]])
    assert coded(rows, "argmax").tolist() == [0, 1]
    assert coded(rows, "threshold").tolist() == [1, 2, 0, 3]
    labels = np.array([[1, -1], [0, 1]])
    assert coded_labels("labels", labels, rows, "threshold").tolist() == [1, -1, 0, 3]
    assert coded_labels("labels", np.array([[0.2, 0.8], [-1.0, -1.0]]), rows, "argmax").tolist() == [1, -1]
    assert coded_labels("labels", np.array([[0.2, 0.8], [0.0, 1.0]]), rows, "threshold").tolist() == [0, 3, 0, 3]
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\); got 2 \(1 such\)"):
        coded_labels("labels", np.array([0, 2]), rows, "argmax")
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 2\); got \(2, 3\)"):
        coded_labels("labels", np.zeros((2, 3), int), rows, "threshold")
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        coded_labels("labels", np.array([0.5, 1.0]), rows, "argmax")
