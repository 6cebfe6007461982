"""The rows of a table, before anything is made of them: read, its classes, and which row is of which split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill._checks import error_message
from keras_distill._kit import kit_module
from keras_distill.data.dataset import Split, carve, stratified_positions

if TYPE_CHECKING:
    import pandas

Columns = dict[str, list[Any]]

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
# Of rows without a split column, so many of a hundred are tested on, and of the others so many validated on.
_PER_CENT_TEST, _PER_CENT_VALIDATION = 20, 10
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def read_columns(path: Path, label: str | None) -> Columns:
    """A table's columns, each a list of what the file has.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file, and no pandas.
        ValueError: an empty or ragged file, or no label column named.
    """
    if not path.is_file():
        raise FileNotFoundError(error_message(f"{path!s} must be a table", "no such file"))
    columns: Columns = _read_parquet(path) if path.suffix == ".parquet" else kit_module("prepare").read_table(path)
    if label is None:
        raise ValueError(
            error_message(f"{path.name} needs the name of its label column", "none", f"Name one: {', '.join(columns)}.")
        )
    return columns


def is_table(path: Path) -> bool:
    """Whether a file is a table, by the end of its name.

    Example:
        >>> is_table(Path("people.csv.gz")), is_table(Path("people.npz"))
        (True, False)
    """
    return path.name.endswith(SUFFIXES)


def labels_of(column: str, values: Sequence[Any]) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes of a label column, and each row's.

    Returns:
        The names, whole numbers by size and others by letter; and int32 `(num_rows,)`.

    Raises:
        ValueError: a label is missing, all are one class, or they are as many as an id or a measurement has.

    Example:
        >>> labels_of("grade", ["10", "9", "10"])
        (('9', '10'), array([1, 0, 1], dtype=int32))
    """
    texts = [kit_module("prepare").text_of(value, ("",)) for value in values]
    subject = f"the label column {column!r}"
    num_missing = texts.count(None)
    if num_missing:
        remedy = "Drop those rows: nothing is learnt from them."
        received = f"none in {num_missing:,} of {len(texts):,}"
        raise ValueError(error_message(f"{subject} must have a value in every row", received, remedy))
    names = sorted(set(texts))
    numbers = [_number_or_none(text) for text in names]
    if all(number is not None for number in numbers):
        is_fraction = [not float(number).is_integer() for number in numbers if number is not None]
        if any(is_fraction) or (len(names) > 20 and len(names) > len(texts) / 20):
            received = f"{len(names):,} different numbers, {names[0]} among them"
            remedy = "Name another column, or make classes of its ranges."
            raise ValueError(error_message(f"{subject} must hold classes, no continuous number", received, remedy))
        names.sort(key=float)
    if len(names) < 2:
        received = f"{names[0]!r} in every row" if names else "no row"
        raise ValueError(error_message(f"{subject} must hold at least two classes", received, "Name another column."))
    if len(names) > max(20, len(texts) / 2):
        received = f"{len(names):,} different values in {len(texts):,} rows"
        raise ValueError(error_message(f"{subject} must hold classes", received, "Name another column."))
    places = {text: place for place, text in enumerate(names)}
    return tuple(names), np.array([places[text] for text in texts], "int32")


def split_column_of(columns: Columns, label: str) -> str | None:
    """The column that says which split a row is of, where there is one."""
    for name, values in columns.items():
        if (
            name.lower() == "split"
            and name != label
            and {str(value).strip().lower() for value in set(values)} <= set(_SPLITS)
        ):
            return name
    return None


def split_positions(subject: str, labels: np.ndarray, splits: Sequence[Any] | None) -> dict[str, np.ndarray]:
    """Which rows are of which split, each ascending."""
    if splits is None:
        if len(labels) < 10:
            received = f"{len(labels)}"
            raise ValueError(
                error_message(f"{subject} must have at least 10 rows, to train, validate and test on", received)
            )
        test = stratified_positions(labels, max(1, len(labels) * _PER_CENT_TEST // 100))
        positions = {"train": np.setdiff1d(np.arange(len(labels)), test), "test": test}
    else:
        meant = np.array([_SPLITS[str(value).strip().lower()] for value in splits])
        positions = {split: np.flatnonzero(meant == split) for split in ("train", "validation", "test")}
        for split in ("train", "test"):
            if len(positions[split]) < 2:
                received = f"{len(positions[split])}"
                remedy = "Mark rows for it, or drop the column: then a fifth is tested on."
                raise ValueError(
                    error_message(f"the column split of {subject} must mark 2 rows as {split}", received, remedy)
                )
    if not len(positions.get("validation", ())):
        num_taken = max(1, len(positions["train"]) * _PER_CENT_VALIDATION // 100)
        rows = Split(positions["train"], labels[positions["train"]])
        remains, taken = carve(rows, num_taken)
        positions |= {"train": np.asarray(remains.inputs), "validation": np.asarray(taken.inputs)}
    return positions


def columns_of(rows: Any) -> Columns:
    """The columns of a table in whichever form it came, each a list; a DataFrame's missing values are None."""
    if hasattr(rows, "iloc"):
        return {str(name): _values_of_series(rows[name]) for name in rows.columns}
    if isinstance(rows, Mapping):
        columns = {str(name): list(values) for name, values in rows.items()}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            received = ", ".join(f"{length} of {name!r}" for name, length in lengths.items())
            raise ValueError(error_message("the columns of a table must have as many values", received))
        return columns
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: kit_module("prepare").column_of(rows, name) for name in names}


def _values_of_series(series: "pandas.Series") -> list[Any]:
    values = series.astype(object)
    return values.where(series.notna(), None).tolist()


def _read_parquet(path: Path) -> Columns:
    try:
        import pandas
    except ImportError as error:
        remedy = "Install it: pip install 'keras-distill[tables]'; or save the table as .csv."
        raise ImportError(error_message(f"reading {path.name} needs pandas", str(error), remedy)) from error
    try:
        frame = pandas.read_parquet(path)
    except ImportError as error:
        remedy = "Install it: pip install 'keras-distill[tables]'; or save the table as .csv."
        raise ImportError(error_message(f"reading {path.name} needs pyarrow", "none", remedy)) from error
    except (ValueError, OSError) as error:
        received = " ".join(str(error).split())[:200]
        raise ValueError(
            error_message(f"{path.name} must be a readable Parquet file", received, "Write it again.")
        ) from error
    if frame.empty:
        raise ValueError(error_message(f"{path.name} must hold columns and rows", f"{frame.shape}", "Check the file."))
    return columns_of(frame)


def _number_or_none(text: str) -> float | None:
    try:
        return kit_module("prepare").number_of(text)
    except ValueError:
        return None
