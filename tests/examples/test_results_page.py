"""The tables are made of the committed JSON, and a stale one is found."""

import json
import shutil

import pytest

from examples import results

RESULTS = {
    "experiment": "tea",
    "command": "python -m examples.tea",
    "machine": {"processor": "a kettle", "num_cores": 2},
    "minutes": 3.04,
    "cpu_minutes": 5.5,
    "quick": False,
    "seeds": [0, 1, 2],
    "rows": [
        {
            "row": "cups",
            "paper": "67",
            "ours": {"mean": 60.0, "std": 2.0, "per_seed": [58, 60, 62]},
            "unit": "errors",
            "goal": "≤ 67",
            "goal_met": True,
            "note": "with milk",
        },
        {
            "row": "pots",
            "paper": None,
            "ours": {"mean": 3.25, "std": None, "per_seed": [3.25]},
            "unit": "%",
            "goal": "≥ 4",
            "goal_met": False,
            "note": None,
        },
    ],
}


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A copy of the README and its results, to write in."""
    for name in ("README.md", "docs/results"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        source = results.ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "docs" / "results")
    monkeypatch.setattr(results, "README", tmp_path / "README.md")
    monkeypatch.setattr(results, "PAGE", tmp_path / "docs" / "results.md")
    monkeypatch.setattr(results, "COMMANDS", {"tea": "python -m examples.tea", "cake": "python -m examples.cake"})
    return tmp_path


def call(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["results", *map(str, words)])
    return results.main()


def test_section_holds_paper_ours_goal_and_notes():
    assert results.section(RESULTS).splitlines() == [
        "",
        "## tea",
        "",
        "`python -m examples.tea`",
        "",
        "3.0 minutes (5.5 of one core), 3 seeds, a kettle, 2 cores.",
        "",
        "| | paper | ours | goal |",
        "|---|---|---|---|",
        "| cups [1] | 67 | 60.0 ± 2.0 errors | ≤ 67: met |",
        "| pots | – | 3.25 % | ≥ 4: **not met** |",
        "",
        "1. with milk",
    ]


def test_new_results_reach_the_page_and_a_stale_page_is_found(house, monkeypatch, capsys):
    run = house / "run"
    run.mkdir()
    (run / "results.json").write_text(json.dumps(RESULTS))
    assert call(monkeypatch, run) == 0
    assert call(monkeypatch, "--check") == 0
    page = house / "docs" / "results.md"
    assert "| cups [1] | 67 | 60.0 ± 2.0 errors | ≤ 67: met |" in page.read_text()
    assert page.read_text().endswith("## Not run to the end yet\n\n- cake: `python -m examples.cake`\n")
    page.write_text(page.read_text().replace("60.0", "59.0"))
    assert call(monkeypatch, "--check") == 1
    assert "docs/results.md does not say what docs/results/ says" in capsys.readouterr().err


def test_results_of_an_unknown_experiment_are_refused(house, monkeypatch, capsys):
    (house / "results.json").write_text(json.dumps(RESULTS | {"experiment": "soup"}))
    assert call(monkeypatch, house) == 2
    assert "experiment must be one of tea, cake; got soup" in capsys.readouterr().err


def test_quick_or_absent_results_are_refused_with_the_remedy(house, monkeypatch, capsys):
    run = house / "run"
    run.mkdir()
    assert call(monkeypatch, run) == 2
    assert "must hold results.json" in capsys.readouterr().err
    (run / "results.json").write_text(json.dumps(RESULTS | {"quick": True}))
    assert call(monkeypatch, run) == 2
    assert "without --quick" in capsys.readouterr().err
    assert not (house / "docs" / "results" / "tea.json").exists()
