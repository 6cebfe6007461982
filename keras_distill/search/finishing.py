"""The end of a search: the best candidate tuned, its int8 mended where rounding cost, more seeds, then the test set.

What is chosen is chosen on validation data. The test split is looked at when all of that is done; once more for each
candidate that takes the place of one that the gate held back.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_distill._files import whole_file
from keras_distill._types import Teacher
from keras_distill.deploy.budgets import Budgets
from keras_distill.deploy.calibration import drawn_rows
from keras_distill.deploy.ship import ship
from keras_distill.deploy.shipment import Provenance, Shipment
from keras_distill.models.inference import all_logits
from keras_distill.quantize_aware import FreezeRanges, is_quantized, quantize_aware
from keras_distill.report.metrics import error_rate
from keras_distill.report.verdict import Verdict, compare_models
from keras_distill.search.candidate_trainer import STUDENT_LOSS_WEIGHT, TEMPERATURE
from keras_distill.search.cost import Meter
from keras_distill.search.fitting import Fitter
from keras_distill.search.training import Recipe, Training
from keras_distill.search.trials import Trial
from keras_distill.search.tuning import tune

if TYPE_CHECKING:
    from keras_distill.data import Dataset

# Between the seeds of whole trainings; each epoch at which a part begins takes one of its own.
_NEXT_SEED = 100_003
# An int8 file whose score is worse than its network's by more than this share, and by more than so many nats, is
# trained on with its rounding: for so long a part of a training, at so much of its learning rate. Below it there was
# nothing to gain.
_ROUNDING_COSTS, _NO_COST, _AWARE_PART, _AWARE_RATE = 0.02, 0.001, 0.25, 0.3
_NUM_CALIBRATION = 1024


@dataclass(frozen=True)
class Finished:
    """A candidate that was trained, chosen among its seeds, judged and taken to the gate.

    Attributes:
        student: the best of the seeds on validation data, a plain Keras model.
        quantized: the same trained on with int8 rounding, which ships in its place; `None` where rounding cost nothing.
        recipe: what it was trained with.
        shipment: what the gate found.
        verdict: distilled against labels alone on the test set, over all seeds.
        test_errors: by model, those of `labels` and `distilled` on average over the seeds.
        num_trainings: what all of it cost, in whole trainings.
    """

    student: keras.Model
    quantized: keras.Model | None
    recipe: Recipe
    shipment: Shipment
    verdict: Verdict
    test_errors: dict[str, float]
    num_trainings: float


@dataclass(frozen=True)
class Finish:
    """Tunes, trains, judges and ships one candidate after another, until one passes the gate.

    Attributes:
        teacher: of all of them.
        dataset: chosen on its validation split, judged on its test split.
        budgets: of what ships.
        runtime: that serves it.
        training: the search's own.
        fitter: makes the candidates.
        meter: writes the file that is served.
        out: the search's folder.
        num_seeds: trainings of the chosen recipe and of labels alone.
        provenance: of what ships; what the run finds is added.
    """

    teacher: Teacher
    dataset: "Dataset"
    budgets: Budgets
    runtime: str
    training: Training
    fitter: Fitter
    meter: Meter
    out: Path
    num_seeds: int
    provenance: Provenance

    def run(self, trial: Trial, max_cost: float, say: Callable[[str], None]) -> Finished:
        """Everything from the candidate's architecture to what ships.

        Args:
            trial: the candidate.
            max_cost: of tuning, in whole trainings.
            say: called with a sentence about each step.
        """
        say(f"tuning the best, {_name_of(trial)}")
        # Cut short it is another study, whose students are others.
        folder = self.out / "tuning" / f"{trial.number}-{max_cost:g}"
        tuned = tune(
            lambda: self.fitter.student(trial),
            self.training.train,
            self.training.validation,
            self.training.store,
            folder,
            epochs=self.training.epochs,
            batch_size=self.training.batch_size,
            temperature=TEMPERATURE,
            student_loss_weight=STUDENT_LOSS_WEIGHT,
            learning_rate=self.fitter.families[trial.family].learning_rate,
            max_cost=max_cost,
            seed=self.training.seed,
        )
        num_trainings = tuned.num_steps / tuned.steps_of_one + 2.0 * (self.num_seeds - 1)
        on_labels, distilled = [tuned.labels_student], [tuned.distilled_student]
        for number in range(1, self.num_seeds):
            say(f"training the best once more, seed {number + 1} of {self.num_seeds}")
            on_labels.append(self._trained(trial, tuned.labels_candidate, number, folder))
            distilled.append(self._trained(trial, tuned.distilled_candidate, number, folder))
        candidates = on_labels if tuned.candidate.is_on_labels else distilled
        training = self.training
        scores = [training.score(training.validation_logits(each)) for each in candidates]
        best = int(np.argmin(scores))
        student = candidates[best]
        quantized = None
        if trial.precision == "int8":
            say("looking at what rounding costs")
            quantized, part = self._quantized(student, trial, tuned.candidate, folder / f"quantized-{best}.keras")
            num_trainings += part
        say("the ship gate")
        errors, verdict = self._judged(on_labels, distilled, student)
        shipment = self._shipped(student if quantized is None else quantized, trial, tuned.candidate, verdict)
        errors |= _errors_of_file(shipment)
        return Finished(student, quantized, tuned.candidate, shipment, verdict, errors, num_trainings)

    def _trained(self, trial: Trial, recipe: Recipe, number: int, folder: Path) -> keras.Model:
        """A student of another seed, trained whole, or read where an earlier run has trained it."""
        seed = self.training.seed + number * _NEXT_SEED
        student = self.fitter.student(trial, seed)
        path = folder / f"{'labels' if recipe.is_on_labels else 'distilled'}-{number}.keras"
        if path.exists():
            student.load_weights(path)
            return student
        training = replace(self.training, seed=seed)
        training.go_on(training.begin(student, recipe), 0, training.epochs)
        with whole_file(path) as aside:
            student.save(aside)
        return student

    def _quantized(
        self, student: keras.Model, trial: Trial, recipe: Recipe, path: Path
    ) -> tuple[keras.Model | None, float]:
        """The student trained on with int8 rounding, if that beats rounding it afterwards; and what trying cost."""
        # Quantisation-aware training writes into TensorFlow's graph.
        if keras.config.backend() != "tensorflow":
            return None, 0.0
        training = self.training
        score = self._file_score(student, trial.precision)
        in_float = training.score(training.validation_logits(student))
        if score <= in_float + max(_ROUNDING_COSTS * in_float, _NO_COST):
            return None, 0.0
        calibration = self.dataset.train.take(drawn_rows(len(self.dataset.train), _NUM_CALIBRATION)).inputs
        with warnings.catch_warnings():
            # Of layers that stay float: the file is scored with them as they are.
            warnings.simplefilter("ignore")
            quantized = quantize_aware(_copy_of(student), calibration)
        part = replace(training, epochs=max(1, round(_AWARE_PART * training.epochs)))
        if path.exists():
            quantized.load_weights(path)
        else:
            slower = replace(recipe, learning_rate=_AWARE_RATE * recipe.learning_rate)
            part.go_on(part.begin(quantized, slower), 0, part.epochs, callbacks=[FreezeRanges()])
            with whole_file(path) as aside:
                quantized.save(aside)
        is_better = self._file_score(quantized, "float32") < score
        return quantized if is_better else None, part.epochs / training.epochs

    def _file_score(self, student: keras.Model, precision: str) -> float:
        """The score on validation data of a student's file."""
        return self.training.score(self.meter.logits(student, precision, self.dataset.validation.inputs))

    def _judged(
        self, on_labels: Sequence[keras.Model], distilled: Sequence[keras.Model], student: keras.Model
    ) -> tuple[dict[str, float], Verdict]:
        """Test errors, and whether distilling helped."""
        test = self.dataset.test
        labels, taught = (
            np.stack([all_logits(each, test.inputs) for each in students]) for students in (on_labels, distilled)
        )
        teacher = all_logits(self.teacher, test.inputs)
        verdict = compare_models(test.labels, taught, labels, teacher_logits=teacher)
        errors = {
            "teacher": error_rate(teacher, test.labels),
            "labels": verdict.baseline.rate,
            "distilled": verdict.candidate.rate,
            "student": error_rate(all_logits(student, test.inputs), test.labels),
        }
        return errors, verdict

    def _shipped(self, student: keras.Model, trial: Trial, recipe: Recipe, verdict: Verdict) -> Shipment:
        """The student through the gate, in the precision that its candidate had."""
        is_to_be_rounded = trial.precision == "int8" and not is_quantized(student) and self.runtime != "tflm"
        source = f"{trial.family}, found by compress"
        return ship(
            student,
            self.dataset,
            self.out / "bundle",
            # The verdict is of a student that was distilled: one on labels alone is what it was compared with.
            provenance=replace(self.provenance, source=f"{source}, trained on labels alone")
            if recipe.is_on_labels
            else replace(self.provenance, source=f"{source}, distilled", verdict=verdict),
            targets=[f"{self.runtime}-int8" if is_to_be_rounded else self.runtime],
            budgets=self.budgets,
            teacher=self.teacher if isinstance(self.teacher, keras.Model) else None,
        )


def _errors_of_file(shipment: Shipment) -> dict[str, float]:
    """The test errors of the file that ships, in its runtime."""
    variants = [outcome.variant for outcome in shipment.outcomes if outcome.variant is not None]
    verified = [variant.verification for variant in variants if variant.verification is not None]
    if shipment.out is None or not verified or verified[0].accuracy is None:
        return {}
    return {"file": 1.0 - verified[0].accuracy}


def _copy_of(student: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(student)
    copy.set_weights(student.get_weights())
    return copy


def _name_of(trial: Trial) -> str:
    return f"{trial.family} in {trial.precision}"
