"""The ship gate: a student becomes a bundle that was checked in the runtimes that will serve it, or it becomes nothing.

is it any use? → convert → quantise → reload in the runtime → parity on real data → latency → budgets → bundle.
"""

import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill._checks import did_you_mean, error_message
from keras_distill._files import whole_folder
from keras_distill._inputs import arrays_by_name, take_rows
from keras_distill._kit import kit_module
from keras_distill.deploy import bundle, quantize
from keras_distill.deploy.budgets import Budgets
from keras_distill.deploy.calibration import choose_calibration
from keras_distill.deploy.card import model_card, report_page
from keras_distill.deploy.figures import BASELINE, class_logits, figures_of_artifacts, figures_of_models
from keras_distill.deploy.litert import to_litert
from keras_distill.deploy.micro_source import write_source
from keras_distill.deploy.onnx import to_onnx
from keras_distill.deploy.quantize import Variant, choose
from keras_distill.deploy.reference import Reference, known_facts, reference_of
from keras_distill.deploy.shipment import Outcome, Provenance, Shipment
from keras_distill.deploy.tflm import against_litert, check_installed
from keras_distill.deploy.trace import single_call
from keras_distill.deploy.usefulness import class_recalls, usefulness_of
from keras_distill.deploy.verify import open_artifact, verify
from keras_distill.deploy.web_runtime import copy_web_runtime, web_runtime

if TYPE_CHECKING:
    import keras

    from keras_distill._types import Teacher
    from keras_distill.data import Dataset

TARGETS = ("onnx", "onnx-int8", "litert", "litert-int8", "litert-float16", "tflm", "web")
# Without a wish, the float32 files must hold, and what is quantised comes along where it is worth it.
DEFAULT_TARGETS = ("onnx", "onnx-int8", "litert", "litert-int8")
REQUIRED_BY_DEFAULT = ("onnx", "litert")
_FILES = {"tflm": "student-tflm"}
_REMEDY_OF_RED = (
    "Look at how the data is scaled, or train it; with a min_accuracy of your own (--min-accuracy 0) it ships as it is."
)


def ship(
    student: "keras.Model",
    dataset: "Dataset",
    path: str | Path,
    *,
    provenance: Provenance,
    targets: Sequence[str] | None = None,
    budgets: Budgets | None = None,
    teacher: "Teacher | None" = None,
    baseline: "keras.Model | None" = None,
    web_runtime_path: str | Path | None = None,
    rounds: int = 10,
    say: Callable[[str], None] = lambda _: None,
) -> Shipment:
    """Takes a student to a bundle at `path`, if every required target holds.

    Args:
        student: a built Keras classifier; a softmax head is left out of the artifacts.
        dataset: verified on its test split, calibrated on its validation split, and never the other way round.
        path: the bundle's folder; appears whole or not at all. A new one, or an older bundle, which is replaced.
        provenance: where the student comes from.
        targets: names of `TARGETS`, all of them required; `None` requires `onnx` and `litert`, and adds their int8
            variants where they are faster and accurate. A quantisation-aware student's `onnx` and `litert` are int8.
        budgets: limits for every artifact. Without a `min_accuracy` a student no better than chance does not ship.
        teacher: the student's teacher, which it is compared with: a Keras model, or whatever else teaches it from the
            same inputs (`keras_distill.teachers`), whose parameters and latency nobody knows.
        baseline: the same student trained on labels alone, likewise.
        web_runtime_path: where the files of onnxruntime-web lie; `None` lets npm bring them.
        rounds: interleaved rounds of the latency measurement, about 80 ms each for each model.
        say: called with a sentence about each step.

    Raises:
        ConversionError: the float32 student cannot be converted for a wanted runtime.
        ValueError: unknown targets, data that the student cannot take, a `path` that holds something else, or a budget
            against a teacher that is not there.
    """
    budgets = budgets or Budgets()
    wanted = list(dict.fromkeys(targets or DEFAULT_TARGETS))
    unknown = sorted(set(wanted) - set(TARGETS))
    if unknown or not wanted:
        remedy = did_you_mean(unknown[0].replace("tflite", "litert"), TARGETS) if unknown else ""
        received = ", ".join(unknown) or "none"
        raise ValueError(error_message(f"targets must be among {', '.join(TARGETS)}", received, remedy))
    if budgets.max_drop_from_teacher is not None and teacher is None:
        expectation = "there must be a teacher where max_drop_from_teacher is a budget"
        raise ValueError(error_message(expectation, "none", "Name it, teacher=…, or leave the budget out."))
    if budgets.max_arena is not None and "tflm" not in wanted:
        expectation = "the target tflm must be named where max_arena is a budget"
        raise ValueError(error_message(expectation, ", ".join(wanted), "Name it: --targets tflm."))
    if "tflm" in wanted:
        check_installed()
    is_int8 = _is_int8(student)
    if is_int8:
        wanted = _targets_of_int8(wanted, targets is not None)
    outcomes = [Outcome(name, required=targets is not None or name in REQUIRED_BY_DEFAULT) for name in wanted]
    # Found wanting now rather than after a minute of work.
    if "web" in wanted and len(arrays_by_name(dataset.test.inputs)) > 1:
        names = ", ".join(arrays_by_name(dataset.test.inputs))
        raise ValueError(
            error_message(
                "the web page takes students of one input", names, "Leave the target web out; onnx serves it."
            )
        )
    bundle.check_replaceable(Path(path))
    web_files = web_runtime(web_runtime_path) if "web" in wanted else None

    say("the student's own answers")
    reference = reference_of(student, dataset)
    say("whether they are worth shipping")
    in_keras = figures_of_models(student, teacher, baseline, reference, dataset)
    by_name = {figures.name: figures for figures in in_keras}
    usefulness = usefulness_of(
        reference.logits,
        dataset.test.labels,
        dataset.class_names,
        teacher_logits=by_name["teacher"].logits if teacher is not None else None,
        baseline_logits=by_name[BASELINE].logits if baseline is not None else None,
        verdict=provenance.verdict,
    )
    if usefulness.colour == "red" and budgets.min_accuracy is None:
        for outcome in outcomes:
            outcome.reasons.append(f"{usefulness.reasons[0]} {_REMEDY_OF_RED}")
        return Shipment(tuple(outcomes), (), tuple(in_keras), usefulness, None)
    calibration = choose_calibration(reference.validation_feed)
    facts = known_facts(provenance, dataset, reference)
    options: dict[str, Any] = {
        "example": take_rows(dataset.test.inputs, slice(1)),
        "class_names": dataset.class_names,
        "preprocessing": facts["preprocessing"],
        "temperature": reference.temperature,
        "licence": provenance.licence,
        "provenance": facts["provenance"],
    }

    with tempfile.TemporaryDirectory(prefix="keras-distill-ship-") as temporary:
        folder = Path(temporary)
        variants = _make_variants(student, folder, wanted, calibration, options, say)
        if is_int8:
            for variant in variants:
                variant.name, variant.precision = "quantisation-aware", "int8"
        for variant in variants:
            if variant.path is not None:
                say(f"{variant.target} ({variant.name}): answers to {len(dataset.test):,} test examples")
                _verify(variant, reference, dataset, budgets)
        say("latency, one thread, one example a call")
        keras_latency = _measure(variants, {"student": student, "teacher": teacher}, reference, rounds)
        broken_by = partial(
            budgets.broken_by, teacher_accuracy=usefulness.teacher_accuracy, class_names=dataset.class_names
        )
        for outcome in outcomes:
            _decide(outcome, variants, broken_by)
        held = all(outcome.holds for outcome in outcomes if outcome.required)
        say("figures of every model, side by side")
        figures = [replace(each, latency=keras_latency.get(each.name, {})) for each in in_keras]
        figures += figures_of_artifacts(figures, outcomes, reference, dataset)
        shipment = Shipment(tuple(outcomes), tuple(variants), tuple(figures), usefulness, Path(path) if held else None)
        if held:
            say("the bundle")
            verdict = provenance.verdict
            judged = {"usefulness": usefulness.to_json(), "verdict": verdict and verdict.to_json()}
            with whole_folder(path) as aside:
                _write_bundle(aside, shipment, facts | judged, dataset, reference, budgets, web_files)
    return shipment


def _is_int8(student: "keras.Model") -> bool:
    from keras_distill.quantize_aware import is_quantized

    return is_quantized(student)


def _targets_of_int8(wanted: list[str], is_explicit: bool) -> list[str]:
    """The targets of a student whose files are int8 as it is: there is nothing to quantise."""
    able = [name for name in wanted if not name.endswith(("-int8", "-float16"))]
    if is_explicit and able != wanted:
        others = ", ".join(name for name in wanted if name not in able)
        remedy = "Its onnx and litert files are int8 already."
        raise ValueError(
            error_message("targets of a quantisation-aware student must be onnx, litert or web", others, remedy)
        )
    return able


def _make_variants(
    student: "keras.Model",
    folder: Path,
    wanted: Sequence[str],
    calibration: Mapping[str, np.ndarray],
    options: Mapping[str, Any],
    say: Callable[[str], None],
) -> list[Variant]:
    def make_onnx() -> list[Variant]:
        if not {"onnx", "onnx-int8", "web"} & set(wanted):
            return []
        say("onnx: converting")
        source = to_onnx(student, folder / "float32.onnx", **options)
        variants = [Variant("onnx", "float32", "float32", source)]
        if "onnx-int8" in wanted:
            say("onnx-int8: quantising")
            variants += quantize.onnx_int8_variants(source, folder, calibration)
        return variants

    def make_litert() -> list[Variant]:
        if not {"litert", "litert-int8", "litert-float16"} & set(wanted):
            return []
        say("litert: converting")
        source = to_litert(student, folder / "float32.tflite", **options)
        return [Variant("litert", "float32", "float32", source)]

    def make_small_litert() -> list[Variant]:
        variants = []
        if "litert-int8" in wanted:
            say("litert-int8: quantising")
            variants += quantize.litert_int8_variants(student, folder, calibration, options)
        if "litert-float16" in wanted:
            say("litert-float16: converting")
            variants += quantize.litert_float16_variants(student, folder, options)
        if "tflm" in wanted:
            say("tflm: quantising, and running it in the interpreter for microcontrollers")
            variants += quantize.tflm_variants(student, folder, calibration, options)
        return variants

    # Each conversion waits for a process of its own, so two at a time halve the wait on two cores.
    with ThreadPoolExecutor(max_workers=2) as pool:
        parts = [pool.submit(make) for make in (make_small_litert, make_onnx, make_litert)]
        try:
            small_litert, onnx, litert = [part.result() for part in parts]
        except BaseException:
            # What has begun is waited for, since it sweeps its own files; what has not need not begin.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [*onnx, *litert, *small_litert]


def _verify(variant: Variant, reference: Reference, dataset: "Dataset", budgets: Budgets) -> None:
    assert variant.path is not None
    labels = dataset.test.labels
    try:
        variant.verification = verify(
            reference.outputs,
            variant.path,
            reference.feed,
            {reference.answer: labels},
            precision=variant.precision,
            max_accuracy_drop=budgets.max_accuracy_drop,
            answers=reference.answers,
        )
        if variant.micro is not None:
            variant.litert_parity = against_litert(variant.path, reference.feed)
        if budgets.min_class_recall is not None:
            logits = class_logits(variant.path, reference)
            variant.class_recalls = class_recalls(logits.argmax(axis=-1), labels, dataset.num_classes)
    except ValueError as error:
        variant.failure = str(error)


def _measure(
    variants: Sequence[Variant],
    models: Mapping[str, "Teacher | None"],
    reference: Reference,
    rounds: int,
) -> dict[str, dict[str, float]]:
    """Times all variants and the Keras models in one run; returns the Keras models' figures."""
    import keras

    from keras_distill.models.forward_pass import logits_model

    kit = kit_module()
    one = {name: np.ascontiguousarray(array[:1]) for name, array in reference.feed.items()}
    steps, opened = {}, []
    for index, variant in enumerate(variants):
        if variant.path is not None and variant.failure is None:
            artifact = open_artifact(variant.path)
            opened.append(artifact)
            steps[str(index)] = artifact.step(kit.for_one_call(artifact, one))
    for name, model in models.items():
        if isinstance(model, keras.Model):
            steps[name] = single_call(logits_model(model), one, reference.signature)
    latencies = kit.measure(steps, rounds)
    for index, variant in enumerate(variants):
        variant.latency = latencies.get(str(index), {})
    return {name: latencies[name] for name in models if name in latencies}


def _decide(outcome: Outcome, variants: Sequence[Variant], broken_by: Callable[[Variant], list[str]]) -> None:
    """Decides on one target; `broken_by` names the budgets that a variant is past."""
    wanted = "onnx" if outcome.target == "web" else outcome.target
    candidates = [variant for variant in variants if variant.target == wanted]
    if outcome.target.endswith(("-int8", "-float16")):
        runtime = outcome.target.rsplit("-", 1)[0]
        float32 = next(variant for variant in variants if variant.target == runtime)
        if float32.failure:
            outcome.reasons = [f"there is no float32 file to compare with: {float32.failure}"]
            return
        within = [v for v in candidates if not v.usable or not broken_by(v)]
        beyond = [f"{v.name} {reason}" for v in candidates if v.usable for reason in broken_by(v)]
        # Where the float32 file is past a budget, int8 is not the faster choice but the only one.
        is_needed = float32.usable and bool(broken_by(float32))
        chosen, why_not = choose(within, float32, must_be_faster=outcome.target.endswith("-int8") and not is_needed)
        outcome.variant = chosen
        if chosen is None:
            outcome.reasons = [reason for reason in (why_not, *beyond) if reason]
        return
    outcome.variant = candidates[0]
    if outcome.variant.failure:
        outcome.reasons.append(outcome.variant.failure)
    elif outcome.variant.verification is not None:
        outcome.reasons += outcome.variant.verification.problems
        outcome.reasons += broken_by(outcome.variant)


def _write_bundle(
    folder: Path,
    shipment: Shipment,
    facts: Mapping[str, Any],
    dataset: "Dataset",
    reference: Reference,
    budgets: Budgets,
    web_files: Path | None,
) -> None:
    kit = kit_module()
    chosen = bundle.choose_golden(dataset.test.labels)
    golden_inputs = {name: np.ascontiguousarray(array[chosen]) for name, array in reference.feed.items()}
    golden = bundle.golden_entries("keras", {name: array[chosen] for name, array in reference.outputs.items()})
    artifacts = {}
    shipped = [outcome for outcome in shipment.outcomes if outcome.holds]
    for outcome in shipped:
        variant = outcome.variant
        assert variant is not None
        assert variant.path is not None
        assert variant.verification is not None
        # The page runs the float32 ONNX file: int8 is slower in a browser.
        target = "onnx" if outcome.target == "web" else outcome.target
        if target in artifacts:
            continue
        name = _FILES.get(target) or target.replace("onnx", "student", 1).replace("litert", "student", 1)
        name += variant.path.suffix
        shutil.copyfile(variant.path, folder / name)
        artifact = open_artifact(folder / name)
        outputs = artifact.run(golden_inputs)
        golden |= bundle.golden_entries(target, outputs)
        tolerances = {name: bundle.golden_tolerance(variant.precision, output) for name, output in outputs.items()}
        artifacts[target] = {
            "file": name,
            "runtime": artifact.runtime,
            "bytes": variant.num_bytes,
            "precision": variant.precision,
            "variant": variant.name,
            "batch": artifact.fixed_batch,
            "golden_tolerance": tolerances if len(tolerances) > 1 else tolerances[reference.answer],
            "verification": variant.verification.to_json(),
            "latency": variant.latency,
        }
        if variant.micro is not None and variant.litert_parity is not None:
            artifacts[target] |= {"micro": asdict(variant.micro), "litert_parity": variant.litert_parity.to_json()}
    bundle.write_golden(folder, golden_inputs, dataset.test.labels[chosen], golden)
    has_page = any(outcome.target == "web" for outcome in shipped)
    bundle.write_kit(folder, web=has_page, tflm="tflm" in artifacts)
    if "tflm" in artifacts:
        _write_micro_source(folder, shipment, golden_inputs, artifacts["tflm"], reference, dataset)
    preparation = bundle.write_preparation(folder, dataset.preparation)
    if has_page and web_files is not None:
        copy_web_runtime(web_files, folder / "web" / "runtime")
    manifest = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
        "preparation": preparation,
        "class_names": list(dataset.class_names),
        "temperature": reference.temperature,
        "artifacts": artifacts,
        "web": has_page,
        "left_out": {o.target: "; ".join(o.reasons) for o in shipment.outcomes if not o.holds},
        "budgets": {
            "max_accuracy_drop": budgets.max_accuracy_drop,
            "max_size": budgets.max_size,
            "max_latency_ms": budgets.max_latency_ms,
            "min_accuracy": budgets.min_accuracy,
            "max_drop_from_teacher": budgets.max_drop_from_teacher,
            "min_class_recall": budgets.min_class_recall,
            "max_arena": budgets.max_arena,
        },
        "tried": [_tried(variant, shipment.outcomes) for variant in shipment.variants],
        "figures": [figures.to_json() for figures in shipment.figures],
        "machine": {"processor": kit.processor_name(), "system": platform.platform(), "num_threads": 1},
    }
    (folder / "model_card.md").write_text(model_card(manifest, shipment.figures), encoding="utf-8")
    page = report_page(manifest, shipment.figures, dataset.test.inputs, dataset.test.labels)
    (folder / "report.html").write_text(page, encoding="utf-8")
    bundle.write_manifest(folder, manifest)


def _write_micro_source(
    folder: Path,
    shipment: Shipment,
    golden_inputs: Mapping[str, np.ndarray],
    artifact: Mapping[str, Any],
    reference: Reference,
    dataset: "Dataset",
) -> None:
    variant = next(outcome.variant for outcome in shipment.outcomes if outcome.target == "tflm")
    assert variant is not None
    assert variant.micro is not None
    tolerance = artifact["golden_tolerance"]
    write_source(
        folder / bundle.TFLM,
        folder / artifact["file"],
        variant.micro,
        golden_inputs,
        answer=reference.answer,
        class_names=dataset.class_names,
        temperature=reference.temperature,
        tolerance=tolerance[reference.answer] if isinstance(tolerance, dict) else tolerance,
    )


def _tried(variant: Variant, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    ships = any(outcome.variant is variant and outcome.holds for outcome in outcomes)
    check = variant.verification
    reasons = [variant.failure] if variant.failure else list(check.problems if check else ())
    return {
        "target": variant.target,
        "variant": variant.name,
        "bytes": variant.num_bytes if variant.path else None,
        "p50_ms": variant.latency.get("p50_ms"),
        "accuracy_drop": check.accuracy_drop if check else None,
        "logit_rmse": check.to_json()["logit_rmse"] if check else None,
        "holds": True if ships else (False if reasons else None),
        "verdict": "ships" if ships else "; ".join(reasons) or "another is better",
    }
