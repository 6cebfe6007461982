"""Files and folders that appear whole or not at all: written aside, flushed to disk, renamed into place."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path beside `path` to write to; when the block ends well, that file becomes `path`.

    The name ends as `path` does, since Keras and Matplotlib choose a format by it. Where the block
    raises, nothing is left and an older `path` stays as it was.

    Example:
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "results.json"
        >>> with whole_file(target) as aside:
        ...     _ = aside.write_text("{}")
        >>> target.read_text()
        '{}'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".partial-", suffix=path.name, dir=path.parent)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        sync(aside)
        aside.chmod(0o666 & ~_umask())
        os.replace(aside, path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder beside `path` to fill; when the block ends well, that folder becomes `path`.

    An older folder at `path` is replaced. Where the block raises, nothing is left and the older folder stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".partial-{path.name}-", dir=path.parent))
    try:
        yield aside
        for file in aside.rglob("*"):
            sync(file)
        aside.chmod(0o777 & ~_umask())
        if path.exists():
            # A folder cannot be renamed over one that is not empty: move the older one away first.
            older = Path(tempfile.mkdtemp(prefix=f".older-{path.name}-", dir=path.parent))
            os.replace(path, older / path.name)
            os.replace(aside, path)
            shutil.rmtree(older)
        else:
            os.replace(aside, path)
        sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_writable(path: str | os.PathLike) -> None:
    """Raises `OSError` where the file or folder `path` could not be made: now, and not after minutes of work."""
    parent = Path(path).absolute().parent
    while not parent.exists():
        parent = parent.parent
    with tempfile.TemporaryFile(dir=parent):
        pass


def sync(path: Path) -> None:
    """Waits until the disk holds what was written to the file or folder `path`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    # The process's umask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
