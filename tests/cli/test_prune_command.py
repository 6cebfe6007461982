"""Students cut on the command line."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill import data
from keras_distill.cli import main
from keras_distill.deploy import to_litert, to_onnx, verify
from keras_distill.models import multiply_adds
from keras_distill.pruning import prune


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A small residual network of 8 × 8 images, untrained but for its random statistics."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(x)
    for number in range(2):
        branch = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
        x = layers.Add(name=f"block_{number}")([x, layers.ReLU()(branch)])
    model = keras.Model(inputs, layers.Dense(10, name="logits")(layers.GlobalAveragePooling2D()(x)))
    path = tmp_path_factory.mktemp("teacher") / "teacher.keras"
    model.save(path)
    return path


def test_before_and_after_are_counted_and_the_student_is_what_python_cuts(teacher, tmp_path, capsys):
    out = tmp_path / "student.keras"
    assert main(["prune", str(teacher), "--keep", "0.5", "--drop-every-second-block", "--out", str(out)]) == 0
    whole, student = keras.models.load_model(teacher), keras.models.load_model(out)
    expected = prune(whole, 0.5, drop_blocks="every second")
    for ours, theirs in zip(student.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    costs = json.loads((tmp_path / "student.json").read_text())["costs"]
    shown = capsys.readouterr().out
    for name, model in (("teacher", whole), ("student", student)):
        assert costs[name]["parameters"] == model.count_params()
        assert costs[name]["multiply_adds"] == multiply_adds(model)
        assert set(costs[name]["served"]) == {"onnx", "tflite"}
        assert f"{model.count_params():,}" in shown
        assert f"{multiply_adds(model):,}" in shown
    assert "block_1" not in {layer.name for layer in student.layers}


def test_with_data_it_is_repaired_and_says_what_that_brought(teacher, tmp_path, capsys):
    out = tmp_path / "student.keras"
    command = ["prune", str(teacher), "--keep", "0.5", "--data", "digits", "--importance", "activations"]
    assert main([*command, "--out", str(out)]) == 0
    validation = data.load("digits").validation
    answers = keras.models.load_model(out).predict(validation.inputs, verbose=0).argmax(axis=-1)
    num_wrong = int((answers != validation.labels).sum())
    shown = capsys.readouterr().out
    assert f"student, repaired {num_wrong}" in shown
    assert json.loads((tmp_path / "student.json").read_text())["validation_errors"]["student, repaired"] == num_wrong


def test_a_pruned_student_is_distilled_and_what_distill_wrote_is_not_pruned_over(teacher, tmp_path, capsys):
    pruned, distilled = str(tmp_path / "student.keras"), str(tmp_path / "distilled.keras")
    prune(keras.models.load_model(teacher), 0.5).save(pruned)
    command = ["distill", "--teacher", str(teacher), "--student", pruned, "--data", "digits", "--epochs", "1"]
    assert main([*command, "--any-teacher", "--no-twin", "--quiet", "--out", distilled]) == 0
    assert main(["prune", str(teacher), "--keep", "0.5", "--quiet", "--out", distilled]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "must be a record of keras-distill prune; got another file" in shown.err


@pytest.mark.parametrize("convert", [to_onnx, to_litert])
def test_a_pruned_student_answers_alike_in_its_runtime(convert, teacher, tmp_path):
    student = prune(keras.models.load_model(teacher), 0.4, drop_blocks=["block_0"], input_scale=0.5)
    path = convert(student, tmp_path / ("s.onnx" if convert is to_onnx else "s.tflite"))
    inputs = np.random.default_rng(0).random((20, 8, 8, 1)).astype("float32")
    report = verify(student, path, inputs)
    assert report.holds, report.problems
    assert report.max_abs_error < 1e-4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([], "prune must be told what to cut"),
        (["--keep", "0"], "--keep must be in (0, 1]"),
        (["--keep", "1.5"], "--keep must be in (0, 1]"),
        (["--keep", "0.5", "--multiple-of", "0"], "--multiple-of must be >= 1"),
        (["--keep", "0.5", "--importance", "taylor"], "--importance taylor needs --data"),
        (["--drop-blocks", "block_9"], "Did you mean block_"),
        (["--keep", "0.5", "--data", "mnits"], "Did you mean mnist?"),
        (["--keep", "0.5", "--out", "there.keras"], "there.keras must be a student that keras-distill prune wrote"),
        (["--keep", "0.5", "--out", "model.h5"], "--out must be a .keras file"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(changes, said, teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.keras").touch()
    assert main(["prune", str(teacher), "--out", "out.keras", *changes]) == 2
    error = capsys.readouterr().err
    assert "keras-distill prune: error: " in error
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["there.keras"]
