"""Which method would a user be right to pick? All losses for classes on three tasks, at their defaults and tuned alike.

    python -m benchmarks.arena [--write] [--kept FOLDER] [--seeds 5] [TASK …]

Digits of which 100 have a label, spoken digits, and Banking77 as features of a frozen sentence encoder. One teacher a
task; every student is trained by the same optimizer for as many steps, and judged once on the test set, after its last
epoch. At the defaults: temperature and weights of `benchmarks.methods`, a tenth of the weight on the labels, a learning
rate of 3e-3. Tuned: temperature, weight of the labels and learning rate chosen by `kd.tune` on validation data, for
a student of a seed of its own, at four trainings for every method; then as many students as before are trained with
what it chose. About an hour and a half of one core; with `--kept` what is in FOLDER is not made again. `--write` makes
docs/results/arena.json and the table of docs/methods.md.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.compress_tasks import banking77, images
from benchmarks.kept import folder_of, once, parser_of, write_results
from benchmarks.methods import Method, methods
from benchmarks.page import table, write_part
from benchmarks.rounds import use_one_thread

if TYPE_CHECKING:
    import keras

    from keras_distill.data import Dataset
    from keras_distill.search.training import Recipe, Training

BATCH_SIZE = 64
LEARNING_RATE, LABELS_WEIGHT = 3e-3, 0.1
LABELS_ALONE = "labels alone"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Task:
    """What methods are compared on.

    Attributes:
        load: the data; −1 is no label.
        network: from a width, a seed and a name to a model with layers `block2` and `embedding`.
        widths: the teacher's and the student's.
        epochs: the teacher's and the student's.
        has_maps: whether `block2` has places as well as channels.
        num_labelled: how many of the training labels students know; `None` is all.
    """

    load: "Callable[[], Dataset]"
    network: "Callable[[int, int, str], keras.Model]"
    widths: tuple[int, int]
    epochs: tuple[int, int]
    has_maps: bool
    num_labelled: int | None = None

    def student(self, seed: int) -> "keras.Model":
        """A student as a seed begins it."""
        return self.network(self.widths[1], seed, "student")


def convnet(shape: tuple[int, int, int], stride: int) -> "Callable[[int, int, str], keras.Model]":
    """ConvNets of two blocks and an embedding."""

    def network(width: int, seed: int, name: str) -> "keras.Model":
        import keras
        from keras import layers

        keras.utils.set_random_seed(seed)
        inputs = hidden = keras.Input(shape)
        for number, strides in ((1, stride), (2, 2)):
            hidden = layers.Conv2D(number * width, 3, strides=strides, padding="same", use_bias=False)(hidden)
            hidden = layers.BatchNormalization()(hidden)
            hidden = layers.ReLU(name=f"block{number}")(hidden)
        embedding = layers.Dense(4 * width, activation="relu", name="embedding")(layers.Flatten()(hidden))
        return keras.Model(inputs, layers.Dense(10)(embedding), name=name)

    return network


def perceptron(width: int, seed: int, name: str) -> "keras.Model":
    """A perceptron of two hidden layers for Banking77's features."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((384,))
    hidden = layers.Dense(width, activation="relu", name="block2")(inputs)
    hidden = layers.Dropout(0.3 if name == "teacher" else 0.0)(hidden)
    embedding = layers.Dense(width, activation="relu", name="embedding")(hidden)
    return keras.Model(inputs, layers.Dense(77)(embedding), name=name)


TASKS = {
    "digits": Task(lambda: images("digits"), convnet((8, 8, 1), 1), (32, 4), (60, 50), True, 100),
    "spoken_digit": Task(lambda: images("spoken_digit"), convnet((64, 40, 1), 2), (32, 4), (20, 12), True),
    "banking77": Task(banking77, perceptron, (512, 24), (15, 8), False),
}


def taught(name: str, dataset: "Dataset", kept: Path) -> "keras.Model":
    """A task's teacher, trained once, on every label."""
    import keras

    path = kept / f"{name}.keras"
    if not path.exists():
        teacher = TASKS[name].network(TASKS[name].widths[0], 0, "teacher")
        epochs = TASKS[name].epochs[0]
        schedule = keras.optimizers.schedules.CosineDecay(1e-3, epochs * -(-len(dataset.train) // BATCH_SIZE))
        teacher.compile(keras.optimizers.Adam(schedule), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        teacher.fit(dataset.train.inputs, dataset.train.labels, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
        teacher.save(path)
    return keras.models.load_model(path)


def known_labels(task: Task, dataset: "Dataset") -> np.ndarray:
    """The training labels that students know; −1 for the others."""
    labels = np.asarray(dataset.train.labels)
    if task.num_labelled is not None:
        labels = np.where(np.arange(len(labels)) < task.num_labelled, labels, -1)
    return labels.astype("int32")


def students_of(name: str, method: Method | None, kept: Path, num_seeds: int) -> dict[str, Any]:
    """The test error rates of a method's students, one a seed, at its defaults and tuned; `None` is labels alone."""
    import keras
    import optuna

    import keras_distill as kd
    from keras_distill.search.training import Recipe, Training
    from keras_distill.targets import label

    task = TASKS[name]
    dataset = task.load()
    teacher = taught(name, dataset, kept)
    options: dict[str, Any] = {}
    has_state = method is not None and method.has_state
    if method is not None:
        options = {"distillation_losses": method.losses, "distillation_loss_weights": method.weights}
        options |= {"teacher": teacher} if method.reads_layers else {}
    training = Training(
        (dataset.train.inputs, known_labels(task, dataset)),
        (dataset.validation.inputs, dataset.validation.labels),
        label(teacher, dataset.train.inputs, kept / f"{name}-targets", dtype="float32", progress=False),
        task.epochs[1],
        BATCH_SIZE,
        0,
        **options,
    )
    first = Recipe(4.0 if method is None else method.temperature, LABELS_WEIGHT, LEARNING_RATE)
    with tempfile.TemporaryDirectory() as folder:
        # Labels alone are the same for every method: what the first one found of them is handed on.
        study, own = kept / f"{name}-study", Path(folder) / "study"
        if study.exists():
            shutil.copytree(study, own)
        tuned = kd.tune(
            lambda: task.student(1000),
            training.train,
            training.validation,
            training.store,
            own,
            epochs=training.epochs,
            batch_size=BATCH_SIZE,
            seed=1000,
            **asdict(first),
            **options,
        )
        if not study.exists():
            optuna.delete_study(study_name="distilled", storage=f"sqlite:///{own}/study.sqlite3")
            shutil.copytree(own, study)
    chosen = tuned.labels_candidate if method is None else tuned.distilled_candidate
    default = replace(first, student_loss_weight=1.0) if method is None else first
    found = {
        "task": name,
        "method": LABELS_ALONE if method is None else method.name,
        "default": error_rates(training, task, default, dataset, num_seeds, has_state),
        "tuned": error_rates(training, task, chosen, dataset, num_seeds, has_state),
        "recipe": asdict(chosen),
        "teacher": float(np.mean(np.argmax(np.asarray(teacher(dataset.test.inputs)), -1) != dataset.test.labels)),
    }
    keras.backend.clear_session()
    return found


def error_rates(
    training: "Training", task: Task, recipe: "Recipe", dataset: "Dataset", num_seeds: int, has_state: bool
) -> list[float]:
    """Of students trained with a recipe, one a seed."""
    from keras_distill.models.inference import all_logits

    rates = []
    distiller = None
    for seed in range(num_seeds):
        student, seeded = task.student(seed), replace(training, seed=seed)
        if distiller is None or has_state:
            distiller = seeded.begin(student, recipe)
        else:
            # Begun anew in the step that is compiled already, which takes longer than such a training.
            distiller.student.set_weights(student.get_weights())
            for variable in distiller.optimizer.variables:
                variable.assign(0 * variable)
        seeded.go_on(distiller, 0, seeded.epochs)
        answers = all_logits(distiller.student, dataset.test.inputs).argmax(-1)
        rates.append(float(np.mean(answers != dataset.test.labels)))
    return rates


def ranked(rows: list[dict[str, Any]], which: str) -> dict[str, tuple[float, float, float]]:
    """Each method's mean rank among those that every task has, and its interval of 95 %, over the tasks' seeds."""
    from scipy import stats

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    names = _on_every_task(rows)
    rates = {(row["task"], row["method"]): row[which] for row in rows}
    ranks = {task: stats.rankdata([rates[task, name] for name in names], axis=0) for task in tasks}
    found = {}
    for number, name in enumerate(names):
        samples = tuple(ranks[task][number] for task in tasks)
        mean = float(np.mean([sample.mean() for sample in samples]))
        if len(samples[0]) < 2 or all(np.ptp(sample) == 0 for sample in samples):
            found[name] = (mean, mean, mean)
            continue
        interval = stats.bootstrap(
            samples,
            lambda *drawn, axis: np.mean([each.mean(axis=axis) for each in drawn], axis=0),
            method="percentile",
            vectorized=True,
            rng=0,
        ).confidence_interval
        found[name] = (mean, float(interval.low), float(interval.high))
    return found


def against_soft_targets(rows: list[dict[str, Any]], which: str) -> dict[str, float]:
    """The p of each method's error rates beside those of plain soft targets, by Wilcoxon's test, corrected by Holm.

    Pairs are of one task and one seed; a difference counts relative to the task's own mean error rate, since
    those of one task are a multiple of another's. Negative where the method makes fewer errors.
    """
    from scipy import stats

    first = methods()[0].name
    rates = {(row["task"], row["method"]): np.array(row[which]) for row in rows}
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    signed: dict[str, float] = {}
    for name in _on_every_task(rows):
        if name in (first, LABELS_ALONE):
            continue
        differences = np.concatenate(
            [(rates[task, name] - rates[task, first]) / rates[task, first].mean() for task in tasks]
        )
        p = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
        signed[name] = np.copysign(p, differences.mean())
    largest = 0.0
    corrected = {}
    for number, name in enumerate(sorted(signed, key=lambda name: abs(signed[name]))):
        largest = min(1.0, max(largest, abs(signed[name]) * (len(signed) - number)))
        corrected[name] = float(np.copysign(largest, signed[name]))
    return corrected


def _on_every_task(rows: list[dict[str, Any]]) -> list[str]:
    tasks = {row["task"] for row in rows}
    names = dict.fromkeys(row["method"] for row in rows)
    return [name for name in names if {row["task"] for row in rows if row["method"] == name} == tasks]


def page_of(rows: list[dict[str, Any]]) -> str:
    """The table of docs/methods.md, and what follows from it."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    ranks = {which: ranked(rows, which) for which in ("default", "tuned")}
    found = {(row["task"], row["method"]): row for row in rows}
    cells = []
    for name in dict.fromkeys(row["method"] for row in rows):
        cell = [name]
        for which in ("default", "tuned"):
            for task in tasks:
                row = found.get((task, name))
                cell.append("–" if row is None else f"{_percent(row[which])}")
            rank = ranks[which].get(name)
            cell.append("–" if rank is None else f"{rank[0]:.1f} ({rank[1]:.1f} to {rank[2]:.1f})")
        cells.append(cell)
    header = ["method"] + [f"{task}, {which}" for which in ("default", "tuned") for task in (*tasks, "rank")]
    text = table(header, cells)
    teachers = ", ".join(f"{task} {100 * found[task, LABELS_ALONE]['teacher']:.1f}" for task in tasks)
    num_seeds = len(rows[0]["default"])
    text += f"\nTest errors in %, mean ± standard deviation of {num_seeds} seeds. The teachers': {teachers}.\n"
    for which, said in (("default", "At the defaults"), ("tuned", "Tuned")):
        p = against_soft_targets(rows, which)
        better = [name for name in p if abs(p[name]) < SIGNIFICANT and np.signbit(p[name])]
        worse = [name for name in p if abs(p[name]) < SIGNIFICANT and not np.signbit(p[name])]
        text += (
            f"\n{said}, fewer errors than plain soft targets: {_listed(better)}; more: {_listed(worse)} "
            f"(Wilcoxon's test over tasks and seeds, corrected by Holm, p < {SIGNIFICANT:g}).\n"
        )
    return text


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _percent(rates: list[float]) -> str:
    return f"{100 * np.mean(rates):.2f} ± {100 * np.std(rates, ddof=1) if len(rates) > 1 else 0:.2f}"


def main() -> int:
    """Runs what is missing and prints the table."""
    parser = parser_of(__doc__, TASKS)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    use_one_thread()
    kept = folder_of(arguments.kept)
    rows = []
    for name in arguments.tasks or TASKS:
        entrants: list[Method | None] = [None, *(method for method in methods() if method.in_arena)]
        for number, method in enumerate(entrants):
            if method is not None and method.reads_maps and not TASKS[name].has_maps:
                continue
            make = partial(students_of, name, method, kept, arguments.seeds)
            rows.append(once(kept / f"{name}-{number}.json", make))
    text = page_of(rows)
    print(text)
    if arguments.write:
        write_results("arena", rows)
        write_part("methods.md", "arena", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
