"""`keras-distill specialists` on a small set of its own: its tables, its resuming, and what it says to bad input."""

import json

import keras
import numpy as np
import pytest

from keras_distill.cli import main
from keras_distill.data import load
from keras_distill.models.saving import load_model
from keras_distill.specialists import train
from keras_distill.targets import Augmentation, Shift


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
        "specialists",
    ]
    [row] = results["by_coverage"]
    assert (row["specialists"], row["classes"], row["items"]) == (1, 6, 200)
    assert row["merged"] == 200 - results["models"]["merged"]["errors"]


def test_accuracy_within_groups_is_that_among_a_groups_own_classes(finished, folder):
    test = np.load(folder / "data.npz")
    x, y = test["x_test"], test["y_test"]
    right = {"specialists": 0, "merged": 0}
    merged = load_model(finished / "ensemble.keras").predict(x, verbose=0)
    for position, class_set in enumerate([[0, 1], [2, 3], [4, 5]]):
        here = np.isin(y, class_set)
        own = load_model(finished / f"specialist-{position:03d}.keras").predict(x[here], verbose=0)[:, :2]
        right["specialists"] += int((own.argmax(1) == y[here] - class_set[0]).sum())
        right["merged"] += int((merged[here][:, class_set].argmax(1) == y[here] - class_set[0]).sum())
    models = json.loads((finished / "results.json").read_text())["models"]
    for name, count in right.items():
        assert models[name]["within_group"] == pytest.approx(count / 200)


def test_cost_of_every_model_is_kept(finished):
    cost = json.loads((finished / "results.json").read_text())["cost"]
    assert set(cost["models"]) == {
        *[f"specialist-{position:03d}" for position in range(3)],
        *["control", "ensemble"],
        *[f"distilled-from-{teacher}" for teacher in ("generalist", "control", "merged")],
    }
    assert cost["cpu_seconds"] == pytest.approx(sum(part["cpu_seconds"] for part in cost["models"].values()))
    assert 0 < cost["models"]["control"]["seconds"] < 600


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
    assert specialists(folder, finished, "--distill-back", "2", "--distill-temperature", "2") == 2
    assert "--distill-temperature 4.0 → 2.0" in capsys.readouterr().err


def test_run_killed_between_two_specialists_goes_on_with_the_second(folder, monkeypatch, capsys):
    from keras_distill import specialists as library

    whole, trained = library.train, []

    def train(generalist, class_set, *args, **kwargs):
        trained.append(class_set)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return whole(generalist, class_set, *args, **kwargs)

    monkeypatch.setattr(library, "train", train)
    assert specialists(folder, folder / "killed") == 130
    assert not (folder / "killed" / "results.json").exists()
    assert specialists(folder, folder / "killed") == 0
    assert trained == [[0, 1], [2, 3], [2, 3], [4, 5]]


def test_frozen_layers_one_dustbin_unit_and_a_warm_start_are_to_be_had(folder):
    options = ("--trained", "head", "--dustbin", "unit", "--distill-back", "1", "--distill-start", "generalist")
    assert specialists(folder, folder / "options", *options, "--distill-learning-rate", "1e-9") == 0
    assert load_model(folder / "options" / "specialist-000.keras").get_layer("specialist_logits").units == 3
    models = json.loads((folder / "options" / "results.json").read_text())["models"]
    # Hardly trained, a net that starts from the generalist is the generalist.
    assert models["merged, distilled"]["errors"] == models["generalist"]["errors"]


def test_flip_and_shift_train_on_the_librarys_own_views(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {}
    for split, num_items in (("train", 60), ("validation", 12), ("test", 12)):
        arrays[f"x_{split}"] = generator.normal(size=(num_items, 4, 4, 1)).astype("float32")
        arrays[f"y_{split}"] = np.arange(num_items) % 6
    np.savez(tmp_path / "data.npz", **arrays)
    generalist = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(6)])
    generalist.save(tmp_path / "generalist.keras")
    assert specialists(tmp_path, tmp_path / "run", "--flip", "--shift", "1", "--only", "0", "--seed", "2", steps=5) == 0
    class_sets = json.loads((tmp_path / "run" / "clusters.json").read_text())["class_sets"]
    expected = train(
        generalist,
        class_sets[0],
        load(str(tmp_path / "data.npz")).train,
        num_steps=5,
        learning_rate=0.05,
        batch_size=32,
        augmentation=Augmentation(keras.layers.RandomFlip("horizontal"), Shift(1), seed=2),
        seed=2,
    )
    found = load_model(tmp_path / "run" / "specialist-000.keras")
    for weight, other in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-6)


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
        ({}, ("--flip",), "must have shape (batch, height, width"),
        ({}, ("--distill-start", "teacher"), "'fresh', 'generalist'"),
        ({}, ("--dustbin", "bin"), "'sum', 'unit'"),
    ],
)
def test_bad_input_is_an_error_message(folder, tmp_path, capsys, changes, more, words):
    if "generalist" in changes:
        changes = {"generalist": folder / changes["generalist"]}
    assert specialists(folder, tmp_path / "out", *more, **changes) == 2
    assert words in " ".join(capsys.readouterr().err.split())
