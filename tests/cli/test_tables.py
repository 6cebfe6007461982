"""`--data people.csv --label income`, from the teacher to a device that reads rows without pandas or Keras."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from keras_distill import data
from keras_distill._inputs import num_rows
from keras_distill.cli import main
from keras_distill.targets import SoftTargetStore
from keras_distill.teachers.knowledge import check_teacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """people.csv, and a teacher that was trained on it by the command `new`."""
    folder = tmp_path_factory.mktemp("people")
    rng = np.random.default_rng(0)
    rows = [["name", "age", "job", "married", "income"]]
    for number in range(400):
        age, job, married = int(rng.integers(18, 80)), str(rng.choice(("cook", "judge", "clerk"))), rng.random() < 0.5
        score = 0.05 * (age - 48) + 2.0 * (job == "judge") + rng.normal(0, 0.3)
        rows.append([f"p{number}", "" if rng.random() < 0.1 else age, job, married, "rich" if score > 0.6 else "poor"])
    with open(folder / "people.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    options = [*of_people(folder), "--like", "mlp", "--widths", "24", "--epochs", "30", "--learning-rate", "0.01"]
    assert main(["new", str(folder / "teacher.keras"), *options]) == 0
    assert main(["new", str(folder / "student.keras"), *of_people(folder), "--like", "mlp", "--widths", "6"]) == 0
    return folder


def of_people(folder):
    return ["--data", str(folder / "people.csv"), "--label", "income", "--pieces", "8"]


def test_what_is_left_out_is_said(folder, tmp_path, capsys):
    teacher = ["--teacher", str(folder / "teacher.keras")]
    assert main(["label", *teacher, *of_people(folder), "--out", str(tmp_path / "store")]) == 0
    told = capsys.readouterr().err
    assert "The column 'name' is left out: it has a value of its own in every row, as an id or a name has." in told
    assert len(SoftTargetStore.open(tmp_path / "store")) == 288


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "people.csv needs the name of its label column; got none. Name one: name, age, job, married, income."),
        (
            ["--label", "incomes"],
            "a column 'incomes' among the data's; got name, age, job, married, income. Did you mean",
        ),
        (["--label", "income", "--leave-out", "jobs"], "a column 'jobs' among the data's"),
        (["--label", "income", "--pieces", "-1"], "pieces must be >= 0; got -1"),
    ],
)
def test_a_column_that_is_not_there_is_one_sentence(folder, tmp_path, capsys, options, sentence):
    argv = ["--teacher", str(folder / "teacher.keras"), "--data", str(folder / "people.csv"), *options]
    assert main(["label", *argv, "--out", str(tmp_path / "store")]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_distill_reads_a_table(folder, tmp_path, capsys):
    models = ["--teacher", str(folder / "teacher.keras"), "--student", str(folder / "student.keras")]
    out = tmp_path / "out.keras"
    assert main(["distill", *models, *of_people(folder), "--epochs", "2", "--quiet", "--out", str(out)]) == 0
    settings = json.loads(out.with_suffix(".json").read_text())["settings"]
    assert (settings["label"], settings["pieces"], settings["leave_out"]) == ("income", 8, [])


@pytest.mark.slow
def test_a_bundle_answers_for_rows_of_the_file_as_the_model_does(folder, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    teacher = str(folder / "teacher.keras")
    assert main(["ship", teacher, *of_people(folder), "--targets", "onnx", "litert", "--out", str(bundle)]) == 0
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["preparation"] == {
        "file": "preparation.json",
        "kind": "table",
        "description": "1 number, 1 boolean, 1 category: 14 features",
    }
    assert {"preparation.json", "prepare.py"} <= set(manifest["files"])
    # Six rows, without the label and in another order of the columns.
    with open(folder / "people.csv", newline="") as file:
        rows = list(csv.DictReader(file))[:6]
    with open(tmp_path / "six.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["married", "age", "job"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    import keras

    dataset = data.load(folder / "people.csv", label="income", pieces=8)
    best = keras.models.load_model(teacher).predict(dataset.preparation(rows), verbose=0).argmax(axis=-1)
    for program in ("classify_onnx.py", "classify_litert.py"):
        done = subprocess.run(
            [sys.executable, bundle / program, tmp_path / "six.csv"], capture_output=True, text=True, check=True
        )
        assert [line.split()[0] for line in done.stdout.splitlines()] == [dataset.class_names[each] for each in best]
    (tmp_path / "bad.csv").write_text("age,job\n41,judge\n")
    done = subprocess.run([sys.executable, bundle / program, tmp_path / "bad.csv"], capture_output=True, text=True)
    assert "there must be a column 'married' among the data's; got age, job." in done.stderr


@pytest.mark.parametrize("kind", ["table", "named"])
def test_a_teacher_that_knows_nothing_is_offered_no_range_of_pixels(folder, kind):
    dataset = data.load(folder / "people.csv", label="income")
    if kind == "named":
        splits = {
            name: data.Split({"a": split.inputs, "b": split.inputs}, split.labels)
            for name, split in (("train", dataset.train), ("validation", dataset.validation), ("test", dataset.test))
        }
        dataset = data.Dataset("named", **splits, class_names=dataset.class_names, licence="none")

    def always_the_first(inputs):
        return np.zeros(num_rows(inputs), int)

    with pytest.raises(ValueError, match=r"must know the validation data .*\. Give it the data that it was trained on"):
        check_teacher(always_the_first, "the teacher", dataset)
