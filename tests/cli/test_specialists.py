"""`keras-distill specialists` on a small set of its own: its tables, its resuming, and what it says to bad input."""

import json

import keras
import numpy as np
import pytest

from keras_distill.cli import main
from keras_distill.saving import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six classes in three pairs that lie close together, as an .npz, and a generalist that knows the pairs."""
    folder = tmp_path_factory.mktemp("specialists")
    generator = np.random.default_rng(0)
    centres = np.repeat(generator.normal(size=(3, 5)) * 3, 2, axis=0) + generator.normal(size=(6, 5)) * 0.5
    arrays = {}
    for split, num_items in (("train", 600), ("validation", 60), ("test", 200)):
        labels = np.arange(num_items) % 6
        arrays[f"y_{split}"] = labels
        arrays[f"x_{split}"] = (centres[labels] + generator.normal(size=(num_items, 5))).astype("float32")
    np.savez(folder / "data.npz", **arrays, class_names=np.array(["a0", "a1", "b0", "b1", "c0", "c1"]))
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6, "softmax")])
    pairs = np.repeat(centres.reshape(3, 2, 5).mean(1), 2, axis=0)
    model.layers[0].set_weights([0.5 * pairs.T, -0.25 * (pairs**2).sum(1)])
    model.save(folder / "generalist.keras")
    keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)]).save(folder / "four.keras")
    return folder


def specialists(folder, out, *more, **changes):
    options = {"generalist": folder / "generalist.keras", "data": folder / "data.npz", "num-clusters": 3} | changes
    options |= {"steps": changes.get("steps", 60), "learning-rate": 0.05, "batch-size": 32}
    argv = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return main(["specialists", "--out", str(out), *argv, *more])


@pytest.fixture(scope="module")
def finished(folder):
    assert specialists(folder, folder / "run", "--distill-back", "2") == 0
    return folder / "run"


def test_pairs_are_found_and_the_merge_beats_the_generalist(finished):
    assert json.loads((finished / "clusters.json").read_text())["class_sets"] == [[0, 1], [2, 3], [4, 5]]
    results = json.loads((finished / "results.json").read_text())
    assert results["models"]["merged"]["errors"] < results["models"]["generalist"]["errors"]
    assert list(results["models"]) == [
        "generalist",
        "control",
        "merged",
        "self-distilled",
        "control, distilled",
        "merged, distilled",
    ]
    [row] = results["by_coverage"]
    assert (row["specialists"], row["classes"], row["items"]) == (1, 6, 200)
    assert row["merged"] == 200 - results["models"]["merged"]["errors"]


def test_what_is_saved_is_what_was_measured(finished, folder):
    ensemble = load_model(finished / "ensemble.keras")
    test = np.load(folder / "data.npz")
    errors = int((np.argmax(ensemble.predict(test["x_test"], verbose=0), -1) != test["y_test"]).sum())
    assert errors == json.loads((finished / "results.json").read_text())["models"]["merged"]["errors"]
    assert (finished / "confusable.png").stat().st_size > 1000
    assert not list(finished.glob(".specialist-*"))


def test_same_command_again_makes_nothing_anew(finished, folder, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in finished.glob("*.keras")}
    assert specialists(folder, finished, "--distill-back", "2") == 0
    assert {path.name: path.stat().st_mtime_ns for path in finished.glob("*.keras")} == before
    shown = capsys.readouterr().out
    assert "control" in shown
    assert "a0, a1" in shown


def test_specialists_trained_one_by_one_are_those_trained_together(finished, folder):
    out = folder / "apart"
    assert specialists(folder, out, "--only", "2") == 0
    assert [path.name for path in out.glob("*.keras")] == ["specialist-002.keras"]
    expected = load_model(finished / "specialist-002.keras").get_weights()
    for found, weight in zip(load_model(out / "specialist-002.keras").get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, weight, atol=1e-5)


def test_folder_of_another_run_is_refused(finished, folder, capsys):
    assert specialists(folder, finished, steps=50) == 2
    assert "steps 60 → 50" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "more", "words"),
    [
        ({"generalist": "four.keras"}, (), "4 classes"),
        ({"generalist": "absent.keras"}, (), "does not exist"),
        ({"num-clusters": 0}, (), "--num-clusters must be >= 1"),
        ({"num-clusters": 7}, (), "<= 6"),
        ({}, ("--only", "3"), "[0, 2]"),
        ({}, ("--temperature", "0"), "--temperature must be > 0"),
        ({}, ("--cluster-size", "6"), "size must be < 6"),
    ],
)
def test_bad_input_is_an_error_message(folder, tmp_path, capsys, changes, more, words):
    if "generalist" in changes:
        changes = {"generalist": folder / changes["generalist"]}
    assert specialists(folder, tmp_path / "out", *more, **changes) == 2
    assert words in " ".join(capsys.readouterr().err.split())
