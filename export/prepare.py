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
import re
from pathlib import Path

import numpy as np

FORMAT_VERSION = 1
DELIMITERS = ",;\t|"
MOST_CHARACTERS = 100_000_000
TRUTH = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
EPOCH = datetime.datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def prepare(specification, rows):
    """Returns the inputs, `{input name: (num_rows, ...)}`; the name of an only input may be another than the model's.

    Args:
        specification: what preparation.json holds.
        rows: a dict of columns, `{column: one value a row}`, or a list of rows, a dict of columns' values each.
            A value is a string as a CSV file has it, a number, a boolean, a date, or None where it is missing.
            Of texts a list of strings will do.

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
        # The csv module refuses values of more than 131,072 characters, which a text may well have.
        limit = csv.field_size_limit(MOST_CHARACTERS)
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
        finally:
            csv.field_size_limit(limit)
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


# Texts

# What a word is: up to 32 characters between spaces and punctuation; a mark of punctuation is a word of its own.
# Written out, since each language has a \s and a \w of its own, in syntax that Python, JavaScript and Rust read alike.
SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
MARKS = "!-\\/:-@\\[-`{-~\xa1\xab\xbb\xbf\u2010-\u2027\u2030-\u205e\u3001-\u3020\uff01-\uff0f\uff1a-\uff20"
WORDS = f"[^{SPACES}{MARKS}]{{1,32}}|[{MARKS}]"
# Printable bytes stand for themselves, the others for characters from U+0100 on, as in every byte-level tokeniser.
UNPRINTABLE = [byte for byte in range(256) if not (33 <= byte <= 126 or (byte >= 161 and byte != 173))]
BYTES = {byte: 256 + place for place, byte in enumerate(UNPRINTABLE)}
MOST_WORDS_KEPT = 100_000


class WordPieces:
    """Texts to ids, as the tokenizer.json that keras-distill trains says: what the library `tokenizers` makes of it.

    Lower case, character by character; words (see WORDS) as the bytes of UTF-8; of each word, from its start, the
    longest piece of the vocabulary and so on, and the unknown id in place of a word that has no such pieces.
    """

    def __init__(self, tokenizer):
        model = tokenizer["model"]
        self.vocabulary = model["vocab"]
        self.unknown = self.vocabulary[model["unk_token"]]
        self.longest = max(map(len, self.vocabulary))
        self.words = re.compile(WORDS).finditer
        self.known = {}

    def __call__(self, text, length):
        """Returns the first `length` ids of a text, a list; reads no further than it needs."""
        if not text.isascii():
            # Half a surrogate pair is no character; a final sigma is a sigma.
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\u03a3", "\u03c3")
        ids = []
        for match in self.words(text.lower()):
            word = match.group()
            ids += self.known[word] if word in self.known else self.pieces(word)
            if len(ids) >= length:
                return ids[:length]
        return ids

    def pieces(self, word):
        """Returns the ids of a word, and keeps them."""
        if len(self.known) >= MOST_WORDS_KEPT:
            self.known.clear()
        letters = word.encode().decode("latin-1").translate(BYTES)
        ids, start = [], 0
        while start < len(letters):
            for stop in range(min(len(letters), start + self.longest), start, -1):
                if letters[start:stop] in self.vocabulary:
                    ids.append(self.vocabulary[letters[start:stop]])
                    start = stop
                    break
            else:
                ids = [self.unknown]
                break
        self.known[word] = ids
        return ids


class AnyTokenizer:
    """Texts to ids by the library `tokenizers`, for every other tokenizer.json."""

    def __init__(self, tokenizer):
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            remedy = "Install it: pip install tokenizers."
            raise ImportError(f"this tokenizer.json needs the library tokenizers; got {error}. {remedy}") from None
        self.tokenizer = Tokenizer.from_str(json.dumps(tokenizer))
        self.tokenizer.no_padding()

    def __call__(self, text, length):
        """Returns the ids of a text, a list of at most `length`."""
        self.tokenizer.enable_truncation(length)
        return self.tokenizer.encode(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")).ids


def text_tokenizer(specification):
    """Returns what turns one text into its ids, `tokenizer(text, length)`: make it once, call it for every text."""
    is_ours = specification["algorithm"] == "word pieces"
    return (WordPieces if is_ours else AnyTokenizer)(specification["tokenizer"])


def prepare_text(specification, rows):
    """Returns one input, int32 token ids `(num_rows, length)`: cut to length, or padded behind.

    `rows` may be a list of strings. An empty text, or none, is padding alone.
    """
    is_plain = not isinstance(rows, dict) and all(isinstance(row, str) for row in rows)
    texts = list(rows) if is_plain else column_of(rows, specification["column"])
    if not texts:
        raise ValueError("there must be a text; got none. Give one or more.")
    tokenizer, length = text_tokenizer(specification), specification["length"]
    tokens = np.full((len(texts), length), specification["padding"], "int32")
    for row, value in enumerate(texts):
        text = value if isinstance(value, str) else text_of(value)
        ids = tokenizer(text or "", length)
        tokens[row, : len(ids)] = ids
    return {specification["input"]: tokens}


# What a preparation may be: from a specification and rows to the inputs, `{input name: (num_rows, ...)}`.
KINDS = {"table": prepare_table, "text": prepare_text}


# A bundle


def read_specification(bundle, manifest):
    """Returns what preparation.json holds, with the tokenizer.json that it names in place of the name."""
    path = Path(bundle) / manifest["preparation"]["file"]
    specification = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(specification.get("tokenizer"), str):
        file = path.with_name(specification["tokenizer"])
        specification["tokenizer"] = json.loads(file.read_text(encoding="utf-8"))
    return specification


def raw_rows(path, specification):
    """Returns the rows of a table; of texts also the lines of a .txt, or what was given where no file is called so."""
    if specification["kind"] != "text" or str(path).endswith((".csv", ".tsv", ".gz")):
        return read_table(path)
    if not str(path).endswith(".txt"):
        return [str(path)]
    lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    return [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]


def inputs_from(path, manifest, bundle):
    """Returns a student's inputs, `{input name: (num_rows, ...)}`, out of a file.

    Args:
        path: a .npy of its only input, a .npz of arrays by its inputs' names, both as the student takes them; or, where
            the bundle has a preparation, raw rows: a table, or for a student of texts a .txt of one a line, or a text.
        manifest: the bundle's.
        bundle: its folder.

    Raises ValueError where the file does not have what the student takes.
    """
    entries = manifest["inputs"]
    names = [entry["name"] for entry in entries]
    if str(path).endswith((".npy", ".npz")):
        try:
            loaded = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path} must be a readable file of arrays; got {error}. Check the path.") from None
        arrays = dict(loaded) if str(path).endswith(".npz") else {"": loaded}
        golden = {name.removeprefix("input/"): array for name, array in arrays.items() if name.startswith("input/")}
        arrays = golden or arrays
    elif manifest.get("preparation"):
        specification = read_specification(bundle, manifest)
        arrays = prepare(specification, raw_rows(path, specification))
    else:
        raise ValueError(f"this student takes pictures, .npy or .npz files; got {path}. It was trained on no table.")
    if len(arrays) == len(entries) == 1:
        arrays = dict(zip(names, arrays.values(), strict=True))
    if set(arrays) != set(names):
        raise ValueError(f"inputs must be called {', '.join(names)}; got {', '.join(arrays) or 'one without a name'}.")
    return {entry["name"]: checked_input(arrays[entry["name"]], entry, path) for entry in entries}


def checked_input(array, entry, path):
    """Returns an array as the input `entry` of a manifest; raises ValueError where it is not such an input."""
    shape = tuple("any" if size is None else size for size in entry["shape"])
    is_of_shape = array.ndim == len(shape) and all(
        size in ("any", held) for size, held in zip(shape, array.shape, strict=True)
    )
    if not is_of_shape or not len(array):
        wanted = f"{path} must hold examples of shape {shape} for {entry['name']!r}"
        raise ValueError(f"{wanted}; got {array.shape}. The first number counts the examples.")
    if not np.can_cast(array.dtype, entry["dtype"], casting="same_kind"):
        raise ValueError(f"{path} must hold {entry['dtype']} for {entry['name']!r}; got {array.dtype}. Convert it.")
    if not np.isfinite(array).all():
        raise ValueError(f"{path} must hold finite numbers for {entry['name']!r}; got NaN or infinite ones.")
    low, high = entry.get("value_range", (0.0, 0.0))
    margin = 9.0 * (high - low)  # what is new may go beyond the training data, but not ten times as far
    is_beyond = array.min() < low - margin or array.max() > high + margin
    if is_beyond and margin and np.issubdtype(entry["dtype"], np.floating):
        wanted = (
            f"{path} must hold values from about {low:g} to {high:g} for {entry['name']!r}, as the training data has"
        )
        seen = f"{array.min():g} to {array.max():g}"
        raise ValueError(f"{wanted}; got {seen}. Scale it as manifest.json says under preprocessing.")
    return array.astype(entry["dtype"], casting="same_kind")
