"""`keras-distill distill` on a small set of its own: what it saves, what it says, and what it refuses."""

import contextlib
import hashlib
import io
import json
import math
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.cli import main

BACKEND = keras.config.backend()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A linearly separable problem as an .npz, a teacher that solves it, a student that does not yet."""
    folder = tmp_path_factory.mktemp("distill")
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(5, 3))
    arrays = {}
    for split, num_items in (("train", 400), ("validation", 60), ("test", 100)):
        arrays[f"x_{split}"] = generator.normal(size=(num_items, 5)).astype("float32")
        arrays[f"y_{split}"] = (arrays[f"x_{split}"] @ kernel).argmax(axis=-1)
    np.savez(folder / "data.npz", **arrays)
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    teacher.layers[0].set_weights([4.0 * kernel, np.zeros(3)])
    teacher.save(folder / "teacher.keras")
    keras.Sequential([keras.Input((5,)), layers.Dense(3, activation="softmax")]).save(folder / "student.keras")
    keras.Sequential([keras.Input((5,)), layers.Dense(4)]).save(folder / "four.keras")
    keras.Sequential([keras.Input((6,)), layers.Dense(3)]).save(folder / "six.keras")
    if BACKEND == "tensorflow":
        from keras_distill.quantize_aware import quantize_aware

        quantize_aware(teacher, arrays["x_train"]).save(folder / "int8.keras")
    (folder / "broken.keras").write_bytes((folder / "teacher.keras").read_bytes()[:500])
    teacher.layers[0].set_weights([0.0 * kernel, np.zeros(3)])
    teacher.save(folder / "wrong.keras")
    return folder


def distill(folder, out, *switches, **changes):
    options = {"teacher": "teacher.keras", "student": "student.keras", "data": "data.npz", "epochs": "8"} | changes
    argv = ["distill", "--out", str(out), "--batch-size", "20", "--learning-rate", "0.05", *switches]
    for name, value in options.items():
        if value is None:
            continue
        paths = [
            str(folder / part) if "." in part and name in ("teacher", "student", "data") else part
            for part in value.split()
        ]
        argv += [f"--{name.replace('_', '-')}", *paths]
    return main(argv)


@pytest.fixture(scope="module")
def outcome(folder):
    """What one run printed and recorded, with the student that it saved."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert distill(folder, folder / "out.keras") == 0
    return printed.getvalue(), json.loads((folder / "out.json").read_text()), folder / "out.keras"


def test_student_learns_what_the_teacher_knows_and_is_a_plain_model(folder, outcome):
    _, record, path = outcome
    student = keras.saving.load_model(path)
    assert type(student) is keras.Sequential
    with np.load(folder / "data.npz") as data:
        probabilities = np.asarray(student(data["x_test"]), "float64")
        labels = data["y_test"]
    found = record["test"]["distilled"]
    errors = int(np.sum(probabilities.argmax(-1) != labels))
    assert errors == found["errors"] < 8 < record["test"]["as_given"]["errors"]
    assert found["error_rate"] == errors / 100
    nll = -np.log(probabilities[np.arange(100), labels]).mean()
    assert found["negative_log_likelihood_nats"] == pytest.approx(nll, abs=1e-4)


def test_the_interval_is_wilsons(outcome):
    found = outcome[1]["test"]["as_given"]
    n, p, z = 100, found["errors"] / 100, 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert found["error_rate_interval"] == pytest.approx([middle - half, middle + half])


def test_the_twin_is_plain_keras_training_of_the_same_student(folder, outcome):
    record = outcome[1]
    with np.load(folder / "data.npz") as data:
        keras.utils.set_random_seed(0)
        student = keras.saving.load_model(folder / "student.keras", compile=False)
        schedule = keras.optimizers.schedules.CosineDecay(0.05, 8 * 20)
        student.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
        validation = data["x_validation"], data["y_validation"]
        expected = student.fit(
            data["x_train"], data["y_train"], batch_size=20, epochs=8, validation_data=validation, verbose=0
        )
        errors = int(np.sum(np.asarray(student(data["x_test"])).argmax(-1) != data["y_test"]))
    np.testing.assert_allclose(record["history"]["twin"]["loss"], expected.history["loss"], rtol=1e-4)
    np.testing.assert_allclose(record["history"]["twin"]["val_loss"], expected.history["val_loss"], rtol=1e-4)
    assert record["test"]["twin"]["errors"] == errors
    assert record["training"]["twin"]["steps"] == record["training"]["distilled"]["steps"] == 8 * 20


def test_what_is_printed_is_what_is_recorded(outcome):
    printed, record, _ = outcome
    rows = [line for line in printed.splitlines() if "│" in line]
    for name, row in zip(("teacher", "as_given", "twin", "distilled"), rows, strict=True):
        found = record["test"][name]
        assert f"{100 * found['error_rate']:.2f} %" in row
        assert f"{100 * found['error_rate_interval'][0]:.2f} to {100 * found['error_rate_interval'][1]:.2f}" in row
    assert f"verdict: {record['verdict']['word']}" in printed
    assert max(len(line) for line in rows) <= 80


def test_the_record_names_the_student_by_its_hash_and_says_all_that_was_set(folder, outcome):
    _, record, path = outcome
    assert record["model"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["settings"]["learning_rate"] == 0.05
    assert record["settings"]["epochs"] == 8
    assert record["data"]["train"] == 400
    assert record["versions"]["keras"] == keras.__version__
    assert {len(values) for values in record["history"]["distilled"].values()} == {8}
    (asked,) = record["asked_before_training"].values()
    assert asked["num_right"] == asked["num_items"] == 60


def test_all_weight_on_labels_is_the_twin_and_quiet_is_quiet(folder, outcome, tmp_path, capsys):
    assert distill(folder, tmp_path / "out.keras", "--no-twin", "--quiet", student_loss_weight="1") == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["verdict"] is None
    assert "twin" not in record["test"]
    assert record["history"]["distilled"]["loss"] == outcome[1]["history"]["twin"]["loss"]


@pytest.mark.tensorflow
def test_early_stopping_keeps_the_best_weights_and_tensorboard_sees_it(folder, tmp_path, capfd):
    options = {"early_stopping": "2", "log_dir": str(tmp_path / "logs"), "epochs": None}
    assert distill(folder, tmp_path / "out.keras", "--verbose", "--no-twin", learning_rate="3", **options) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    losses = record["history"]["distilled"]["val_loss"]
    # 20 steps an epoch: 4,000 steps.
    assert record["settings"]["epochs"] == 200
    assert record["settings"]["epochs_chosen_for_the_data"]
    assert len(losses) == int(np.argmin(losses)) + 1 + 2 < 200
    with np.load(folder / "data.npz") as data:
        probabilities = keras.saving.load_model(tmp_path / "out.keras")(data["x_validation"])
        kept = keras.losses.sparse_categorical_crossentropy(data["y_validation"], probabilities)
    assert float(keras.ops.mean(kept)) == pytest.approx(min(losses), rel=1e-4)
    assert f"Epoch {len(losses)}/200" in capfd.readouterr().out
    assert len(list((tmp_path / "logs/distilled").rglob("events.*"))) == 2


def test_several_teachers_and_the_same_place_again(folder, tmp_path, capsys):
    for epochs in ("1", "2"):
        teachers = "teacher.keras teacher.keras"
        assert distill(folder, tmp_path / "out.keras", "--no-twin", teacher=teachers, epochs=epochs) == 0
    assert len(json.loads((tmp_path / "out.json").read_text())["history"]["distilled"]["loss"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.keras"]


def test_a_store_is_asked_too(folder, tmp_path, capsys):
    argv = ["--any-teacher", "--data", str(folder / "data.npz"), "--out"]
    for name in ("teacher", "wrong"):
        assert main(["label", "--teacher", str(folder / f"{name}.keras"), *argv, str(tmp_path / name)]) == 0
    capsys.readouterr()
    options = {"teacher": None, "epochs": "2"}
    assert distill(folder, tmp_path / "out.keras", store=str(tmp_path / "teacher"), **options) == 0
    assert "400 of 400 right" in capsys.readouterr().out
    assert distill(folder, tmp_path / "other.keras", store=str(tmp_path / "wrong"), **options) == 2
    assert "must know the training data of data; got" in capsys.readouterr().err
    assert not (tmp_path / "other.keras").exists()


def test_tuning_says_what_it_chose_and_keeps_its_study(folder, tmp_path, capsys):
    pytest.importorskip("optuna")
    assert distill(folder, tmp_path / "out.keras", "--tune", epochs="2") == 0
    record = json.loads((tmp_path / "out.json").read_text())
    tuning, printed = record["tuning"], capsys.readouterr().out
    rate = f"learning rate {tuning['chosen']['learning_rate']:.3g}"
    assert re.search(
        rf"chosen on validation data: (labels alone|temperature \S+, weight of the labels \S+), {rate}", printed
    )
    assert tuning["cost_in_trainings"] == sum(trial["steps"] for trial in tuning["trials"]) / (2 * 20) <= 5
    assert record["verdict"]["word"] in printed
    for name in ("twin", "distilled"):
        history = record["history"][name]
        assert len(history["loss"]) == record["training"][name]["epochs"] == 2
        assert len(history["val_loss"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.keras", "out.tune"]
    with np.load(folder / "data.npz") as data:
        answers = np.asarray(keras.saving.load_model(tmp_path / "out.keras")(data["x_test"])).argmax(-1)
        assert int(np.sum(answers != data["y_test"])) == record["test"]["distilled"]["errors"]
    # The study is there: nothing is trained again.
    assert distill(folder, tmp_path / "out.keras", "--tune", epochs="2") == 0
    assert json.loads((tmp_path / "out.json").read_text())["tuning"] == tuning


@pytest.mark.tensorflow
def test_int8_student_is_saved_for_any_other_process_to_load(folder, tmp_path, capsys):
    out = tmp_path / "int8.keras"
    inputs = keras.Input((5,))
    hidden = layers.LayerNormalization(name="norm")(layers.Dense(8, "relu", name="hidden")(inputs))
    keras.utils.set_random_seed(2)
    keras.Model(inputs, layers.Dense(3, name="logits")(hidden)).save(tmp_path / "student.keras")
    arguments = ["--teacher", str(folder / "teacher.keras"), "--student", str(tmp_path / "student.keras")]
    arguments += ["--data", str(folder / "data.npz"), "--out", str(out), "--epochs", "8", "--batch-size", "20"]
    assert main(["distill", *arguments, "--learning-rate", "0.02", "--quantize-aware", "--no-twin"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "note: These stay float32: 'norm' (LayerNormalization)." in printed
    assert "student, distilled as int8" in printed
    found = json.loads(out.with_suffix(".json").read_text())["test"]
    assert found["teacher"]["errors"] == 0
    assert found["distilled"]["errors"] < 12 < found["as_given"]["errors"]
    # A process that never heard of fake quantisation: `export` and `ship` are such.
    code = (
        "import sys, numpy as np, keras_distill as kd\n"
        "model, data = kd.load_model(sys.argv[1]), np.load(sys.argv[2])\n"
        "print(np.mean(np.asarray(model(data['x_test'])).argmax(-1) != data['y_test']))\n"
        "print(sorted(type(layer).__name__ for layer in model.layers))"
    )
    command = [sys.executable, "-c", code, str(out), str(folder / "data.npz")]
    errors, names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-2:]
    assert 100 * float(errors) == pytest.approx(found["distilled"]["errors"], abs=0.01)
    assert names.count("Int8Kernel") == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": "0"}, "--temperature must be > 0; got 0.0"),
        ({"temperature": "nan"}, "--temperature must be a number; got NaN"),
        ({"student_loss_weight": "1.5"}, "--student-loss-weight must be between 0 and 1; got 1.5"),
        ({"epochs": "0"}, "--epochs must be >= 1; got 0"),
        ({"early_stopping": "0"}, "--early-stopping must be >= 1; got 0"),
        ({"pixel_range": "0-256"}, "--pixel-range must be one of '0-1', '0-255', .*; got '0-256'"),
        ({"verbose": "", "quiet": ""}, "at most one of --verbose and --quiet must be given; got both"),
        ({"tune": "", "early_stopping": "3"}, "--tune must be given alone; got --early-stopping beside it"),
        ({"early_stopping": "3", "quantize_aware": ""}, "--quantize-aware must train all its epochs; got --early-stop"),
        ({"teacher": "wrong.keras"}, r"wrong.keras must know the validation data of data; got \d+ of 60 right, where"),
        ({"teacher": "four.keras"}, r"the teacher's output must have 3 classes, as data has \(0, 1, 2\); got 4"),
        ({"student": "four.keras"}, "the student's output must have 3 classes"),
        ({"teacher": "six.keras"}, r"the teacher's input must have shape \(5,\)"),
        ({"teacher": "nowhere.keras"}, "a model must be a .keras file; got .*nowhere.keras, which does not exist"),
        ({"teacher": "nowhere.h5"}, "a teacher must be a file; got .*nowhere.h5, which does not exist"),
        ({"teacher": "broken.keras"}, "broken.keras"),
        ({"student": "data.npz"}, "must be a .keras file; got .*, which is none"),
        ({"data": "no-such-set"}, "no-such-set"),
        pytest.param(
            {"student": "int8.keras", "quantize_aware": ""},
            "student must be a float model; got layer .* quantised already",
            marks=pytest.mark.tensorflow,
        ),
        (
            {"quantize_aware": "", "distribute": "data-parallel"},
            r"--quantize-aware must be tensorflow; got jax \(--distribute data-parallel\)\. Distil in float",
        ),
        ({"data": "nowhere.npz"}, "nowhere.npz"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(folder, tmp_path, capsys, changes, message):
    assert distill(folder, tmp_path / "out.keras", **changes) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow trains int8 students")
def test_int8_students_of_another_backend_are_refused_in_one_sentence(folder, tmp_path, capsys):
    assert distill(folder, tmp_path / "out.keras", quantize_aware="") == 2
    assert f"Keras's backend for --quantize-aware must be tensorflow; got {BACKEND}." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written_is_said_before_training(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert distill(folder, tmp_path / "file" / "out.keras") == 2
    assert "error: " in capsys.readouterr().err
    assert distill(folder, tmp_path / "out.h5") == 2
    assert "--out must be a .keras file" in capsys.readouterr().err
    assert distill(folder, folder / "student.keras") == 2
    assert "--out must be another file than --student" in capsys.readouterr().err
