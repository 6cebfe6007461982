"""The whole journey on real data, in minutes: teacher, student, distilled student, export, proof.

Trains a teacher, the same small student once on labels and once on the teacher's soft targets, a few
times over; exports the distilled one to ONNX and LiteRT, checks both on the whole test set, times
everything on one thread, and leaves a folder with the models, results.json, report.html and front.svg.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_distill.report.verdict import Verdict

SUMMARY = "see it work: teach, distil, export, measure; minutes on a laptop"

FORMAT_VERSION = 2
# The one example a call that every runtime is timed with.
ARTIFACT_RUNTIMES = {"onnx": "onnxruntime", "tflite": "LiteRT"}
PACKAGES = ("tensorflow", "keras", "onnxruntime", "ai-edge-litert", "numpy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("--dataset", choices=("digits", "mnist"), default="digits", help="what to learn (default: %(default)s)")
    add("--seeds", type=int, default=3, help="how often both students are trained (default: %(default)s)")
    add("--out", metavar="DIR", help="the folder to write (default: runs/demo-DATASET)")
    add("--quick", action="store_true", help="two epochs of everything: tries the machinery, proves nothing")


def run(arguments: argparse.Namespace) -> int:
    """Trains, exports, measures, writes the folder and prints the table."""
    from keras_distill._checks import check_count
    from keras_distill._files import whole_folder

    check_count("--seeds", arguments.seeds)
    out = Path(arguments.out or f"runs/demo-{arguments.dataset}")
    check_replaceable(out)

    from rich.console import Console

    from keras_distill import data
    from keras_distill.cli import demo_report
    from keras_distill.cli.demo_recipe import RECIPES, quick

    console = Console()
    # Opened before minutes of training, so that an output that cannot be written is said now.
    with whole_folder(out) as folder:
        dataset = data.load(arguments.dataset)
        recipe = quick(RECIPES[arguments.dataset]) if arguments.quick else RECIPES[arguments.dataset]
        results, evidence = demonstrate(dataset, recipe, arguments.seeds, folder, console)
        results["quick"] = arguments.quick
        (folder / "results.json").write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
        (folder / "front.svg").write_text(demo_report.front(results), encoding="utf-8")
        (folder / "report.html").write_text(demo_report.report(results, evidence, dataset), encoding="utf-8")
    console.print(demo_report.models_table(results))
    console.print(demo_report.runtimes_table(results))
    console.print(results["verdict"]["sentence"], highlight=False)
    console.print(f"wrote {out}/ in {results['seconds']['total']:.0f} s: open {out / 'report.html'} in a browser")
    return 0


def check_replaceable(out: Path) -> None:
    """Raises `ValueError` where `out` is something that an earlier demo did not write: it would be replaced."""
    from keras_distill._checks import error_message

    if out.is_dir() and (not any(out.iterdir()) or (out / "results.json").is_file()):
        return
    if out.exists() or out.is_symlink():
        received = f"{out}, which holds something else"
        raise ValueError(
            error_message("--out must name a new folder or that of an earlier demo", received, "Choose another name.")
        )


def demonstrate(dataset: Any, recipe: Any, num_seeds: int, folder: Path, console: Any) -> tuple[dict, dict]:
    """Does everything and writes the student's three files into `folder`.

    Args:
        dataset: a `keras_distill.data.Dataset`.
        recipe: a `demo_recipe.Recipe`.
        num_seeds: how often both students are trained.
        folder: where the student's files go.
        console: a `rich.console.Console`, for the progress.

    Returns:
        What `results.json` holds (`docs/demo.md` names every key), and the arrays that the figures need.
    """
    import numpy as np

    from keras_distill._inputs import only_array
    from keras_distill.cli import demo_recipe
    from keras_distill.models.inference import all_logits
    from keras_distill.report import metrics
    from keras_distill.report.verdict import compare_models

    start = time.monotonic()
    seconds: dict[str, float] = {}
    test, transfer = dataset.test, demo_recipe.transfer_set(dataset, recipe)

    with _phase(console, seconds, "teacher", recipe.num_members * recipe.teacher_epochs) as advance:
        teacher = demo_recipe.train_teacher(dataset, recipe, advance)
    with _phase(console, seconds, "soft targets", 1) as advance:
        soft_targets = demo_recipe.soft_targets_of(teacher, only_array(transfer.train.inputs, "the demo"))
        teacher_logits = all_logits(teacher, test.inputs)
        advance()
    with _phase(console, seconds, "students on labels", num_seeds * recipe.student_epochs) as advance:
        twins = [demo_recipe.train_on_labels(transfer, recipe, seed, advance) for seed in range(num_seeds)]
    with _phase(console, seconds, "students distilled", num_seeds * recipe.student_epochs) as advance:
        students = [demo_recipe.distil(transfer, soft_targets, recipe, seed, advance) for seed in range(num_seeds)]

    twin_logits = [all_logits(model, test.inputs) for model in twins]
    student_logits = [all_logits(model, test.inputs) for model in students]
    # Which student ships is settled on validation data: the test set only reports.
    validation = dataset.validation
    likelihoods = [
        metrics.negative_log_likelihood(all_logits(model, validation.inputs), validation.labels) for model in students
    ]
    shipped = likelihoods.index(min(likelihoods))

    with _phase(console, seconds, "export and parity", 4) as advance:
        files = _export(teacher, students[shipped], dataset, folder, advance)
    with _phase(console, seconds, "latency, one thread", 1) as advance:
        latencies = _latencies(files["paths"], test.inputs[:1])
        files["scratch"].cleanup()
        advance()
    seconds["total"] = time.monotonic() - start

    models = {
        "teacher": _figures(teacher, [teacher_logits], teacher_logits, test.labels),
        "student_on_labels": _figures(twins[0], twin_logits, teacher_logits, test.labels),
        "student_distilled": _figures(students[0], student_logits, teacher_logits, test.labels),
    }
    comparison = compare_models(
        test.labels, np.stack(student_logits), np.stack(twin_logits), teacher_logits=teacher_logits
    )
    results = {
        "format_version": FORMAT_VERSION,
        "dataset": _describe(dataset) | {"num_seen_by_students": len(transfer.train)},
        "recipe": vars(recipe) | {"num_seeds": num_seeds},
        "models": models,
        "verdict": verdict(models, comparison),
        "shipped_seed": shipped,
        "artifacts": files["artifacts"],
        "runtimes": [row | latencies[row["key"]] for row in files["runtimes"]],
        "machine": _machine(),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    evidence = {
        "teacher_logits": teacher_logits,
        "teacher_targets": demo_recipe.soft_targets_of(teacher, test.inputs),
        "student_on_labels_logits": twin_logits[shipped],
        "student_distilled_logits": student_logits[shipped],
    }
    return results, evidence


def verdict(models: dict[str, Any], comparison: "Verdict") -> dict[str, Any]:
    """Whether distillation helped, in one word, in figures and in an honest sentence.

    Args:
        models: `results["models"]`.
        comparison: of the distilled students with their twins on labels, on the test examples.
    """
    hard, soft = models["student_on_labels"], models["student_distilled"]
    pairs = list(zip(hard["num_errors"]["per_seed"], soft["num_errors"]["per_seed"], strict=True))
    num_better = sum(distilled < labelled for labelled, distilled in pairs)
    saved = hard["num_errors"]["mean"] - soft["num_errors"]["mean"]
    gap = hard["num_errors"]["mean"] - models["teacher"]["num_errors"]["mean"]
    says = {
        "BETTER": "The distilled student beats the same student trained on labels",
        "WORSE": "The distilled student is worse than the same student trained on labels",
        "NO BETTER": "The distilled student does not beat the same student trained on labels",
        "INCONCLUSIVE": "Whether the distilled student beats the same student trained on labels cannot be told",
    }[comparison.word]
    points = [100 * bound for bound in (comparison.errors.low, comparison.errors.high)]
    sentence = (
        f"{comparison.word}. {says}: {soft['num_errors']['mean']:.1f} errors against {hard['num_errors']['mean']:.1f} "
        f"of {comparison.num_items:,}, fewer with {num_better} of {len(pairs)} seeds; 95 % interval of the difference "
        f"{points[0]:+.2f} to {points[1]:+.2f} points."
    )
    if saved > 0 and gap > 0:
        sentence += f" It closes {saved / gap:.0%} of the distance to its teacher."
    return comparison.to_json() | {
        "num_seeds_better": num_better,
        "errors_saved": saved,
        "gap_closed": saved / gap if gap > 0 else None,
        "sentence": " ".join([sentence, *comparison.reasons]),
    }


@contextmanager
def _phase(console: Any, seconds: dict[str, float], name: str, total: int) -> Iterator[Callable[[], None]]:
    """Shows a bar while one phase works and keeps its seconds; yields what moves the bar on."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    start = time.monotonic()
    columns = (TextColumn("{task.description:<20}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(name, total=total)
        yield lambda: progress.advance(task)
    seconds[name.replace(",", "").replace(" ", "_")] = time.monotonic() - start


def _figures(model: Any, logits_of_seeds: list, teacher_logits: Any, labels: Any) -> dict[str, Any]:
    """What `results.json` says of a model: each figure's mean, spread and value per seed."""
    from keras_distill.report import metrics

    errors = [metrics.error_rate(logits, labels) for logits in logits_of_seeds]
    return {
        "num_parameters": model.count_params(),
        "num_errors": _spread([round(error * len(labels)) for error in errors]),
        "error_rate": _spread(errors),
        "error_rate_interval_95": [
            list(metrics.wilson_interval(round(error * len(labels)), len(labels))) for error in errors
        ],
        "negative_log_likelihood": _spread(
            [metrics.negative_log_likelihood(logits, labels) for logits in logits_of_seeds]
        ),
        "expected_calibration_error": _spread(
            [metrics.expected_calibration_error(logits, labels) for logits in logits_of_seeds]
        ),
        "agreement_with_teacher": _spread([metrics.agreement(logits, teacher_logits) for logits in logits_of_seeds]),
    }


def _spread(values: list) -> dict[str, Any]:
    import numpy as np

    # The sample's standard deviation; one seed has none.
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "per_seed": values}


def _export(teacher: Any, student: Any, dataset: Any, folder: Path, advance: Callable[[], None]) -> dict[str, Any]:
    """Writes the files of both models, the student's to stay, and holds each artifact to its Keras model."""
    from keras_distill import deploy
    from keras_distill._checks import error_message

    scratch = tempfile.TemporaryDirectory(prefix="keras-distill-demo-")
    paths: dict[str, dict[str, str]] = {}
    artifacts: dict[str, dict[str, Any]] = {}
    runtimes = []
    for role, model, home in (("teacher", teacher, Path(scratch.name)), ("student", student, folder)):
        keras_file = home / f"{role}.keras"
        # Without the optimizer: the demo ships a model, not a training.
        model.save(keras_file, include_optimizer=False)
        paths[role] = {"keras": str(keras_file)}
        runtimes.append(_runtime(role, model, "Keras", keras_file))
        for suffix, convert in (("onnx", deploy.to_onnx), ("tflite", deploy.to_litert)):
            path = home / f"{role}.{suffix}"
            convert(model, path, class_names=dataset.class_names, licence=dataset.licence)
            verification = deploy.verify(model, path, dataset.test.inputs, dataset.test.labels)
            if not verification.holds:
                raise ValueError(
                    error_message(f"{path.name} must be as good as the Keras model", "; ".join(verification.problems))
                )
            paths[role][suffix] = str(path)
            runtimes.append(_runtime(role, model, ARTIFACT_RUNTIMES[suffix], path))
            artifacts[path.name] = {"bytes": path.stat().st_size, "parity": verification.to_json()}
            advance()
    return {"paths": paths, "artifacts": artifacts, "runtimes": runtimes, "scratch": scratch}


def _runtime(role: str, model: Any, runtime: str, path: Path) -> dict[str, Any]:
    return {
        "key": f"{role} {path.suffix.removeprefix('.')}",
        "model": role,
        "runtime": runtime,
        "num_parameters": model.count_params(),
        "bytes": path.stat().st_size,
    }


def _latencies(paths: dict[str, dict[str, str]], example: Any) -> dict[str, dict[str, float]]:
    """Times all models in a process of its own: TensorFlow's number of threads cannot change once it has run."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(time_on_one_thread, paths, example).result()


def time_on_one_thread(paths: dict[str, dict[str, str]], example: Any) -> dict[str, dict[str, float]]:
    """Times every model on one thread and one example a call, in interleaved rounds; runs in a fresh process.

    Args:
        paths: `{"teacher": {"keras": …, "onnx": …, "tflite": …}, "student": …}`.
        example: one input with its batch axis.

    Returns:
        `{"teacher keras": {"p50_ms": …, "p90_ms": …, "p99_ms": …, …}, …}`.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    import keras

    from keras_distill import teachers  # noqa: F401  (Keras must know Ensemble to load it)
    from keras_distill._kit import kit_module
    from keras_distill.deploy.trace import signature_of, single_call
    from keras_distill.deploy.verify import as_feed, open_artifact

    kit = kit_module()
    steps, opened = {}, []
    for role, files in paths.items():
        model = keras.saving.load_model(files["keras"])
        signature = signature_of(model, example)
        steps[f"{role} keras"] = single_call(model, signature.feed(example), signature)
        for suffix in ARTIFACT_RUNTIMES:
            artifact = open_artifact(files[suffix])
            opened.append(artifact)
            steps[f"{role} {suffix}"] = artifact.step(as_feed(artifact, example))
    return kit.measure(steps)


def _describe(dataset: Any) -> dict[str, Any]:
    splits = {name: len(getattr(dataset, name)) for name in ("train", "validation", "test")}
    return {"name": dataset.name, "num_classes": dataset.num_classes, "licence": dataset.licence} | {
        f"num_{name}": count for name, count in splits.items()
    }


def _machine() -> dict[str, Any]:
    from keras_distill._kit import kit_module

    return {
        "processor": kit_module().processor_name(),
        "num_cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }
