"""The doors of the house open one way: the table in docs/design.md, checked file by file."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_distill"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
FOR_ALL = {"_checks", "_files", "_inputs", "_kit", "_lazy", "_native_log", "_types"}


def read_table() -> dict[str, tuple[set[str], set[str]]]:
    """Row name → (may import anywhere, may import inside a function)."""
    rows = {}
    for row in re.findall(r"^\| `([^`]+)` \|[^|]*\|([^|]*)\|$", (ROOT / "docs/design.md").read_text(), re.MULTILINE):
        names = {name.strip() for name in row[1].split(",") if name.strip()}
        lazily = {name.strip("()") for name in names if name.startswith("(")}
        rows[row[0]] = ({name for name in names if not name.startswith("(")}, lazily)
    return rows


def row_of(file: str, rows: dict) -> str | None:
    """The most exact row for a file: its own, else that of the folder it is in."""
    folders = [f"{parent.as_posix()}/" for parent in Path(file).parents if parent.as_posix() != "."]
    return next((row for row in [file, *folders] if row in rows), None)


def imports(file: str) -> list[tuple[str, bool]]:
    """(room or package, inside a function?) of each import of a file."""
    tree = ast.parse((PACKAGE / file).read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "keras_distill" else [module]
        else:
            continue
        for name in names:
            parts = name.split(".")
            room = parts[1] if parts[0] == "keras_distill" and len(parts) > 1 else parts[0]
            found.append((room, id(node) in inside or id(node) in typing_only))
    return found


def foreign_imports(file: str) -> list[tuple[str, bool]]:
    """The imports that a file needs leave for: neither the standard library nor its own folder."""
    own = Path(file).parts[0].removesuffix(".py")
    free = sys.stdlib_module_names | FOR_ALL | {own, "keras_distill"}
    return [(name, is_lazy) for name, is_lazy in imports(file) if name not in free]


@pytest.mark.parametrize("file", FILES)
def test_file_imports_only_what_its_row_allows(file):
    rows = read_table()
    row = row_of(file, rows)
    assert row, f"{file} has no row in docs/design.md"
    always, lazily = rows[row]
    for name, is_lazy in foreign_imports(file):
        allowed_here = name in always or (is_lazy and lazily & {name, "everything"})
        assert allowed_here, f"{file} imports {name}; its row allows {always}, lazily {lazily}"


def test_every_leave_is_used():
    rows = read_table()
    used: dict[str, set[tuple[str, bool]]] = {row: set() for row in rows}
    for file in FILES:
        used[row_of(file, rows)].update(foreign_imports(file))
    idle = [
        (row, name)
        for row, (always, lazily) in rows.items()
        for name in [*always, *(lazily - {"everything"})]
        if (name, name in lazily) not in used[row]
    ]
    assert idle == []


def test_the_rooms_are_in_no_circle():
    """Of imports that run when a file is loaded: lazy ones may point back, as a factory does to what it makes."""
    files = {"keras_distill." + file.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for file in FILES}
    leads_to: dict[str, set[str]] = {}
    for file in FILES:
        module = "keras_distill." + file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        leads_to[module] = {
            f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in files else node.module
            for node in ast.parse((PACKAGE / file).read_text()).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if (node.module or "").startswith("keras_distill")
        } - {"keras_distill", module}
    while free := [module for module, targets in leads_to.items() if not targets & set(leads_to)]:
        for module in free:
            del leads_to[module]
    assert not leads_to


def test_nobody_imports_the_command_line():
    outside = [file for file in FILES if not file.startswith("cli/") and file != "__main__.py"]
    assert [file for file in outside if "cli" in {name for name, _ in imports(file)}] == []


def test_every_row_stands_for_a_file():
    missing = [row for row in read_table() if not (PACKAGE / row).exists()]
    assert missing == []
