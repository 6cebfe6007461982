"""The census example, in little: every file is there, and the bundle reads rows of the file."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.needs_data, pytest.mark.slow, pytest.mark.tensorflow]


def test_a_quick_run_leaves_a_table_and_a_bundle_that_reads_raw_rows(tmp_path):
    from examples import adult

    assert adult.main(["--quick", "--seeds", "0", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["experiment"], results["quick"], results["seeds"]) == ("adult", True, [0])
    told = {row["row"]: row["ours"]["mean"] for row in results["rows"]}
    assert told["behind its teacher"] == pytest.approx(
        told["teacher: boosted trees"] - told["the same student, distilled"], abs=1e-9
    )
    assert told["litert: size"] == (tmp_path / "bundle" / "student.tflite").stat().st_size
    columns = json.loads((tmp_path / "bundle" / "preparation.json").read_text())["columns"]
    assert {column["name"] for column in columns} & {"fnlwgt", "education", "income", "split"} == set()
    row = {column["name"]: "40" if column["kind"] == "number" else column["values"][0] for column in columns}
    (tmp_path / "row.csv").write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    done = subprocess.run(
        [sys.executable, tmp_path / "bundle" / "classify_litert.py", tmp_path / "row.csv"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[0] in ("<=50K", ">50K")
