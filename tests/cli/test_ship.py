"""`keras-distill ship`, whole: a trained student of the digits to a bundle, and every way to be refused."""

import json
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill import cli, data
from keras_distill.cli.ship import SIZE_UNITS, TARGETS, TIME_UNITS, quantity
from keras_distill.deploy import read_bundle
from keras_distill.deploy.kit import kit_module
from keras_distill.deploy.ship import TARGETS as SHIP_TARGETS


def train(width, seed, split):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Flatten(),
            layers.Dense(width, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(split.inputs, split.labels, batch_size=32, epochs=8, verbose=0)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds teacher.keras, student.keras and baseline.keras, trained for seconds."""
    folder = tmp_path_factory.mktemp("models")
    split = data.load("digits").train
    for name, width, seed in (("teacher", 64, 0), ("student", 24, 1), ("baseline", 24, 2)):
        train(width, seed, split).save(folder / f"{name}.keras")
    return folder


def ship(folder, *arguments):
    return cli.main(["ship", str(folder / "student.keras"), "--data", "digits", *map(str, arguments)])


# The whole way


@pytest.fixture(scope="module")
def bundle(folder):
    """A bundle of every target but the page."""
    out = folder / "bundle"
    models = ["--teacher", folder / "teacher.keras", "--baseline", folder / "baseline.keras"]
    code = ship(folder, "--out", out, *models, "--licence", "CC-BY-4.0", "--name", "digit student")
    assert code == 0
    return out


@pytest.mark.slow
def test_the_bundle_is_whole_and_its_figures_are_those_of_the_model(bundle, folder):
    manifest = read_bundle(bundle)
    test = data.load("digits").test
    model = keras.saving.load_model(folder / "student.keras")
    num_errors = int(np.count_nonzero(np.asarray(model(test.inputs)).argmax(-1) != test.labels))
    figures = {row["name"]: row for row in manifest["figures"]}
    assert figures["student"]["num_errors"] == num_errors
    assert figures["student"]["num_items"] == len(test)
    assert figures["onnx"]["num_errors"] == num_errors
    low, high = figures["student"]["error_rate_interval"]
    assert low < num_errors / len(test) < high
    teacher = keras.saving.load_model(folder / "teacher.keras")
    same = np.asarray(teacher(test.inputs)).argmax(-1) == np.asarray(model(test.inputs)).argmax(-1)
    assert figures["student"]["agreement_with_teacher"] == pytest.approx(same.mean())
    assert manifest["name"] == "digit student"
    assert manifest["licence"] == "CC-BY-4.0"
    assert manifest["class_names"] == list(data.load("digits").class_names)
    assert {"onnx", "litert"} <= set(manifest["artifacts"])
    for target in ("onnx-int8", "litert-int8"):
        assert (target in manifest["artifacts"]) != (target in manifest["left_out"])


@pytest.mark.slow
def test_every_field_of_the_manifest_is_documented_and_every_documented_one_is_there(bundle):
    text = (bundle / "README.md").read_text()
    manifest = json.loads((bundle / "manifest.json").read_text())
    objects = [manifest, manifest["artifacts"]["onnx"], manifest["tried"][0], manifest["figures"][0]]
    objects += [manifest["inputs"][0], manifest["machine"], manifest["provenance"], manifest["budgets"]]
    objects += [manifest["artifacts"]["onnx"]["verification"], manifest["artifacts"]["onnx"]["latency"]]
    fields = {field for each in objects for field in each}
    undocumented = {field for field in fields if f"`{field}`" not in text and not field.endswith("_scaled")}
    assert undocumented == set()


@pytest.mark.slow
def test_artifacts_say_what_they_are(bundle):
    from keras_distill.deploy import read_metadata

    for name in ("student.onnx", "student.tflite"):
        metadata = read_metadata(bundle / name)
        assert json.loads(metadata["class_names"]) == [str(digit) for digit in range(10)]
        assert metadata["licence"] == "CC-BY-4.0"
        assert float(metadata["temperature"]) == json.loads((bundle / "manifest.json").read_text())["temperature"]
        assert json.loads(metadata["provenance"])["data"] == "digits"


@pytest.mark.slow
def test_golden_answers_are_those_of_the_model_in_logits(bundle, folder):
    inputs, logits = kit_module().golden_of(bundle)
    model = keras.saving.load_model(folder / "student.keras")
    probabilities = np.asarray(model(inputs["image"]))
    shifted = np.log(probabilities) - np.log(probabilities).max(-1, keepdims=True)
    np.testing.assert_allclose(logits["keras"] - logits["keras"].max(-1, keepdims=True), shifted, atol=1e-3)
    np.testing.assert_allclose(logits["onnx"], logits["keras"], atol=1e-4)
    with np.load(bundle / "golden.npz") as golden:
        assert set(golden["labels"]) == set(range(10))


@pytest.mark.slow
def test_report_and_card_are_of_this_run_and_need_no_network(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    page = (bundle / "report.html").read_text()
    card = (bundle / "model_card.md").read_text()
    student = next(row for row in manifest["figures"] if row["name"] == "student")
    for text in (page, card):
        assert f"{student['num_errors']} of {student['num_items']}" in text
        assert "student on labels" in text
    assert "CC-BY-4.0" in card
    assert page.count("<svg") == 4
    # What a browser would fetch; the names of XML namespaces are addresses that nobody visits.
    assert re.findall(r"""(?:src|href)=["']?https?:|url\(["']?https?:|@import|<script src""", page) == []
    assert "width=device-width" in page


@pytest.mark.slow
def test_a_copy_of_the_bundle_passes_its_own_benchmark_and_consumers(bundle, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    command = [sys.executable, copy / "benchmark.py", "--json", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert all(row["holds"] for row in json.loads(done.stdout)["artifacts"].values())
    for script in ("classify_onnx.py", "classify_litert.py"):
        done = subprocess.run([sys.executable, copy / script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 16


@pytest.mark.slow
def test_a_student_of_one_unit_and_another_output_ships_with_both(folder, tmp_path):
    from keras_distill.data import Dataset, Split
    from keras_distill.deploy import Provenance
    from keras_distill.deploy import ship as ship_model

    digits = data.load("digits")
    splits = [Split(s.inputs, (s.labels % 2).astype("int32")) for s in (digits.train, digits.validation, digits.test)]
    parity = Dataset("parity", *splits, ("even", "odd"), digits.licence)
    inputs = keras.Input((8, 8, 1), name="image")
    hidden = layers.Dense(24, activation="relu")(layers.Flatten()(inputs))
    outputs = {"brightness": layers.Dense(3)(hidden), "is_odd": layers.Dense(1, activation="sigmoid")(hidden)}
    student, trained = keras.Model(inputs, outputs), keras.Model(inputs, outputs["is_odd"])
    trained.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    trained.fit(parity.train.inputs, parity.train.labels, batch_size=32, epochs=4, verbose=0)
    out = tmp_path / "bundle"
    shipment = ship_model(student, parity, out, provenance=Provenance("parity"), targets=["onnx"], rounds=1)
    assert shipment.out == out
    manifest = read_bundle(out)
    assert manifest["outputs"] == ["is_odd", "brightness"]
    assert set(manifest["artifacts"]["onnx"]["golden_tolerance"]) == {"is_odd", "brightness"}
    checks = manifest["artifacts"]["onnx"]["verification"]["outputs"]
    assert {name: check["answer"] for name, check in checks.items()} == {"is_odd": "threshold", "brightness": "argmax"}
    is_odd = np.asarray(student(parity.test.inputs)["is_odd"])[:, 0] > 0.5
    num_errors = int(np.count_nonzero(is_odd != parity.test.labels))
    assert [row["num_errors"] for row in manifest["figures"]] == [num_errors, num_errors]
    for script, says in (("benchmark.py", " ok"), ("classify_onnx.py", "odd ")):
        done = subprocess.run([sys.executable, out / script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert says in done.stdout


# Refusals after the work


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (("--max-size", "1kB"), "past the budget of 1,000"),
        (("--max-latency", "0.0001us"), "past the budget of 1e-07 ms"),
    ],
)
def test_past_a_budget_it_exits_one_says_by_how_much_and_keeps_the_older_bundle(folder, tmp_path, capsys, budget, says):
    out = tmp_path / "bundle"
    out.mkdir()
    for name in ("manifest.json", "golden.npz"):
        (out / name).write_text("older")
    assert ship(folder, "--out", out, "--targets", "onnx", *budget) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert says in printed
    assert "No bundle was written" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert {path.name: path.read_text() for path in out.iterdir()} == {"manifest.json": "older", "golden.npz": "older"}


# Refusals before the work: one sentence, exit code 2, nothing written


def refused(capsys, tmp_path, *arguments):
    assert cli.main(["ship", *map(str, arguments), "--out", str(tmp_path / "bundle")]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []
    return " ".join(printed.split())


def test_a_folder_that_holds_anything_else_is_refused_and_stays(folder, capsys, tmp_path):
    (tmp_path / "manifest.json").write_text("of something else")
    assert ship(folder, "--out", tmp_path) == 2
    assert "must be new or hold an older bundle" in capsys.readouterr().err
    assert (tmp_path / "manifest.json").read_text() == "of something else"


def test_no_file_and_no_keras_file_are_refused(capsys, tmp_path, tmp_path_factory):
    assert "does not exist" in refused(capsys, tmp_path, "nowhere.keras", "--data", "digits")
    nonsense = tmp_path_factory.mktemp("nonsense") / "a.keras"
    nonsense.write_bytes(b"nonsense")
    assert "must be a .keras file" in refused(capsys, tmp_path, nonsense, "--data", "digits")


def test_a_lambda_is_refused_with_the_switch_named(capsys, tmp_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("lambda") / "a.keras"
    keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Lambda(lambda x: 2 * x), layers.Dense(10)]).save(
        path
    )
    assert "--trust-code" in refused(capsys, tmp_path, path, "--data", "digits")


def test_data_of_another_shape_or_other_classes_is_refused(capsys, tmp_path, tmp_path_factory):
    place = tmp_path_factory.mktemp("shapes")
    keras.Sequential([keras.Input((9, 9, 1)), layers.Flatten(), layers.Dense(10)]).save(place / "a.keras")
    assert "must have shape ('batch', 9, 9, 1)" in refused(capsys, tmp_path, place / "a.keras", "--data", "digits")
    keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(7)]).save(place / "b.keras")
    assert "one of 10 logits" in refused(capsys, tmp_path, place / "b.keras", "--data", "digits")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--max-size", "big"), "--max-size must be a number > 0 and a unit"),
        (("--max-latency", "0ms"), "--max-latency must be a number > 0 and a unit"),
        (("--max-accuracy-drop", "2"), "max_accuracy_drop must be between 0 and 1"),
        (("--targets", "web", "--web-runtime", "/nowhere"), "the web runtime's folder must contain"),
    ],
)
def test_bad_switches_are_refused(folder, capsys, tmp_path, arguments, says):
    assert says in refused(capsys, tmp_path, folder / "student.keras", "--data", "digits", *arguments)


def test_an_output_that_gives_probabilities_unseen_is_refused(folder, tmp_path):
    from keras_distill.deploy.ship import ship as ship_model
    from keras_distill.deploy.shipment import Provenance

    class Hidden(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.saving.load_model(folder / "student.keras")

        def call(self, inputs):
            return self.inner(inputs)

    dataset = data.load("digits")
    model = Hidden()
    model(dataset.test.inputs[:1])
    with pytest.raises(ValueError, match="must be logits; got probabilities"):
        ship_model(model, dataset, tmp_path / "bundle", provenance=Provenance("hidden"))


@pytest.mark.parametrize(
    ("text", "units", "expected"),
    [
        ("1MB", SIZE_UNITS, 1e6),
        ("2.5 kB", SIZE_UNITS, 2500),
        ("1KiB", SIZE_UNITS, 1024),
        ("7", SIZE_UNITS, 7),
        ("2ms", TIME_UNITS, 2.0),
        ("200us", TIME_UNITS, 0.2),
        ("1s", TIME_UNITS, 1000.0),
    ],
)
def test_quantities_are_read_in_their_units(text, units, expected):
    assert quantity("--x", text, units) == pytest.approx(expected)


def test_the_command_offers_what_the_gate_knows():
    assert TARGETS == SHIP_TARGETS
