"""Does `kd.tune` keep its word: never worse than labels, nearly as good as a full grid, for five trainings at most?

    python -m benchmarks.tuning [--json] [--write] [--seeds 2] [--data-set-seeds 3] [--kept FOLDER] [ROW …]

The ten situations of the verdict's benchmark from a few seeds each, and MNIST, digits and spoken digits from as many;
the student has one hidden layer. Beside the tuned one: the same student on labels alone at the given rate, trained as
long by plain Keras, and a grid of three temperatures, three weights of the labels and three learning rates, 21 whole
trainings, whose best is chosen on the validation data that `tune` chooses on. Small sets are repeated until a training
has about eight epochs: what an epoch costs beside its steps would be most of the time. Situations are judged on fresh
test sets of 10,000, data sets on their test sets. About eight minutes a seed on one core; `--write` makes
docs/results/tuning.json and the table of docs/distill.md; with `--kept` runs that are in FOLDER are not made again.
"""

import argparse
import json
import pickle
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.page import DOCS, table, write_part
from benchmarks.rounds import machine, use_one_thread
from keras_distill._files import whole_file

if TYPE_CHECKING:
    import keras

    from keras_distill.search import Recipe

RESULTS = DOCS / "results" / "tuning.json"
SITUATIONS = (
    "teacher at chance",
    "leaking teacher",
    "saturated student",
    "few labels",
    "noisy labels",
    "unlabelled pool",
    "under-trained",
    "tiny test set",
    "teacher is the student",
    "no difference",
)
DATA_SETS = ("digits", "mnist", "spoken_digit")
BATCH_SIZE, WIDTH, STEPS = 128, 32, 1000
TEMPERATURES, WEIGHTS, RATES = (1.0, 2.0, 4.0), (0.1, 0.5), (1.0, 3.0, 10.0)
# Of MNIST: an epoch of the teacher is a minute's half, and students are told apart by the whole test set.
NUM_OF_MNIST = 10_000
# Bytes of a training set with its copies.
LARGEST = 64 << 20
# Four trainings, and one of labels at the rate of a distilled student.
COST_LIMIT, RATIO_LIMIT = 5.0, 1.05


@dataclass
class Problem:
    """What a student is tuned for.

    Attributes:
        train: inputs and labels, −1 for none.
        teacher_logits: the teacher's answers to the training inputs.
        validation: what is chosen on.
        test: what the verdict is made on.
        judged: what errors are counted on: the test set, or a larger one.
        num_classes: how many.
        width: of the student's hidden layer.
        steps: about how many a training has.
        learning_rate: the given one.
    """

    train: tuple[np.ndarray, np.ndarray]
    teacher_logits: np.ndarray
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    judged: tuple[np.ndarray, np.ndarray]
    num_classes: int
    width: int = WIDTH
    steps: int = STEPS
    learning_rate: float = 1e-3

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.train[1]) // BATCH_SIZE)

    @property
    def epochs(self) -> int:
        """Of a whole training."""
        return max(1, round(self.steps / self.steps_per_epoch))

    def repeated(self) -> "Problem":
        """The same with so many copies of the training set that a training has about eight epochs."""
        inputs, labels = self.train
        num_copies = max(1, min(round(self.epochs / 8), LARGEST // inputs.nbytes))
        train = np.concatenate([inputs] * num_copies), np.tile(labels, num_copies)
        return replace(self, train=train, teacher_logits=np.tile(self.teacher_logits, (num_copies, 1)))

    def labelled(self) -> np.ndarray:
        """Positions of labelled items, as many as there are items: each as often as the others."""
        labels = self.train[1]
        return np.resize(np.flatnonzero(labels >= 0), len(labels))


def of_situation(name: str, seed: int) -> Problem:
    """A situation of the verdict's benchmark, with 500 examples more to validate on."""
    from tests.report.situations import NUM_CLASSES, one_hot, setting

    def floats(part: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return part[0].astype("float32"), part[1].astype("int32")

    given = setting(name, seed)
    inputs, labels = given.labelled
    # Of a pool the labelled ones are the first, or it is another one.
    others = given.pool[len(inputs) :] if np.array_equal(given.pool[: len(inputs)], inputs) else given.pool
    train = np.concatenate([inputs, others]), np.concatenate([labels, np.full(len(others), -1)])
    # Where there is no teacher, one that repeats the labels.
    teacher_logits = 10.0 * one_hot(train[1]) if given.teacher is None else given.teacher(train[0])
    return Problem(
        floats(train),
        teacher_logits.astype("float32"),
        floats(given.draw(500)),
        floats(given.test),
        floats(given.fresh),
        NUM_CLASSES,
        given.width,
        given.steps,
        learning_rate=0.01,
    )


def of_data_set(name: str) -> Problem:
    """A data set, and what a convolutional network trained on it answers."""
    import keras

    from keras_distill import data
    from keras_distill.data.networks import convnet

    dataset = data.load(name)
    train = dataset.train
    if name == "mnist":
        train = train.take(np.random.default_rng(0).permutation(len(train))[:NUM_OF_MNIST])
    keras.utils.set_random_seed(0)
    teacher = convnet(dataset.input_shape, dataset.num_classes, (16, 32), dropout=0.3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile(keras.optimizers.Adam(1e-3), loss=loss)
    # About 400 steps, 60 for each class of ten: test errors of a few in a hundred.
    teacher.fit(train.inputs, train.labels, batch_size=64, epochs=max(4, 25_000 // len(train)), verbose=0)

    def flat(split: Any) -> tuple[np.ndarray, np.ndarray]:
        return split.inputs.reshape(len(split), -1), split.labels

    teacher_logits = teacher.predict(train.inputs, verbose=0)
    test = flat(dataset.test)
    return Problem(flat(train), teacher_logits, flat(dataset.validation), test, test, dataset.num_classes)


def run(problem: Problem, seed: int) -> dict[str, Any]:
    """One seed: the tuned student, labels alone and the grid; logits on the test set are under `logits`."""
    import keras

    import keras_distill as kd
    from keras_distill.data.networks import mlp
    from keras_distill.report import metrics

    inputs, labels = problem.train
    rows = {row.tobytes(): answer for row, answer in zip(inputs, problem.teacher_logits, strict=True)}

    def make() -> "keras.Model":
        keras.utils.set_random_seed(1000 + seed)
        return mlp(inputs.shape[1:], problem.num_classes, (problem.width,))

    def found(logits_on: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
        validation, judged = (logits_on(part[0]) for part in (problem.validation, problem.judged))
        temperature = metrics.best_temperature(validation, problem.validation[1])
        return {
            "errors": int(np.sum(judged.argmax(-1) != problem.judged[1])),
            "validation_errors": int(np.sum(validation.argmax(-1) != problem.validation[1])),
            "validation_nll": metrics.negative_log_likelihood(validation, problem.validation[1], temperature),
        }

    def logits_of(student: "keras.Model") -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: np.asarray(student.predict(x, batch_size=1000, verbose=0))

    seconds = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        store = kd.targets.label(
            lambda x: np.stack([rows[row.tobytes()] for row in np.asarray(x)]),
            inputs,
            f"{folder}/targets",
            teacher_fingerprint="answers by heart",
            progress=False,
        )
        tuned = kd.tune(
            make,
            problem.train,
            problem.validation,
            store,
            f"{folder}/study",
            epochs=problem.epochs,
            batch_size=BATCH_SIZE,
            learning_rate=problem.learning_rate,
            seed=seed,
        )
    seconds["tuned"] = time.monotonic() - began

    began = time.monotonic()
    student = make()
    num_steps = problem.epochs * problem.steps_per_epoch
    schedule = keras.optimizers.schedules.CosineDecay(problem.learning_rate, num_steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile(keras.optimizers.Adam(schedule), loss=loss)
    ids = problem.labelled()
    student.fit(inputs[ids], labels[ids], batch_size=BATCH_SIZE, epochs=problem.epochs, verbose=0)
    seconds["labels"] = time.monotonic() - began

    began = time.monotonic()
    grid = _grid(problem, make(), found, num_steps, seed)
    seconds["grid"] = time.monotonic() - began
    return {
        "seed": seed,
        "cost_in_trainings": tuned.num_steps / tuned.steps_of_one,
        "chosen": asdict(tuned.candidate),
        "tuned": found(logits_of(tuned.student)),
        "tuned_on_labels": found(logits_of(tuned.labels_student)),
        "labels": found(logits_of(student)),
        "grid_by_nll": min(grid, key=lambda each: each["validation_nll"]),
        "grid_by_errors": min(grid, key=lambda each: (each["validation_errors"], each["validation_nll"])),
        "grid_at_its_luckiest": min(grid, key=lambda each: each["errors"]),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "logits": {
            name: logits_of(model)(problem.test[0])
            for name, model in (
                ("tuned", tuned.student),
                ("tuned_on_labels", tuned.labels_student),
                ("labels", student),
            )
        },
    }


def _grid(
    problem: Problem,
    student: "keras.Model",
    found: Callable[[Callable[[np.ndarray], np.ndarray]], dict[str, Any]],
    num_steps: int,
    seed: int,
) -> list[dict[str, Any]]:
    """What each of the 21 settings of the grid ends with."""
    from benchmarks.stacked import stacked_logits, train_stacked
    from keras_distill.search import Recipe

    rates = [factor * problem.learning_rate for factor in RATES]
    on_labels = [Recipe(1.0, 1.0, rate) for rate in rates]
    distilled = [Recipe(each, weight, rate) for each in TEMPERATURES for weight in WEIGHTS for rate in rates]
    ids, everything = problem.labelled(), (*problem.train, problem.teacher_logits)
    grid: list[dict[str, Any]] = []

    def end(candidates: "list[Recipe]", examples: tuple) -> None:
        parts = train_stacked(
            student.get_weights(), examples, candidates, num_steps=num_steps, batch_size=BATCH_SIZE, seed=seed
        )
        for index, candidate in enumerate(candidates):
            own = [part[index : index + 1] for part in parts]
            grid.append(asdict(candidate) | found(lambda x, own=own: stacked_logits(own, x)[0].numpy()))

    end(on_labels, tuple(part[ids] for part in everything))
    end(distilled, everything)
    return grid


def runs_of(name: str, seeds: Sequence[int], kept: Path) -> list[dict[str, Any]]:
    """What `run` gives for a situation or a data set from several seeds, made or read from a folder."""
    import keras

    missing = [seed for seed in seeds if not (kept / f"{name}-{seed}.pickle").exists()]
    problem = of_data_set(name) if missing and name in DATA_SETS else None
    for seed in missing:
        began = time.monotonic()
        of_seed = problem or of_situation(name, seed)
        found = run(of_seed.repeated(), seed)
        found["minutes"] = round((time.monotonic() - began) / 60, 3)
        with whole_file(kept / f"{name}-{seed}.pickle") as aside:
            aside.write_bytes(pickle.dumps((found, about(of_seed), of_seed.test[1])))
        shown = {key: found[key]["errors"] for key in ("tuned", "labels", "grid_by_nll", "grid_by_errors")}
        print(name, seed, shown, found["chosen"], found["seconds"], file=sys.stderr, flush=True)
        keras.backend.clear_session()
    # Written here or by an earlier call of this command.
    return [pickle.loads((kept / f"{name}-{seed}.pickle").read_bytes()) for seed in seeds]


def about(problem: Problem) -> dict[str, int]:
    """The sizes of a problem."""
    repeated = problem.repeated()
    return {
        "examples": len(problem.train[1]),
        "labelled": int(np.sum(problem.train[1] >= 0)),
        "judged_on": len(problem.judged[1]),
        "steps": repeated.epochs * repeated.steps_per_epoch,
    }


def row_of(name: str, num_seeds: int, kept: Path) -> dict[str, Any]:
    """A situation or a data set, from several seeds."""
    from keras_distill.report.verdict import compare_models

    runs, sizes, labels = zip(*runs_of(name, range(num_seeds), kept), strict=True)
    logits = [each.pop("logits") for each in runs]
    verdicts = {}
    for baseline in ("labels", "tuned_on_labels"):
        if name in SITUATIONS:
            # Each seed is a world of its own.
            pairs = zip(labels, logits, strict=True)
            found = [compare_models(truth, each["tuned"], each[baseline]) for truth, each in pairs]
        else:
            stacks = (np.stack([each[key] for each in logits]) for key in ("tuned", baseline))
            found = [compare_models(labels[0], *stacks)]
        verdicts[baseline] = [{"word": each.word, "text": str(each)} for each in found]
    errors = {key: sum(each[key]["errors"] for each in runs) for key in _COLUMNS}
    return {
        "name": name,
        "num_seeds": len(runs),
        **sizes[0],
        "error_rates": {key: count / (len(runs) * sizes[0]["judged_on"]) for key, count in errors.items()},
        "ratio": errors["tuned"] / max(1, errors["grid_by_nll"]),
        "ratio_by_errors": errors["tuned"] / max(1, errors["grid_by_errors"]),
        "cost_in_trainings": max(each["cost_in_trainings"] for each in runs),
        "verdicts": verdicts,
        "seeds": runs,
    }


_COLUMNS = ("tuned", "tuned_on_labels", "labels", "grid_by_nll", "grid_by_errors", "grid_at_its_luckiest")


def words(verdicts: list[dict[str, str]]) -> str:
    """How often which word was said."""
    counts = Counter(each["word"] for each in verdicts)
    order = ("BETTER", "NO BETTER", "WORSE", "INCONCLUSIVE")
    return ", ".join(f"{counts[word]} {word}" for word in order if counts[word])


def mean_ratio(result: dict[str, Any], key: str) -> float:
    """Of the errors of the tuned to the grid's best, over all rows."""
    return float(np.mean([row[key] for row in result["rows"]]))


def page_part(result: dict[str, Any]) -> str:
    """The generated part of docs/distill.md."""
    header = ["situation or data set", "tuned, %", "labels, %", "grid's best, by NLL, %", "by errors, %"]
    header += ["tuned / grid", "trainings", "tuned against labels"]
    rows = [
        [row["name"]]
        + [f"{100 * row['error_rates'][key]:.2f}" for key in ("tuned", "labels", "grid_by_nll", "grid_by_errors")]
        + [f"{row['ratio']:.2f}, {row['ratio_by_errors']:.2f}", f"{row['cost_in_trainings']:.2f}"]
        + [words(row["verdicts"]["labels"])]
        for row in result["rows"]
    ]
    ratio, by_errors = mean_ratio(result, "ratio"), mean_ratio(result, "ratio_by_errors")
    cost = max(row["cost_in_trainings"] for row in result["rows"])
    worse = _num_worse(result)
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return "\n".join(
        [
            table(header, rows),
            f"Errors of the tuned over those of the grid's best, on average: {ratio:.3f} where the grid is chosen by "
            f"negative log-likelihood, {by_errors:.3f} by errors (goal: at most {RATIO_LIMIT}). "
            f"`WORSE` than labels alone: {worse['labels']} of {worse['all']} verdicts, than the best on labels that "
            f"was tried: {worse['tuned_on_labels']} (goal: none). Cost: at most {cost:.2f} trainings (goal: "
            f"{COST_LIMIT:g}).",
            "",
            f"Seeds of a situation: {result['num_seeds']}, of a data set: {result['num_data_set_seeds']}, one verdict "
            f"on all of them; {result['minutes']:.0f} minutes in all; {where}.",
        ]
    )


def _num_worse(result: dict[str, Any]) -> dict[str, int]:
    found = {
        baseline: [each["word"] for row in result["rows"] for each in row["verdicts"][baseline]]
        for baseline in ("labels", "tuned_on_labels")
    }
    return {baseline: each.count("WORSE") for baseline, each in found.items()} | {"all": len(found["labels"])}


def holds(result: dict[str, Any]) -> bool:
    """Whether all goals are met."""
    worse = _num_worse(result)
    ratios = [mean_ratio(result, key) for key in ("ratio", "ratio_by_errors")]
    is_cheap = all(row["cost_in_trainings"] <= COST_LIMIT for row in result["rows"])
    return worse["labels"] + worse["tuned_on_labels"] == 0 and max(ratios) <= RATIO_LIMIT and is_cheap


def main() -> int:
    """Prints the result; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="ROW", help="only these situations and data sets")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="write docs/results/tuning.json and docs/distill.md")
    parser.add_argument("--seeds", type=int, default=2, help="of each situation (default: %(default)s)")
    parser.add_argument("--data-set-seeds", type=int, default=3, help="of each data set (default: %(default)s)")
    parser.add_argument("--kept", metavar="FOLDER", help="where runs are kept, and read from if they are there")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {*SITUATIONS, *DATA_SETS}:
        parser.error(f"ROW must be one of {', '.join(SITUATIONS + DATA_SETS)}; got {', '.join(sorted(unknown))}")
    use_one_thread()
    if arguments.write and arguments.names:
        parser.error("--write must be given without ROW: the page has all of them")
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(arguments.kept or folder)
        num_seeds = dict.fromkeys(SITUATIONS, arguments.seeds) | dict.fromkeys(DATA_SETS, arguments.data_set_seeds)
        rows = [row_of(name, num_seeds[name], kept) for name in arguments.names or num_seeds]
    result: dict[str, Any] = {
        "command": "python -m benchmarks.tuning --write "
        f"--seeds {arguments.seeds} --data-set-seeds {arguments.data_set_seeds}",
        "num_seeds": arguments.seeds,
        "num_data_set_seeds": arguments.data_set_seeds,
        "machine": machine(),
        "rows": rows,
        "minutes": round(sum(each["minutes"] for row in rows for each in row["seeds"]), 2),
    }
    print(json.dumps(result, indent=1) if arguments.json else page_part(result))
    if arguments.write:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        write_part("distill.md", "tuning", page_part(result))
    return 0 if holds(result) else 1


if __name__ == "__main__":
    raise SystemExit(main())
