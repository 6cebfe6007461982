"""Does a teacher that is made as sure as it is right teach better? Errors and calibration of its students.

    python -m benchmarks.calibration [--write] [--kept FOLDER] [--seeds 3] [TASK …]

The tasks, teachers and students of `benchmarks.arena`. Each teacher labels twice, as it is and with
`label(…, calibrate=validation)`; from both stores students are trained with the same settings, at three temperatures of
distillation. Students are judged once on the test set, as they are: their errors, and their expected calibration error
without any temperature of their own. About ten minutes of one core; `--write` makes docs/results/calibration.json and
the table of docs/explanation/calibration.md.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arena import BATCH_SIZE, LABELS_WEIGHT, LEARNING_RATE, TASKS, known_labels, taught
from benchmarks.kept import folder_of, once, parser_of, write_results
from benchmarks.page import table, write_part
from benchmarks.rounds import use_one_thread

TEMPERATURES = (1.0, 2.0, 4.0)


def compared(name: str, kept: Path, num_seeds: int) -> list[dict[str, Any]]:
    """A row a temperature: students of the teacher as it is, and of the calibrated one."""
    import keras

    from keras_distill.models.inference import all_logits
    from keras_distill.report import metrics
    from keras_distill.report.verdict import compare_models
    from keras_distill.search.training import Recipe, Training
    from keras_distill.targets import calibration_temperature, label

    task = TASKS[name]
    dataset = task.load()
    teacher = taught(name, dataset, kept)
    test = dataset.test
    divisor = calibration_temperature(teacher, dataset.validation)
    teacher_logits = all_logits(teacher, test.inputs)
    stores = {
        which: label(teacher, dataset.train.inputs, kept / f"{name}-{which}", calibrate=calibrate, progress=False)
        for which, calibrate in (("as it is", False), ("calibrated", dataset.validation))
    }
    rows = []
    for temperature in TEMPERATURES:
        logits: dict[str, list[np.ndarray]] = {which: [] for which in stores}
        for which, store in stores.items():
            for seed in range(num_seeds):
                training = Training(
                    (dataset.train.inputs, known_labels(task, dataset)),
                    (dataset.validation.inputs, dataset.validation.labels),
                    store,
                    task.epochs[1],
                    BATCH_SIZE,
                    seed,
                )
                distiller = training.begin(task.student(seed), Recipe(temperature, LABELS_WEIGHT, LEARNING_RATE))
                training.go_on(distiller, 0, training.epochs)
                logits[which].append(all_logits(distiller.student, test.inputs))
        rows.append(
            {
                "task": name,
                "divisor": divisor,
                "teacher_ece": [
                    metrics.expected_calibration_error(teacher_logits / by, test.labels) for by in (1.0, divisor)
                ],
                "temperature": temperature,
                **{
                    which: {
                        "errors": [metrics.error_rate(each, test.labels) for each in found],
                        "ece": [metrics.expected_calibration_error(each, test.labels) for each in found],
                    }
                    for which, found in logits.items()
                },
                "verdict": str(
                    compare_models(test.labels, np.stack(logits["calibrated"]), np.stack(logits["as it is"]))
                ),
            }
        )
    keras.backend.clear_session()
    return rows


def page_of(rows: list[dict[str, Any]]) -> str:
    """The table of docs/explanation/calibration.md."""
    header = [
        "task",
        "teacher's logits divided by",
        "teacher's ECE, %",
        "T",
        "students' errors, %",
        "their ECE, %",
        "verdict",
    ]
    cells = []
    for row in rows:
        before, after = row["as it is"], row["calibrated"]
        cells.append(
            [
                row["task"],
                f"{row['divisor']:g}",
                " → ".join(f"{100 * ece:.1f}" for ece in row["teacher_ece"]),
                f"{row['temperature']:g}",
                f"{_percent(before['errors'])} → {_percent(after['errors'])}",
                f"{_percent(before['ece'])} → {_percent(after['ece'])}",
                row["verdict"].split(":")[0],
            ]
        )
    num_seeds = len(rows[0]["calibrated"]["errors"])
    return table(header, cells) + (
        f"\nTest set, last epoch, mean ± standard deviation of {num_seeds} seeds; left of the arrow with the teacher "
        "as it is, right of it with the calibrated one.\n"
    )


def _percent(rates: list[float]) -> str:
    return f"{100 * np.mean(rates):.1f} ± {100 * np.std(rates, ddof=1) if len(rates) > 1 else 0:.1f}"


def main() -> int:
    """Runs what is missing and prints the table."""
    parser = parser_of(__doc__, TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    use_one_thread()
    kept = folder_of(arguments.kept)
    rows = []
    for name in arguments.tasks or TASKS:
        rows += once(kept / f"{name}-calibration.json", partial(compared, name, kept, arguments.seeds))
    text = page_of(rows)
    print(text)
    if arguments.write:
        write_results("calibration", rows)
        write_part("explanation/calibration.md", "calibration", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
