"""Wide outputs: what a step of dense and of top-k soft targets costs beside hard labels, from 10 to 100,000 classes.

    python -m benchmarks.wide [--json] [--write] [--rounds 7] [--classes 10 1000 32000 100000]

A linear student of 64 inputs, batch 64, through `fit` with Keras's own compile defaults, on batches that lie in memory:
the output is the whole cost. All weight lies on the soft targets, but for the last variant, the `Distiller`'s default:
the labels' loss beside them, which goes through the row once more. Times are the processor's, on one thread. Parity
first: top-k rows whose tail is even report the dense loss of the same rows. Peak memory is that of a process of its
own for each variant.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import plot
from benchmarks.page import table, write_part
from benchmarks.rounds import interleave, machine, median_ratio, use_one_thread

BATCH_SIZE, WIDTH, TOP_K, NUM_STEPS, TEMPERATURE = 64, 64, 32, 20, 4.0
VARIANTS = ("hard labels", "top-k", "dense", "top-k and labels")
GOALS = {"top-k": 1.05, "dense": 1.5}


def runs_of(num_classes: int, variants: tuple[str, ...]) -> dict[str, Any]:
    """An epoch of `NUM_STEPS` steps for each variant; calling it returns the mean loss."""
    import keras
    import tensorflow as tf

    import keras_distill as kd

    generator = np.random.default_rng(0)
    k = min(TOP_K, num_classes)
    x = generator.normal(size=(BATCH_SIZE, WIDTH)).astype("float32")
    y = generator.integers(0, num_classes, BATCH_SIZE)
    # All but k logits of a row are equal, so that the even tail is the truth and both losses have one value.
    ids = np.stack([generator.choice(num_classes, k, replace=False) for _ in range(BATCH_SIZE)]).astype("int32")
    # Far above the rest: next to uniform rows there is no loss to compare.
    top = np.sort(generator.random((BATCH_SIZE, k)).astype("float32") + 8.0)[:, ::-1].copy()
    log_tail = np.full(BATCH_SIZE, np.log(num_classes - k) if num_classes > k else -1e30, "float32")
    targets: dict[str, Any] = {"hard labels": y}
    if "dense" in variants:
        dense = np.zeros((BATCH_SIZE, num_classes), "float32")
        np.put_along_axis(dense, ids, top, axis=1)
        targets["dense"] = {"labels": y, "soft_targets": dense}
    rows = {"top_k_logits": top, "top_k_ids": ids, "log_tail": log_tail}
    targets["top-k"] = targets["top-k and labels"] = {"labels": y, "soft_targets": rows}

    def epoch(name: str) -> Any:
        keras.utils.set_random_seed(0)
        student = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(num_classes)])
        model = student
        if name != "hard labels":
            weight = 0.1 if name == "top-k and labels" else 0.0
            model = kd.Distiller(None, student, kd.losses.SoftTargets(TEMPERATURE), student_loss_weight=weight)
        model.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        batches = tf.data.Dataset.from_tensors((x, targets[name])).cache().repeat(NUM_STEPS)
        return lambda: model.fit(batches, epochs=1, shuffle=False, verbose=0).history["loss"][-1]

    return {name: epoch(name) for name in variants}


def peak_megabytes(num_classes: int, variant: str) -> float:
    """The most that a process which trains this variant alone had resident."""
    command = [sys.executable, "-m", "benchmarks.wide", "--peak-of", variant, "--classes", str(num_classes)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure(classes: list[int], num_rounds: int) -> dict[str, Any]:
    """Every number of classes."""
    found = {}
    for num_classes in classes:
        runs = runs_of(num_classes, VARIANTS)
        losses = {name: run() for name, run in runs.items()}
        difference = abs(losses["top-k"] / losses["dense"] - 1)
        if not difference < 1e-3:
            raise SystemExit(f"parity failed at {num_classes} classes: top-k and dense differ by {difference:.1e}")
        seconds = interleave(runs, num_rounds=num_rounds, clock=time.process_time)
        found[str(num_classes)] = {
            "milliseconds_a_step": {name: 1e3 * float(np.median(all_)) / NUM_STEPS for name, all_ in seconds.items()},
            "over_hard": {name: median_ratio(seconds, name, "hard labels") for name in VARIANTS[1:]},
            "parity_relative_difference": difference,
            "peak_megabytes": {name: peak_megabytes(num_classes, name) for name in VARIANTS},
        }
    return {"machine": machine(), "rounds": num_rounds, "classes": found, "goals_at_32000": GOALS}


def page_part(result: dict[str, Any]) -> str:
    """The table in docs/performance.md."""
    rows = []
    for num_classes, cell in result["classes"].items():
        milliseconds, peaks = cell["milliseconds_a_step"], cell["peak_megabytes"]
        rows.append(
            [
                f"{int(num_classes):,}",
                *(f"{milliseconds[name]:.2f}" for name in VARIANTS),
                *(f"{cell['over_hard'][name]:.2f}" for name in VARIANTS[1:]),
                *(f"{peaks[name]:.0f}" for name in VARIANTS),
            ]
        )
    header = ["classes", *(f"{name}, ms" for name in VARIANTS), *(f"{name} / hard" for name in VARIANTS[1:])]
    header += [f"{name}, peak MB" for name in VARIANTS]
    goals = [f"≤ {GOALS[name]}" if name in GOALS else "" for name in VARIANTS[1:]]
    goals = ["goal at 32,000", *[""] * len(VARIANTS), *goals, *[""] * len(VARIANTS)]
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return table(header, [goals, *rows]) + f"\n{result['rounds']} rounds; k = {TOP_K}, batch {BATCH_SIZE}. {where}.\n"


def main() -> None:
    """Prints the figures, and writes them into docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="put table and plot into docs/performance.md")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--classes", nargs="+", type=int, default=[10, 1000, 32_000, 100_000])
    parser.add_argument("--peak-of", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    use_one_thread()
    if arguments.peak_of:
        runs_of(arguments.classes[0], (arguments.peak_of,))[arguments.peak_of]()
        # `ru_maxrss` would begin with what the process that started this one held.
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6)
        return
    result = measure(arguments.classes, arguments.rounds)
    print(json.dumps(result, indent=2) if arguments.json else page_part(result))
    if arguments.write:
        write_part("performance.md", "wide", page_part(result))
        cells = {int(num_classes): cell["milliseconds_a_step"] for num_classes, cell in result["classes"].items()}
        lines = {name: (list(cells), [cell[name] for cell in cells.values()]) for name in VARIANTS}
        plot.growth("wide", lines, "classes", "ms a step")


if __name__ == "__main__":
    main()
