"""Does `kd.compress` find a student that is worth its search?

    python -m benchmarks.compress [--write] [--kept FOLDER] [--trials 16] [--random 20] [TASK …]

Five real tasks, three budgets each, LiteRT, one seed. Beside the student that ships: the best of twenty random students
that fill the same budget, trained as long by the search's own recipe and chosen on the same validation data; a student
made by hand (a ConvNet or a perceptron at its default shape, as the demo has it), as wide as the budget allows,
distilled at the command's defaults; the same student on labels alone; and the teacher. All are judged on the test set,
as Keras models; what ships is measured as the file it is. About eight minutes of CPU a budget; with `--kept` what is in
FOLDER is not made again. `--write` makes docs/results/compress.json and the table of docs/compress.md.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.compress_tasks import TASKS, Limits, random_shape
from benchmarks.kept import folder_of, once, parser_of, write_results
from benchmarks.page import table, write_part
from benchmarks.rounds import use_one_thread

if TYPE_CHECKING:
    import keras

    from keras_distill.data import Dataset
    from keras_distill.search.fitting import Fitter
    from keras_distill.search.training import Training

BATCH_SIZE = 128
COST_LIMIT = 10.0
BASELINES = ("random", "hand_made", "labels")


def taught(name: str, dataset: "Dataset", kept: Path) -> "keras.Model":
    """A task's teacher, trained once."""
    import keras

    path = kept / f"{name}.keras"
    if not path.exists():
        keras.utils.set_random_seed(0)
        task = TASKS[name]
        teacher = task.teacher(dataset)
        steps = task.teacher_epochs * -(-len(dataset.train) // BATCH_SIZE)
        schedule = keras.optimizers.schedules.CosineDecay(1e-3, steps)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        teacher.compile(keras.optimizers.Adam(schedule), loss)
        train = dataset.train
        teacher.fit(train.inputs, train.labels, batch_size=BATCH_SIZE, epochs=task.teacher_epochs, verbose=0)
        teacher.save(path)
    return keras.models.load_model(path)


def searched(name: str, number: int, kept: Path, num_trials: int, num_random: int) -> dict[str, Any]:
    """One task at one budget: the search and what it is compared with."""
    import keras

    import keras_distill as kd
    from keras_distill.models.inference import all_logits
    from keras_distill.report.verdict import compare_models

    task = TASKS[name]
    dataset = task.load()
    teacher = taught(name, dataset, kept)
    max_size, max_latency = task.budgets[number]
    epochs = max(8, round(task.steps * BATCH_SIZE / len(dataset.train)))
    began, began_cpu = time.monotonic(), time.process_time()
    found = kd.compress(
        teacher,
        dataset,
        kd.deploy.Budgets(max_size=max_size, max_latency_ms=max_latency, max_accuracy_drop=0.01),
        kept / f"{name}-{number}",
        epochs=epochs,
        batch_size=BATCH_SIZE,
        num_trials=num_trials,
    )
    seconds, cpu = time.monotonic() - began, time.process_time() - began_cpu
    test = dataset.test
    students = compared_students(name, dataset, kept / f"{name}-{number}", task.budgets[number], epochs, num_random)
    logits = {who: all_logits(student, test.inputs) for who, student in students.items()}
    student = all_logits(found.student, test.inputs)
    rates = dict(found.test_errors)
    rates |= {who: float(np.mean(each.argmax(-1) != test.labels)) for who, each in logits.items()}
    against = {who: str(compare_models(test.labels, student, each)) for who, each in logits.items()}
    against["labels"] = str(found.verdict)
    shipped: dict[str, Any] = {}
    if found.bundle is not None:
        manifest = json.loads((found.bundle / "manifest.json").read_text())
        (artifact,) = manifest["artifacts"].values()
        shipped = {"bytes": artifact["bytes"], "p50_ms": artifact["latency"]["p50_ms"]}
        shipped["accuracy"] = artifact["verification"]["accuracy"]
    keras.backend.clear_session()
    return {
        "task": name,
        "max_size": max_size,
        "max_latency_ms": max_latency,
        "student": found.trial.to_json() | {"recipe": asdict(found.recipe)},
        "shipped": shipped,
        "holds": found.bundle is not None,
        "why_not": [reason for outcome in found.shipment.outcomes for reason in outcome.reasons],
        "test_items": len(test),
        "error_rates": rates,
        "against": against,
        "cost_in_trainings": found.cost,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
    }


def compared_students(
    name: str, dataset: "Dataset", out: Path, limits: Limits, epochs: int, num_random: int
) -> "dict[str, keras.Model]":
    """The best of many random students within a budget, and one that was made by hand."""
    from keras_distill.search.cost import PRECISIONS, Meter
    from keras_distill.search.families import hand_made
    from keras_distill.search.fitting import Fitter
    from keras_distill.search.training import Recipe, Training
    from keras_distill.search.trials import Trial
    from keras_distill.targets import SoftTargetStore

    training = Training(
        (dataset.train.inputs, dataset.train.labels),
        (dataset.validation.inputs, dataset.validation.labels),
        SoftTargetStore.open(out / "targets"),
        epochs,
        BATCH_SIZE,
        1,
    )
    meter = Meter("litert", dataset.validation.inputs[:1], dataset.validation.inputs[:256], {})
    fitter = Fitter(meter, limits[0], limits[1], 1)
    families = hand_made(dataset.input_shape, dataset.num_classes)
    fitter.within_reach(families, PRECISIONS)
    generator = np.random.default_rng(0)
    scores: list[tuple[float, keras.Model]] = []
    while len(scores) < num_random:
        family = families[generator.integers(len(families))]
        shape = random_shape(family, generator)
        trial = Trial(0, 0, family.name, shape, str(generator.choice(PRECISIONS)), 1.0)
        student = fitted_and_trained(trial, fitter, training, Recipe(2.0, 0.5, family.learning_rate))
        if student is not None:
            scores.append((training.score(training.validation_logits(student)), student))
    by_hand = Trial(0, 0, families[0].name, families[0].default(), "float32", 1.0)
    hand = fitted_and_trained(by_hand, fitter, training, Recipe(4.0, 0.1, 1e-3))
    best = min(scores, key=lambda found: found[0])[1]
    return {"random": best} | ({"hand_made": hand} if hand is not None else {})


def fitted_and_trained(trial: Any, fitter: "Fitter", training: "Training", recipe: Any) -> "keras.Model | None":
    """A student as wide as the budget allows, trained whole; `None` where no width holds."""
    from dataclasses import replace

    if trial.family not in fitter.families:
        return None
    try:
        width, _ = fitter.fit(trial)
    except ValueError:
        return None
    distiller = training.begin(fitter.student(replace(trial, width=width)), recipe)
    training.go_on(distiller, 0, training.epochs)
    return distiller.student


def rows_of(rows: list[Mapping[str, Any]]) -> str:
    """The table of docs/compress.md."""
    header = [
        "task, budget",
        "student",
        "bytes",
        "p50 ms",
        "errors, %",
        "random",
        "by hand",
        "labels",
        "teacher",
        "cost",
    ]
    cells = []
    for row in rows:
        limits = [f"{row['max_size']:,} B"] if row["max_size"] else []
        limits += [f"{row['max_latency_ms']:g} ms"] if row["max_latency_ms"] else []
        rates, shipped = row["error_rates"], row["shipped"]
        cells.append(
            [
                f"{row['task']}, {' and '.join(limits)}",
                f"{row['student']['family']}, {row['student']['precision']}",
                f"{shipped['bytes']:,}" if shipped else "does not ship",
                f"{shipped['p50_ms']:.4f}" if shipped else "–",
                f"**{100 * rates['student']:.2f}**",
                *(f"{100 * rates[who]:.2f}" if who in rates else "–" for who in (*BASELINES, "teacher")),
                f"{row['cost_in_trainings']:.1f}",
            ]
        )
    text = table(header, cells)
    for who, said in (("random", "the best of the random students"), ("hand_made", "the hand-made student"),
                      ("labels", "labels alone")):  # fmt: skip
        known = [row for row in rows if who in row["error_rates"]]
        if not known:
            continue
        better = sum(row["error_rates"]["student"] <= row["error_rates"][who] for row in known)
        ratio = np.exp(np.mean([np.log(row["error_rates"]["student"] / row["error_rates"][who]) for row in known]))
        worse = sum(row["against"][who].startswith("WORSE") for row in known) if who != "labels" else 0
        text += (
            f"\nAgainst {said}: no more errors in {better} of {len(known)} rows, {ratio:.2f} times the errors on "
            f"geometric average, significantly worse in {worse}.\n"
        )
    within = sum(row["holds"] for row in rows)
    dearest = max(row["cost_in_trainings"] for row in rows)
    longest = max(rows, key=lambda row: row["seconds"])
    minutes, of_processor = (longest[name] / 60 for name in ("seconds", "cpu_seconds"))
    return text + (
        f"\nEvery budget holds as measured in {within} of {len(rows)} rows. The dearest search cost {dearest:.1f} "
        f"trainings of its student (goal: {COST_LIMIT:g}); the longest took {minutes:.1f} minutes on a machine with "
        f"other work to do, {of_processor:.1f} of processor time.\n"
    )


def main() -> int:
    """Runs what is missing and prints the table."""
    parser = parser_of(__doc__, TASKS)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--random", type=int, default=20)
    arguments = parser.parse_args()
    use_one_thread()
    kept = folder_of(arguments.kept)
    rows = []
    for name in arguments.tasks or TASKS:
        for number in range(len(TASKS[name].budgets)):
            make = partial(searched, name, number, kept, arguments.trials, arguments.random)
            rows.append(once(kept / f"{name}-{number}.json", make))
    text = rows_of(rows)
    print(text)
    if arguments.write:
        write_results("compress", rows, trials=arguments.trials)
        write_part("compress.md", "compress", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
