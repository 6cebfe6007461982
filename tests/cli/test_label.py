"""`keras-distill label`: a finished store, told in one line; bad input is one clear error."""

import keras
import numpy as np
import pytest

from keras_distill import data
from keras_distill.cli import main
from keras_distill.report import metrics
from keras_distill.targets import SoftTargetStore


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for name in ("a", "b"):
        keras.utils.set_random_seed(ord(name))
        model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")])
        model.save(folder / f"{name}.keras")
    return folder


def run(teachers, tmp_path, *options, names=("a",)):
    paths = [str(teachers / f"{name}.keras") for name in names]
    # They were never trained.
    options = ("--any-teacher", *options)
    return main(["label", "--teacher", *paths, "--data", "digits", "--out", str(tmp_path / "store"), *options])


def test_a_teacher_that_knows_nothing_is_refused_before_anything_is_labelled(teachers, tmp_path, capsys):
    # One that was never trained may know a little by luck; this one always says the same.
    model = keras.models.load_model(teachers / "a.keras")
    model.set_weights([0 * weight for weight in model.get_weights()])
    model.save(teachers / "nothing.keras")
    argv = ["--teacher", str(teachers / "nothing.keras"), "--data", "digits", "--out", str(tmp_path / "store")]
    assert main(["label", *argv]) == 2
    assert "nothing.keras must know the validation data of digits; got" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_label_writes_the_training_splits_targets(teachers, tmp_path, capsys):
    assert run(teachers, tmp_path, "--dtype", "float32") == 0
    store = SoftTargetStore.open(tmp_path / "store")
    split = data.load("digits").train
    teacher = keras.models.load_model(teachers / "a.keras")
    expected = keras.ops.convert_to_numpy(teacher(split.inputs))
    np.testing.assert_allclose(store.soft_targets(np.arange(len(split)), 1.0), expected, rtol=1e-4, atol=1e-6)
    captured = capsys.readouterr()
    assert "dense 10, float32) finished" in captured.out
    assert f"{len(split)} rows × 40 bytes" in " ".join(captured.err.split())


@pytest.mark.tensorflow
def test_top_k_shift_and_workers_reach_the_store(teachers, tmp_path, capsys):
    options = ("--top-k", "3", "--shift", "1")
    assert run(teachers, tmp_path, *options, "--process", "1/2") == 0
    assert "others are yet to finish" in capsys.readouterr().out
    assert run(teachers, tmp_path, *options, "--process", "0/2") == 0
    manifest = SoftTargetStore.open(tmp_path / "store").manifest
    assert (manifest.kind, manifest.top_k, manifest.num_views) == ("top_k", 3, 9)


def test_calibrate_asks_the_validation_split(teachers, tmp_path, capsys):
    dataset = data.load("digits")
    teacher = keras.models.load_model(teachers / "a.keras")
    teacher.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    teacher.fit(dataset.train.inputs, dataset.train.labels, epochs=5, verbose=0)
    teacher.save(teachers / "trained.keras")
    assert run(teachers, tmp_path, "--calibrate", "--dtype", "float32", names=("trained",)) == 0
    store = SoftTargetStore.open(tmp_path / "store")
    logits = np.log(keras.ops.convert_to_numpy(teacher(dataset.validation.inputs)))
    divisor = metrics.best_temperature(logits, dataset.validation.labels)
    expected = np.log(keras.ops.convert_to_numpy(teacher(dataset.train.inputs))) / divisor
    kept = store.read(np.arange(len(dataset.train)))
    np.testing.assert_allclose(kept - kept[:, :1], expected - expected[:, :1], rtol=1e-2, atol=1e-3)
    capsys.readouterr()
    assert main(["store", str(tmp_path / "store")]) == 0
    assert f"logits / {divisor:.3g}" in capsys.readouterr().out


def test_classes_are_drawn_at_a_temperature_by_a_seed(teachers, tmp_path, capsys):
    assert run(teachers, tmp_path, "--sample", "4", "--temperature", "2", "--seed", "5") == 0
    assert "4 sampled of 10" in capsys.readouterr().out
    manifest = SoftTargetStore.open(tmp_path / "store").manifest
    assert (manifest.sample, manifest.sampling_temperature, manifest.sampling_seed) == (4, 2.0, 5)
    assert main(["store", str(tmp_path / "store")]) == 0
    told = capsys.readouterr().out
    assert "format 3" in told
    assert "serves the temperature 2 alone" in told
    assert "4 classes drawn (this one)" in told
    # A loss of another temperature is refused before anything is trained.
    options = ["--store", str(tmp_path / "store"), "--student", str(teachers / "b.keras"), "--data", "digits"]
    out = ["--out", str(tmp_path / "student.keras"), "--any-teacher"]
    assert main(["distill", *options, *out, "--temperature", "4"]) == 2
    assert "temperature must be 2.0, at which the rows were sampled; got 4.0" in capsys.readouterr().err


def test_several_teachers_are_kept_or_merged(teachers, tmp_path):
    assert run(teachers, tmp_path, "--members", names=("a", "b")) == 0
    assert SoftTargetStore.open(tmp_path / "store").manifest.member_weights == (0.5, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--process", "2/2"), "--process must be I/N"),
        (("--process", "half"), "--process must be I/N"),
        (("--top-k", "11"), "--top-k must be <= 10"),
        (("--sample", "11"), "sample must be <= 10"),
        (("--sample", "4", "--top-k", "3"), "sample must be given alone"),
        (("--temperature", "2"), "unless the teacher is an arithmetic ensemble"),
    ],
)
def test_bad_options_are_one_clear_error(teachers, tmp_path, capsys, options, message):
    assert run(teachers, tmp_path, *options) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("keras-distill label: error: ")
    assert message in printed
    assert "user code" not in printed
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_several_teachers_without_a_choice_and_another_teacher_are_refused(teachers, tmp_path, capsys):
    assert run(teachers, tmp_path, names=("a", "b")) == 2
    assert "members=True, or the temperature" in capsys.readouterr().err
    assert run(teachers, tmp_path) == 0
    assert run(teachers, tmp_path, names=("b",)) == 2
    assert "The teacher has changed since" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused_and_left_alone(teachers, tmp_path, capsys):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "holiday.jpg").write_bytes(b"mountains")
    assert run(teachers, tmp_path) == 2
    assert "got a folder of something else. Name a new folder" in " ".join(capsys.readouterr().err.split())
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["holiday.jpg"]
