"""What a microcontroller gets: flash, arena and accuracy of int8 students beside the same students in float32.

    KERAS_DISTILL_DATA=… python -m benchmarks.microcontroller [--write] [--json]

Trains one small ConvNet on MNIST (10 epochs) and one on spoken digits (80), both on labels; then each again
for a fifth of that with its int8 rounding (`quantize_aware`), ships it to `tflm` within 20 kB of flash and 16 kB of
arena, and fails where it is past that. Accuracies are of the whole test sets: the float32 student's in Keras, the int8
file's in TFLM's own interpreter. `--write` puts the table into docs/ship.md. Five minutes on one core.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

from benchmarks.page import write_part
from benchmarks.rounds import machine
from keras_distill import data
from keras_distill.deploy import Budgets, Provenance, ship
from keras_distill.quantize_aware import FreezeRanges, quantize_aware

MAX_FLASH, MAX_ARENA = 20_000, 16_000
EPOCHS = {"mnist": 10, "spoken_digit": 80}
FRONT_ENDS = {
    "mnist": "none: pixels are the input",
    "spoken_digit": "outside the budget: the log-mel energies (256-point spectra of 25 ms frames) are computed before",
}


def student_of(dataset, seed):
    """A ConvNet of 6,500 weights: 8, 16 and 32 channels."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(dataset.input_shape, name="inputs")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for channels in (16, 32):
        x = layers.Conv2D(channels, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(dataset.num_classes, name="logits")(x))


def shipped(name, folder, seed):
    """One student, trained on labels and shipped: a row of the table."""
    dataset = data.load(name)
    model = student_of(dataset, seed)
    steps = EPOCHS[name] * -(-len(dataset.train) // 64)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(dataset.train.inputs, dataset.train.labels, batch_size=64, epochs=EPOCHS[name], verbose=0)
    in_float = np.mean(model.predict(dataset.test.inputs, verbose=0).argmax(-1) == dataset.test.labels)
    quantized = quantize_aware(model, dataset.train.inputs[:1024])
    epochs, callbacks = EPOCHS[name] // 5, [FreezeRanges()]
    rate = keras.optimizers.schedules.CosineDecay(1e-3, epochs * -(-len(dataset.train) // 64))
    quantized.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit = {"batch_size": 64, "epochs": epochs, "callbacks": callbacks, "verbose": 0}
    quantized.fit(dataset.train.inputs, dataset.train.labels, **fit)
    shipment = ship(
        quantized,
        dataset,
        Path(folder) / name,
        provenance=Provenance(name),
        targets=["tflm"],
        budgets=Budgets(max_accuracy_drop=0.02, max_size=MAX_FLASH, max_arena=MAX_ARENA),
        rounds=1,
    )
    (outcome,) = shipment.outcomes
    if not outcome.holds:
        raise SystemExit(f"{name} does not ship: {outcome.reasons}")
    variant = outcome.variant
    return {
        "data": name,
        "parameters": model.count_params(),
        "flash_bytes": variant.num_bytes,
        "arena_bytes": variant.micro.arena_bytes,
        "activation_bytes": variant.micro.activation_bytes,
        "operations": list(variant.micro.operations),
        "num_items": variant.verification.num_items,
        "accuracy_float32": float(in_float),
        "accuracy_int8": variant.verification.accuracy,
        "litert": str(variant.litert_parity),
        "front_end": FRONT_ENDS[name],
    }


def table(rows):
    """The rows in Markdown."""
    lines = [
        "| data | weights | flash, bytes | arena, bytes | activations | float32 in Keras | int8 in TFLM | front end |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['data']} | {row['parameters']:,} | {row['flash_bytes']:,} | {row['arena_bytes']:,} "
            f"| {row['activation_bytes']:,} | {row['accuracy_float32']:.2%} | {row['accuracy_int8']:.2%} "
            f"| {row['front_end']} |"
        )
    operations = sorted({name for row in rows for name in row["operations"]})
    lines += [
        "",
        f"Budgets: {MAX_FLASH:,} bytes of flash, {MAX_ARENA:,} of arena. Operations: {', '.join(operations)}.",
    ]
    lines += [f"{row['data']} ({row['num_items']:,} test examples): {row['litert']}." for row in rows]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--write", action="store_true", help="write the table into docs/ship.md")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [shipped(name, folder, arguments.seed) for name in EPOCHS]
    text = table(rows)
    print(json.dumps({"machine": machine(), "rows": rows}, indent=2) if arguments.json else text)
    if arguments.write:
        write_part("ship.md", "microcontroller", text)


if __name__ == "__main__":
    main()
