"""`compress`: teacher, data and a budget in, the best student that holds it out.

Candidates are proposed by Optuna, made as wide as the budget allows, measured in the runtime that will serve them, and
halved by how they do on validation data, all taught from one store. The best is tuned, labels alone among its recipes,
passes the ship gate, and is judged on the test set.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from keras_distill._checks import check_choice, check_count, check_positive, error_message
from keras_distill._files import only_one_in, whole_file
from keras_distill._inputs import take_rows
from keras_distill._types import Teacher
from keras_distill.deploy.budgets import Budgets
from keras_distill.deploy.calibration import drawn_rows
from keras_distill.deploy.shipment import Provenance
from keras_distill.deploy.tflm import check_installed
from keras_distill.distillation.training_length import default_epochs
from keras_distill.models.inference import all_logits
from keras_distill.scale.engines import engine_of
from keras_distill.search.candidate_trainer import CandidateTrainer
from keras_distill.search.compression import Compression
from keras_distill.search.compression_page import report_page
from keras_distill.search.cost import PRECISIONS, RUNTIMES, Meter
from keras_distill.search.finishing import Finish
from keras_distill.search.fitting import Fitter, families_for
from keras_distill.search.halving import Halving
from keras_distill.search.training import Training, optuna_quiet
from keras_distill.search.trials import Trial, Trials, pareto_front
from keras_distill.targets import SoftTargetStore, label
from keras_distill.targets.fingerprints import every_item_fingerprint
from keras_distill.teachers import Ensemble
from keras_distill.teachers.knowledge import check_teacher

if TYPE_CHECKING:
    from keras_distill.data import Dataset
    from keras_distill.scale import Engine

NUM_TRIALS = 16
# Measured again by the gate, a latency is not the same: so much is kept in hand.
_IN_HAND = 0.93
_NUM_CALIBRATION = 256
# Of the best candidate, in whole trainings: as it is, and where the time is over.
_TUNING, _LEAST_TUNING = 4.0, 2.0
_STUDY, _QUANTIZED = "study.db", "student-int8.keras"
# What else a search writes or removes in its folder, once there is a study.
_WRITTEN = ("trials", "tuning", "bundle", "student.keras", _QUANTIZED, "report.html", "compression.json")


@dataclass(frozen=True)
class Progress:
    """What a search says while it runs.

    Attributes:
        text: a sentence.
        num_ended: candidates that have ended.
        num_trials: candidates in all.
        best: the best so far; `None` before the first.
        seconds_left: of the search, estimated; `None` before the first training.
    """

    text: str
    num_ended: int
    num_trials: int
    best: Trial | None
    seconds_left: float | None


def compress(
    teacher: Teacher,
    dataset: "Dataset",
    budgets: Budgets,
    out: str | Path,
    *,
    runtime: str = "litert",
    precisions: Sequence[str] = PRECISIONS,
    families: Mapping[str, Callable[[float], keras.Model]] | None = None,
    epochs: int | None = None,
    batch_size: int = 128,
    num_trials: int = NUM_TRIALS,
    minutes: float | None = None,
    seeds: int = 1,
    seed: int = 0,
    name: str = "student",
    pixel_range: str | None = None,
    any_teacher: bool = False,
    engine: "Engine | str | None" = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Compression:
    """Finds the best student within a budget, trains it, and takes it through the ship gate.

    Candidates are cut from the teacher and, so that pruning has to earn its place, a few hand-made families and your
    own; in float32 and in int8. Each is made as wide as its share of the budget allows, by latency and bytes measured
    in the runtime that will serve it, before it is trained. What is compared is the negative log-likelihood on the
    validation split. The test split judges the best, and the gate holds accuracy to it; where the gate holds a
    candidate back, the next best is judged too, and `Compression.num_judged` says how many were.

    Called again with the same arguments after a kill it goes on: candidates that were judged are not trained again.

    Args:
        teacher: a Keras model, an `Ensemble` (its best member is cut), a `SpecialistEnsemble` (its generalist is), or
            any function from inputs to logits (nothing is cut, hand-made families alone).
        dataset: trained on its training split, chosen on validation, judged on test.
        budgets: with `max_size`, `max_latency_ms` or both, or for microcontrollers `max_size`, `max_arena` or both; the
            others hold for what ships.
        out: a folder: `student.keras`, `bundle/`, `report.html`, `compression.json`, `study.db`.
        runtime: that serves the student: `"litert"`, `"onnx"` or, on microcontrollers, `"tflm"`.
        precisions: `"float32"`, `"int8"` or both; of files quantised after training. On `"tflm"` int8 alone.
        families: your own, by name: functions from a width in (0, 1] to a built model that ends in logits.
        epochs: of a whole training; `None` is enough for 4,000 steps.
        batch_size: items a step.
        num_trials: candidates; eight are halved together.
        minutes: no candidate is begun that would end later; the best so far is finished.
        seeds: trainings of the student that was chosen, and of its twin on labels alone: the best on validation data
            ships, and the verdict is over all of them. Each beyond the first costs two trainings.
        seed: of everything that is drawn. With it and the same measured costs a search is repeated.
        name: of the student.
        pixel_range: what `data.load` brought the data into, for what the bundle says of its inputs.
        any_teacher: go on with a teacher that answers the validation data no better than luck.
        engine: whose workers train candidates side by side: `"local"`, `"ray"`, or an engine of `keras_distill.scale`;
            they must see `out`. `None` trains one after another, here. What is found is the same.
        on_progress: called with what happens.
        is_stopped: asked between trainings; once true, the best so far is finished.

    Returns:
        What was found; also where the gate held it back.

    Raises:
        ValueError: no budget, or one that no candidate can hold: the message says what the nearest would need; a study
            of another teacher, other data or settings in `out`, or files that no search made; a teacher that does not
            know the data's classes.
        BlockingIOError: another search is at work in `out`.
        ImportError: Optuna is not installed.
    """
    if budgets.max_size is None and budgets.max_latency_ms is None and budgets.max_arena is None:
        other = "max_arena" if runtime == "tflm" else "max_latency_ms"
        remedy = f"Give max_size (bytes), {other} or both."
        raise ValueError(error_message("there must be a budget", "none", remedy))
    check_choice("runtime", runtime, RUNTIMES)
    for precision in precisions:
        check_choice("each of precisions", precision, PRECISIONS)
    precisions = _precisions_on(runtime, precisions, budgets)
    num_trials, batch_size = check_count("num_trials", num_trials), check_count("batch_size", batch_size)
    seeds, seed = check_count("seeds", seeds), check_count("seed", seed, 0)
    if minutes is not None:
        check_positive("minutes", minutes)
    workers = None if engine is None else engine_of(engine)
    began = time.monotonic()
    deadline = math.inf if minutes is None else began + 60.0 * minutes
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with only_one_in(out), optuna_quiet("compress"):
        _check_ours(out)
        on_progress(Progress("labelling the training data once", 0, num_trials, None, None))
        members = isinstance(teacher, Ensemble)
        store = label(teacher, dataset.train.inputs, out / "targets", members=members, engine=workers, progress=False)
        assert isinstance(store, SoftTargetStore)  # all of it was labelled
        if store.manifest.num_classes != dataset.num_classes:
            expectation = f"the teacher must tell the {dataset.num_classes} classes of {dataset.name} apart"
            remedy = "One sigmoid unit of logit z is the two logits 0 and z: add a layer that says so."
            received = f"outputs of {store.manifest.num_classes}"
            is_one_unit = store.manifest.num_classes == 1
            raise ValueError(error_message(expectation, received, remedy if is_one_unit else ""))
        store.check_softmax()
        knowledge = check_teacher(
            lambda inputs: all_logits(teacher, inputs).argmax(axis=-1), "the teacher", dataset, insist=any_teacher
        )
        training = Training(
            (dataset.train.inputs, dataset.train.labels),
            (dataset.validation.inputs, dataset.validation.labels),
            store,
            check_count("epochs", epochs) if epochs is not None else default_epochs(len(dataset.train), batch_size),
            batch_size,
            seed,
        )
        # Drawn, since the classes of many data sets lie one after another.
        calibration = dataset.validation.take(drawn_rows(len(dataset.validation), _NUM_CALIBRATION)).inputs
        meter = Meter(runtime, take_rows(dataset.validation.inputs, slice(1)), calibration, _stand_in_metadata(dataset))
        max_latency = None if budgets.max_latency_ms is None else _IN_HAND * budgets.max_latency_ms
        fitter = Fitter(meter, budgets.max_size, max_latency, seed, budgets.max_arena)
        on_progress(Progress("measuring the narrowest of each family", 0, num_trials, None, None))
        candidates, notes = families_for(teacher, dataset, families or {})
        notes += fitter.within_reach(candidates, list(precisions))
        settings = {
            "teacher": store.manifest.teacher_fingerprint,
            "data": store.manifest.dataset_fingerprint,
            "labels or validation data": every_item_fingerprint(
                [dataset.train.labels, dataset.validation.inputs, dataset.validation.labels]
            ),
            "budgets": asdict(budgets),
            "runtime": runtime,
            "precisions": list(precisions),
            "families": [family.identity for family in candidates],
            "epochs": training.epochs,
            "batch_size": batch_size,
            "seed": seed,
        }
        trials = Trials(out / _STUDY, settings, fitter.families, precisions, seed)
        fitter.families = trials.keep_families({family.name: family for family in candidates})
        fitter.recall(trials.all())

        def say(text: str) -> None:
            known = trials.all()
            ended = sum(trial.state in ("stopped", "finished", "failed") for trial in known)
            best = min((trial for trial in known if trial.scores), key=halving.projected, default=None)
            left = halving.seconds_for(num_trials - ended) or None
            on_progress(Progress(text, ended, num_trials, best, left))

        def is_over() -> bool:
            return is_stopped() or time.monotonic() > deadline

        halving = Halving(trials, fitter, CandidateTrainer(training, meter, (out / "trials").absolute()), workers, say)
        halving.run(num_trials, precisions, is_over, deadline)
        ranked = sorted((trial for trial in trials.all() if trial.scores), key=halving.projected)
        if not ranked:
            reasons = "; ".join(dict.fromkeys(trial.reason for trial in trials.all()))
            raise ValueError(error_message("some candidate must be trained", "none", f"Their errors: {reasons}"))
        finish = Finish(
            teacher,
            dataset,
            budgets,
            runtime,
            training,
            fitter,
            meter,
            out,
            seeds,
            Provenance(name, pixel_range=pixel_range),
        )
        num_trainings = sum(trial.epochs for trial in trials.all()) / training.epochs
        max_cost = _LEAST_TUNING if is_over() else _TUNING
        # Whoever the gate holds back gives way to the next that was trained to its end.
        num_judged = 0
        for trial in [trial for trial in ranked if trial.state == "finished"] or ranked[:1]:
            finished = finish.run(trial, max_cost, say)
            num_judged += 1
            num_trainings += finished.num_trainings
            if finished.shipment.out is not None:
                break
    compression = Compression(
        student=finished.student,
        quantized=finished.quantized,
        trial=trial,
        recipe=finished.recipe,
        bundle=finished.shipment.out,
        shipment=finished.shipment,
        verdict=finished.verdict,
        teacher_error=1.0 - knowledge.num_right / knowledge.num_items,
        test_errors=finished.test_errors,
        num_judged=num_judged,
        trials=tuple(trials.all()),
        front=tuple(pareto_front(trials.all())),
        cost=num_trainings,
        seconds=time.monotonic() - began,
        notes=tuple(notes),
    )
    _write(compression, out, budgets, dataset, name)
    return compression


def _precisions_on(runtime: str, precisions: Sequence[str], budgets: Budgets) -> Sequence[str]:
    """What a runtime computes in, of what was wished; raises where budgets of a chip and of this machine are mixed."""
    if runtime != "tflm":
        if budgets.max_arena is not None:
            expectation = "the runtime must be tflm where max_arena is a budget"
            raise ValueError(error_message(expectation, runtime, "Name it: --runtime tflm."))
        return precisions
    check_installed()
    if budgets.max_latency_ms is not None:
        remedy = "This machine's time says nothing of a chip's: give max_size, max_arena or both."
        raise ValueError(error_message("max_latency_ms must be none on tflm", budgets.max_latency_ms, remedy))
    if "int8" not in precisions:
        remedy = "A microcontroller computes in int8 alone: leave --precisions out."
        raise ValueError(error_message("precisions on tflm must hold int8", ", ".join(precisions), remedy))
    return ("int8",)


def _check_ours(out: Path) -> None:
    """Raises `ValueError` where a search would write over, or remove, what no search has made."""
    study = out / _STUDY
    if "?" in str(out.resolve()):
        # In a URL options begin there: the study would be another file, outside of the folder.
        raise ValueError(error_message("the path of a search's folder must be without a question mark", str(out)))
    if study.is_file():
        with study.open("rb") as file:
            start = file.read(16)
        # One that was killed as it made the file leaves it empty.
        theirs = [] if start in (b"", b"SQLite format 3\0") else [_STUDY]
    else:
        theirs = [name for name in (_STUDY, *_WRITTEN) if (out / name).exists()]
    if theirs:
        received = f"{', '.join(theirs)} of another's"
        raise ValueError(error_message(f"{out} must be new or hold a search", received, "Name another folder."))


def _write(compression: Compression, out: Path, budgets: Budgets, dataset: "Dataset", name: str) -> None:
    if compression.bundle is None:
        # One of an earlier run would be another student's.
        shutil.rmtree(out / "bundle", ignore_errors=True)
    with whole_file(out / "student.keras") as aside:
        compression.student.save(aside)
    if compression.quantized is not None:
        with whole_file(out / _QUANTIZED) as aside:
            compression.quantized.save(aside)
    else:
        (out / _QUANTIZED).unlink(missing_ok=True)
    with whole_file(out / "report.html") as aside:
        aside.write_text(report_page(compression, budgets, dataset, name), encoding="utf-8")
    with whole_file(out / "compression.json") as aside:
        aside.write_text(json.dumps(compression.to_json(), indent=1), encoding="utf-8")


def _stand_in_metadata(dataset: "Dataset") -> dict[str, Any]:
    """What the gate writes into a file, as long as it will be: hundreds of bytes count where few are allowed."""
    return {
        "class_names": dataset.class_names,
        "preprocessing": "-" * 160,
        "temperature": 1.0,
        "provenance": {"source": "-" * 40, "source_sha256": None, "data": dataset.name, "rest": "-" * 160}
        | {"data_licence": dataset.licence},
    }
