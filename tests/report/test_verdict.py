"""One word about two models, against worlds whose truth is drawn and against published figures."""

import json
import re

import numpy as np
import pytest
from scipy import stats

from keras_distill.report.paired import difference_of
from keras_distill.report.verdict import Seen, Verdict, chance_of, compare_models
from tests.report.situations import situation

# What each situation deserves: the words, and what the reason must speak of.
EXPECTED = {
    "teacher at chance": ({"WORSE", "NO BETTER"}, "no better than chance"),
    "leaking teacher": ({"NO BETTER", "INCONCLUSIVE"}, "by heart"),
    "saturated student": ({"WORSE", "NO BETTER", "INCONCLUSIVE"}, "lacks room"),
    "few labels": ({"BETTER"}, ""),
    "noisy labels": ({"BETTER"}, ""),
    "unlabelled pool": ({"BETTER"}, ""),
    "under-trained": ({"NO BETTER", "INCONCLUSIVE", "WORSE"}, "too few steps"),
    "tiny test set": ({"INCONCLUSIVE"}, "too few to tell"),
    "teacher is the student": ({"NO BETTER", "INCONCLUSIVE", "WORSE"}, ""),
    "no difference": ({"NO BETTER", "INCONCLUSIVE"}, ""),
}


def verdict_of(drawn):
    more = dict(drawn.more)
    if "seen" in more:
        more["seen"] = Seen(*more["seen"])
    return compare_models(drawn.labels, drawn.candidate, drawn.baseline, **more)


@pytest.fixture(scope="module")
def runs():
    """(verdict, verdict of a test set of ten times the size) of each situation, five times."""
    found = {name: [situation(name, seed) for seed in range(5)] for name in EXPECTED}
    return {
        name: [
            (verdict_of(run), compare_models(run.fresh_labels, run.fresh_candidate, run.fresh_baseline)) for run in each
        ]
        for name, each in found.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_situation_gets_its_word_and_its_reason(runs, name):
    words, reason = EXPECTED[name]
    are_right = [found.word in words and reason in " ".join(found.reasons) for found, _ in runs[name]]
    assert sum(are_right) >= 4, [str(found) for found, _ in runs[name]]


@pytest.mark.slow
def test_better_is_hardly_ever_what_ten_times_as_many_examples_deny(runs):
    pairs = [pair for each in runs.values() for pair in each]
    denied = [str(found) for found, fresh in pairs if found.word == "BETTER" and fresh.word != "BETTER"]
    assert len(denied) <= 0.05 * len(pairs), denied


def answers(is_wrong, labels):
    """Logits of two classes that are wrong where they are told to be."""
    return 2.0 * np.eye(2)[np.where(is_wrong, 1 - labels, labels)]


def draw_pair(generator, num_items, only_candidate, only_baseline, both=0.1):
    """Labels and the logits of two models, wrong alone or together with these probabilities."""
    labels = generator.integers(0, 2, num_items)
    where = generator.choice(
        4, num_items, p=[only_candidate, only_baseline, both, 1 - only_candidate - only_baseline - both]
    )
    return labels, answers((where == 0) | (where == 2), labels), answers((where == 1) | (where == 2), labels)


def test_equal_models_are_seldom_called_better_or_worse():
    generator = np.random.default_rng(0)
    words = [compare_models(*draw_pair(generator, 300, 0.08, 0.08)).word for _ in range(400)]
    # At most 2.5 % each in the long run; the bound is what luck exceeds once in a thousand.
    allowed = stats.binom(400, 0.025).ppf(0.999)
    assert words.count("BETTER") <= allowed
    assert words.count("WORSE") <= allowed


def test_interval_covers_the_true_difference_as_often_as_it_says():
    generator = np.random.default_rng(1)
    found = [compare_models(*draw_pair(generator, 200, 0.05, 0.12)).errors for _ in range(400)]
    covered = sum(each.low <= -0.07 <= each.high for each in found)
    assert stats.binom(400, 0.95).ppf(0.001) <= covered <= stats.binom(400, 0.99).ppf(0.999)


def test_over_seeds_the_interval_covers_what_other_seeds_would_give():
    generator = np.random.default_rng(2)
    num_items, truth, covered = 150, -0.05, 0
    for _ in range(300):
        labels = generator.integers(0, 2, num_items)
        # How hard an example is for the candidate alone, and how lucky a seed is.
        hard, lucky = generator.normal(size=num_items) * 0.05, generator.normal(size=(3, 1)) * 0.04
        chances = np.clip(0.25 + truth + hard + lucky, 0, 1)
        wrong = generator.random((3, num_items)) < chances
        base = generator.random((3, num_items)) < 0.25
        found = compare_models(labels, *(np.stack([answers(row, labels) for row in rows]) for rows in (wrong, base)))
        covered += found.errors.low <= truth <= found.errors.high
        assert found.num_seeds == 3
    assert covered >= stats.binom(300, 0.95).ppf(0.001)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_over_seeds_that_differ_by_nothing_equal_models_are_seldom_told_apart(num_seeds):
    generator = np.random.default_rng(num_seeds)
    num_items, rate = 200, 0.2
    found = []
    for _ in range(500):
        # Some examples are hard for both models and every seed.
        hardness = generator.beta(rate / 3, (1 - rate) / 3, num_items)
        wrong = generator.random((2, num_seeds, num_items)) < hardness
        labels = generator.integers(0, 2, num_items)
        found.append(compare_models(labels, *(np.stack([answers(row, labels) for row in rows]) for rows in wrong)))
    differ = sum(each.word in ("BETTER", "WORSE") for each in found)
    assert differ <= stats.binom(500, 0.05).ppf(0.999)
    assert sum(each.errors.low <= 0.0 <= each.errors.high for each in found) >= stats.binom(500, 0.95).ppf(0.001)
    # The rate's own interval is as wide as the examples make it: as independent answers it would cover seldom.
    assert sum(each.candidate.low <= rate <= each.candidate.high for each in found) >= stats.binom(500, 0.95).ppf(0.001)
    pooled = np.median([each.candidate.high - each.candidate.low for each in found])
    independent = stats.binomtest(round(rate * num_items * num_seeds), num_items * num_seeds).proportion_ci(
        method="wilson"
    )
    assert pooled > 1.1 * (independent.high - independent.low)


def test_pairs_that_never_differ_on_few_examples_decide_nothing_over_seeds_either():
    labels = np.arange(40) % 2
    logits = np.stack([answers(np.arange(40) < 8, labels)] * 3)
    found = compare_models(labels, 1.1 * logits, logits)
    assert found.word == "INCONCLUSIVE"
    assert found.errors.low < 0.0 < found.errors.high
    alone = compare_models(labels, logits[0], logits[0]).candidate
    assert (found.candidate.low, found.candidate.high) == pytest.approx((alone.low, alone.high), abs=0.01)


def test_the_same_model_is_no_better_however_few_examples_there_are():
    labels = np.arange(6) % 2
    logits = answers(np.arange(6) < 2, labels)
    found = compare_models(labels, logits, logits)
    assert found.word == "NO BETTER"
    assert found.reasons == ("Both give the same logits for every example: they are the same model.",)


def test_where_trainings_differ_most_more_of_them_are_asked_for():
    labels = np.zeros(1000, int)
    wrong, base = np.zeros((3, 1000), bool), np.zeros((3, 1000), bool)
    wrong[0, :300], wrong[1, :100], wrong[2, :20], base[:, :200] = True, True, True, True
    found = compare_models(labels, *(np.stack([answers(row, labels) for row in rows]) for rows in (wrong, base)))
    (sentence,) = found.reasons
    assert sentence.startswith("3 trainings of each are too few to tell: about ")
    # The variance of three seeds' mean is 0.0072, which 2.8 standard errors of 0.06 allow a sixteenth of.
    seeds = np.array([0.1, -0.1, -0.18])
    needed = int(re.search(r"about ([\d,]+) would", sentence)[1])
    assert needed == pytest.approx(seeds.var(ddof=1) * (1.96 + 0.8416) ** 2 / 0.06**2, rel=0.1)


def test_a_gain_worth_having_is_seldom_denied():
    generator = np.random.default_rng(5)
    # 20 % wrong and a tenth of that less.
    words = [compare_models(*draw_pair(generator, 500, 0.02, 0.04, 0.16)).word for _ in range(250)]
    assert words.count("NO BETTER") <= stats.binom(250, 0.05).ppf(0.999)


def test_power_is_that_of_the_exact_test():
    generator = np.random.default_rng(6)
    num_items, only_candidate, only_baseline = 300, 0.05, 0.12
    differing = np.arange(num_items + 1)
    # Of so many answers that differ, the most that may be the candidate's: both tails of a coin are below 5 % there.
    limits = stats.binom.ppf(0.025, differing, 0.5)
    limits = np.where(stats.binom.cdf(limits, differing, 0.5) < 0.025, limits, limits - 1)
    share = only_candidate / (only_candidate + only_baseline)
    power = float(
        stats.binom.pmf(differing, num_items, only_candidate + only_baseline)
        @ stats.binom.cdf(limits, differing, share)
    )
    words = [compare_models(*draw_pair(generator, num_items, only_candidate, only_baseline)).word for _ in range(300)]
    allowed = stats.binom(300, power)
    assert allowed.ppf(0.0005) <= words.count("BETTER") <= allowed.ppf(0.9995)


def test_a_large_difference_of_seeds_keeps_three_of_them_from_deciding():
    # Each pair differs clearly, but now in one direction and now in the other.
    labels = np.zeros(1000, int)
    wrong, base = np.zeros((3, 1000), bool), np.zeros((3, 1000), bool)
    wrong[0, :300], wrong[1, :100], wrong[2, :20], base[:, :200] = True, True, True, True
    found = compare_models(labels, *(np.stack([answers(row, labels) for row in rows]) for rows in (wrong, base)))
    assert found.word == "INCONCLUSIVE"
    assert found.errors.mean == pytest.approx(-0.06)
    assert found.errors.high > 0.1


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_the_one_sided_bound_over_seeds_is_that_of_a_t_test(num_seeds):
    # Seeds that differ, each alike on every example, are a sample of as many numbers.
    by_seed = np.random.default_rng(num_seeds).normal(0.3, 0.1, num_seeds)
    found = difference_of(np.repeat(by_seed[:, None], 50, axis=1))
    one_sided = stats.ttest_1samp(by_seed, 0.0, alternative="greater")
    assert found.degrees_of_freedom == pytest.approx(num_seeds - 1)
    assert found.one_sided_low() == pytest.approx(one_sided.confidence_interval(0.95).low)
    # Its level: how often a t-distributed mean of no difference lies that many standard errors above zero.
    errors_below = (found.mean - found.one_sided_low()) / (by_seed.std(ddof=1) / num_seeds**0.5)
    assert stats.t.sf(errors_below, num_seeds - 1) == pytest.approx(0.05)


def test_over_seeds_a_gain_is_denied_at_the_level_of_the_t_distribution():
    # Of 1,000 examples the baseline gets 200 wrong, always; three candidates 195, 203 and 208.
    labels = np.zeros(1000, int)
    wrong = [np.arange(1000) < number for number in (195, 203, 208)]
    pair = np.stack([answers(row, labels) for row in wrong]), np.stack([answers(np.arange(1000) < 200, labels)] * 3)
    found = compare_models(labels, *pair)
    reach, freedom = found.errors.mean - found.errors.low, found.errors.degrees_of_freedom
    lowest = found.errors.mean - reach * stats.t.ppf(0.95, freedom) / stats.t.ppf(0.975, freedom)
    of_normal = found.errors.mean - reach * stats.norm.ppf(0.95) / stats.norm.ppf(0.975)
    # The gain worth having lies between the two bounds.
    share = -(lowest + of_normal) / 2 / 0.2
    assert of_normal < -share * 0.2 < lowest < 0.0
    assert compare_models(labels, *pair, margin=share).word == "NO BETTER"


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_one_example_says_nothing_of_others(num_seeds):
    candidate, baseline = np.tile([[1.0, 0.0]], (num_seeds, 1, 1)), np.tile([[0.0, 1.0]], (num_seeds, 1, 1))
    # Seeds may differ.
    baseline[-1] = [[0.0, 3.0]]
    found = compare_models([0], candidate, baseline)
    assert found.word == "INCONCLUSIVE"
    assert (found.nll.low, found.nll.high, found.nll.p_value) == (-np.inf, np.inf, 1.0)
    assert found.errors.p_value == 1.0
    assert found.errors.low <= -0.75
    # Wilson's interval of one example is (0, 0.793) or wider.
    assert found.candidate.low == 0.0
    assert found.candidate.high >= 0.793
    told = json.dumps(found.to_json(), allow_nan=False)
    assert Verdict.from_json(json.loads(told)) == found


def test_one_example_on_which_seeds_differ_is_inconclusive_within_the_bounds_of_a_share():
    right, wrong = [[1.0, 0.0]], [[0.0, 1.0]]
    found = compare_models([0], [wrong, wrong, wrong], [wrong, wrong, right])
    assert (found.word, found.errors.mean) == ("INCONCLUSIVE", pytest.approx(1 / 3))
    assert (found.errors.low, found.errors.high, found.errors.p_value) == (-1.0, 1.0, 1.0)
    assert found.reasons[0].startswith("1 test examples are too few to tell")


@pytest.mark.parametrize("num_seeds", [1, 3])
@pytest.mark.parametrize("num_items", [2, 5, 6, 40])
def test_differences_that_are_all_the_same_are_judged_by_the_sign_test(num_items, num_seeds):
    labels = np.arange(num_items) % 2
    candidate, baseline = (
        np.tile(answers(is_wrong, labels), (num_seeds, 1, 1)) for is_wrong in (labels < 0, labels >= 0)
    )
    found = compare_models(labels, candidate, baseline)
    p_value = stats.binomtest(0, num_items).pvalue
    assert found.nll.p_value == found.errors.p_value == pytest.approx(p_value)
    # Softmax of 2 and 0: the likelihoods of right and wrong are two nats apart.
    assert found.nll.mean == pytest.approx(-2.0)
    bounds = (-2.0, -2.0) if p_value < 0.05 else (-np.inf, np.inf)
    assert (found.nll.low, found.nll.high) == pytest.approx(bounds)
    assert found.word == ("BETTER" if p_value < 0.05 else "INCONCLUSIVE")


def test_interval_of_paired_shares_is_newcombes():
    # Newcombe 1998 (II), table III: of 50 pairs 36 wrong in both, 12 and 2 in one, none in neither; method 10.
    kinds = np.repeat([0, 1, 2], [36, 12, 2])
    labels = np.zeros(50, int)
    found = compare_models(labels, answers(kinds <= 1, labels), answers(kinds != 1, labels))
    assert (found.errors.low, found.errors.high) == pytest.approx((0.0569, 0.3404), abs=1e-4)


def test_p_value_is_mcnemars():
    kinds = np.repeat([1, 2, 3], [2, 10, 88])
    labels = np.zeros(100, int)
    found = compare_models(labels, answers(kinds == 1, labels), answers(kinds == 2, labels))
    # Two or fewer of twelve coins, or ten and more.
    assert found.errors.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert (found.candidate.rate, found.baseline.rate, found.errors.mean) == (0.02, 0.1, pytest.approx(-0.08))
    assert found.word == "BETTER"


def test_likelihoods_have_the_interval_of_a_t_test_where_that_holds():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 3, 2000)
    baseline = generator.normal(size=(2000, 3))
    candidate = baseline + 0.3 * generator.normal(size=(2000, 3)) + 0.05 * np.eye(3)[labels]
    found = compare_models(labels, candidate, baseline).nll
    nll = [
        -(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(2000), labels]
        for logits in (candidate, baseline)
    ]
    difference = nll[0] - nll[1]
    interval = stats.ttest_1samp(difference, 0).confidence_interval()
    width = interval.high - interval.low
    assert found.mean == pytest.approx(difference.mean())
    assert found.low == pytest.approx(interval.low, abs=0.1 * width)
    assert found.high == pytest.approx(interval.high, abs=0.1 * width)


def test_the_size_that_is_named_decides_four_times_of_five():
    generator = np.random.default_rng(4)
    labels, candidate, baseline = draw_pair(np.random.default_rng(9), 100, 0.07, 0.10)
    few_wrong = [logits.argmax(-1) != labels for logits in (candidate, baseline)]
    few = compare_models(labels, candidate, baseline)
    assert few.word == "INCONCLUSIVE"
    (sentence,) = few.reasons
    needed = int(re.search(r"about ([\d,]+) would decide", sentence)[1].replace(",", ""))
    # A world in which the two differ as they did here.
    gain = max(-few.errors.mean, 0.1 * few.baseline.rate)
    differing = np.mean((few_wrong[0] | few_wrong[1]) & ~(few_wrong[0] & few_wrong[1]))
    shares = [(differing - gain) / 2, (differing + gain) / 2]
    words = [compare_models(*draw_pair(generator, needed, *shares)).word for _ in range(100)]
    assert 60 <= words.count("BETTER") <= 97


def test_one_column_is_the_logit_of_class_one():
    labels = np.array([0, 1] * 50)
    column = np.where(labels == 1, 1.5, -1.5)[:, None]
    as_two = np.concatenate([np.zeros_like(column), column], axis=1)
    wrong = -column
    one, two = (
        compare_models(labels, column, wrong),
        compare_models(labels, as_two, np.concatenate([0 * wrong, wrong], 1)),
    )
    assert one == two
    assert one.word == "BETTER"


def test_better_teacher_than_luck_is_told_by_a_binomial_tail():
    labels = np.arange(100) % 4
    some = np.where(np.arange(100) < 40, labels, (labels + 1) % 4)
    assert chance_of(some, labels) == pytest.approx((0.25, stats.binom(100, 0.25).sf(39)))


def test_a_verdict_goes_round_through_json():
    labels = np.arange(60) % 3
    found = compare_models(labels, np.eye(3)[labels], np.eye(3)[(labels + (labels == 0)) % 3])
    told = json.loads(json.dumps(found.to_json()))
    assert told["word"] == "BETTER"
    assert told["baseline"]["rate"] == pytest.approx(1 / 3)
    assert told["errors"]["mean"] == pytest.approx(-1 / 3)
    assert set(told) == {"word", "candidate", "baseline", "errors", "nll", "num_items", "num_seeds", "reasons"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"candidate_logits": np.zeros((3, 3))}, "baseline_logits must have shape (1, 3, 3), as candidate_logits"),
        ({"labels": [0, 1]}, "there must be 4 labels"),
        ({"labels": [0, 1, 2, 3]}, "labels must be"),
        ({"candidate_logits": np.full((4, 3), np.nan)}, "candidate_logits must be finite"),
        ({"baseline_logits": np.zeros(4)}, "baseline_logits must have shape (num_items, num_classes) or"),
        ({"margin": 1.5}, "margin must be"),
    ],
)
def test_bad_input_is_refused(change, said):
    given = {"labels": [0, 1, 2, 0], "candidate_logits": np.zeros((4, 3)), "baseline_logits": np.zeros((4, 3))} | change
    with pytest.raises(ValueError, match=re.escape(said)):
        compare_models(**given)
