"""The switches with which the commands read a data set: `--data`, `--label` and `--pixel-range`, for example."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from keras_distill.data import Dataset


class DataOptions(Protocol):
    """What `load` reads: parsed arguments, or a command's settings."""

    @property
    def data(self) -> str:
        """A name or a path."""

    @property
    def pixel_range(self) -> str | None:
        """One of `PIXEL_RANGES`."""

    @property
    def label(self) -> str | None:
        """The label column of a table."""

    @property
    def leave_out(self) -> Sequence[str]:
        """Columns of a table that the models do not see."""

    @property
    def text(self) -> str | None:
        """The column of a table that holds texts."""

    @property
    def tokenizer(self) -> str | None:
        """The path of a `tokenizer.json`."""

    @property
    def pieces(self) -> int:
        """Into how many pieces each number of a table is cut."""


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool = True, purpose: str = "") -> None:
    """Adds the switches that `load` reads; where `--data` is not required, it is empty by default.

    Args:
        parser: of a command.
        required: whether the command needs data.
        purpose: what the help of `--data` says first.
    """
    add = parser.add_argument
    add(
        "--data",
        required=required,
        default="",
        help=f"{purpose}digits, mnist, spoken_digit, cifar100, tfds:NAME, an .npz, a table (.csv, .csv.gz, .tsv, "
        ".parquet), a folder of images or one of texts",
    )
    add("--label", metavar="COLUMN", help="the column of a table that holds the classes")
    add("--text", metavar="COLUMN", help="the column of a table that holds texts, all that the models then see")
    add("--tokenizer", metavar="FILE", help="a tokenizer.json for the texts (default: trained on the training split)")
    add("--leave-out", nargs="+", default=[], metavar="COLUMN", help="columns of a table that the models do not see")
    add("--pieces", type=int, default=0, metavar="N", help="cut each number of a table into N pieces, so that a small "
        "network sees thresholds as trees do; 16 to 32 (default: its scaled value alone)")  # fmt: skip
    add(
        "--pixel-range",
        metavar="RANGE",
        help="what the models were trained on: 0-1, 0-255, =-1-1, standardised, imagenet or caffe (default: as read, "
        "images from 0 to 1)",
    )


def load(options: "DataOptions") -> "Dataset":
    """Reads the data set that `--data` names, in the range that `--pixel-range` names; says what a table left out.

    Raises:
        ValueError: an unknown data set or range, or data that cannot be brought into that range.
        OSError: data that is not there.
    """
    from keras_distill import data
    from keras_distill._checks import check_choice
    from keras_distill.data.pixel_range import PIXEL_RANGES

    if options.pixel_range is not None:
        check_choice("--pixel-range", options.pixel_range, PIXEL_RANGES, "Leave it out for data as they are read.")
    dataset = data.load(
        options.data,
        pixel_range=options.pixel_range,
        label=options.label,
        leave_out=tuple(options.leave_out),
        text=options.text,
        tokenizer=options.tokenizer,
        pieces=options.pieces,
    )
    for note in dataset.preparation.notes if dataset.preparation else ():
        print(note, file=sys.stderr)
    return dataset


def pixel_range_option(pixel_range: str) -> str:
    """How the command line says a range: after a sign of equality where it would be taken for another option.

    Example:
        >>> pixel_range_option("0-255"), pixel_range_option("-1-1")
        ('--pixel-range 0-255', '--pixel-range=-1-1')
    """
    return f"--pixel-range{'=' if pixel_range.startswith('-') else ' '}{pixel_range}"
