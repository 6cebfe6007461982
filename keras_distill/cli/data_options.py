"""The switches with which the commands read a data set: `--data` and `--pixel-range`."""

import argparse
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


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the switches that `load` reads; where `--data` is not required, it is empty by default."""
    add = parser.add_argument
    add(
        "--data",
        required=required,
        default="",
        help="digits, mnist, spoken_digit, cifar100, tfds:NAME, an .npz or an image folder",
    )
    add(
        "--pixel-range",
        metavar="RANGE",
        help="what the models were trained on: 0-1, 0-255, =-1-1, standardised, imagenet or caffe (default: as read, "
        "images from 0 to 1)",
    )


def load(options: "DataOptions") -> "Dataset":
    """Reads the data set that `--data` names, in the range that `--pixel-range` names.

    Raises:
        ValueError: an unknown data set or range, or data that cannot be brought into that range.
        OSError: data that is not there.
    """
    from keras_distill import data
    from keras_distill._checks import check_choice
    from keras_distill.data.pixel_range import PIXEL_RANGES

    if options.pixel_range is not None:
        check_choice("--pixel-range", options.pixel_range, PIXEL_RANGES, "Leave it out for data as they are read.")
    return data.load(options.data, pixel_range=options.pixel_range)


def pixel_range_option(pixel_range: str) -> str:
    """How the command line says a range: after a sign of equality where it would be taken for another option.

    Example:
        >>> pixel_range_option("0-255"), pixel_range_option("-1-1")
        ('--pixel-range 0-255', '--pixel-range=-1-1')
    """
    return f"--pixel-range{'=' if pixel_range.startswith('-') else ' '}{pixel_range}"
