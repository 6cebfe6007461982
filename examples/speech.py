"""Section 4 of the paper: an ensemble of ten acoustic models, and the single one that is distilled from it.

    python -m examples.speech --jobs 2

Spoken digits stand in for the paper's 2000 hours: 3000 recordings of six speakers, two of them held out, in two
folds. All models are of one size (three layers of 256). The members differ in their seed alone; they see all frames in
three voices, twice. The distilled one sees the frames in seven voices, four times and in smaller batches, with what the
ensemble says of them at T = 5 beside the labels; a control sees the labels of the same frames in the same way. Frame
accuracy, and word errors through a Viterbi decoder (1000 words a fold: differences below a point are noise).

Last epoch, ten seeds of the baseline and three of the distilled model a fold. Machine: 2 cores of an AMD EPYC, 8 quiet
minutes (16 of one core); expect the distilled model to keep about 97 % of the ensemble's gain (docs/results.md). A
killed run goes on where it stopped. Writes results.json and members.svg.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_distill as kd
from examples import record, speech_frames
from examples.jobs import Job, run_phases
from examples.speech_frames import Frames
from keras_distill.report import plots

COMMAND = "python -m examples.speech --jobs 2"


@dataclass(frozen=True)
class Recipe:
    """How long each part is trained; a pass is one over the frames in all voices of what is trained."""

    num_members: int = 10
    num_folds: int = 2
    passes: int = 2
    batch_size: int = 512
    distilled_passes: int = 4
    distilled_batch_size: int = 128
    temperature: float = 5.0
    student_loss_weight: float = 0.3
    max_recordings: int | None = None


QUICK = Recipe(num_members=2, passes=1, distilled_passes=1, max_recordings=240)


def keep_frames(folder: Path, max_recordings: int | None) -> dict[str, Any]:
    """Computes the features once."""
    frames = speech_frames.load_frames(max_recordings=max_recordings)
    np.savez(folder / "frames.npz", **vars(frames))
    return {"num_frames": len(frames.states), "num_recordings": len(frames.digits)}


def kept_frames(folder: Path) -> Frames:
    """The frames that `keep_frames` has kept."""
    return Frames(**np.load(folder / "frames.npz"))


def train_on_labels(
    folder: Path, fold: int, seed: int, name: str, passes: int, batch_size: int, voices: tuple[float, ...]
) -> dict[str, Any]:
    """A model trained on the alignment's states: a baseline, and a member of the ensemble. Kept as `name`."""
    train, test = speech_frames.split(kept_frames(folder), fold)
    windows, states = speech_frames.training_set(train, voices)
    keras.utils.set_random_seed(seed)
    model = speech_frames.network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    num_steps = passes * -(-len(states) // batch_size)
    model.compile(speech_frames.adam(num_steps), loss, steps_per_execution=8)
    model.fit(windows, states, batch_size, passes, verbose=2)
    model.save(folder / f"{name}.keras", include_optimizer=False)
    logits = model.predict(test.windows(), 1000, verbose=0)
    np.save(folder / f"{name}-test-logits.npy", logits)
    return figures(logits, train, test)


def label_frames(folder: Path, recipe: Recipe, fold: int) -> dict[str, Any]:
    """The ensemble says once what it thinks of every training frame; its soft targets go to a store."""
    train, test = speech_frames.split(kept_frames(folder), fold)
    members = [kd.load_model(folder / f"baseline-{fold}-{seed}.keras") for seed in range(recipe.num_members)]
    ensemble = kd.Ensemble(members)
    windows, _ = speech_frames.training_set(train, speech_frames.TRANSFER_VOICES)
    kd.targets.label(ensemble, windows, folder / f"store-{fold}", temperature=recipe.temperature, batch_size=1000)
    return figures(ensemble.predict(test.windows(), 1000, verbose=0), train, test)


def distil(folder: Path, recipe: Recipe, fold: int, seed: int) -> dict[str, Any]:
    """One more model of the same size, taught by the ensemble out of the store."""
    train, test = speech_frames.split(kept_frames(folder), fold)
    transfer_set = speech_frames.training_set(train, speech_frames.TRANSFER_VOICES)
    batch_size = recipe.distilled_batch_size
    batches = kd.targets.attach(transfer_set, folder / f"store-{fold}", batch_size=batch_size, seed=seed)
    # Seeds that no member had.
    keras.utils.set_random_seed(100 + seed)
    student = speech_frames.network("student")
    soft = kd.losses.SoftTargets(recipe.temperature)
    distiller = kd.Distiller(None, student, soft, student_loss_weight=recipe.student_loss_weight)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    num_steps = recipe.distilled_passes * int(batches.cardinality())
    distiller.compile(speech_frames.adam(num_steps), loss, steps_per_execution=8)
    distiller.fit(batches, epochs=recipe.distilled_passes, shuffle=False, verbose=2)
    return figures(student.predict(test.windows(), 1000, verbose=0), train, test)


def figures(logits: np.ndarray, train: Frames, test: Frames) -> dict[str, Any]:
    """Frame accuracy and word error rate on the held-out speakers, per cent."""
    return {
        "frame_accuracy": speech_frames.frame_accuracy(logits, test.states),
        "word_error_rate": speech_frames.word_error_rate(logits, test, speech_frames.state_priors(train)),
    }


def baseline_job(recipe: Recipe, fold: int, seed: int) -> Job:
    """The job that trains a baseline; `soft_targets_regularise` needs the same one."""
    name = f"baseline-{fold}-{seed}"
    arguments = {"fold": fold, "seed": seed, "name": name, "voices": speech_frames.VOICES}
    return Job(name, train_on_labels, arguments | {"passes": recipe.passes, "batch_size": recipe.batch_size})


def phases(recipe: Recipe, seeds: list[int]) -> list[list[Job]]:
    """All jobs, in phases that need those before them."""
    folds = range(recipe.num_folds)
    first = [Job("frames", keep_frames, {"max_recordings": recipe.max_recordings})]
    singles = [baseline_job(recipe, fold, seed) for fold in folds for seed in range(recipe.num_members)]
    for fold in folds:
        name = f"control-{fold}"
        arguments = {"fold": fold, "seed": 100, "name": name, "voices": speech_frames.TRANSFER_VOICES}
        schedule = {"passes": recipe.distilled_passes, "batch_size": recipe.distilled_batch_size}
        singles.append(Job(name, train_on_labels, arguments | schedule))
    ensembles = [Job(f"ensemble-{fold}", label_frames, {"recipe": recipe, "fold": fold}) for fold in folds]
    students = [
        Job(f"distilled-{fold}-{seed}", distil, {"recipe": recipe, "fold": fold, "seed": seed})
        for fold in folds
        for seed in seeds
    ]
    return [first, singles, ensembles, students]


def rows(found: dict[str, dict[str, Any]], recipe: Recipe, seeds: list[int]) -> list[dict[str, Any]]:
    """The lines of the table."""
    folds = range(recipe.num_folds)

    def values(kind: str, figure: str, fold: int) -> list[float]:
        counts = {"baseline": range(recipe.num_members), "distilled": seeds}
        names = [f"{kind}-{fold}-{seed}" for seed in counts[kind]] if kind in counts else [f"{kind}-{fold}"]
        return [found[name]["figures"][figure] for name in names]

    def gain(kind: str, fold: int) -> float:
        return float(
            np.mean(values(kind, "frame_accuracy", fold)) - np.mean(values("baseline", "frame_accuracy", fold))
        )

    def points(kind: str) -> str:
        return ", ".join(f"{gain(kind, fold):.2f}" for fold in folds)

    papers = {
        "baseline": ("one model", "58.9", "10.9"),
        "control": ("one model, on labels, as many steps and voices as the distilled one", None, None),
        "ensemble": (f"ensemble of {recipe.num_members}", "61.1", "10.7"),
        "distilled": ("one model, distilled from the ensemble", "60.8", "10.7"),
    }
    lines = []
    for figure, place, title in (("frame_accuracy", 1, "frame accuracy"), ("word_error_rate", 2, "word errors")):
        for kind, paper in papers.items():
            each = [value for fold in folds for value in values(kind, figure, fold)]
            lines.append(record.row(f"{title}: {paper[0]}", each, "%", paper=paper[place]))
    kept = [100.0 * gain("distilled", fold) / gain("ensemble", fold) for fold in folds]
    lines.append(
        record.row(
            "share of the ensemble's gain in frame accuracy that the distilled model keeps, a fold",
            kept,
            "%",
            paper="86",
            goal="≥ 90",
            reaches=lambda ours: ours["mean"] >= 90.0,
            note=f"gain of the ensemble, a fold: {points('ensemble')} points; of the control: {points('control')}",
        )
    )
    return lines


def draw(folder: Path, recipe: Recipe) -> None:
    """Frame accuracy against the number of members."""
    lines = {}
    for fold in range(recipe.num_folds):
        _, test = speech_frames.split(kept_frames(folder), fold)
        logits = np.stack(
            [np.load(folder / f"baseline-{fold}-{seed}-test-logits.npy") for seed in range(recipe.num_members)]
        )
        means = np.cumsum(kd.report.metrics.softmax(logits), axis=0)
        counts = list(range(1, recipe.num_members + 1))
        accuracies = [speech_frames.frame_accuracy(mean, test.states) for mean in means]
        lines[f"without {' and '.join(speech_frames.FOLDS[fold])}"] = (counts, accuracies)
    (folder / "members.svg").write_text(plots.curves(lines, "members of the ensemble", "frame accuracy, %"))


def main() -> int:
    """Runs what has not been run yet, then writes what was found."""
    parser = record.parser(__doc__, "runs/speech")
    arguments = parser.parse_args()
    recipe = QUICK if arguments.quick else Recipe()
    found = run_phases(phases(recipe, arguments.seeds), arguments)
    if arguments.only is None:
        draw(arguments.out, recipe)
        lines = rows(found, recipe, arguments.seeds)
        folds = [list(speech_frames.FOLDS[fold]) for fold in range(recipe.num_folds)]
        record.write(arguments.out, "speech", COMMAND, found, lines, arguments=arguments, held_out_speakers=folds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
