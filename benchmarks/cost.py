"""Is a student's cost known before it is converted?

    python -m benchmarks.cost [--write] [--models 60]

Random students of the hand-made families, for 28 × 28 images, converted and timed one after another: each is predicted
from those before it, as in a search. How far predictions are off after the first twenty, in share of what was then
measured; beside that how far a second measurement is off. `--write` makes docs/results/cost.json and the table of
docs/compress.md.
"""

import argparse
import json
import sys
from typing import Any

import numpy as np

from benchmarks.compress_tasks import random_shape
from benchmarks.page import DOCS, table, write_part
from benchmarks.rounds import machine, use_one_thread
from keras_distill._files import whole_file

RESULTS = DOCS / "results" / "cost.json"
NUM_KNOWN = 20
SHAPE, NUM_CLASSES = (28, 28, 1), 10


def measured(runtime: str, precision: str, num_models: int) -> dict[str, Any]:
    """What was off by how much, in one runtime and precision."""
    from keras_distill.deploy.conversion import ConversionError
    from keras_distill.search.cost import Meter
    from keras_distill.search.families import hand_made

    generator = np.random.default_rng(0)
    example = generator.normal(size=(64, *SHAPE)).astype("float32")
    meter = Meter(runtime, example[:1], example, {})
    again = Meter(runtime, example[:1], example, {})
    families = hand_made(SHAPE, NUM_CLASSES)
    latency, size, repeated = [], [], []
    while len(latency) < num_models:
        family = families[generator.integers(len(families))]
        shape = random_shape(family, generator)
        model = family.build(shape, float(np.exp(generator.uniform(np.log(0.03), np.log(0.5)))))
        predicted = meter.predict(model, precision, family.name)
        try:
            cost = meter.measure(model, precision, family.name)
        except ConversionError as error:
            # Of 60 random networks one is too much for its runtime; a search says so and goes on.
            print(error, file=sys.stderr)
            continue
        latency.append(abs(predicted.latency_ms / cost.latency_ms - 1.0))
        size.append(abs(predicted.num_bytes / cost.num_bytes - 1.0))
        repeated.append(abs(again.measure(model, precision, family.name).latency_ms / cost.latency_ms - 1.0))
    return {
        "runtime": runtime,
        "precision": precision,
        "latency": _spread(latency),
        "bytes": _spread(size),
        "latency measured again": _spread(repeated),
    }


def _spread(errors: list[float]) -> list[float]:
    known = errors[NUM_KNOWN:]
    return [float(np.median(known)), float(np.quantile(known, 0.9))]


def rows_of(rows: list[dict[str, Any]]) -> str:
    """The table of docs/compress.md."""
    header = ["file", "latency", "bytes", "latency, measured again"]
    cells = [
        [f"{row['runtime']}, {row['precision']}"]
        + [
            f"{100 * row[name][0]:.1f} % ({100 * row[name][1]:.1f} %)"
            for name in ("latency", "bytes", "latency measured again")
        ]
        for row in rows
    ]
    return table(header, cells)


def main() -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--models", type=int, default=60)
    arguments = parser.parse_args()
    use_one_thread()
    rows = [
        measured(runtime, precision, arguments.models)
        for runtime in ("litert", "onnx")
        for precision in ("float32", "int8")
    ]
    text = rows_of(rows)
    print(text)
    if arguments.write:
        results = {
            "command": "python -m benchmarks.cost --write",
            "machine": machine(),
            "models": arguments.models,
            "rows": rows,
        }
        with whole_file(RESULTS) as aside:
            aside.write_text(json.dumps(results, indent=1) + "\n")
        write_part("compress.md", "cost", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
