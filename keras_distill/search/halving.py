"""Brackets of candidates, each halved by validation score until one is trained to its end; any of it may be killed."""

import itertools
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from keras_distill._files import whole_folder
from keras_distill.backup import restore_state, save_state
from keras_distill.deploy.verify import open_artifact, run_in_batches
from keras_distill.distillation import Distiller
from keras_distill.search.cost import Meter
from keras_distill.search.fitting import Fitter
from keras_distill.search.training import DIVERGED, Recipe, Training
from keras_distill.search.trials import Trial, Trials, first_parameters

if TYPE_CHECKING:
    import keras

# Candidates that are halved together.
BRACKET = 8
# What all candidates are taught with: in the middle of what is tuned for the best of them.
TEMPERATURE, STUDENT_LOSS_WEIGHT = 2.0, 0.5
# Of a candidate: a converter's crash, a model that cannot be built, a full disk. It costs this candidate, whatever its
# runtime raises: LiteRT's own is a RuntimeError, TensorFlow's and ONNX Runtime's are of their own kinds.
_OF_ONE = Exception


class Halving:
    """The search itself.

    Args:
        trials: the candidates, old and new.
        fitter: makes them as wide as the budget allows.
        meter: writes the file that is served.
        training: teaches and scores them.
        folder: for the states of those in training.
        say: called with a sentence about each step.
    """

    def __init__(
        self,
        trials: Trials,
        fitter: Fitter,
        meter: Meter,
        training: Training,
        folder: Path,
        say: Callable[[str], None],
    ):
        self._trials, self._fitter, self._meter, self._training = trials, fitter, meter, training
        self._folder, self._say = folder, say
        self._running: dict[int, Distiller] = {}
        self._seconds_an_epoch: list[float] = []

    def run(self, num_trials: int, precisions: Sequence[str], is_over: Callable[[], bool], deadline: float) -> None:
        """Halves brackets until all candidates have ended, or there is no time for another bracket.

        Args:
            num_trials: candidates in all, those of earlier runs too.
            precisions: that are tried.
            is_over: whether to stop; asked between trainings.
            deadline: of the whole search, as `time.monotonic` counts.
        """
        first = first_parameters(list(self._fitter.families.values()), precisions)
        for bracket in range(math.ceil(num_trials / BRACKET)):
            size = min(BRACKET, num_trials - bracket * BRACKET)
            of_bracket = [trial for trial in self._trials.all() if trial.bracket == bracket]
            if bracket and not of_bracket and (is_over() or self.seconds_for(size) > deadline - time.monotonic()):
                break
            while len(of_bracket) < size:
                number = bracket * BRACKET + len(of_bracket)
                of_bracket.append(self._trials.propose(bracket, first[number] if number < len(first) else None))
            self._halve([self._measured(trial) for trial in of_bracket], is_over)
        shutil.rmtree(self._folder, ignore_errors=True)

    def projected(self, trial: Trial) -> float:
        """A candidate's last score, improved by as much as those improved from there that went on to the end."""
        whole = self._training.epochs
        ratios = [
            other.score / other.scores[trial.epochs]
            for other in self._trials.all()
            if other.epochs == whole and other.scores.get(trial.epochs, 0.0) > 0.0
        ]
        return trial.score * float(np.median(ratios)) if ratios else trial.score

    def seconds_for(self, num_candidates: int) -> float:
        """How long so many candidates take, and tuning the best; 0 before the first was trained."""
        trainings = self._training.cost(num_candidates) + 4.0
        return trainings * self._training.epochs * float(np.median(self._seconds_an_epoch or [0.0]))

    def _measured(self, trial: Trial) -> Trial:
        if trial.cost is not None or trial.state == "failed":
            return trial
        self._say(f"candidate {trial.number + 1}, {trial.family} in {trial.precision}: measuring")
        try:
            width, cost = self._fitter.fit(trial)
        except _OF_ONE as error:
            return self._failed(trial, error)
        return self._trials.keep(trial, width=width, cost=cost)

    def _halve(self, trials: Sequence[Trial], is_over: Callable[[], bool]) -> None:
        # What a bracket that was killed has decided stays decided.
        left = [trial for trial in trials if trial.state in ("proposed", "running")]
        rungs = self._training.rungs(sum(trial.cost is not None for trial in trials)) if left else []
        before = 0
        for rung, num_left in rungs:
            if before:
                left.sort(key=lambda trial: trial.scores[before])
            left, given_up = left[:num_left], left[num_left:]
            for trial in given_up:
                self._end(trial, "stopped")
            trained: list[Trial] = []
            for trial in left:
                if is_over() and any(other.scores for other in self._trials.all()):
                    # The best so far will be tuned, which trains it to its end; the others have had their time.
                    for each in [*trained, *left[len(trained) :]]:
                        if each.state != "failed":
                            self._end(each, "stopped")
                    return
                trained.append(self._trained(trial, rung, [stop for stop, _ in rungs]))
            left, before = [trial for trial in trained if trial.state != "failed"], rung
        for trial in left:
            self._end(trial, "finished")

    def _end(self, trial: Trial, state: Literal["stopped", "finished"]) -> None:
        self._running.pop(trial.number, None)
        shutil.rmtree(self._state_of(trial), ignore_errors=True)
        if not trial.scores or trial.cost is None:
            self._trials.end(trial, "failed", None, "there was no time to train it")
        else:
            self._trials.end(trial, state, (self.projected(trial), self._fitter.share(trial.cost)))

    def _failed(self, trial: Trial, error: BaseException) -> Trial:
        self._running.pop(trial.number, None)
        return self._trials.end(trial, "failed", None, " ".join(str(error).split()) or type(error).__name__)

    def _trained(self, trial: Trial, rung: int, stops: Iterable[int]) -> Trial:
        """A candidate trained up to a rung, and scored; its state is kept, so that a kill loses no more than a part."""
        if rung in trial.scores:
            return trial
        self._say(f"candidate {trial.number + 1}, {trial.family} in {trial.precision}: to epoch {rung}")
        try:
            distiller = self._running.get(trial.number) or self._resumed(trial)
            self._running[trial.number] = distiller
            started = time.monotonic()
            for start, stop in _parts(trial.epochs, rung, stops):
                self._training.go_on(distiller, start, stop)
            self._seconds_an_epoch.append((time.monotonic() - started) / max(1, rung - trial.epochs))
            score, error_rate = self._judged(trial, distiller.student, is_whole=rung == self._training.epochs)
            if rung < self._training.epochs:
                with whole_folder(self._state_of(trial) / str(rung)) as aside:
                    save_state(distiller, aside)
        except _OF_ONE as error:
            return self._failed(trial, error)
        scores, errors = {**trial.scores, rung: score}, {**trial.errors, rung: error_rate}
        kept = self._trials.keep(trial, scores=scores, errors=errors, state="running")
        # Only now: killed before, it goes on from there.
        shutil.rmtree(self._state_of(trial) / str(trial.epochs), ignore_errors=True)
        return kept

    def _resumed(self, trial: Trial) -> Distiller:
        """A candidate's training where it stood; from the beginning, where it was killed before its first score."""
        rate = self._fitter.families[trial.family].learning_rate
        distiller = self._training.begin(self._fitter.student(trial), Recipe(TEMPERATURE, STUDENT_LOSS_WEIGHT, rate))
        if trial.epochs:
            restore_state(distiller, self._state_of(trial) / str(trial.epochs))
        return distiller

    def _state_of(self, trial: Trial) -> Path:
        return self._folder / str(trial.number)

    def _judged(self, trial: Trial, student: "keras.Model", *, is_whole: bool) -> tuple[float, float]:
        """Score and share of errors on validation data; of the int8 file, where the student was trained to its end."""
        inputs, labels = (np.asarray(part) for part in self._training.validation)
        if not is_whole:
            self._training.settle(student)
        logits = self._training.validation_logits(student)
        if is_whole and trial.precision == "int8" and np.isfinite(logits).all():
            with tempfile.TemporaryDirectory(prefix="keras-distill-compress-") as folder:
                artifact = open_artifact(self._meter.write(student, Path(folder), trial.precision))
                (logits,) = run_in_batches(artifact, {artifact.input_names[0]: inputs}).values()
        score = self._training.score(logits)
        return score, 1.0 if score == DIVERGED else float(np.mean(logits.argmax(axis=-1) != labels))


def _parts(start: int, stop: int, stops: Iterable[int]) -> list[tuple[int, int]]:
    """From one epoch to another, in the parts of a training that is halved: each has an order of its own.

    Example:
        >>> _parts(0, 4, [1, 2, 4, 8])
        [(0, 1), (1, 2), (2, 4)]
    """
    return list(itertools.pairwise(sorted({start, stop, *(each for each in stops if start < each < stop)})))
