"""The switches with which the commands open a model's file, and the teachers of other formats that they open too."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import keras

    from keras_distill._types import Teacher
    from keras_distill.data import Dataset
    from keras_distill.teachers.outside import OutsideTeacher

from keras_distill.cli.evaluation import check_model_fits_dataset, check_num_classes

TEACHER_HELP = "one teacher (.keras, .h5, .onnx, a SavedModel, package.module:function), or several Keras models"


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
    """Loads a teacher.

    What an ONNX file, a SavedModel or a function gives, logits or probabilities, is seen by value; an ONNX file that
    wants its channels first is fed so.

    Args:
        path: a `.keras` file, an `.h5` of older versions of Keras, an `.onnx` file of any framework, the folder of a
            SavedModel, or a Python function (or model), `package.module:function`.
        options: as in `load`.
        dataset: what it must fit.

    Raises:
        ValueError: something of another kind, or a teacher of other inputs or classes than the data's.
    """
    from keras_distill._checks import error_message
    from keras_distill.teachers.function import is_function_name

    suffix = Path(path).suffix.lower()
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "saved_model.pb")):
            expectation = "--teacher must name .keras, .h5 or .onnx files, SavedModels or functions"
            raise ValueError(error_message(expectation, f"{path}, a folder", "Name the file itself."))
        return _saved_model_teacher(path, dataset)
    if suffix == ".onnx":
        return _onnx_teacher(path, dataset)
    if is_function_name(path) and not os.path.exists(path):
        return _named_teacher(path, options, dataset)
    teacher = _load_h5(path, options) if suffix in (".h5", ".hdf5") else load(path, options)
    check_model_fits_dataset(teacher, dataset, "teacher")
    return teacher


def load_cuttable(path: str, options: LoadingOptions) -> "keras.Model":
    """Loads a teacher out of which a student is cut.

    Raises:
        ValueError: as `load`; a teacher of a format that has no layers of Keras.
    """
    from keras_distill._checks import error_message
    from keras_distill.teachers.function import is_function_name

    suffix = Path(path).suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return _load_h5(path, options)
    is_function = is_function_name(path) and not os.path.exists(path)
    if suffix == ".onnx" or is_function or os.path.isfile(os.path.join(path, "saved_model.pb")):
        kind = "a function" if is_function else "an ONNX file" if suffix == ".onnx" else "a SavedModel"
        remedy = "It can still teach: keras-distill distill --teacher, or keras-distill compress."
        expectation = "a teacher that is cut must have Keras's layers, in a .keras or .h5 file"
        raise ValueError(error_message(expectation, f"{path}, {kind}", remedy))
    return load(path, options)


def as_one_teacher(teachers: "Sequence[Teacher]") -> "Teacher":
    """The one teacher, or the average of several.

    Raises:
        ValueError: several, and one among them that is no Keras model.
    """
    import keras

    from keras_distill._checks import error_message
    from keras_distill.teachers import Ensemble

    if len(teachers) == 1:
        return teachers[0]
    models = [teacher for teacher in teachers if isinstance(teacher, keras.Model)]
    if len(models) < len(teachers):
        others = ", ".join(repr(teacher) for teacher in teachers if not isinstance(teacher, keras.Model))
        remedy = "Give it as the only teacher, or average the logits in a function: --teacher my_module:mean."
        raise ValueError(error_message("several teachers must all be Keras models", f"{others} among them", remedy))
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


def _saved_model_teacher(path: str, dataset: "Dataset") -> "Teacher":
    from keras_distill.teachers import SavedModelTeacher

    return _by_value(lambda from_logits: SavedModelTeacher(path, from_logits=from_logits), path, dataset)


def _named_teacher(name: str, options: LoadingOptions, dataset: "Dataset") -> "Teacher":
    import keras

    from keras_distill.teachers import FunctionTeacher
    from keras_distill.teachers.function import named_object

    # As with `python -m`, modules of the current folder are found.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for module in options.modules:
        import_module(module)
    found = named_object(name)
    if isinstance(found, keras.Model):
        check_model_fits_dataset(found, dataset, "teacher")
        return found
    return _by_value(lambda from_logits: FunctionTeacher(name, from_logits=from_logits), name, dataset)


def _by_value(open_teacher: "Callable[[bool], OutsideTeacher]", name: str, dataset: "Dataset") -> "Teacher":
    """The teacher that `open_teacher(from_logits)` opens, as what it gives for some examples shows it to be."""
    import keras

    from keras_distill._checks import error_message
    from keras_distill.models.probabilities import activation_behind

    example = keras.tree.map_structure(lambda array: array[:32], dataset.train.inputs)
    shapes = ", ".join(str(array.shape[1:]) for array in keras.tree.flatten(example))
    teacher = open_teacher(True)
    try:
        outputs = teacher.logits(example)
    except Exception as error:
        # Whatever a user's function or another program's graph says of a batch.
        received = f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"
        expectation = f"{name} must take batches of shape (n, …) with examples of {shapes}, as {dataset.name} has"
        raise ValueError(error_message(expectation, received)) from error
    check_num_classes(outputs.shape[-1], dataset, "teacher")
    return teacher if activation_behind(outputs) is None else open_teacher(False)
