"""What int8 costs a tiny student: quantised after training, trained for it on labels, and distilled for it.

    python -m benchmarks.quantization [--write] [--datasets mnist spoken_digit cifar100] [--seeds 3]
        [--only training timing]

makes the tables of docs/quantization.md, one for each dataset that was run; without `--datasets` those are mnist and
spoken_digit. The two phases leave what they found under runs/quantization, training after every seed: a killed run
goes on, and a folder that is gone begins anew. The task: a depthwise-separable ConvNet of 7
(digits), 15 (spoken digits) or 53 thousand parameters (CIFAR-100), the kind that quantisation hurts most, trained on
12,000 images or on the 2,400 training recordings. The students of a seed start from the same weights, see the
same batches and train for as many epochs; the last ones are float for the float students and quantised for the
quantisation-aware ones. Accuracies are of the last epoch, on what no training saw: the validation and the official test
split together, since nothing is chosen by the one. Agreement is what `deploy.verify` counts, over every example that
there is.
"""

import argparse
import json
import os
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

from benchmarks.page import write_part
from benchmarks.rounds import interleave, machine, median_ratio
from keras_distill import Distiller, data, deploy
from keras_distill._kit import kit_module
from keras_distill.data import networks
from keras_distill.deploy.calibration import choose_calibration
from keras_distill.deploy.integer_onnx import kernel_types
from keras_distill.deploy.verify import open_artifact
from keras_distill.losses import SoftTargets
from keras_distill.quantize_aware import FreezeRanges, freeze, quantize_aware

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs/quantization"
PHASES = ("training", "timing")
FLOAT, AFTER = "float, distilled", "post-training int8 of it"
LABELS, DISTILLED = "quantisation-aware, labels", "quantisation-aware, distilled"


@dataclass(frozen=True)
class Recipe:
    """How the networks of one dataset are trained: `float_epochs`, then `last_epochs`, float or quantised.

    The last epochs begin at `last_rate`. Where few examples judge, a small one: the int8 student then differs from the
    float one by its rounding, and not by another way through the training.
    """

    num_items: int
    teacher_epochs: int
    float_epochs: int
    last_epochs: int
    batch_size: int
    last_rate: float = 1e-3
    temperature: float = 4.0


RECIPES = {
    "mnist": Recipe(12_000, 8, 12, 6, 64),
    "spoken_digit": Recipe(2_400, 15, 30, 10, 32, last_rate=3e-4),
    "cifar100": Recipe(12_000, 15, 16, 6, 64),
}


def student_of(dataset):
    """A depthwise-separable ConvNet that knows where things are: it ends in a flattened map, not in its mean."""
    inputs = hidden = keras.Input(dataset.input_shape, name="inputs")
    hidden = rectified(layers.Conv2D(12, 3, strides=2, padding="same", use_bias=False)(hidden))
    for width in (24, 32):
        hidden = rectified(layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False)(hidden))
        hidden = rectified(layers.Conv2D(width, 1, use_bias=False)(hidden))
    logits = layers.Dense(dataset.num_classes, name="logits")(layers.Flatten()(hidden))
    return keras.Model(inputs, logits, name="student")


def rectified(hidden):
    return layers.ReLU()(layers.BatchNormalization()(hidden))


def logits_of(model, inputs):
    return model.predict(inputs, batch_size=500, verbose=0)


def train(model, dataset, recipe, epochs, rate, soft_targets=None, callbacks=()):
    """Trains in place, on labels or on the teacher's stored soft targets, to a rate of zero."""
    steps = epochs * -(-len(dataset.train) // recipe.batch_size)
    trained, labels = model, dataset.train.labels
    if soft_targets is not None:
        trained = Distiller(None, model, SoftTargets(temperature=recipe.temperature), student_loss_weight=0.1)
        labels = {"labels": labels, "soft_targets": soft_targets}
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
    # Compiling with XLA takes longer than these few epochs gain from it.
    trained.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
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
        begun = train(student_of(dataset), dataset, recipe, recipe.float_epochs, 3e-3, targets)
        calibration = dataset.train.inputs[np.random.default_rng(seed).permutation(len(dataset.train))[:512]]
        quantized = quantize_aware(begun, calibration)
        settling = [FreezeRanges(num_last_epochs=1)]
        for kind, model, callbacks in (("float", copy_of(begun), []), ("quantisation-aware", quantized, settling)):
            keras.utils.set_random_seed(1000 + seed)
            models[f"{kind}, {name}"] = train(
                model, dataset, recipe, recipe.last_epochs, recipe.last_rate, targets, callbacks
            )
    return models


def artifacts_of(models, dataset, folder):
    """{row: {runtime: file}} of all but the float student on labels, and of the float one quantised afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    calibration = choose_calibration({"inputs": dataset.train.inputs})
    files = {}
    for row in (FLOAT, LABELS, DISTILLED):
        stem = folder / row.replace(", ", "-")
        files[row] = {
            "onnx": deploy.to_onnx(models[row], f"{stem}.onnx"),
            "litert": deploy.to_litert(models[row], f"{stem}.tflite"),
        }
    stem = folder / "post-training-int8"
    files[AFTER] = {
        "onnx": deploy.quantize_onnx(files[FLOAT]["onnx"], f"{stem}.onnx", calibration=calibration),
        "litert": deploy.to_litert(models[FLOAT], f"{stem}.tflite", quantization="int8", calibration=calibration),
    }
    return files


def figures_of(files, models, dataset):
    """{row: {figure: value}}: accuracy and agreement in each runtime, as the ship gate finds them; bytes, kernels."""
    held_out = [np.concatenate(pair) for pair in zip(*(arrays_of(dataset, part) for part in HELD_OUT), strict=True)]
    everything = np.concatenate([dataset.train.inputs, held_out[0]])
    rows = {}
    for row in ("float, labels", FLOAT, AFTER, LABELS, DISTILLED):
        model = models[FLOAT if row == AFTER else row]
        answers = logits_of(model, held_out[0])
        figures = {"keras": float(np.mean(answers.argmax(-1) == held_out[1])), "parameters": model.count_params()}
        for runtime, path in files.get(row, {}).items():
            precision = "float32" if row == FLOAT else "int8"
            judged = deploy.verify(model, path, held_out[0], held_out[1], precision=precision)
            compared = deploy.verify(model, path, everything, precision=precision)
            types = kernel_types(path)
            figures |= {
                f"{runtime} accuracy": judged.accuracy,
                f"{runtime} agreement": compared.argmax_agreement,
                f"{runtime} bytes": Path(path).stat().st_size,
                f"{runtime} integer kernels": sum(kind in ("int8", "uint8") for kind in types.values()),
                f"{runtime} kernels": len(types),
            }
        rows[row] = figures
    return rows


HELD_OUT = ("validation", "test")


def arrays_of(dataset, part):
    split = getattr(dataset, part)
    return split.inputs, split.labels


def load(name, quick):
    """The dataset, with as many training items as the recipe takes, and the recipe."""
    dataset, recipe = data.load(name), RECIPES[name]
    splits = {part: getattr(dataset, part) for part in ("train", *HELD_OUT)}
    splits["train"] = splits["train"].take(np.arange(min(recipe.num_items, len(splits["train"]))))
    if quick:
        splits = {part: split.take(np.arange(200)) for part, split in splits.items()}
        recipe = replace(recipe, teacher_epochs=1, float_epochs=1, last_epochs=1)
    return replace(dataset, **splits), recipe


def measure_training(name, num_seeds, quick, kept):
    """Accuracies, agreements and sizes of every seed, those before this run too; files stay, to be timed."""
    dataset, recipe = load(name, quick)
    items = {"trained_on": len(dataset.train), "judged_on": sum(len(getattr(dataset, part)) for part in HELD_OUT)}
    same = kept if {key: kept.get(key) for key in items} == items else {}
    seeds, teachers = same.get("seeds", []), same.get("teachers", [])
    for seed in range(len(seeds), num_seeds):
        keras.utils.set_random_seed(100 + seed)
        teacher = networks.convnet(dataset.input_shape, dataset.num_classes, (32, 64), dropout=0.3)
        train(teacher, dataset, recipe, recipe.teacher_epochs, 2e-3)
        inputs, labels = arrays_of(dataset, "test")
        teachers.append(float(np.mean(logits_of(teacher, inputs).argmax(-1) == labels)))
        models = students(dataset, recipe, seed, logits_of(teacher, dataset.train.inputs))
        files = artifacts_of(models, dataset, RUNS / name / f"seed-{seed}")
        seeds.append(figures_of(files, models, dataset))
        print(json.dumps({"dataset": name, "seed": seed, "teacher": teachers[-1]} | seeds[-1]), flush=True)
        yield {"machine": machine(), "teachers": teachers, "seeds": seeds, **items}


def measure_timing(name, quick):
    """Latency of the files that training left of its first seed, and the cost of a training step."""
    dataset, recipe = load(name, quick)
    one = {"inputs": dataset.test.inputs[:1]}
    steps = {}
    for path in sorted((RUNS / name / "seed-0").glob("*.*")):
        steps[path.name] = partial(open_artifact(path), one)
    latency = {file: figures["p50_ms"] * 1e3 for file, figures in kit_module().measure(steps).items()}
    return {"machine": machine(), "latency": latency, "step": step_ratios(dataset, recipe)}


def step_ratios(dataset, recipe, num_steps=40):
    """A quantisation-aware distillation step over a float one, in the processor's time; and with all frozen."""
    inputs = dataset.train.inputs[: num_steps * recipe.batch_size]
    labels = dataset.train.labels[: len(inputs)]
    targets = {"labels": labels, "soft_targets": 9.0 * np.eye(dataset.num_classes, dtype="float32")[labels]}
    keras.utils.set_random_seed(0)
    student = student_of(dataset)
    frozen = quantize_aware(student, inputs[:128])
    freeze(frozen)
    ratios = {}
    for compiler, jit_compile in (("XLA", True), ("no XLA", False)):
        runs = {}
        models = {"float": copy_of(student), "aware": quantize_aware(student, inputs[:128]), "frozen": frozen}
        for name, model in models.items():
            distiller = Distiller(None, model, SoftTargets(temperature=recipe.temperature))
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            distiller.compile(keras.optimizers.Adam(), loss, jit_compile=jit_compile)
            runs[name] = partial(distiller.fit, inputs, targets, batch_size=recipe.batch_size, verbose=0)
        seconds = interleave(runs, num_rounds=9, num_warm_up=2, clock=time.process_time)
        ratios[compiler] = {name: median_ratio(seconds, name, "float") for name in ("aware", "frozen")}
    return ratios


def table(name, training, timing):
    """The figures of one dataset as Markdown."""
    seeds, latency = training["seeds"], timing["latency"]
    stems = {FLOAT: "float-distilled", AFTER: "post-training-int8"}

    def spread(row, figure):
        values = 100.0 * np.array([rows[row][figure] for rows in seeds])
        return f"{values.mean():.2f} ± {values.std(ddof=1) if len(values) > 1 else 0.0:.2f}"

    lines = [
        f"### {name}: {seeds[0][FLOAT]['parameters']:,} parameters, trained on {training['trained_on']:,} examples, "
        f"judged on {training['judged_on']:,}",
        "",
        f"{len(seeds)} seeds, mean ± standard deviation; the teachers reach "
        f"{100 * np.mean(training['teachers']):.2f} % of the test set.",
        "",
        "| student | accuracy: Keras, onnxruntime, LiteRT (%) | least agreement with Keras: onnxruntime, LiteRT (%) "
        "| integer kernels | bytes: ONNX, LiteRT | latency: onnxruntime, LiteRT (µs) |",
        "|---|---|---|---|---|---|",
    ]
    for row, figures in seeds[0].items():
        if "onnx bytes" not in figures:
            lines.append(f"| {row} | {spread(row, 'keras')} | – | – | – | – |")
            continue
        accuracy = ", ".join(spread(row, f"{key}") for key in ("keras", "onnx accuracy", "litert accuracy"))
        agreement = ", ".join(
            f"{100 * min(rows[row][f'{runtime} agreement'] for rows in seeds):.2f}" for runtime in ("onnx", "litert")
        )
        kernels = f"{figures['onnx integer kernels']}, {figures['litert integer kernels']} of {figures['onnx kernels']}"
        stem = stems.get(row, row.replace(", ", "-"))
        times = f"{latency[f'{stem}.onnx']:.1f}, {latency[f'{stem}.tflite']:.1f}"
        if row == AFTER:
            accuracy = accuracy.split(", ", 1)[1]
            accuracy = f"–, {accuracy}"
        sizes = f"{figures['onnx bytes']:,}, {figures['litert bytes']:,}"
        lines.append(f"| {row} | {accuracy} | {agreement} | {kernels} | {sizes} | {times} |")
    step = timing["step"]
    after = [loss_of(seeds, AFTER, runtime) for runtime in ("onnx", "litert")]
    aware = [loss_of(seeds, DISTILLED, runtime) for runtime in ("onnx", "litert")]
    lines += [
        "",
        f"Against the distilled float student (onnxruntime, LiteRT): quantising afterwards loses {after[0]:.2f} and "
        f"{after[1]:.2f} points, distilling as int8 {aware[0]:.2f} and {aware[1]:.2f}.",
        "",
        f"A quantisation-aware step costs {step['no XLA']['aware']:.2f} × the float step without XLA, Keras's default "
        f"on a CPU ({step['XLA']['aware']:.2f} × under XLA); once ranges and statistics are frozen "
        f"{step['no XLA']['frozen']:.2f} × ({step['XLA']['frozen']:.2f} ×).",
    ]
    where = ", ".join(f"{key} {value}" for key, value in timing["machine"].items())
    lines += ["", f"Latency is that of one example on one thread; {where}."]
    return "\n".join(lines)


def loss_of(seeds, row, runtime):
    """Points of accuracy that a row loses in a runtime against the distilled float student, the mean over seeds."""
    return 100.0 * float(np.mean([rows[FLOAT]["keras"] - rows[row][f"{runtime} accuracy"] for rows in seeds]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--datasets", nargs="+", default=["mnist", "spoken_digit"], choices=list(RECIPES))
    parser.add_argument("--only", nargs="*", default=PHASES, help=f"of {PHASES}; none rewrites the page alone")
    parser.add_argument("--quick", action="store_true", help="200 examples, one epoch: tries the machinery")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/quantization.md")
    arguments = parser.parse_args()
    if arguments.quick and arguments.write:
        parser.error("--quick proves nothing: it writes no page")
    if unknown := set(arguments.only) - set(PHASES):
        parser.error(f"--only must be among {', '.join(PHASES)}; got {', '.join(sorted(unknown))}")
    RUNS.mkdir(parents=True, exist_ok=True)
    for name in arguments.datasets:
        found = RUNS / f"{name}.json"
        result = json.loads(found.read_text()) if found.is_file() else {}
        if "training" in arguments.only:
            for so_far in measure_training(name, arguments.seeds, arguments.quick, result.get("training", {})):
                result["training"] = so_far
                found.write_text(json.dumps(result, indent=1))
        if "timing" in arguments.only:
            result["timing"] = measure_timing(name, arguments.quick)
        found.write_text(json.dumps(result, indent=1))
        if not {"training", "timing"} <= set(result):
            continue
        text = table(name, result["training"], result["timing"])
        print(text)
        if arguments.write:
            write_part("quantization.md", name, text)


if __name__ == "__main__":
    main()
