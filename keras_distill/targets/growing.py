"""A store that grows while it is used: a view is labelled when training first asks for it, once, and kept.

What is labelled is held in memory and written in *pieces*, beside where the shards will be. Once every row is there
the pieces become shards, and the store is one like any other. A piece appears whole or not at all, and the next run
begins with what the pieces hold.

The format of pieces is no part of a store's: `growing/<number>-<hash>.npy`, a structured array of `row` and the row's
fields, named by its content as shards are.
"""

import hashlib
import io
import os
import shutil
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import error_message
from keras_distill._files import whole_file
from keras_distill._types import ArrayLike, Data, Teacher, TensorTree
from keras_distill.targets.fingerprints import item_marks
from keras_distill.targets.labelling import num_views_of
from keras_distill.targets.manifest import Manifest, UnfinishedStoreError
from keras_distill.targets.plan import plan
from keras_distill.targets.shard_queue import check_finite
from keras_distill.targets.shards import check_version, create, finish, is_sound, labelled_shards, write_shard
from keras_distill.targets.source import ArraySource, gives_batches, is_stream
from keras_distill.targets.store import SoftTargetStore
from keras_distill.targets.teacher_rows import RowOptions

if TYPE_CHECKING:
    from keras_distill.targets.augmentation import Augmentation


# A piece of fewer costs a small teacher's step more than it saves when a run is killed.
_LEAST_ROWS_A_PIECE = 4096

# The arguments of `label` that a store which grows has too.
LABELLING = (
    "augmentation",
    "views",
    "top_k",
    "dtype",
    "members",
    "temperature",
    "from_logits",
    "teacher_fingerprint",
)


class GrowingStore(SoftTargetStore):
    """An unfinished store that is read and labelled at once. Made by `grow`.

    Args:
        path: the folder, with a manifest.
        manifest: what the store is to be.
        forward: from a batch of inputs to the fields of their rows.
        inputs: the items as they are given, for their marks.
    """

    def __init__(self, path: str | os.PathLike, manifest: Manifest, forward: Callable, inputs: TensorTree):
        super().__init__(path, manifest)
        self._forward = forward
        self._pieces = _Pieces(self.path, manifest, inputs)
        # What is too little for a piece is written when nobody uses the store any more, or the program ends.
        weakref.finalize(self, _save_at_last, self._pieces)

    def __getstate__(self) -> dict[str, Any]:
        remedy = "Open the finished store there, or use attach(…, teacher=…) in one process."
        raise TypeError(error_message("a store that grows must stay in its process", "a copy of it", remedy))

    @property
    def num_labelled(self) -> int:
        """How many rows are there."""
        return int(np.count_nonzero(self._pieces.is_there))

    def has(self, ids: ArrayLike, views: ArrayLike) -> np.ndarray:
        """Which views of items are labelled, bool, shaped as `ids`.

        Raises:
            ForeignDatasetError: an id or a view is outside the store.
        """
        self._check_range("ids", np.asarray(ids), self.manifest.num_items)
        self._check_range("views", np.asarray(views), self.manifest.num_views)
        return self._pieces.is_there[self._row_numbers(ids, views)]

    def label(self, ids: ArrayLike, views: ArrayLike, inputs: TensorTree) -> int:
        """Labels those views of some items that are not labelled.

        Args:
            ids: integers `(batch,)`.
            views: integers `(batch,)`.
            inputs: what the student sees of them.

        Returns:
            How many the teacher saw.

        Raises:
            ValueError: logits that are not finite.
            OSError: the disk is full; what is whole stays.
        """
        ids, views = np.asarray(ids), np.asarray(views)
        # Of a view that comes twice the first.
        firsts = np.unique(self._row_numbers(ids, views), return_index=True)[1]
        missing = np.sort(firsts[~self.has(ids[firsts], views[firsts])])
        if len(missing):
            # A power of two: a batch's share of what is missing is another each time, and is not to be compiled anew.
            size = min(len(ids), 1 << (len(missing) - 1).bit_length())
            taken = np.resize(missing, size)
            seen = keras.tree.map_structure(lambda part: ops.convert_to_tensor(np.asarray(part)[taken]), inputs)
            fields = {name: ops.convert_to_numpy(values) for name, values in self._forward(seen).items()}
            names = self.manifest.row_dtype.names or ()
            self.keep(ids[missing], views[missing], {name: fields[name][: len(missing)] for name in names})
        return len(missing)

    def fields_of(self, inputs: TensorTree) -> dict[str, Any]:
        """On TensorFlow: the fields of some inputs' rows, as operations of a graph."""
        import tensorflow as tf

        if hasattr(self._forward, "get_concrete_function"):
            return self._forward(inputs)
        # A teacher that is no Keras model is a function of Python's.
        names, dtype = self.manifest.row_dtype.names or (), self.manifest.row_dtype

        def run(*arrays: np.ndarray) -> list[np.ndarray]:
            fields = self._forward(tf.nest.pack_sequence_as(inputs, arrays))
            return [ops.convert_to_numpy(fields[name]).astype(dtype[name].base) for name in names]

        values = tf.numpy_function(run, tf.nest.flatten(inputs), [dtype[name].base for name in names])
        return dict(zip(names, values, strict=True))

    def keep(self, ids: np.ndarray, views: np.ndarray, fields: Mapping[str, np.ndarray]) -> None:
        """Adds rows that were just labelled.

        Raises:
            ValueError: logits that are not finite.
            OSError: the disk is full; what is whole stays.
        """
        made = np.empty(len(ids), self.manifest.row_dtype)
        for name, values in fields.items():
            made[name] = values
        check_finite(made, self.manifest)
        with self._pieces.lock:
            self._pieces.put(self._row_numbers(ids, views), made)

    def save(self) -> None:
        """Writes what is labelled and not yet written; of a store that is whole, the shards."""
        self._pieces.save()

    def marks(self) -> tuple[np.ndarray, np.ndarray]:
        """None: they are written with the shards."""
        return np.empty(0, np.int64), np.empty(0, np.uint64)

    def example(self) -> np.ndarray | dict[str, np.ndarray]:
        """The form of what `read` gives of one item."""
        return self._fields(np.zeros(1, self._raw_row), (1,))

    def _row_numbers(self, ids: ArrayLike, views: ArrayLike) -> np.ndarray:
        return np.asarray(views, np.int64) * self.manifest.num_items + np.asarray(ids, np.int64)

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        if not self._pieces.is_there[rows].all():
            received = f"{self.num_labelled:,} of {self.manifest.num_rows:,} rows, and not all that were asked for"
            remedy = "Ask for them with their inputs, as attach(…, teacher=…) does."
            raise UnfinishedStoreError(error_message(f"{self.path} must hold what is read", received, remedy))
        return self._pieces.rows.view(self._raw_row)[rows]

    def _slice(self, start: int, stop: int) -> np.ndarray:
        return self._gather(np.arange(start, stop))


class _Pieces:
    """The rows of a growing store, in memory and on the disk."""

    def __init__(self, path: Path, manifest: Manifest, inputs: TensorTree):
        self.path, self.manifest, self.inputs = path, manifest, inputs
        # Pages of zeros take no memory before they are written to.
        self.rows = np.zeros(manifest.num_rows, manifest.row_dtype)
        self.is_there = np.zeros(manifest.num_rows, bool)
        # A training and a validation pipeline may ask at once.
        self.lock = threading.RLock()
        self._dtype = np.dtype([("row", "<i8"), *manifest.row_dtype.descr])
        self._folder = path / "growing"
        self._unwritten: list[np.ndarray] = []
        self._num_unwritten, self._num_pieces, self._is_whole = 0, 0, False
        # About 64 pieces in all, each a flush to the disk.
        self._rows_per_piece = max(_LEAST_ROWS_A_PIECE, -(-manifest.num_rows // 64))
        self._writer = ThreadPoolExecutor(1)
        self._written: Future | None = None
        self._read_pieces()

    def put(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        """Adds rows, by their numbers; writes them in the background once they are enough."""
        self.rows[numbers] = rows
        self.is_there[numbers] = True
        self._unwritten.append(numbers)
        self._num_unwritten += len(numbers)
        if self._num_unwritten >= self._rows_per_piece or self.is_there.all():
            # One piece at a time: an error of the last one is raised here.
            self._wait()
            self._written = self._writer.submit(self._write_or_keep, self._take())

    def save(self) -> None:
        """Writes what is not yet written, and the shards once every row is there."""
        self._wait()
        with self.lock:
            numbers = self._take()
        if len(numbers) or (self.is_there.all() and not self._is_whole):
            self._write_or_keep(numbers)

    def _wait(self) -> None:
        """Until the last piece is on the disk; raises, once, what kept it from being there."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def _take(self) -> np.ndarray:
        numbers = np.concatenate([np.empty(0, np.int64), *self._unwritten])
        self._unwritten, self._num_unwritten = [], 0
        return numbers

    def _write_or_keep(self, numbers: np.ndarray) -> None:
        """Writes a piece; what could not be written goes into the next one."""
        try:
            self._write(numbers)
        except BaseException:
            with self.lock:
                self._unwritten.append(numbers)
                self._num_unwritten += len(numbers)
            raise

    def _write(self, numbers: np.ndarray) -> None:
        if self.is_there.all():
            self._write_shards()
            return
        piece = np.empty(len(numbers), self._dtype)
        piece["row"] = numbers
        for name in self.rows.dtype.names or ():
            piece[name] = self.rows[name][numbers]
        content = io.BytesIO()
        np.save(content, piece)
        digest = hashlib.sha256(content.getbuffer()).hexdigest()[:16]
        with whole_file(self._folder / f"{self._num_pieces:06d}-{digest}.npy") as aside:
            aside.write_bytes(content.getbuffer())
        self._num_pieces += 1

    def _write_shards(self) -> None:
        manifest = self.manifest
        for index in sorted(set(range(manifest.num_shards)) - set(labelled_shards(self.path, manifest))):
            start, stop = manifest.shard_rows(index)
            marks = item_marks(self.inputs, manifest.marked_rows(index) % manifest.num_items)
            write_shard(self.path, manifest, index, self.rows[start:stop], marks)
        finish(self.path, manifest)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._is_whole = True

    def _read_pieces(self) -> None:
        for index, files in labelled_shards(self.path, self.manifest).items():
            # Whole shards are there where `label` began the store, or where a kill came between two of them.
            if sound := [file for file in files if is_sound(file)]:
                start, stop = self.manifest.shard_rows(index)
                self.rows[start:stop], self.is_there[start:stop] = np.load(sound[0]), True
            else:
                for file in files:
                    file.unlink(missing_ok=True)
        for file in sorted(self._folder.glob("[0-9]*-*.npy")):
            if not is_sound(file):
                file.unlink(missing_ok=True)
                continue
            piece = np.load(file)
            for name in self.rows.dtype.names or ():
                self.rows[name][piece["row"]] = piece[name]
            self.is_there[piece["row"]] = True
            self._num_pieces = int(file.name.split("-")[0]) + 1


def _save_at_last(pieces: _Pieces) -> None:
    """When nobody is there any more to catch an error it is a warning."""
    try:
        pieces.save()
    except OSError as error:
        warnings.warn(f"{pieces.path}: what was labelled last is not written ({error}).", stacklevel=2)


def grow(
    teacher: Teacher,
    dataset: Data,
    path: str | os.PathLike,
    *,
    top_k: int | None = None,
    dtype: str = "float16",
    augmentation: "Augmentation | None" = None,
    views: int | None = None,
    members: bool = False,
    temperature: float | None = None,
    batch_size: int = 256,
    from_logits: bool = True,
    teacher_fingerprint: str | None = None,
) -> SoftTargetStore:
    """Begins a store that grows, or goes on with one; one that is whole is opened.

    Args:
        teacher: as in `label`.
        dataset: arrays in memory or mapped, as in `label`.
        path: the store's folder; new, or one that an earlier call or an earlier `label` began.
        batch_size: items of the forward pass that shows what rows look like; training's batches are its own.

    The other arguments are those of `label`.

    Raises:
        StaleTeacherError, ForeignDatasetError, StoreError: `path` holds something else.
        ValueError: a dataset that is no arrays; settings that contradict each other.

    Example:
        >>> import tempfile
        >>> x = np.eye(4, dtype="float32")
        >>> store = grow(lambda x: 5 * x, x, tempfile.mkdtemp() + "/targets", teacher_fingerprint="five times")
        >>> store.label([2, 0], [0, 0], x[[2, 0]]), store.label([2, 1], [0, 0], x[[2, 1]])
        (2, 1)
        >>> store.read([2])
        array([[0., 0., 5., 0.]], dtype=float32)
        >>> store.has([0, 3], [0, 0])
        array([ True, False])
    """
    if is_stream(dataset) or (gives_batches(dataset) and not hasattr(dataset, "inputs")):
        remedy = "Give arrays, memory maps too, or label the dataset first."
        expectation = "a store that grows needs a dataset of arrays"
        raise ValueError(error_message(expectation, f"a {type(dataset).__name__}", remedy))
    num_views = num_views_of(augmentation, views)
    source = ArraySource(dataset, None, batch_size, augmentation)
    options = RowOptions(members=members, temperature=temperature, top_k=top_k, dtype=dtype, from_logits=from_logits)
    planned = plan(
        teacher,
        source,
        options,
        augmentation=augmentation,
        num_views=num_views,
        teacher_fingerprint=teacher_fingerprint,
    )
    manifest = create(path, planned.manifest)
    if manifest.shards is not None:
        return SoftTargetStore.open(path)
    check_version(path, manifest)
    return GrowingStore(path, manifest, planned.forward, source.inputs)


def opened(
    dataset: Data,
    store: SoftTargetStore | str | os.PathLike,
    teacher: Teacher | None,
    labelling: dict[str, Any],
    parts: dict[str, Any],
) -> SoftTargetStore:
    """The store that `attach` was given: open, or its folder; with a teacher, one that grows.

    Args:
        dataset: that is joined.
        store: as in `attach`.
        teacher: as in `attach`.
        labelling: what is kept, as in `grow`.
        parts: arguments that a teacher leaves no room for, by name.
    """
    if unknown := sorted(set(labelling) - set(LABELLING)):
        raise TypeError(f"attach() got unexpected arguments: {', '.join(unknown)}")
    if teacher is None:
        if labelling:
            remedy = "They say what a teacher is to label: pass teacher=…"
            raise TypeError(error_message("attach() without a teacher must have none of these", [*labelling], remedy))
        return store if isinstance(store, SoftTargetStore) else SoftTargetStore.open(store)
    for name, value in parts.items():
        if value is not None:
            remedy = "Give the whole arrays, or label them first."
            raise ValueError(error_message(f"{name} must be left out with a teacher", name, remedy))
    path = store.path if isinstance(store, SoftTargetStore) else store
    return grow(teacher, dataset, path, **labelling)
