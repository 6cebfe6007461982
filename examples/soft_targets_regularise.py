"""Section 6 of the paper: a model that sees 3 % of the data, on labels and on soft targets.

    python -m examples.soft_targets_regularise --jobs 2

The spoken digits of `speech.py`, its network and its first fold. Twice 3 %: of the frames, and of the recordings
(whole words are fewer kinds of frames, so this is harder). The teacher is the baseline with the same seed, trained on
all frames; its soft targets at T = 5 lie in a store, of which the student reads its 3 %, in seven voices. So does the
one on labels. No early stopping, no other regularisation.

Last epoch, three seeds. Machine: 2 cores of an AMD EPYC, 3 quiet minutes (6 of one core); expect soft targets on 3 % of
the frames to reach 98 % of the teacher's accuracy (docs/results.md). Shares the files of `speech.py` where it is given
the same `--out` (its default), and goes on where it stopped. Writes results.json and three-per-cent.svg in a folder
three-per-cent there.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_distill as kd
from examples import record, speech, speech_frames
from examples.jobs import Job, run_phases
from keras_distill.report import plots

COMMAND = "python -m examples.soft_targets_regularise --jobs 2"
FOLD, SHARE, TEMPERATURE, BATCH_SIZE = 0, 0.03, 5.0, 64
KINDS = {"frames": "3 % of the frames", "recordings": "3 % of the recordings"}


@dataclass(frozen=True)
class Recipe:
    """How long; a pass is one over the few frames in all seven voices."""

    baseline: speech.Recipe
    passes: int
    passes_between_tests: int


FULL = Recipe(speech.Recipe(), passes=12, passes_between_tests=2)
QUICK = Recipe(speech.QUICK, passes=2, passes_between_tests=1)


def label_all(folder: Path, seed: int) -> dict[str, Any]:
    """The baseline with this seed says once what it thinks of every training frame."""
    train, _ = speech_frames.split(speech.kept_frames(folder), FOLD)
    teacher = kd.load_model(folder / f"baseline-{FOLD}-{seed}.keras")
    windows, _ = speech_frames.training_set(train, speech_frames.TRANSFER_VOICES)
    kd.targets.label(teacher, windows, folder / f"store-of-baseline-{seed}", batch_size=1000)
    return {}


def train_on_few(folder: Path, recipe: Recipe, kind: str, targets: str, seed: int) -> dict[str, Any]:
    """A model on 3 % of the data, with targets "hard" or "soft"; its accuracy as it trains, and at the end."""
    train, test = speech_frames.split(speech.kept_frames(folder), FOLD)
    windows, states = speech_frames.training_set(train, speech_frames.TRANSFER_VOICES)
    few = _few(train, kind, seed)
    # The same frames in each of the voices; their ids in the store are their places.
    ids = np.concatenate([few + voice * len(train.states) for voice in range(len(speech_frames.TRANSFER_VOICES))])
    store = folder / f"store-of-baseline-{seed}"
    batches = kd.targets.attach((windows[ids], states[ids]), store, batch_size=BATCH_SIZE, seed=seed, ids=ids)
    keras.utils.set_random_seed(200 + seed)
    student = speech_frames.network("student")
    hard_weight = {"hard": 1.0, "soft": 0.0}[targets]
    distiller = kd.Distiller(None, student, kd.losses.SoftTargets(TEMPERATURE), student_loss_weight=hard_weight)
    num_steps = recipe.passes * int(batches.cardinality())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Five batches a call: they divide nothing here, and spare Python's time.
    distiller.compile(speech_frames.adam(num_steps, 1e-3), loss, metrics=["accuracy"], steps_per_execution=5)
    history = distiller.fit(
        batches,
        epochs=recipe.passes,
        validation_data=(test.windows(), test.states),
        validation_batch_size=2000,
        validation_freq=recipe.passes_between_tests,
        shuffle=False,
        verbose=2,
    ).history
    logits = student.predict(test.windows(), 1000, verbose=0)
    own = student.predict(windows[ids], 1000, verbose=0)
    return speech.figures(logits, train, test) | {
        "train_frame_accuracy": speech_frames.frame_accuracy(own, states[ids]),
        "test_frame_accuracy_as_it_trains": [100.0 * value for value in history["val_accuracy"]],
        "num_frames": len(few),
    }


def _few(train: speech_frames.Frames, kind: str, seed: int) -> np.ndarray:
    """Which frames a student sees: positions, ascending."""
    generator = np.random.default_rng(seed)
    if kind == "frames":
        count = round(SHARE * len(train.states))
        return np.sort(generator.choice(len(train.states), count, replace=False))
    count = round(SHARE * len(train.digits))
    chosen = generator.choice(len(train.digits), count, replace=False)
    return np.flatnonzero(np.isin(train.recordings, chosen))


def phases(recipe: Recipe, seeds: list[int]) -> list[list[Job]]:
    """All jobs, in phases that need those before them."""
    first = [Job("frames", speech.keep_frames, {"max_recordings": recipe.baseline.max_recordings})]
    teachers = [speech.baseline_job(recipe.baseline, FOLD, seed) for seed in seeds]
    stores = [Job(f"label-baseline-{seed}", label_all, {"seed": seed}) for seed in seeds]
    students = []
    for kind in KINDS:
        for targets in ("hard", "soft"):
            arguments = {"recipe": recipe, "kind": kind, "targets": targets}
            name = f"few-{kind}-{targets}"
            students += [Job(f"{name}-{seed}", train_on_few, arguments | {"seed": seed}) for seed in seeds]
    return [first, teachers, stores, students]


def rows(found: dict[str, dict[str, Any]], seeds: list[int]) -> list[dict[str, Any]]:
    """The lines of the table."""

    def values(name: str, figure: str = "frame_accuracy") -> list[float]:
        return [found[f"{name}-{seed}"]["figures"][figure] for seed in seeds]

    papers = {"few-frames-hard": "44.5", "few-frames-soft": "57.0"}
    baseline = values(f"baseline-{FOLD}")
    lines = [record.row("all frames, labels: the teacher", baseline, "%", paper="58.9")]
    for kind, title in KINDS.items():
        for targets, of in (("hard", "labels"), ("soft", "soft targets")):
            name = f"few-{kind}-{targets}"
            own = np.mean(values(name, "train_frame_accuracy"))
            note = f"on the frames it was trained on {own:.1f} %"
            lines.append(record.row(f"{title}, {of}", values(name), "%", paper=papers.get(name), note=note))
    kept = [100.0 * soft / whole for soft, whole in zip(values("few-frames-soft"), baseline, strict=True)]
    lines.append(
        record.row(
            "soft targets on 3 % of the frames, as a share of the teacher's accuracy",
            kept,
            "%",
            paper="96.8",
            goal="≥ 97",
            reaches=lambda ours: ours["mean"] >= 97.0,
        )
    )
    return lines


def draw(folder: Path, found: dict[str, dict[str, Any]], recipe: Recipe, seeds: list[int]) -> None:
    """Test accuracy as the students train."""
    lines = {}
    for kind, title in KINDS.items():
        for targets, of in (("hard", "labels"), ("soft", "soft targets")):
            each = [
                found[f"few-{kind}-{targets}-{seed}"]["figures"]["test_frame_accuracy_as_it_trains"] for seed in seeds
            ]
            passes = np.arange(1, len(each[0]) + 1) * recipe.passes_between_tests
            lines[f"{title}, {of}"] = (passes, np.mean(each, axis=0))
    (folder / "three-per-cent.svg").write_text(plots.curves(lines, "passes", "test frame accuracy, %"))


def main() -> int:
    """Runs what has not been run yet, then writes what was found."""
    parser = record.parser(__doc__, "runs/speech")
    arguments = parser.parse_args()
    recipe = QUICK if arguments.quick else FULL
    found = run_phases(phases(recipe, arguments.seeds), arguments)
    if arguments.only is None:
        folder = arguments.out / "three-per-cent"
        folder.mkdir(exist_ok=True)
        draw(folder, found, recipe, arguments.seeds)
        lines = rows(found, arguments.seeds)
        record.write(folder, "soft-targets-regularise", COMMAND, found, lines, arguments=arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
