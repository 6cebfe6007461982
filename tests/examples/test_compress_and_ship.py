"""The journey from an ensemble to a bundle, in its quick form: its figures are those of the files that it leaves."""

import json

import keras
import numpy as np
import pytest

from examples import compress_and_ship
from examples.results import COMMANDS
from keras_distill import data
from keras_distill.deploy import read_bundle


@pytest.mark.slow
def test_quick_journey_leaves_a_bundle_and_figures_that_are_the_bundle_s_own(tmp_path, capsys):
    assert compress_and_ship.main(["--quick", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["quick"]
    assert results["experiment"] in COMMANDS
    assert results["minutes"] > 0
    rows = {row["row"]: row for row in results["rows"]}
    assert set(rows["teacher: ensemble of 2 ConvNets"]) == {"row", "paper", "ours", "unit", "goal", "goal_met", "note"}

    bundle, test = tmp_path / "bundle", data.load("digits").test
    manifest = read_bundle(bundle)
    student = keras.saving.load_model(tmp_path / "student.keras")
    assert {type(layer).__module__.split(".")[0] for layer in student.layers} == {"keras"}
    num_wrong = int(np.count_nonzero(np.asarray(student(test.inputs)).argmax(-1) != test.labels))
    distilled = rows["the same student, distilled"]["ours"]
    assert distilled["per_seed"][results["seeds"].index(results["shipped_seed"])] == num_wrong
    assert distilled["mean"] == np.mean(distilled["per_seed"])
    assert len(distilled["per_seed"]) == len(results["seeds"]) == 2
    assert {row["name"]: row["num_errors"] for row in manifest["figures"]}["onnx"] == num_wrong

    size = (bundle / "student.onnx").stat().st_size
    large = (tmp_path / "teacher-bundle" / "student.onnx").stat().st_size
    assert rows["onnx: size"]["ours"]["mean"] == size
    assert rows["onnx: smaller than the teacher"]["ours"]["mean"] == large / size
    assert (tmp_path / "trade_off.svg").read_text().startswith("<svg")
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows)
