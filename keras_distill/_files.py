"""Files and folders that appear whole or not at all: written aside, flushed to disk, renamed into place."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from keras_distill._checks import error_message


@contextmanager
def whole_file(path: str | os.PathLike, within: Path | None = None) -> Iterator[Path]:
    """Yields a path beside `path` to write to; when the block ends well, that file becomes `path`.

    The name ends as `path` does, since Keras and Matplotlib choose a format by it. Where the block
    raises, nothing is left and an older `path` stays as it was.

    Args:
        path: the file that is to be.
        within: the folder to write in, one of `folder_aside`; `None` is that of `path`.

    Raises:
        FileNotFoundError: `within` is not there; the process that made it has swept it, or is on another machine.

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
    if within and not within.is_dir():
        remedy = "Name a folder on a disk that all machines share."
        raise FileNotFoundError(
            error_message(f"{path.parent} must be the folder that all workers see", "another", remedy)
        )
    aside = (within or path.parent) / f".partial-{secrets.token_hex(4)}{path.name}"
    # Made here with the rights that the umask leaves, which can be read in no other way without changing it for all
    # threads.
    aside.touch(0o666, exist_ok=False)
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_files(paths: Sequence[str | os.PathLike]) -> Iterator[list[Path]]:
    """Yields a path beside each of `paths` to write to; when the block ends well, those files become `paths`, in order.

    For files that belong together. All of them are on the disk before the first takes its name, so that only a kill
    between two renames, which take microseconds, leaves some new and some old. Where the block raises, nothing is left.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> with whole_files([folder / "a.txt", folder / "b.txt"]) as asides:
        ...     _ = [aside.write_text("…") for aside in asides]
        >>> sorted(path.name for path in folder.iterdir())
        ['a.txt', 'b.txt']
    """
    targets, asides = [Path(path) for path in paths], []
    try:
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.parent / f".partial-{secrets.token_hex(4)}{target.name}"
            asides.append(aside)
            aside.touch(0o666, exist_ok=False)
        yield asides
        for aside in asides:
            sync(aside)
        _take_names(asides, targets)
        for folder in {target.parent for target in targets}:
            sync(folder)
    finally:
        for aside in asides:
            aside.unlink(missing_ok=True)


def _take_names(asides: Sequence[Path], targets: Sequence[Path]) -> None:
    """In a function of its own, so that a signal waits until all of them have their names."""
    for aside, target in zip(asides, targets, strict=True):
        os.replace(aside, target)


@contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder beside `path` to fill; when the block ends well, that folder becomes `path`.

    An older folder at `path` is replaced. Where the block raises, nothing is left and the older folder stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".partial-{path.name}-{secrets.token_hex(4)}"
    aside.mkdir(0o777)
    try:
        yield aside
        for file in aside.rglob("*"):
            sync(file)
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


@contextmanager
def folder_aside(parent: str | os.PathLike) -> Iterator[Path]:
    """Yields a hidden folder in `parent` that is gone afterwards, with all that is in it, whoever was writing there.

    For those who give work to other processes: one that is killed sweeps nothing, and its files are unknown here.
    """
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    aside, going = (parent / f".partial-{secrets.token_hex(4)}" for _ in range(2))
    aside.mkdir(0o777)
    try:
        yield aside
    finally:
        # Under another name first: who still runs, on another machine perhaps, can begin nothing new in it. Somebody
        # else may have swept it already.
        with suppress(FileNotFoundError):
            os.replace(aside, going)
        shutil.rmtree(going, ignore_errors=True)


@contextmanager
def only_one_in(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps another process out of a folder that one alone may write to, until the block ends or this one dies.

    Where a system or a disk has no such locks nobody is kept out.

    Raises:
        BlockingIOError: another process is in such a block.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "Wait for it, end it, or name another folder."
            raise BlockingIOError(
                error_message(f"one process alone must write to {folder}", "another that is at it", remedy)
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


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
