"""`examples/specialists.py --quick`: the whole experiment on small digits, and that a second run makes nothing anew."""

import json

import numpy as np
import pytest

from examples import specialists
from keras_distill.data import load
from keras_distill.models.saving import load_model


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("specialists")
    assert specialists.main(["--quick", "--seeds", "0", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_quick_run_reports_what_its_saved_models_do(out):
    results = json.loads((out / "results.json").read_text())
    assert {"experiment", "command", "machine", "minutes", "cpu_minutes", "quick", "seeds", "rows"} <= set(results)
    rows = {row["row"]: row for row in results["rows"]}
    test = load("digits").test
    for label, file in (
        ("generalist", out / "generalist.keras"),
        ("generalist and specialists, merged", out / "seed-0" / "ensemble.keras"),
        ("one net, distilled from the merged", out / "seed-0" / "distilled-from-merged.keras"),
    ):
        logits = load_model(file, compile=False).predict(test.inputs, verbose=0)
        right = 100 * np.mean(logits.argmax(-1) == test.labels)
        assert rows[label]["ours"]["per_seed"] == [pytest.approx(right)]
    merged, control = (
        rows[label]["ours"]["mean"]
        for label in (
            "generalist and specialists, merged",
            "control: trained on for as many steps as all specialists",
        )
    )
    row = rows["merged over control, relative"]
    assert row["ours"]["mean"] == pytest.approx(100 * (merged / control - 1))
    assert row["goal_met"] is (row["ours"]["mean"] >= 2)
    # With the same number of routes the merge taken apart is the merge.
    assert rows["merged, specialists of the best 2 asked"]["ours"]["mean"] == pytest.approx(merged, abs=0.3)
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_second_run_finds_everything_there(out):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.keras")}
    assert specialists.main(["--quick", "--seeds", "0", "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.keras")} == before
