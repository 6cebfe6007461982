"""Datasets in an `.npz` of the user's own: `x_train`, `y_train`, `x_test`, `y_test`.

Of several inputs each has an array by its name: `x_train/token_ids`, `x_train/padding_mask`, `x_test/token_ids`, ….
"""

from pathlib import Path

import numpy as np

from keras_distill._checks import check_finite, error_message
from keras_distill.data import local_data
from keras_distill.data.dataset import Dataset, Split, carve

REQUIRED = ("x_train", "y_train", "x_test", "y_test")


def load_npz(path: Path, name: str | None = None, class_names: tuple[str, ...] = (), licence: str = "") -> Dataset:
    """Loads a dataset from an `.npz`.

    Args:
        path: a file with `x_train`, `y_train`, `x_test`, `y_test`; optional are `x_validation` and
            `y_validation` (else a tenth of train is carved off, the same one every time), `class_names`
            (strings) and `licence` (a string). Inputs of dtype uint8 are pixels: they become float32 in
            [0, 1], and `(num_items, height, width)` gets a channel axis. Other integers (tokens) become
            int32, floats float32, booleans stay. Labels are integers, `(num_items,)` or `(num_items, 1)`. In place of
            `x_train` there may be `x_train/NAME` for each input that the model has by that name, and so for the others.
        name: the dataset's name; the file's own where `None`.
        class_names: used where the file holds none. Where neither has any: "0", "1", … to the highest label.
        licence: used where the file states none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a corrupt file, a missing array, labels out of range, a split without examples,
            NaN or infinite inputs, inputs of other names in another split.
    """
    arrays = local_data.read_arrays(path, REQUIRED)
    train = _split(path, arrays, "train")
    if _inputs_of(path, arrays, "validation"):
        validation = _split(path, arrays, "validation")
    elif len(train) < 2:
        raise ValueError(
            error_message(f"x_train in {path} must hold at least 2 examples, one of them to validate on", len(train))
        )
    else:
        train, validation = carve(train, max(1, len(train) // 10))
    test = _split(path, arrays, "test")
    if "class_names" in arrays:
        class_names = tuple(str(class_name) for class_name in arrays["class_names"].tolist())
    highest = max((int(split.labels.max()) for split in (train, validation, test) if len(split)), default=0)
    class_names = class_names or tuple(str(label) for label in range(highest + 1))
    licence = str(arrays["licence"]) if "licence" in arrays else licence
    return Dataset(name or path.stem, train, validation, test, class_names, licence or "not stated in the file")


def _split(path: Path, arrays: dict[str, np.ndarray], split_name: str) -> Split:
    """The `Split` that `x_…` and `y_…` describe."""
    if f"y_{split_name}" not in arrays:
        raise ValueError(error_message(f"{path!s} must hold y_{split_name} beside x_{split_name}", "none"))
    named, labels = _inputs_of(path, arrays, split_name), arrays[f"y_{split_name}"]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        received = f"shape {labels.shape}, dtype {labels.dtype}"
        expectation = f"y_{split_name} in {path} must be integers of shape (num_items,)"
        raise ValueError(error_message(expectation, received, _remedy_for(labels)))
    inputs = {
        name: as_inputs(f"x_{split_name}{'/' + name if name else ''} in {path}", array) for name, array in named.items()
    }
    return Split(inputs.get("", inputs), labels.astype("int32"))


def _remedy_for(labels: np.ndarray) -> str:
    """What to do about labels that are not one integer an item; nothing of it may lose what they say."""
    in_python = "are not read from a file here: train on them in Python, with Distiller(…).fit(x, y)."
    if labels.dtype.kind in "US":
        return "Number the classes, those of all splits at once, with numpy.unique(labels, return_inverse=True)[1]."
    if labels.ndim == 1:
        is_whole = labels.dtype.kind == "b" or (labels.dtype.kind == "f" and bool((labels == np.floor(labels)).all()))
        return (
            "Turn them into integers with labels.astype(int)." if is_whole else f"Targets of a regression {in_python}"
        )
    if labels.ndim == 2 and bool(np.isin(labels, (0, 1)).all()):
        if bool((labels.sum(axis=1) == 1).all()):
            return "Turn one-hot labels into integers with numpy.argmax(labels, axis=-1)."
        return f"Several labels an item {in_python[:-1]} and losses.BinarySoftTargets."
    if labels.ndim == 2 and labels.dtype.kind == "f" and np.allclose(labels.sum(axis=1), 1.0, atol=1e-3):
        remedy = "Probabilities of the classes are soft targets, not labels: give the true classes, or the likeliest"
        return f"{remedy} ones with numpy.argmax(labels, axis=-1)."
    return f"Labels of several values an item {in_python}"


def _inputs_of(path: Path, arrays: dict[str, np.ndarray], split_name: str) -> dict[str, np.ndarray]:
    """The inputs of a split by name; one that has none is "". Nothing where there are none."""
    whole, prefix = f"x_{split_name}", f"x_{split_name}/"
    named = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    if "" in named:
        raise ValueError(error_message(f"an array of {path!s} must have a name after {prefix}", "none"))
    if named and whole in arrays:
        raise ValueError(error_message(f"{path!s} must hold either {whole} or {whole}/NAME", "both"))
    return {"": arrays[whole]} if whole in arrays else named


def as_inputs(subject: str, inputs: np.ndarray) -> np.ndarray:
    """Brings inputs to the house's form: pixels float32 in [0, 1] with channels, tokens int32, masks bool.

    Example:
        >>> as_inputs("pixels", np.full((1, 2, 2), 255, "uint8")).shape
        (1, 2, 2, 1)
    """
    if inputs.ndim < 2:
        raise ValueError(error_message(f"{subject} must have shape (num_items, ...)", f"shape {inputs.shape}"))
    if inputs.dtype == np.uint8:
        pixels = inputs[..., None] if inputs.ndim == 3 else inputs
        return pixels.astype("float32") / np.float32(255.0)
    if np.issubdtype(inputs.dtype, np.integer):
        return inputs.astype("int32")
    if inputs.dtype == np.bool_:
        return inputs
    if np.issubdtype(inputs.dtype, np.floating):
        return check_finite(subject, inputs).astype("float32")
    raise ValueError(error_message(f"{subject} must be numbers", f"dtype {inputs.dtype}"))
