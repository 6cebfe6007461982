"""What a distilling step costs beside the student's own training and the teacher's inference, and beside our peers.

    python -m benchmarks.step [--json] [--write] [--rounds 8] [--pairs mlp-128 …] [--xla off on] [--steps 1 10 50]

Variants, interleaved in one process on one thread, each through plain `fit` on the same batches:

- `student`: its own `fit` on labels; `teacher`: its inference over the batches, compiled as the step is;
- `beside`: our Distiller with the teacher beside the student; `store`: ours, targets read from a store;
- `keras`: `keras.distillation.Distiller` with `LogitsDistillation(loss=KLDivergence())`;
- `by hand`: a `train_step` as the Keras examples write it, with T²;
- `torch`: the same loop in PyTorch, eager, where torch is installed and the architecture is translated;
- `keras, 10 teachers`: Keras's Distiller with an ensemble of ten, beside `store, 10 teachers`.

A cell is a pair (`benchmarks/pairs.py`), XLA off, Keras's default on a CPU, or on, and a number of steps per execution.
Each variant is made twice, in opposite orders, since the place that weights come to lie at shows. Parity first: with
the same weights and batches every distilling variant reports the same loss of its first steps. A cell that was measured
is kept in runs/step.json, and the page shows all that are.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import plot
from benchmarks.page import table, write_part
from benchmarks.pairs import PAIRS, Pair, in_torch, why_no_torch
from benchmarks.rounds import interleave, machine, median_ratio, spread_of_ratio, use_one_thread

TEMPERATURE, LABEL_WEIGHT, LEARNING_RATE = 4.0, 0.1, 1e-3
NUM_MEMBERS = 10
# PyTorch's Adam adds its epsilon after the bias correction, Keras's before: forty steps drift apart.
PARITY, PARITY_IN_TORCH = 1e-4, 1e-2
# Ratios: (what, of which variant, over which, the bound, whether more is better).
GOALS = (
    ("beside / (student + teacher)", "beside", ("student", "teacher"), 1.05, False),
    ("store / student", "store", ("student",), 1.03, False),
    ("keras / store", "keras", ("store",), 1.5, True),
    ("keras / beside", "keras", ("beside",), 1.0, True),
    ("by hand / beside", "by hand", ("beside",), 1.0, True),
    ("torch / beside", "torch", ("beside",), 1.0, True),
    ("keras / store, 10 teachers", "keras, 10 teachers", ("store, 10 teachers",), 8.0, True),
)


# Pair, XLA, steps per execution. XLA on a CPU is slower for everybody where there are convolutions: one cell shows it.
CELLS = (
    ("mlp-128", "off", 1),
    ("mlp-128", "off", 10),
    ("mlp-128", "off", 50),
    ("mlp-128", "on", 1),
    ("mlp-256", "off", 1),
    ("mlp-256", "off", 10),
    ("convnet-64", "off", 1),
    ("convnet-64", "off", 10),
    ("convnet-64", "on", 1),
    ("resnet-32", "off", 1),
)
KEPT = Path(__file__).parents[1] / "runs/step.json"


def measure_cell(pair: Pair, xla: bool, steps_per_execution: int, num_rounds: int, ensemble: bool) -> dict[str, Any]:
    """The cell's milliseconds a step, its ratios, and how far the variants' losses differ."""
    import keras

    import keras_distill as kd
    from keras_distill.targets import attach, label
    from keras_distill.teachers import Ensemble

    generator = np.random.default_rng(0)
    x = generator.random((pair.batch_size * pair.num_steps, *pair.input_shape), dtype=np.float32)
    y = generator.integers(0, pair.num_classes, len(x)).astype("int32")
    keras.utils.set_random_seed(0)
    teacher, first = pair.teacher(), pair.student()

    def compiled(model_of: Callable[[Any], Any]) -> Any:
        student = keras.models.clone_model(first)
        student.set_weights(first.get_weights())
        model = model_of(student)
        model.compile(
            keras.optimizers.Adam(LEARNING_RATE),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=xla,
            steps_per_execution=steps_per_execution,
        )
        return model

    def ours(taught_by: Any) -> Any:
        loss = kd.losses.SoftTargets(TEMPERATURE)
        return compiled(lambda student: kd.Distiller(taught_by, student, loss, student_loss_weight=LABEL_WEIGHT))

    def theirs(taught_by: Any) -> Any:
        loss = keras.distillation.LogitsDistillation(temperature=TEMPERATURE, loss=keras.losses.KLDivergence())
        return compiled(
            lambda student: keras.distillation.Distiller(taught_by, student, loss, student_loss_weight=LABEL_WEIGHT)
        )

    def fit(model: Any, *data: Any) -> float:
        settings = {"batch_size": pair.batch_size} if len(data) > 1 else {}
        return model.fit(*data, epochs=1, shuffle=False, verbose=0, **settings).history["loss"][-1]

    def epochs_of(model: Any, *data: Any) -> Callable[[], float]:
        return lambda: fit(model, *data)

    with tempfile.TemporaryDirectory() as folder:
        stores = {"store": label(teacher, x, Path(folder) / "one", dtype="float32")}
        # Each makes a model of its own and returns what trains it for an epoch.
        makers: dict[str, Callable[[], Callable[[], Any]]] = {
            "beside": lambda: epochs_of(ours(teacher), x, y),
            "keras": lambda: epochs_of(theirs(teacher), x, y),
            "by hand": lambda: epochs_of(compiled(lambda student: _by_hand(teacher, student)), x, y),
        }
        if ensemble:
            many = Ensemble([pair.teacher() for _ in range(NUM_MEMBERS)], combine="geometric")
            stores["store, 10 teachers"] = label(many, x, Path(folder) / "many", dtype="float32")
            makers["keras, 10 teachers"] = lambda: epochs_of(theirs(many), x, y)
        for name, store in stores.items():
            batches = attach((x, y), store, batch_size=pair.batch_size, shuffle=False)
            makers[name] = lambda batches=batches: epochs_of(ours(None), batches)
        why_not = why_no_torch(teacher, first) if steps_per_execution == 1 else "eager: it has no steps per execution"
        if not why_not:
            makers["torch"] = lambda: _torch_epoch(pair, teacher, first, x, y)
        makers["student"] = lambda: epochs_of(compiled(lambda student: student), x, y)
        makers["teacher"] = lambda: _inference(teacher, x, pair.batch_size, xla)
        # Where its weights come to lie makes a step some percent slower or faster, and whoever is made first gets the
        # worse places: each variant is made twice, in opposite orders, and the rounds take turns.
        made = [{name: makers[name]() for name in names} for names in (list(makers), list(makers)[::-1])]
        # The first epochs are the parity check, and warm every variant up.
        losses = [{name: run() for name, run in runs.items() if name not in ("student", "teacher")} for runs in made]
        difference = max(map(_check_parity, losses))
        turns = {name: itertools.cycle([runs[name] for runs in made]) for name in makers}
        runs = {name: lambda name=name: next(turns[name])() for name in makers}
        seconds = interleave(runs, num_rounds=num_rounds, num_warm_up=2, clock=time.process_time)
    measured = {
        title: (name, *references)
        for title, name, references, _, _ in GOALS
        if name in seconds and set(references) <= set(seconds)
    }
    return {
        "milliseconds_a_step": {name: 1e3 * float(np.median(all_)) / pair.num_steps for name, all_ in seconds.items()},
        "ratios": {title: median_ratio(seconds, *names) for title, names in measured.items()},
        "spreads": {title: spread_of_ratio(seconds, *names) for title, names in measured.items()},
        "parity_relative_difference": difference,
        "skipped": {"torch": why_not} if why_not else {},
    }


def _check_parity(losses: dict[str, float]) -> float:
    """The largest relative difference of the losses from those of the store that has the same teacher."""
    largest = 0.0
    for name, loss in losses.items():
        reference = losses["store, 10 teachers" if "10 teachers" in name else "store"]
        difference = abs(loss / reference - 1)
        if not difference < (PARITY_IN_TORCH if name == "torch" else PARITY):
            raise SystemExit(f"parity failed: {name} has a loss of {loss}, the store's is {reference}")
        largest = max(largest, difference)
    return largest


def _inference(teacher: Any, x: np.ndarray, batch_size: int, xla: bool) -> Callable[[], None]:
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(x).batch(batch_size).prefetch(tf.data.AUTOTUNE)
    infer = tf.function(lambda images: teacher(images, training=False), jit_compile=xla)

    def run() -> None:
        for images in batches:
            infer(images)

    return run


def _by_hand(teacher: Any, student: Any) -> Any:
    """The `train_step` of the Keras examples, with the T² that they forget."""
    import keras
    import tensorflow as tf

    class ByHand(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.divergence = student, keras.losses.KLDivergence()
            self.taught_by = [teacher]

        def call(self, inputs: Any, training: bool = False) -> Any:
            return self.student(inputs, training=training)

        def train_step(self, data: Any) -> dict[str, Any]:
            inputs, labels = data
            teacher_logits = self.taught_by[0](inputs, training=False)
            with tf.GradientTape() as tape:
                logits = self.student(inputs, training=True)
                soft = self.divergence(tf.nn.softmax(teacher_logits / TEMPERATURE), tf.nn.softmax(logits / TEMPERATURE))
                hard = self.compute_loss(inputs, labels, logits)
                loss = LABEL_WEIGHT * hard + (1 - LABEL_WEIGHT) * TEMPERATURE**2 * soft
            gradients = tape.gradient(loss, self.student.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.student.trainable_variables, strict=True))
            self._loss_tracker.update_state(loss)
            return {"loss": self._loss_tracker.result()}

    return ByHand()


def _torch_epoch(pair: Pair, teacher: Any, student: Any, x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
    """An epoch of the plain loop in PyTorch; returns the mean of its losses."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    taught_by, learner = in_torch(teacher).eval(), in_torch(student).train()
    images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(y).long()
    # Keras's own default, so that later steps agree too.
    optimizer = torch.optim.Adam(learner.parameters(), LEARNING_RATE, eps=1e-7)

    def run() -> float:
        total = torch.zeros(())
        for start in range(0, len(images), pair.batch_size):
            batch = images[start : start + pair.batch_size]
            with torch.inference_mode():
                teacher_logits = taught_by(batch)
            logits = learner(batch)
            soft = functional.kl_div(
                functional.log_softmax(logits / TEMPERATURE, dim=-1),
                functional.log_softmax(teacher_logits / TEMPERATURE, dim=-1).clone(),
                reduction="batchmean",
                log_target=True,
            )
            hard = functional.cross_entropy(logits, labels[start : start + pair.batch_size])
            loss = LABEL_WEIGHT * hard + (1 - LABEL_WEIGHT) * TEMPERATURE**2 * soft
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return float(total) / pair.num_steps

    return run


def measure(cells: list[tuple[str, str, int]], num_rounds: int) -> dict[str, Any]:
    """Measures the cells, one after the other, and returns them with those that were kept earlier."""
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    for name, xla, steps in cells:
        # Ten teachers beside the student take minutes: in the first cell of the pairs that can afford them.
        ensemble = (xla, steps) == ("off", 1) and name != "resnet-32"
        found = measure_cell(PAIRS[name], xla == "on", steps, num_rounds, ensemble)
        cell = {"pair": name, "xla": xla, "steps_per_execution": steps, "machine": machine(), "rounds": num_rounds}
        kept[f"{name}, XLA {xla}, {steps} steps"] = cell | found
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(kept, indent=1))
        print(f"{name}, XLA {xla}, {steps} steps an execution: {found['ratios']}", file=sys.stderr, flush=True)
    order = [f"{name}, XLA {xla}, {steps} steps" for name, xla, steps in CELLS]
    names = sorted(kept, key=lambda name: order.index(name) if name in order else len(order))
    return {"cells": [kept[name] for name in names]}


def page_part(result: dict[str, Any]) -> str:
    """The step's tables in docs/performance.md."""
    titles = [title for title, *_ in GOALS]
    ratios, times, variants = [], [], list(dict.fromkeys(n for c in result["cells"] for n in c["milliseconds_a_step"]))
    for cell in result["cells"]:
        where = [cell["pair"], cell["xla"], str(cell["steps_per_execution"])]
        medians, spreads = cell["ratios"], cell["spreads"]
        ratios.append(where + [f"{medians[t]:.2f} ± {spreads[t]:.2f}" if t in medians else "–" for t in titles])
        milliseconds = cell["milliseconds_a_step"]
        times.append(where + [f"{milliseconds[v]:.2f}" if v in milliseconds else "–" for v in variants])
    goals = ["goal", "", "", *(f"{'≥' if more else '≤'} {bound:g}" for *_, bound, more in GOALS)]
    last = result["cells"][-1]
    rounds = " or ".join(map(str, sorted({cell["rounds"] for cell in result["cells"]})))
    where = ", ".join(f"{name} {value}" for name, value in last["machine"].items())
    largest = max(cell["parity_relative_difference"] for cell in result["cells"])
    return "\n".join(
        [
            "Ratios of CPU time on one thread: medians over interleaved rounds ± half the distance between "
            "their quartiles.",
            "",
            table(["pair", "XLA", "steps a call", *titles], [goals, *ratios]),
            "Milliseconds a step:",
            "",
            table(["pair", "XLA", "steps a call", *variants], times),
            f"{rounds} rounds; the variants' losses agree to {largest:.0e}. {where}.",
        ]
    )


def _in_students(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Every variant's step, in steps of the student on labels, of the cells at Keras's defaults."""
    groups = {}
    for cell in result["cells"]:
        if (cell["xla"], cell["steps_per_execution"]) == ("off", 1):
            times = cell["milliseconds_a_step"]
            shown = [name for name in times if name not in ("student", "teacher") and "10 teachers" not in name]
            groups[cell["pair"]] = {name: times[name] / times["student"] for name in shown}
    return groups


def main() -> None:
    """Prints the figures, and writes them into docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="put tables and plot into docs/performance.md")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--pairs", nargs="+", choices=tuple(PAIRS), default=list(PAIRS))
    parser.add_argument("--xla", nargs="+", choices=("off", "on"), default=["off", "on"])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 10, 50])
    arguments = parser.parse_args()
    use_one_thread()
    wanted = (set(arguments.pairs), set(arguments.xla), set(arguments.steps))
    cells = [cell for cell in CELLS if all(part in asked for part, asked in zip(cell, wanted, strict=True))]
    result = measure(cells, arguments.rounds)
    print(json.dumps(result, indent=2, ensure_ascii=False) if arguments.json else page_part(result))
    if arguments.write:
        write_part("performance.md", "step", page_part(result))
        plot.bars("step", _in_students(result), "time of a step / time of the student's own")


if __name__ == "__main__":
    main()
