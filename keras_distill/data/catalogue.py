"""The names that `load` knows, and where each of them comes from."""

import os
from collections.abc import Sequence
from pathlib import Path

from keras_distill._checks import did_you_mean, error_message
from keras_distill.data.cifar100 import load_cifar100
from keras_distill.data.dataset import Dataset
from keras_distill.data.digits import load_digits
from keras_distill.data.image_folder import image_files, load_image_folder
from keras_distill.data.mnist import load_mnist
from keras_distill.data.npz import load_npz
from keras_distill.data.pixel_range import in_pixel_range
from keras_distill.data.spoken_digit import load_spoken_digit
from keras_distill.data.table import load_table
from keras_distill.data.table_rows import is_table
from keras_distill.data.text import load_text_folder, load_texts, text_files
from keras_distill.data.tfds import load_tfds

NAMES = ("digits", "mnist", "spoken_digit", "cifar100")
_OF_TFDS = "tfds:"
KNOWN = f"{', '.join(NAMES)}, tfds:NAME, a folder of images or texts, an .npz file or a table (.csv, .parquet)"


def load(
    name: str | os.PathLike,
    *,
    image_size: tuple[int, int] | None = None,
    pixel_range: str | None = None,
    label: str | None = None,
    leave_out: Sequence[str] = (),
    text: str | None = None,
    tokenizer: str | os.PathLike | None = None,
    pieces: int = 0,
) -> Dataset:
    """Loads a dataset by its name or its path, whole and into memory.

    `mnist`, `spoken_digit` and `cifar100` are looked for in the folder that the environment variable
    `KERAS_DISTILL_DATA` names (`mnist.npz`, `fsdd.npz`, `cifar100.npz` or `cifar-100-binary/`), else
    downloaded by tensorflow-datasets. `digits` needs neither.

    Args:
        name: `"digits"`, `"mnist"`, `"spoken_digit"`, `"cifar100"`, `"tfds:NAME"`, a folder with one folder of images
            or of `.txt` files a class, an `.npz` with `x_train`, `y_train`, `x_test`, `y_test`, or a table: `.csv`,
            `.csv.gz`, `.tsv` or `.parquet` (see `table.from_table`, and `text.from_texts` where `text` is given).
        image_size: `(height, width)` to resize the images of a folder or of `tfds:NAME` to.
        pixel_range: the range to bring the inputs into, one of `pixel_range.PIXEL_RANGES`, for a model that was
            trained on `"0-255"`, say; `None` leaves them as they were read.
        label: of a table, the column that holds the classes.
        leave_out: of a table, columns that the model shall not see.
        text: of a table, the column of texts that the model reads; others are not used.
        tokenizer: of texts, the `tokenizer.json` to use; by default one is trained on the training split.
        pieces: of a table, into how many pieces each number is cut beside its scaled value.

    Returns:
        The `Dataset`; its images are float32 in [0, 1] with a channel axis, unless `pixel_range` says otherwise.

    Raises:
        ValueError: an unknown name, or data that is not what it should be.
        FileNotFoundError: a path that does not exist.
        OSError: data that is neither local nor to be downloaded.

    Example:
        >>> digits = load("digits")
        >>> digits.train.inputs.shape, digits.num_classes
        ((719, 8, 8, 1), 10)
    """
    where = os.fspath(name)
    path = Path(where).expanduser()
    is_text_folder = path.is_dir() and _holds_texts(path)
    # What isn't there at all is refused by whoever would read it: a misspelt name is no matter of columns.
    is_there = where in NAMES or where.startswith(_OF_TFDS) or path.exists()
    if tokenizer is not None and text is None and not is_text_folder and is_there:
        remedy = "Name the column of texts, text=…"
        raise ValueError(error_message("a tokeniser must be of texts", f"{where!r} beside it", remedy))
    own_tokenizer = None if tokenizer is None else os.fspath(tokenizer)
    if is_table(path):
        if text is None:
            dataset = load_table(path, label, leave_out=leave_out, pieces=pieces)
        else:
            dataset = load_texts(path, text, label, tokenizer=own_tokenizer)
    elif is_there and (label is not None or leave_out or pieces or text is not None):
        of_texts = text is not None and label is None and not leave_out and not pieces
        remedy = "Leave it out: the inputs are known." if of_texts else "Leave it out: labels are known."
        expectation = f"a {'text' if of_texts else 'label'} column must be a table's"
        raise ValueError(error_message(expectation, f"{where!r} beside it", remedy))
    elif is_text_folder:
        dataset = load_text_folder(path, tokenizer=own_tokenizer)
    else:
        dataset = _read(where, image_size)
    return dataset if pixel_range is None else in_pixel_range(dataset, pixel_range)


def _holds_texts(folder: Path) -> bool:
    """Whether there are texts and no images in a folder's classes: pictures may have captions beside them."""
    return bool(text_files(folder)) and not image_files(folder)


def _read(text: str, image_size: tuple[int, int] | None) -> Dataset:
    match text:
        case "digits":
            return load_digits()
        case "mnist":
            return load_mnist()
        case "spoken_digit":
            return load_spoken_digit()
        case "cifar100":
            return load_cifar100()
    if text.startswith(_OF_TFDS):
        return load_tfds(text.removeprefix(_OF_TFDS), image_size)
    path = Path(text).expanduser()
    if path.is_dir():
        return load_image_folder(path, image_size)
    if path.suffix == ".npz":
        return load_npz(path)
    if path.exists():
        raise ValueError(
            error_message(
                f"the data {text!r} must be a folder of images or texts, an .npz file or a table (.csv, .parquet)",
                "another kind of file",
            )
        )
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(
            error_message(f"the data {text!r} must be a file, a folder or one of {KNOWN}", "no such file or folder")
        )
    raise ValueError(error_message(f"the data must be one of {KNOWN}", repr(text), did_you_mean(text, NAMES)))
