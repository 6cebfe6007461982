"""Writing a store, shard by shard: each appears whole or not at all, whoever is killed, and several writers agree.

The format is specified in `store.py`.
"""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from keras_distill._checks import error_message
from keras_distill._files import sync, whole_file
from keras_distill.targets.manifest import FormatVersionError, Manifest, StoreError, check_source, version_of

# Where the folds of an out-of-fold store wait until all of them are there; `finish` sweeps it.
FOLDS = ".partial-folds"


def create(path: str | os.PathLike, manifest: Manifest, *, adopted: Collection[str] = ()) -> Manifest:
    """Begins a store, or finds that one begun with the same settings; returns the manifest that is there.

    A finished store of an older version is found too; whoever has shards to add to one must `check_version` first.

    Args:
        path: the folder.
        manifest: what is asked for.
        adopted: fields in which a store that was begun has the say.

    Raises:
        StaleTeacherError: `path` holds another teacher's targets.
        ForeignDatasetError: `path` holds another data set's targets.
        StoreError: `path` was begun with other settings.
    """
    path = Path(path)
    file = path / "manifest.json"
    if not file.exists():
        if stranger := something_else(path, is_out_of_fold=manifest.folds is not None):
            remedy = "Name a new folder, or one that an earlier `label` began."
            raise StoreError(error_message(f"{path!s} must be a store of soft targets", stranger, remedy))
        path.mkdir(parents=True, exist_ok=True)
        publish_first(file, replace(manifest, shards=None).to_json())
        sync(path.parent)
    # After the manifest: a run that dies in between has left a store without shards, which the next one takes up.
    (path / "shards").mkdir(exist_ok=True)
    sync(path)
    found = Manifest.from_json(file.read_bytes(), file)
    # Version 1 knew nothing of a stream's items.
    knows_dataset = found.version > 1 or found.dataset_fingerprint
    check_source(
        path,
        found,
        teacher_fingerprint=manifest.teacher_fingerprint,
        dataset_fingerprint=manifest.dataset_fingerprint if knows_dataset else None,
        every_item_fingerprint=manifest.every_item_fingerprint,
        num_items=manifest.num_items,
        id_scheme=manifest.id_scheme,
    )
    expected, received = asdict(manifest), asdict(found)
    for name in ("shards", "version", "dataset_fingerprint", "every_item_fingerprint", *adopted):
        del expected[name]
    for name, value in expected.items():
        if received[name] != value:
            remedy = "Go on with the settings that it was begun with, or name a new folder."
            raise StoreError(
                error_message(f"{path}: {name} must be {value!r}, as asked for now", repr(received[name]), remedy)
            )
    return found


def begun(path: str | os.PathLike) -> Manifest | None:
    """The manifest of a store that was begun, finished or not; `None` where there is none."""
    file = Path(path) / "manifest.json"
    return Manifest.from_json(file.read_bytes(), file) if file.exists() else None


def check_version(path: str | os.PathLike, manifest: Manifest) -> None:
    """Raises `FormatVersionError` where shards of an older version would have to be written."""
    if manifest.version != version_of(manifest.kind):
        remedy = "Label into a new folder."
        expectation = f"{path}: a store that lacks shards must be of format {version_of(manifest.kind)}"
        raise FormatVersionError(error_message(expectation, f"format {manifest.version}", remedy))


def withdraw(path: str | os.PathLike, manifest: Manifest) -> None:
    """Takes back a store that was begun and has no shard yet, so that its folder can be used for another."""
    if not labelled_shards(path, manifest):
        (Path(path) / "manifest.json").unlink(missing_ok=True)


def write_shard(
    path: str | os.PathLike,
    manifest: Manifest,
    index: int,
    rows: np.ndarray,
    marks: np.ndarray | None = None,
    within: Path | None = None,
) -> Path:
    """Publishes shard `index`, whole or not at all, and returns its file.

    Args:
        rows: structured, of `manifest.row_dtype`, as many as the shard holds.
        marks: uint64, of the items of `manifest.marked_rows(index)`; `None` where the items are not known.
        within: the folder to write in, one of `folder_aside`; `None` is that of the shards.

    Raises:
        ValueError: the rows or marks are not those of this shard.
        OSError: the disk is full or fails; nothing half-written is left.
    """
    start, stop = manifest.shard_rows(index)
    num_marks = len(manifest.marked_rows(index))
    marks = np.zeros(num_marks, np.uint64) if marks is None else marks
    if rows.dtype != manifest.row_dtype or rows.shape != (stop - start,):
        expected = f"have {stop - start} rows of {manifest.row_dtype}"
        raise ValueError(error_message(f"shard {index} must {expected}", f"shape {rows.shape} of {rows.dtype}"))
    if marks.dtype != np.uint64 or marks.shape != (num_marks,):
        expectation = f"shard {index} must have {num_marks} marks, uint64"
        raise ValueError(error_message(expectation, f"shape {marks.shape} of {marks.dtype}"))
    body = np.ascontiguousarray(rows).view(np.uint8).data
    parts: list[bytes | memoryview] = [shard_header(manifest, stop - start), body]
    if num_marks:
        parts += [marks_header(num_marks), marks.astype("<u8").tobytes()]
    # Hashed from memory, before a byte is written: a disk that stores something else is found out by the name, and a
    # hash of what was read back would only repeat its mistake.
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    # The name holds index *and* content, so that no writer ever replaces another's shard: writers that agree write
    # the same file twice, and of writers that differ in a bit each has its own, of which `finish` names one.
    file = Path(path) / "shards" / f"{index:06d}-{digest.hexdigest()[:16]}.npy"
    try:
        # Aside, flushed, renamed: a reader that lists the folder sees whole shards alone. Without the flush a machine
        # that loses power may keep the new name and lose the bytes.
        with whole_file(file, within) as aside, open(aside, "wb") as stream:
            for part in parts:
                stream.write(part)
    except FileNotFoundError:
        # Another writer of this very shard was faster, finished the store and swept our copy aside.
        published = labelled_shards(path, manifest).get(index)
        if not published:
            raise
        return published[0]
    return file


def labelled_shards(path: str | os.PathLike, manifest: Manifest) -> dict[int, list[Path]]:
    """The shards that are there, by index: one file each, more where two writers' teachers disagreed in a bit."""
    found: dict[int, list[Path]] = {}
    for file in sorted((Path(path) / "shards").glob("[0-9]*-*.npy")):
        index = int(file.name.split("-")[0])
        if index < manifest.num_shards:
            found.setdefault(index, []).append(file)
    return found


def is_sound(file: Path) -> bool:
    """Whether a shard's bytes are those that its name promises."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return file.stem.split("-")[1] == digest.hexdigest()[:16]


def missing_shards(path: str | os.PathLike, manifest: Manifest, indices: Iterable[int]) -> list[int]:
    """Which of `indices` are yet to be labelled. A damaged shard is removed, so that it is labelled again."""
    there = labelled_shards(path, manifest)
    missing = []
    for index in indices:
        sound = [file for file in there.get(index, []) if is_sound(file)]
        for file in there.get(index, []):
            if file not in sound:
                file.unlink(missing_ok=True)
        if not sound:
            missing.append(index)
    return missing


def check_room(path: Path, manifest: Manifest, missing: Sequence[int]) -> None:
    """Raises `OSError` where the disk has no room for the shards that are missing."""
    needed = len(missing) * manifest.rows_per_shard * manifest.bytes_per_row
    free = shutil.disk_usage(path).free
    if needed > free:
        remedy = "Free some, keep fewer logits (top_k, sample), or name a folder on another disk."
        message = error_message(
            f"the disk must have room for {needed / 1e6:,.0f} MB more", f"{free / 1e6:,.0f} MB", remedy
        )
        raise OSError(errno.ENOSPC, message, str(path))


def finish(path: str | os.PathLike, manifest: Manifest) -> bool:
    """Writes the final manifest if all shards are there; `False` while other writers are still at work."""
    path = Path(path)
    there = labelled_shards(path, manifest)
    if len(there) < manifest.num_shards:
        return False
    # All shards are published: what lies aside was left by a kill, is a second writer's copy of one of them, or was
    # kept by training that labelled as it went.
    for aside in [*path.glob(".partial-*"), *(path / "shards").glob(".partial-*"), *path.glob("growing")]:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
    # Where writers' shards differ, the first by name: all who finish name the same, and each of them is whole.
    final = replace(manifest, shards=tuple(there[index][0].name for index in range(manifest.num_shards)))
    while not _published(path, final):
        # Another process is finishing the store too, and swept our copy aside: it does so once.
        continue
    return True


def shard_header(manifest: Manifest, num_rows: int) -> bytes:
    """The opening of a shard's `.npy` file, byte for byte."""
    return _npy_header(manifest.row_dtype.descr, num_rows)


def marks_header(num_marks: int) -> bytes:
    """What stands between a shard's rows and its marks, byte for byte."""
    return _npy_header("<u8", num_marks)


def shard_size(manifest: Manifest, index: int) -> int:
    """How many bytes long the file of shard `index` is."""
    start, stop = manifest.shard_rows(index)
    num_marks = len(manifest.marked_rows(index))
    marks = len(marks_header(num_marks)) + 8 * num_marks if num_marks else 0
    return len(shard_header(manifest, stop - start)) + (stop - start) * manifest.bytes_per_row + marks


def _npy_header(description: str | list, length: int) -> bytes:
    # Written out rather than left to `numpy.save`, whose header may change its spaces with the version of NumPy:
    # the same rows must give the same bytes, hence the same name, on every machine that shares the work.
    text = repr({"descr": description, "fortran_order": False, "shape": (length,)})
    # NumPy's format, version 1.0: magic, two bytes of version, two of length; padded to a multiple of 64.
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1")


def something_else(path: Path, *, is_out_of_fold: bool) -> str:
    """What keeps `path`, where no manifest is, from becoming a store; empty where nothing does."""
    if not path.exists():
        return ""
    if not path.is_dir():
        return "a file"
    if not is_out_of_fold and (path / FOLDS).is_dir():
        return "a folder in which an out-of-fold labelling was begun"
    strangers = [entry.name for entry in path.iterdir() if not _is_leaving(entry)]
    # Another process may have begun the store since we looked.
    return "a folder of something else" if strangers and not (path / "manifest.json").exists() else ""


def _is_leaving(entry: Path) -> bool:
    """Whether a run that died, or a copy that stopped, may have left `entry` before there was a manifest."""
    if entry.name == "shards" and entry.is_dir():
        return all(_is_leaving(file) for file in entry.iterdir())
    return entry.name.startswith(".partial-")


def publish_first(file: Path, text: str) -> None:
    """Writes a file unless there is one: of several processes that begin a store one does.

    A rename would replace the manifest of a process that was faster, and whose settings may be others.
    """
    aside = file.with_name(f".partial-{secrets.token_hex(4)}{file.name}")
    try:
        with open(aside, "x") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(aside, file)
        except FileExistsError:
            pass
        except OSError:
            # A file system without hard links: there a rename has to do.
            os.replace(aside, file)
    except FileNotFoundError:
        # Another process began the store and finished it already, and swept our copy aside.
        if not file.exists():
            raise
    finally:
        aside.unlink(missing_ok=True)


def _published(path: Path, manifest: Manifest) -> bool:
    """Replaces the manifest; `False` where another process swept the new one before it was in place."""
    try:
        with whole_file(path / "manifest.json") as aside:
            aside.write_text(manifest.to_json())
    except FileNotFoundError:
        return False
    return True
