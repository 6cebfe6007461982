"""Tutorials: `make docs` runs them all; here what runs and shows them, on a notebook of seconds."""

import importlib
import json
import logging
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted(page for page in (ROOT / "docs" / "tutorials").glob("*.md") if page.stem != "index")

SMALL = """# A small tutorial

What it is about.

## A cell

```python
# A line that rises
from pathlib import Path

import matplotlib.pyplot as plt

Path("here.txt").write_text("found")
print("first\\rlast, \\x1b[31mred\\x1b[0m")
plt.plot([1, 2])
plt.show()
```

```bash
cat here.txt
```

```py
never run
```
"""


@pytest.fixture
def modules(monkeypatch):
    """The two modules beside the pages, by name."""
    for package in ("jupytext", "nbclient", "ipykernel", "mkdocs"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install keras-distill[docs]")
    monkeypatch.syspath_prepend(ROOT / "docs")
    return {name: importlib.import_module(name) for name in ("run_tutorial", "site_hooks")}


def test_a_tutorial_is_run_and_its_page_shows_what_it_printed_and_drew(modules, tmp_path, monkeypatch):
    source, notebook = tmp_path / "small.md", tmp_path / "out" / "small.ipynb"
    source.write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    # Jupyter tells of its own deprecations and of debuggers that it cannot have.
    seconds = modules["run_tutorial"].run(source, notebook)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small.ipynb"]
    assert not (tmp_path / "here.txt").exists(), "it runs in a folder of its own"
    page = modules["site_hooks"].tutorial_page(json.loads(notebook.read_text()), "small.ipynb")
    assert page.startswith(
        f"# A small tutorial\n\n*This page is [a notebook](small.ipynb) that ran in {round(seconds)} seconds"
    )
    assert "What it is about." in page
    assert re.findall(r"^``` \{ \.text [^\n]*\n(.*?)\n```$", page, re.DOTALL | re.MULTILINE) == ["last, red", "found"]
    assert "```bash\ncat here.txt\n```" in page
    (picture,) = re.findall(r'<img class="output" alt="([^"]+)" src="data:image/png;base64,iVBOR[\w+/=]+">', page)
    assert picture == "A line that rises"
    assert "```py\nnever run\n```" in page
    # In the order of the source.
    places = [
        page.index(text) for text in ("plt.show", "last, red", "data:image", "cat here.txt", "found\n```", "never")
    ]
    assert places == sorted(places)


def test_a_cell_that_fails_ends_the_run_and_leaves_no_notebook(modules, tmp_path):
    from nbclient.exceptions import CellExecutionError

    source, notebook = tmp_path / "broken.md", tmp_path / "broken.ipynb"
    source.write_text("# Broken\n\n```python\nassert 1 == 2\n```\n")
    with pytest.raises(CellExecutionError, match="AssertionError"):
        modules["run_tutorial"].run(source, notebook)
    assert not notebook.exists()


def test_logs_of_tensorflow_are_not_shown(modules):
    printed = "INFO:tensorflow:Assets written to: /tmp/x\n3 errors\nWARNING:tensorflow:5 out of 9"
    assert modules["site_hooks"]._as_shown(printed).strip() == "3 errors"


def test_a_tutorial_that_was_not_run_is_warned_of_and_warnings_fail_the_build(modules, tmp_path, monkeypatch, caplog):
    from types import SimpleNamespace

    monkeypatch.setattr(modules["site_hooks"], "NOTEBOOKS", tmp_path)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="tutorials/budget.md"))
    monkeypatch.setattr(logging.getLogger("mkdocs"), "propagate", True)
    assert modules["site_hooks"].on_page_markdown("# Title", page) == "# Title"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    (build,) = re.findall(r"mkdocs build.*", (ROOT / "Makefile").read_text())
    # With --quiet the counter of warnings, on which --strict relies, sees none.
    assert "--strict" in build
    assert "--quiet" not in build


def test_every_tutorial_is_in_the_navigation_and_in_its_index():
    assert len(TUTORIALS) == 5
    navigation, index = (ROOT / "mkdocs.yml").read_text(), (ROOT / "docs/tutorials/index.md").read_text()
    for page in TUTORIALS:
        assert f"tutorials/{page.name}\n" in navigation
        assert f"({page.name})" in index


def test_commands_of_the_tutorials_are_commands_of_the_parser():
    from keras_distill.cli import build_parser

    lines = [line for page in TUTORIALS for line in page.read_text().splitlines() if line.startswith("keras-distill ")]
    assert len(lines) >= 4
    for line in lines:
        build_parser().parse_args(line.split()[1:])
