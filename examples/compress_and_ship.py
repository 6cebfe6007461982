"""The user's journey: an ensemble of ConvNets becomes a bundle of some kilobytes that a phone runs in microseconds.

What: of MNIST's images 1,000 have labels, as where labels cost money and images do not. Three ConvNets are trained on
those and averaged; what they say of all images, in four positions, is stored once. A small depthwise-separable student
learns from the store alone, its twin from the 1,000 labels, both from the same weights with as many steps and the same
shifts; the distilled student goes through the ship gate. The student that ships is the seed of least NLL on validation
data; all figures are of the test set, after the last epoch.

    KERAS_DISTILL_DATA=… python -m examples.compress_and_ship --out runs/compress-and-ship
    python -m examples.compress_and_ship --quick --out runs/quick      # digits, two epochs: tries the machinery

Machine and minutes: 2 cores of an AMD EPYC, 13 minutes, 10 of one core. Expect 233 errors of the ensemble, 558 ± 23 of
the student on labels and 280 ± 5 of it distilled, 200 times smaller and 9 to 11 times faster than the ensemble. Goals,
printed with the table: fewer errors than on labels in every seed, and each file within its budgets. Where every
image has its label the same student gains nothing: it is as wrong on its training images as on others, and soft targets
mend only what is overfitted.

Writes to `--out`: `results.json`, `trade_off.svg`, `store/`, `student.keras`, `bundle/` (open its report.html) and
`teacher-bundle/`, the ensemble through the same gate, so that both are compared in the runtimes that serve them.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_distill as kd
from keras_distill.data import networks
from keras_distill.data.dataset import stratified_positions
from keras_distill.deploy import Budgets, Provenance, read_bundle, ship
from keras_distill.report import metrics, plots
from keras_distill.report.verdict import compare_models
from keras_distill.targets import Augmentation, Shift, attach, label

TEMPERATURE = 2.0
BUDGETS = Budgets(max_accuracy_drop=0.002, max_size=100_000, max_latency_ms=2.0)


@dataclass(frozen=True)
class Recipe:
    """How much of everything: the experiment, or a quick try of its machinery."""

    data: str
    num_labels: int
    num_members: int
    teacher_epochs: int
    student_widths: tuple[int, ...]
    student_epochs: int
    batch_size: int
    seeds: tuple[int, ...]
    targets: tuple[str, ...] | None
    teacher_targets: tuple[str, ...]


FULL = Recipe("mnist", 1000, 3, 150, (8, 16, 32, 64), 6, 128, (0, 1, 2), None, ("onnx", "litert"))
QUICK = Recipe("digits", 200, 2, 2, (8, 16, 32), 2, 32, (0, 1), ("onnx",), ("onnx",))


def compiled(model: keras.Model, num_steps: int, learning_rate: float) -> keras.Model:
    """Compiles with Adam, whose rate falls to zero along a cosine, and cross-entropy on logits."""
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, num_steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, steps_per_execution=8)
    return model


def train_teacher(dataset: kd.data.Dataset, labelled: kd.data.Split, recipe: Recipe) -> kd.Ensemble:
    """ConvNets of different seeds, trained on the labelled images, shifted and with dropout, and averaged."""
    members, train, batch_size = [], labelled, 2 * recipe.batch_size
    for seed in range(recipe.num_members):
        keras.utils.set_random_seed(1000 + seed)
        member = networks.convnet(dataset.input_shape, dataset.num_classes, (32, 64), dropout=0.25)
        # Only training shifts the images; the member that joins the ensemble has no such layer.
        images = keras.Input(dataset.input_shape)
        shifted = keras.layers.RandomTranslation(0.08, 0.08, fill_mode="constant")(images)
        model = keras.Model(images, member(shifted))
        num_steps = recipe.teacher_epochs * -(-len(train) // batch_size)
        compiled(model, num_steps, 2e-3).fit(
            train.inputs, train.labels, batch_size=batch_size, epochs=recipe.teacher_epochs, verbose=0
        )
        members.append(member)
    return kd.Ensemble(members, name="teacher")


def train_students(
    dataset: kd.data.Dataset, stores: dict[str, object], labelled: kd.data.Split, recipe: Recipe, seed: int
) -> dict[str, keras.Model]:
    """The same student twice, from the same weights: on the labelled images' labels, and on the store of all images."""
    steps_per_epoch = -(-len(dataset.train) // recipe.batch_size)
    num_steps = recipe.student_epochs * steps_per_epoch
    students = {}
    for name, split in (("labels", labelled), ("distilled", dataset.train)):
        batches = attach(split, stores[name], batch_size=recipe.batch_size, seed=seed)
        keras.utils.set_random_seed(seed)
        student = networks.separable_convnet(
            dataset.input_shape, dataset.num_classes, recipe.student_widths, name="student"
        )
        if name == "labels":
            trained, examples = student, batches.map(lambda images, targets: (images, targets["labels"]))
        else:
            # The labels lie in the data, and weigh nothing.
            trained = kd.Distiller(None, student, kd.losses.SoftTargets(TEMPERATURE), student_loss_weight=0.0)
            examples = batches
        epochs = -(-num_steps // -(-len(split) // recipe.batch_size))
        compiled(trained, num_steps, 5e-3).fit(examples, epochs=epochs, shuffle=False, verbose=0)
        students[name] = student
    return students


def logits_of(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """A model's logits for all inputs, `(num_items, num_classes)`."""
    starts = range(0, len(inputs), 1000)
    return np.concatenate([keras.ops.convert_to_numpy(model(inputs[at : at + 1000], training=False)) for at in starts])


def spread(values: list[float]) -> dict[str, object]:
    """Mean, standard deviation of the sample, and every seed's value."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "per_seed": [float(value) for value in values]}


def run(recipe: Recipe, out: Path) -> dict[str, object]:
    """Does everything, and returns what `results.json` holds."""
    start = time.monotonic()
    dataset = kd.data.load(recipe.data)
    test, validation = dataset.test, dataset.validation

    def error_rate(model: keras.Model, split: kd.data.Split) -> float:
        return metrics.error_rate(logits_of(model, split.inputs), split.labels)

    def errors(model: keras.Model) -> int:
        return round(error_rate(model, test) * len(test))

    labelled = dataset.train.take(stratified_positions(dataset.train.labels, recipe.num_labels))
    say(f"teacher: {recipe.num_members} ConvNets on {len(labelled):,} labelled images of {dataset.name}")
    teacher = train_teacher(dataset, labelled, recipe)
    say("store: what they say of every image in four positions")
    options = {"augmentation": Augmentation(Shift(1)), "views": 4, "temperature": TEMPERATURE, "progress": False}
    stores = {
        "distilled": label(teacher, dataset.train, out / "store", **options),
        # For its shifts alone: the twin gets no soft targets.
        "labels": label(teacher, labelled, out / "labelled-store", **options),
    }
    pairs = []
    for seed in recipe.seeds:
        say(f"student and its twin on labels, seed {seed}")
        pairs.append(train_students(dataset, stores, labelled, recipe, seed))
    likelihoods = [
        metrics.negative_log_likelihood(logits_of(pair["distilled"], validation.inputs), validation.labels)
        for pair in pairs
    ]
    chosen = int(np.argmin(likelihoods))
    student, twin = pairs[chosen]["distilled"], pairs[chosen]["labels"]
    student.save(out / "student.keras")

    # Two epochs teach some of these networks nothing, and the gate would rightly say so.
    min_accuracy = 0.0 if recipe is QUICK else None
    shipments = {}
    wishes = {"licence": dataset.licence, "source": "student.keras"}
    for name, model, targets in (
        ("teacher", teacher, recipe.teacher_targets),
        ("student", student, recipe.targets),
    ):
        say(f"{name}: through the ship gate")
        is_student = name == "student"
        shipment = ship(
            model,
            dataset,
            out / ("bundle" if is_student else "teacher-bundle"),
            provenance=Provenance(name, **wishes) if is_student else Provenance(name),
            targets=targets,
            budgets=replace(BUDGETS if is_student else Budgets(), min_accuracy=min_accuracy),
            teacher=teacher if is_student else None,
            baseline=twin if is_student else None,
        )
        if shipment.out is None:
            raise SystemExit("\n".join(f"{o.target}: {'; '.join(o.reasons)}" for o in shipment.outcomes if not o.holds))
        shipments[name] = read_bundle(shipment.out)

    figures = {
        "teacher": [errors(teacher)],
        "labels": [errors(pair["labels"]) for pair in pairs],
        "distilled": [errors(pair["distilled"]) for pair in pairs],
    }
    fits = {
        f"wrong of the {'test' if split is test else 'training'} images: {kind}": [
            100 * error_rate(pair[name], split) for pair in pairs
        ]
        for name, kind, seen in (("labels", "on labels", labelled), ("distilled", "distilled", dataset.train))
        for split in (seen, test)
    }
    verdict = compare_models(
        test.labels,
        *(np.stack([logits_of(pair[name], test.inputs) for pair in pairs]) for name in ("distilled", "labels")),
        teacher_logits=logits_of(teacher, test.inputs),
    )
    points = trade_off_points(shipments, len(test))
    (out / "trade_off.svg").write_text(plots.trade_off(points), encoding="utf-8")
    return {
        "experiment": "compress-and-ship",
        "command": "python -m examples.compress_and_ship" + (" --quick" if recipe is QUICK else ""),
        "machine": {**shipments["student"]["machine"], "num_cores": os.cpu_count()},
        "minutes": round((time.monotonic() - start) / 60, 1),
        # Of this process and of the conversions that it waited for, on all cores.
        "cpu_minutes": round(sum(os.times()[:4]) / 60, 1),
        "quick": recipe is QUICK,
        "seeds": list(recipe.seeds),
        "data": dataset.name,
        "num_test": len(test),
        "num_parameters": {"teacher": teacher.count_params(), "student": student.count_params()},
        "verdict": verdict.to_json(),
        "shipped_seed": recipe.seeds[chosen],
        "left_out": shipments["student"]["left_out"],
        "rows": rows_of(figures, fits, shipments, recipe.num_members),
    }


def rows_of(
    figures: dict[str, list[int]], fits: dict[str, list[float]], shipments: dict[str, dict], num_members: int
) -> list[dict[str, object]]:
    """The table: accuracy of all seeds, then size and latency of what ships beside the teacher in the same runtime.

    `fits` tells whether a student has overfitted, which soft targets mend, or lacks room for what it is taught.
    """
    teacher, labels = (float(np.mean(figures[name])) for name in ("teacher", "labels"))
    saved = [100 * (a - b) / (a - teacher) if a > teacher else 0.0 for a, b in zip(*pairs_of(figures), strict=True)]

    def row(name: str, values: list[float], unit: str, goal: str | None = None, met: bool | None = None) -> dict:
        return {
            "row": name,
            "paper": None,
            "ours": spread(values),
            "unit": unit,
            "goal": goal,
            "goal_met": met,
            "note": None,
        }

    rows = [
        row(f"teacher: ensemble of {num_members} ConvNets", figures["teacher"], "errors"),
        row("separable student on labels", figures["labels"], "errors"),
        row(
            "the same student, distilled",
            figures["distilled"],
            "errors",
            f"fewer than on labels ({labels:.1f}), in every seed",
            all(better < worse for worse, better in zip(*pairs_of(figures), strict=True)),
        ),
        row("of the distance to the teacher, closed", saved, "%"),
        *[row(name, values, "%") for name, values in fits.items()],
    ]
    first = shipments["teacher"]["artifacts"]
    for target, artifact in shipments["student"]["artifacts"].items():
        # The teacher in the same runtime, in float32: what it would take to serve the ensemble itself.
        large = first.get(target.split("-")[0])
        drop = 100 * artifact["verification"]["accuracy_drop"]
        rows += [
            row(f"{target}: accuracy lost in conversion", [drop], "%", "at most 0.2", drop <= 0.2),
            row(f"{target}: size", [artifact["bytes"]], "bytes", "at most 100,000", artifact["bytes"] <= 100_000),
            row(f"{target}: p50 of one image", [1e3 * artifact["latency"]["p50_ms"]], "µs"),
        ]
        if large:
            rows += [
                row(f"{target}: smaller than the teacher", [large["bytes"] / artifact["bytes"]], "×"),
                row(
                    f"{target}: faster than the teacher",
                    [large["latency"]["p50_ms"] / artifact["latency"]["p50_ms"]],
                    "×",
                ),
            ]
    return rows


def pairs_of(figures: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    """Errors on labels and errors distilled, seed by seed."""
    return figures["labels"], figures["distilled"]


def trade_off_points(shipments: dict[str, dict], num_test: int) -> list[plots.TradeOffPoint]:
    """Teacher and student in every runtime, as the figure shows them."""
    points = []
    for name, manifest in shipments.items():
        for figures in manifest["figures"]:
            if figures["bytes"] is not None:
                error = 100 * figures["num_errors"] / num_test
                label_, latency = f"{name}, {figures['name']}", figures["latency"]["p50_ms"]
                points.append(plots.TradeOffPoint(label_, figures["bytes"], latency, error, name))
    return points


def say(text: str) -> None:
    """What happens now."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def print_table(results: dict[str, object]) -> None:
    """The rows, as a person reads them."""
    for row in results["rows"]:
        ours, verdict = row["ours"], {True: "met", False: "MISSED", None: ""}[row["goal_met"]]
        deviation = "" if ours["std"] is None else f" ± {ours['std']:.1f}"
        goal = f"  goal: {row['goal']}: {verdict}" if row["goal"] else ""
        print(f"{row['row']:<44}{ours['mean']:>10,.2f}{deviation} {row['unit']}{goal}")
    for target, reason in results["left_out"].items():
        print(f"{target} is left out: {reason}")


def main(argv: list[str] | None = None) -> int:
    """Runs the experiment; returns 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/compress-and-ship"), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="try the machinery in under a minute; proves nothing")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = run(QUICK if arguments.quick else FULL, arguments.out)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print_table(results)
    print(f"verdict: {results['verdict']['word']}")
    print(f"{results['minutes']} minutes; open {arguments.out / 'bundle' / 'report.html'}")
    return 0 if results["quick"] or all(row["goal_met"] is not False for row in results["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
