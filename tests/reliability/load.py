"""What grows with time and with size, and what must not: a long training and a large store, each measured.

    python tests/reliability/load.py soak --epochs 1000
    python tests/reliability/load.py store --items 10000000

Each prints one JSON object. Memory is what the process holds of its own (anonymous pages); mapped files are counted
apart, since the system takes those back as it likes.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from keras_distill import targets
from keras_distill.losses import SoftTargets
from keras_distill.schedules import Linear


def held():
    """(bytes of the process's own, bytes of mapped files) that are in memory now."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            found[name] = int(value.split()[0]) * 1024
    return found["RssAnon"], found["RssFile"]


class Counted(keras.layers.Layer):
    """Passes its input on; Python runs this once a trace."""

    def __init__(self):
        super().__init__()
        self.num_traces = 0

    def call(self, inputs, training=False):
        self.num_traces += 1
        return inputs


class Ledger(keras.callbacks.Callback):
    """What is held at the end of each epoch, and how often the step has been traced by then."""

    def __init__(self, counted):
        super().__init__()
        self.counted, self.memory, self.traces = counted, [], []

    def on_epoch_end(self, epoch, logs=None):
        self.memory.append(held()[0])
        self.traces.append(self.counted.num_traces)


def soak(epochs):
    """So many epochs of a tiny distillation with a schedule, a validation set and metrics."""
    keras.utils.set_random_seed(0)
    x, y = np.random.default_rng(0).normal(size=(32, 8)).astype("float32"), np.arange(32) % 4
    counted = Counted()
    teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(4)])
    inputs = keras.Input((8,))
    student = keras.Model(inputs, keras.layers.Dense(4)(counted(inputs)))
    distiller = kd.Distiller(teacher, student, SoftTargets(Linear(8.0, 1.0, epochs)))
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("adam", hard, metrics=["accuracy"], jit_compile=False)
    ledger = Ledger(counted)
    began = time.monotonic()
    distiller.fit(x, y, batch_size=16, epochs=epochs, validation_data=(x, y), verbose=0, callbacks=[ledger])
    settled = epochs // 5
    return {
        "epochs": epochs,
        "traces_after_the_first_epoch": ledger.traces[-1] - ledger.traces[0],
        "bytes_grown_over_the_last_four_fifths": ledger.memory[-1] - ledger.memory[settled],
        "seconds": round(time.monotonic() - began, 1),
    }


def store(num_items, batch_size=8192):
    """Labels so many items, reads all of them in order and in a shuffled epoch, and measures what is held meanwhile."""
    num_classes = 4
    with tempfile.TemporaryDirectory() as folder:
        inputs = np.lib.format.open_memmap(f"{folder}/inputs.npy", "w+", "uint8", (num_items, 4))
        for start in range(0, num_items, 1 << 20):
            stop = min(start + (1 << 20), num_items)
            inputs[start:stop] = (np.arange(start, stop)[:, None] >> np.array([0, 8, 16, 24])) & 0xFF
        inputs.flush()
        inputs = np.load(f"{folder}/inputs.npy", mmap_mode="r")
        most = {"anonymous": 0}

        def teacher(batch):
            most["anonymous"] = max(most["anonymous"], held()[0])
            return np.asarray(batch, "float32")[:, :num_classes]

        settings = {"teacher_fingerprint": "bytes", "batch_size": batch_size}
        # A little one first: what TensorFlow needs once is no matter of size.
        small = targets.label(teacher, np.asarray(inputs[: 4 * batch_size]), f"{folder}/small", **settings)
        for _ in targets.attach(np.asarray(inputs[: 4 * batch_size]), small, batch_size=batch_size):
            pass
        before, most["anonymous"] = held()[0], 0
        began = time.monotonic()
        labelled = targets.label(teacher, inputs, f"{folder}/store", **settings)
        labelling = {"seconds": time.monotonic() - began, "grown": most["anonymous"] - before}

        began, most_mapped, most["anonymous"], start = time.monotonic(), 0, 0, 0
        for batch in labelled.batches(batch_size):
            expected = np.arange(start, start + len(batch))
            if not np.array_equal(batch @ np.float32([1, 0, 0, 0]), expected & 0xFF):
                raise RuntimeError(f"rows from {start} on are not what was labelled")
            start += len(batch)
            most["anonymous"] = max(most["anonymous"], held()[0])
        reading = {"seconds": time.monotonic() - began, "grown": most["anonymous"] - before}

        began, most["anonymous"], seen = time.monotonic(), 0, 0
        for x, y in targets.attach(inputs, labelled, batch_size=batch_size, seed=1):
            if not np.array_equal(x.numpy(), y["soft_targets"].numpy().astype("uint8")):
                raise RuntimeError("an item met another one's soft targets")
            seen += len(x)
            most["anonymous"] = max(most["anonymous"], held()[0])
            most_mapped = max(most_mapped, held()[1])
        shuffled = {"seconds": time.monotonic() - began, "grown": most["anonymous"] - before}
        if seen != num_items or start != num_items:
            raise RuntimeError(f"{start} and {seen} items were read of {num_items}")
        return {
            "items": num_items,
            "megabytes_on_disk": round(labelled.manifest.num_bytes / 1e6, 1),
            "labelling": rounded(labelling),
            "reading_in_order": rounded(reading),
            "a_shuffled_epoch": rounded(shuffled),
        }


def rounded(figures):
    return {"seconds": round(figures["seconds"], 1), "megabytes_grown": round(figures["grown"] / 1e6, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("soak", "store"))
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--items", type=int, default=10_000_000)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(json.dumps(soak(arguments.epochs) if arguments.what == "soak" else store(arguments.items)))


if __name__ == "__main__":
    main()
