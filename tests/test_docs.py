"""The pages for newcomers are run, and the site has every public name."""

import importlib
import re
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "explanation").glob("*.md"))

# A conversion, or a worker, starts TensorFlow once more.
CONVERTING = ("several_devices", "int8_is_wrong", "fit_a_budget", "pytorch_teacher")


def python_of(page):
    """The code of a page, in its order; code that only shows the way is marked `py`."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.stem in CONVERTING else ())
        for page in PAGES
        if python_of(page)
    ],
    ids=lambda page: page.stem,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_code_runs_as_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names = {"__name__": "page"}
    for block in python_of(page):
        exec(compile(block, str(page), "exec"), names)


def test_commands_are_commands_of_the_parser():
    from keras_distill.cli import build_parser

    lines = [line for page in PAGES for line in page.read_text().splitlines() if line.startswith("keras-distill ")]
    assert len(lines) >= 4
    for line in lines:
        build_parser().parse_args(line.split("#")[0].split()[1:])


def test_every_public_name_is_on_the_site(monkeypatch):
    pytest.importorskip("mkdocs", reason="MkDocs is not installed: pip install keras-distill[docs]")
    monkeypatch.syspath_prepend(ROOT / "docs")
    hooks = importlib.import_module("site_hooks")
    monkeypatch.delitem(sys.modules, "site_hooks")
    package = importlib.import_module("keras_distill")
    listed = {room: set(hooks.public_names(room)) for room in hooks.ROOMS}
    for room in set(package.__all__) - listed[""]:
        if room == "report":
            # Its face has no names: its modules are imported one by one.
            assert {"report.verdict", "report.metrics"} <= set(hooks.MODULES)
        elif room == "distillation":
            assert set(package.distillation.__all__) <= listed[""], "its names are the package's own"
        elif not hasattr(getattr(package, room), "__all__"):
            assert room in hooks.ROOMS, "a module without a list is there with all that it defines"
        else:
            assert listed[room] == set(getattr(package, room).__all__) - set(hooks.ROOMS), room
