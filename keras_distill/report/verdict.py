"""Is one model better than another on the same examples? One word, the difference with its interval, and why.

What a model is and how it was trained is the caller's; here are logits, labels and statistics.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from keras_distill._checks import check_choice, check_finite, check_fraction, check_labels, error_message
from keras_distill._types import ArrayLike
from keras_distill.report.metrics import log_softmax, softmax
from keras_distill.report.paired import (
    SIGNIFICANCE,
    Difference,
    Rate,
    contributions,
    difference_of,
    difference_of_errors,
    newcombe,
    rate_of,
)

Word = Literal["BETTER", "NO BETTER", "WORSE", "INCONCLUSIVE"]
_OF_A_RATE = ("rate", "low", "high")
# A gain worth having, as a share of the baseline's errors: who distils for less will not see it.
MARGIN = 0.1
# A student is short of room where it is at least so wrong on its training examples as on others, as a share.
_AS_WRONG = 0.75
# A teacher knows examples by heart where its targets for them have less than this share of the entropy of others.
_BY_HEART = 0.5
# The odds at which a reason is taken for one: reasons are looked for in numbers that were not made for it.
_CERTAIN = 1e-3
# How often a test set of the size that `examples_to_decide` names does decide.
_POWER = 0.8


@dataclass(frozen=True)
class Verdict:
    """What `compare_models` found.

    Attributes:
        word: `"BETTER"` or `"WORSE"` where chance does not explain the difference of errors; `"NO BETTER"` where the
            interval excludes a gain worth having, a tenth of the baseline's errors; else `"INCONCLUSIVE"`.
        candidate: its error rate.
        baseline: its error rate.
        errors: difference of the error rates.
        nll: difference of the negative log likelihoods, nats.
        num_items: examples.
        num_seeds: trainings of each model.
        reasons: whole sentences: what is visible of the cause.
    """

    word: Word
    candidate: Rate
    baseline: Rate
    errors: Difference
    nll: Difference
    num_items: int
    num_seeds: int
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        errors = self.errors
        points = f"{100 * errors.mean:+.2f} points [{100 * errors.low:+.2f}, {100 * errors.high:+.2f}]"
        rates = f"{100 * self.candidate.rate:.2f} % errors against {100 * self.baseline.rate:.2f} %"
        return f"{self.word}: {rates}, {points}, on {self.num_items:,} examples"

    def to_json(self) -> dict[str, Any]:
        """All of it as dictionaries, lists and numbers; a bound that is infinite is `None`, as JSON has no infinity."""
        told = asdict(self) | {"reasons": list(self.reasons)}
        for difference in (told["errors"], told["nll"]):
            difference |= {name: None for name in ("low", "high") if math.isinf(difference[name])}
        return told

    @classmethod
    def from_json(cls, contents: Mapping[str, Any]) -> "Verdict":
        """A verdict from what `to_json` gave.

        Raises:
            ValueError: it is something else.

        Example:
            >>> verdict = compare_models([0, 1] * 50, np.eye(2)[[0, 1] * 50], np.eye(2)[[1, 0] * 50])
            >>> Verdict.from_json(verdict.to_json()) == verdict
            True
        """
        try:
            verdict = cls(
                contents["word"],
                Rate(*(float(contents["candidate"][name]) for name in _OF_A_RATE)),
                Rate(*(float(contents["baseline"][name]) for name in _OF_A_RATE)),
                _difference_from(contents["errors"]),
                _difference_from(contents["nll"]),
                int(contents["num_items"]),
                int(contents["num_seeds"]),
                tuple(str(reason) for reason in contents["reasons"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            received = f"{contents!r:.100}" if not isinstance(error, KeyError) else f"one without {error}"
            raise ValueError(error_message("a verdict must be as Verdict.to_json gives it", received)) from error
        check_choice("the word of a verdict", verdict.word, get_args(Word))
        return verdict


def _difference_from(contents: Mapping[str, Any]) -> Difference:
    low, high = contents["low"], contents["high"]
    # Verdicts of older versions do not say it.
    freedom = contents.get("degrees_of_freedom")
    return Difference(
        float(contents["mean"]),
        -math.inf if low is None else float(low),
        math.inf if high is None else float(high),
        float(contents["p_value"]),
        None if freedom is None else float(freedom),
    )


@dataclass(frozen=True)
class Seen:
    """What models give for the examples that the student was trained on.

    Attributes:
        labels: integers, `(num_items,)`.
        student_logits: `(num_items, num_classes)`, of the student that was distilled.
        teacher_logits: `(num_items, num_classes)`; `None` where the teacher is not there.
    """

    labels: ArrayLike
    student_logits: ArrayLike
    teacher_logits: ArrayLike | None = None


def compare_models(
    labels: ArrayLike,
    candidate_logits: ArrayLike,
    baseline_logits: ArrayLike,
    *,
    teacher_logits: ArrayLike | None = None,
    seen: Seen | None = None,
    temperature: float = 1.0,
    was_too_short: bool | None = None,
    margin: float = MARGIN,
) -> Verdict:
    """Says whether the candidate is better than the baseline, and what is visible of the reason.

    Errors of one training each are compared by McNemar's exact test, with Newcombe's interval for a difference of
    paired shares; their negative log likelihoods by a paired bootstrap. Of several trainings all see the same examples,
    so neither is every answer an example of its own, nor does the mean over seeds forget that other seeds would differ:
    examples and seeds are crossed random effects, and the variance of the mean is the sum of what each contributes.

    Args:
        labels: integers, `(num_items,)`; of examples that nothing was trained on or chosen by.
        candidate_logits: `(num_items, num_classes)`, or `(num_seeds, num_items, num_classes)`. One column is the logit
            of class 1.
        baseline_logits: of the same shape.
        teacher_logits: `(num_items, num_classes)`, for the reasons that lie with the teacher.
        seen: the same models on training examples, for the reasons that lie in what was trained on.
        temperature: at which the teacher's targets were softened.
        was_too_short: whether the candidate's validation loss was still falling; `None` where that is not known.
        margin: the smallest gain worth having, as a share of the baseline's errors, in (0, 1].

    Returns:
        The verdict.

    Raises:
        ValueError: no examples, shapes that differ, labels out of range, logits that are NaN or infinite.

    Example:
        >>> labels = np.arange(200) % 2
        >>> right = np.eye(2)[labels]
        >>> wrong_often, wrong_seldom = right.copy(), right.copy()
        >>> wrong_often[:60], wrong_seldom[:20] = right[1:61], right[1:21]
        >>> print(compare_models(labels, wrong_seldom, wrong_often))
        BETTER: 10.00 % errors against 30.00 %, -20.00 points [-25.82, -14.45], on 200 examples

    Reference:
        McNemar, Psychometrika 12 (1947); Newcombe, Statistics in Medicine 17 (1998), 2635, method 10; Efron and
        Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; Satterthwaite, Biometrics Bulletin 2 (1946).
    """
    check_fraction("margin", margin)
    candidate, num_classes = _stacked("candidate_logits", candidate_logits)
    baseline, _ = _stacked("baseline_logits", baseline_logits)
    if candidate.shape != baseline.shape:
        raise ValueError(
            error_message(f"baseline_logits must have shape {candidate.shape}, as candidate_logits", baseline.shape)
        )
    truth = check_labels("labels", labels, num_classes)
    if len(truth) != candidate.shape[1]:
        expectation = f"there must be {candidate.shape[1]} labels, one for each row of the logits"
        raise ValueError(error_message(expectation, len(truth)))
    wrong = [logits.argmax(axis=-1) != truth for logits in (candidate, baseline)]
    errors = difference_of_errors(*wrong)
    nll = difference_of(_nll(candidate, truth) - _nll(baseline, truth))
    is_same = np.array_equal(candidate, baseline)
    word = "NO BETTER" if is_same else _word(errors, wrong, margin)
    reasons = ["Both give the same logits for every example: they are the same model."] if is_same else []
    if teacher_logits is not None:
        reasons += _reasons_of_teacher(_stacked("teacher_logits", teacher_logits)[0][0], truth, wrong[1][0])
    # What a bad teacher has done to a student, or too few steps, is not the student's size.
    if word != "BETTER" and not reasons:
        if was_too_short:
            reasons.append("It had too few steps: its loss on validation data was still falling.")
        else:
            reasons += _reasons_of_training(seen, teacher_logits, wrong[0], temperature)
    if word == "INCONCLUSIVE":
        reasons.append(_size_that_decides(errors, wrong, margin))
    return Verdict(word, rate_of(wrong[0]), rate_of(wrong[1]), errors, nll, len(truth), len(candidate), tuple(reasons))


def chance_of(answers: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """What luck would have right, and how often it does as well as these answers.

    Luck deals the same answers out at random, so that always saying the most frequent class is worth nothing.

    Args:
        answers: class ids, `(num_items,)`.
        labels: class ids, `(num_items,)`.

    Returns:
        The share that luck would have right, `Σ_c p(answer c) · p(label c)`, and the upper tail of the binomial
        distribution with that share.

    Example:
        >>> labels = np.arange(90) % 3
        >>> chance_of(labels, labels)[1] < 1e-9, chance_of(np.zeros(90, int), labels)[1] > 0.4
        (True, True)
    """
    from scipy.stats import binomtest

    num_classes = int(max(answers.max(), labels.max())) + 1
    shares = [np.bincount(ids, minlength=num_classes) / len(ids) for ids in (answers, labels)]
    chance = min(float(shares[0] @ shares[1]), 1.0)
    num_right = int(np.count_nonzero(answers == labels))
    return chance, float(binomtest(num_right, len(labels), chance, "greater").pvalue)


def _stacked(name: str, logits: ArrayLike) -> tuple[np.ndarray, int]:
    """`(num_seeds, num_items, num_classes)`, float64, and how many classes."""
    values = check_finite(name, np.asarray(logits, "float64"))
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or not values.size:
        expectation = f"{name} must have shape (num_items, num_classes) or (num_seeds, num_items, num_classes)"
        raise ValueError(error_message(expectation, np.shape(logits)))
    if values.shape[-1] == 1:
        # The logit of class 1 beside a class 0 at zero: the softmax of both is the sigmoid.
        values = np.concatenate([np.zeros_like(values), values], axis=-1)
    return values, values.shape[-1]


def _nll(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Nats, `(num_seeds, num_items)`."""
    return -np.take_along_axis(log_softmax(logits), labels[None, :, None], axis=-1)[..., 0]


def _word(errors: Difference, wrong: Sequence[np.ndarray], margin: float) -> Word:
    if errors.p_value < SIGNIFICANCE and errors.high < 0.0:
        return "BETTER"
    if errors.p_value < SIGNIFICANCE and errors.low > 0.0:
        return "WORSE"
    if wrong[0].shape[1] == 1:
        # One example says nothing of others.
        return "INCONCLUSIVE"
    # One-sided, as a test of equivalence is: does the interval of 90 % leave room for a gain worth having?
    worth_having = -margin * float(wrong[1].mean())
    if errors.degrees_of_freedom is None:
        lowest, _ = newcombe(wrong[0][0], wrong[1][0], 1.0 - 2 * SIGNIFICANCE)
    else:
        lowest = errors.one_sided_low()
    return "NO BETTER" if lowest > worth_having else "INCONCLUSIVE"


def _size_that_decides(errors: Difference, wrong: Sequence[np.ndarray], margin: float) -> str:
    """How large a test set would have to be for a difference such as the one seen, or such as would be worth having."""
    from scipy.stats import norm

    num_seeds, num_items = wrong[0].shape
    # Two models that never differ on few examples may still do so once.
    differing = max(float(np.mean(wrong[0] != wrong[1])), 1.0 / num_items)
    gain = max(abs(errors.mean), margin * float(wrong[1].mean()), 1.0 / num_items)
    quantiles = norm.ppf(1.0 - SIGNIFICANCE / 2) + norm.ppf(_POWER)
    if num_seeds > 1 and num_items > 1:
        (seed, item, rest), _ = contributions(wrong[0].astype("float64") - wrong[1])
        if seed > item:
            # Then more examples would not do: the trainings are what there is too little of.
            seeds = max(math.ceil(num_seeds * (seed + item + rest) * quantiles**2 / gain**2), num_seeds + 1)
            return f"{num_seeds} trainings of each are too few to tell: about {seeds:,} would decide."
    needed = max(math.ceil(quantiles**2 * differing / gain**2), num_items + 1)
    rounded = round(needed, 1 - int(math.log10(needed)))
    return f"{num_items:,} test examples are too few to tell: about {max(rounded, num_items + 1):,} would decide."


def _reasons_of_teacher(teacher: np.ndarray, labels: np.ndarray, baseline_wrong: np.ndarray) -> list[str]:
    answers = teacher.argmax(axis=-1)
    wrong = answers != labels
    rate = f"{100 * wrong.mean():.1f} %"
    if chance_of(answers, labels)[1] > 0.01:
        return [f"The teacher is no better than chance ({rate} wrong): look at how its inputs are scaled."]
    against = difference_of_errors(wrong[None], baseline_wrong[None])
    if against.p_value < SIGNIFICANCE and against.low > 0.0:
        other = f"{100 * baseline_wrong.mean():.1f} %"
        return [f"The teacher is worse ({rate} wrong) than the student that learned from labels alone ({other})."]
    return []


def _reasons_of_training(
    seen: Seen | None, teacher_logits: ArrayLike | None, wrong: np.ndarray, temperature: float
) -> list[str]:
    if seen is None:
        return []
    from scipy.stats import fisher_exact, mannwhitneyu

    reasons = []
    labels = np.asarray(seen.labels)
    student = _stacked("seen.student_logits", seen.student_logits)[0][0]
    seen_wrong = int(np.count_nonzero(student.argmax(axis=-1) != labels))
    rates = seen_wrong / len(labels), float(wrong.mean())
    table = [[seen_wrong, len(labels) - seen_wrong], [int(wrong[0].sum()), int((~wrong[0]).sum())]]
    is_less = fisher_exact(table, alternative="less").pvalue < _CERTAIN
    # Some errors, or there is nothing that it lacks.
    if seen_wrong >= 10 and rates[0] >= _AS_WRONG * rates[1] and not is_less:
        shares = " and ".join(f"{100 * rate:.1f} %" for rate in rates)
        reasons.append(
            f"The student lacks room: it is about as wrong on its training examples as on others ({shares}). Take a "
            "larger one, or a lower temperature and more weight for the labels."
        )
    if seen.teacher_logits is not None and teacher_logits is not None:
        at_home, abroad = (
            _entropy(_stacked("teacher_logits", logits)[0][0] / temperature)
            for logits in (seen.teacher_logits, teacher_logits)
        )
        is_lower = mannwhitneyu(at_home, abroad, alternative="less").pvalue < _CERTAIN
        if is_lower and at_home.mean() < _BY_HEART * abroad.mean():
            nats = f"{at_home.mean():.3f} against {abroad.mean():.3f} nats"
            reasons.append(
                f"The teacher knows the training examples by heart: its targets say less of them ({nats}). Distil on "
                "examples or views that it was not trained on."
            )
    return reasons


def _entropy(logits: np.ndarray) -> np.ndarray:
    """Nats, `(num_items,)`."""
    return -np.sum(softmax(logits) * log_softmax(logits), axis=-1)
