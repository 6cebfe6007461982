"""Makes a student's inputs out of raw rows, as `preparation.json` says. Needs numpy, nothing else.

    specification = json.loads(Path("preparation.json").read_text(encoding="utf-8"))
    inputs = prepare(specification, read_table("people.csv"))

keras-distill prepares what it trains on with this very file, so that the device repeats it bit for bit.

A specification is JSON: its `format_version`, its `kind` (one of KINDS), a `description`, and what that kind needs.
"""

import csv
import datetime
import difflib
import gzip
import json
import math
from pathlib import Path

import numpy as np

FORMAT_VERSION = 1
DELIMITERS = ",;\t|"
TRUTH = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
EPOCH = datetime.datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def prepare(specification, rows):
    """Returns the inputs, `{input name: (num_rows, ...)}`; the name of an only input may be another than the model's.

    Args:
        specification: what preparation.json holds.
        rows: a dict of columns, `{column: one value a row}`, or a list of rows, a dict of columns' values each.
            A value is a string as a CSV file has it, a number, a boolean, a date, or None where it is missing.

    Raises ValueError for a specification of another version, a column that is not there, a value that is no number in a
    column of numbers, or no rows.
    """
    version, kind = specification.get("format_version"), specification.get("kind")
    if version != FORMAT_VERSION or kind not in KINDS:
        remedy = "Use the prepare.py that came with it."
        expectation = f"a preparation must have version {FORMAT_VERSION} and be one of {', '.join(KINDS)}"
        raise ValueError(f"{expectation}; got version {version!r} of {kind!r}. {remedy}")
    return KINDS[kind](specification, rows)


# Rows


def read_table(path):
    """Returns the columns of a .csv file (or .tsv, and either of them .gz), `{column: list of strings}`.

    The first line names the columns; what separates them (a comma, a semicolon, a tab or a bar) is seen there.

    Raises ValueError where there is no header or no row, a column's name stands twice, or a line has more or fewer
    values than the header.
    """
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline()
            delimiter = max(DELIMITERS, key=first.count)
            header = next(csv.reader([first], delimiter=delimiter), [])
            header = [name.strip() for name in header]
            check_header(path, header)
            columns = [[] for _ in header]
            reader = csv.reader(file, delimiter=delimiter)
            for row in reader:
                if len(row) == len(header):
                    for column, value in zip(columns, row, strict=True):
                        column.append(value)
                elif row:  # an empty line is no row
                    received = f"{len(row)} in line {reader.line_num + 1}"
                    remedy = "Quote values that hold the separator, and give every row all columns."
                    raise ValueError(
                        f"{path.name} must have {len(header)} values a line, as its header; got {received}. {remedy}"
                    )
        except (UnicodeDecodeError, csv.Error, OSError, EOFError) as error:
            remedy = "Write it again, as comma-separated values in UTF-8."
            raise ValueError(f"{path.name} must be a readable table; got {error}. {remedy}") from None
    if not columns[0]:
        raise ValueError(f"{path.name} must hold a header and rows under it; got no row. Check the file.")
    return dict(zip(header, columns, strict=True))


def check_header(path, header):
    """Raises ValueError where the names of the columns are none, or one of them stands twice."""
    if not header:
        raise ValueError(f"{path.name} must begin with a line of columns' names; got nothing there. Check the file.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path.name} must name each column once; got {twice[0]!r} twice. Rename one of them.")


def column_of(rows, name):
    """Returns one value a row; raises ValueError where a row has no such column."""
    if not isinstance(rows, dict):
        for number, row in enumerate(rows, 1):
            if name not in row:
                raise ValueError(no_such_column(name, row, f"in row {number} "))
        return [row[name] for row in rows]
    if name not in rows:
        raise ValueError(no_such_column(name, rows))
    return list(rows[name])


def no_such_column(name, known, where=""):
    """Returns the sentence that says so, with the columns that there are and the nearest of them."""
    nearest = difflib.get_close_matches(name, known, n=1)
    remedy = f" Did you mean {nearest[0]}?" if nearest else ""
    return f"there must be a column {name!r} {where}among the data's; got {', '.join(known)}.{remedy}"


# Values


def text_of(value, missing=()):
    """Returns a value as text, None where it is missing: 1 and 1.0 are "1", True is "true"."""
    if value is None or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return None
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    text = (value.isoformat() if hasattr(value, "isoformat") else str(value)).strip()
    return None if text in missing else text


def number_of(text):
    """Returns a number; raises ValueError where a text is none, or is infinite."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def truth_of(text):
    """Returns 1 for true and yes, 0 for false and no; raises ValueError for another text."""
    if text.lower() not in TRUTH:
        raise ValueError(text)
    return TRUTH[text.lower()]


def days_of(text):
    """Returns the days since 1970 of a date such as 2020-12-31 or 2020-12-31T23:59:59; without an offset it is UTC."""
    if text[:1].isdigit() and text[4:5] != "-":  # 20201231 may as well be a number
        raise ValueError(text)
    moment = datetime.datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=EPOCH.tzinfo)
    return (moment - EPOCH).total_seconds() / 86400.0


# What the values of a column become before they are scaled.
NUMBERS = {"number": number_of, "boolean": truth_of, "date": days_of}
EXAMPLES = {"number": "a number", "boolean": "true or false", "date": "a date such as 2020-12-31"}


def numbers_of(name, kind, texts):
    """Returns a column's numbers, float64 `(num_rows,)`, NaN for None; raises ValueError for other texts."""
    parse = NUMBERS[kind]
    numbers = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        if text is not None:
            try:
                numbers[row] = parse(text)
            except ValueError:
                remedy = "Leave the value empty where it is not known."
                raise ValueError(
                    f"the column {name!r} must hold {EXAMPLES[kind]}; got {text!r} in row {row + 1}. {remedy}"
                ) from None
    return numbers


# A table


def prepare_table(specification, rows):
    """Returns one input of a table's columns side by side, float32 `(num_rows, num_features)`.

    Numbers are brought to mean 0 and deviation 1 of the training split; one that is missing is put at the mean and,
    where the column has an indicator, said so by a 1 beside it. Where it has edges, each piece between two of them is a
    feature too: 0 below it, 1 above it, and straight in between. A category is 1 in the place of its value; missing is
    a value of its own where the training split had it; one never seen, or too rare, is 1 in the place of "other" where
    there is one, else all zeros.
    """
    missing = frozenset(specification["missing"])
    blocks = []
    for column in specification["columns"]:
        texts = [text_of(value, missing) for value in column_of(rows, column["name"])]
        blocks.append(one_hot(column, texts) if column["kind"] == "category" else scaled(column, texts))
    lengths = {len(block) for block in blocks}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"rows must be one or more, with every column of as many values; got {sorted(lengths)}.")
    return {specification["input"]: np.concatenate(blocks, axis=1)}


def scaled(column, texts):
    """Returns a column's numbers scaled, their pieces, and whether each is missing, float32 `(num_rows, …)`."""
    numbers = numbers_of(column["name"], column["kind"], texts)
    is_missing = np.isnan(numbers)
    numbers = np.where(is_missing, column["mean"], numbers)
    features = np.empty((len(texts), 1 + max(0, len(column["edges"]) - 1) + column["indicator"]), "float32")
    features[:, 0] = (numbers - column["mean"]) / column["deviation"]
    if column["edges"]:
        edges = np.array(column["edges"])
        pieces = np.clip((numbers[:, None] - edges[:-1]) / np.diff(edges), 0.0, 1.0)
        features[:, 1 : len(edges)] = pieces
    if column["indicator"]:
        features[:, -1] = is_missing
    return features


def one_hot(column, texts):
    """Returns a column of categories, float32 `(num_rows, num_values)`: its values, missing, other."""
    places = {value: place for place, value in enumerate(column["values"])}
    width = len(places)
    if column["missing"]:
        places[None] = width
        width += 1
    if column["other"]:
        # Missing is no other value: where training had none, it is all zeros.
        places.setdefault(None, -1)
        chosen = np.array([places.get(text, width) for text in texts], int)
        width += 1
    else:
        chosen = np.array([places.get(text, -1) for text in texts], int)
    features = np.zeros((len(texts), width), "float32")
    is_known = np.flatnonzero(chosen >= 0)
    features[is_known, chosen[is_known]] = 1.0
    return features


# What a preparation may be: from a specification and rows to the inputs, `{input name: (num_rows, ...)}`.
KINDS = {"table": prepare_table}


# A bundle


def inputs_from(path, manifest, bundle):
    """Returns a student's inputs, `{input name: (num_rows, ...)}`, out of a file.

    Args:
        path: a .npy of its only input, a .npz of arrays by its inputs' names, both as the student takes them, or
            golden.npz; or a table of raw rows, for which the bundle has a preparation.
        manifest: the bundle's.
        bundle: its folder.

    Raises ValueError where the file does not have what the student takes.
    """
    entries = manifest["inputs"]
    names = [entry["name"] for entry in entries]
    if str(path).endswith((".npy", ".npz")):
        loaded = np.load(path, allow_pickle=False)
        arrays = dict(loaded) if str(path).endswith(".npz") else {"": loaded}
        golden = {name.removeprefix("input/"): array for name, array in arrays.items() if name.startswith("input/")}
        arrays = golden or arrays
    elif manifest.get("preparation"):
        text = (Path(bundle) / manifest["preparation"]["file"]).read_text(encoding="utf-8")
        arrays = prepare(json.loads(text), read_table(path))
    else:
        raise ValueError(f"this student takes .npy or .npz files; got {path}. It was trained on no table.")
    if len(arrays) == len(entries) == 1:
        arrays = dict(zip(names, arrays.values(), strict=True))
    if set(arrays) != set(names):
        raise ValueError(f"inputs must be called {', '.join(names)}; got {', '.join(arrays) or 'one without a name'}.")
    return {entry["name"]: arrays[entry["name"]].astype(entry["dtype"], casting="same_kind") for entry in entries}
