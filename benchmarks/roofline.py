"""How near a distilling step comes to what this machine can do: its arithmetic and its traffic against measured rates.

    python -m benchmarks.roofline [--json] [--write] [--rounds 9]

Rates: the fastest of some matrix products in TensorFlow (2 × n³ operations), and of adding two arrays that fit no cache
(12 bytes an element). A step's arithmetic is three forward passes of the student (forward; gradients to inputs and to
weights) and one of the teacher, counted in its graph by TensorFlow's profiler. Its traffic is what no cache of the
parameters' size can save: the teacher's weights are read once, and Adam reads weight, gradient and two moments and
writes weight and two moments: 28 bytes a parameter. The bound is the larger of the two times; what is measured is the
step of `fit` with the teacher beside the student. Parity: the profiler's count for the perceptron is 2 × its kernels.
"""

import argparse
import json
import time
from typing import Any

import numpy as np

from benchmarks import plot
from benchmarks.page import table, write_part
from benchmarks.pairs import PAIRS
from benchmarks.rounds import machine, use_one_thread

BYTES_READ, BYTES_UPDATED = 4, 28


def forward_operations(model: Any, batch_size: int) -> int:
    """Multiplications and additions of one forward pass, as TensorFlow's profiler counts them in the graph."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2_as_graph

    specification = tf.TensorSpec((batch_size, *model.input_shape[1:]), tf.float32)
    function = tf.function(lambda inputs: model(inputs, training=False)).get_concrete_function(specification)
    frozen, _ = convert_variables_to_constants_v2_as_graph(function)
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation()).with_empty_output().build()
    return int(profiler.profile(graph=frozen.graph, cmd="op", options=options).total_float_ops)


def rates(num_rounds: int) -> dict[str, float]:
    """This machine's billions of operations and of bytes a second."""
    import tensorflow as tf

    fastest = {}
    for name, size, run in (
        ("operations", 2 * 2048**3, lambda a, b: tf.matmul(a, b)),
        ("bytes", 12 * 2048**2 * 16, lambda a, b: a + b),
    ):
        shape = (2048, 2048) if name == "operations" else (16 * 2048, 2048)
        one, other = tf.ones(shape), tf.ones(shape)
        compute = tf.function(run)
        seconds = []
        for _ in range(num_rounds + 1):
            start = time.process_time()
            compute(one, other)[0, 0].numpy()
            seconds.append(time.process_time() - start)
        fastest[name] = size / min(seconds[1:]) / 1e9
    return fastest


def measure(num_rounds: int) -> dict[str, Any]:
    """The machine's rates, and each pair's bound and measured step."""
    import keras

    import keras_distill as kd

    kernels = 784 * 800 + 800 * 800 + 800 * 10
    counted = forward_operations(PAIRS["mlp-128"].student(), 128) / 128
    if not 2 * kernels <= counted < 2.01 * kernels:
        raise SystemExit(f"parity failed: {counted:,.0f} operations counted where the kernels have {2 * kernels:,}")
    limit, found = rates(num_rounds), {}
    for name, pair in PAIRS.items():
        keras.utils.set_random_seed(0)
        teacher, student = pair.teacher(), pair.student()
        operations = 3 * forward_operations(student, pair.batch_size) + forward_operations(teacher, pair.batch_size)
        traffic = BYTES_READ * teacher.count_params() + BYTES_UPDATED * student.count_params()
        distiller = kd.Distiller(teacher, student)
        distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        x = np.random.default_rng(0).random((pair.batch_size * pair.num_steps, *pair.input_shape), dtype=np.float32)
        y = np.zeros(len(x), "int32")
        seconds = []
        for _ in range(num_rounds + 1):
            start = time.process_time()
            distiller.fit(x, y, batch_size=pair.batch_size, epochs=1, shuffle=False, verbose=0)
            seconds.append((time.process_time() - start) / pair.num_steps)
        step = float(np.median(seconds[1:]))
        bounds = {"arithmetic": operations / limit["operations"] / 1e9, "traffic": traffic / limit["bytes"] / 1e9}
        found[name] = {
            "billion_operations": operations / 1e9,
            "megabytes": traffic / 1e6,
            "bound_milliseconds": {kind: 1e3 * value for kind, value in bounds.items()},
            "measured_milliseconds": 1e3 * step,
            "share_of_limit": max(bounds.values()) / step,
        }
    return {"machine": machine(), "rounds": num_rounds, "billions_a_second": limit, "pairs": found}


def page_part(result: dict[str, Any]) -> str:
    """The table in docs/performance.md."""
    rows = []
    for name, cell in result["pairs"].items():
        bounds = cell["bound_milliseconds"]
        rows.append(
            [
                name,
                f"{cell['billion_operations']:.2f}",
                f"{cell['megabytes']:.1f}",
                f"{bounds['arithmetic']:.2f}",
                f"{bounds['traffic']:.2f}",
                f"{cell['measured_milliseconds']:.2f}",
                f"{cell['share_of_limit']:.0%}",
            ]
        )
    header = ["pair", "10⁹ operations", "MB", "arithmetic, ms", "traffic, ms", "measured, ms", "of the limit"]
    limit = result["billions_a_second"]
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return (
        f"One thread of this machine multiplied at {limit['operations']:.0f} · 10⁹ operations a second and moved "
        f"{limit['bytes']:.1f} GB a second.\n\n{table(header, rows)}\n{result['rounds']} rounds, medians. {where}.\n"
    )


def main() -> None:
    """Prints the figures, and writes them into docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="put table and plot into docs/performance.md")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    use_one_thread()
    result = measure(arguments.rounds)
    print(json.dumps(result, indent=2) if arguments.json else page_part(result))
    if arguments.write:
        write_part("performance.md", "roofline", page_part(result))
        limit = result["billions_a_second"]
        points = {
            name: (
                1e3 * cell["billion_operations"] / cell["megabytes"],
                1e3 * cell["billion_operations"] / cell["measured_milliseconds"],
            )
            for name, cell in result["pairs"].items()
        }
        plot.roofline("roofline", points, limit["operations"], limit["bytes"])


if __name__ == "__main__":
    main()
