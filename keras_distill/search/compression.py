"""What `compress` found, as values and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras

from keras_distill.deploy.shipment import Shipment
from keras_distill.report.verdict import Verdict
from keras_distill.search.training import Recipe
from keras_distill.search.trials import Trial

# Of `compression.json`: goes up when a field changes its meaning or goes.
FORMAT = 1


@dataclass(frozen=True)
class Compression:
    """What `compress` found.

    Attributes:
        student: the best on validation data that holds the budget.
        quantized: the student trained on with int8 rounding, whose file ships; `None` where rounding cost nothing.
        trial: the candidate that it is.
        recipe: what it was trained with in the end; labels alone, where they were best.
        bundle: the folder that ships; `None` where the gate held every candidate back, and `shipment` says why.
        shipment: what the gate found.
        verdict: the distilled student against the same student on labels alone, on the test set, over all seeds.
        teacher_error: share of the validation examples that the teacher has wrong.
        test_errors: share of the test examples that `teacher`, `labels`, `distilled` and the `student` have wrong, and
            the `file` that ships; `labels` and `distilled` are the mean over the seeds.
        num_judged: how many candidates were judged on the test set: this one, and those that the gate held back before.
        trials: every candidate, in the order in which they were proposed.
        front: those that no other beats in latency and validation score, from the fastest on.
        cost: of the search, in whole trainings of the student.
        seconds: of this run, wall time.
        notes: what the user should know of the teacher and the families.
    """

    student: keras.Model
    quantized: keras.Model | None
    trial: Trial
    recipe: Recipe
    bundle: Path | None
    shipment: Shipment
    verdict: Verdict
    teacher_error: float
    test_errors: Mapping[str, float]
    num_judged: int
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    cost: float
    seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What `compression.json` holds; docs/compress.md lists it."""
        return {
            "format": FORMAT,
            "student": self.trial.to_json() | {"recipe": asdict(self.recipe)},
            "shipped": self.bundle is not None,
            "why_not": [reason for outcome in self.shipment.outcomes for reason in outcome.reasons],
            "is_quantisation_aware": self.quantized is not None,
            "verdict": self.verdict.to_json(),
            "teacher_error": self.teacher_error,
            "test_errors": dict(self.test_errors),
            "num_judged_on_test": self.num_judged,
            "front": [trial.number for trial in self.front],
            "trials": [trial.to_json() for trial in self.trials],
            "cost_in_trainings": self.cost,
            "seconds": round(self.seconds, 1),
            "notes": list(self.notes),
        }
