"""Take a student to a bundle that was checked in the runtimes that will serve it, or say why not.

Converts, quantises, reloads every artifact in its runtime, compares it with the Keras model on the whole test set,
measures latency on one thread, holds it to the budgets, and writes the bundle: artifacts, golden answers, report,
model card and a kit that needs no Keras. Exit code 0: every named target holds. Exit code 1: one does not, and
nothing was written.
"""

import argparse
import re
from typing import TYPE_CHECKING

from keras_distill.cli import data_options, model_file

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from keras_distill.deploy import Provenance, Shipment

SUMMARY = "take a student to a checked bundle for phones, servers and browsers"
TARGETS = ("onnx", "onnx-int8", "litert", "litert-int8", "litert-float16", "tflm", "web")
SIZE_UNITS = {"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
TIME_UNITS = {"": 1.0, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("student", metavar="STUDENT.keras", help="the model to ship")
    data_options.add_data_arguments(parser)
    add("--out", required=True, metavar="BUNDLE", help="folder of the bundle; appears whole or not at all")
    why = "all of them must hold (default: onnx and litert must; their int8 variants come along where they are faster)"
    # LiteRT was TensorFlow Lite, and people know it by that name.
    add("--targets", nargs="+", choices=TARGETS, type=lambda text: text.replace("tflite", "litert"), help=why)
    why = "the student's teacher, which it is compared with (.keras, .h5, .onnx, a SavedModel, package.module:function)"
    add("--teacher", metavar="TEACHER", help=why)
    add("--baseline", metavar="B.keras", help="the same student trained on labels alone, likewise")
    add("--max-accuracy-drop", type=float, default=0.005, help="against the Keras student, a fraction (default: 0.005)")
    why = "test accuracy of every artifact, a fraction; 0 ships anything (default: more than chance)"
    add("--min-accuracy", type=float, help=why)
    add("--max-drop-from-teacher", type=float, help="of test accuracy against --teacher, a fraction")
    add("--min-class-recall", type=float, help="share of each class's test examples that is recognised, a fraction")
    add("--max-size", help="of one artifact: 300kB, 1MB, …")
    add("--max-arena", help="of the target tflm: the memory that it works in, by TFLM's own count: 16kB, 32KiB, …")
    add("--max-latency", help="p50 of one example on one thread of this machine: 200us, 2ms, …")
    add("--name", help="the student's name (default: its file's)")
    add("--licence", help="of the student; goes into the artifacts and the card")
    add("--preprocessing", help="what happens to an example before the student sees it, in words")
    add("--web-runtime", metavar="DIR", help="the files of onnxruntime-web (default: fetched once by npm, then cached)")
    model_file.add_loading_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ships. Exit code 1 where a required target does not hold."""
    import hashlib
    import os
    from pathlib import Path

    # Read once, when TensorFlow starts: the Keras models are timed on one thread, as the artifacts are.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    from rich.console import Console

    from keras_distill._files import check_writable
    from keras_distill.cli.student_file import verdict_beside
    from keras_distill.deploy.budgets import Budgets
    from keras_distill.deploy.ship import ship
    from keras_distill.deploy.shipment import Provenance

    check_writable(arguments.out)
    budgets = Budgets(
        arguments.max_accuracy_drop,
        None if arguments.max_size is None else round(quantity("--max-size", arguments.max_size, SIZE_UNITS)),
        None if arguments.max_latency is None else quantity("--max-latency", arguments.max_latency, TIME_UNITS),
        arguments.min_accuracy,
        arguments.max_drop_from_teacher,
        arguments.min_class_recall,
        None if arguments.max_arena is None else round(quantity("--max-arena", arguments.max_arena, SIZE_UNITS)),
    )
    student = model_file.load(arguments.student, arguments)
    baseline = model_file.load(arguments.baseline, arguments) if arguments.baseline else None
    dataset = data_options.load(arguments)
    teacher = model_file.load_teacher(arguments.teacher, arguments, dataset) if arguments.teacher else None
    path = Path(arguments.student)
    provenance = Provenance(
        name=arguments.name or path.stem,
        source=path.name,
        source_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        licence=arguments.licence,
        preprocessing=arguments.preprocessing,
        pixel_range=arguments.pixel_range,
        verdict=verdict_beside(path),
    )
    console = Console()
    with console.status("starting") as status:
        shipment = ship(
            student,
            dataset,
            arguments.out,
            provenance=provenance,
            targets=arguments.targets,
            budgets=budgets,
            teacher=teacher,
            baseline=baseline,
            web_runtime_path=arguments.web_runtime,
            say=status.update,
        )
    if shipment.variants:
        console.print(_table(shipment, f"{provenance.name} on {dataset.name}"))
    _print_usefulness(console, shipment, provenance)
    for outcome in shipment.outcomes:
        for reason in outcome.reasons:
            word = "[red]does not hold[/red]" if outcome.required else "left out"
            console.print(f"{outcome.target} {word}: {reason}")
    if shipment.out is None:
        console.print("No bundle was written.")
        return 1
    console.print(f"{shipment.out}: read report.html; on a device run python benchmark.py.")
    return 0


def quantity(name: str, text: str, units: dict[str, float]) -> float:
    """Reads a number with a unit.

    Example:
        >>> quantity("--max-size", "1.5MB", SIZE_UNITS), quantity("--max-latency", "200us", TIME_UNITS)
        (1500000.0, 0.2)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-zµ]*)\s*", text)
    if match is None or match[2] not in units or float(match[1]) == 0.0:
        known = ", ".join(unit for unit in units if unit)
        raise ValueError(f"{name} must be a number > 0 and a unit ({known}); got {text!r}.")
    return float(match[1]) * units[match[2]]


def _print_usefulness(console: "Console", shipment: "Shipment", provenance: "Provenance") -> None:
    found = shipment.usefulness
    style = {"amber": "yellow"}.get(found.colour, found.colour)
    console.print(f"[{style}]{found.colour}[/{style}]: ", end="")
    console.print(str(found), markup=False, highlight=False, soft_wrap=True)
    for reason in found.reasons:
        console.print(f"  {reason}", markup=False, highlight=False, soft_wrap=True)
    if provenance.verdict is not None:
        console.print(f"  distilling: {provenance.verdict}", markup=False, highlight=False, soft_wrap=True)


def _table(shipment: "Shipment", title: str) -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
    # Eighty columns hold them whole; the 90th percentile is in the manifest.
    for column in ("artifact", "bytes", "drop", "as Keras", "p50 ms", "p99 ms", "ships"):
        table.add_column(column, justify="left" if column in ("artifact", "ships") else "right", no_wrap=True)
    shipped = {id(outcome.variant) for outcome in shipment.outcomes if outcome.holds}
    for variant in shipment.variants:
        check = variant.verification
        table.add_row(
            f"{variant.target} ({variant.name})",
            f"{variant.num_bytes:,}" if variant.path else "–",
            f"{check.accuracy_drop:+.2%}" if check and check.accuracy_drop is not None else "–",
            f"{check.argmax_agreement:.2%}" if check else "–",
            *(f"{variant.latency[key]:.4f}" if variant.latency else "–" for key in ("p50_ms", "p99_ms")),
            "yes" if id(variant) in shipped else "",
        )
    return table
