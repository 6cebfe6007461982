"""What shipping costs and gains: int8 against float32 in size, speed and accuracy; how repeatable the kit's times are.

    KERAS_DISTILL_DATA=… python -m benchmarks.ship [--rounds 20]

Trains two small MNIST students for three epochs, ships each with every target, and repeats the kit's measurement on the
bundle. Every figure comes out of a bundle whose artifacts were compared with Keras on the 10,000 test images first.
Ratios are of one run, one thread, one image a call. Targets: MLP 800-800 int8 at least 3.5 × smaller and 2 × faster in
both runtimes with at most 0.1 point of accuracy lost; ConvNet in LiteRT int8 at least 2 × faster; repeated p50
within ± 5 %; the digits student shipped within 60 s.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras

from benchmarks.rounds import machine
from keras_distill import data
from keras_distill.data import networks
from keras_distill.deploy import Budgets, Provenance, ship
from keras_distill.deploy.kit import kit_module


def trained(model, dataset, epochs):
    """Trains in place on labels."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss=loss)
    model.fit(dataset.train.inputs, dataset.train.labels, batch_size=128, epochs=epochs, verbose=0)
    return model


def verdict(text, holds):
    """Prints a line with its verdict."""
    print(f"{'  ok   ' if holds else '  MISS '}{text}", flush=True)
    return holds


def compare(name, shipment, smaller, faster):
    """Prints every variant of one student beside its runtime's float32 file."""
    best = {}
    float32 = {variant.target: variant for variant in shipment.variants if variant.precision == "float32"}
    for variant in shipment.variants:
        if variant.verification is None or not variant.latency:
            print(f"  {name:8} {variant.target:15}{variant.name:13} {variant.failure}")
            continue
        base = float32[variant.target.split("-")[0]]
        speed = base.latency["p50_ms"] / variant.latency["p50_ms"]
        size = base.num_bytes / variant.num_bytes
        check = variant.verification
        print(
            f"  {name:8} {variant.target:15}{variant.name:13}{variant.num_bytes:>10,} bytes ({size:4.2f} x) "
            f"p50 {variant.latency['p50_ms']:.4f} ms ({speed:4.2f} x) p99 {variant.latency['p99_ms']:.4f} "
            f"accuracy {check.accuracy:.4f} ({-check.accuracy_drop:+.4f}) rmse {check.logit_rmse:.4f}",
            flush=True,
        )
        if variant.precision == "int8" and variant.usable and speed > best.get(variant.target, (0.0,))[0]:
            best[variant.target] = (speed, size, check.accuracy_drop)
    held = True
    for target, wanted in faster.items():
        speed, size, drop = best.get(target, (0.0, 0.0, 1.0))
        held &= verdict(f"{name} {target}: {speed:.2f} x as fast, wanted {wanted}", speed >= wanted)
        if smaller:
            held &= verdict(f"{name} {target}: {size:.2f} x smaller, wanted {smaller}", size >= smaller)
            held &= verdict(f"{name} {target}: accuracy drops by {drop:+.2%}, allowed 0.10 %", drop <= 1e-3)
    return held


def main() -> int:
    """Returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    print({**machine(), "processor": kit_module().processor_name()})
    dataset = data.load("mnist")
    held = True
    students = {
        "mlp": (networks.mlp, 3.5, {"onnx-int8": 2.0, "litert-int8": 2.0}),
        "convnet": (networks.convnet, None, {"litert-int8": 2.0}),
    }
    with tempfile.TemporaryDirectory() as temporary:
        for name, (build, smaller, faster) in students.items():
            keras.utils.set_random_seed(0)
            model = trained(build(dataset.input_shape, dataset.num_classes), dataset, epochs=3)
            out = Path(temporary) / name
            # Nothing is named, so nothing is refused: what is slower is left out and still listed.
            shipment = ship(
                model, dataset, out, provenance=Provenance(name), budgets=Budgets(), rounds=arguments.rounds
            )
            held &= compare(name, shipment, smaller, faster)
            runs = [kit_module().benchmark(out, rounds=arguments.rounds)["artifacts"] for _ in range(3)]
            for target in runs[0]:
                times = sorted(run[target]["p50_ms"] for run in runs)
                spread = (times[-1] - times[0]) / (2 * times[1])
                held &= verdict(f"{name} {target}: p50 of three runs of the kit within ± {spread:.1%}", spread <= 0.05)
        digits = data.load("digits")
        keras.utils.set_random_seed(0)
        model = trained(networks.mlp(digits.input_shape, digits.num_classes, (32,)), digits, epochs=3)
        start = time.perf_counter()
        ship(model, digits, Path(temporary) / "digits", provenance=Provenance("digits"))
        seconds = time.perf_counter() - start
        held &= verdict(f"the digits student ships in {seconds:.1f} s, wanted 60", seconds <= 60)
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
