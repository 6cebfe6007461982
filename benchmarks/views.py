"""What views cost that are made while a student trains, and what a store costs that grows meanwhile.

    python -m benchmarks.views [--write] [--rounds 5]

Views: processor time of one batch of 128 images of 28 × 28, out of a `tf.data` pipeline, by each kind of step. A
growing store: a step of a 784-800-800-10 student taught by a 784-1200-1200-10 teacher in the first epoch of
`attach(…, teacher=…)`, in the second, and out of a finished store, beside a step with the teacher next to the student
and one of the student's own `fit` on labels. Before anything is timed the targets of both stores are compared. One
thread, interleaved rounds after one of warm-up, medians; an epoch's first twenty steps, in which `tf.data` sets its
pipeline up, are left out. Three minutes. `--write` makes the two parts of docs/store.md.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.page import table, write_part
from benchmarks.rounds import interleave, machine, use_one_thread

if TYPE_CHECKING:
    import keras

NUM_ITEMS, BATCH_SIZE, NUM_VIEW_BATCHES = 460 * 128, 128, 100
# In an epoch's first steps `tf.data` sets its pipeline up.
NUM_FIRST_STEPS = 20


def network(width: int) -> "keras.Model":
    """Two hidden layers over 784 pixels."""
    import keras
    from keras import layers

    return keras.Sequential([keras.Input((784,)), *(layers.Dense(width, "relu") for _ in range(2)), layers.Dense(10)])


def milliseconds_of_views(num_rounds: int) -> dict[str, float]:
    """Processor time of a batch, by step."""
    import tensorflow as tf
    from keras import layers

    from keras_distill.targets import Augmentation, Crop, Shift

    steps = {
        "`Shift(2)`": Shift(2),
        "`Crop(28, 28, padding=2)`": Crop(28, 28, padding=2),
        '`RandomFlip("horizontal")`': layers.RandomFlip("horizontal"),
        "`RandomTranslation(0.1, 0.1)`": layers.RandomTranslation(0.1, 0.1),
        "`RandomRotation(0.1)`": layers.RandomRotation(0.1),
        "`RandomCrop(24, 24)`, item by item": layers.RandomCrop(24, 24),
    }
    images = np.random.default_rng(0).random((BATCH_SIZE, 28, 28, 1), dtype=np.float32)
    ids = np.arange(BATCH_SIZE)

    def batches(augmentation: Augmentation) -> Callable[[], object]:
        numbers = tf.data.Dataset.range(NUM_VIEW_BATCHES)
        made = numbers.map(lambda number: augmentation(images, ids, tf.fill([BATCH_SIZE], number)))
        return lambda: [None for _ in made]

    variants = {name: batches(Augmentation(step, seed=1)) for name, step in steps.items()}
    seconds = interleave(variants, num_rounds=num_rounds, clock=time.process_time)
    return {name: 1e3 * median(times) / NUM_VIEW_BATCHES for name, times in seconds.items()}


def ratios_of_growing(num_rounds: int) -> dict[tuple[str, str], tuple[float, float]]:
    """Time of a step over that of another: the processor's, and by the wall."""
    import keras
    import tensorflow as tf

    from keras_distill import Distiller
    from keras_distill.losses import SoftTargets
    from keras_distill.targets import attach, label

    generator = np.random.default_rng(0)
    x = generator.random((NUM_ITEMS, 784), dtype=np.float32)
    y = generator.integers(0, 10, NUM_ITEMS)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher, own = network(1200), network(800)
    own.compile("adam", loss=loss)

    def distiller(beside: "keras.Model | None") -> Distiller:
        made = Distiller(beside, network(800), SoftTargets(4.0))
        made.compile("adam", loss=loss)
        return made

    plain = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(NUM_ITEMS).batch(BATCH_SIZE).prefetch(2)
    beside, grown, stored = distiller(teacher), distiller(None), distiller(None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = label(teacher, x, folder / "labelled", progress=False)
        of_whole = attach((x, y), whole, batch_size=BATCH_SIZE)
        seconds: dict[str, list[np.ndarray]] = {}
        began: list[np.ndarray] = []
        starts = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: began.append(_clocks()) if batch == NUM_FIRST_STEPS else None
        )

        def timed(what: str, model: keras.Model, dataset: tf.data.Dataset) -> None:
            model.fit(dataset, epochs=1, shuffle=False, verbose=0, callbacks=[starts])
            seconds.setdefault(what, []).append(_clocks() - began.pop())

        for number in range(num_rounds + 1):
            growing = attach((x, y), folder / str(number), teacher=teacher, batch_size=BATCH_SIZE)
            timed("beside", beside, plain)
            timed("first", grown, growing)
            timed("second", grown, growing)
            timed("own", own, plain)
            timed("stored", stored, of_whole)
        ids = np.arange(0, NUM_ITEMS, 97)
        found = attach((x, y), folder / "0", batch_size=BATCH_SIZE)
        difference = np.abs(label(teacher, x, folder / "0", progress=False).read(ids) - whole.read(ids)).max()
        if difference > 2e-3 or len(found) != NUM_ITEMS // BATCH_SIZE:
            raise SystemExit(f"parity failed: the targets of the two stores differ by {difference:.1e}")
    pairs = (("first", "beside"), ("second", "own"), ("second", "stored"), ("stored", "own"))
    ratios = {(one, other): np.divide(seconds[one][1:], seconds[other][1:]) for one, other in pairs}
    return {pair: tuple(np.median(values, axis=0).tolist()) for pair, values in ratios.items()}


def _clocks() -> np.ndarray:
    """Seconds of processor time, and by the wall."""
    return np.array([time.process_time(), time.perf_counter()])


def views_part(milliseconds: dict[str, float], num_rounds: int) -> str:
    """The table of views."""
    rows = [[name, f"{value:.2f}"] for name, value in milliseconds.items()]
    return f"{table(['a batch of 128 images, 28 × 28', 'processor time, ms'], rows)}\n{_where(num_rounds)}"


def growing_part(ratios: dict[tuple[str, str], tuple[float, float]], num_rounds: int) -> str:
    """The table of the growing store."""
    what = {
        ("first", "beside"): ("first epoch, over a step beside the teacher", "≤ 1.05"),
        ("second", "own"): ("second epoch, over the student's own `fit` on labels", "≤ 1.03"),
        ("second", "stored"): ("second epoch, over a step from a finished store", "–"),
        ("stored", "own"): ("a step from a finished store, over the student's own `fit`", "–"),
    }
    rows = [[*what[pair], f"{processor:.2f}", f"{wall:.2f}"] for pair, (processor, wall) in ratios.items()]
    return f"{table(['a step', 'goal', 'processor time', 'by the wall'], rows)}\n{_where(num_rounds)}"


def _where(num_rounds: int) -> str:
    where = ", ".join(f"{name} {value}" for name, value in machine().items())
    return f"{num_rounds} interleaved rounds after one of warm-up, medians, one thread; {where}.\n"


def main() -> int:
    """Measures, prints, and writes where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/store.md")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    use_one_thread()
    parts = {
        "views": views_part(milliseconds_of_views(arguments.rounds), arguments.rounds),
        "growing": growing_part(ratios_of_growing(arguments.rounds), arguments.rounds),
    }
    for name, text in parts.items():
        print(text)
        if arguments.write:
            write_part("store.md", name, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
