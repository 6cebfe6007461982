"""Runs a tutorial and keeps what it printed and drew.

    python docs/run_tutorial.py docs/tutorials/budget.md build/tutorials/budget.ipynb

The source is Markdown: `python` blocks are cells, `bash` blocks are commands, `py` and `text` blocks are only shown.
A cell that fails ends the run with its traceback and leaves no notebook.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

# A cell that takes longer hangs.
_SECONDS_A_CELL = 1800


def run(source: Path, notebook: Path) -> float:
    """Executes a tutorial in an empty folder and writes the notebook with its outputs.

    Args:
        source: a Markdown file.
        notebook: the `.ipynb` file to write; its metadata hold the seconds that the run took.

    Returns:
        Seconds of the run, the kernel's start included.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    cells = jupytext.read(source, fmt="md")
    cells.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    # Commands find the `keras-distill` that is installed beside this Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # IPython asks commands for colours, for which rich would draw its spinner a thousand times.
    os.environ["TTY_COMPATIBLE"] = "0"
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="keras-distill-tutorial-") as folder:
        NotebookClient(cells, timeout=_SECONDS_A_CELL, resources={"metadata": {"path": folder}}).execute()
    seconds = time.monotonic() - start
    cells.metadata["seconds"] = round(seconds)
    notebook.parent.mkdir(parents=True, exist_ok=True)
    aside = notebook.with_suffix(".part")
    nbformat.write(cells, aside)
    aside.replace(notebook)
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("notebook", type=Path)
    arguments = parser.parse_args()
    print(f"{arguments.source}: {run(arguments.source, arguments.notebook):.0f} s")
