"""`keras-distill ship`, whole: a trained student of the digits to a bundle, and every way to be refused."""

import hashlib
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
from keras_distill._kit import kit_module
from keras_distill.cli.ship import SIZE_UNITS, TARGETS, TIME_UNITS, quantity
from keras_distill.cli.student_file import verdict_beside
from keras_distill.deploy import read_bundle
from keras_distill.deploy.ship import TARGETS as SHIP_TARGETS
from keras_distill.report.verdict import compare_models


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
    """Holds teacher.keras, student.keras with its record, and baseline.keras, trained for seconds."""
    folder = tmp_path_factory.mktemp("models")
    split = data.load("digits").train
    for name, width, seed in (("teacher", 64, 0), ("student", 24, 1), ("baseline", 24, 2)):
        train(width, seed, split).save(folder / f"{name}.keras")
    write_record(folder / "student.keras")
    return folder


def write_record(student, **changes):
    """Beside a student what `keras-distill distill` would have written; returns its verdict."""
    labels = np.arange(100) % 10
    verdict = compare_models(labels, np.eye(10)[labels], np.eye(10)[(labels + (np.arange(100) < 30)) % 10]).to_json()
    model = {"sha256": hashlib.sha256(student.read_bytes()).hexdigest()}
    record = {"format": "keras-distill distill", "version": 1, "model": model, "verdict": verdict} | changes
    student.with_suffix(".json").write_text(json.dumps(record))
    return verdict


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
    objects += [manifest["usefulness"], manifest["verdict"]]
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
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["library_name"], metadata["license"]) == ("keras", "cc-by-4.0")
    assert metadata["pipeline_tag"] == "image-classification"
    (metric,) = metadata["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == pytest.approx(1 - student["error_rate"], abs=1e-4)
    assert page.count("<svg") == 4
    # The verdict stands before the first section, under the model's name; most columns are folded.
    assert f'<h1>{manifest["name"]}</h1>\n<p class="verdict good">Green: the student is right on' in page
    assert "<summary>All 12 columns</summary>" in page
    assert page.count('<div class="scroll" tabindex="0"') == page.count('<div class="scroll"')
    told = re.findall(r"<title>(student[^:<]*): ([\d,]+) examples?, confidence", page)
    assert sum(int(count.replace(",", "")) for name, count in told if name == "student") == 2 * student["num_items"]
    assert len(re.findall(r"<title>[^<]+ % errors, [\d.e-]+ ms, [\d,]+ bytes</title>", page)) >= 4
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


@pytest.mark.slow
def test_accuracy_against_the_teacher_and_the_verdict_are_in_manifest_card_and_report(bundle, folder):
    manifest = read_bundle(bundle)
    test = data.load("digits").test
    right = {
        name: np.mean(
            keras.saving.load_model(folder / f"{name}.keras").predict(test.inputs, verbose=0).argmax(-1) == test.labels
        )
        for name in ("teacher", "student")
    }
    found = manifest["usefulness"]
    assert found["accuracy"] == pytest.approx(right["student"])
    assert found["teacher_accuracy"] == pytest.approx(right["teacher"])
    assert found["drop_from_teacher"] == pytest.approx(right["teacher"] - right["student"])
    assert found["colour"] in ("green", "amber")
    assert manifest["verdict"]["word"] == "BETTER"
    for text in ((bundle / "report.html").read_text(), (bundle / "model_card.md").read_text()):
        assert f"{found['colour'].capitalize()}: the student is right on {right['student']:.2%}" in text
        assert f"Its teacher is right on {right['teacher']:.2%}" in text
        assert "labels alone, when it was trained: BETTER: " in text.replace("&#39;", "'")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A student that says the same of everything."""
    path = tmp_path_factory.mktemp("untrained") / "untrained.keras"
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), layers.Flatten(), layers.Dense(10)])
    model.layers[-1].set_weights([1e-3 * np.ones((64, 10)), np.arange(10.0)])
    model.save(path)
    return path


def test_a_student_near_chance_does_not_ship_and_says_why_before_anything_is_converted(untrained, tmp_path, capsys):
    out = tmp_path / "bundle"
    assert cli.main(["ship", str(untrained), "--data", "digits", "--out", str(out), "--targets", "onnx"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    nines = np.mean(data.load("digits").test.labels == 9)
    assert f"red: right on {nines:.2%} of" in printed
    assert "onnx does not hold: The student is no better than chance" in printed
    assert "--min-accuracy 0" in printed
    assert not out.exists()


@pytest.fixture(scope="module")
def of_bytes(folder, tmp_path_factory):
    """The student as it would be of pixels from 0 to 255."""
    model = keras.saving.load_model(folder / "student.keras")
    kernel, *others = model.get_weights()
    model.set_weights([kernel / 255.0, *others])
    path = tmp_path_factory.mktemp("bytes") / "student.keras"
    model.save(path)
    return path


def test_a_student_of_another_pixel_range_does_not_ship_without_it(of_bytes, tmp_path, capsys):
    command = ["ship", str(of_bytes), "--data", "digits", "--out", str(tmp_path / "b"), "--targets", "onnx"]
    assert cli.main(command) == 1
    assert "The student is no better than chance" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_student_of_another_pixel_range_ships_on_data_in_that_range(of_bytes, folder, tmp_path):
    out = tmp_path / "bundle"
    command = ["ship", str(of_bytes), "--data", "digits", "--out", str(out), "--targets", "onnx"]
    assert cli.main([*command, "--pixel-range", "0-255"]) == 0
    manifest = read_bundle(out)
    test = data.load("digits").test
    # Right as often as the student that it was made of is in its own range.
    right = np.mean(keras.saving.load_model(folder / "student.keras")(test.inputs).numpy().argmax(-1) == test.labels)
    assert manifest["usefulness"]["accuracy"] == pytest.approx(right, abs=1e-6)
    assert "keras_distill.data.load('digits', pixel_range='0-255')" in manifest["preprocessing"]
    (image,) = manifest["inputs"]
    assert image["value_range"] == [0.0, 255.0]


@pytest.mark.slow
def test_whoever_names_a_limit_gets_a_bundle_that_says_red(untrained, tmp_path, capsys):
    out = tmp_path / "bundle"
    limit = ["--targets", "onnx", "--min-accuracy", "0"]
    assert cli.main(["ship", str(untrained), "--data", "digits", "--out", str(out), *limit]) == 0
    assert read_bundle(out)["usefulness"]["colour"] == "red"
    assert read_bundle(out)["verdict"] is None
    page = (out / "report.html").read_text()
    assert '<p class="verdict bad">Red: the student is right on' in page
    assert '<p class="verdict good">' not in page
    assert "Red: the student" in (out / "model_card.md").read_text()


def test_a_record_counts_for_the_student_that_it_names_alone(folder, tmp_path):
    student = tmp_path / "student.keras"
    shutil.copyfile(folder / "student.keras", student)
    assert verdict_beside(student) is None
    verdict = write_record(student)
    assert verdict_beside(student).to_json() == verdict
    write_record(student, verdict=None)
    assert verdict_beside(student) is None
    write_record(student, format="something else")
    assert verdict_beside(student) is None
    write_record(student)
    student.write_bytes(student.read_bytes() + b"changed")
    assert verdict_beside(student) is None


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        ({"word": "BETTER"}, "a verdict must be as Verdict.to_json gives it; got one without 'candidate'"),
        ("BETTER", "a verdict must be as Verdict.to_json gives it; got 'BETTER'"),
    ],
)
def test_a_record_whose_verdict_is_none_is_refused_by_name(folder, tmp_path, verdict, says):
    student = tmp_path / "student.keras"
    shutil.copyfile(folder / "student.keras", student)
    write_record(student, verdict=verdict)
    with pytest.raises(ValueError, match=re.escape(says)) as refusal:
        verdict_beside(student)
    assert "student.json" in str(refusal.value)
    assert "Distil again, or take the file away." in str(refusal.value)


# Refusals after the work


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (("--max-size", "1kB"), "past the budget of 1,000"),
        (("--max-latency", "0.0001us"), "past the budget of 1e-07 ms"),
        (("--min-accuracy", "0.999", "--min-class-recall", "1"), "short of the budget of 99.90%"),
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
        (("--pixel-range", "0-256"), "--pixel-range must be one of '0-1', '0-255'"),
        (("--max-accuracy-drop", "2"), "--max-accuracy-drop must be between 0 and 1"),
        (("--targets", "web", "--web-runtime", "/nowhere"), "the web runtime's folder must contain"),
        (("--min-accuracy", "95"), "--min-accuracy must be between 0 and 1; got 95.0. It is a fraction"),
        (("--max-drop-from-teacher", "-1"), "--max-drop-from-teacher must be between 0 and 1; got -1.0"),
        (("--min-class-recall", "nan"), "--min-class-recall must be a number; got NaN"),
        (
            ("--max-drop-from-teacher", "0.1"),
            "there must be a teacher where --max-drop-from-teacher is a budget; got none. Name it, --teacher …",
        ),
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
