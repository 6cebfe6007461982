"""What a `prune` run says of teacher and student: what each costs, measured where it would serve."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    from rich.table import Table

    from keras_distill.cli.prune_settings import PruneSettings
    from keras_distill.data import Dataset

ROUNDS = 5


@dataclass(frozen=True)
class Served:
    """One file as a runtime serves it.

    Attributes:
        num_bytes: of the file.
        latency_ms: median of one example on one thread.
    """

    num_bytes: int
    latency_ms: float


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: how many weights it has.
        multiply_adds: for one example; `None` where the sizes of its inputs are open.
        served: by format, `"onnx"` and `"tflite"`, as far as it converts.
        failures: by format, why it does not.
    """

    parameters: int
    multiply_adds: int | None
    served: Mapping[str, Served]
    failures: Mapping[str, str]


def costs(models: "Mapping[str, keras.Model]", dataset: "Dataset | None") -> dict[str, Cost]:
    """Each model's cost; all files are timed in interleaved rounds, on an example of the data or on random numbers."""
    import tempfile
    from pathlib import Path

    from keras_distill._inputs import take_rows
    from keras_distill._kit import kit_module
    from keras_distill.cli.random_inputs import random_feed
    from keras_distill.deploy import ConversionError, to_litert, to_onnx
    from keras_distill.deploy.trace import signature_of
    from keras_distill.deploy.verify import open_artifact

    kit = kit_module()
    example = None if dataset is None else take_rows(dataset.validation.inputs, slice(1))
    steps: dict[tuple[str, str], Any] = {}
    sizes: dict[tuple[str, str], int] = {}
    failures: dict[str, dict[str, str]] = {name: {} for name in models}
    with tempfile.TemporaryDirectory(prefix="keras-distill-prune-") as folder:
        for name, model in models.items():
            signature = signature_of(model, example)
            one = random_feed(signature, 1) if example is None else signature.feed(example)
            for suffix, convert in (("onnx", to_onnx), ("tflite", to_litert)):
                try:
                    path = convert(model, Path(folder) / f"{name}.{suffix}")
                except (ConversionError, ValueError) as error:
                    failures[name][suffix] = str(error)
                    continue
                artifact = open_artifact(path)
                steps[name, suffix] = artifact.step(kit.for_one_call(artifact, one))
                sizes[name, suffix] = path.stat().st_size
        latencies = kit.measure(steps, ROUNDS) if steps else {}
    return {
        name: Cost(
            model.count_params(),
            _multiply_adds(model),
            {
                suffix: Served(sizes[who, suffix], latencies[who, suffix]["p50_ms"])
                for who, suffix in steps
                if who == name
            },
            failures[name],
        )
        for name, model in models.items()
    }


def _multiply_adds(model: "keras.Model") -> int | None:
    from keras_distill.models import multiply_adds

    try:
        return multiply_adds(model)
    except ValueError:
        return None


def table(found: Mapping[str, Cost]) -> "Table":
    """Before and after, and how many times less."""
    from rich.table import Table

    table = Table()
    for column in ("", "teacher", "student", "ratio"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    teacher, student = found["teacher"], found["student"]

    def add(what: str, before: float | None, after: float | None, form: str) -> None:
        cells = ["–" if value is None else format(value, form) for value in (before, after)]
        table.add_row(what, *cells, f"{before / after:.1f} ×" if before and after else "–")

    add("parameters", teacher.parameters, student.parameters, ",")
    add("multiply-adds", teacher.multiply_adds, student.multiply_adds, ",")
    for suffix, runtime in (("onnx", "onnxruntime"), ("tflite", "LiteRT")):
        served = [cost.served.get(suffix) for cost in (teacher, student)]
        sizes = [None if each is None else each.num_bytes for each in served]
        latencies = [None if each is None else each.latency_ms for each in served]
        add(f"bytes, .{suffix}", sizes[0], sizes[1], ",")
        add(f"ms, {runtime}", latencies[0], latencies[1], ".4f")
    return table


def lines(
    found: Mapping[str, Cost], errors: Mapping[str, int], kept_whole: Sequence[str], dataset: "Dataset | None"
) -> list[str]:
    """What stands under the table: errors, what stayed whole, what does not convert."""
    told = []
    if dataset is not None:
        each = ", ".join(f"{name} {count:,}" for name, count in errors.items())
        told.append(f"errors on the {len(dataset.validation):,} validation items of {dataset.name}: {each}")
    teacher, student = found["teacher"], found["student"]
    if (student.parameters, student.multiply_adds) == (teacher.parameters, teacher.multiply_adds):
        told.append("note: nothing was cut: no group is free, or none is large enough")
    if kept_whole:
        told.append(f"kept whole, with what they touch: {', '.join(kept_whole)}")
    for name, cost in found.items():
        told += [f"note: the {name} does not convert to .{suffix}: {why}" for suffix, why in cost.failures.items()]
    return told


def record(
    settings: "PruneSettings", found: Mapping[str, Cost], errors: Mapping[str, int], kept_whole: Sequence[str]
) -> dict[str, Any]:
    """What `OUT.json` holds."""
    return {
        "settings": asdict(settings),
        "costs": {name: asdict(cost) for name, cost in found.items()},
        "validation_errors": dict(errors),
        "kept_whole": list(kept_whole),
    }
