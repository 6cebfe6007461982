"""`keras-distill specialists` on CIFAR-100, from a small generalist to the merged tables: a part of its page.

    python -m benchmarks.specialists --out runs/specialists-cifar100 [--write]

A compact ConvNet (`examples/specialists.py`) is trained for seven epochs with Adam, one seed; then the command finds
ten overlapping groups of sixteen classes, trains ten specialists and the control for as many steps, merges, and
distils the merge, the control and the generalist into one net of its size each, from the generalist's weights. It
tries the command, not the paper's claim: a generalist that short of its best gains from any further training.
Everything in `--out` is made once, so that a run that was killed goes on. Needs CIFAR-100 (`KERAS_DISTILL_DATA` or a
download).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.page import table, write_part
from benchmarks.rounds import machine

EPOCHS, BATCH_SIZE, LEARNING_RATE, WIDTHS = 7, 256, 3e-3, (32, 64, 96)
OPTIONS = {
    "--num-clusters": "10",
    "--cluster-size": "16",
    "--num-routes": "2",
    "--trained": "last_block",
    "--steps": "300",
    "--learning-rate": "1e-3",
    "--distill-back": "3",
    "--distill-start": "generalist",
}


def make_generalist(path: Path) -> None:
    """Trains the generalist, where it is not there yet."""
    import keras

    from examples.specialists import network
    from keras_distill import data

    if path.exists():
        return
    dataset = data.load("cifar100")
    keras.utils.set_random_seed(0)
    model = network(dataset.input_shape, dataset.num_classes, list(WIDTHS))
    schedule = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, EPOCHS * (len(dataset.train) // BATCH_SIZE))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, steps_per_execution=8)
    model.fit(dataset.train.inputs, dataset.train.labels, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)


def measure(out: Path) -> dict[str, Any]:
    """Runs the command; what it wrote, and the minutes of this call."""
    from keras_distill.cli import main as keras_distill

    make_generalist(out / "generalist.keras")
    start = time.perf_counter()
    options = [part for pair in OPTIONS.items() for part in pair]
    generalist = ["--generalist", str(out / "generalist.keras"), "--data", "cifar100", "--out", str(out / "run")]
    if keras_distill(["specialists", *generalist, *options]):
        raise SystemExit("the command failed")
    results = json.loads((out / "run" / "results.json").read_text())
    return {"machine": machine(), "minutes_of_this_call": (time.perf_counter() - start) / 60} | results


def page_part(result: dict[str, Any]) -> str:
    """The tables in docs/specialists.md."""
    num_items = sum(row["items"] for row in result["by_coverage"])
    rows = [
        [
            name,
            f"{100 * (1 - figures['errors'] / num_items):.2f} %",
            f"{100 * figures['low']:.2f}–{100 * figures['high']:.2f} %",
            f"{figures['nll']:.4f}",
            f"{100 * figures['within_group']:.2f} %" if "within_group" in figures else "–",
        ]
        for name, figures in result["models"].items()
        if "errors" in figures
    ]
    answers = ("generalist", "control", "merged")
    coverage = [
        [str(row["specialists"]), str(row["classes"]), str(row["items"]), *(str(row[name]) for name in answers)]
        for row in result["by_coverage"]
    ]
    cost = result["cost"]
    return "\n".join(
        [
            table(["model", "test accuracy", "errors, 95 % interval", "NLL, nats", "within the group"], rows),
            table(
                ["specialists that cover the class", "classes", "items", *(f"{name} right" for name in answers)],
                coverage,
            ),
            f"Trained in {cost['seconds'] / 60:.1f} minutes, {cost['cpu_seconds'] / 60:.1f} of CPU time; one "
            "seed. " + ", ".join(f"{name} {value}" for name, value in result["machine"].items()) + ".",
        ]
    )


def main() -> None:
    """Prints the tables, and writes them into docs/specialists.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/specialists-cifar100"))
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/specialists.md")
    arguments = parser.parse_args()
    result = measure(arguments.out)
    print(json.dumps(result, indent=2) if arguments.json else page_part(result))
    if arguments.write:
        write_part("specialists.md", "command", page_part(result))


if __name__ == "__main__":
    main()
