"""Cut a student out of its teacher: fewer channels, blocks or pixels, and the teacher's own weights.

What it costs before and after is measured: parameters, multiply-adds, the bytes and the latency of the files that would
ship, in their runtimes. With --data, biases and BatchNormalization's statistics are put right on training examples, and
errors on the validation split are shown. OUT.json, beside OUT.keras, has all of it.

The student is a start: train it, with `keras-distill distill --teacher TEACHER.keras --student OUT.keras`.
"""

import argparse
from typing import TYPE_CHECKING

from keras_distill.cli import data_options, model_file

if TYPE_CHECKING:
    import keras

    from keras_distill._types import Inputs
    from keras_distill.cli.prune_settings import PruneSettings
    from keras_distill.data import Dataset

SUMMARY = "cut a student out of your teacher"
# So many training examples judge channels and repair.
NUM_CALIBRATION = 2560


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("teacher", metavar="TEACHER.keras", help="what is cut (.keras, .h5); the file itself is not changed")
    add("--keep", type=float, default=1.0, metavar="SHARE", help="share of the channels of every group (default: all)")
    add(
        "--multiple-of",
        type=int,
        default=1,
        metavar="N",
        help="round widths up to multiples of N channels (heads are not rounded); those of 8 are fast",
    )
    blocks = parser.add_mutually_exclusive_group()
    blocks.add_argument("--drop-every-second-block", action="store_true", help="of residual blocks and transformer "
        "layers that are alike, drop every second")  # fmt: skip
    blocks.add_argument("--drop-blocks", nargs="+", default=[], metavar="NAME", help="drop these blocks")
    add("--input-scale", type=float, default=1.0, metavar="SCALE", help="resize images by so much first")
    add("--importance", choices=("scales", "norms", "activations", "taylor"), default="scales",
        help="which channels stay; the last two look at --data (default: %(default)s)")  # fmt: skip
    data_options.add_data_arguments(parser, required=False)
    add("--out", required=True, metavar="OUT.keras", help="where the student goes; its record is OUT.json")
    add(
        "--overwrite",
        action="store_true",
        help="replace OUT.keras and OUT.json even if this command did not write them",
    )
    add("--quiet", action="store_true", help="nothing but errors")
    model_file.add_loading_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Cuts, measures, saves, and prints what changed."""
    from keras_distill.cli.prune_settings import PruneSettings
    from keras_distill.cli.settings import settings_of

    settings = settings_of(PruneSettings, arguments)
    settings.check()

    from rich.console import Console

    from keras_distill.cli import evaluation, prune_report
    from keras_distill.cli.student_file import student_file
    from keras_distill.pruning import channel_groups

    console = Console(quiet=settings.quiet, highlight=False)
    with student_file(settings.out, overwrite=settings.overwrite, command="prune") as out:
        teacher = model_file.load_cuttable(settings.teacher, settings)
        dataset = data_options.load(settings) if settings.data else None
        errors = {}
        if dataset is None:
            student = _cut(settings, teacher)
        else:
            evaluation.check_model_fits_dataset(teacher, dataset, "teacher")
            calibration = _calibration(dataset)
            as_cut = _cut(settings, teacher, calibration)
            student = _cut(settings, teacher, calibration, repair=True)
            models = {"teacher": teacher, "student, as cut": as_cut, "student, repaired": student}
            errors = {name: _validation_errors(model, dataset) for name, model in models.items()}
        with console.status("converting and timing both"):
            costs = prune_report.costs({"teacher": teacher, "student": student}, dataset)
        kept_whole = channel_groups(teacher).kept_whole
        student.save(out.model_aside)
        out.write_record(prune_report.record(settings, costs, errors, kept_whole))

    console.print(prune_report.table(costs))
    for line in prune_report.lines(costs, errors, kept_whole, dataset):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"saved {settings.out} and {out.record.name}", markup=False, soft_wrap=True)
    return 0


def _cut(
    settings: "PruneSettings",
    teacher: "keras.Model",
    calibration: "Inputs | None" = None,
    *,
    repair: bool = False,
) -> "keras.Model":
    from keras_distill.pruning import prune

    return prune(
        teacher,
        settings.keep,
        drop_blocks="every second" if settings.drop_every_second_block else settings.drop_blocks,
        input_scale=settings.input_scale,
        importance=settings.importance,
        calibration=calibration,
        repair=repair,
        multiple_of=settings.multiple_of,
    )


def _calibration(dataset: "Dataset") -> "Inputs":
    import numpy as np

    order = np.random.default_rng(0).permutation(len(dataset.train))[:NUM_CALIBRATION]
    return dataset.train.take(order).inputs


def _validation_errors(model: "keras.Model", dataset: "Dataset") -> int:
    from keras_distill.cli.evaluation import answers_function

    return int((answers_function(model)(dataset.validation.inputs) != dataset.validation.labels).sum())
