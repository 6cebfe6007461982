"""`keras-distill distill --tune`: the teacher answers once, and the settings are chosen on validation data."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_distill.cli import evaluation, model_file
from keras_distill.cli.distill_settings import DistillSettings

if TYPE_CHECKING:
    from keras_distill._types import Teacher
    from keras_distill.data import Dataset
    from keras_distill.search import Tuned
    from keras_distill.targets import SoftTargetStore


def tune(
    settings: DistillSettings,
    dataset: "Dataset",
    epochs: int,
    teacher: "Teacher | None",
    store: "SoftTargetStore | None",
) -> "Tuned":
    """Tunes in the folder `OUT.tune`, where the study stays, and the store too that a teacher's answers become.

    Args:
        settings: the command's.
        dataset: what is trained and chosen on; its test split is not looked at.
        epochs: of a whole training.
        teacher: labels first; `None` reads the store.
        store: soft targets; `None` asks the teacher.
    """
    from keras_distill import search, targets
    from keras_distill._progress import progress_bar
    from keras_distill.search.tuning import NUM_CANDIDATES
    from keras_distill.teachers import Ensemble

    folder = tuning_folder(settings)
    if store is None and teacher is not None:
        members = isinstance(teacher, Ensemble)
        store = targets.label(teacher, dataset.train, folder / "targets", members=members, progress=False)
    with progress_bar("tuning", NUM_CANDIDATES, False if settings.quiet else None, unit="trials") as advance:
        return search.tune(
            lambda: model_file.load(settings.student, settings),
            evaluation.arrays_of(dataset.train),
            evaluation.arrays_of(dataset.validation),
            store or folder / "targets",
            folder,
            epochs=epochs,
            batch_size=settings.batch_size,
            temperature=settings.temperature,
            student_loss_weight=settings.student_loss_weight,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            on_trial=lambda trial: advance(1),
        )


def tuning_folder(settings: DistillSettings) -> Path:
    """`OUT.tune` of `OUT.keras`."""
    return Path(settings.out).with_suffix(".tune")


def chosen_text(tuned: "Tuned") -> str:
    """What was chosen, as the terminal shows it."""
    best = tuned.candidate
    rate = f"learning rate {best.learning_rate:.3g}"
    if tuned.is_rate_too_low:
        greatest = tuned.labels_candidate.learning_rate
        rate += f"; labels alone were best at the greatest one tried, {greatest:.3g}: try a greater --learning-rate"
    if best.student_loss_weight == 1.0:
        return f"chosen on validation data: labels alone, {rate}"
    return (
        f"chosen on validation data: temperature {best.temperature:.3g}, weight of the labels "
        f"{best.student_loss_weight:.2g}, {rate}"
    )


def tuning_record(tuned: "Tuned") -> dict[str, Any]:
    """What `OUT.json` keeps of a tuning."""
    return {
        "chosen": asdict(tuned.candidate),
        "chosen_on_labels_alone": asdict(tuned.labels_candidate),
        "validation_nll_nats": {"chosen": tuned.score, "labels_alone": tuned.labels_score},
        "steps": tuned.num_steps,
        "cost_in_trainings": tuned.num_steps / tuned.steps_of_one,
        "trials": tuned.trials,
    }
