"""Every method on one fixed task: what it costs beside plain soft targets, and what it brings. Makes docs/methods.md.

    python -m benchmarks.methods [--write] [--json] [--only accuracy cost feature_step] [--seeds 3] [--rounds 15]

The task: 8 × 8 digits (embedded in scikit-learn), of which the student has a label for the first 100 only and the
teacher's word for all. Teacher: a ConvNet trained on every label. Student: an eighth of its filters. Everybody trains
the same number of steps with the same optimizer, the test accuracy is the last epoch's, and the baseline is the same
student on the 100 labels. Weights are the papers', or ours where the papers' belong to other scales; but for
`MovingAverage`'s, changed after a first look at its result, none was tuned on the test set. Each phase
leaves what it found in runs/methods.json, so that the timings can be taken on a quiet machine.

The cost is the processor's time for a step of the method over that for a step of `SoftTargets`, the median of
interleaved rounds. With `FeatureDistillation` the same objective also runs in
`keras.distillation.Distiller`, for a ratio and its parity check.
"""

import argparse
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import write_part
from benchmarks.rounds import interleave, machine, median_ratio

FOUND = Path(__file__).parents[1] / "runs/methods.json"
NUM_LABELLED, BATCH_SIZE, NUM_EPOCHS = 100, 64, 20
FEATURE_GOAL = 1.3
PHASES = ("feature_step", "cost", "accuracy")


@dataclass(frozen=True)
class Method:
    """One row: what it is called, who wrote it, when to take it, and what it hands to `Distiller`.

    `losses` makes them at a temperature; losses and weights are the papers' own, or ours where the papers' belong to
    other scales. One that has state, a schedule or a projector, is made anew for each student. What is no
    loss for classes, a schedule or a loss for other outputs, is not in the arena.
    """

    name: str
    paper: str
    when: str
    losses: Callable[[float], Any]
    weights: Any = None
    temperature: float = 4.0
    reads_layers: bool = False
    reads_maps: bool = False
    in_arena: bool = True
    has_state: bool = False

    def make(self) -> dict[str, Any]:
        """`Distiller`'s arguments, at the default temperature."""
        return {
            "distillation_losses": self.losses(self.temperature),
            "distillation_loss_weights": self.weights,
        }


def methods() -> list[Method]:
    """The rows, `SoftTargets` first: all others' costs are relative to it."""
    from keras_distill import losses, schedules

    def beside(loss: Callable[[], Any]) -> Callable[[float], list[Any]]:
        """A feature loss beside soft targets, as the papers of most of them have it."""
        return lambda temperature: [losses.SoftTargets(temperature), loss()]

    return [
        Method(
            "`SoftTargets(4.0)`",
            "Hinton et al., [1503.02531](https://arxiv.org/abs/1503.02531), 2",
            "first, always; also from a store",
            losses.SoftTargets,
        ),
        Method(
            "… temperature `Linear(8, 2)`",
            "–",
            "a soft beginning, a sharp end",
            lambda temperature: losses.SoftTargets(schedules.Linear(2.0 * temperature, 0.5 * temperature, NUM_EPOCHS)),
            in_arena=False,
        ),
        Method(
            "… `LearntTemperature()`",
            "CTKD, Li et al., [2211.16231](https://arxiv.org/abs/2211.16231), 3",
            "no time to search a temperature",
            lambda _: losses.SoftTargets(schedules.LearntTemperature()),
            in_arena=False,
        ),
        Method(
            "`LogitMatching()`",
            "Hinton et al., 2.1; Ba, Caruana, [1312.6184](https://arxiv.org/abs/1312.6184)",
            "students strong enough to match the noise too",
            lambda _: losses.LogitMatching(),
        ),
        Method(
            "`DecoupledKD(4.0)`",
            "Zhao et al., [2203.08679](https://arxiv.org/abs/2203.08679), 3",
            "sure teachers, many classes, labels at hand",
            lambda temperature: losses.DecoupledKD(temperature, warm_up_epochs=5),
            has_state=True,
        ),
        Method(
            "`DIST(4.0)`",
            "Huang et al., [2205.10536](https://arxiv.org/abs/2205.10536), 4",
            "teachers far stronger than the student",
            losses.DIST,
        ),
        Method(
            "`LogitStandardization()`",
            "Sun et al., [2403.01427](https://arxiv.org/abs/2403.01427), 4",
            "logits of very different size; wraps any of these",
            lambda temperature: losses.LogitStandardization(losses.SoftTargets(temperature)),
            9.0,
            2.0,
        ),
        Method(
            "`TransformedTeacherMatching(4.0)`",
            "TTM, Zheng, Yang, [2402.11148](https://arxiv.org/abs/2402.11148), 3",
            "students that are too sure",
            losses.TransformedTeacherMatching,
            4.0,
        ),
        Method(
            "… `weighted=True`",
            "WTTM, the same, 4",
            "teachers that are sure of most examples",
            lambda temperature: losses.TransformedTeacherMatching(temperature, weighted=True),
            4.0,
        ),
        Method(
            "`AlphaBetaDivergence(4.0, 0.8, 0.2)`",
            "ABKD, Wang et al., [2505.04560](https://arxiv.org/abs/2505.04560)",
            "small students, many classes",
            losses.AlphaBetaDivergence,
        ),
        Method(
            "`RefinedLogits(4.0)`",
            "RLD, Sun et al., [2408.07703](https://arxiv.org/abs/2408.07703)",
            "teachers that are often wrong, labels at hand",
            losses.RefinedLogits,
        ),
        Method(
            "`MultiLevelLogits(4.0)`",
            "MLKD, Jin et al., CVPR 2023, 3",
            "batches with several examples of each class",
            losses.MultiLevelLogits,
        ),
        Method(
            "`BinarySoftTargets(4.0)`",
            "Hinton et al., 2, with sigmoids",
            "several labels an item, or one sigmoid unit",
            losses.BinarySoftTargets,
            10.0,
            in_arena=False,
        ),
        Method(
            "`RegressionTargets()`",
            "Chen et al., NeurIPS 2017, 3.3",
            "quantities, not classes (here: of the logits)",
            lambda _: losses.RegressionTargets(),
            in_arena=False,
        ),
        Method(
            "`Hint` + soft targets",
            "Romero et al., [1412.6550](https://arxiv.org/abs/1412.6550), 2.2",
            "thin and deep students",
            beside(lambda: losses.Hint("block2")),
            [1.0, 1.0],
            has_state=True,
            reads_layers=True,
        ),
        Method(
            "`AttentionTransfer` + soft targets",
            "Zagoruyko, Komodakis, [1612.03928](https://arxiv.org/abs/1612.03928), 3.1",
            "images, where the place matters",
            beside(lambda: losses.AttentionTransfer("block2")),
            [1.0, 500.0],
            reads_layers=True,
            reads_maps=True,
        ),
        Method(
            "`RelationalKD` + soft targets",
            "Park et al., [1904.05068](https://arxiv.org/abs/1904.05068), 3.2",
            "embeddings and retrieval; memory grows with the batch's cube",
            beside(lambda: losses.RelationalKD("embedding")),
            [1.0, 0.1],
            reads_layers=True,
        ),
        Method(
            "`SimilarityPreserving` + soft targets",
            "Tung, Mori, [1907.09682](https://arxiv.org/abs/1907.09682), 3",
            "other architectures than the teacher's",
            beside(lambda: losses.SimilarityPreserving("block2")),
            [1.0, 3000.0],
            reads_layers=True,
        ),
    ]


def network(width: int, seed: int, name: str) -> Any:
    """A ConvNet of two blocks, `width` filters wide, with layers to tap."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    inputs = hidden = keras.Input((8, 8, 1))
    for number, factor in ((1, 1), (2, 2)):
        hidden = layers.Conv2D(factor * width, 3, strides=number, padding="same", use_bias=False)(hidden)
        hidden = layers.BatchNormalization()(hidden)
        hidden = layers.ReLU(name=f"block{number}")(hidden)
    embedding = layers.Dense(4 * width, activation="relu", name="embedding")(layers.Flatten()(hidden))
    return keras.Model(inputs, layers.Dense(10, name="logits")(embedding), name=name)


def student_net(seed: int) -> Any:
    return network(4, seed, "student")


def mean_teacher(student: Any) -> Any:
    """A student and its own past, whose word counts once there is a past."""
    import keras_distill as kd
    from keras_distill.teachers import MovingAverage

    weight = kd.schedules.Linear(0.0, 1.0, length=NUM_EPOCHS // 2)
    # 1 / (1 − decay) is about an epoch's steps: a longer memory would lag behind all of so short a training.
    return kd.Distiller(MovingAverage(student, 0.95), student, kd.losses.SoftTargets(1.0), weight, 0.5)


def task() -> dict[str, np.ndarray]:
    """Training images with all labels and with the first hundred, test images and labels."""
    from keras_distill.data import load

    digits = load("digits")
    x, y = (
        np.concatenate([getattr(digits.train, part), getattr(digits.validation, part)]) for part in ("inputs", "labels")
    )
    few = np.where(np.arange(len(y)) < NUM_LABELLED, y, -1)
    to_images = lambda inputs: (inputs.reshape(-1, 8, 8, 1) / inputs.max()).astype("float32")  # noqa: E731
    return {
        "x": to_images(x),
        "y": y.astype("int32"),
        "few": few.astype("int32"),
        "test_x": to_images(digits.test.inputs),
        "test_y": digits.test.labels,
    }


def hard_loss() -> Any:
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)


def train(model: Any, x: np.ndarray, y: np.ndarray, seed: int, num_epochs: int = NUM_EPOCHS, loss: Any = None) -> None:
    """Adam with a cosine to zero, the same number of steps for everybody."""
    import keras

    keras.utils.set_random_seed(seed)
    num_steps = num_epochs * -(-len(x) // BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, num_steps)
    model.compile(keras.optimizers.Adam(rate), hard_loss() if loss is None else loss, jit_compile=False)
    model.fit(x, y, batch_size=BATCH_SIZE, epochs=num_epochs, verbose=0)


def accuracy(model: Any, data: dict[str, np.ndarray]) -> float:
    logits = np.asarray(model(data["test_x"], training=False))
    return float(np.mean(logits.argmax(-1) == data["test_y"]))


def measure_effects(num_seeds: int) -> dict[str, list[float]]:
    """Test accuracies of the teacher, the controls and every method, one a seed."""
    import keras_distill as kd
    from keras_distill.losses import SmoothedLabels

    data = task()
    found: dict[str, list[float]] = {}

    def note(name: str, model: Any) -> None:
        found.setdefault(name, []).append(accuracy(model, data))

    repeats = -(-len(data["x"]) // NUM_LABELLED)
    hundred = [np.concatenate([data[key][:NUM_LABELLED]] * repeats)[: len(data["x"])] for key in ("x", "few")]
    for seed in range(num_seeds):
        teacher = network(32, 100 + seed, "teacher")
        train(teacher, data["x"], data["y"], seed)
        note("teacher", teacher)
        alone, smoothed = student_net(seed), student_net(seed)
        train(alone, *hundred, seed)
        note("student alone", alone)
        train(smoothed, *hundred, seed, loss=SmoothedLabels(0.1))
        note("student alone, smoothed labels", smoothed)
        for method in methods():
            student = student_net(seed)
            train(kd.Distiller(teacher, student, **method.make()), data["x"], data["few"], seed)
            note(method.name, student)
        student = student_net(seed)
        train(mean_teacher(student), data["x"], data["few"], seed)
        note("MovingAverage", student)
        students = [student_net(seed), student_net(50 + seed)]
        train(kd.DeepMutualLearning(students), data["x"], data["few"], seed)
        note("DeepMutualLearning", students[0])
    return found


def measure_costs(num_rounds: int) -> dict[str, float]:
    """Each method's time a step over that of plain soft targets."""
    import keras_distill as kd

    data, teacher = task(), network(32, 0, "teacher")

    def epoch(model: Any) -> Callable[[], Any]:
        model.compile("adam", hard_loss(), jit_compile=False)
        return lambda: model.fit(data["x"], data["few"], batch_size=BATCH_SIZE, epochs=3, verbose=0)

    variants = {method.name: epoch(kd.Distiller(teacher, student_net(0), **method.make())) for method in methods()}
    variants["MovingAverage"] = epoch(mean_teacher(student_net(0)))
    variants["DeepMutualLearning"] = epoch(kd.DeepMutualLearning([student_net(0), student_net(1)]))
    seconds = interleave(variants, num_rounds=num_rounds, clock=time.process_time)
    first = methods()[0].name
    return {name: median_ratio(seconds, name, first) for name in variants}


def pooled_network(depth: int, seed: int, name: str) -> Any:
    """A ConvNet as they are today: equal blocks, of which the last is tapped, and a global average pooling."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    inputs = hidden = keras.Input((16, 16, 3))
    for number in range(depth):
        hidden = layers.Conv2D(32, 3, strides=2 if number == 1 else 1, padding="same", use_bias=False)(hidden)
        hidden = layers.BatchNormalization()(hidden)
        hidden = layers.ReLU(name="last" if number == depth - 1 else None)(hidden)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(hidden)), name=name)


def measure_against_keras(num_rounds: int) -> dict[str, dict[str, float]]:
    """The comparison without XLA, Keras's default where there is only a CPU, and under it, its default elsewhere."""
    return {"no XLA": compare_with_keras(num_rounds, False), "XLA": compare_with_keras(num_rounds, True)}


def compare_with_keras(num_rounds: int, jit_compile: bool, num_steps: int = 10) -> dict[str, float]:
    """Keras's Distiller with `FeatureDistillation` over ours with the same losses, and how far their losses differ.

    Teacher of four blocks, student of three, features of equal shape: Keras has no projector.
    """
    import keras

    import keras_distill as kd

    generator = np.random.default_rng(0)
    x = generator.random((BATCH_SIZE * num_steps, 16, 16, 3), dtype=np.float32)
    y = generator.integers(0, 10, len(x))
    teacher, first = pooled_network(4, 0, "teacher"), pooled_network(3, 1, "student")
    histories, variants, convolutions = {}, {}, {}
    for name, distiller_class in (("keras", keras.distillation.Distiller), ("ours", kd.Distiller)):
        student = keras.models.clone_model(first)
        student.set_weights(first.get_weights())
        losses = [
            kd.losses.SoftTargets(4.0),
            keras.distillation.FeatureDistillation("mse", teacher_layer_name="last", student_layer_name="last"),
        ]
        model = distiller_class(teacher, student, losses, [1.0, 1.0], student_loss_weight=0.1)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # One step from equal weights: Keras's second pass moves BatchNorm's statistics twice, which later steps show.
        model.compile(keras.optimizers.SGD(1e-3), loss, jit_compile=jit_compile)
        options = {"batch_size": BATCH_SIZE, "shuffle": False, "verbose": 0}
        histories[name] = model.fit(x[:BATCH_SIZE], y[:BATCH_SIZE], **options).history["loss"][0]
        variants[name] = lambda model=model, options=options: model.fit(x, y, **options)
        convolutions[name] = count_convolutions(model, x[:BATCH_SIZE], y[:BATCH_SIZE]) if jit_compile else None
    difference = abs(histories["keras"] - histories["ours"]) / histories["ours"]
    if difference > 1e-4:
        raise SystemExit(f"parity failed: the losses of the first step differ by {difference:.1e}: {histories}")
    seconds = interleave(variants, num_rounds=num_rounds, num_warm_up=2, clock=time.process_time)
    return {
        "keras_over_ours": median_ratio(seconds, "keras", "ours"),
        "milliseconds": {name: 1e3 * float(np.median(times)) / num_steps for name, times in seconds.items()},
        "parity_relative_difference": difference,
        "convolutions": convolutions,
    }


def count_convolutions(model: Any, x: np.ndarray, y: np.ndarray) -> dict[str, int]:
    """How many convolutions a step asks for, and how many are left when XLA has merged those that are the same."""
    import tensorflow as tf

    step = tf.function(lambda x, y: model.train_step((x, y)), jit_compile=True)
    lowered = step.experimental_get_compiler_ir(tf.constant(x), tf.constant(y))
    stages = {"asked": "hlo", "left": "optimized_hlo"}
    return {name: len(re.findall(r" convolution\(", lowered(stage=stage))) for name, stage in stages.items()}


def measure(phases: list[str], num_seeds: int, num_rounds: int) -> dict[str, Any]:
    """Runs the phases and keeps what they found beside what others have; the result as it is printed with `--json`."""
    result = json.loads(FOUND.read_text()) if FOUND.is_file() else {}
    for phase in phases:
        if phase == "accuracy":
            result |= {"seeds": num_seeds, phase: measure_effects(num_seeds)}
        else:
            run = measure_costs if phase == "cost" else measure_against_keras
            result |= {"machine": machine(), "rounds": num_rounds, phase: run(num_rounds)}
        FOUND.parent.mkdir(parents=True, exist_ok=True)
        FOUND.write_text(json.dumps(result, indent=1))
    return result


def percent(values: list[float]) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1) if len(values) > 1 else 0:.1f}"


def table_of_methods(result: dict[str, Any]) -> str:
    """The table of docs/methods.md."""
    accuracies, cost = result["accuracy"], result["cost"]
    rows = [
        "| method | paper, section | when | cost of a step | test accuracy, % |",
        "|---|---|---|---|---|",
        f"| student alone, {NUM_LABELLED} labels | – | the baseline | – | {percent(accuracies['student alone'])} |",
        "| … `SmoothedLabels(0.1)` | Szegedy et al., [1512.00567](https://arxiv.org/abs/1512.00567), 7 "
        "| the control for softness without a teacher "
        f"| – | {percent(accuracies['student alone, smoothed labels'])} |",
    ]
    for method in methods():
        figures = f"{cost[method.name]:.2f} | {percent(accuracies[method.name])}"
        rows.append(f"| {method.name} | {method.paper} | {method.when} | {figures} |")
    own = (
        (
            "MovingAverage",
            "Tarvainen, Valpola, [1703.01780](https://arxiv.org/abs/1703.01780), 2",
            "no teacher, few labels",
        ),
        (
            "DeepMutualLearning",
            "Zhang et al., [1706.00384](https://arxiv.org/abs/1706.00384), 2",
            "no teacher, several students",
        ),
    )
    for name, paper, when in own:
        rows.append(f"| `{name}` | {paper} | {when} | {cost[name]:.2f} | {percent(accuracies[name])} |")
    rows.append(f"| teacher, all labels | – | – | – | {percent(accuracies['teacher'])} |")
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    figures = f"{result['seeds']} seeds, mean ± standard deviation; {result['rounds']} interleaved rounds; {where}."
    return "\n".join([*rows, "", figures])


def feature_step(result: dict[str, Any]) -> str:
    """What docs/methods.md says of a step beside Keras's."""
    feature = result["feature_step"]
    largest = max(part["parity_relative_difference"] for part in feature.values())
    ours, theirs = (feature["XLA"]["convolutions"][name] for name in ("ours", "keras"))
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return (
        "One step with a feature loss (a ConvNet of three blocks taught by one of four, the last block tapped, "
        f"batch {BATCH_SIZE}): `keras.distillation.Distiller`, which runs the student twice, takes "
        f"{feature['no XLA']['keras_over_ours']:.2f} times the processor's time of ours without XLA, the default "
        f"on a CPU (goal: {FEATURE_GOAL} or more), and {feature['XLA']['keras_over_ours']:.2f} times under XLA. "
        "There the compiler sees that the second forward pass computes what the first one did, and merges them: of "
        f"the {theirs['asked']} convolutions that Keras's step asks for {theirs['left']} are left, of our "
        f"{ours['asked']} {ours['left']}. What stays doubled is the way back. "
        f"On the first step the two losses differ by {largest:.0e} of their value.\n\n"
        f"{result['rounds']} interleaved rounds; {where}."
    )


def main() -> None:
    """Prints the table, or the figures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="put what is whole into docs/methods.md")
    parser.add_argument(
        "--only", nargs="+", default=list(PHASES), choices=PHASES, help="leaves the others as they were"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    result = measure(arguments.only, arguments.seeds, arguments.rounds)
    parts = {}
    if {"accuracy", "cost"} <= set(result):
        parts["methods"] = table_of_methods(result)
    if "feature_step" in result:
        parts["feature_step"] = feature_step(result)
    print(json.dumps(result, indent=2) if arguments.json else "\n\n".join(parts.values()))
    if arguments.write:
        for name, text in parts.items():
            write_part("methods.md", name, text)


if __name__ == "__main__":
    main()
