"""`keras-distill distill` on a small set of its own: what it saves, and what it says to bad input."""

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
    return folder


def distill(folder, out, **changes):
    options = {"teacher": "teacher.keras", "student": "student.keras", "data": "data.npz", "epochs": "8"} | changes
    argv = ["distill", "--out", str(out), "--batch-size", "20", "--learning-rate", "0.05"]
    for name, value in options.items():
        paths = [
            str(folder / part) if "." in part and name in ("teacher", "student", "data") else part
            for part in value.split()
        ]
        argv += [f"--{name.replace('_', '-')}", *paths]
    return main(argv)


def error_rates(text):
    return [float(rate) for rate in re.findall(r"(\d+\.\d+) %", text)]


@pytest.mark.parametrize("teachers", ["teacher.keras", "teacher.keras teacher.keras"])
def test_student_learns_what_the_teacher_knows_and_is_a_plain_model(folder, tmp_path, capsys, teachers):
    assert distill(folder, tmp_path / "out.keras", teacher=teachers) == 0
    teacher, before, after = error_rates(capsys.readouterr().out)[-3:]
    assert teacher == 0.0
    assert after < 8.0 < before
    student = keras.saving.load_model(tmp_path / "out.keras")
    assert type(student) is keras.Sequential
    with np.load(folder / "data.npz") as data:
        errors = np.mean(np.asarray(student(data["x_test"])).argmax(-1) != data["y_test"])
    assert 100 * errors == pytest.approx(after, abs=0.01)


@pytest.mark.tensorflow
def test_int8_student_is_saved_for_any_other_process_to_load(folder, tmp_path, capsys):
    out = tmp_path / "int8.keras"
    inputs = keras.Input((5,))
    hidden = layers.LayerNormalization(name="norm")(layers.Dense(8, "relu", name="hidden")(inputs))
    keras.utils.set_random_seed(2)
    keras.Model(inputs, layers.Dense(3, name="logits")(hidden)).save(tmp_path / "student.keras")
    arguments = ["--teacher", str(folder / "teacher.keras"), "--student", str(tmp_path / "student.keras")]
    arguments += ["--data", str(folder / "data.npz"), "--out", str(out), "--epochs", "8", "--batch-size", "20"]
    assert main(["distill", *arguments, "--learning-rate", "0.02", "--quantize-aware"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "note: These stay float32: 'norm' (LayerNormalization)." in printed
    assert "student, distilled as int8" in printed
    teacher, before, after = error_rates(printed)[-3:]
    assert teacher == 0.0
    assert after < 12.0 < before
    # A process that never heard of fake quantisation: `export` and `ship` are such.
    code = (
        "import sys, numpy as np, keras_distill as kd\n"
        "model, data = kd.load_model(sys.argv[1]), np.load(sys.argv[2])\n"
        "print(np.mean(np.asarray(model(data['x_test'])).argmax(-1) != data['y_test']))\n"
        "print(sorted(type(layer).__name__ for layer in model.layers))"
    )
    command = [sys.executable, "-c", code, str(out), str(folder / "data.npz")]
    errors, names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-2:]
    assert 100 * float(errors) == pytest.approx(after, abs=0.01)
    assert names.count("Int8Kernel") == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": "0"}, "--temperature must be > 0; got 0.0"),
        ({"temperature": "nan"}, "--temperature must be a number; got NaN"),
        ({"student_loss_weight": "1.5"}, "--student-loss-weight must be between 0 and 1; got 1.5"),
        ({"epochs": "0"}, "--epochs must be >= 1; got 0"),
        ({"teacher": "four.keras"}, "the teacher's output must have 3 classes"),
        ({"student": "four.keras"}, "the student's output must have 3 classes"),
        ({"teacher": "six.keras"}, r"the teacher's input must have shape \(5,\)"),
        ({"teacher": "nowhere.keras"}, "a model must be a .keras file; got .*nowhere.keras, which does not exist"),
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
