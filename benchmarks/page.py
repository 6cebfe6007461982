"""A benchmark's own part of a page in `docs/`: between two marks, written by the command that measured it."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def write_part(page: str, name: str, text: str) -> None:
    """Replaces what stands between `<!-- NAME: … -->` and `<!-- end of NAME -->` in `docs/PAGE`.

    Raises:
        ValueError: the page lacks the two marks.
    """
    path = DOCS / page
    pattern = re.compile(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    written, count = pattern.subn(lambda marks: marks[1] + text.rstrip("\n") + "\n" + marks[2], path.read_text())
    if count != 1:
        raise ValueError(f"{path} must hold the marks of {name} once; got {count}.")
    path.write_text(written)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
