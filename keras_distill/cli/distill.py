"""Train your student on what your teacher knows, and save it as a plain Keras model.

The teacher is asked for its accuracy first. Beside the student its twin is trained on labels alone, and the run ends in
a verdict: whether distilling helped. OUT.json, beside OUT.keras, has all of it. Several teachers are averaged
(arithmetic mean of their softened predictions). The student's weights are where its file left them; give it fresh ones
to train from nothing.

With --quantize-aware it trains as the int8 network that it will be, best after it was distilled in float.
"""

import argparse
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from keras_distill.cli import config_file, data_options, model_file

if TYPE_CHECKING:
    import keras

    from keras_distill._types import Teacher
    from keras_distill.cli.distill_settings import DistillSettings
    from keras_distill.data import Dataset
    from keras_distill.targets import SoftTargetStore
    from keras_distill.teachers.knowledge import Knowledge

SUMMARY = "distil your teacher into your student"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--teacher", nargs="+", metavar="TEACHER", help=model_file.TEACHER_HELP)
    source.add_argument("--store", metavar="STORE", help="soft targets that `keras-distill label` stored")
    add("--student", required=True, metavar="S.keras", help="the model to train; the file itself is not changed")
    data_options.add_data_arguments(parser)
    add("--out", required=True, metavar="OUT.keras", help="where the trained student goes; its record is OUT.json")
    add(
        "--overwrite",
        action="store_true",
        help="replace OUT.keras and OUT.json even if this command did not write them",
    )
    add("--temperature", type=float, default=4.0, help="how soft the targets are; 1 to 20 (default: %(default)s)")
    add("--student-loss-weight", type=float, default=0.1, help="weight of the hard labels (default: %(default)s)")
    add("--epochs", type=int, help="passes over the training set (default: as many as make 4,000 steps, 20 to 1,000)")
    add("--early-stopping", type=int, metavar="PATIENCE", help="stop after so many epochs without a smaller validation "
        "loss, and keep the best weights")  # fmt: skip
    add("--batch-size", type=int, default=128, help="items a step (default: %(default)s)")
    add("--learning-rate", type=float, default=1e-3, help="Adam's, with cosine decay to zero (default: %(default)s)")
    add("--no-twin", dest="twin", action="store_false", help="spare the twin on labels; then there is no verdict")
    add("--tune", action="store_true", help="choose temperature, weight of the labels (labels alone too) and learning "
        "rate on validation data, for four or five trainings; OUT.tune keeps the study")  # fmt: skip
    add("--any-teacher", action="store_true", help="train even where the teacher answers no better than chance")
    add("--distribute", choices=("mirrored", "data-parallel"), help="train on all devices: of TensorFlow, of JAX")
    add("--coordinator", metavar="HOST:PORT", help="with data-parallel on several hosts: where process 0 listens")
    add("--process", default="0/1", metavar="I/N", help="which of N such processes this is (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the shuffling and of dropout (default: %(default)s)")
    add("--quantize-aware", action="store_true", help="train the student as an int8 network; export keeps its integers")
    add("--log-dir", metavar="DIR", help="write TensorBoard's events to DIR/distilled and DIR/labels")
    add("--verbose", action="store_true", help="a line for each epoch")
    add("--quiet", action="store_true", help="nothing but errors")
    config_file.add_config_argument(parser)
    model_file.add_loading_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Trains, saves, and prints the table and the verdict."""
    from keras_distill.cli.distill_settings import DistillSettings
    from keras_distill.cli.settings import settings_of

    began = time.monotonic()
    settings = settings_of(DistillSettings, arguments)
    settings.check()

    from rich.console import Console

    from keras_distill.cli import distill_in_parallel, distill_report, distill_training, distill_tuned
    from keras_distill.cli.engine_options import share_of
    from keras_distill.cli.student_file import student_file
    from keras_distill.distillation.training_length import default_epochs
    from keras_distill.scale import distributed

    is_parallel = settings.distribute == "data-parallel"
    speaks = share_of(settings.process)[0] == 0 and not settings.quiet
    console = Console(quiet=not speaks, highlight=False)
    train = distill_in_parallel.train if is_parallel else distill_training.train
    if is_parallel:
        distill_in_parallel.find_each_other(settings)
    mirrored = distributed(None if is_parallel else settings.distribute)
    # Opened before hours of training, so that an output that cannot be written is said now.
    with mirrored, student_file(settings.out, overwrite=settings.overwrite) as out:
        given, dataset, teacher, store, known = _opened(settings)
        for who, found in known.items():
            console.print(f"{who}: {found}", markup=False, soft_wrap=True)
        epochs = settings.epochs or default_epochs(len(dataset.train), settings.batch_size)
        models = {}
        if teacher is not None:
            models[distill_report.TEACHER] = distill_report.judged(teacher, dataset)
        models[distill_report.GIVEN] = distill_report.judged(given, dataset)
        tuned = distill_tuned.tune(settings, dataset, epochs, teacher, store) if settings.tune else None
        if tuned is not None:
            trainings = distill_report.tuned_trainings(tuned)
        else:
            trainings = {distill_report.DISTILLED: train(settings, dataset, epochs, teacher, store)}
        if settings.twin and tuned is None:
            trainings[distill_report.TWIN] = train(settings, dataset, epochs, teacher, store, on_labels=True)
        for name in (distill_report.TWIN, distill_report.DISTILLED):
            if name in trainings:
                models[name] = distill_report.judged(trainings[name].student, dataset)
        distilled = trainings[distill_report.DISTILLED]
        taught = settings if tuned is None else replace(settings, temperature=tuned.candidate.temperature)
        verdict = distill_report.verdict(taught, dataset, models, distilled, teacher) if settings.twin else None
        distilled.student.save(out.model_aside)
        seconds = time.monotonic() - began
        record = distill_report.record(settings, dataset, epochs, models, known, trainings, verdict, seconds)
        if tuned is not None:
            record["tuning"] = distill_tuned.tuning_record(tuned)
        out.write_record(record)

    for note in distilled.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if tuned is not None:
        console.print(distill_tuned.chosen_text(tuned), markup=False, soft_wrap=True)
    console.print(distill_report.table(models, dataset, as_int8=settings.quantize_aware))
    length = distill_report.length_note(distilled, epochs, was_chosen=settings.epochs is None)
    if length:
        console.print(length, markup=False, soft_wrap=True)
    if verdict is not None:
        console.print(distill_report.verdict_text(verdict), markup=False, soft_wrap=True)
    console.print(f"saved {settings.out} and {out.record.name}", markup=False, soft_wrap=True)
    return 0


def _opened(
    settings: "DistillSettings",
) -> "tuple[keras.Model, Dataset, Teacher | None, SoftTargetStore | None, dict[str, Knowledge]]":
    """The student, the data, teacher or store, and what each teacher knows: all that can be refused before training."""
    from keras_distill.cli import evaluation

    student = model_file.load(settings.student, settings)
    dataset = data_options.load(settings)
    evaluation.check_model_fits_dataset(student, dataset, "student")
    if settings.store:
        from keras_distill.targets import SoftTargetStore

        store = SoftTargetStore.open(settings.store, num_items=len(dataset.train))
        if not settings.tune:
            store.check_temperature(settings.temperature)
        store.check_softmax()
        evaluation.check_num_classes(store.manifest.num_classes, dataset, "store")
        found = evaluation.check_store(store, settings.store, dataset, insist=settings.any_teacher)
        known = {f"the store {settings.store}": found}
        return student, dataset, None, store, known
    teachers: list[Teacher] = []
    known = {}
    for path in settings.teacher or []:
        teacher = model_file.load_teacher(path, settings, dataset)
        found = evaluation.check_teacher(teacher, path, dataset, insist=settings.any_teacher)
        known[f"the teacher {path}"] = found
        teachers.append(teacher)
    return student, dataset, model_file.as_one_teacher(teachers), None, known
