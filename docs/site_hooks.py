"""What `make docs` adds to the pages: the API reference, a page a room, and links to files outside of `docs/`."""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_distill"
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
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Names files of the repository that are no pages, in place of links that lead out of the site."""
    return re.sub(r"\[([^\]]+)\]\((\.\./[^)]+|results/?)\)", r"\1", markdown)


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
