"""Tables: a column of labels, and every other column made numbers that a network takes.

What is fitted here, on the training split alone, is a specification in JSON; what it does to rows is in the kit's
`prepare.py`, with which this file prepares its splits too.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill._checks import check_count, error_message
from keras_distill._kit import kit_module
from keras_distill.data.dataset import Dataset, Split
from keras_distill.data.preparation import Preparation
from keras_distill.data.table_rows import (
    Columns,
    columns_of,
    labels_of,
    read_columns,
    split_column_of,
    split_positions,
)

if TYPE_CHECKING:
    import pandas

# What stands for a value that is missing, after spaces are taken off.
MISSING = ("", "?", "#N/A", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null")
# A category's values beyond so many, the rarest, share one place.
MAX_VALUES = 64
_DATE_LIKE = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}\b")
# Below so many rows every number may well have a value of its own in each.
_FEWEST_FOR_IDS = 20


def load_table(path: str | Path, label: str | None, *, leave_out: Sequence[str] = (), pieces: int = 0) -> Dataset:
    """Loads a dataset from a `.csv`, `.tsv` (either may be `.gz`) or `.parquet` file.

    Args:
        path: the file; its first line names the columns. Parquet needs pandas, the extra `tables`.
        label: the column that holds the classes.
        leave_out: columns that the model shall not see.
        pieces: into how many pieces each number is cut, as `from_table` says.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file, and no pandas.
        ValueError: what `from_table` refuses, and an empty or ragged file.
    """
    path = Path(path)
    columns = read_columns(path, label)
    assert label is not None  # or read_columns would have refused it
    return from_table(columns, label, name=path.name.split(".")[0], leave_out=leave_out, pieces=pieces)


def from_table(
    rows: "Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | pandas.DataFrame",
    label: str,
    *,
    name: str = "table",
    leave_out: Sequence[str] = (),
    pieces: int = 0,
    licence: str = "not stated in the file",
) -> Dataset:
    """A dataset out of a table in memory.

    Each column is seen for what its training values are. Numbers, dates (2020-12-31, as days) and booleans get mean 0
    and deviation 1; where one is missing it is put at the mean, and a second feature says so. Other columns are
    categories, one feature a value: missing is a value of its own, and beyond the 64 most frequent ones the rest share
    the place "other". A value that training never showed is "other" where there is that place, else all zeros.

    Left out, and said so in `preparation.notes`: columns of one value, of none, and those of a value of its own in
    every row, as ids and names have.

    Args:
        rows: columns by name, a list of rows by column, or a DataFrame of pandas.
        label: the column that holds the classes; their names are its values, sorted.
        name: the dataset's.
        leave_out: columns that the model shall not see.
        pieces: into how many pieces of about as many rows each number and date is cut, beside its scaled value: 0 below
            a piece, 1 above it, straight in between. A small network then sees thresholds as trees do; 16 to 32 are
            usual, and it has so many more inputs for each number. 0 leaves the scaled value alone.
        licence: the data's terms.

    Returns:
        A `Dataset` of float32 inputs `(num_rows, num_features)`. A column `split` of train, validation and test says
        what is what; without validation a tenth of train is carved off. Without such a column a fifth of the rows is
        tested on and a tenth of the others validated on, each class in proportion, the same rows every time.

    Raises:
        ValueError: a column that is not there, labels that are missing, continuous or all of one class, a column
            that is neither, of numbers with words among them or of dates in another form, too few rows.

    Example:
        >>> dataset = from_table({"size": [1, 2, 4] * 20, "big": ["no", "no", "yes"] * 20}, label="big", name="sizes")
        >>> dataset
        Dataset 'sizes', 2 classes: no, yes
          train: Split(inputs=float32[44, 1], labels=int32[44])
          validation: Split(inputs=float32[4, 1], labels=int32[4])
          test: Split(inputs=float32[12, 1], labels=int32[12])
          prepared: 1 number: 1 feature

    Reference:
        Gorishniy, Rubachev, Babenko, "On Embeddings for Numerical Features in Tabular Deep Learning",
        arXiv:2203.05556, section 3.2: the pieces.
    """
    check_count("pieces", pieces, 0)
    columns = columns_of(rows)
    subject = f"the table {name!r}"
    for column in (label, *leave_out):
        if column not in columns:
            raise ValueError(kit_module("prepare").no_such_column(column, list(columns)))
    class_names, labels = labels_of(label, columns[label])
    split_column = split_column_of(columns, label)
    positions = split_positions(subject, labels, None if split_column is None else columns[split_column])
    features = {
        column: values
        for column, values in columns.items()
        if column not in (label, split_column) and column not in leave_out
    }
    train_columns = {column: [values[at] for at in positions["train"]] for column, values in features.items()}
    preparation = fit_table(train_columns, label, pieces)
    # All rows at once, so that an error counts them as the file does.
    whole = Split(preparation(features), labels)
    train, validation, test = (whole.take(positions[split]) for split in ("train", "validation", "test"))
    return Dataset(name, train, validation, test, class_names, licence, preparation)


def fit_table(columns: Columns, label: str, pieces: int = 0) -> Preparation:
    """What makes features of a table's columns, fitted on the rows of its training split.

    Raises:
        ValueError: a column of numbers with words among them, of dates in another form, or none that can be used.
    """
    fitted, notes = [], []
    for name, values in columns.items():
        texts = [kit_module("prepare").text_of(value, MISSING) for value in values]
        present = [text for text in texts if text is not None]
        kind = _kind_of(name, present) if present else "category"
        reason = _why_useless(kind, texts) if present else "no value in the training split"
        if reason:
            notes.append(f"The column {name!r} is left out: it has {reason}.")
        else:
            fitted.append(_fit_column(name, kind, texts, pieces))
    if not fitted:
        received = " ".join(notes) or f"none beside {label!r}"
        sentences = next((name for name, values in columns.items() if " " in str(values[0]).strip()), None)
        remedy = f"If {sentences!r} holds texts, say --text {sentences} (text={sentences!r})." if sentences else ""
        raise ValueError(error_message("a table must have a column that a model can learn from", received, remedy))
    specification = {
        "format_version": kit_module("prepare").FORMAT_VERSION,
        "kind": "table",
        "description": _description(fitted),
        "notes": notes,
        "label": label,
        "input": "inputs",
        "missing": MISSING,
        "columns": fitted,
    }
    return Preparation(specification)


def feature_names(preparation: Preparation) -> list[str]:
    """What each feature of a table says, in the order of the last axis of its inputs.

    Example:
        >>> table = {"size": [1.0, None] * 20, "colour": ["red", "blue"] * 20, "kind": ["a", "b"] * 20}
        >>> feature_names(from_table(table, label="kind").preparation)
        ['size', 'size is missing', 'colour=blue', 'colour=red']
    """
    names = []
    for column in preparation.specification["columns"]:
        name = column["name"]
        if column["kind"] == "category":
            names += [f"{name}={value}" for value in column["values"]]
            names += [f"{name} is missing"] * column["missing"] + [f"{name} is another"] * column["other"]
        else:
            names += [name, *[f"{name} over {edge:g}" for edge in column["edges"][:-1]]]
            names += [f"{name} is missing"] * column["indicator"]
    return names


def _fit_column(name: str, kind: str, texts: Sequence[str | None], pieces: int) -> dict[str, Any]:
    """What `prepare.py` needs to know of one column."""
    present = [text for text in texts if text is not None]
    has_missing = len(present) < len(texts)
    if kind == "category":
        counts = Counter(present)
        # The rarest go first, of equally rare ones those at the end of the alphabet.
        kept = sorted(sorted(counts, key=lambda value: (-counts[value], value))[:MAX_VALUES])
        return {"name": name, "kind": kind, "values": kept, "missing": has_missing, "other": len(kept) < len(counts)}
    numbers = kit_module("prepare").numbers_of(name, kind, present)
    # Of a value that never changes nothing but its absence tells anything.
    deviation = float(numbers.std()) or 1.0
    edges = [] if kind == "boolean" else _edges(numbers, pieces)
    return {
        "name": name,
        "kind": kind,
        "mean": float(numbers.mean()),
        "deviation": deviation,
        "edges": edges,
        "indicator": has_missing,
    }


def _edges(numbers: np.ndarray, pieces: int) -> list[float]:
    """Where a column of numbers is cut, ascending; none where two pieces could not be told apart.

    Example:
        >>> _edges(np.arange(9.0), 4), _edges(np.array([0.0, 1.0]), 4)
        ([0.0, 2.0, 4.0, 6.0, 8.0], [])
        >>> _edges(np.array([0.0] * 90 + [1.0, 2.0, 5.0]), 3)
        [0.0, 1.0, 2.0, 5.0]
    """
    if not pieces:
        return []
    shares = np.linspace(0.0, 1.0, pieces + 1)
    # Values that are there, not means of two.
    edges = np.unique(np.quantile(numbers, shares, method="nearest"))
    if len(edges) <= max(2, pieces / 2):
        # Most rows have one value: the others are cut among themselves.
        values, counts = np.unique(numbers, return_counts=True)
        others = numbers[numbers != values[counts.argmax()]]
        if len(others):
            edges = np.unique([*edges, *np.quantile(others, shares, method="nearest")])
    return edges.tolist() if len(edges) > 2 else []


def _kind_of(name: str, present: Sequence[str]) -> str:
    """What the values of a column are: one of `prepare.NUMBERS`, or "category".

    Raises:
        ValueError: numbers with words among them, or dates in another form.
    """
    parsers = kit_module("prepare").NUMBERS
    for kind in ("boolean", "number", "date"):
        if all(_parses(parsers[kind], text) for text in present):
            return kind
    dates = [text for text in present if _DATE_LIKE.match(text)]
    if len(dates) == len(present):
        remedy = f"Write them so, or leave the column out (--leave-out {name})."
        raise ValueError(
            error_message(f"the column {name!r} must hold dates such as 2020-12-31", repr(dates[0]), remedy)
        )
    words = [text for text in present if not _parses(parsers["number"], text)]
    if len(words) < 0.05 * len(present) and len(set(present)) > MAX_VALUES:
        received = f"{words[0]!r} among them ({len(words):,} of {len(present):,} values are no numbers)"
        remedy = f"Leave them empty, or leave the column out (--leave-out {name})."
        raise ValueError(error_message(f"the column {name!r} must hold numbers alone", received, remedy))
    return "category"


def _why_useless(kind: str, texts: Sequence[str | None]) -> str:
    """What a column has that no model learns from, or nothing."""
    distinct = {text for text in texts if text is not None}
    if len(distinct) == 1 and None not in texts:
        return f"the same value in every row of the training split, {texts[0]!r}"
    is_own = len(distinct) == len(texts) >= _FEWEST_FOR_IDS
    if kind == "number" and is_own:
        numbers = [kit_module("prepare").number_of(text) for text in distinct]
        # Other whole numbers may well be measured: what counts rows lies close together.
        is_counter = all(each.is_integer() for each in numbers) and max(numbers) - min(numbers) < 3 * len(numbers)
        return "a whole number of its own in every row, as an id has" if is_counter else ""
    if kind == "category" and is_own:
        return "a value of its own in every row, as an id or a name has"
    if kind == "category" and len(distinct) > max(MAX_VALUES, len(texts) / 2):
        return f"{len(distinct):,} different values in {len(texts):,} rows, as free text has"
    return ""


def width_of(column: Mapping[str, Any]) -> int:
    """How many features a fitted column has."""
    if column["kind"] == "category":
        return len(column["values"]) + column["missing"] + column["other"]
    return 1 + max(0, len(column["edges"]) - 1) + column["indicator"]


def _description(fitted: Sequence[Mapping[str, Any]]) -> str:
    words = {
        "number": ("number", "numbers"),
        "boolean": ("boolean", "booleans"),
        "date": ("date", "dates"),
        "category": ("category", "categories"),
    }
    counts = Counter(column["kind"] for column in fitted)
    parts = [f"{counts[kind]} {names[counts[kind] > 1]}" for kind, names in words.items() if counts[kind]]
    width = sum(map(width_of, fitted))
    return f"{', '.join(parts)}: {width} feature{'s' if width > 1 else ''}"


def _parses(parse: Any, text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True
