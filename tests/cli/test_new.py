"""Networks made on the command line, to try the other commands with."""

import keras
import numpy as np
import pytest

from keras_distill import data
from keras_distill.cli import main
from keras_distill.data.networks import mlp


def test_a_fresh_network_is_the_one_that_python_builds_from_the_seed(tmp_path):
    path = tmp_path / "student.keras"
    assert main(["new", str(path), "--like", "mlp", "--widths", "7", "5", "--data", "digits", "--seed", "3"]) == 0
    keras.utils.set_random_seed(3)
    expected = mlp((8, 8, 1), 10, (7, 5))
    found = keras.saving.load_model(path)
    for ours, theirs in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_trained_network_knows_its_data_and_says_how_well(tmp_path, capsys):
    path = tmp_path / "teacher.keras"
    assert main(["new", str(path), "--like", "mlp", "--widths", "32", "--data", "digits", "--epochs", "15"]) == 0
    test = data.load("digits").test
    answers = keras.saving.load_model(path).predict(test.inputs, verbose=0).argmax(axis=-1)
    num_wrong = int((answers != test.labels).sum())
    assert num_wrong < 0.15 * len(test)
    assert f" {num_wrong} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["there.keras"], "MODEL.keras must be a new file"),
        (["model.h5"], "MODEL.keras must end in .keras"),
        (["m.keras", "--widths", "0"], "--widths must be"),
        (["m.keras", "--epochs", "-1"], "--epochs must be"),
        (["m.keras", "--data", "digist"], "Did you mean digits?"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(changes, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.keras").touch()
    assert main(["new", "--data", "digits", *changes]) == 2
    error = capsys.readouterr().err
    assert "keras-distill new: error: " in error
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["there.keras"]
