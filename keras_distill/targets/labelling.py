"""Teacher + dataset → store: one forward pass of the teacher for every item, written down for good.

The format is in `store.py`, writing it in `shards.py`; how a temperature is applied, in `keras_distill.losses`.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_count, check_positive, complaint
from keras_distill.compilation import compiled
from keras_distill.logits import logits_model
from keras_distill.targets.manifest import ForeignDatasetError, Manifest, rows_per_shard_for
from keras_distill.targets.shards import create, finish, labelled_shards, missing_shards, write_shard
from keras_distill.targets.store import SoftTargetStore

if TYPE_CHECKING:
    from keras_distill.scale import Engine
    from keras_distill.targets.augmentation import Augmentation

# One batch's matrices fill the cores where the other's leave them idle.
_BATCHES_AT_ONCE = 3


def label(
    teacher: Callable,
    dataset: Any,
    path: str | os.PathLike,
    *,
    top_k: int | None = None,
    dtype: str = "float16",
    augmentation: "Augmentation | None" = None,
    views: int | None = None,
    members: bool = False,
    temperature: float | None = None,
    batch_size: int = 256,
    rows_per_shard: int | None = None,
    from_logits: bool = True,
    teacher_fingerprint: str | None = None,
    id_scheme: str = "position",
    num_items: int | None = None,
    worker: int = 0,
    num_workers: int = 1,
    engine: "Engine | str | None" = None,
    progress: bool | None = None,
) -> SoftTargetStore | None:
    """Runs the teacher over a dataset once and stores its logits; training then reads them in its place.

    A run that was killed goes on where it stopped when called again with the same arguments: whole shards stay, the
    first missing one is the next. Several processes may share the work: each takes every `num_workers`-th shard.

    Args:
        teacher: a Keras model with any head, an `Ensemble`, or any callable from a batch of inputs to logits.
        dataset: the inputs as an array (or a structure of arrays), a `Split`, `(inputs, labels)`, or a
            `tf.data.Dataset` of single examples, `x` or `(x, …)`, in a fixed order. An item's id is its place.
        path: the store's folder; new, or one that an earlier call began.
        top_k: how many of the largest logits to keep of each row; `None` keeps all.
        dtype: of the logits on disk, `"float16"` or `"float32"`.
        augmentation: what makes views of an item; the manifest keeps it, and `attach` replays it.
        views: how many views of each item to label; `None` is all that the augmentation has, or 1.
        members: keep the logits of each member of an arithmetic ensemble, so that every temperature can be asked for.
        temperature: merge the members of an arithmetic ensemble at this temperature, into rows of a single teacher's
            size, right at this temperature only.
        batch_size: items a forward pass.
        rows_per_shard: rows a shard, a multiple of `batch_size`; `None` makes about 64 shards.
        from_logits: what a teacher gives whose head cannot be read: logits, or (`False`) probabilities.
        teacher_fingerprint: names the teacher; `None` computes `fingerprint(teacher)`.
        id_scheme: what an id means, for whoever opens the store.
        num_items: length of a `tf.data.Dataset` that does not know it.
        worker: which of the processes this one is, in [0, num_workers).
        num_workers: how many processes label this store.
        engine: who labels: `None` this process, `"local"` or `"ray"` or an engine of `keras_distill.scale` its workers,
            a shard a task. The store is the same; with engines past this machine `path` is on a disk that all share.
        progress: show a progress bar; `None` does where standard error is a terminal.

    Returns:
        The store, or `None` while other workers are still at work.

    Raises:
        StaleTeacherError, ForeignDatasetError, StoreError: `path` holds something else.
        ValueError: settings that contradict each other, or logits that are not finite (in `dtype`).
        OSError: the disk is full; nothing half-written is left, and a later call goes on.

    Example:
        >>> import tempfile
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        >>> store = label(teacher, np.zeros((10, 4), "float32"), tempfile.mkdtemp() + "/targets")
        >>> store.read([0, 9]).shape
        (2, 3)
    """
    path = Path(path)
    source = _Source(dataset, num_items, batch_size, augmentation)
    check_count("batch_size", batch_size)
    if not 0 <= check_count("worker", worker, 0) < check_count("num_workers", num_workers):
        raise ValueError(complaint("worker", f"in [0, num_workers = {num_workers})", worker))
    if engine is not None:
        _check_for_engine(source, num_workers)
    forward = _forward(teacher, members, temperature, top_k, dtype, from_logits)
    # The first batch says what rows look like; it costs one pass, and compiles the teacher for all of them.
    outputs = {name: np.asarray(values) for name, values in forward(source.first_batch()).items()}
    manifest = _describe(outputs, members, temperature, top_k, dtype)
    manifest = replace(
        manifest,
        num_items=source.num_items,
        num_views=_num_views(augmentation, views),
        augmentation=augmentation.get_config() if augmentation else None,
        teacher_fingerprint=teacher_fingerprint or fingerprint(teacher),
        dataset_fingerprint=source.fingerprint,
        id_scheme=id_scheme,
    )
    rows = rows_per_shard or rows_per_shard_for(manifest.num_rows, manifest.bytes_per_row, batch_size)
    if rows % batch_size:
        remedy = "A shard's bytes must not depend on where an earlier run stopped."
        raise ValueError(complaint("rows_per_shard", f"a multiple of batch_size = {batch_size}", rows, remedy))
    manifest = create(path, replace(manifest, rows_per_shard=rows))

    missing = missing_shards(path, manifest, range(worker, manifest.num_shards, num_workers))
    _check_room(path, manifest, missing)
    num_rows = sum(stop - start for start, stop in map(manifest.shard_rows, missing))
    with _progress_bar(path, manifest, num_rows, progress) as advance:
        if engine is None:
            _label_shards(path, manifest, missing, source, forward, advance)
        else:
            options = (members, temperature, top_k, dtype, from_logits)
            _label_by_engine(engine, teacher, source, path, manifest, missing, options, advance)
    return SoftTargetStore.open(path, verify=False) if finish(path, manifest) else None


def fingerprint(teacher: Callable) -> str:
    """A hash of what a teacher is: its configuration and its weights, whatever names Keras gave its layers.

    Args:
        teacher: a Keras model, or anything with an attribute `fingerprint`.

    Returns:
        32 hexadecimal digits.

    Raises:
        ValueError: a callable of which nothing is known.

    Example:
        >>> def model(units):
        ...     return keras.Sequential([keras.Input((2,)), keras.layers.Dense(units, kernel_initializer="ones")])
        >>> fingerprint(model(3)) == fingerprint(model(3)), fingerprint(model(3)) == fingerprint(model(4))
        (True, False)
    """
    given = getattr(teacher, "fingerprint", None)
    if isinstance(given, str):
        return given
    if not isinstance(teacher, keras.Model):
        remedy = "Pass teacher_fingerprint=…, any text that changes whenever the teacher does."
        raise ValueError(complaint("the teacher", "a Keras model, or to have a fingerprint", repr(teacher), remedy))
    digest = hashlib.sha256()
    try:
        config = keras.saving.serialize_keras_object(teacher)
    except NotImplementedError:
        # A subclassed model that cannot be written down is known by its class and its weights.
        config = {"class_name": type(teacher).__name__, "module": type(teacher).__module__}
    digest.update(json.dumps(_nameless(config), sort_keys=True, default=repr).encode())
    for weight in teacher.weights:
        values = np.ascontiguousarray(ops.convert_to_numpy(weight))
        digest.update(f"{values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:32]


def inputs_fingerprint(inputs: Any) -> str:
    """A hash of arrays: their shapes, dtypes, and up to 256 items evenly spaced from the first to the last."""
    digest = hashlib.sha256()
    for array in keras.tree.flatten(inputs):
        digest.update(f"{array.dtype} {array.shape}".encode())
        for position in np.unique(np.linspace(0, len(array) - 1, 256).astype(np.int64)):
            digest.update(np.ascontiguousarray(array[position]).tobytes())
    return digest.hexdigest()[:32]


def _label_shards(
    path: Path,
    manifest: Manifest,
    indices: Sequence[int],
    source: "_Source",
    forward: Callable,
    advance: Callable[[int], None],
) -> None:
    """Runs the teacher and writes the shards."""
    pending: deque[tuple[int, Future]] = deque()
    with _ShardQueue(path, manifest, indices) as shards, ThreadPoolExecutor(_BATCHES_AT_ONCE) as threads:
        for rows, inputs in source.batches(manifest, indices):
            if hasattr(forward, "get_concrete_function"):
                # Traced in this thread, where the caller's device scope holds.
                outputs = threads.submit(forward.get_concrete_function(inputs), inputs)
            else:
                # A teacher of an unknown framework stays in the caller's thread, and in its contexts.
                outputs = Future()
                outputs.set_result(forward(inputs))
            pending.append((len(rows), outputs))
            if len(pending) > _BATCHES_AT_ONCE:
                advance(shards.put(*pending.popleft()))
        while pending:
            advance(shards.put(*pending.popleft()))


def _label_by_engine(
    engine: "Engine | str",
    teacher: Callable,
    source: "_Source",
    path: Path,
    manifest: Manifest,
    indices: Sequence[int],
    options: tuple,
    advance: Callable[[int], None],
) -> None:
    """The same by an engine's workers, a shard a task."""
    from keras_distill.scale.engine import Job, engine_of
    from keras_distill.scale.parcel import sent

    arguments = (sent(teacher), source.inputs, source.batch_size, source.augmentation, path.absolute(), manifest)
    is_first = True
    for index, num_rows in engine_of(engine).run(Job(_open_labeller, (*arguments, options)), indices):
        # Looking costs a listing of the folder: the first shard tells whether the workers see the same one.
        if is_first and index not in labelled_shards(path, manifest):
            remedy = "Name a folder on a disk that all machines share."
            raise OSError(complaint(str(path), "where the workers write", f"no shard {index} after its task", remedy))
        is_first = False
        advance(num_rows)


def _open_labeller(
    teacher: Any, inputs: Any, batch_size: int, augmentation: Any, path: Path, manifest: Manifest, options: tuple
) -> Callable[[int], int]:
    """In a worker: the function that labels shard `index` and returns its number of rows."""
    from keras_distill.scale.parcel import received

    source = _Source((inputs,), None, batch_size, augmentation)
    forward = _forward(received(teacher), *options)

    def work(index: int) -> int:
        _label_shards(path, manifest, [index], source, forward, lambda num_done: None)
        start, stop = manifest.shard_rows(index)
        return stop - start

    return work


def _check_for_engine(source: "_Source", num_workers: int) -> None:
    if num_workers != 1:
        remedy = "An engine knows its own: keras_distill.scale.Processes(num_workers)."
        raise ValueError(complaint("num_workers", "1 with an engine", num_workers, remedy))
    if source.stream is not None:
        remedy = "Give arrays (memory maps of files that all workers see stay there), or use worker and num_workers."
        raise ValueError(complaint("the dataset", "arrays, for an engine", "a tf.data.Dataset", remedy))


class _ShardQueue:
    """Puts shards together from batches; one is hashed and written while the next is computed."""

    def __init__(self, path: Path, manifest: Manifest, indices: Sequence[int]):
        self.path, self.manifest = path, manifest
        self._todo = deque(indices)
        self._writer = ThreadPoolExecutor(1)
        self._written: Future | None = None
        self._shard: np.ndarray | None = None
        self._filled = 0

    def __enter__(self) -> "_ShardQueue":
        return self

    def put(self, num_rows: int, outputs: Future) -> int:
        """Adds a batch's rows once they are there, and returns how many."""
        fields = outputs.result()
        if self._shard is None:
            start, stop = self.manifest.shard_rows(self._todo[0])
            self._shard, self._filled = np.empty(stop - start, self.manifest.row_dtype), 0
        for name in self._shard.dtype.names or ():
            self._shard[name][self._filled : self._filled + num_rows] = fields[name]
        self._filled += num_rows
        if self._filled == len(self._shard):
            _check_finite(self._shard, self.manifest)
            self._wait()
            index = self._todo.popleft()
            self._written = self._writer.submit(write_shard, self.path, self.manifest, index, self._shard)
            self._shard = None
        return num_rows

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            if error is None:
                self._wait()
                if self._todo:
                    expected = f"{self.manifest.num_items} items, as announced"
                    raise ForeignDatasetError(complaint("the dataset", expected, "fewer", "Pass its true num_items."))
        finally:
            self._writer.shutdown()

    def _wait(self) -> None:
        """Until the last shard is on the disk: at most one is held beside that which is being filled."""
        if self._written is not None:
            self._written.result()


class _Source:
    """Batches of inputs by row, out of arrays or out of a stream."""

    def __init__(self, dataset: Any, num_items: int | None, batch_size: int, augmentation: "Augmentation | None"):
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.stream: Any = None
        self.inputs: Any = None
        if _is_stream(dataset):
            if augmentation is not None and augmentation.mixup is not None:
                remedy = "A stream cannot look a partner up by its id."
                raise ValueError(complaint("the dataset", "arrays, for Mixup", "a tf.data.Dataset", remedy))
            self.stream = dataset.map(lambda *parts: parts[0])
            cardinality = int(dataset.cardinality())
            if num_items is None and cardinality < 0:
                remedy = "Pass num_items=…"
                raise ValueError(complaint("the dataset's length", "known", "unknown or infinite", remedy))
            self.num_items = cardinality if num_items is None else check_count("num_items", num_items)
            self.fingerprint = ""
        else:
            inputs = dataset.inputs if hasattr(dataset, "inputs") else dataset
            self.inputs = inputs[0] if isinstance(inputs, tuple) else inputs
            lengths = {len(array) for array in keras.tree.flatten(self.inputs)}
            if len(lengths) != 1:
                raise ValueError(complaint("the inputs", "arrays of one length", sorted(lengths)))
            self.num_items = lengths.pop()
            if num_items not in (None, self.num_items):
                raise ForeignDatasetError(complaint("the dataset", f"{num_items} items", self.num_items))
            if self.num_items:
                self.fingerprint = inputs_fingerprint(self.inputs)
        if not self.num_items:
            raise ValueError(complaint("the dataset", "at least one item", "none"))

    def first_batch(self) -> Any:
        """The first view of the first items."""
        rows = np.arange(min(self.batch_size, self.num_items))
        if self.stream is None:
            return self._of_arrays(rows)
        inputs = next(iter(self.stream.take(self.batch_size).batch(self.batch_size)))
        return self._augmented(inputs, rows)

    def batches(self, manifest: Manifest, indices: Sequence[int]) -> Iterator[tuple[np.ndarray, Any]]:
        """`(rows, inputs)` of the shards at `indices`, in their order, no batch across two shards."""
        if self.stream is not None:
            yield from self._of_stream(manifest, indices)
            return
        for index in indices:
            start, stop = manifest.shard_rows(index)
            for first in range(start, stop, self.batch_size):
                rows = np.arange(first, min(first + self.batch_size, stop))
                yield rows, self._of_arrays(rows)

    def _of_arrays(self, rows: np.ndarray) -> Any:
        ids = rows % self.num_items
        # Neighbours are a slice: no gather, one copy.
        where = slice(ids[0], ids[-1] + 1) if ids[-1] - ids[0] == len(ids) - 1 else ids
        inputs = keras.tree.map_structure(lambda array: array[where], self.inputs)
        return self._augmented(inputs, rows)

    def _of_stream(self, manifest: Manifest, indices: Sequence[int]) -> Iterator[tuple[np.ndarray, Any]]:
        import tensorflow as tf

        wanted = np.zeros(manifest.num_shards, bool)
        wanted[list(indices)] = True
        rows_per_shard = manifest.rows_per_shard
        stream = self.stream.take(self.num_items).repeat(manifest.num_views).enumerate()
        if not wanted.all():
            stream = stream.filter(lambda row, inputs: tf.gather(wanted, row // rows_per_shard))
        # Shards are whole batches, so that batches of the wanted rows never cross from one into another.
        for rows, inputs in stream.batch(self.batch_size).prefetch(tf.data.AUTOTUNE):
            rows = rows.numpy()
            yield rows, self._augmented(inputs, rows)

    def _augmented(self, inputs: Any, rows: np.ndarray) -> Any:
        if self.augmentation is None:
            return keras.tree.map_structure(ops.convert_to_tensor, inputs)
        ids, views = rows % self.num_items, rows // self.num_items
        partners = None
        if self.augmentation.mixup is not None:
            partners = self.inputs[self.augmentation.partners(ids, views, self.num_items).numpy()]
        seen = self.augmentation(inputs, ids, views, partners, self.num_items)
        return seen if keras.config.backend() == "tensorflow" else keras.tree.map_structure(np.asarray, seen)


def _forward(
    teacher: Callable, members: bool, temperature: float | None, top_k: int | None, dtype: str, from_logits: bool
) -> Callable:
    """A function from inputs to the fields of rows, with one trace for all batches."""
    if temperature is not None:
        check_positive("temperature", temperature)
        if members:
            raise ValueError(
                complaint("temperature", "None with members=True", temperature, "Members serve every one.")
            )
    if members and top_k is not None:
        raise ValueError(complaint("top_k", "None with members=True", top_k, "Merge them at a temperature instead."))
    if hasattr(teacher, "soft_targets"):
        run = teacher.soft_targets
    elif isinstance(teacher, keras.Model):
        model = logits_model(teacher, from_logits=from_logits)
        run = lambda inputs: model(inputs, training=False)  # noqa: E731
    else:
        run = teacher if from_logits else lambda inputs: ops.log(ops.maximum(teacher(inputs), 1e-30))

    def rows(given: Any) -> dict[str, Any]:
        if isinstance(given, dict) and not members:
            if temperature is None:
                remedy = "Pass members=True, or the temperature at which to merge them."
                raise ValueError(complaint("an arithmetic ensemble's store", "of members or merged", "neither", remedy))
            each = ops.log_softmax(given["member_logits"] / temperature, axis=-1)
            weights = ops.expand_dims(ops.log(given["member_weights"]), axis=-1)
            given = temperature * ops.logsumexp(each + weights, axis=-2)
        elif members and not isinstance(given, dict):
            remedy = "Only an arithmetic Ensemble has members to keep; a geometric one is right at every temperature."
            raise ValueError(complaint("the teacher", "an arithmetic ensemble, for members=True", "another", remedy))
        elif temperature is not None and not isinstance(given, dict):
            remedy = "Raw logits serve every temperature: leave it out."
            raise ValueError(complaint("temperature", "given for an arithmetic ensemble alone", temperature, remedy))
        if isinstance(given, dict):
            return {**given, "member_logits": ops.cast(given["member_logits"], dtype)}
        logits = ops.cast(given, "float32")
        if top_k is None:
            return {"logits": ops.cast(logits, dtype), "width": ops.shape(logits)[-1]}
        if check_count("top_k", top_k) > logits.shape[-1]:
            raise ValueError(complaint("top_k", f"<= {logits.shape[-1]}, the number of classes", top_k))
        values, ids = ops.top_k(logits, top_k)
        normalizer = ops.logsumexp(logits, axis=-1)
        fields = {"top_k_logits": ops.cast(values, dtype), "top_k_ids": ids, "log_normalizer": normalizer}
        return {**fields, "width": ops.shape(logits)[-1]}

    if isinstance(teacher, keras.Model):
        return compiled(lambda inputs: rows(run(inputs)), teacher)
    compiled_rows = compiled(rows)

    def eagerly(inputs: Any) -> dict[str, Any]:
        # A teacher that is no Keras model may be of any framework: it takes and gives NumPy's arrays.
        given = run(keras.tree.map_structure(np.asarray, inputs))
        return compiled_rows(keras.tree.map_structure(ops.convert_to_tensor, given))

    return eagerly


def _describe(
    outputs: dict[str, np.ndarray], members: bool, temperature: float | None, top_k: int | None, dtype: str
) -> Manifest:
    """The manifest of a first batch's rows, the dataset not yet filled in."""
    if members:
        logits = outputs["member_logits"]
        weights = outputs["member_weights"].reshape(-1, logits.shape[-2])[0]
        return Manifest(
            kind="members",
            num_items=1,
            num_classes=logits.shape[-1],
            example_shape=logits.shape[1:-2],
            dtype=dtype,
            member_weights=tuple(float(weight) for weight in weights),
        )
    first = outputs["logits" if top_k is None else "top_k_logits"]
    if first.ndim < 2:
        raise ValueError(complaint("the teacher's logits", "(batch, …, num_classes)", f"shape {first.shape}"))
    return Manifest(
        kind="dense" if top_k is None else "top_k",
        num_items=1,
        num_classes=int(outputs["width"]),
        example_shape=first.shape[1:-1],
        dtype=dtype,
        top_k=top_k,
        temperature=None if temperature is None else float(temperature),
    )


def _num_views(augmentation: "Augmentation | None", views: int | None) -> int:
    if augmentation is None:
        if views not in (None, 1):
            raise ValueError(complaint("views", "1 without an augmentation", views, "Pass augmentation=…"))
        return 1
    if augmentation.num_views is not None and views not in (None, augmentation.num_views):
        remedy = "An exhaustive augmentation has exactly that many."
        raise ValueError(complaint("views", f"{augmentation.num_views} or None", views, remedy))
    return augmentation.num_views or check_count("views", views or 1)


def _is_stream(dataset: Any) -> bool:
    """Whether it is a `tf.data.Dataset`, of which there is none where nobody imported TensorFlow."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(dataset, tensorflow.data.Dataset)


def _check_finite(shard: np.ndarray, manifest: Manifest) -> None:
    for name in shard.dtype.names or ():
        values = shard[name]
        if name != "top_k_ids" and not np.isfinite(values).all():
            remedy = "Look at the teacher's inputs and weights."
            if np.isinf(values).any() and manifest.dtype == "float16":
                remedy += ' Logits beyond ±65504 need dtype="float32".'
            num_bad = int(np.size(values) - np.count_nonzero(np.isfinite(values)))
            raise ValueError(complaint("the teacher's logits", "finite", f"{num_bad} NaN or infinite values", remedy))


def _check_room(path: Path, manifest: Manifest, missing: Sequence[int]) -> None:
    needed = len(missing) * manifest.rows_per_shard * manifest.bytes_per_row
    free = shutil.disk_usage(path).free
    if needed > free:
        remedy = "Free some, keep fewer logits (top_k), or name a folder on another disk."
        message = complaint("the disk", f"able to hold {needed / 1e6:,.0f} MB more", f"{free / 1e6:,.0f} MB", remedy)
        raise OSError(errno.ENOSPC, message, str(path))


@contextmanager
def _progress_bar(
    path: Path, manifest: Manifest, num_rows: int, progress: bool | None
) -> Iterator[Callable[[int], None]]:
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda num_done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    size = f"{manifest.num_rows:,} rows × {manifest.bytes_per_row:,} bytes = {manifest.num_bytes / 1e6:,.1f} MB"
    there = manifest.num_rows - num_rows
    console.print(
        f"{path}: {size} in {manifest.num_shards} shards" + (f"; {there:,} rows need no work" if there else "")
    )
    rate = TextColumn("{task.fields[rate]} items/s")
    columns = ("labelling", BarColumn(), TaskProgressColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("labelling", total=num_rows, rate="…")

        def advance(num_done: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=num_done, rate=f"{speed:,.0f}" if speed else "…")

        yield advance


def _nameless(config: Any) -> Any:
    """`config` without the names of layers: Keras numbers them by how many were made before."""
    names: dict[str, str] = {}

    def collect(part: Any) -> None:
        if isinstance(part, dict):
            if isinstance(part.get("name"), str):
                names.setdefault(part["name"], f"name {len(names)}")
            for value in part.values():
                collect(value)
        elif isinstance(part, (list, tuple)):
            for value in part:
                collect(value)

    def rename(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: rename(value) for key, value in part.items() if key != "compile_config"}
        if isinstance(part, (list, tuple)):
            return [rename(value) for value in part]
        return names.get(part, part) if isinstance(part, str) else part

    collect(config)
    return rename(config)
