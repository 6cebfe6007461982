"""Every command with a model of two inputs and an `.npz` of arrays by their names."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill import data
from keras_distill._kit import kit_module
from keras_distill.cli import evaluation, main
from keras_distill.pruning import prune
from keras_distill.search.cost import Meter
from keras_distill.targets import SoftTargetStore

NUM = {"train": 300, "validation": 120, "test": 120}


def network(width, name):
    ids = keras.Input((6,), dtype="int32", name="token_ids")
    extra = keras.Input((4,), name="extra")
    summed = layers.GlobalAveragePooling1D()(layers.Embedding(30, width)(ids))
    joined = layers.Concatenate()([summed, layers.Dense(width, activation="relu")(extra)])
    logits = layers.Dense(2)(layers.Dense(width, activation="relu")(joined))
    # Neither the order of the names nor that of the arrays is the alphabet's.
    return keras.Model({"token_ids": ids, "extra": extra}, logits, name=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two kinds of evidence for one label: two.npz, a teacher that uses both, a student that learnt nothing yet."""
    folder = tmp_path_factory.mktemp("two")
    rng = np.random.default_rng(0)
    arrays = {"class_names": ["no", "yes"]}
    for split, num in NUM.items():
        ids, extra = rng.integers(0, 30, (num, 6)), rng.normal(size=(num, 4)).astype("float32")
        arrays |= {f"x_{split}/token_ids": ids, f"x_{split}/extra": extra}
        arrays[f"y_{split}"] = ((ids < 8).sum(axis=1) + 1.5 * extra[:, 0] > 1.6).astype(int)
    np.savez(folder / "two.npz", **arrays)
    keras.utils.set_random_seed(0)
    teacher = network(16, "teacher")
    teacher.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    split = data.load(folder / "two.npz").train
    teacher.fit(split.inputs, split.labels, epochs=12, verbose=0)
    teacher.save(folder / "teacher.keras")
    network(6, "student").save(folder / "student.keras")
    return folder


def run(command, folder, *options, teacher=True):
    of_teacher = ["--teacher", str(folder / "teacher.keras")] if teacher else []
    return main([command, *of_teacher, "--data", str(folder / "two.npz"), *map(str, options)])


def logits_of(path, split):
    return keras.models.load_model(path).predict(split.inputs, verbose=0)


def test_label_writes_the_teachers_logits(folder, tmp_path):
    assert run("label", folder, "--out", tmp_path / "store", "--dtype", "float32") == 0
    store = SoftTargetStore.open(tmp_path / "store")
    expected = logits_of(folder / "teacher.keras", data.load(folder / "two.npz").train)
    np.testing.assert_allclose(store.read(np.arange(NUM["train"])), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("from_store", [False, True])
def test_distill_trains_beside_the_teacher_and_from_a_store(folder, tmp_path, from_store):
    source = ["--teacher", folder / "teacher.keras"]
    if from_store:
        assert run("label", folder, "--out", tmp_path / "store") == 0
        source = ["--store", tmp_path / "store"]
    out = tmp_path / "out.keras"
    options = ["--epochs", 30, "--learning-rate", 0.01, "--quiet", "--out", out]
    student = ["--student", folder / "student.keras"]
    assert run("distill", folder, *source, *student, *options, teacher=False) == 0
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["data"]["input_shape"] == {"token_ids": [6], "extra": [4]}
    test = data.load(folder / "two.npz").test
    errors = int((logits_of(out, test).argmax(axis=-1) != test.labels).sum())
    # Always "no" is wrong of so many.
    assert errors < 0.6 * test.labels.sum()


def test_distill_makes_an_int8_network(folder, tmp_path, capsys):
    student, out = folder / "student.keras", tmp_path / "out.keras"
    options = ("--student", student, "--epochs", 1, "--quiet", "--no-twin", "--quantize-aware", "--out", out)
    assert run("distill", folder, *options) == 0
    assert out.exists()


def test_pruning_with_channels_to_spare_changes_nothing(folder):
    # Channels that nothing reads are the first to go, by what both inputs make of them.
    teacher = keras.models.load_model(folder / "teacher.keras")
    inputs = data.load(folder / "two.npz").train.inputs
    before, last = teacher.layers[-2:]
    kernel, bias = last.get_weights()
    kernel[::2] = 0.0
    last.set_weights([kernel, bias])
    student = prune(teacher, {before.name: 0.5}, importance="taylor", calibration=inputs, repair=True)
    assert student.get_layer(before.name).units == before.units // 2
    expected, found = (model.predict(inputs, verbose=0) for model in (teacher, student))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_prune_cuts_and_repairs_on_both_inputs(folder, tmp_path, capsys):
    teacher, out = str(folder / "teacher.keras"), tmp_path / "cut.keras"
    options = ["--keep", "0.5", "--importance", "activations", "--data", str(folder / "two.npz"), "--out", str(out)]
    assert main(["prune", teacher, *options]) == 0
    assert {tensor.name for tensor in keras.models.load_model(out).inputs} == {"token_ids", "extra"}
    assert re.search(r"errors on the 120 validation items of two: teacher \d+", capsys.readouterr().out)


@pytest.mark.slow
def test_export_compares_on_the_data(folder, tmp_path, capsys):
    model = str(folder / "teacher.keras")
    assert main(["export", model, "--to", "litert", "--data", str(folder / "two.npz"), "--out", str(tmp_path)]) == 0
    artifact = kit_module().open_artifact(tmp_path / "teacher.tflite")
    test = data.load(folder / "two.npz").test
    found = artifact({name: np.asarray(array) for name, array in test.inputs.items()})
    np.testing.assert_allclose(found, logits_of(model, test), rtol=1e-5, atol=1e-5)


def test_a_model_of_other_input_names_is_refused(folder):
    ids, photo = keras.Input((6,), dtype="int32", name="ids"), keras.Input((4,), name="extra")
    model = keras.Model([ids, photo], layers.Dense(2)(layers.Concatenate()([layers.Rescaling(1.0)(ids), photo])))
    dataset = data.load(folder / "two.npz")
    sentence = "the student must take the inputs of two: token_ids, extra; got ids, extra. Name the model's keras.Input"
    with pytest.raises(ValueError, match=sentence):
        evaluation.check_model_fits_dataset(model, dataset, "student")
    with pytest.raises(ValueError, match="inputs of digits: one array without a name; got ids, extra"):
        evaluation.check_model_fits_dataset(model, data.load("digits"), "student")


def test_a_model_of_another_shape_is_refused_by_the_inputs_name(folder):
    ids, extra = keras.Input((5,), dtype="int32", name="token_ids"), keras.Input((4,), name="extra")
    model = keras.Model([ids, extra], layers.Dense(2)(extra))
    with pytest.raises(ValueError, match=r"the student's input 'token_ids' must have shape \(6,\); got \(5,\)"):
        evaluation.check_model_fits_dataset(model, data.load(folder / "two.npz"), "student")


def test_a_pixel_range_is_refused_in_a_sentence(folder, tmp_path, capsys):
    assert run("label", folder, "--out", tmp_path / "store", "--pixel-range", "0-255") == 2
    assert "hold images in one array; got {token_ids: int32[300, 6]" in capsys.readouterr().err


def test_a_web_page_of_two_inputs_is_refused_before_any_work(folder, tmp_path, capsys):
    arguments = [str(folder / "student.keras"), "--data", str(folder / "two.npz"), "--targets", "web"]
    assert main(["ship", *arguments, "--out", str(tmp_path / "bundle")]) == 2
    assert "the web page takes students of one input; got token_ids, extra." in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_meter_measures_models_of_two_inputs(folder, precision):
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install keras-distill[tune]")
    inputs = data.load(folder / "two.npz").validation.inputs
    student = keras.models.load_model(folder / "student.keras")
    cost = Meter("litert", inputs, inputs, {}).measure(student, precision, "mine")
    # The average of 6 × 6, dense layers from 4 to 6, 12 to 6 and 6 to 2.
    assert cost.multiply_adds == 4 * 6 + 12 * 6 + 6 * 2
    assert cost.latency_ms > 0.0


@pytest.mark.slow
def test_compress_cuts_the_teacher_alone_and_says_so(folder, tmp_path, capsys):
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install keras-distill[tune]")
    teacher, out = str(folder / "teacher.keras"), tmp_path / "found"
    options = ["--max-size", "9kB", "--trials", "2", "--epochs", "2", "--out", str(out)]
    assert main(["compress", teacher, "--data", str(folder / "two.npz"), *options]) in (0, 1)
    told = json.loads((out / "compression.json").read_text())
    assert {trial["family"] for trial in told["trials"]} == {"pruned"}
    assert (
        "The hand-made families take one array, and the data has token_ids, extra: they are left out." in told["notes"]
    )


@pytest.mark.slow
def test_the_whole_journey_label_distill_ship_and_a_device_without_keras(folder, tmp_path):
    assert run("label", folder, "--out", tmp_path / "store") == 0
    out = tmp_path / "student.keras"
    student = ["--store", tmp_path / "store", "--student", folder / "student.keras"]
    options = ["--epochs", 30, "--learning-rate", 0.01, "--quiet"]
    assert run("distill", folder, *student, *options, "--out", out, teacher=False) == 0
    bundle = tmp_path / "bundle"
    arguments = [str(out), "--teacher", str(folder / "teacher.keras"), "--data", str(folder / "two.npz")]
    assert main(["ship", *arguments, "--targets", "onnx", "litert", "--out", str(bundle)]) == 0
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [(entry["name"], entry["shape"]) for entry in manifest["inputs"]] == [
        ("extra", [None, 4]),
        ("token_ids", [None, 6]),
    ]
    assert manifest["preparation"] is None
    assert subprocess.run([sys.executable, bundle / "benchmark.py", "--rounds", "1"], check=False).returncode == 0
    test = data.load(folder / "two.npz").test.take(np.arange(5))
    np.savez(tmp_path / "five.npz", **test.inputs)
    best = logits_of(out, test).argmax(axis=-1)
    for program in ("classify_onnx.py", "classify_litert.py"):
        done = subprocess.run(
            [sys.executable, bundle / program, tmp_path / "five.npz"], capture_output=True, text=True, check=True
        )
        assert [line.split()[0] for line in done.stdout.splitlines()] == [("no", "yes")[each] for each in best]
