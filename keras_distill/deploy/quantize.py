"""int8 and float16 variants of a student, and the choice among them: by measurement, never by promise.

Which variant is fastest depends on the processor (its int8 instructions), on the runtime and on the layers, so all
that make sense are made, verified and timed against float32; what is slower or less accurate is left out.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill.deploy.conversion import ConversionError
from keras_distill.deploy.litert import to_litert
from keras_distill.deploy.onnx import write_quantized
from keras_distill.deploy.tflm import LitertParity, MicroFacts, to_tflm
from keras_distill.deploy.verify import Verification

if TYPE_CHECKING:
    import keras

WEIGHTED_OPERATIONS = ("Conv", "Gemm", "MatMul")
# Two medians closer than this are the same speed; the more faithful variant then wins.
SAME_SPEED = 1.05


@dataclass
class Variant:
    """One way to write the student for a target, and what became of it.

    Attributes:
        target: the target it is a candidate for, such as `"onnx-int8"`.
        name: how it was made, such as `"static"`.
        precision: `"float32"`, `"float16"` or `"int8"`.
        path: the file; `None` where the conversion failed.
        verification: from `verify`; `None` before it.
        latency: figures of the kit's `measure`, in ms; empty before it.
        failure: why it is out of the question; `None` where it is not.
        float_layers: operations of an int8 file that its runtime computes in float32 on this processor.
        class_recalls: share of the test examples of each class that it recognises, `(num_classes,)`, NaN without any;
            `None` where nobody asked.
        micro: what the file takes of a microcontroller; `None` for other targets.
        litert_parity: how TFLM's answers compare with LiteRT's, likewise.
        num_bytes: size of the file when it was made.
    """

    target: str
    name: str
    precision: str
    path: Path | None = None
    verification: Verification | None = None
    latency: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    float_layers: Sequence[str] = ()
    class_recalls: np.ndarray | None = None
    micro: MicroFacts | None = None
    litert_parity: LitertParity | None = None
    num_bytes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.is_file():
            self.num_bytes = self.path.stat().st_size

    @property
    def usable(self) -> bool:
        """Whether the file exists and holds."""
        return self.failure is None and self.verification is not None and self.verification.holds


def onnx_int8_variants(source: Path, folder: Path, calibration: Mapping[str, Any]) -> list[Variant]:
    """Makes every int8 variant of a float32 ONNX file that suits its operations.

    Static quantisation with signed and with unsigned activations, since processors without int8 dot products prefer
    the latter; of the weighted operations alone where there is a softmax inside (attention loses speed and accuracy
    otherwise); dynamic quantisation only where there is no convolution, which it makes several times slower.
    """
    operations = _operations_of(source)
    inside = list(WEIGHTED_OPERATIONS) if "Softmax" in operations else None
    modes = ["static", "static-uint8"]
    if not any("Conv" in name or name in ("LSTM", "GRU") for name in operations):
        modes.append("dynamic")

    variants = []
    for mode in modes:
        path = folder / f"{mode}.onnx"
        try:
            left = write_quantized(source, path, mode=mode, calibration=calibration, operations=inside)
            variants.append(Variant("onnx-int8", mode, "int8", path, float_layers=left))
        except ConversionError as error:
            variants.append(Variant("onnx-int8", mode, "int8", failure=str(error)))
    return variants


def litert_int8_variants(
    model: "keras.Model", folder: Path, calibration: Mapping[str, Any], options: Mapping[str, Any]
) -> list[Variant]:
    """Makes the full-int8 and the dynamic-range LiteRT variants of a model; `options` go to `to_litert`."""

    def maker(quantization: str) -> Callable[[Path], Path]:
        return lambda path: to_litert(model, path, quantization=quantization, calibration=calibration, **options)

    names = ("int8", "dynamic")
    return [_attempt("litert-int8", name, "int8", folder / f"{name}.tflite", maker(name)) for name in names]


def litert_float16_variants(model: "keras.Model", folder: Path, options: Mapping[str, Any]) -> list[Variant]:
    """Makes the LiteRT variant whose weights are stored in half the bytes; `options` go to `to_litert`."""

    def maker(path: Path) -> Path:
        return to_litert(model, path, quantization="float16", **options)

    return [_attempt("litert-float16", "float16", "float16", folder / "float16.tflite", maker)]


def tflm_variants(
    model: "keras.Model", folder: Path, calibration: Mapping[str, Any], options: Mapping[str, Any]
) -> list[Variant]:
    """Makes the variant for microcontrollers, int8 throughout; `options` go to `to_tflm`."""
    path = folder / "int8-tflm.tflite"
    try:
        facts = to_tflm(model, path, calibration=calibration, **options)
        return [Variant("tflm", "int8", "int8", path, micro=facts)]
    except ConversionError as error:
        return [Variant("tflm", "int8", "int8", failure=str(error))]


def choose(variants: Sequence[Variant], float32: Variant, *, must_be_faster: bool = True) -> tuple[Variant | None, str]:
    """Returns the variant to ship, or `None` and why there is none.

    The fastest of those that hold; of those equally fast (within 5 %) the one whose logits are nearest to float32.

    Args:
        variants: verified and measured.
        float32: the same runtime's float32 file, measured in the same run.
        must_be_faster: whether a variant must beat float32 in p50 by more than 5 %; if not, it must be smaller.

    Example:
        >>> holds = Verification("int8", num_items=9, max_abs_error=0.1, logit_rmse=0.1, argmax_agreement=1.0)
        >>> slow = Variant("onnx-int8", "static", "int8", Path("a"), holds, {"p50_ms": 3.0})
        >>> float32 = Variant("onnx", "float32", "float32", Path("b"), latency={"p50_ms": 2.0})
        >>> choose([slow], float32)
        (None, 'static takes 1.50 x the time of float32')
    """
    reasons = [
        f"{v.name}: {v.failure or '; '.join(v.verification.problems if v.verification else ())}"
        for v in variants
        if not v.usable
    ]
    usable = [variant for variant in variants if variant.usable]
    if must_be_faster:
        for variant in usable:
            ratio = variant.latency["p50_ms"] / float32.latency["p50_ms"]
            if ratio * SAME_SPEED >= 1.0:
                left = f", and its runtime computes {', '.join(variant.float_layers)} in float32"
                reasons.append(
                    f"{variant.name} takes {ratio:.2f} x the time of float32{left if variant.float_layers else ''}"
                )
        usable = [v for v in usable if v.latency["p50_ms"] * SAME_SPEED < float32.latency["p50_ms"]]
    else:
        reasons += [f"{v.name} is not smaller than float32" for v in usable if v.num_bytes >= float32.num_bytes]
        usable = [variant for variant in usable if variant.num_bytes < float32.num_bytes]
    if not usable:
        return None, "; ".join(reasons)
    fastest = min(variant.latency["p50_ms"] for variant in usable)
    alike = [variant for variant in usable if variant.latency["p50_ms"] <= SAME_SPEED * fastest]
    return min(alike, key=lambda variant: variant.verification.logit_rmse if variant.verification else 0.0), ""


def _attempt(target: str, name: str, precision: str, path: Path, make: Callable[[Path], Path]) -> Variant:
    try:
        return Variant(target, name, precision, make(path))
    except ConversionError as error:
        return Variant(target, name, precision, failure=str(error))


def _operations_of(path: str | os.PathLike) -> set[str]:
    import onnx

    return {node.op_type for node in onnx.load(os.fspath(path)).graph.node}
