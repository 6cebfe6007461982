"""Where the time of a distilling step goes: the teacher, the student, its update, and what `fit` adds.

    python -m benchmarks.parts [--json] [--write] [--rounds 9] [--pairs mlp-128 convnet-64 resnet-32]

Each part is a compiled function of its own on one batch that lies in memory: the teacher's inference; the student's
forward and backward pass on labels; Adam's update of the student with given gradients. The whole is the `train_step`
of our Distiller on the same batch, compiled as Keras compiles it on a CPU, without XLA; beside it Keras's
Distiller's. What `fit` adds is had from two lengths of an epoch: its cost a step; and from a call for one step: its
cost a call. Parity: the gradients that the whole moves the student by are those of the parts, where the soft targets
weigh nothing. The three parts are also timed in PyTorch, where it is installed and the architectures are translated;
parity there: both models' logits.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import plot
from benchmarks.page import table, write_part
from benchmarks.pairs import PAIRS, Pair, in_torch, why_no_torch
from benchmarks.rounds import interleave, machine, use_one_thread

PARTS = ("teacher", "forward and backward", "update")
KERAS = "Keras's step"
PARITY = 1e-3
IN_TORCH = " in PyTorch"


def measure_pair(pair: Pair, num_rounds: int) -> dict[str, Any]:
    """Milliseconds of the parts, of the whole step, of a step in `fit`, of a call of `fit`, of PyTorch's parts."""
    import keras
    import tensorflow as tf

    import keras_distill as kd

    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    inputs = generator.random((pair.batch_size, *pair.input_shape), dtype=np.float32)
    labels = generator.integers(0, pair.num_classes, pair.batch_size).astype("int32")
    x, y = tf.constant(inputs), tf.constant(labels)
    teacher, student = pair.teacher(), pair.student()
    hard_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    _check_parity(teacher, pair.student, hard_loss, x, y)

    def fitted(model: Any) -> Any:
        model.compile(keras.optimizers.Adam(1e-3), hard_loss)
        model.fit(inputs, labels, batch_size=pair.batch_size, verbose=0)
        return model

    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(student.trainable_variables)
    gradients = [tf.zeros(variable.shape) + 1e-4 for variable in student.trainable_variables]
    stepping, fitting = (fitted(kd.Distiller(teacher, pair.student())) for _ in range(2))
    their_loss = keras.distillation.LogitsDistillation(temperature=4.0, loss=keras.losses.KLDivergence())
    theirs = fitted(keras.distillation.Distiller(teacher, pair.student(), their_loss, student_loss_weight=0.1))
    functions: dict[str, Callable[[], Any]] = {
        "teacher": lambda: teacher(x, training=False),
        "forward and backward": lambda: _gradients(student, hard_loss, x, y),
        "update": lambda: optimizer.apply_gradients(zip(gradients, student.trainable_variables, strict=True)),
        "step": lambda: stepping.train_step((x, y)),
        KERAS: lambda: theirs.train_step((x, y)),
    }
    runs: dict[str, Callable[[], Any]] = {
        name: _repeated(tf.function(function), pair.num_steps) for name, function in functions.items()
    }
    without_torch = why_no_torch(teacher, student)
    if not without_torch:
        for name, function in _parts_in_torch(teacher, student, inputs, labels).items():
            runs[name + IN_TORCH] = _repeated(function, pair.num_steps)
    for name, num_steps in (("fit", 1), ("fit, shorter", pair.num_steps), ("fit, longer", 3 * pair.num_steps)):
        many = np.concatenate([inputs] * num_steps), np.tile(labels, num_steps)
        runs[name] = lambda many=many: fitting.fit(*many, batch_size=pair.batch_size, shuffle=False, verbose=0)
    seconds = interleave(runs, num_rounds=num_rounds, num_warm_up=2, clock=time.process_time)
    medians = {name: 1e3 * float(np.median(times)) for name, times in seconds.items()}
    longer = np.subtract(seconds["fit, longer"], seconds["fit, shorter"])
    in_fit = 1e3 * float(np.median(longer)) / (2 * pair.num_steps)
    a_step = {name: medians[name] / pair.num_steps for name in runs if not name.startswith("fit")}
    whole = {"step in fit": in_fit, "call of fit": medians["fit"] - in_fit}
    return a_step | whole | {"why no PyTorch": without_torch}


def _gradients(student: Any, hard_loss: Any, x: Any, y: Any) -> list[Any]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = hard_loss(y, student(x, training=True))
    return tape.gradient(loss, student.trainable_variables)


def _parts_in_torch(teacher: Any, student: Any, inputs: np.ndarray, labels: np.ndarray) -> dict[str, Callable]:
    """The parts in PyTorch, eager as its users run it, of the same weights and batch."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    images = torch.from_numpy(inputs).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    classes = torch.from_numpy(labels).long()
    taught_by, learner = in_torch(teacher).eval(), in_torch(student)
    for keras_model, model in ((teacher, taught_by), (student, learner.eval())):
        with torch.inference_mode():
            logits, expected = model(images).numpy(), np.asarray(keras_model(inputs, training=False))
        if not np.allclose(logits, expected, rtol=PARITY, atol=PARITY * np.abs(expected).max()):
            raise SystemExit(f"parity failed: PyTorch's logits differ by {np.abs(logits - expected).max():.1e}")
    learner.train()
    updated = copy.deepcopy(learner)
    for parameter in updated.parameters():
        parameter.grad = torch.full_like(parameter, 1e-4)
    optimizer = torch.optim.Adam(updated.parameters(), 1e-3, eps=1e-7)

    def infer() -> Any:
        with torch.inference_mode():
            return taught_by(images)

    def forward_and_backward() -> None:
        for parameter in learner.parameters():
            parameter.grad = None
        functional.cross_entropy(learner(images), classes).backward()

    return dict(zip(PARTS, (infer, forward_and_backward, optimizer.step), strict=True))


def _repeated(function: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            function()

    return run


def _check_parity(teacher: Any, make: Callable[[], Any], hard_loss: Any, x: Any, y: Any) -> None:
    """A step of plain gradient descent on labels alone moves the student by the gradients of the parts."""
    import keras

    import keras_distill as kd

    student = make()
    expected = [gradient.numpy() for gradient in _gradients(student, hard_loss, x, y)]
    before = [variable.numpy() for variable in student.trainable_variables]
    model = kd.Distiller(teacher, student, student_loss_weight=1.0)
    model.compile(keras.optimizers.SGD(1.0), hard_loss)
    model.train_step((x, y))
    moved = [old - new.numpy() for old, new in zip(before, student.trainable_variables, strict=True)]
    distance = sum(float(np.sum((a - b) ** 2)) for a, b in zip(expected, moved, strict=True)) ** 0.5
    length = sum(float(np.sum(a**2)) for a in expected) ** 0.5
    if not distance <= PARITY * length:
        raise SystemExit(f"parity failed: the step's gradients differ by {distance / length:.1e} of their length")


def page_part(result: dict[str, Any]) -> str:
    """The table in docs/performance.md."""
    rows = []
    for name, parts in result["pairs"].items():
        total = sum(parts[part] for part in PARTS)
        row = [name, *(f"{parts[part]:.2f}" for part in PARTS), f"{total:.2f}", f"{parts['step']:.2f}"]
        row += [f"{parts['step'] / total:.2f}", f"{parts[KERAS]:.2f}", f"{parts['step in fit']:.2f}"]
        row += [f"{parts['call of fit']:.0f}"]
        rows.append(row)
    header = ["pair", *PARTS, "sum", "our step", "step / sum", KERAS, "step in `fit`", "a call of `fit`"]
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    text = f"Milliseconds of CPU time on one thread.\n\n{table(header, rows)}\n"
    in_both = {name: parts for name, parts in result["pairs"].items() if not parts["why no PyTorch"]}
    if in_both:
        rows = [
            [name, *(f"{parts[part + IN_TORCH]:.2f} ({parts[part + IN_TORCH] / parts[part]:.2f} ×)" for part in PARTS)]
            for name, parts in in_both.items()
        ]
        text += (
            f"The same parts in PyTorch, and what they take of TensorFlow's time:\n\n{table(['pair', *PARTS], rows)}\n"
        )
    return f"{text}{result['rounds']} rounds, medians. {where}.\n"


def main() -> None:
    """Prints the figures, and writes them into docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="put table and plot into docs/performance.md")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pairs", nargs="+", choices=tuple(PAIRS), default=["mlp-128", "convnet-64", "resnet-32"])
    arguments = parser.parse_args()
    use_one_thread()
    pairs = {name: measure_pair(PAIRS[name], arguments.rounds) for name in arguments.pairs}
    result = {"machine": machine(), "rounds": arguments.rounds, "pairs": pairs}
    print(json.dumps(result, indent=2) if arguments.json else page_part(result))
    if arguments.write:
        write_part("performance.md", "parts", page_part(result))
        shares = {
            name: {part: 100.0 * parts[part] / parts["step in fit"] for part in PARTS} for name, parts in pairs.items()
        }
        plot.bars("parts", shares, "% of a step in fit", stacked=True)


if __name__ == "__main__":
    main()
