"""Benchmarks that train for hours and may be cut off: what each part found is kept, and results are written as one."""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.page import DOCS
from benchmarks.rounds import machine
from keras_distill._files import whole_file


def parser_of(description: str | None, tasks: Iterable[str]) -> argparse.ArgumentParser:
    """What such benchmarks have in common: which tasks, whether pages are written, where parts are kept."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(tasks)} (default: all)")
    parser.add_argument("--write", action="store_true", help="write the page and docs/results")
    parser.add_argument("--kept", type=Path, metavar="FOLDER", help="what is there is not made again")
    return parser


def folder_of(kept: Path | None) -> Path:
    """The folder of what is kept, a new one where none was named."""
    kept = kept or Path(tempfile.mkdtemp(prefix="keras-distill-benchmark-"))
    kept.mkdir(parents=True, exist_ok=True)
    return kept


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What a file holds, in JSON; where there is none, what is made, kept there whole or not at all."""
    if not path.exists():
        found = make()
        with whole_file(path) as aside:
            aside.write_text(json.dumps(found, indent=1))
    return json.loads(path.read_text())


def write_results(name: str, rows: list[Any], **settings: Any) -> None:
    """Writes docs/results/NAME.json: the command, the machine, the settings and the rows."""
    command = f"python -m benchmarks.{name} --write"
    content = {"command": command, "machine": machine(), **settings, "rows": rows}
    with whole_file(DOCS / "results" / f"{name}.json") as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n")
