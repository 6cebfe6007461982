"""Is the student worth shipping at all? A file that answers as Keras does may answer nonsense.

`verify` compares a file with the student; here the student is compared with luck, with its teacher and with its twin.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from keras_distill.report.metrics import wilson_interval
from keras_distill.report.verdict import Verdict, chance_of, compare_models

Colour = Literal["green", "amber", "red"]
# How seldom luck does as well as a student that passes.
SIGNIFICANCE = 0.01
# Of what its teacher knows beyond luck a student in green keeps at least this share.
KEPT = 0.9
# A class of so many test examples, none of which is recognised, is no accident of the test set.
FEW_EXAMPLES = 5
MOST_NAMED = 3


@dataclass(frozen=True)
class Usefulness:
    """What a student is worth on the test set, before it is converted.

    Attributes:
        colour: `"red"`: luck does as well. `"amber"`: something that `reasons` names is better, missing or not to be
            known. `"green"`: neither.
        reasons: why it is not green, whole sentences.
        num_items: test examples.
        accuracy: share of right answers, in [0, 1].
        accuracy_interval: its 95 % Wilson interval.
        chance: the share that would be right were the same answers dealt out at random.
        teacher_accuracy: the teacher's; `None` without one.
        drop_from_teacher: `teacher_accuracy - accuracy`; `None` without a teacher.
        drop_interval: its 95 % interval, paired; `None` without a teacher.
        lowest_recall: the recall of the class that is recognised least, in [0, 1].
        lowest_class: that class's name.
    """

    colour: Colour
    reasons: tuple[str, ...]
    num_items: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    chance: float
    teacher_accuracy: float | None
    drop_from_teacher: float | None
    drop_interval: tuple[float, float] | None
    lowest_recall: float
    lowest_class: str

    def __str__(self) -> str:
        low, high = self.accuracy_interval
        told = f"right on {self.accuracy:.2%} of {self.num_items:,} test examples [{low:.2%}, {high:.2%}]"
        if self.teacher_accuracy is not None and self.drop_interval is not None:
            drop, (low, high) = -100 * (self.drop_from_teacher or 0.0), self.drop_interval
            told += f", its teacher on {self.teacher_accuracy:.2%} ({drop:+.2f} points [{-100 * high:+.2f}, "
            told += f"{-100 * low:+.2f}])"
        return f"{told}; chance is {self.chance:.2%}; least of {self.lowest_class}: {self.lowest_recall:.2%}"

    def to_json(self) -> dict[str, Any]:
        """All fields, as the manifest keeps them."""
        drop = self.drop_interval
        return vars(self) | {
            "reasons": list(self.reasons),
            "accuracy_interval": list(self.accuracy_interval),
            "drop_interval": None if drop is None else list(drop),
        }


def class_recalls(answers: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The share of each class's examples that is recognised, `(num_classes,)`; NaN where there is no example.

    Example:
        >>> class_recalls(np.array([0, 0, 1]), np.array([0, 1, 1]), 3).tolist()
        [1.0, 0.5, nan]
    """
    counts = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[answers == labels], minlength=num_classes)
    return np.where(counts > 0, right / np.maximum(counts, 1), np.nan)


def usefulness_of(
    logits: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    teacher_logits: np.ndarray | None = None,
    baseline_logits: np.ndarray | None = None,
    verdict: Verdict | None = None,
) -> Usefulness:
    """Judges a student by its answers to the test set.

    Red: a binomial test does not tell its answers from the same answers dealt out at random (1 %), so that always
    saying the most frequent class is worth nothing. Amber: the test set could not tell a perfect student from luck
    either; the student keeps less than nine tenths of what its teacher knows beyond luck; the teacher is near chance
    itself; the same student trained on labels alone is better; or a class of five examples or more is never recognised.

    Args:
        logits: the student's, `(num_items, num_classes)`.
        labels: integers, `(num_items,)`.
        class_names: in the order of the logits.
        teacher_logits: of the same shape.
        baseline_logits: of the same student trained on labels alone, of the same shape.
        verdict: what the run that distilled the student found.

    Example:
        >>> labels = np.arange(90) % 3
        >>> usefulness_of(np.eye(3)[labels], labels, "abc").colour
        'green'
        >>> usefulness_of(np.eye(3)[0 * labels], labels, "abc").colour  # always says "a"
        'red'
    """
    answers = logits.argmax(axis=-1)
    accuracy = float(np.mean(answers == labels))
    chance, p_value = chance_of(answers, labels)
    reasons: list[str] = []
    is_red = False
    if chance_of(labels, labels)[1] > SIGNIFICANCE:
        reasons.append(f"{len(labels):,} test examples are too few to tell even a perfect student from luck.")
    elif p_value > SIGNIFICANCE:
        is_red = True
        reasons.append(
            f"The student is no better than chance: it is right on {accuracy:.2%}, the same answers in random order "
            f"on {chance:.2%} (p = {p_value:.2g})."
        )
    teacher_accuracy = drop = drop_interval = None
    if teacher_logits is not None:
        found = compare_models(labels, logits, teacher_logits)
        teacher_accuracy, drop = 1.0 - found.baseline.rate, found.errors.mean
        drop_interval = (found.errors.low, found.errors.high)
        teacher_chance, teacher_p_value = chance_of(teacher_logits.argmax(axis=-1), labels)
        if teacher_p_value > SIGNIFICANCE:
            reasons.append(f"The teacher is no better than chance: it is right on {teacher_accuracy:.2%}.")
        elif not is_red and accuracy - chance < KEPT * (teacher_accuracy - teacher_chance):
            share = (accuracy - chance) / (teacher_accuracy - teacher_chance)
            reasons.append(
                f"The student keeps {share:.0%} of what its teacher knows beyond luck: {accuracy:.2%} right against "
                f"{teacher_accuracy:.2%}."
            )
    if baseline_logits is not None:
        against = compare_models(labels, logits, baseline_logits)
        if against.word == "WORSE":
            reasons.append(f"The student on labels alone is better. {against}.")
    elif verdict is not None and verdict.word == "WORSE":
        reasons.append(f"When it was distilled, the same student on labels alone was better. {verdict}.")
    counts = np.bincount(labels, minlength=len(class_names))
    recalls = class_recalls(answers, labels, len(class_names))
    never = np.flatnonzero((recalls == 0.0) & (counts >= FEW_EXAMPLES))
    if len(never) and not is_red:
        named = ", ".join(f"{class_names[index]!r} (of {counts[index]:,} examples)" for index in never[:MOST_NAMED])
        more = f" and {len(never) - MOST_NAMED} more" if len(never) > MOST_NAMED else ""
        reasons.append(f"Never recognised: {named}{more}.")
    lowest = int(np.nanargmin(recalls))
    return Usefulness(
        "red" if is_red else "amber" if reasons else "green",
        tuple(reasons),
        len(labels),
        accuracy,
        tuple(1.0 - bound for bound in reversed(wilson_interval(int(np.sum(answers != labels)), len(labels)))),  # type: ignore[arg-type]  # two of them
        chance,
        teacher_accuracy,
        drop,
        drop_interval,
        float(recalls[lowest]),
        str(class_names[lowest]),
    )
