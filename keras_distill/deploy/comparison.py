"""One output of an artifact beside the reference's: what differs, and whether that is a problem.

The rules are told in `verify`. What is rounding and what is not is told by the output itself: by how large its error is
and how much it varies over the inputs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_distill._checks import check_choice, check_finite, error_message
from keras_distill._kit import kit_module
from keras_distill._types import Tensor
from keras_distill.deploy.answers import ANSWERS, answer_of, as_rows, coded_labels, threshold_of, without_ruled_out
from keras_distill.deploy.distance import Distance, distance_of, drop_beyond_chance, explained_variance
from keras_distill.deploy.flips import Flips, flips_of
from keras_distill.deploy.recall import SMALLEST_RATE, ClassRecall, fallen_recalls

# (relative, absolute) distance of a value from the float32 model's; an int8 network is judged by its answers instead.
TOLERANCES = {"float32": (1e-4, 1e-4), "float16": (1e-2, 5e-2)}
# Root mean squared error as a share of how much the output varies, since the tolerances above let values pass that are
# all smaller than they are; and an error so small that it is the rounding of what was summed up.
RELATIVE_ERRORS = {"float32": (0.01, 1e-7), "float16": (0.1, 1e-3), "int8": (0.5, 1e-7)}
SMALLEST_AGREEMENT = 0.99
# 0.63 - 0.625 is more than 0.005.
ROUNDING_OF_SHARES = 1e-9
MOST_NAMED = 3


@dataclass(frozen=True)
class OutputComparison:
    """How one output of an artifact compares with the reference's.

    Attributes:
        answer: `"argmax"`, `"threshold"` or `"distance"`: what was compared as its answer.
        max_abs_error: largest distance of a value; `inf` where one is NaN or infinite.
        rmse: root of the mean squared distance.
        spread: how much the reference varies over the inputs, in the same unit.
        agreement: share of equal answers; for `"distance"` the share of the reference's variance that is reproduced.
        reference_accuracy: the reference's share of right answers, for `"distance"` its R²; `None` without labels.
        accuracy: the artifact's.
        accuracy_drop: `reference_accuracy - accuracy`.
        fallen_recalls: the three classes whose recall falls most; without labels, of what the reference answers. Of
            several labels, class `2 * label` is no and `2 * label + 1` is yes.
        problems: why the artifact must not be used.
        remarks: what is worth knowing and forbids nothing.
    """

    answer: str
    max_abs_error: float
    rmse: float
    spread: float
    agreement: float
    reference_accuracy: float | None = None
    accuracy: float | None = None
    accuracy_drop: float | None = None
    fallen_recalls: tuple[ClassRecall, ...] = ()
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def compare_output(
    name: str,
    expected: np.ndarray,
    found: np.ndarray,
    labels: Tensor = None,
    *,
    precision: str = "float32",
    max_accuracy_drop: float = 0.005,
    answer: str | None = None,
    head: str | None = None,
    from_logits: bool = True,
) -> OutputComparison:
    """Compares one output, as `verify` says.

    Args:
        name: of the output.
        expected: the reference, `(num_items, ...)`.
        found: the artifact's, of the same shape.
        labels: of this output; `None` without.
        precision: of the artifact.
        max_accuracy_drop: largest loss of accuracy of an int8 artifact, as a fraction.
        answer: one of `ANSWERS`; `None` goes by `head` and the labels.
        head: the activation that ends the output in the model; `None` where that is not known.
        from_logits: whether a model that cannot be read gives logits.

    Example:
        >>> expected = np.array([[2.0, 0.0], [0.0, 2.0]] * 10)
        >>> compare_output("logits", expected, expected[::-1], precision="int8").problems[0]
        'answers otherwise than the float32 model in 100.00% of cases, ties apart; allowed are 1.00%'
    """
    subject = "labels" if name == "logits" else f"labels of {name!r}"
    if labels is not None:
        labels = _checked_labels(subject, labels, len(expected))
    answer = check_choice(f"the answer of {name!r}", answer or answer_of(head, expected, labels), ANSWERS)
    rows, found_rows = as_rows(expected), as_rows(found)
    noun = "values" if answer == "distance" else "logits"
    broken = [
        f"some {noun}{whose} are NaN or infinite"
        for whose, values in ((" of the Keras model", rows), ("", found_rows))
        if not np.isfinite(values).all()
    ]
    if broken:
        agreement = kit_module().compare(expected, found)["argmax_agreement"]
        return OutputComparison(answer, math.inf, math.inf, 0.0, agreement, problems=tuple(broken))
    of_classes = answer == "argmax" and rows.shape[-1] > 1
    measured = (rows, found_rows) if answer == "distance" else without_ruled_out(rows, found_rows)
    distance = distance_of(*measured, *TOLERANCES.get(precision, (math.inf, math.inf)), of_classes=of_classes)
    judge = _Judge(precision, max_accuracy_drop, answer, distance)
    if answer == "distance":
        figures = judge.values(rows, found_rows, None if labels is None else _targets(subject, labels, rows))
    else:
        flips = flips_of(rows, found_rows, answer, threshold_of(head, expected, from_logits=from_logits), distance)
        codes = None if labels is None else coded_labels(subject, labels, expected, answer)
        figures = judge.answers(flips, codes if codes is not None and np.any(codes >= 0) else None, len(expected))
        judge.ties(flips, measured[0])
    judge.distance()
    if len(rows) > 1 and np.all(rows == rows[:1]):
        judge.remarks.append("the float32 model answers all inputs alike, which shows little")
    return OutputComparison(
        answer,
        distance.max_abs_error,
        distance.rmse,
        distance.spread,
        **figures,
        problems=tuple(judge.problems),
        remarks=tuple(judge.remarks),
    )


def _checked_labels(subject: str, labels: Tensor, num_items: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iufb" or labels.ndim == 0:
        received = f"an array of shape {labels.shape}, dtype {labels.dtype}"
        raise ValueError(error_message(f"{subject} must be numbers, one row for every input", received))
    if len(labels) != num_items:
        raise ValueError(error_message(f"there must be {num_items} {subject}, one for every input", len(labels)))
    return check_finite(subject, labels)


def _targets(subject: str, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if labels.size != rows.size:
        expected = f"{subject} must hold {rows.size} values, one for each of the output"
        raise ValueError(error_message(expected, labels.size))
    return labels.astype("float64").reshape(rows.shape)


class _Judge:
    """Collects what is wrong with one output."""

    def __init__(self, precision: str, max_accuracy_drop: float, answer: str, distance: Distance):
        self.precision, self.max_accuracy_drop, self.answer, self.of = precision, max_accuracy_drop, answer, distance
        # Who allows accuracy to drop allows more answers to differ, since some differ for the better.
        self.share = max(1.0 - SMALLEST_AGREEMENT, 2.0 * max_accuracy_drop)
        self.rate = min(1.0, max(SMALLEST_RATE, 4.0 * max_accuracy_drop))
        self.problems: list[str] = []
        self.remarks: list[str] = []

    def values(self, rows: np.ndarray, found: np.ndarray, targets: np.ndarray | None) -> dict[str, Any]:
        """Judges an output without right and wrong; returns its figures."""
        figures: dict[str, Any] = {"agreement": max(0.0, 1.0 - self.of.relative_error**2)}
        if targets is not None:
            before, after = explained_variance(targets, rows), explained_variance(targets, found)
            if before is not None and after is not None:
                self._accuracy(before - after, drop_beyond_chance(targets, rows, found), "R²")
                figures |= {"reference_accuracy": before, "accuracy": after, "accuracy_drop": before - after}
        return figures

    def answers(self, flips: Flips, labels: np.ndarray | None, num_items: int) -> dict[str, Any]:
        """Judges the answers, against `labels` in the same code where there are any; returns the figures."""
        figures: dict[str, Any] = {"agreement": flips.agreement}
        if labels is not None:
            before, after = flips.accuracies(labels)
            self._accuracy(before - after, flips.drop_beyond_chance(labels), "accuracy")
            figures |= {"reference_accuracy": before, "accuracy": after, "accuracy_drop": before - after}
        if self.precision == "float32":
            # There no answer may differ but of ties, and what becomes of those is no loss.
            return figures
        if flips.share_outside_ties > self.share:
            self.problems.append(
                f"answers otherwise than the float32 model in {flips.share_outside_ties:.2%} of cases, ties apart; "
                f"allowed are {self.share:.2%}"
            )
        elif flips.agreement < SMALLEST_AGREEMENT:
            self.remarks.append(
                f"answers as the float32 model in {flips.agreement:.2%} of cases, less than {SMALLEST_AGREEMENT:.0%}"
            )
        num_classes = self.of.num_values if self.answer == "argmax" else 2 * self.of.num_values
        num_answers = len(flips.before)
        options: dict[str, Any] = {"rate": self.rate}
        if self.of.num_rows != num_items:
            options["item_of"] = np.arange(num_answers) // (num_answers // num_items)
        recalls = fallen_recalls(flips.before, flips.before, flips.after_without_ties, num_classes, **options)
        if labels is None:
            self._recall(recalls, "inputs that the float32 model takes for it")
        else:
            of_answers = recalls
            recalls = fallen_recalls(labels, flips.before, flips.after, num_classes, **options)
            self._recall(recalls, "examples")
            told = {recall.index for recall in recalls if recall.is_lost}
            unseen = [recall for recall in of_answers if recall.is_lost and recall.index not in told]
            self._recall(unseen, "inputs that the float32 model takes for it")
        return figures | {"fallen_recalls": tuple(recalls[:MOST_NAMED])}

    def ties(self, flips: Flips, rows: np.ndarray) -> None:
        """In float no answer differs but where rounding within the tolerance may decide."""
        if self.precision not in TOLERANCES:
            return
        relative, _ = TOLERANCES[self.precision]
        row_of = flips.positions if self.answer == "argmax" else flips.positions // self.of.num_values
        allowed = self.of.absolute + relative * np.abs(rows[row_of]).max(-1)
        num_flips = int(np.count_nonzero(flips.margins > 2 * allowed))
        if num_flips:
            self.problems.append(f"{num_flips} answers differ outside ties")

    def distance(self) -> None:
        """Judges how far the values are, whatever is made of them."""
        distance, num_values = self.of, self.of.num_values
        noun = "values" if self.answer == "distance" else "logits"
        if distance.num_far:
            self.problems.append(
                f"{distance.num_far} of {distance.num_rows * num_values} {noun} are too far off, at worst "
                f"{distance.max_abs_error:.2g} (allowed {distance.absolute:g})"
            )
        allowed, smallest = RELATIVE_ERRORS[self.precision]
        share = distance.relative_error
        if self.precision == "int8":
            # Rounding to float is a share of the values, rounding to int8 one of what the next layer sees of them.
            share = max(share, distance.relative_margin_error)
            allowed = math.sqrt(self.share) if self.answer == "distance" else allowed
        if distance.rmse > smallest and share > allowed:
            self.problems.append(f"the {noun} are off by {share:.0%} of how much they vary; allowed are {allowed:.0%}")
        if distance.rmse > smallest and distance.num_lost_rows > max(1.0, self.share * distance.num_rows):
            self.problems.append(
                f"{distance.num_lost_rows} of {distance.num_rows} rows have little in common with the float32 model's"
            )
        # Classes share a unit, and one that varies little is seldom the answer; values have units of their own. Of
        # many, as of an embedding, some are next to constant, and int8 makes nothing of them.
        faint = distance.lost_faint_values if self.answer == "distance" else ()
        lost = distance.lost_values + (faint if 10 * len(faint) >= num_values else ())
        if num_values > 1 and lost and distance.rmse > smallest:
            self.problems.append(f"the {noun} at {_listed(lost)} have little in common with the float32 model's")
        elif faint:
            self.remarks.append(f"the {noun} at {_listed(faint)}, which vary little, are lost")

    def _accuracy(self, drop: float, beyond_chance: float, what: str) -> None:
        allowed = self.max_accuracy_drop + ROUNDING_OF_SHARES
        if self.precision != "int8" or drop <= allowed:
            return
        if beyond_chance > allowed:
            self.problems.append(f"{what} drops by {drop:.2%}, {drop - allowed:.2%} more than {allowed:.2%}")
        else:
            self.remarks.append(f"{what} drops by {drop:.2%}, which may be chance on so few examples")

    def _recall(self, recalls: Sequence[ClassRecall], whose: str) -> None:
        def told(recall: ClassRecall) -> str:
            is_label = self.answer == "threshold" and self.of.num_values > 1
            name = f"label {recall.index // 2} = {recall.index % 2}" if is_label else f"class {recall.index}"
            return f"{name} from {recall.before:.0%} to {recall.after:.0%} of {recall.num_examples:.3g} {whose}"

        lost = [recall for recall in recalls if recall.is_lost]
        gone = [recall for recall in recalls if not recall.is_lost and recall.after == 0.0]
        for found, sentences in ((lost, self.problems), (gone, self.remarks)):
            if found:
                more = f", and of {len(found) - MOST_NAMED} more classes" if len(found) > MOST_NAMED else ""
                sentences.append(f"recall falls of {', of '.join(map(told, found[:MOST_NAMED]))}{more}")


def _listed(positions: Sequence[int]) -> str:
    return ", ".join(map(str, positions[:MOST_NAMED])) + (", …" if len(positions) > MOST_NAMED else "")
