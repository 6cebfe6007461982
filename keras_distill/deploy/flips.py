"""Answers that differ between a reference and an artifact, and which of them rounding alone may have turned."""

from dataclasses import dataclass

import numpy as np

from keras_distill.deploy.answers import coded, margins
from keras_distill.deploy.distance import Distance
from keras_distill.deploy.recall import binomial_tail

# Rounding may decide between two answers closer than four times the error of the logits, but never between two that
# are a fifth of the logits' spread apart, however rough the artifact.
TIE_IN_ERRORS, TIE_IN_SPREADS = 4.0, 0.2
# Ties that turn wrong rather than right: more often than chance has it once in twenty.
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Flips:
    """The answers of both, and where they differ.

    Attributes:
        before: the reference's, in the code of `answers.coded`, `(num_answers,)`.
        after: the artifact's.
        positions: where they differ, int `(num_flips,)`.
        margins: how far the reference is from the artifact's answer there, in the unit of the output.
        is_tie: bool `(num_flips,)`, whether rounding may have decided.
    """

    before: np.ndarray
    after: np.ndarray
    positions: np.ndarray
    margins: np.ndarray
    is_tie: np.ndarray

    @property
    def agreement(self) -> float:
        """Share of equal answers."""
        return 1.0 - len(self.positions) / len(self.before)

    @property
    def share_outside_ties(self) -> float:
        """Share of answers that differ by more than rounding."""
        return float(np.count_nonzero(~self.is_tie)) / len(self.before)

    @property
    def after_without_ties(self) -> np.ndarray:
        """The artifact's answers, with the reference's where rounding decided."""
        forgiven = self.positions[self.is_tie]
        answers = self.after.copy()
        answers[forgiven] = self.before[forgiven]
        return answers

    def accuracies(self, labels: np.ndarray) -> tuple[float, float]:
        """Shares of right answers of the reference and of the artifact; `labels` in code, negative ones left out."""
        counted = labels >= 0
        return float(np.mean(self.before[counted] == labels[counted])), float(
            np.mean(self.after[counted] == labels[counted])
        )

    def drop_beyond_chance(self, labels: np.ndarray) -> float:
        """How much accuracy drops, without what the rounding of ties does by chance.

        Of ties some turn right and some wrong, on a test set of a hundred easily two more wrong than right. They count
        where more turn wrong than a coin would have it (one-sided sign test).
        """
        where = self.positions
        change = (self.before[where] == labels[where]).astype(int) - (self.after[where] == labels[where])
        change = np.where(labels[where] >= 0, change, 0)
        net = int(change[~self.is_tie].sum())
        lost, gained = (int(np.count_nonzero(change[self.is_tie] == sign)) for sign in (1, -1))
        if binomial_tail(lost, lost + gained, 0.5) < SIGNIFICANCE:
            net += lost - gained
        return net / int(np.count_nonzero(labels >= 0))


def flips_of(rows: np.ndarray, found: np.ndarray, answer: str, threshold: float, distance: Distance) -> Flips:
    """Compares the answers of two outputs, `(num_rows, num_values)`.

    Args:
        rows: the reference.
        found: the artifact's.
        answer: `"argmax"` or `"threshold"`.
        threshold: of the latter.
        distance: how far the two are from each other.
    """
    before, after = coded(rows, answer, threshold), coded(found, answer, threshold)
    positions = np.flatnonzero(before != after)
    margin = margins(rows, after, answer, threshold, positions)
    tie = min(TIE_IN_ERRORS * distance.margin_rmse, TIE_IN_SPREADS * distance.margin_spread)
    return Flips(before, after, positions, margin, margin <= tie)
