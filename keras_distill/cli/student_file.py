"""`OUT.keras` and the `OUT.json` beside it: written together, and never over a file that no such pair is.

`OUT.json` says what was done, and names the student's file by its hash. By that a later run knows what it may replace.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_distill._checks import error_message
from keras_distill._files import whole_files

if TYPE_CHECKING:
    from keras_distill.report.verdict import Verdict

VERSION = 1


@dataclass(frozen=True)
class StudentFile:
    """Where a student and its record will be, and where to write them meanwhile.

    Attributes:
        path: `OUT.keras`.
        record: `OUT.json`.
        model_aside: the path to save the student to.
        record_aside: the path of what will be `OUT.json`.
        replaced_sha256: the hash of the older student that this one will replace, if there is one.
        command: what writes it, `"distill"` or `"prune"`.
    """

    path: Path
    record: Path
    model_aside: Path
    record_aside: Path
    replaced_sha256: str | None
    command: str = "distill"

    def write_record(self, contents: Mapping[str, Any]) -> None:
        """Writes what becomes `OUT.json`; after the student was saved."""
        model = {
            "file": self.path.name,
            "sha256": _sha256(self.model_aside),
            # Should a kill come between the two renames, the older student is still known as one of ours.
            "replaces_sha256": self.replaced_sha256,
        }
        record = {"format": _format(self.command), "version": VERSION, "model": model, **contents}
        self.record_aside.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


@contextmanager
def student_file(out: str | os.PathLike, *, overwrite: bool = False, command: str = "distill") -> Iterator[StudentFile]:
    """Yields where to write; when the block ends well, `OUT.json` and `OUT.keras` are there, both or neither.

    Args:
        out: `OUT.keras`.
        overwrite: whether files that no such pair are may be replaced.
        command: what writes them; the pairs of other commands are not replaced.

    Raises:
        ValueError: there is a file that this function did not write, or `out` is no `.keras` file.
        OSError: nothing can be written there; before the block begins.
    """
    path = Path(out)
    if path.suffix != ".keras":
        remedy = "For other formats run keras-distill export on it."
        raise ValueError(error_message("--out must be a .keras file", path, remedy))
    record = record_path(path)
    for place in (path, record):
        if place.is_dir():
            raise ValueError(error_message(f"--out must not be in the way of a folder, {place}", "one"))
    if not overwrite:
        _check_ours(path, record, command)
    replaced = _sha256(path) if path.is_file() else None
    # The record first: killed between the two, it names both students.
    with whole_files([record, path]) as (record_aside, model_aside):
        yield StudentFile(path, record, model_aside, record_aside, replaced, command)


def verdict_beside(student: Path) -> "Verdict | None":
    """The verdict of the run that distilled a student, from the record beside it; `None` where there is none of it.

    Args:
        student: a `.keras` file. A record that names another file's hash, or is of something else, is not its own.

    Raises:
        ValueError: the record names this student, and what it holds is no verdict.
    """
    path = record_path(student)
    named = _named_hashes(path, "distill")
    if named is None or _sha256(student) not in named:
        return None
    contents = json.loads(path.read_text()).get("verdict")
    if contents is None:
        return None
    from keras_distill.report.verdict import Verdict

    try:
        return Verdict.from_json(contents)
    except ValueError as error:
        raise ValueError(f"{path}: {error} Distil again, or take the file away.") from error


def record_path(out: Path) -> Path:
    """`OUT.json` of `OUT.keras`."""
    return out.with_suffix(".json")


def _check_ours(path: Path, record: Path, command: str) -> None:
    remedy = "Name another --out, or insist with --overwrite."
    if record.exists():
        named = _named_hashes(record, command)
        if named is None:
            raise ValueError(error_message(f"{record} must be a record of {_format(command)}", "another file", remedy))
        if not path.exists() or _sha256(path) in named:
            return
        received = f"a file that {record.name} does not name: changed, or somebody else's"
    elif path.exists():
        received = f"a file without {record.name} beside it"
    else:
        return
    raise ValueError(error_message(f"{path} must be a student that {_format(command)} wrote", received, remedy))


def _format(command: str) -> str:
    return f"keras-distill {command}"


def _named_hashes(record: Path, command: str) -> set[str] | None:
    """The hashes of the students that a record names; `None` where it is no such record."""
    try:
        contents = json.loads(record.read_text())
        model = contents["model"] if contents["format"] == _format(command) else {}
        return {model["sha256"], model.get("replaces_sha256")}
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
