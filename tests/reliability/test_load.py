"""A long training and a large store hold no more memory at their end than near their beginning.

`make reliability` runs the same with a thousand epochs and ten million items.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def measure(*options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, ROOT / "tests/reliability/load.py", *options]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_two_hundred_epochs_trace_once_and_grow_by_no_more_than_a_few_megabytes():
    found = measure("soak", "--epochs", "200")
    assert found["traces_after_the_first_epoch"] == 0
    assert found["bytes_grown_over_the_last_four_fifths"] < 16 << 20


@pytest.mark.slow
def test_two_million_items_are_labelled_and_read_in_a_bounded_memory():
    """Inputs and rows are 24 MB; a copy of either would be seen. A shuffled epoch keeps some blocks in flight."""
    found = measure("store", "--items", "2000000")
    assert found["labelling"]["megabytes_grown"] < 20
    assert found["reading_in_order"]["megabytes_grown"] < 20
    assert found["a_shuffled_epoch"]["megabytes_grown"] < 60
