"""What a `distill` run says of its student, on the terminal and in `OUT.json`."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from keras_distill._inputs import map_arrays
from keras_distill.cli import evaluation
from keras_distill.cli.distill_settings import DistillSettings
from keras_distill.distillation import training_length

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from keras_distill._types import Teacher
    from keras_distill.cli.distill_training import Training
    from keras_distill.data import Dataset
    from keras_distill.report.verdict import Verdict
    from keras_distill.search import Tuned
    from keras_distill.teachers.knowledge import Knowledge

# So many training examples are looked at for reasons.
_NUM_SEEN = 4096
TEACHER, GIVEN, TWIN, DISTILLED = "teacher", "student, as given", "student, on labels", "student, distilled"


@dataclass(frozen=True)
class Judged:
    """One model's logits on the test set, and what they are worth."""

    logits: "np.ndarray"
    found: evaluation.Measured


def judged(model: "Teacher", dataset: "Dataset") -> Judged:
    """A model on a dataset's test split."""
    from keras_distill.models.inference import all_logits

    logits = all_logits(model, dataset.test.inputs)
    return Judged(logits, evaluation.measured(logits, dataset.test.labels))


def table(models: Mapping[str, Judged], dataset: "Dataset", *, as_int8: bool) -> "Table":
    """Teacher, student as given, twin and distilled, as far as they are there."""
    suffix = " as int8" if as_int8 else ""
    rows = [(name + (suffix if name in (TWIN, DISTILLED) else ""), model.found) for name, model in models.items()]
    return evaluation.comparison_table(rows, dataset)


def length_note(training: "Training", epochs: int, *, was_chosen: bool) -> str:
    """What to say of a training's length: nothing, or that it was too short and what to do."""
    losses = validation_losses(training)
    if not training_length.was_too_short(losses):
        return ""
    fall = training_length.fall(losses) or 0.0
    num_epochs = len(training.history["loss"])
    chosen = " (chosen for the size of the data)" if was_chosen else ""
    return (
        f"too few steps: over the third quarter of {num_epochs} epochs{chosen} the validation loss still fell, "
        f"by {100 * fall:.0f} %. Try --epochs {2 * epochs}."
    )


def tuned_trainings(tuned: "Tuned") -> "dict[str, Training]":
    """What `tune` chose, and the best on labels alone."""
    from keras_distill.cli.distill_training import Training

    return {
        name: Training(student, history, tuned.steps_of_one, 0.0)
        for name, student, history in (
            (DISTILLED, tuned.student, tuned.history),
            (TWIN, tuned.labels_student, tuned.labels_history),
        )
    }


def validation_losses(training: "Training") -> list[float]:
    """The loss on validation data by epoch; that of training where nothing was validated."""
    return training.history.get("val_loss") or training.history.get("loss", [])


def verdict(
    settings: DistillSettings,
    dataset: "Dataset",
    models: Mapping[str, Judged],
    training: "Training",
    teacher: "Teacher | None",
) -> "Verdict":
    """Whether the distilled student is better than its twin on labels, and what is visible of the reason.

    Args:
        settings: the command's.
        dataset: its test split decides; its training split is looked at for reasons.
        models: judged on the test split.
        training: the student's.
        teacher: `None` where a store was read: it answers for no other examples.
    """
    import numpy as np

    from keras_distill.models.inference import all_logits
    from keras_distill.report.verdict import Seen, compare_models

    chosen = np.random.default_rng(settings.seed).permutation(len(dataset.train))[:_NUM_SEEN]
    seen = dataset.train.take(np.sort(chosen))
    of_teacher = None if teacher is None else all_logits(teacher, seen.inputs)
    return compare_models(
        dataset.test.labels,
        models[DISTILLED].logits,
        models[TWIN].logits,
        teacher_logits=models[TEACHER].logits if TEACHER in models else None,
        seen=Seen(seen.labels, all_logits(training.student, seen.inputs), of_teacher),
        temperature=settings.temperature,
        was_too_short=training_length.was_too_short(validation_losses(training)),
    )


def verdict_text(verdict: "Verdict") -> str:
    """The verdict as the terminal shows it."""
    return "\n".join([f"verdict: {verdict}", *(f"  {reason}" for reason in verdict.reasons)])


def record(
    settings: DistillSettings,
    dataset: "Dataset",
    epochs: int,
    models: Mapping[str, Judged],
    knowledge: "Mapping[str, Knowledge]",
    trainings: "Mapping[str, Training]",
    verdict: "Verdict | None",
    seconds: float,
) -> dict[str, Any]:
    """What `OUT.json` holds beside the student's hash; the page docs/distill.md lists it."""
    from keras_distill.cli.distill_training import validated_every
    from keras_distill.search import training

    every = training.validated_every(epochs) if settings.tune else validated_every(settings, epochs)
    names = {TEACHER: "teacher", GIVEN: "as_given", TWIN: "twin", DISTILLED: "distilled"}
    return {
        "settings": asdict(settings) | {"epochs": epochs, "epochs_chosen_for_the_data": settings.epochs is None},
        "data": {
            "name": dataset.name,
            "classes": list(dataset.class_names),
            "input_shape": map_arrays(lambda array: list(array.shape[1:]), dataset.train.inputs),
            "pixel_range": settings.pixel_range,
            "train": len(dataset.train),
            "validation": len(dataset.validation),
            "test": len(dataset.test),
        },
        "asked_before_training": {who: asdict(known) for who, known in knowledge.items()},
        "test": {names[name]: model.found.as_json() for name, model in models.items()},
        "verdict": None if verdict is None else verdict.to_json(),
        "history": {names[name]: training.history for name, training in trainings.items()},
        "training": {
            names[name]: {
                "steps": training.num_steps,
                "epochs": len(training.history["loss"]),
                "validated_every_epochs": every,
                "seconds": round(training.seconds, 3),
                "loss_fell_by": training_length.fall(validation_losses(training)),
                "too_few_steps": training_length.was_too_short(validation_losses(training)),
            }
            for name, training in trainings.items()
        },
        "versions": versions(),
        "seconds": round(seconds, 3),
    }


def versions() -> dict[str, str]:
    """Of what a training depends on."""
    from importlib.metadata import PackageNotFoundError, version

    import keras

    found = {"python": platform.python_version(), "backend": keras.config.backend()}
    for package in ("keras-distill", "keras", keras.config.backend(), "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found
