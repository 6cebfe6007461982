"""What shipping costs and gains: int8 against float32 in size, speed and accuracy; how repeatable the kit's times are.

    KERAS_DISTILL_DATA=… python -m benchmarks.ship [--write] [--json]

Trains two small MNIST students for three epochs and ships them; every artifact is compared with Keras on the 10,000
test images before it is timed. Ratios are of one run: one thread, one image a call, interleaved rounds. Then the
bundle's own `benchmark.py` runs five times, each in a process of its own; and the command line ships the student of
`keras-distill demo`, from the start of Python to the bundle. `--write` puts the table into docs/ship.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import numpy as np

from benchmarks.page import write_part
from benchmarks.rounds import machine
from keras_distill import data
from keras_distill._kit import kit_module
from keras_distill.cli import demo_recipe
from keras_distill.data import networks
from keras_distill.deploy import Provenance, ship

SIZE_GOAL, SPEED_GOAL, DROP_GOAL, REPEAT_GOAL, SECONDS_GOAL = 3.5, 2.0, 1e-3, 0.05, 60.0
STUDENTS = {"MLP 800-800": networks.mlp, "ConvNet 32-64": networks.convnet}
# (student, target) → what is asked of its int8 file.
GOALS = {
    ("MLP 800-800", "onnx-int8"): ("size", "speed", "drop"),
    ("MLP 800-800", "litert-int8"): ("size", "speed", "drop"),
    ("ConvNet 32-64", "litert-int8"): ("speed",),
}
REPEATS = 5


def trained(model, dataset, epochs=3):
    """Trains in place on labels."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss=loss)
    model.fit(dataset.train.inputs, dataset.train.labels, batch_size=128, epochs=epochs, verbose=0)
    return model


def variants_of(name, shipment):
    """Everything that was made of one student, beside its runtime's float32 file."""
    float32 = {variant.target: variant for variant in shipment.variants if variant.precision == "float32"}
    shipped = {id(outcome.variant) for outcome in shipment.outcomes if outcome.holds}
    rows = []
    for variant in shipment.variants:
        if variant.verification is None or not variant.latency:
            raise SystemExit(f"parity failed: {name}, {variant.target}, {variant.name}: {variant.failure}")
        base, check = float32[variant.target.split("-")[0]], variant.verification
        rows.append(
            {
                "student": name,
                "target": variant.target,
                "variant": variant.name,
                "ships": id(variant) in shipped,
                "bytes": variant.num_bytes,
                "smaller": base.num_bytes / variant.num_bytes,
                "p50_us": 1e3 * variant.latency["p50_ms"],
                "p99_us": 1e3 * variant.latency["p99_ms"],
                "faster": base.latency["p50_ms"] / variant.latency["p50_ms"],
                "accuracy": check.accuracy,
                "accuracy_drop": check.accuracy_drop,
                "logit_rmse": check.logit_rmse,
            }
        )
    return rows


def repeats_of(bundle):
    """How far the p50 of a run of the bundle's own benchmark lies from the median of all runs, at most, as a share."""
    command = [sys.executable, str(bundle / "benchmark.py"), "--json"]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["artifacts"]
        for _ in range(REPEATS)
    ]
    times = {target: np.array([run[target]["p50_ms"] for run in runs]) for target in runs[0]}
    return {target: float(np.max(np.abs(p50 / np.median(p50) - 1.0))) for target, p50 in times.items()}


def seconds_to_ship(folder):
    """Seconds of `keras-distill ship` on the demo's student, all included."""
    digits, recipe = data.load("digits"), demo_recipe.RECIPES["digits"]
    student = demo_recipe.train_on_labels(digits, recipe, seed=0, advance=lambda: None)
    student.save(folder / "student.keras", include_optimizer=False)
    program = "import sys; from keras_distill.cli import main; sys.exit(main(sys.argv[1:]))"
    wishes = ["student.keras", "--data", "digits", "--out", "digits"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program, "ship", *wishes], cwd=folder, capture_output=True, check=True)
    return time.perf_counter() - start


def measure(rounds):
    """All figures, as `--json` prints them."""
    dataset = data.load("mnist")
    variants, repeats = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, build in STUDENTS.items():
            keras.utils.set_random_seed(0)
            model = trained(build(dataset.input_shape, dataset.num_classes), dataset)
            # Nothing is named, so nothing is refused: what is slower is left out and still listed.
            shipment = ship(model, dataset, folder / name, provenance=Provenance(name), rounds=rounds)
            variants += variants_of(name, shipment)
            repeats |= {f"{name}, {target}": share for target, share in repeats_of(folder / name).items()}
        seconds = seconds_to_ship(folder)
    return {
        "machine": {**machine(), "processor": kit_module().processor_name()},
        "rounds": rounds,
        "variants": variants,
        "repeats": repeats,
        "seconds_to_ship": seconds,
    }


def verdicts(result):
    """(what, the figure, the goal, whether it holds) of every target."""
    rows = []
    for (name, target), wishes in GOALS.items():
        made = [row for row in result["variants"] if (row["student"], row["target"]) == (name, target)]
        best = next((row for row in made if row["ships"]), max(made, key=lambda row: row["faster"]))
        whole = f"{name}, {target} ({best['variant']})"
        if "size" in wishes:
            rows.append((f"{whole}: smaller than float32", f"{best['smaller']:.2f} ×", SIZE_GOAL, best["smaller"]))
        if "speed" in wishes:
            rows.append((f"{whole}: faster than float32", f"{best['faster']:.2f} ×", SPEED_GOAL, best["faster"]))
        if "drop" in wishes:
            drop = best["accuracy_drop"]
            rows.append((f"{whole}: accuracy lost", f"{100 * drop:+.2f} points", -DROP_GOAL, -drop))
    worst = max(result["repeats"], key=result["repeats"].get)
    share, seconds = result["repeats"][worst], result["seconds_to_ship"]
    rows.append(
        (f"p50 of {REPEATS} runs of the kit, worst of all files ({worst})", f"± {share:.1%}", -REPEAT_GOAL, -share)
    )
    rows.append(("`keras-distill ship` of the demo's student", f"{seconds:.0f} s", -SECONDS_GOAL, -seconds))
    goals = {SIZE_GOAL: "≥ 3.5 ×", SPEED_GOAL: "≥ 2 ×", -DROP_GOAL: "≤ 0.1 points", -REPEAT_GOAL: "± 5 %"}
    goals[-SECONDS_GOAL] = "≤ 60 s"
    return [(what, figure, goals[goal], bool(value >= goal)) for what, figure, goal, value in rows]


def page_part(result):
    """The generated part of docs/ship.md."""
    lines = ["| what | measured | goal | |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {figure} | {goal} | {'holds' if holds else 'MISSED'} |"
        for what, figure, goal, holds in verdicts(result)
    ]
    lines += [
        "",
        "| student | target | made how | bytes | smaller | p50, µs | faster | points lost | logit RMSE "
        f"| ships: spread of p50 in {REPEATS} runs of the kit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["variants"]:
        spread = result["repeats"].get(f"{row['student']}, {row['target']}", 0.0)
        lines.append(
            f"| {row['student']} | {row['target']} | {row['variant']} | {row['bytes']:,} | {row['smaller']:.2f} × "
            f"| {row['p50_us']:.1f} | {row['faster']:.2f} × | {100 * row['accuracy_drop']:+.2f} "
            f"| {row['logit_rmse']:.2g} | {f'± {spread:.1%}' if row['ships'] else 'no'} |"
        )
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    lines += [
        "",
        f"MNIST, one thread, one image a call, 10 calls to warm up, {result['rounds']} interleaved rounds; {where}.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Returns 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/ship.md")
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    print(json.dumps(result, indent=2) if arguments.json else page_part(result))
    if arguments.write:
        write_part("ship.md", "ship", page_part(result))
    return 0 if all(holds for *_, holds in verdicts(result)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
