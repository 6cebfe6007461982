"""Every experiment runs from nothing in a quick run, leaves what it promises, and goes on where it stopped."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from examples import jobs, record, results

ROOT = Path(__file__).parents[2]
# Module → (folder of results.json, figures, below --out).
EXPERIMENTS = {
    "mnist_paper": (".", ["temperatures.svg", "bias-of-3.svg", "bias-of-7-and-8.svg"]),
    "speech": (".", ["members.svg"]),
    "soft_targets_regularise": ("three-per-cent", ["three-per-cent/three-per-cent.svg"]),
    "compare_keras": (".", ["errors.svg"]),
}


def run(name, out, monkeypatch):
    """Calls an experiment's `main` as the command line does, and reads what it left."""
    experiment = importlib.import_module(f"examples.{name}")
    command = [name, "--quick", "--seeds", "0", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    assert experiment.main() == 0
    return json.loads((out / EXPERIMENTS[name][0] / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.needs_data
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick_run_leaves_figures_and_goes_on_where_it_stopped(name, tmp_path, monkeypatch, capsys):
    results = run(name, tmp_path, monkeypatch)
    assert results["quick"] is True
    assert results["seeds"] == [0]
    printed = capsys.readouterr().out
    for line in results["rows"]:
        assert line["row"] in printed
        values = line["ours"]["per_seed"]
        assert line["ours"]["mean"] == pytest.approx(sum(values) / len(values))
    assert all((tmp_path / figure).read_text().startswith("<svg") for figure in EXPERIMENTS[name][1])

    # Whatever is there is not done again; what is not is, and comes out the same.
    names = list(results["jobs"])
    last = tmp_path / f"{names[-1]}.json"
    found = json.loads(last.read_text())["figures"]
    last.unlink()
    done = []
    run_one = jobs._run
    monkeypatch.setattr(jobs, "_run", lambda job, folder: (done.append(job.name), run_one(job, folder)))
    again = run(name, tmp_path, monkeypatch)
    assert done == names[-1:]
    assert json.loads(last.read_text())["figures"] == found
    assert again["rows"] == results["rows"]


@pytest.mark.slow
@pytest.mark.needs_data
def test_keras_default_loss_is_the_clipped_divergence_of_raw_logits_and_with_an_instance_is_ours(tmp_path):
    from examples import compare_keras

    compare_keras.train_teacher(tmp_path, compare_keras.QUICK)
    found = compare_keras.take_apart(tmp_path, compare_keras.QUICK)
    assert found["keras-default"]["value"] == pytest.approx(found["by_hand"], rel=1e-4)
    assert found["keras-kl"]["value"] == pytest.approx(found["ours-same"]["value"], rel=1e-3)
    # Logits below 0 or above T are clipped to constants: about half of an untrained student's.
    assert 0.3 < found["keras-default"]["share_of_logits_without_gradient"] < 0.9
    assert found["ours-same"]["share_of_logits_without_gradient"] == 0.0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_page_names_the_command_that_the_example_opens_with(name):
    experiment = importlib.import_module(f"examples.{name}")
    assert experiment.COMMAND in experiment.__doc__
    assert results.COMMANDS[name.replace("_", "-")] == experiment.COMMAND


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_committed_results_are_of_a_whole_run_of_the_command(name):
    experiment = importlib.import_module(f"examples.{name}")
    file = ROOT / "docs" / "results" / f"{name.replace('_', '-')}.json"
    if not file.is_file():
        pytest.skip(f"{file.name} is not committed: nobody has run {experiment.COMMAND} to its end yet")
    results = json.loads(file.read_text())
    assert results["quick"] is False
    assert results["command"] == experiment.COMMAND
    assert experiment.COMMAND in experiment.__doc__
    assert results["seeds"] == [0, 1, 2]


def _count(folder, number):
    with (folder / "ran.txt").open("a") as stream:
        stream.write(f"{number}\n")
    if number == 2 and not (folder / "repaired").exists():
        raise RuntimeError("killed")
    return {"square": number * number}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_jobs_that_are_done_stay_done_when_a_later_one_fails(num_workers, tmp_path):
    work = [jobs.Job(f"job-{number}", _count, {"number": number}) for number in range(3)]
    with pytest.raises(RuntimeError, match="killed"):
        jobs.run_jobs(work, tmp_path, num_workers)
    (tmp_path / "repaired").touch()
    found = jobs.run_jobs(work, tmp_path, num_workers)
    assert [found[f"job-{number}"]["figures"] for number in range(3)] == [{"square": n * n} for n in range(3)]
    assert sorted((tmp_path / "ran.txt").read_text().split()) == ["0", "1", "2", "2"]


def test_row_says_whether_its_goal_is_met():
    line = record.row("errors", [60, 66, 90], "errors", goal="median ≤ 67", reaches=lambda ours: ours["median"] <= 67)
    assert line["goal_met"] is True
    assert line["ours"] == {"mean": 72, "std": pytest.approx(15.874508), "median": 66, "per_seed": [60, 66, 90]}
    assert record.text_of(line) == "72.0 ± 15.9 errors, median 66"
    assert record.row("errors", [60], "errors")["goal_met"] is None
