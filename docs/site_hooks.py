"""What `make docs` adds to the pages: the API reference, a page a room, and what the tutorials printed and drew."""

import ast
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# `mkdocs build --strict` fails where this has warned.
_LOG = logging.getLogger("mkdocs.hooks")

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_distill"
NOTEBOOKS = ROOT / "build" / "tutorials"
# Rooms whose faces name what is public, in the order of a user's way; then modules that are imported by their own name.
ROOMS = (
    "", "losses", "schedules", "teachers", "targets", "specialists", "pruning", "search", "quantize_aware", "deploy",
    "data", "models", "scale",
)  # fmt: skip
MODULES = ("report.verdict", "report.metrics", "data.networks", "data.text")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Enters the API's pages into the navigation."""
    entries = [{_title(room): f"api/{room or 'index'}.md"} for room in (*ROOMS, *MODULES)]
    for part in config.nav or []:
        if "API" in part:
            part["API"] = entries
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Writes the API's pages: one of each room, with all of its public names."""
    for room in ROOMS:
        files.append(_page(config, room, public_names(room)))
    for module in MODULES:
        files.append(_page(config, module, []))
    for file in list(files):
        if is_tutorial(file.src_uri) and _notebook(file.src_uri).is_file():
            content = _notebook(file.src_uri).read_text(encoding="utf-8")
            files.append(File.generated(config, file.src_uri.removesuffix(".md") + ".ipynb", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Shows a tutorial as it ran, and names files of the repository in place of links that lead out of the site."""
    if is_tutorial(page.file.src_uri):
        notebook = _notebook(page.file.src_uri)
        if notebook.is_file():
            markdown = tutorial_page(json.loads(notebook.read_text(encoding="utf-8")), notebook.name)
        else:
            _LOG.warning("%s has not been run: make docs does it", page.file.src_uri)
    return re.sub(r"\[([^\]]+)\]\((\.\./[^)]+|results/?)\)", r"\1", markdown)


def is_tutorial(src_uri: str) -> bool:
    """Whether a page of the site is a tutorial, which is run."""
    return src_uri.startswith("tutorials/") and src_uri.endswith(".md") and src_uri != "tutorials/index.md"


def tutorial_page(notebook: Mapping[str, Any], name: str) -> str:
    """The Markdown of a notebook that was run: its cells, and under each what it printed and drew.

    What libraries log stays in the notebook: the standard error stream, and what TensorFlow writes beside it.
    """
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = _text(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            continue
        language = "bash" if source.startswith("%%bash\n") else "python"
        parts.append(f"```{language}\n{source.removeprefix('%%bash' + chr(10))}\n```")
        printed = "".join(_text(each["text"]) for each in cell["outputs"] if each.get("name") == "stdout").rstrip()
        if printed:
            parts.append(f"``` {{ .text .output .no-copy }}\n{_as_shown(printed)}\n```")
        for output in cell["outputs"]:
            image = _text(output.get("data", {}).get("image/png", "")).replace("\n", "")
            if image:
                comment = source.splitlines()[0]
                described = comment.removeprefix("# ") if comment.startswith("# ") else "what the cell above drew"
                parts.append(f'<img class="output" alt="{described}" src="data:image/png;base64,{image}">')
    seconds = notebook["metadata"]["seconds"]
    note = f"*This page is [a notebook]({name}) that ran in {seconds} seconds when the site was built.*"
    title, text = parts[0].split("\n", 1)
    return "\n\n".join([title, note, text.strip(), *parts[1:]]) + "\n"


def _notebook(src_uri: str) -> Path:
    return NOTEBOOKS / Path(src_uri).with_suffix(".ipynb").name


def _text(lines: str | list[str]) -> str:
    """Notebook files hold a text as one string or as its lines."""
    return lines if isinstance(lines, str) else "".join(lines)


def _as_shown(printed: str) -> str:
    """Printed text as a terminal leaves it: without escape sequences, and each line as it was last overwritten."""
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed)
    printed = re.sub(r"^(INFO|WARNING):tensorflow:.*\n?", "", printed, flags=re.MULTILINE)
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in printed.split("\n"))


def public_names(room: str) -> list[str]:
    """The names in a room's `__all__`, without rooms, which have pages of their own."""
    folder = PACKAGE / room if room else PACKAGE
    path = folder / "__init__.py" if folder.is_dir() else PACKAGE / f"{room}.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return [name for name in names if name not in ROOMS and not (PACKAGE / name).is_dir()]
    return []


def _title(room: str) -> str:
    return f"keras_distill.{room}" if room else "keras_distill"


def _page(config: MkDocsConfig, room: str, names: list[str]) -> File:
    whole = f"::: {_title(room)}\n    options:\n      show_root_heading: false"
    parts = [f"# {_title(room)}", *([f"::: {_title(room)}.{name}" for name in names] or [whole])]
    return File.generated(config, f"api/{room or 'index'}.md", content="\n\n".join(parts) + "\n")
