"""The switches with which the commands open a model's file, and the teachers of other formats that they open too."""

import argparse
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import keras

    from keras_distill._types import Teacher
    from keras_distill.data import Dataset

from keras_distill.cli.evaluation import check_model_fits_dataset, check_num_classes


class LoadingOptions(Protocol):
    """What `load` reads: parsed arguments, or a command's settings."""

    @property
    def modules(self) -> Sequence[str]:
        """Modules that register layers."""

    @property
    def trust_code(self) -> bool:
        """Whether code inside a file may run."""


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


def load(path: str, options: LoadingOptions) -> "keras.Model":
    """Loads a Keras model, without its optimizer.

    Args:
        path: a `.keras` file.
        options: parsed, with what `add_loading_arguments` added.

    Raises:
        ValueError: no such file, no Keras file, code inside without `--trust-code`, or an unknown layer.
    """
    from keras_distill.models.saving import load_model

    for module in options.modules:
        import_module(module)
    return load_model(path, compile=False, safe_mode=not options.trust_code)


def load_teacher(path: str, options: LoadingOptions, dataset: "Dataset") -> "Teacher":
    """Loads a teacher: a `.keras` file, an `.h5` of older versions of Keras, or an `.onnx` file of any framework.

    What an ONNX file's output holds, logits or probabilities, is seen by value; a file that wants its channels first
    is fed so.

    Raises:
        ValueError: a file of another kind (a SavedModel is told how it becomes an ONNX file), or a teacher of other
            inputs or classes than the data's.
    """
    from keras_distill._checks import error_message

    suffix = Path(path).suffix.lower()
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "saved_model.pb")):
            remedy = "Name the file itself."
            raise ValueError(
                error_message("--teacher must name .keras, .h5 or .onnx files", f"{path}, a folder", remedy)
            )
        remedy = f"Convert it once: python -m tf2onnx.convert --saved-model {path} --output teacher.onnx"
        remedy += " and give --teacher teacher.onnx."
        received = f"{path}, a SavedModel, which Keras 3 does not open"
        raise ValueError(error_message("--teacher must name .keras, .h5 or .onnx files", received, remedy))
    if suffix == ".onnx":
        return _onnx_teacher(path, dataset)
    teacher = _load_h5(path, options) if suffix in (".h5", ".hdf5") else load(path, options)
    check_model_fits_dataset(teacher, dataset, "teacher")
    return teacher


def as_one_teacher(teachers: "Sequence[Teacher]") -> "Teacher":
    """The one teacher, or the average of several.

    Raises:
        ValueError: several, and an ONNX file among them.
    """
    import keras

    from keras_distill._checks import error_message
    from keras_distill.teachers import Ensemble

    if len(teachers) == 1:
        return teachers[0]
    models = [teacher for teacher in teachers if isinstance(teacher, keras.Model)]
    if len(models) < len(teachers):
        remedy = "Give the ONNX file as the only teacher."
        raise ValueError(error_message("several teachers must all be Keras models", "an .onnx file among them", remedy))
    return Ensemble(models)


def _load_h5(path: str, options: LoadingOptions) -> "keras.Model":
    import keras

    from keras_distill._checks import error_message

    if not os.path.isfile(path):
        raise ValueError(error_message("a teacher must be a file", f"{path}, which does not exist", "Check the path."))
    for module in options.modules:
        import_module(module)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=not options.trust_code)
    except Exception as error:
        # The older format's reader raises whatever the file made it raise.
        received = f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"
        remedy = (
            "If it holds weights alone, build the model, load_weights, and save it with model.save('NAME.keras'); if "
            "it holds Lambda layers that you trust, add --trust-code."
        )
        raise ValueError(error_message(f"{path} must be a model that Keras opens", received, remedy)) from error


def _onnx_teacher(path: str, dataset: "Dataset") -> "Teacher":
    from keras_distill._checks import error_message
    from keras_distill._inputs import only_array
    from keras_distill.models.probabilities import activation_behind
    from keras_distill.teachers import OnnxTeacher

    example = only_array(dataset.train.inputs, "an .onnx teacher")[:32]
    image = example.shape[1:]
    errors = []
    for channels_first in (False, True) if len(image) == 3 else (False,):
        teacher = OnnxTeacher(path, channels_first=channels_first)
        try:
            outputs = teacher.logits(example)
        except ValueError as error:
            errors.append(str(error))
            continue
        check_num_classes(outputs.shape[-1], dataset, "teacher")
        from_logits = activation_behind(outputs) is None
        return teacher if from_logits else OnnxTeacher(path, from_logits=False, channels_first=channels_first)
    raise ValueError(error_message(f"{path} must take inputs of shape {image}, as {dataset.name} has", errors[0]))
