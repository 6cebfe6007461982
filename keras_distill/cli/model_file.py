"""The switches with which the commands open a `.keras` file."""

import argparse
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

    from keras_distill.data import Dataset

from keras_distill.cli.evaluation import check_model_fits_dataset


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the switches that `load` takes."""
    parser.add_argument(
        "--import",
        dest="modules",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="modules that register your own layers",
    )
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="run the Python code inside the .keras file (Lambda layers); only for files that you trust",
    )


def load(path: str, arguments: argparse.Namespace) -> "keras.Model":
    """Loads a Keras model, without its optimizer.

    Args:
        path: a `.keras` file.
        arguments: parsed, with what `add_loading_arguments` added.

    Raises:
        ValueError: no such file, no Keras file, code inside without `--trust-code`, or an unknown layer.
    """
    from keras_distill.models.saving import load_model

    for module in arguments.modules:
        import_module(module)
    return load_model(path, compile=False, safe_mode=not arguments.trust_code)


def keras_file(path: str) -> str:
    """`path`, if Keras can write a model there; raises `ValueError` otherwise."""
    if not path.endswith(".keras"):
        raise ValueError(f"--out must be a .keras file; got {path}. For other formats run keras-distill export on it.")
    return path


def load_teacher(arguments: argparse.Namespace, dataset: "Dataset") -> "keras.Model":
    """The teacher that `--teacher` names; of several their average."""
    from keras_distill.teachers import Ensemble

    teachers = [load(path, arguments) for path in arguments.teacher]
    for teacher in teachers:
        check_model_fits_dataset(teacher, dataset, "teacher")
    return teachers[0] if len(teachers) == 1 else Ensemble(teachers)
