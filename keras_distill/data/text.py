"""Texts: a column of them or a folder of `.txt` files, made token ids by a tokeniser that training fits or brings.

The tokeniser is one file, `tokenizer.json`, in the form of the library `tokenizers`. Ours is trained by that library
and applied by the kit's `prepare.py`, in forty lines that the web page has in JavaScript too; so it is the plainest
there is: lower case, words, and of each word the longest piece that the vocabulary has, over and over. Nothing in it
asks a table of Unicode but lower case, since Python, Rust and browsers bring tables of different years.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill._checks import check_count, error_message
from keras_distill._kit import kit_module
from keras_distill.data.dataset import Dataset, Split
from keras_distill.data.image_folder import VALIDATION_NAMES, is_hidden
from keras_distill.data.preparation import Preparation
from keras_distill.data.table_rows import columns_of, labels_of, read_columns, split_column_of, split_positions

if TYPE_CHECKING:
    import pandas

Tokenizer = Mapping[str, Any]

PADDING, UNKNOWN = "[PAD]", "[UNK]"
# Of hundred training texts so many are whole at the length that is chosen, which is a multiple of eight.
_PER_CENT_WHOLE, _MULTIPLE, _LONGEST = 99, 8, 512
# No word has more: 32 characters of four bytes.
_MOST_BYTES = 128


def load_texts(path: str | Path, text: str, label: str | None, *, tokenizer: str | Path | None = None) -> Dataset:
    """Loads a dataset from a table with a column of texts.

    Args:
        path: a `.csv`, `.tsv` (either may be `.gz`) or `.parquet` file whose first line names the columns.
        text: the column that holds the texts.
        label: the column that holds the classes.
        tokenizer: a `tokenizer.json` to use; by default one is trained.

    Raises:
        FileNotFoundError: no such file.
        ImportError: no library `tokenizers`, the extra `text`, where one is trained or is not of ours.
        ValueError: what `from_texts` refuses, and an empty or ragged file.
    """
    path = Path(path)
    columns = read_columns(path, label)
    assert label is not None  # or read_columns would have refused it
    return from_texts(columns, text, label, name=path.name.split(".")[0], tokenizer=tokenizer)


def load_text_folder(folder: Path, *, tokenizer: str | Path | None = None) -> Dataset:
    """Loads `folder/train/CLASS/*.txt` and `folder/test/CLASS/*.txt`, or `folder/CLASS/*.txt`; a file is a text.

    Without a `train` folder a fifth of the texts is tested on. `folder/validation/` may exist; else a tenth of the
    training texts validates. Each in proportion to the classes, the same ones every time.

    Raises:
        ImportError: as `load_texts`.
        ValueError: a file that is not UTF-8, `train/` without `test/`, and what `from_texts` refuses.
    """
    columns: dict[str, list[Any]] = {"text": [], "label": [], "split": []}
    has_splits = (folder / "train").is_dir()
    if has_splits and not (folder / "test").is_dir():
        raise ValueError(error_message(f"{folder} must be a folder with test/ beside train/", "no test/"))
    for file in text_files(folder):
        parts = file.relative_to(folder).parts
        split, name = parts[:2] if has_splits else ("", parts[0])
        columns["text"].append(_read_text(file))
        columns["label"].append(name)
        columns["split"].append(split)
    if not has_splits:
        del columns["split"]
    return from_texts(columns, "text", "label", name=folder.resolve().name, tokenizer=tokenizer)


def text_files(folder: Path) -> list[Path]:
    """The `.txt` files of a folder's classes, sorted; none where it holds no such files."""
    splits = ("train", "test", *VALIDATION_NAMES) if (folder / "train").is_dir() else None
    found = []
    for path in folder.rglob("*.txt"):
        parts = path.relative_to(folder).parts
        is_in_class = len(parts) >= 2 if splits is None else len(parts) >= 3 and parts[0] in splits
        if path.is_file() and is_in_class and not any(is_hidden(part) for part in parts):
            found.append(path)
    return sorted(found)


def from_texts(
    rows: "Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | pandas.DataFrame",
    text: str,
    label: str,
    *,
    name: str = "texts",
    tokenizer: "Tokenizer | str | Path | None" = None,
    vocabulary_size: int = 4000,
    length: int | None = None,
    licence: str = "not stated in the file",
) -> Dataset:
    """A dataset out of texts and their classes in memory. Tokeniser and length are fitted on the training split alone.

    Args:
        rows: columns by name, a list of rows by column, or a DataFrame of pandas; columns that are not named here are
            not used, but for `split` (see `from_table`).
        text: the column that holds the texts.
        label: the column that holds the classes; their names are its values, sorted.
        name: the dataset's.
        tokenizer: what a `tokenizer.json` holds, or its path; by default one is trained.
        vocabulary_size: the most ids that a trained one has, padding (0) and unknown (1) among them.
        length: tokens of one example; by default 99 of 100 training texts are whole, up to 512.
        licence: the data's terms.

    Returns:
        A `Dataset` of int32 token ids `(num_rows, length)`, padded behind; split as `from_table` does it.

    Raises:
        ImportError: no library `tokenizers`, the extra `text`, where one is trained or is not of ours.
        ValueError: a column that is not there, no text in any training row, a tokeniser that cannot be read, and
            labels and rows that `from_table` refuses.

    Example:
        >>> rows = {"said": ["where is my card", "what do you charge"] * 20, "about": ["card", "fees"] * 20}
        >>> dataset = from_texts(rows, text="said", label="about")
        >>> dataset
        Dataset 'texts', 2 classes: card, fees
          train: Split(inputs=int32[29, 8], labels=int32[29])
          validation: Split(inputs=int32[3, 8], labels=int32[3])
          test: Split(inputs=int32[8, 8], labels=int32[8])
          prepared: texts as up to 8 tokens of 35, by a tokeniser trained on them
        >>> dataset.preparation(["Where is my fee?"]).shape
        (1, 8)
    """
    columns = columns_of(rows)
    for column in (text, label):
        if column not in columns:
            raise ValueError(kit_module("prepare").no_such_column(column, list(columns)))
    class_names, labels = labels_of(label, columns[label])
    split = split_column_of(columns, label)
    positions = split_positions(f"the texts {name!r}", labels, None if split is None else columns[split])
    text_of = kit_module("prepare").text_of
    texts = [value if isinstance(value, str) else text_of(value) or "" for value in columns[text]]
    preparation = fit_texts(
        [texts[at] for at in positions["train"]],
        text,
        tokenizer=tokenizer,
        vocabulary_size=vocabulary_size,
        length=length,
    )
    whole = Split(preparation(texts), labels)
    train, validation, test = (whole.take(positions[split]) for split in ("train", "validation", "test"))
    return Dataset(name, train, validation, test, class_names, licence, preparation)


def fit_texts(
    texts: Sequence[str],
    column: str = "text",
    *,
    tokenizer: "Tokenizer | str | Path | None" = None,
    vocabulary_size: int = 4000,
    length: int | None = None,
) -> Preparation:
    """What makes token ids of texts, fitted on those of a training split; arguments as of `from_texts`.

    Raises:
        ImportError, ValueError: as `from_texts`.
    """
    num_empty = sum(not text.strip() for text in texts)
    if num_empty == len(texts):
        raise ValueError(error_message(f"the column {column!r} must hold texts", "none in the training split"))
    notes = [f"The column {column!r} is empty in {num_empty:,} of {len(texts):,} training rows."] if num_empty else []
    is_trained = tokenizer is None
    if tokenizer is None:
        tokenizer = train_tokenizer(texts, vocabulary_size)
    elif isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = read_tokenizer(Path(tokenizer))
    specification: dict[str, Any] = {
        "format_version": kit_module("prepare").FORMAT_VERSION,
        "kind": "text",
        "notes": notes,
        "column": column,
        "input": "inputs",
        "algorithm": "word pieces" if is_ours(tokenizer) else "tokenizers",
        "padding": _padding_id(tokenizer),
        "tokenizer": tokenizer,
    }
    turn = kit_module("prepare").text_tokenizer(specification)
    lengths = [len(turn(text, _LONGEST)) for text in texts]
    if length is None:
        enough = float(np.percentile(lengths, _PER_CENT_WHOLE, method="lower"))
        length = min(_LONGEST, max(1, -int(-enough // _MULTIPLE)) * _MULTIPLE)
    num_ids = 1 + max(_ids(tokenizer))
    by = "trained on them" if is_trained else "of the user's"
    specification |= {
        "description": f"texts as up to {length} tokens of {num_ids:,}, by a tokeniser {by}",
        "length": check_count("length", length),
        "vocabulary_size": num_ids,
    }
    return Preparation(specification)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = 4000) -> dict[str, Any]:
    """A vocabulary of pieces of words, by byte-pair encoding; the same one for the same texts.

    Args:
        texts: of the training split.
        vocabulary_size: the most ids, padding (0) and unknown (1) among them.

    Returns:
        What `tokenizer.json` holds; the library `tokenizers` reads it, and answers as the kit does.

    Raises:
        ImportError: no library `tokenizers`.

    Example:
        >>> tokenizer = train_tokenizer(["the cat", "the hat"] * 9)
        >>> sorted(piece for piece in tokenizer["model"]["vocab"] if len(piece) > 2)
        ['[PAD]', '[UNK]', 'cat', 'hat', 'the']
    """
    check_count("vocabulary_size", vocabulary_size, 8)
    tokenizers = _library()
    # Trained as byte-pair encoding: the library's trainer of word pieces finds another vocabulary each time.
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.normalizer = tokenizers.normalizers.Lowercase()
    trained.pre_tokenizer = _words_and_bytes(tokenizers)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=[PADDING, UNKNOWN], show_progress=False
    )
    trained.train_from_iterator((_well_formed(text) for text in texts), trainer)
    ranked = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    return _template() | {"model": _template()["model"] | {"vocab": dict(ranked)}}


def read_tokenizer(path: Path) -> dict[str, Any]:
    """What a `tokenizer.json` holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file.
    """
    if not path.is_file():
        raise FileNotFoundError(error_message(f"{path!s} must be a tokenizer.json", "no such file"))
    remedy = "Save one with tokenizers.Tokenizer.save, or leave it out to have one trained."
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(error_message(f"{path.name} must be a tokenizer.json", str(error), remedy)) from None
    if not isinstance(tokenizer, dict) or not isinstance(tokenizer.get("model"), dict):
        raise ValueError(error_message(f"{path.name} must be a tokenizer.json with a model", "other JSON", remedy))
    if not is_ours(tokenizer):
        try:
            _library().Tokenizer.from_str(json.dumps(tokenizer))
        except ImportError:
            raise
        except Exception as error:  # the library raises Exception itself
            raise ValueError(error_message(f"{path.name} must be a tokenizer.json", str(error), remedy)) from None
    return tokenizer


def is_ours(tokenizer: Tokenizer) -> bool:
    """Whether the kit reads a tokeniser by itself: it differs from one that `train_tokenizer` makes in its ids alone.

    Example:
        >>> is_ours(train_tokenizer(["a b"])), is_ours({"model": {"type": "BPE", "vocab": {}}})
        (True, False)
    """
    vocabulary = tokenizer["model"].get("vocab")
    if not isinstance(vocabulary, dict) or vocabulary.get(PADDING) != 0 or UNKNOWN not in vocabulary:
        return False
    if not all(type(place) is int and place >= 0 for place in vocabulary.values()):
        return False
    return _without_ids(tokenizer) == _template()


def _template() -> dict[str, Any]:
    """A tokeniser of ours without its ids, as the library writes it."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": kit_module("prepare").WORDS},
                    "behavior": "Removed",
                    "invert": True,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": UNKNOWN,
            "continuing_subword_prefix": "",
            "max_input_chars_per_word": _MOST_BYTES,
        },
    }


def _without_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    model = {key: value for key, value in tokenizer["model"].items() if key != "vocab"}
    return {**tokenizer, "model": model}


def _words_and_bytes(tokenizers: Any) -> Any:
    words = tokenizers.Regex(kit_module("prepare").WORDS)
    return tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(words, "removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _ids(tokenizer: Tokenizer) -> list[int]:
    """Every id that a tokeniser may give."""
    vocabulary = tokenizer["model"].get("vocab", {})
    # Unigram models have a list of pieces and scores.
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    ids += [added["id"] for added in tokenizer.get("added_tokens", [])]
    if not ids:
        raise ValueError(error_message("a tokeniser must have a vocabulary", "none", "Train it first."))
    return ids


def _padding_id(tokenizer: Tokenizer) -> int:
    """What stands behind a text that is short: what the tokeniser says of it, else its padding token, else 0."""
    if tokenizer.get("padding"):
        return int(tokenizer["padding"]["pad_id"])
    tokens = {added["content"]: added["id"] for added in tokenizer.get("added_tokens", [])}
    vocabulary = tokenizer["model"].get("vocab")
    tokens |= vocabulary if isinstance(vocabulary, dict) else {}
    return next((int(tokens[name]) for name in (PADDING, "<pad>") if name in tokens), 0)


def _well_formed(text: str) -> str:
    """Half a surrogate pair, which is no character, as U+FFFD; the library would refuse it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(error_message(f"{file} must be text in UTF-8", str(error), "Save it as UTF-8.")) from None


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        remedy = "Install it: pip install 'keras-distill[text]'."
        raise ImportError(error_message("texts need the library tokenizers", str(error), remedy)) from error
    return tokenizers
