"""Brackets of candidates, each halved by validation score until one is trained to its end; any of it may be killed."""

import math
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from keras_distill.search.candidate_trainer import OF_ONE, CandidateTrainer, Result, Stretch, reason_of
from keras_distill.search.fitting import Fitter
from keras_distill.search.trials import Trial, Trials, first_parameters
from keras_distill.search.tuning import NUM_CANDIDATES

if TYPE_CHECKING:
    from keras_distill.scale import Engine

# By number of the candidate.
Results: TypeAlias = Generator[tuple[int, Result], None, None]
# Candidates that are halved together.
BRACKET = 8


class Halving:
    """The search itself.

    Args:
        trials: the candidates, old and new.
        fitter: makes them as wide as the budget allows.
        trainer: teaches and scores them.
        engine: whose workers train candidates side by side; `None` trains them here, one after another.
        say: called with a sentence about each step.
    """

    def __init__(
        self,
        trials: Trials,
        fitter: Fitter,
        trainer: CandidateTrainer,
        engine: "Engine | None",
        say: Callable[[str], None],
    ):
        self._trials, self._fitter, self._trainer, self._engine, self._say = trials, fitter, trainer, engine, say
        self._training = trainer.training
        self._seconds_to_begin, self._seconds_an_epoch = 0.0, list[float]()

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
            measured = [self._measured(trial) for trial in of_bracket]
            self._estimate(measured)
            self._halve(measured, is_over)
        shutil.rmtree(self._trainer.folder, ignore_errors=True)

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
        """How long so many candidates take, and tuning the best; 0 before the first was timed."""
        at_once = 1 if self._engine is None else self._engine.num_workers
        trainings = self._training.cost(num_candidates) / at_once + 4.0
        to_begin = (num_candidates / at_once + NUM_CANDIDATES) * self._seconds_to_begin
        return to_begin + trainings * self._training.epochs * float(np.median(self._seconds_an_epoch or [0.0]))

    def _measured(self, trial: Trial) -> Trial:
        if trial.cost is not None or trial.state == "failed":
            return trial
        self._say(f"{_name_of(trial)}: measuring")
        try:
            width, cost = self._fitter.fit(trial)
        except OF_ONE as error:
            return self._failed(trial, reason_of(error))
        return self._trials.keep(trial, width=width, cost=cost)

    def _estimate(self, trials: Sequence[Trial]) -> None:
        """Times a few steps of the candidate in the middle, for what is said before the first training."""
        waiting = [trial for trial in trials if trial.state == "proposed" and trial.cost is not None]
        if self._seconds_an_epoch or not waiting:
            return
        waiting.sort(key=lambda trial: trial.cost.multiply_adds if trial.cost else 0)
        try:
            student = self._fitter.student(waiting[len(waiting) // 2])
            self._seconds_to_begin, seconds = self._training.timed(student)
        except OF_ONE:
            # It will fail by itself, and say why.
            return
        self._seconds_an_epoch.append(seconds)
        self._say("the first candidates are about to be trained")

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
            is_cut_short = self._train(left, rung, tuple(stop for stop, _ in rungs), is_over)
            known = self._trials.all()
            left = [trial for trial in (known[each.number] for each in left) if trial.state != "failed"]
            if is_cut_short:
                # The best so far will be tuned, which trains it to its end; the others have had their time.
                for trial in left:
                    self._end(trial, "stopped")
                return
            before = rung
        for trial in left:
            self._end(trial, "finished")

    def _train(self, trials: Sequence[Trial], rung: int, rungs: tuple[int, ...], is_over: Callable[[], bool]) -> bool:
        """Trains candidates up to a rung; whether there was no time for all of them."""
        waiting = {trial.number: trial for trial in trials if rung not in trial.scores}
        stretches = [self._stretch(trial, rung, rungs) for trial in waiting.values()]
        with closing(self._here(waiting, stretches) if self._engine is None else self._beside(stretches)) as results:
            while waiting:
                if is_over() and any(trial.scores for trial in self._trials.all()):
                    return True
                number, result = next(results)
                self._note(waiting.pop(number), rung, result)
        return False

    def _here(
        self, trials: dict[int, Trial], stretches: Sequence[Stretch]
    ) -> Generator[tuple[int, Result], None, None]:
        """Candidates trained by this process."""
        for stretch in stretches:
            trial = trials[stretch.number]
            self._say(f"{_name_of(trial)}: to epoch {stretch.stop}")
            yield trial.number, self._trainer.train(stretch, partial(self._fitter.student, trial))

    def _beside(self, stretches: Sequence[Stretch]) -> Results:
        """Candidates trained by an engine's workers."""
        from keras_distill.scale import Job

        assert self._engine is not None
        if not stretches:
            return
        self._say(f"{len(stretches)} candidates to epoch {stretches[0].stop}, {self._engine.num_workers} at a time")
        for stretch, result in self._engine.run(Job(CandidateTrainer.open, (self._trainer,)), stretches):
            yield stretch.number, result

    def _stretch(self, trial: Trial, rung: int, rungs: tuple[int, ...]) -> Stretch:
        rate = self._fitter.families[trial.family].learning_rate
        if self._engine is not None:
            self._trainer.save_start(trial.number, partial(self._fitter.student, trial))
        return Stretch(trial.number, trial.precision, rate, trial.epochs, rung, rungs)

    def _note(self, trial: Trial, rung: int, result: Result) -> None:
        if result.failure:
            self._failed(trial, result.failure)
            return
        # The first stretch compiles the step.
        training = result.seconds - (self._seconds_to_begin if not trial.epochs else 0.0)
        self._seconds_an_epoch.append(max(training, 0.1 * result.seconds) / max(1, rung - trial.epochs))
        scores, errors = {**trial.scores, rung: result.score}, {**trial.errors, rung: result.error_rate}
        self._trials.keep(trial, scores=scores, errors=errors, state="running")
        # Only now: killed before, it goes on from there.
        self._trainer.forget_state(trial.number, trial.epochs)

    def _end(self, trial: Trial, state: Literal["stopped", "finished"]) -> None:
        self._trainer.forget(trial.number)
        if not trial.scores or trial.cost is None:
            self._trials.end(trial, "failed", None, "there was no time to train it")
        else:
            self._trials.end(trial, state, (self.projected(trial), self._fitter.share(trial.cost)))

    def _failed(self, trial: Trial, reason: str) -> Trial:
        self._trainer.forget(trial.number)
        return self._trials.end(trial, "failed", None, reason)


def _name_of(trial: Trial) -> str:
    return f"candidate {trial.number + 1}, {trial.family} in {trial.precision}"
