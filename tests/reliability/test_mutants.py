"""The engine of `mutants.py`: which faults it finds room for, and that a fault put in is the fault that runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import mutants
import pytest

ROOT = Path(__file__).parents[2]
SOURCE = '''"""Arithmetic."""

LIMIT = 3


def clipped(value, offset=1):
    """The value and its offset, at most the limit."""
    if value > LIMIT:
        raise ValueError("too much" + "!")
    return value - offset


class Half:
    """Of a number."""

    def __call__(self, number):
        return number * 0.5
'''


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """A module of the package that is there for one test: its file, and the module."""
    (tmp_path / "sample.py").write_text(SOURCE)
    module = ModuleType("keras_distill.sample")
    module.__file__ = str(tmp_path / "sample.py")
    exec(compile(SOURCE, module.__file__, "exec"), vars(module))
    monkeypatch.setattr(mutants, "PACKAGE", tmp_path)
    monkeypatch.setitem(sys.modules, "keras_distill.sample", module)
    return module


def fault(words, line):
    """The one mutant of the sample of that name, as `put_in` takes it."""
    [(_, _, _, scope, statement)] = [found for found in mutants.mutants_of("sample.py") if found[:2] == (line, words)]
    return "sample.py", scope, statement


def test_faults_are_found_where_they_change_what_is_promised(sample):
    found = {(line, words) for line, words, *_ in mutants.mutants_of("sample.py")}
    assert found == {
        (3, "3 → 4"),
        (6, "1 → 2"),
        (8, "condition negated"),
        (8, "Gt → GtE"),
        (9, "Add → Sub"),
        (9, """'raise ValueError('too much' + '!')' left out"""),
        (10, "Sub → Add"),
        (17, "Mult → Div"),
        (17, "0.5 → 1.5"),
    }


@pytest.mark.parametrize(
    ("words", "line", "expected"),
    [
        ("Sub → Add", 10, 3),
        ("1 → 2", 6, 0),  # the default, which the function has already
        ("3 → 4", 3, 1),
    ],
)
def test_a_fault_put_in_is_what_runs(sample, words, line, expected):
    clipped = sample.clipped
    assert clipped(2) == 1
    mutants.put_in(*fault(words, line))
    assert clipped(2) == expected, "also for those who imported the function before"


def test_faults_in_constants_and_methods_reach_what_reads_them(sample):
    mutants.put_in(*fault("3 → 4", 3))
    assert sample.clipped(4) == 3
    half = sample.Half()
    mutants.put_in(*fault("Mult → Div", 17))
    assert half(3) == 6.0


def test_every_room_has_its_files_and_its_tests():
    for room, (_, tests) in mutants.ROOMS.items():
        files = mutants.files_of(room)
        assert files
        assert all((ROOT / "keras_distill" / file).is_file() for file in files), files
        assert all((ROOT / test).exists() for test in tests), tests
        assert sum(len(mutants.mutants_of(file)) for file in files) > 50


@pytest.mark.slow
def test_of_faults_in_a_room_with_good_tests_most_are_noticed(tmp_path):
    """The whole way: tests collected, surveyed, and met by mutants in forks."""
    out = tmp_path / "found.json"
    # A room of one small file, so that its survey takes seconds.
    code = (
        "import os, sys, mutants; "
        "mutants.SAID, mutants.ERRORS = os.dup(1), os.dup(2); "
        "mutants.ROOMS['reduction'] = (['losses/reduction.py'], ['tests/losses/test_reduction.py']); "
        "raise SystemExit(mutants.main())"
    )
    command = [sys.executable, "-c", code, "reduction", "--sample", "12", "--seed", "2", "--out", out]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/reliability")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(out.read_text())["reduction"]
    assert found["tried"] == 12
    assert found["killed"] + found["survived"] + found["ran out of time"] == 12
    assert len(found["survivors"]) == found["survived"]
    assert found["killed"] >= 6
