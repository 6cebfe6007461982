"""Out-of-fold targets against in-sample ones: the same student from both, and from labels. A table of docs/store.md.

    python -m benchmarks.out_of_fold [--write] [--json] [--seeds 5] [--kept FOLDER] [TASK …]

A teacher is trained on the training set and answers for it (in sample); teachers of the same kind, each trained on
four fifths, answer for the other fifth (out of fold, `label(…, folds=5)`). From each store, and from the labels, a
student is trained; teachers, folds and students are drawn anew with every seed. The settings were fixed beforehand; the
test set is looked at once, at the end. Tasks:

- `forest`: Adult, 28,561 rows; a random forest of 100 trees grown to their ends, which knows its rows by heart.
- `boosted`: the same rows; scikit-learn's `HistGradientBoostingClassifier`, 200 rounds, which hardly does.
- `mnist`: 6,000 images; a ConvNet (16 and 32 channels, 15 epochs), right about all of them.

With `--kept` the answers of each task and seed are kept there, and what is there is not done again. About eight minutes
on one core.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.page import DOCS, table, write_part
from benchmarks.rounds import machine, use_one_thread

if TYPE_CHECKING:
    from keras_distill.data import Dataset
    from keras_distill.report.verdict import Verdict

RESULTS = DOCS / "results" / "out_of_fold.json"
NUM_FOLDS = 5
STUDENTS = ("labels", "in_sample", "out_of_fold")


@dataclass(frozen=True)
class Task:
    """What is distilled.

    Attributes:
        what: in words, for the page.
        load: the data.
        make_teacher: of a seed, what trains a teacher on some items.
        widths: of the student's hidden layers.
        epochs: of the student.
        temperature: 1 where there are two classes, whose probabilities say all that there is; else the command's 4.
    """

    what: str
    load: "Callable[[], Dataset]"
    make_teacher: Callable[[int], Callable]
    widths: tuple[int, ...]
    epochs: int
    temperature: float


def adult() -> "Dataset":
    from benchmarks import compress_tasks

    return compress_tasks.adult()


def mnist() -> "Dataset":
    from benchmarks import compress_tasks

    return compress_tasks.images("mnist", 6_000)


def forest(seed: int) -> Callable:
    from sklearn.ensemble import RandomForestClassifier

    from keras_distill.teachers import PredictProbaTeacher

    def make_teacher(inputs: np.ndarray, labels: np.ndarray, fold: int) -> PredictProbaTeacher:
        trees = RandomForestClassifier(100, random_state=1000 * seed + fold).fit(inputs, labels)
        # A share of no tree of a hundred is half of one at most.
        return PredictProbaTeacher(trees, smallest=0.005)

    return make_teacher


def boosted(seed: int) -> Callable:
    from sklearn.ensemble import HistGradientBoostingClassifier

    from keras_distill.teachers import PredictProbaTeacher

    def make_teacher(inputs: np.ndarray, labels: np.ndarray, fold: int) -> PredictProbaTeacher:
        trees = HistGradientBoostingClassifier(max_iter=200, early_stopping=False, random_state=1000 * seed + fold)
        return PredictProbaTeacher(trees.fit(inputs, labels))

    return make_teacher


def convnet(seed: int) -> Callable:
    import keras

    from keras_distill.data import networks

    def make_teacher(inputs: np.ndarray, labels: np.ndarray, fold: int) -> keras.Model:
        keras.utils.set_random_seed(1000 * seed + fold)
        teacher = networks.convnet(inputs.shape[1:], 10, (16, 32), dense_width=64, name="teacher")
        teacher.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        teacher.fit(inputs, labels, batch_size=128, epochs=15, verbose=0)
        return teacher

    return make_teacher


TASKS = {
    "forest": Task("Adult, a random forest", adult, forest, (32, 32), 10, 1.0),
    "boosted": Task("Adult, boosted trees", adult, boosted, (32, 32), 10, 1.0),
    "mnist": Task("MNIST, 6,000 images, a ConvNet", mnist, convnet, (32,), 40, 4.0),
}


def trained(name: str, seed: int, dataset: "Dataset", folder: Path) -> dict[str, np.ndarray]:
    """The students' and the teacher's logits of the test set, and what the stores' targets are like."""
    import keras

    from keras_distill.cli.evaluation import logits_function
    from keras_distill.targets import attach, label

    task = TASKS[name]
    train, test = dataset.train, dataset.test
    make_teacher = task.make_teacher(seed)
    # In sample is a teacher that was trained on all folds: one that no fold is held back from.
    teacher = make_teacher(train.inputs, train.labels, NUM_FOLDS)
    stores = {
        "in_sample": label(teacher, train, folder / "in_sample", dtype="float32"),
        "out_of_fold": label(
            None,
            train,
            folder / "out_of_fold",
            dtype="float32",
            folds=NUM_FOLDS,
            make_teacher=make_teacher,
            fold_seed=seed,
        ),
    }
    found = {"teacher": logits_function(teacher)(test.inputs)}
    for kind, store in stores.items():
        targets = store.soft_targets(np.arange(len(train)), 1.0)
        found[f"{kind}_right"] = np.mean(targets.argmax(axis=-1) == train.labels)
        found[f"{kind}_nats"] = -np.sum(targets * np.log(np.maximum(targets, 1e-30)), axis=-1).mean()
    for kind in STUDENTS:
        keras.utils.set_random_seed(seed)
        # The pipeline is the same for all three, so that they see the same items in the same order.
        batches = attach(train, stores["in_sample" if kind == "labels" else kind], batch_size=128, seed=seed)
        student = student_of(task, dataset, on_labels=kind == "labels")
        student.fit(batches, epochs=task.epochs, shuffle=False, verbose=0)
        found[kind] = logits_function(student.student)(test.inputs)
    return found


def student_of(task: Task, dataset: "Dataset", *, on_labels: bool) -> Any:
    """A fresh student in its `Distiller`, as `keras-distill distill` would train it."""
    import keras

    from keras_distill import Distiller
    from keras_distill.data import networks
    from keras_distill.losses import SoftTargets

    student = networks.mlp(dataset.input_shape, dataset.num_classes, task.widths, name="student")
    weight = 1.0 if on_labels else 0.1
    distiller = Distiller(None, student, SoftTargets(task.temperature), student_loss_weight=weight)
    steps = task.epochs * -(-len(dataset.train) // 128)
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    distiller.compile(keras.optimizers.Adam(schedule), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return distiller


def measure(name: str, num_seeds: int, kept: Path) -> dict:
    """The figures of a task, and its verdicts: the answers of every seed, made here or kept from before."""
    from keras_distill.report.metrics import error_rate, negative_log_likelihood
    from keras_distill.report.verdict import compare_models

    dataset, runs, seconds = TASKS[name].load(), [], 0.0
    for seed in range(num_seeds):
        file = kept / f"{name}-{seed}.npz"
        if not file.exists():
            began = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                found = trained(name, seed, dataset, Path(folder))
            aside = file.with_suffix(".partial.npz")
            np.savez(aside, **found, cpu_seconds=time.process_time() - began)
            aside.replace(file)
        with np.load(file) as answers:
            runs.append(dict(answers))
        seconds += float(runs[-1]["cpu_seconds"])
    labels = dataset.test.labels
    logits = {kind: np.stack([run[kind] for run in runs]) for kind in ("teacher", *STUDENTS)}

    def verdict(candidate: str, baseline: str) -> "Verdict":
        return compare_models(labels, logits[candidate], logits[baseline])

    pairs = (("out_of_fold", "in_sample"), ("in_sample", "labels"), ("out_of_fold", "labels"))
    return {
        "what": TASKS[name].what,
        "num_seeds": num_seeds,
        "cpu_seconds": seconds,
        "errors": {kind: [error_rate(each, labels) for each in values] for kind, values in logits.items()},
        "nll": {kind: [negative_log_likelihood(each, labels) for each in values] for kind, values in logits.items()},
        "targets": {
            kind: {figure: float(np.mean([run[f"{kind}_{figure}"] for run in runs])) for figure in ("right", "nats")}
            for kind in STUDENTS[1:]
        },
        "verdicts": {" over ".join(pair): verdict(*pair).to_json() for pair in pairs},
    }


def page_part(result: dict[str, Any]) -> str:
    """The generated part of docs/store.md."""
    from keras_distill.report.verdict import Verdict

    names = {"labels": "labels alone", "in_sample": "in sample", "out_of_fold": "out of fold"}
    rows, lines = [], []
    for found in result["tasks"].values():
        for kind, name in names.items():
            targets = found["targets"].get(kind)
            errors, nll = found["errors"][kind], found["nll"][kind]
            rows.append(
                [
                    found["what"] if kind == "labels" else "",
                    name,
                    "–" if targets is None else f"{100 * targets['right']:.1f} %",
                    "–" if targets is None else f"{targets['nats']:.3f}",
                    f"{100 * np.mean(errors):.2f} ± {100 * np.std(errors, ddof=1):.2f} %",
                    f"{np.mean(nll):.4f}",
                ]
            )
        verdicts = {pair: Verdict.from_json(each) for pair, each in found["verdicts"].items()}
        teacher = 100 * np.mean(found["errors"]["teacher"])
        lines.append(f"- {found['what']} (the teacher: {teacher:.2f} % errors).")
        for pair, verdict in verdicts.items():
            candidate, _, baseline = pair.partition(" over ")
            nll = verdict.nll
            lines.append(
                f"  {names[candidate].capitalize()} against {names[baseline]}: {verdict}; NLL {nll.mean:+.4f} nats "
                f"[{nll.low:+.4f}, {nll.high:+.4f}]."
            )
    header = ["task", "the student's targets", "right", "entropy, nats", "test errors", "NLL, nats"]
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    minutes = sum(found["cpu_seconds"] for found in result["tasks"].values()) / 60
    notes = f"{result['num_seeds']} seeds, {NUM_FOLDS} folds, {minutes:.1f} minutes of one core; {where}."
    return "\n".join([table(header, rows), *lines, "", notes])


def main() -> None:
    """Prints the table, or the figures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="put the table into docs/store.md; all tasks")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kept", metavar="FOLDER", help="where answers are kept, for a run that goes on")
    arguments = parser.parse_args()
    if unknown := set(arguments.tasks) - set(TASKS):
        parser.error(f"TASK must be one of {', '.join(TASKS)}; got {', '.join(sorted(unknown))}")
    if arguments.write and arguments.tasks:
        parser.error("--write measures all tasks: name none")
    use_one_thread()
    result: dict[str, Any] = {"machine": machine(), "num_seeds": arguments.seeds, "tasks": {}}
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(arguments.kept or folder)
        kept.mkdir(parents=True, exist_ok=True)
        for name in arguments.tasks or TASKS:
            result["tasks"][name] = measure(name, arguments.seeds, kept)
    print(json.dumps(result, indent=2, ensure_ascii=False) if arguments.json else page_part(result))
    if arguments.write:
        RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        write_part("store.md", "out of fold", page_part(result))


if __name__ == "__main__":
    main()
