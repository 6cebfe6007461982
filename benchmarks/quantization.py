"""What int8 costs a tiny student: quantised after training, trained for it on labels, and distilled for it.

    python -m benchmarks.quantization [--seeds 3] [--datasets mnist spoken_digit] [--quick]

writes the tables of docs/quantization.md. All students of a seed start from the same weights and train for as many
epochs; the last ones are float for the float students and quantised for the quantisation-aware ones. Accuracies
are of the last epoch, on the official test sets, computed by the runtime that the column names.
"""

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from benchmarks.rounds import interleave, machine, median_ratio
from keras_distill import Distiller, data
from keras_distill.data import networks
from keras_distill.deploy import quantize_onnx, to_litert, to_onnx
from keras_distill.deploy.calibration import choose_calibration
from keras_distill.deploy.integer_onnx import kernel_types
from keras_distill.deploy.kit import kit_module
from keras_distill.deploy.verify import open_artifact, run_in_batches
from keras_distill.losses import SoftTargets
from keras_distill.quantize_aware import FreezeRanges, freeze, quantize_aware

DOCUMENT = Path(__file__).parents[1] / "docs/quantization.md"
START, END = "<!-- measured: start -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Recipe:
    """How the networks of one dataset are trained; `float_epochs` then `last_epochs`, float or quantised."""

    widths: tuple[int, ...]
    teacher_widths: tuple[int, ...]
    teacher_epochs: int
    float_epochs: int
    last_epochs: int
    batch_size: int
    temperature: float = 4.0


RECIPES = {
    "spoken_digit": Recipe((12, 24, 40), (16, 32), 12, 25, 8, 32),
    "mnist": Recipe((12, 24, 40), (16, 32), 4, 5, 3, 128),
}


def student_of(dataset, recipe):
    return networks.separable_convnet(dataset.input_shape, dataset.num_classes, recipe.widths)


def logits_of(model, inputs):
    return model.predict(inputs, batch_size=500, verbose=0)


def train(model, dataset, recipe, epochs, rate, soft_targets=None, callbacks=()):
    """Trains in place, on labels or on the teacher's stored soft targets, to a rate of zero."""
    steps = epochs * -(-len(dataset.train) // recipe.batch_size)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trained, labels = model, dataset.train.labels
    if soft_targets is not None:
        trained = Distiller(None, model, SoftTargets(temperature=recipe.temperature), student_loss_weight=0.1)
        labels = {"labels": labels, "soft_targets": soft_targets}
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
    # Compiling with XLA takes longer than these few epochs gain from it.
    trained.compile(optimizer, loss=loss, jit_compile=False)
    options = {"batch_size": recipe.batch_size, "epochs": epochs, "verbose": 0, "callbacks": list(callbacks)}
    trained.fit(dataset.train.inputs, labels, **options)
    return model


def copy_of(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def students(dataset, recipe, seed, soft_targets):
    """The four students of a seed: float and quantisation-aware, on labels and distilled."""
    models = {}
    for name, targets in (("labels", None), ("distilled", soft_targets)):
        keras.utils.set_random_seed(seed)
        begun = train(student_of(dataset, recipe), dataset, recipe, recipe.float_epochs, 2e-3, targets)
        calibration = dataset.train.inputs[np.random.default_rng(seed).permutation(len(dataset.train))[:512]]
        quantized = quantize_aware(begun, calibration)
        models[f"float, {name}"] = train(copy_of(begun), dataset, recipe, recipe.last_epochs, 5e-4, targets)
        models[f"quantisation-aware, {name}"] = train(
            quantized, dataset, recipe, recipe.last_epochs, 5e-4, targets, [FreezeRanges(num_last_epochs=1)]
        )
    return models


def artifacts_of(models, dataset, folder):
    """{row: {runtime: file}}, the post-training int8 ones beside those of the models."""
    feed = {"inputs": dataset.train.inputs}
    calibration = choose_calibration(feed)
    files = {}
    for name, model in models.items():
        stem = folder / name.replace(", ", "-")
        files[name] = {"onnx": to_onnx(model, f"{stem}.onnx"), "litert": to_litert(model, f"{stem}.tflite")}
        if name.startswith("float"):
            files[name.replace("float", "post-training int8")] = {
                "onnx": quantize_onnx(files[name]["onnx"], f"{stem}-int8.onnx", calibration=calibration),
                "litert": to_litert(model, f"{stem}-int8.tflite", quantization="int8", calibration=calibration),
            }
    return files


def figures_of(files, models, dataset):
    """{row: {figure: value}}: accuracy in each runtime, agreement with the row's Keras model, bytes, kernels."""
    rows = {}
    for name, paths in files.items():
        model = models[name.replace("post-training int8", "float")]
        reference = logits_of(model, dataset.test.inputs).argmax(-1)
        row = {"keras": float(np.mean(reference == dataset.test.labels)), "parameters": model.count_params()}
        for runtime, path in paths.items():
            answers = run_in_batches(open_artifact(path), {"inputs": dataset.test.inputs}).argmax(-1)
            types = kernel_types(path)
            row |= {
                f"{runtime} accuracy": float(np.mean(answers == dataset.test.labels)),
                f"{runtime} agreement": float(np.mean(answers == reference)),
                f"{runtime} bytes": Path(path).stat().st_size,
                f"{runtime} integer kernels": sum(kind in ("int8", "uint8") for kind in types.values()),
                f"{runtime} kernels": len(types),
            }
        rows[name] = row
    return rows


def latencies_of(files, dataset):
    """{row: {runtime: µs}}: p50 of one example, one thread, all files interleaved."""
    one = {"inputs": dataset.test.inputs[:1]}
    steps = {}
    for name, paths in files.items():
        for runtime, path in paths.items():
            steps[name, runtime] = partial(open_artifact(path), one)
    return {key: figures["p50_ms"] * 1e3 for key, figures in kit_module().measure(steps).items()}


def step_ratio(dataset, recipe, soft_targets, num_steps=30):
    """A quantisation-aware distillation step over a float one, on stored soft targets; and with all frozen."""
    keras.utils.set_random_seed(0)
    student = student_of(dataset, recipe)
    inputs = dataset.train.inputs[: num_steps * recipe.batch_size]
    frozen = quantize_aware(student, inputs[:128])
    freeze(frozen)
    runs = {}
    for name, model in {"float": student, "aware": quantize_aware(student, inputs[:128]), "frozen": frozen}.items():
        distiller = Distiller(None, model, SoftTargets(temperature=recipe.temperature))
        distiller.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        labels = {"labels": dataset.train.labels[: len(inputs)], "soft_targets": soft_targets[: len(inputs)]}
        batch = recipe.batch_size
        runs[name] = lambda d=distiller, y=labels, b=batch: d.fit(inputs, y, batch_size=b, verbose=0)
    seconds = interleave(runs, num_rounds=7, num_warm_up=2)
    return {name: median_ratio(seconds, name, "float") for name in ("aware", "frozen")}


def measure(name, num_seeds, quick):
    """All figures of one dataset."""
    dataset, recipe = data.load(name), RECIPES[name]
    if quick:
        recipe = Recipe(recipe.widths, recipe.teacher_widths, 1, 1, 1, recipe.batch_size)
        few = np.arange(256)
        splits = (split.take(few) for split in (dataset.train, dataset.validation, dataset.test))
        dataset = data.Dataset(name, *splits, dataset.class_names, dataset.licence)
    keras.utils.set_random_seed(0)
    shape = dataset.input_shape
    teacher = networks.convnet(shape, dataset.num_classes, recipe.teacher_widths, dropout=0.3)
    train(teacher, dataset, recipe, recipe.teacher_epochs, 2e-3)
    soft_targets = logits_of(teacher, dataset.train.inputs)
    answers = logits_of(teacher, dataset.test.inputs).argmax(-1)
    result = {"teacher": float(np.mean(answers == dataset.test.labels)), "seeds": []}
    print(f"{name}: teacher {result['teacher']:.2%}", flush=True)
    for seed in range(num_seeds):
        models = students(dataset, recipe, seed, soft_targets)
        with tempfile.TemporaryDirectory() as folder:
            files = artifacts_of(models, dataset, Path(folder))
            rows = figures_of(files, models, dataset)
            if seed == 0:
                result["latency"] = latencies_of(files, dataset)
        result["seeds"].append(rows)
        print(json.dumps(rows), flush=True)
    result["step"] = step_ratio(dataset, recipe, soft_targets)
    print(result["step"], flush=True)
    return result


def table(name, result):
    """The figures of one dataset as Markdown."""
    seeds, latency = result["seeds"], result["latency"]
    first = seeds[0]

    def spread(row, figure, scale=100.0, digits=2):
        values = np.array([rows[row][figure] for rows in seeds]) * scale
        deviation = values.std(ddof=1) if len(values) > 1 else 0.0
        return f"{values.mean():.{digits}f} ± {deviation:.{digits}f}"

    lines = [
        f"### {name}: {first['float, labels']['parameters']:,} parameters, {len(seeds)} seeds, "
        f"teacher {result['teacher']:.2%}",
        "",
        "| student | accuracy, onnxruntime (%) | accuracy, LiteRT (%) | agreement with Keras, onnxruntime / LiteRT (%) "
        "| integer kernels | bytes, ONNX / LiteRT | latency, onnxruntime / LiteRT (µs) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, figures in first.items():
        agreement = " / ".join(
            f"{np.mean([rows[row][f'{runtime} agreement'] for rows in seeds]):.2%}" for runtime in ("onnx", "litert")
        )
        kernels = f"{figures['onnx integer kernels']}, {figures['litert integer kernels']} of {figures['onnx kernels']}"
        lines.append(
            f"| {row} | {spread(row, 'onnx accuracy')} | {spread(row, 'litert accuracy')} | {agreement} | {kernels} "
            f"| {figures['onnx bytes']:,} / {figures['litert bytes']:,} "
            f"| {latency[row, 'onnx']:.1f} / {latency[row, 'litert']:.1f} |"
        )
    step = result["step"]
    lines += [
        "",
        f"A quantisation-aware step costs {step['aware']:.2f} × the float step; once ranges and statistics are frozen "
        f"{step['frozen']:.2f} ×.",
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--datasets", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--quick", action="store_true", help="256 examples, one epoch; writes nothing")
    arguments = parser.parse_args()
    print(machine(), flush=True)
    tables = [table(name, measure(name, arguments.seeds, arguments.quick)) for name in arguments.datasets]
    text = "\n\n".join([f"Machine: {json.dumps(machine())}; one thread, one example a call.", *tables])
    print(text)
    if not arguments.quick:
        content = DOCUMENT.read_text()
        before, after = content.split(START)[0], content.split(END)[1]
        DOCUMENT.write_text(f"{before}{START}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
