"""The demo: the whole journey once, small; twins are twins, the verdict is honest, the folder whole or absent."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import keras
import numpy as np
import pytest

from keras_distill import cli
from keras_distill.cli import demo, demo_recipe, demo_report
from keras_distill.data.dataset import Dataset, Split
from keras_distill.models.inference import all_logits
from keras_distill.report.verdict import compare_models

TINY = demo_recipe.Recipe(
    teacher_widths=(4,),
    teacher_dense_width=8,
    num_members=2,
    teacher_dropout=0.2,
    teacher_epochs=2,
    teacher_batch_size=16,
    teacher_learning_rate=1e-2,
    jitter=0.1,
    student_share=1.0,
    student_widths=(2,),
    student_dense_width=4,
    student_epochs=3,
    student_batch_size=16,
    student_learning_rate=1e-2,
    temperature=3.0,
    student_loss_weight=0.1,
)


def small_dataset(num_items=48):
    rng = np.random.default_rng(0)
    labels = (np.arange(num_items) % 3).astype("int32")
    inputs = rng.random((num_items, 6, 6, 1)).astype("float32")
    inputs[np.arange(num_items), labels * 2] += 1.0
    split = Split(inputs, labels)
    return Dataset("stripes", split, split, split, ("low", "middle", "high"), "CC0")


def weights(model):
    return [keras.ops.convert_to_numpy(value) for value in model.weights]


def test_both_students_start_from_the_same_weights():
    dataset = small_dataset()
    for first, second in zip(
        weights(demo_recipe.new_student(dataset, TINY, 7)),
        weights(demo_recipe.new_student(dataset, TINY, 7)),
        strict=True,
    ):
        np.testing.assert_array_equal(first, second)
    other = weights(demo_recipe.new_student(dataset, TINY, 8))
    assert not np.array_equal(other[0], weights(demo_recipe.new_student(dataset, TINY, 7))[0])


def test_the_students_see_their_share_of_every_class_and_the_rest_stays():
    dataset = small_dataset()
    seen = demo_recipe.transfer_set(dataset, replace(TINY, student_share=0.25))
    assert np.bincount(seen.train.labels).tolist() == [4, 4, 4]
    assert seen.test is dataset.test
    assert demo_recipe.transfer_set(dataset, TINY) is dataset


def test_with_all_weight_on_labels_the_distilled_student_is_its_twin():
    dataset, epochs = small_dataset(), []
    recipe = replace(TINY, student_loss_weight=1.0)
    twin = demo_recipe.train_on_labels(dataset, recipe, 0, lambda: epochs.append("twin"))
    soft_targets = np.zeros((48, 3), "float32")
    student = demo_recipe.distil(dataset, soft_targets, recipe, 0, lambda: epochs.append("student"))
    for first, second in zip(weights(twin), weights(student), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
    assert epochs == ["twin"] * 3 + ["student"] * 3


def test_the_distilled_student_follows_its_teacher_and_not_the_labels():
    dataset = small_dataset()
    # A teacher that calls every class by the next one's name.
    soft_targets = 9.0 * np.eye(3, dtype="float32")[(dataset.train.labels + 1) % 3]
    recipe = replace(TINY, student_loss_weight=0.0, student_epochs=30)
    student = demo_recipe.distil(dataset, soft_targets, recipe, 0, lambda: None)
    answers = all_logits(student, dataset.train.inputs).argmax(-1)
    assert np.mean(answers == (dataset.train.labels + 1) % 3) > 0.9


def test_the_teacher_averages_its_members_and_carries_no_jitter():
    dataset = small_dataset()
    teacher = demo_recipe.train_teacher(dataset, TINY, lambda: None)
    assert len(teacher.models) == 2
    assert not [layer for member in teacher.models for layer in member.layers if "translation" in layer.name]
    assert not np.array_equal(weights(teacher.models[0])[0], weights(teacher.models[1])[0])
    targets = demo_recipe.soft_targets_of(teacher, dataset.test.inputs)
    members = [all_logits(member, dataset.test.inputs) for member in teacher.models]
    np.testing.assert_allclose(targets["member_logits"], np.stack(members, axis=1), rtol=1e-5, atol=1e-5)


def models(teacher, on_labels, distilled):
    spread = demo._spread
    return {
        "teacher": {"num_errors": spread([teacher])},
        "student_on_labels": {"num_errors": spread(on_labels)},
        "student_distilled": {"num_errors": spread(distilled)},
    }


def judged(teacher, on_labels, distilled):
    """The verdict over 700 examples, of which the first are the wrong ones."""
    labels = np.zeros(700, int)

    def logits(counts):
        return np.stack([np.eye(2)[(np.arange(700) < count).astype(int)] for count in counts])

    comparison = compare_models(labels, logits(distilled), logits(on_labels))
    return demo.verdict(models(teacher, on_labels, distilled), comparison)


def test_verdict_counts_seeds_and_the_closed_gap():
    outcome = judged(10, [70, 72, 68], [14, 18, 19])
    assert outcome["word"] == "BETTER"
    assert outcome["num_seeds_better"] == 3
    assert outcome["errors_saved"] == pytest.approx(53.0)
    assert outcome["gap_closed"] == pytest.approx(53 / 60)
    assert outcome["sentence"].startswith(
        "BETTER. The distilled student beats the same student trained on labels: 17.0 "
    )
    assert "errors against 70.0 of 700, fewer with 3 of 3 seeds" in outcome["sentence"]
    assert "88% of the distance" in outcome["sentence"]


@pytest.mark.parametrize(
    ("distilled", "word", "says"),
    [
        ([20, 22, 18], "NO BETTER", "does not beat"),
        ([60, 62, 58], "WORSE", "is worse than"),
        ([10, 22, 18], "INCONCLUSIVE", "cannot be told"),
    ],
)
def test_verdict_says_so_when_distillation_does_not_help(distilled, word, says):
    outcome = judged(25, [20, 22, 18], distilled)
    assert outcome["word"] == word
    assert outcome["gap_closed"] is None
    assert says in outcome["sentence"]


def test_spread_is_the_samples_standard_deviation_and_one_seed_has_none():
    assert demo._spread([1.0, 2.0, 6.0])["std"] == pytest.approx(7**0.5)
    assert demo._spread([4]) == {"mean": 4.0, "std": None, "per_seed": [4]}
    assert demo_report.plus_minus(demo._spread([4]), 1) == "4"


# Bad input


def test_folder_of_somebody_elses_is_not_replaced(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert "a new folder or that of an earlier demo" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert cli.main(["demo", "--out", str(tmp_path / "taken")]) == 2
    assert "error: --out must name" in capsys.readouterr().err
    assert cli.main(["demo", "--out", str(tmp_path / "taken/below")]) == 2


def test_no_seeds_are_refused(tmp_path, capsys):
    assert cli.main(["demo", "--seeds", "0", "--out", str(tmp_path / "out")]) == 2
    assert "--seeds must be >= 1; got 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("failure", "exit_code"), [(KeyboardInterrupt, 130), (ValueError("a conversion failed"), 2)])
def test_interrupted_or_failing_demo_leaves_nothing_and_keeps_the_older(tmp_path, monkeypatch, failure, exit_code):
    def fail(dataset, recipe, num_seeds, folder, console):
        (folder / "student.keras").write_text("half of it")
        raise failure

    monkeypatch.setattr(demo, "demonstrate", fail)
    assert cli.main(["demo", "--out", str(tmp_path / "new")]) == exit_code
    assert list(tmp_path.iterdir()) == []
    older = tmp_path / "older"
    older.mkdir()
    (older / "results.json").write_text("{}")
    assert cli.main(["demo", "--out", str(older)]) == exit_code
    assert [path.name for path in tmp_path.rglob("*")] == ["older", "results.json"]


# The whole journey


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the demo leaves behind on the digits, with a tiny recipe."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_recipe, "RECIPES", {"digits": TINY})
        assert cli.main(["demo", "--seeds", "2", "--out", str(out), "--quick"]) == 0
    return out


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_demo_leaves_its_six_files_and_nothing_beside(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"results.json", "report.html", "front.svg", "student.keras", "student.onnx", "student.tflite"}
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


@pytest.mark.slow
def test_results_hold_every_documented_key(results):
    from pathlib import Path

    documented = (Path(__file__).parents[2] / "docs/demo.md").read_text()

    def keys(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield key
                yield from keys(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from keys(inner)

    missing = {key for key in keys(results) if f"`{key}`" not in documented}
    assert missing == set()


@pytest.mark.slow
def test_reported_errors_are_those_of_the_shipped_file(folder, results):
    import onnxruntime

    from keras_distill.data import load

    test = load("digits").test
    seed = results["shipped_seed"]
    reported = results["models"]["student_distilled"]["num_errors"]["per_seed"][seed]
    plain = keras.saving.load_model(folder / "student.keras")
    assert int(np.sum(plain.predict(test.inputs, verbose=0).argmax(-1) != test.labels)) == reported
    session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: test.inputs})[0]
    assert int(np.sum(logits.argmax(-1) != test.labels)) == reported


@pytest.mark.slow
def test_every_model_is_timed_in_every_runtime(results):
    assert {(row["model"], row["runtime"]) for row in results["runtimes"]} == {
        (model, runtime) for model in ("teacher", "student") for runtime in ("Keras", "onnxruntime", "LiteRT")
    }
    for row in results["runtimes"]:
        assert row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
    sizes = {row["key"]: row["bytes"] for row in results["runtimes"]}
    assert sizes["student onnx"] == results["artifacts"]["student.onnx"]["bytes"]


@pytest.mark.slow
def test_parity_was_checked_on_the_whole_test_set(results):
    assert set(results["artifacts"]) == {"teacher.onnx", "teacher.tflite", "student.onnx", "student.tflite"}
    for artifact in results["artifacts"].values():
        assert artifact["parity"]["num_items"] == results["dataset"]["num_test"]
        assert artifact["parity"]["holds"]


@pytest.mark.slow
def test_front_shows_the_accuracies_and_latencies_that_the_json_holds(folder, results):
    svg = (folder / "front.svg").read_text()
    ElementTree.fromstring(svg)
    told = re.findall(r"<title>(.*?): ([\d.]+) ± ([\d.]+) % right, ([\d.]+) µs</title>", svg)
    assert [name for name, *_ in told] == ["teacher", "student on labels", "the same student, distilled"]
    latency = {row["key"]: 1000 * row["p50_ms"] for row in results["runtimes"]}
    for (_, accuracy, deviation, microseconds), (key, who) in zip(
        told,
        [("teacher", "teacher"), ("student_on_labels", "student"), ("student_distilled", "student")],
        strict=True,
    ):
        rates = [100 * (1 - rate) for rate in results["models"][key]["error_rate"]["per_seed"]]
        assert float(accuracy) == pytest.approx(np.mean(rates), abs=0.006)
        assert float(deviation) == pytest.approx(np.std(rates, ddof=1) if len(rates) > 1 else 0.0, abs=0.006)
        assert float(microseconds) == pytest.approx(latency[f"{who} tflite"], abs=0.06)


@pytest.mark.slow
def test_report_shows_the_figures_that_the_json_holds(folder, results):
    html = (folder / "report.html").read_text()
    assert html.count("<svg") == 3
    assert demo_report.model_rows(results)[2][1] in html
    assert "Made with --quick" in html
    assert "http-equiv" not in html
