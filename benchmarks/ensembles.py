"""What more teachers cost: members one after the other or merged into one graph, and labelling with them.

    python -m benchmarks.ensembles [--json] [--write] [--rounds 7] [--members 1 2 5 10]

Members are the convolutional teacher of `benchmarks/pairs.py`, batches of 256 images of 32 × 32 × 3. `members` runs
each as a compiled function of its own and averages in NumPy; `Ensemble` is ours, all of them in one compiled graph.
Labelling is `keras_distill.targets.label` of 2,048 images into a store; the bare loop runs the same compiled ensemble
over the same batches and keeps its logits in an array. Parity: both ways give the same probabilities, and the store
holds what the bare loop found.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import plot
from benchmarks.page import table, write_part
from benchmarks.pairs import PAIRS
from benchmarks.rounds import interleave, machine, median_ratio, use_one_thread

BATCH_SIZE, NUM_ITEMS, PARITY = 256, 2048, 1e-4


def measure_ensemble(num_members: int, num_rounds: int) -> dict[str, float]:
    """Items a second of the members, their ensemble, the bare loop and `label`, and two ratios."""
    import keras
    import tensorflow as tf
    from scipy.special import log_softmax, softmax

    import keras_distill as kd
    from keras_distill.targets import label

    keras.utils.set_random_seed(0)
    pair = PAIRS["convnet-64"]
    members = [pair.teacher() for _ in range(num_members)]
    ensemble = kd.Ensemble(members)
    images = np.random.default_rng(0).random((NUM_ITEMS, *pair.input_shape), dtype=np.float32)
    batches = [images[start : start + BATCH_SIZE] for start in range(0, NUM_ITEMS, BATCH_SIZE)]

    def compiled(model: Any) -> Callable[[np.ndarray], np.ndarray]:
        function = tf.function(lambda inputs: model(inputs, training=False), reduce_retracing=True)
        return lambda batch: function(tf.constant(batch)).numpy()

    apart, merged = [compiled(member) for member in members], compiled(ensemble)

    def one_after_the_other() -> np.ndarray:
        return np.concatenate([np.mean([softmax(run(batch), -1) for run in apart], axis=0) for batch in batches])

    def bare_loop() -> np.ndarray:
        return np.concatenate([merged(batch) for batch in batches])

    with tempfile.TemporaryDirectory() as folder:
        names = itertools.count()

        def labelling() -> Any:
            path = Path(folder) / str(next(names))
            return label(
                ensemble, images, path, temperature=1.0, dtype="float32", batch_size=BATCH_SIZE, progress=False
            )

        found = bare_loop()
        _check("an Ensemble's probabilities", softmax(found, -1), one_after_the_other())
        stored = labelling().read(np.arange(NUM_ITEMS))
        _check("a store's log-probabilities", log_softmax(stored, -1), log_softmax(found, -1))
        runs = {"members": one_after_the_other, "Ensemble": bare_loop, "label": labelling}
        seconds = interleave(runs, num_rounds=num_rounds, clock=time.process_time)
    rates = {name: NUM_ITEMS / float(np.median(times)) for name, times in seconds.items()}
    ratios = {f"{a} / {b}": median_ratio(seconds, a, b) for a, b in (("Ensemble", "members"), ("label", "Ensemble"))}
    return rates | ratios


def _check(what: str, found: np.ndarray, expected: np.ndarray) -> None:
    difference = float(np.max(np.abs(found - expected)))
    if not difference <= PARITY:
        raise SystemExit(f"parity failed: {what} differ by {difference:.1e}")


def page_part(result: dict[str, Any]) -> str:
    """The table in docs/performance.md."""
    header = ["members", "one by one, items/s", "`Ensemble`, items/s", "`label`, items/s"]
    header += ["time of `Ensemble` / one by one", "time of `label` / bare loop"]
    rows = []
    for count, found in result["members"].items():
        rates = [f"{found[name]:,.0f}" for name in ("members", "Ensemble", "label")]
        ratios = [f"{found[name]:.2f}" for name in ("Ensemble / members", "label / Ensemble")]
        rows.append([str(count), *rates, *ratios])
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return f"{table(header, rows)}\nItems a second of one thread; {result['rounds']} rounds, medians. {where}.\n"


def main() -> None:
    """Prints the figures, and writes them into docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="put table and plot into docs/performance.md")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 5, 10])
    arguments = parser.parse_args()
    use_one_thread()
    members = {count: measure_ensemble(count, arguments.rounds) for count in arguments.members}
    result = {"machine": machine(), "rounds": arguments.rounds, "members": members}
    print(json.dumps(result, indent=2) if arguments.json else page_part(result))
    if arguments.write:
        write_part("performance.md", "ensembles", page_part(result))
        names = {"one by one": "members", "Ensemble": "Ensemble", "label": "label"}
        lines = {what: (list(members), [found[name] for found in members.values()]) for what, name in names.items()}
        plot.growth("ensembles", lines, "members", "items a second")


if __name__ == "__main__":
    main()
