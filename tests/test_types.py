"""What a user's editor sees: mypy and Pyright know every public name, and what it takes."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import keras_distill

ROOT = Path(__file__).parents[1]
CLIENT = ROOT / "tests" / "client.py"
LAZY_PACKAGES = ("keras_distill", "keras_distill.scale", "keras_distill.specialists", "keras_distill.targets")


def marked(mark: str) -> dict[int, str]:
    """The client's lines with a mark, by number from 1: what stands behind it."""
    lines = enumerate(CLIENT.read_text().splitlines(), start=1)
    return {number: line.partition(mark)[2].strip() for number, line in lines if mark in line}


def check_reports(errors: dict[int, str], revealed: dict[int, str]) -> None:
    assert {number: errors[number] for number in errors.keys() - marked("# E:").keys()} == {}
    assert marked("# E:").keys() - errors.keys() == set()
    for number, name in marked("# R:").items():
        assert name in revealed[number]


def test_mypy_sees_what_a_user_may_write(tmp_path):
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(CLIENT)]
    done = subprocess.run([*command, "--cache-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    errors, revealed = {}, {}
    for line in done.stdout.splitlines():
        found = re.match(r".*client\.py:(\d+): (error|note): (.*)", line)
        if found:
            where = revealed if found[3].startswith("Revealed") else errors if found[2] == "error" else {}
            where[int(found[1])] = found[3]
    check_reports(errors, revealed)


def test_pyright_sees_what_a_user_may_write():
    pyright = shutil.which("basedpyright", path=str(Path(sys.executable).parent))
    if pyright is None:
        pytest.skip("basedpyright is not installed")
    command = [pyright, "--pythonpath", sys.executable, "--outputjson", str(CLIENT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors, revealed = {}, {}
    for report in json.loads(done.stdout)["generalDiagnostics"]:
        line = report["range"]["start"]["line"] + 1
        if report["severity"] == "error":
            errors[line] = report["message"]
        elif report["message"].startswith("Type of"):
            revealed[line] = report["message"]
    check_reports(errors, revealed)


@pytest.mark.parametrize("name", LAZY_PACKAGES)
def test_what_loads_on_first_use_is_what_type_checkers_see(name):
    package = importlib.import_module(name)
    tree = ast.parse(Path(package.__file__).read_text())
    [branch] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in branch.body for alias in node.names}
    assert seen.keys() <= set(package.__all__)
    for public, module in seen.items():
        found = getattr(package, public)
        if module == "keras_distill":
            assert found is importlib.import_module(f"{module}.{public}")
        else:
            assert found is getattr(importlib.import_module(module), public)


def test_a_name_that_is_not_there_is_an_attribute_error_by_name():
    with pytest.raises(AttributeError, match="module 'keras_distill' has no attribute 'distil'"):
        _ = keras_distill.distil
