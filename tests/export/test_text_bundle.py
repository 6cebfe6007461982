"""A bundle of a student of texts: the tokeniser travels, and the kit and its programs take texts as they are."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hand_made import TEXTS, write_text_bundle

from keras_distill._kit import kit_module
from keras_distill.deploy import bundle as deploy_bundle

tokenizers = pytest.importorskip("tokenizers")


def own_tokenizer():
    """A tokeniser of another kind than ours."""
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.train_from_iterator(TEXTS, tokenizers.trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
    return json.loads(library.to_str())


@pytest.fixture
def bundle(tmp_path):
    return write_text_bundle(tmp_path / "bundle")


def test_the_tokeniser_is_a_file_of_the_bundle(bundle):
    folder, preparation, _ = bundle
    manifest = deploy_bundle.read_bundle(folder)
    assert {"preparation.json", "tokenizer.json"} <= set(manifest["files"])
    assert manifest["preparation"]["kind"] == "text"
    assert json.loads((folder / "preparation.json").read_text())["tokenizer"] == "tokenizer.json"
    assert kit_module("prepare").read_specification(folder, manifest) == preparation.to_json()
    # Other languages have the library, which reads it as it is.
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert library.encode(TEXTS[2]).ids == [token for token in preparation(TEXTS[2:3])[0].tolist() if token]


def test_a_text_a_file_of_lines_and_a_table_become_the_same_inputs(bundle, tmp_path):
    folder, preparation, _ = bundle
    manifest = deploy_bundle.read_bundle(folder)
    texts = ["Where is my CARD?", "", "a fee, you say?"]
    (tmp_path / "lines.txt").write_bytes("\r\n".join(texts).encode("utf-8-sig") + b"\r\n")
    (tmp_path / "table.csv").write_text("id,text\n" + "".join(f'{at},"{text}"\n' for at, text in enumerate(texts)))
    read = kit_module("prepare").inputs_from
    expected = preparation(texts)
    np.testing.assert_array_equal(read(tmp_path / "lines.txt", manifest, folder)["inputs"], expected)
    np.testing.assert_array_equal(read(str(tmp_path / "table.csv"), manifest, folder)["inputs"], expected)
    np.testing.assert_array_equal(read(texts[0], manifest, folder)["inputs"], expected[:1])
    assert not expected[1].any()


def test_the_smallest_program_answers_a_text(bundle):
    folder, preparation, votes = bundle
    text = "is my card up"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "classify_onnx.py", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    logits = votes[preparation([text])[0]].sum(axis=0).astype("float64")
    probabilities = np.exp(logits) / np.exp(logits).sum()
    best = probabilities.argmax()
    assert done.stdout.startswith(f"{['card', 'fee', 'top_up'][best]} {probabilities[best]:.1%}")


def test_a_tokeniser_of_another_kind_needs_the_library_and_says_so(tmp_path, monkeypatch):
    folder, preparation, _ = write_text_bundle(tmp_path / "bundle", tokenizer=own_tokenizer())
    manifest = deploy_bundle.read_bundle(folder)
    tokens = kit_module("prepare").inputs_from("where is it", manifest, folder)["inputs"]
    np.testing.assert_array_equal(tokens, preparation(["where is it"]))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"this tokenizer.json needs the library tokenizers.*pip install tokenizers"):
        kit_module("prepare").inputs_from("where is it", manifest, folder)
