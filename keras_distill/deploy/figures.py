"""Every model's answers to the test set, side by side: teacher, twin and student where they live, and what ships."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_distill._checks import error_message
from keras_distill._types import Teacher
from keras_distill.deploy.card import Figures
from keras_distill.deploy.reference import Reference, as_class_logits, reference_of
from keras_distill.deploy.shipment import Outcome
from keras_distill.deploy.verify import open_artifact, run_in_batches
from keras_distill.report import metrics

if TYPE_CHECKING:
    import keras

    from keras_distill.data import Dataset

BASELINE = "student on labels"


def figures_of_models(
    student: "keras.Model",
    teacher: Teacher | None,
    baseline: "keras.Model | None",
    reference: Reference,
    dataset: "Dataset",
) -> list[Figures]:
    """The models' answers to the test set, the student's last; what a call costs is not known yet."""
    import keras

    labels = dataset.test.labels
    rows: list[Figures] = []
    for name, model in (("teacher", teacher), (BASELINE, baseline), ("student", student)):
        if model is None:
            continue
        if isinstance(model, keras.Model):
            own = reference if model is student else reference_of(model, dataset)
            logits, temperature, num_parameters = own.logits, own.temperature, model.count_params()
        else:
            logits, temperature = _answers_of(model, dataset)
            num_parameters = None
        agreement = metrics.agreement(rows[0].logits, logits) if teacher is not None and rows else None
        rows.append(Figures(name, logits, labels, temperature, num_parameters, {}, None, agreement))
    return rows


def figures_of_artifacts(
    in_keras: Sequence[Figures], outcomes: Sequence[Outcome], reference: Reference, dataset: "Dataset"
) -> list[Figures]:
    """What ships, each file once: its answers to the test set, with what it costs."""
    student = in_keras[-1]
    teacher = next((row for row in in_keras if row.name == "teacher"), None)
    shipped = {id(outcome.variant): outcome.variant for outcome in outcomes if outcome.holds}
    rows = []
    for variant in shipped.values():
        assert variant is not None
        assert variant.path is not None
        logits = class_logits(variant.path, reference)
        rows.append(
            Figures(
                variant.target,
                logits,
                dataset.test.labels,
                student.temperature,
                student.num_parameters,
                variant.latency,
                variant.num_bytes,
                None if teacher is None else metrics.agreement(teacher.logits, logits),
            )
        )
    return rows


def class_logits(path: Path, reference: Reference) -> np.ndarray:
    """An artifact's logits for the test set, `(num_items, num_classes)`."""
    return as_class_logits(run_in_batches(open_artifact(path), reference.feed)[reference.answer])


def _answers_of(teacher: Teacher, dataset: "Dataset") -> tuple[np.ndarray, float]:
    """The logits that a teacher of another kind gives for the test set, and the temperature that is best for them."""
    from keras_distill.models.inference import logits_function

    answers = logits_function(teacher)
    test, held_out = (
        as_class_logits(answers(split.inputs).astype("float32")) for split in (dataset.test, dataset.validation)
    )
    if test.shape[-1] != dataset.num_classes or not (np.isfinite(test).all() and np.isfinite(held_out).all()):
        expectation = f"the teacher must give {dataset.num_classes} finite logits an example"
        raise ValueError(error_message(expectation, f"shape {test.shape}, or NaN or infinity among them"))
    return test, metrics.best_temperature(held_out, dataset.validation.labels)
