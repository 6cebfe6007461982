"""A Keras model as a file for microcontrollers: int8 from its inputs to its outputs, run in TFLM's own interpreter."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill._checks import error_message
from keras_distill._files import whole_file
from keras_distill._kit import kit_module
from keras_distill._types import ArrayLike, TensorTree
from keras_distill.deploy.conversion import convert
from keras_distill.deploy.litert import to_litert

if TYPE_CHECKING:
    import keras

# Of the comparison with LiteRT: TFLM's kernels are the slow, plain ones.
NUM_COMPARED = 1000


@dataclass(frozen=True)
class MicroFacts:
    """What a file takes of a microcontroller, by TFLM's own count.

    Attributes:
        arena_bytes: the smallest arena that its interpreter runs in here, on 64 bits: on a chip of 32 bits, whose
            pointers are half as long, a little less will do.
        used_bytes: what the interpreter holds of it once it has begun, as it prints; planning takes some more.
        activation_bytes: the part of that which activations share.
        operations: LiteRT's names, once each.
        version: of the package tflite-micro.
    """

    arena_bytes: int
    used_bytes: int
    activation_bytes: int
    operations: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class LitertParity:
    """How TFLM's answers compare with LiteRT's for the same file, in steps of the int8 outputs.

    Attributes:
        num_items: how many examples were compared.
        share_different: of the values of all outputs that differ, a fraction; 0.0 is bit for bit.
        max_steps: largest difference.
        reference_share_different: the same against LiteRT's reference kernels, which round as TFLM does.
        reference_max_steps: likewise.
        first_operation: the first operation whose output differs where its inputs do not; `None` where none does.
    """

    num_items: int
    share_different: float
    max_steps: int
    reference_share_different: float
    reference_max_steps: int
    first_operation: str | None = None

    def __str__(self) -> str:
        if self.max_steps == 0:
            return f"LiteRT's answers bit for bit ({self.num_items:,} examples)"
        first = f", from {self.first_operation} on" if self.first_operation else ""
        reference = (
            "its reference kernels answer as TFLM does, bit for bit"
            if self.reference_max_steps == 0
            else f"its reference kernels in {self.reference_share_different:.2%}, by {self.reference_max_steps} at most"
        )
        steps = f"{self.max_steps} step{'s' if self.max_steps > 1 else ''}"
        return (
            f"LiteRT's optimised kernels round otherwise{first}: {self.share_different:.2%} of the values differ, by "
            f"{steps} at most; {reference} ({self.num_items:,} examples)"
        )

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def to_tflm(
    model: "keras.Model",
    path: str | os.PathLike,
    *,
    calibration: Mapping[str, Any] | ArrayLike,
    example: TensorTree = None,
    from_logits: bool = True,
    **metadata: Any,
) -> MicroFacts:
    """Writes `model` as a LiteRT file for microcontrollers, one example a call, and runs it once in TFLM.

    Args:
        model: a built Keras model.
        path: where the file goes; must end in `tflm.tflite`, by which the kit knows its interpreter.
        calibration: as `to_litert` takes it.
        example: likewise.
        from_logits: likewise.
        metadata: likewise: `class_names`, `preprocessing`, `temperature`, `licence`, `provenance`.

    Raises:
        ConversionError: an operation that TFLM lacks, or that has no int8 kernel; the message names it and its layer.
        ImportError: the package tflite-micro is not installed.
        ValueError: `path` does not end in `tflm.tflite`.
    """
    from keras_distill._keras_internals import all_layers

    check_installed()
    suffix = kit_module().TFLM_SUFFIX
    if not os.fspath(path).endswith(suffix):
        received = repr(os.fspath(path))
        raise ValueError(error_message(f"the path of a file for microcontrollers must end in {suffix}", received))
    layer_names = [layer.name for layer in all_layers(model)]
    with tempfile.TemporaryDirectory(prefix="keras-distill-tflm-") as folder, whole_file(path) as aside:
        # There LiteRT opens it, whose errors say more.
        made = to_litert(
            model,
            Path(folder) / "int8.tflite",
            quantization="int8-io",
            calibration=calibration,
            example=example,
            batch=1,
            from_logits=from_logits,
            **metadata,
        )
        facts = convert("run_on_tflm", {"path": str(made)}, layer_names)
        shutil.copyfile(made, aside)
    return MicroFacts(**facts | {"operations": tuple(facts["operations"])})


def check_installed() -> None:
    """Raises `ImportError` where the interpreter for microcontrollers is not installed."""
    if importlib.util.find_spec("tflite_micro") is None:
        remedy = "Install it: pip install 'keras-distill[tflm]'."
        raise ImportError(error_message("the target tflm needs the package tflite-micro", "none", remedy))


def against_litert(path: str | os.PathLike, feed: Mapping[str, np.ndarray]) -> LitertParity:
    """Compares TFLM with LiteRT on the same file and inputs.

    Args:
        path: a file of `to_tflm`.
        feed: real inputs by name; `NUM_COMPARED` of them at most are used.
    """
    with tempfile.TemporaryDirectory(prefix="keras-distill-parity-") as folder:
        # Under another name, which LiteRT opens.
        copy = shutil.copyfile(path, Path(folder) / "int8.tflite")
        kit = kit_module()
        inputs = {name: array[:NUM_COMPARED] for name, array in feed.items()}
        num_items = len(next(iter(inputs.values())))
        micro, litert, plain = kit.open_artifact(path), kit.open_artifact(copy), _reference_litert(copy)
        found = _steps(micro, inputs)
        shares, most = [], []
        for other in (litert, plain):
            differences = np.concatenate(
                [np.abs(a - b).ravel() for a, b in zip(found, _steps(other, inputs), strict=True)]
            )
            shares.append(float(np.mean(differences > 0)))
            most.append(int(differences.max(initial=0)))
        first = _first_different(path, Path(folder), inputs) if most[0] else None
    return LitertParity(num_items, shares[0], most[0], shares[1], most[1], first)


def _reference_litert(path: Path) -> Any:
    """LiteRT with its reference kernels in place of the optimised ones."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    artifact = kit_module().open_artifact(path)
    artifact.interpreter = Interpreter(
        str(path), num_threads=1, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    artifact.interpreter.allocate_tensors()
    return artifact


def _steps(artifact: Any, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs as int8 steps, or as they are where they are not quantised."""
    outputs = artifact.run(inputs)
    return [
        outputs[name].astype("int64") if steps is None else np.round(outputs[name] / steps[0]).astype("int64")
        for name, steps in sorted(zip(artifact.output_names, artifact.output_steps, strict=True))
    ]


def _first_different(
    path: str | os.PathLike, folder: Path, inputs: Mapping[str, np.ndarray], most: int = 32
) -> str | None:
    """The first operation whose output differs between TFLM and LiteRT where its inputs do not.

    Of each operation a file is made that ends there; both run it.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    from keras_distill.deploy.micro import operations_of

    kit = kit_module()
    few = {name: array[:most] for name, array in inputs.items()}
    content = Path(path).read_bytes()
    for number, (operation, name, _) in enumerate(operations_of(path)):
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        graph, (signature,) = model.subgraphs[0], model.signatureDefs
        if number >= len(graph.operators):
            return None
        place = graph.operators[number].outputs[0]
        graph.operators = graph.operators[: number + 1]
        graph.outputs = np.array([place], np.int32)
        graph.tensors[place].name = b"end"
        signature.outputs = signature.outputs[:1]
        signature.outputs[0].name, signature.outputs[0].tensorIndex = b"end", place
        builder = flatbuffers.Builder(len(content))
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        answers = []
        for file in (folder / f"{number}.tflite", folder / f"{number}-{kit.TFLM_SUFFIX}"):
            file.write_bytes(bytes(builder.Output()))
            try:
                answers.append(_steps(kit.open_artifact(file), few)[0])
            except (ValueError, RuntimeError):
                # Not every operation can end a file; then nothing is said of where they part.
                return None
        if not np.array_equal(answers[0], answers[1]):
            return f"{operation} ({name})"
    return None
