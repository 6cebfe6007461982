"""The switches with which the commands open a `.keras` file."""

import argparse
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


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
        ValueError: no such file, no Keras file, code inside that nobody vouched for, or an unknown layer.
    """
    from keras_distill.saving import load_model

    for module in arguments.modules:
        import_module(module)
    return load_model(path, compile=False, safe_mode=not arguments.trust_code)
