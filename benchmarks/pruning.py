"""What pruned students are worth: against fresh ones of their shape, and each importance and repair by itself.

    python -m benchmarks.pruning [--json] [--write] [--seeds 3] [--data mnist spoken_digit]

MNIST (20,000 images) with the small ConvNet, spoken digits with a small residual one; one teacher a seed. Everything is
trained on labels, Adam with cosine decay to zero, and judged after the last epoch on the test set. Fresh and pruned
students each have the learning rate of 1e-3 or 3e-3 whose errors on the validation set are fewest, over seeds. Pruned
ones are cut by BatchNormalization's scales and have their statistics re-estimated before they train; they are also
trained for a third of the epochs, with a decay of its own. Some twenty minutes on one core; `--write` puts what was
measured into docs/results/pruning.json and docs/pruning.md, and leaves the results of a data set that `--data` does not
name.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.page import DOCS, table, write_part
from benchmarks.rounds import machine, use_one_thread

if TYPE_CHECKING:
    import keras

    from keras_distill.data import Dataset, Split

RESULTS = DOCS / "results" / "pruning.json"
SHARES = (0.25, 0.125)
IMPORTANCE_SHARES = (0.5, 0.25)
REPAIR_SHARES = (0.9, 0.75, 0.5, 0.25)
IMPORTANCES = ("random", "norms", "scales", "activations", "taylor")
RATES = (1e-3, 3e-3)
# Of the trainings of one epoch that compare importances.
IMPORTANCE_RATE = 1e-3
# Goals: so many fewer errors than fresh, and fresh's accuracy in that share of its epochs.
FEWER_ERRORS = 0.2
SHARE_OF_EPOCHS = 1 / 3


@dataclass(frozen=True)
class Task:
    """A data set and how long its models train.

    Attributes:
        num_train: so many training examples are used.
        batch_size: items a step.
        epochs: of teachers and fresh students.
        lengths: epochs of pruned students, the shortest first.
        num_calibration: training examples for importance and repair.
    """

    num_train: int
    batch_size: int
    epochs: int
    lengths: tuple[int, ...]
    num_calibration: int


TASKS = {
    "mnist": Task(20_000, 128, 9, (3, 9), 2_560),
    "spoken_digit": Task(2_400, 64, 18, (6, 18), 1_280),
}


def network(dataset: "Dataset", share: float = 1.0) -> "keras.Model":
    """The data set's network, with that share of the teacher's channels, as `prune` rounds it."""
    from keras_distill.data import networks

    def width(full: int) -> int:
        return max(1, round(share * full))

    if dataset.name == "mnist":
        return networks.convnet((28, 28, 1), 10, (width(32), width(64)), dense_width=width(128))
    return residual_network(dataset.input_shape, dataset.num_classes, (width(16), width(32), width(64)))


def residual_network(input_shape: tuple[int, ...], num_classes: int, widths: tuple[int, ...]) -> "keras.Model":
    """For each width a convolution of stride 2, and but for the first a residual block."""
    import keras
    from keras import layers

    def convolution(x: Any, width: int, strides: int) -> Any:
        x = layers.Conv2D(width, 3, strides, "same", use_bias=False, kernel_initializer="he_normal")(x)
        return layers.BatchNormalization()(x)

    inputs = keras.Input(input_shape)
    x = layers.ReLU()(convolution(inputs, widths[0], 2))
    for width in widths[1:]:
        x = layers.ReLU()(convolution(x, width, 2))
        branch = convolution(layers.ReLU()(convolution(x, width, 1)), width, 1)
        x = layers.ReLU()(layers.Add()([x, branch]))
    return keras.Model(inputs, layers.Dense(num_classes)(layers.GlobalAveragePooling2D()(x)))


def train(model: "keras.Model", data: "Split", task: Task, epochs: int, rate: float, seed: int) -> "keras.Model":
    """Trains on labels, Adam with cosine decay to zero."""
    import keras

    keras.utils.set_random_seed(seed)
    num_steps = epochs * -(-len(data) // task.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(rate, num_steps)
    model.compile(keras.optimizers.Adam(schedule), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data.inputs, data.labels, batch_size=task.batch_size, epochs=epochs, verbose=0)
    return model


def errors(model: "keras.Model", split: "Split") -> int:
    """How many items a model has wrong."""
    from keras_distill.cli.evaluation import answers_function

    return int((answers_function(model)(split.inputs) != split.labels).sum())


def run_seed(dataset: "Dataset", task: Task, seed: int) -> dict:
    """One teacher and all that is cut from it."""
    import keras

    from keras_distill import pruning
    from keras_distill.pruning.importance import importance_by_name

    order = np.random.default_rng(seed).permutation(len(dataset.train))[: task.num_train]
    data = dataset.train.take(order)
    calibration = data.inputs[: task.num_calibration]
    keras.utils.set_random_seed(seed)
    teacher = train(network(dataset), data, task, task.epochs, 1e-3, seed)
    result: dict[str, Any] = {
        "teacher_errors": errors(teacher, dataset.test), "teacher_parameters": teacher.count_params()
    }  # fmt: skip

    def pruned(share: float, scores: Any = "scales") -> "keras.Model":
        student = pruning.prune(teacher, share, importance=scores)
        pruning.reestimate_batch_normalization(student, calibration)
        return student

    def found(model: "keras.Model") -> dict[str, int]:
        return {"validation": errors(model, dataset.validation), "test": errors(model, dataset.test)}

    against: dict[str, Any] = {}
    for share in SHARES:
        row: dict[str, Any] = {"fresh": {}, "pruned": {str(epochs): {} for epochs in task.lengths}}
        for rate in RATES:
            keras.utils.set_random_seed(seed)
            fresh = train(network(dataset, share), data, task, task.epochs, rate, seed)
            row["fresh"][f"{rate:g}"] = found(fresh)
            for epochs in task.lengths:
                student = train(pruned(share), data, task, epochs, rate, seed)
                row["pruned"][str(epochs)][f"{rate:g}"] = found(student)
        if student.count_params() != fresh.count_params():
            raise RuntimeError(f"the fresh student has {fresh.count_params()} weights, not {student.count_params()}")
        row["parameters"] = student.count_params()
        against[f"{share:g}"] = row
    result["against_fresh"] = against

    groups = pruning.channel_groups(teacher)
    by_importance: dict[str, Any] = {}
    for name in IMPORTANCES:
        scores = (
            pruning.at_random(groups, seed)
            if name == "random"
            else importance_by_name(name, groups, teacher, calibration)
        )
        rows = {}
        for share in IMPORTANCE_SHARES:
            student = pruned(share, scores)
            untrained = errors(student, dataset.test)
            train(student, data, task, 1, IMPORTANCE_RATE, seed)
            rows[f"{share:g}"] = {"untrained": untrained, "one_epoch": errors(student, dataset.test)}
        by_importance[name] = rows
    result["importance"] = by_importance

    repairs: dict[str, Any] = {}
    for share in REPAIR_SHARES:
        kept = pruning.kept_channels(groups, share)
        row = {}
        for name in ("none", "biases", "statistics", "both"):
            student = pruning.prune(teacher, share, importance="norms")
            if name in ("biases", "both"):
                pruning.correct_biases(student, teacher, groups, kept, calibration)
            if name in ("statistics", "both"):
                pruning.reestimate_batch_normalization(student, calibration)
            row[name] = errors(student, dataset.test)
        repairs[f"{share:g}"] = row
    result["repair"] = repairs
    return result


def summary(seeds: list[dict], task: Task) -> dict:
    """Means over seeds, and what they say of the goals."""

    def mean(values: Any) -> float:
        return float(np.mean(list(values)))

    def at_its_rate(runs: list[dict]) -> dict:
        """Each seed's test errors at the rate whose validation errors are fewest, over seeds."""
        rate = min(runs[0], key=lambda rate: mean(run[rate]["validation"] for run in runs))
        return {"rate": float(rate), "errors": [run[rate]["test"] for run in runs]}

    against = {}
    for share in map("{:g}".format, SHARES):
        rows = [seed["against_fresh"][share] for seed in seeds]
        fresh = at_its_rate([row["fresh"] for row in rows])
        pruned = {str(epochs): at_its_rate([row["pruned"][str(epochs)] for row in rows]) for epochs in task.lengths}
        fewer = {epochs: 1.0 - mean(each["errors"]) / mean(fresh["errors"]) for epochs, each in pruned.items()}
        against[share] = {"parameters": rows[0]["parameters"], "fresh": fresh, "pruned": pruned, "fewer_errors": fewer}
    return {
        "teacher": [seed["teacher_errors"] for seed in seeds],
        "teacher_parameters": seeds[0]["teacher_parameters"],
        "against_fresh": against,
        "importance": {
            name: {
                share: {
                    key: mean(seed["importance"][name][share][key] for seed in seeds)
                    for key in ("untrained", "one_epoch")
                }
                for share in map("{:g}".format, IMPORTANCE_SHARES)
            }
            for name in IMPORTANCES
        },
        "repair": {
            share: {
                name: mean(seed["repair"][share][name] for seed in seeds)
                for name in ("none", "biases", "statistics", "both")
            }
            for share in map("{:g}".format, REPAIR_SHARES)
        },
    }


def page_part(result: dict) -> str:
    """The generated part of docs/pruning.md."""
    lines = []
    for name, task in result["tasks"].items():
        found = task["summary"]
        lines += [
            f"**{name}**: {task['num_train']:,} training and {task['num_test']:,} test items; teachers of "
            f"{found['teacher_parameters']:,} weights, {', '.join(map(str, found['teacher']))} errors after "
            f"{task['epochs']} epochs. Test errors of each seed:",
            "",
        ]

        def cell(each: dict) -> str:
            return f"{', '.join(map(str, each['errors']))} (rate {each['rate']:g})"

        rows, header = [], ["channels", f"fresh, {task['epochs']} epochs"]
        for epochs in task["lengths"]:
            header += [f"pruned, {epochs} epochs", "fewer errors than fresh"]
        for share, row in found["against_fresh"].items():
            cells = [f"{share} ({row['parameters']:,} weights)", cell(row["fresh"])]
            for epochs in map(str, task["lengths"]):
                cells += [cell(row["pruned"][epochs]), f"{100 * row['fewer_errors'][epochs]:.0f} %"]
            rows.append(cells)
        lines.append(table(header, rows))
    lines += [
        "Each importance, statistics re-estimated, errors before any training and after one epoch, mean over seeds:",
        "",
    ]
    header, rows = ["importance"], [[name] for name in IMPORTANCES]
    for name, task in result["tasks"].items():
        for share in map("{:g}".format, IMPORTANCE_SHARES):
            header.append(f"{name}, {share}: untrained, 1 epoch")
            for row in rows:
                each = task["summary"]["importance"][row[0]][share]
                row.append(f"{each['untrained']:,.0f}, {each['one_epoch']:,.0f}")
    lines += [table(header, rows), "Each repair, errors before any training (norms), mean over seeds:", ""]
    rows = [
        [f"{name}, {share}", *(f"{row[each]:,.0f}" for each in ("none", "biases", "statistics", "both"))]
        for name, task in result["tasks"].items()
        for share, row in task["summary"]["repair"].items()
    ]
    lines.append(table(["channels kept", "as cut", "biases corrected", "statistics re-estimated", "both"], rows))
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    minutes = ", ".join(f"{name} {task['minutes']:.1f}" for name, task in result["tasks"].items())
    return "\n".join([*lines, f"{result['num_seeds']} seeds; minutes, one thread each: {minutes}; {where}."])


def main() -> int:
    """Prints the result; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="write docs/results/pruning.json and docs/pruning.md")
    parser.add_argument("--seeds", type=int, default=3, help="teachers and their students (default: %(default)s)")
    parser.add_argument("--data", nargs="+", choices=tuple(TASKS), default=list(TASKS), help="default: both")
    arguments = parser.parse_args()
    use_one_thread()
    from keras_distill import data

    tasks: dict[str, Any] = {}
    for name in arguments.data:
        began = time.monotonic()
        dataset, task = data.load(name), TASKS[name]
        seeds = []
        for seed in range(arguments.seeds):
            seeds.append(run_seed(dataset, task, seed))
            print(f"{name}, seed {seed}: {(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr, flush=True)
        tasks[name] = {
            "num_train": min(task.num_train, len(dataset.train)),
            "num_test": len(dataset.test),
            "epochs": task.epochs,
            "lengths": task.lengths,
            "minutes": round((time.monotonic() - began) / 60, 2),
            "summary": summary(seeds, task),
            "seeds": seeds,
        }
    others = json.loads(RESULTS.read_text())["tasks"] if arguments.write and RESULTS.exists() else {}
    tasks = {name: (others | tasks)[name] for name in TASKS if name in others | tasks}
    result = {
        "command": f"python -m benchmarks.pruning --write --seeds {arguments.seeds}",
        "machine": machine(),
        "num_seeds": arguments.seeds,
        "tasks": tasks,
    }
    print(json.dumps(result, indent=1) if arguments.json else page_part(result))
    if arguments.write:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        write_part("pruning.md", "pruning", page_part(result))
    return (
        0
        if all(is_met(row, task) for task in tasks.values() for row in task["summary"]["against_fresh"].values())
        else 1
    )


def is_met(row: dict, task: dict) -> bool:
    """Whether pruned students have so many fewer errors, and no more than fresh ones in a third of the epochs."""
    same, short = str(task["epochs"]), str(min(task["lengths"]))
    is_short = int(short) <= SHARE_OF_EPOCHS * task["epochs"]
    return row["fewer_errors"][same] >= FEWER_ERRORS and is_short and row["fewer_errors"][short] >= 0.0


if __name__ == "__main__":
    raise SystemExit(main())
