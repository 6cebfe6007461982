"""Texts on the command line: a student made, taught and shipped from a table; what does not go together is refused."""

import json
import shutil

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill._kit import kit_module
from keras_distill.cli import main
from keras_distill.data import networks
from keras_distill.search.fitting import families_for

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.tensorflow
SUBJECTS = {"card": "my card was lost", "fee": "why this fee", "limit": "what is the limit"}
SWITCHES = ("--text", "said", "--label", "about")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sentences that a word tells apart, among fillers that say nothing; and a net that learnt it."""
    folder = tmp_path_factory.mktemp("texts")
    generator = np.random.default_rng(0)
    lines = ["said,about"]
    for place in range(150):
        about, phrase = list(SUBJECTS.items())[place % 3]
        words = [*phrase.split(), *generator.choice(["please", "hello", "today", "now", "thanks"], 4)]
        lines.append(f'"{" ".join(generator.permutation(words))}",{about}')
    (folder / "said.csv").write_text("\n".join(lines) + "\n")
    assert new(folder, "teacher.keras", "--epochs", "40", "--learning-rate", "0.02") == 0
    assert new(folder, "student.keras", "--widths", "4", "8") == 0
    return folder


def new(folder, name, *switches, kind="text_bag"):
    return main(["new", str(folder / name), "--like", kind, "--data", str(folder / "said.csv"), *SWITCHES, *switches])


def test_a_text_network_is_as_wide_as_asked_and_fits_the_tokeniser(folder):
    dataset = kd.data.load(folder / "said.csv", text="said", label="about")
    student = keras.saving.load_model(folder / "student.keras")
    specification = dataset.preparation.specification
    assert student.get_layer("vectors").input_dim == specification["vocabulary_size"]
    assert student.get_layer("vectors").output_dim == 4
    assert student.input_shape == (None, specification["length"])
    assert new(folder, "conv.keras", "--widths", "5", kind="text_conv") == 0
    assert keras.saving.load_model(folder / "conv.keras").get_layer("vectors").output_dim == 5


@pytest.mark.slow
def test_distill_and_ship_take_texts_and_the_bundle_answers_them(folder, tmp_path, capsys):
    data = ["--data", str(folder / "said.csv"), *SWITCHES]
    out = tmp_path / "distilled.keras"
    teacher, student = str(folder / "teacher.keras"), str(folder / "student.keras")
    command = ["distill", "--teacher", teacher, "--student", student, *data, "--out", str(out), "--epochs", "60"]
    assert main([*command, "--learning-rate", "0.02", "--no-twin"]) == 0
    bundle = tmp_path / "bundle"
    assert main(["ship", str(out), *data, "--out", str(bundle), "--targets", "litert"]) == 0
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["preparation"]["kind"] == "text"
    capsys.readouterr()
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(bundle / "student.tflite"))
    classify = interpreter.get_signature_runner()
    (tokens,) = kit_module("prepare").inputs_from("Hello! WHY this fee, please?", manifest, bundle).values()
    (logits,) = classify(inputs=tokens).values()
    assert manifest["class_names"][int(logits[0].argmax())] == "fee"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--text", "sad"], "there must be a column 'sad' among the data's; got said, about. Did you mean said?"),
        (["--label", "abut"], "there must be a column 'abut'"),
        (["--tokenizer", "none.json"], "none.json must be a tokenizer.json; got no such file"),
        (["--widths", "1", "2", "3"], "--widths of text_bag must be two numbers at most; got 3"),
        (["--data", "digits", "--text", "said"], "column must be a table's; got 'digits' beside it"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(folder, changes, said, capsys):
    assert new(folder, "never.keras", *changes) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "never.keras").exists()


def test_a_table_without_a_text_column_is_refused_by_a_text_network(folder, capsys):
    command = ["new", str(folder / "never.keras"), "--like", "text_bag", "--data", "digits"]
    assert main(command) == 2
    assert "--like text_bag must be given texts; got digits. Name the column of texts" in capsys.readouterr().err


def test_a_tokeniser_that_pads_with_another_id_is_refused_by_our_networks(folder, tmp_path, capsys):
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=["<unk>", "<pad>"])
    library.train_from_iterator(SUBJECTS.values(), trainer)
    library.save(str(tmp_path / "tokenizer.json"))
    assert new(folder, "never.keras", "--tokenizer", str(tmp_path / "tokenizer.json")) == 2
    assert "--like text_bag must be padded with id 0; got 1 by this tokenizer.json" in capsys.readouterr().err
    dataset = kd.data.load(folder / "said.csv", text="said", label="about", tokenizer=tmp_path / "tokenizer.json")
    families, notes = families_for(lambda tokens: tokens, dataset, {})
    assert families == []
    assert any("padding" in note for note in notes)


def test_a_tokeniser_of_more_ids_than_the_model_has_vectors_is_refused(folder, tmp_path, capsys):
    keras.utils.set_random_seed(0)
    dataset = kd.data.load(folder / "said.csv", text="said", label="about")
    length, size = (dataset.preparation.specification[name] for name in ("length", "vocabulary_size"))
    networks.text_bag(length, size - 1, 3).save(tmp_path / "small.keras")
    data = ["--data", str(folder / "said.csv"), *SWITCHES]
    for command in (
        ["distill", "--teacher", str(folder / "teacher.keras"), "--student", str(tmp_path / "small.keras"), *data,
         "--out", str(tmp_path / "out.keras")],
        ["label", "--teacher", str(tmp_path / "small.keras"), *data, "--out", str(tmp_path / "store")],
        ["ship", str(tmp_path / "small.keras"), *data, "--out", str(tmp_path / "bundle"), "--targets", "litert"],
    ):  # fmt: skip
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"must have a vector for each of {size:,} tokens; got an Embedding 'vectors' of {size - 1:,}" in error
    assert [path.name for path in tmp_path.iterdir()] == ["small.keras"]


def test_a_text_table_without_its_switch_says_which_switch(folder, capsys):
    shutil.copyfile(folder / "said.csv", folder / "again.csv")
    command = ["new", str(folder / "never.keras"), "--like", "mlp", "--data", str(folder / "again.csv")]
    assert main([*command, "--label", "about"]) == 2
    assert "--text said" in capsys.readouterr().err
