"""Teacher + dataset → store: one forward pass of the teacher for every item, written down for good.

The format is in `store.py`, writing it in `shards.py`; how a temperature is applied, in `keras_distill.losses`.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_distill._checks import check_choice, check_count, error_message
from keras_distill._files import folder_aside
from keras_distill._progress import progress_bar
from keras_distill._types import ArrayLike, Data, Teacher, TensorTree
from keras_distill.models.strings import holds_strings, preprocess_strings, refuse_string_stream
from keras_distill.targets.calibration import calibration_examples, calibration_temperature
from keras_distill.targets.manifest import ForeignDatasetError, Manifest
from keras_distill.targets.plan import plan
from keras_distill.targets.runtime import RUNTIMES, Runtimes
from keras_distill.targets.shard_queue import ShardQueue
from keras_distill.targets.shards import begun, check_room, check_version, create, finish, missing_shards, withdraw
from keras_distill.targets.source import ArraySource, Source, gives_batches, is_stream, open_source
from keras_distill.targets.store import SoftTargetStore
from keras_distill.targets.teacher_rows import RowOptions, row_function
from keras_distill.targets.token_source import TokenSource
from keras_distill.targets.tokens import TOKEN

if TYPE_CHECKING:
    from keras_distill.scale import Engine
    from keras_distill.targets.augmentation import Augmentation
    from keras_distill.targets.out_of_fold import MakeTeacher

# One batch's matrices fill the cores where the other's leave them idle.
_BATCHES_AT_ONCE = 3
# What of `label` is no option of a fold's own store.
_OF_FOLDS = ("folds", "make_teacher", "groups", "fold_seed")


def label(
    teacher: Teacher | None,
    dataset: Data,
    path: str | os.PathLike,
    *,
    mask: str | ArrayLike | None = None,
    top_k: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    dtype: str = "float16",
    augmentation: "Augmentation | None" = None,
    views: int | None = None,
    members: bool = False,
    temperature: float | None = None,
    calibrate: Data | bool | None = None,
    batch_size: int = 256,
    rows_per_shard: int | None = None,
    from_logits: bool = True,
    teacher_fingerprint: str | None = None,
    id_scheme: str = "position",
    num_items: int | None = None,
    process: int = 0,
    num_processes: int = 1,
    engine: "Engine | str | None" = None,
    runtime: str = "keras",
    folds: int | None = None,
    make_teacher: "MakeTeacher | None" = None,
    groups: ArrayLike | None = None,
    fold_seed: int = 0,
    progress: bool | None = None,
) -> SoftTargetStore | None:
    """Runs the teacher over a dataset once and stores its logits; training then reads them in its place.

    A run that was killed goes on where it stopped when called again with the same arguments: whole shards stay, the
    first missing one is the next. Several processes may share the work: each takes every `num_processes`-th shard.

    With `folds` the targets are out of fold: the items are dealt into so many folds by `assign_folds`, and of each item
    that teacher answers which was trained on the other folds. `make_teacher(inputs, labels, fold)` gets the items of
    those, as arrays in the order of the dataset, and the number of the fold that it may not see, from 0; it returns a
    teacher of any kind. It should draw every random number from a seed of its own, `fold` for one: a run that was
    killed goes on at the first fold that is not labelled whole. The `teacher_fingerprint` of such a store is that of
    all its teachers together; what is compared when a run goes on are the data, the labels, who is in which fold and
    the name of `make_teacher`, not what it does: name its version with `teacher_fingerprint`.

    Args:
        teacher: a Keras model with any head, an `Ensemble`, or any callable from a batch of inputs to logits; `None`
            with `folds`.
        dataset: the inputs as an array (or a structure of arrays), a table, or texts where the teacher has a
            preprocessor (see `models.preprocess_strings`) or an input of dtype string, a `Split`, `(inputs, labels)`;
            or a `tf.data.Dataset` of `x` or `(x, …)`, of single examples or, where the teacher is a Keras model and its
            inputs tell, of batches; or batches as `fit` takes them, in a `PyDataset`, a generator or another iterable.
            In a fixed order: an item's id is its place.
        path: the store's folder; new, or one that an earlier call began.
        mask: of sequences, which tokens are no padding: the name of an input, or an array `(num_sequences, tokens)`. Of
            the teacher's logits `(batch, tokens, num_classes)` those of such tokens alone are stored; arrays only.
        top_k: how many of the largest logits to keep of each row; `None` keeps all.
        sample: how many classes to draw of each row, at most 255, so that the rows are all of the teacher's classes in
            expectation; see `store`. They are right at one `temperature` only.
        seed: of what is drawn. A row follows from it, the item's id and the view alone.
        dtype: of the logits on disk, `"float16"` or `"float32"`.
        augmentation: what makes views of an item; the manifest keeps it, and `attach` replays it.
        views: how many views of each item to label; `None` is all that the augmentation has, or 1.
        members: keep the logits of each member of an arithmetic ensemble, so that every temperature can be asked for.
        temperature: merge the members of an arithmetic ensemble at this temperature, into rows of a single teacher's
            size, right at this temperature only. With `sample`, the temperature at which classes are drawn, 1 where it
            is `None`: that of the loss that will read them.
        calibrate: labelled examples that the teacher was not trained on, a `Split` or `(inputs, labels)`: the teacher's
            logits are divided by the temperature that makes it as sure as it is right on them (see
            `calibration_temperature`), and its fingerprint says so. `True` takes the dataset's own
            labels; with folds, those of the fold that the teacher answers for.
        batch_size: items a forward pass; with a mask, sequences.
        rows_per_shard: rows a shard, a multiple of `batch_size`; `None` makes about 64 shards.
        from_logits: what a teacher gives whose head cannot be found: logits, or (`False`) probabilities. The first
            batch shows whether it does.
        teacher_fingerprint: names the teacher; `None` computes `fingerprint(teacher)`.
        id_scheme: what an id means, for whoever opens the store.
        num_items: how many items there are, where the dataset does not know it: a generator, a filtered stream.
        process: which of the processes this one is, in [0, num_processes).
        num_processes: how many processes label this store.
        engine: who labels: `None` this process, `"local"` or `"ray"` or an engine of `keras_distill.scale` its workers,
            a shard a task. The store is the same; with engines past this machine `path` is on a disk that all share.
        runtime: what runs a Keras model: `"keras"` its own backend; `"onnxruntime"`; or `"auto"`, on a processor
            whichever of the two is faster on the first batches. It is converted for that, as `deploy.to_onnx` does, and
            must answer as `deploy.verify` asks. `"auto"` waits for that a tenth as long as labelling would take, at
            most. A store is answered by one runtime: it is chosen before the first shard, the manifest says which.
        folds: how many folds, of which each is labelled by a teacher that was trained on the others; needs labels.
        make_teacher: with folds, what trains those teachers.
        groups: with folds, what an item belongs to that must not be split, `(num_items,)`: a speaker, a patient.
        fold_seed: of the dealing.
        progress: show a progress bar; `None` does where standard error is a terminal.

    Returns:
        The store, or `None` while other processes are still at work.

    Raises:
        StaleTeacherError, ForeignDatasetError, StoreError: `path` holds something else.
        ForeignDatasetError: the dataset is a stream that gives other items when it is gone through again.
        ValueError: a teacher of several outputs; settings that contradict each other; logits that are not finite (in
            `dtype`); probabilities where logits were promised, or the other way round.
        OSError: the disk is full; nothing half-written is left, and a later call goes on.

    Example:
        >>> import tempfile
        >>> import keras
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        >>> store = label(teacher, np.zeros((10, 4), "float32"), tempfile.mkdtemp() + "/targets")
        >>> store.read([0, 9]).shape
        (2, 3)
    """
    seed = check_count("seed", seed, 0)
    # Before any other name: each fold's store is labelled with the same options.
    given = dict(locals())
    path = Path(path)
    check_choice("runtime", runtime, RUNTIMES)
    if folds is not None:
        from keras_distill.targets.out_of_fold import label_out_of_fold

        _check_teacher_of_folds(teacher, runtime)
        # The folds' plan is written in JSON, which knows none of NumPy's numbers.
        given = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
        of_each = {name: given[name] for name in given.keys() - {"teacher", "dataset", "path", *_OF_FOLDS}}
        return label_out_of_fold(
            make_teacher, dataset, path, check_count("folds", folds, 2), groups=groups, seed=fold_seed, options=of_each
        )
    _check_without_folds(teacher, make_teacher=make_teacher, groups=groups)
    assert teacher is not None  # it was checked
    num_views = num_views_of(augmentation, views)
    divisor = 1.0
    if (examples := calibration_examples(calibrate, dataset)) is not None:
        divisor = calibration_temperature(teacher, examples, batch_size=batch_size, from_logits=from_logits)
    dataset = _without_strings(teacher, dataset)
    num_axes = sum(len(tensor.shape) for tensor in getattr(teacher, "inputs", None) or []) or None
    if mask is None:
        source = open_source(dataset, num_items, batch_size, augmentation, num_views=num_views, num_axes=num_axes)
    else:
        source = _open_tokens(dataset, mask, batch_size, augmentation, num_items, id_scheme)
        id_scheme = TOKEN
    if not 0 <= check_count("process", process, 0) < check_count("num_processes", num_processes):
        raise ValueError(error_message(f"process must be in [0, num_processes = {num_processes})", process))
    if engine is not None:
        _check_for_engine(source, num_processes, runtime)
    options = RowOptions(
        members=members,
        temperature=temperature,
        top_k=top_k,
        dtype=dtype,
        from_logits=from_logits,
        divisor=divisor,
        sample=sample,
    )
    planned = plan(
        teacher,
        source,
        options,
        augmentation=augmentation,
        num_views=num_views,
        teacher_fingerprint=teacher_fingerprint,
        id_scheme=id_scheme,
        seed=seed,
        rows_per_shard=rows_per_shard,
    )
    manifest, forward = planned.manifest, planned.forward
    runtimes = Runtimes(runtime, teacher, from_logits)
    if runtime != "keras":
        batches = _first_batches(source, manifest, planned.first_batch)
        num_batches = -(-manifest.num_rows // batch_size)
        manifest = replace(manifest, runtime=runtimes.choose(begun(path), forward, batches, num_batches, options))
    # Of several processes that choose at once, the one that begins the store has the say.
    manifest = create(path, manifest, adopted=("runtime",) if runtime == "auto" else ())

    missing = missing_shards(path, manifest, range(process, manifest.num_shards, num_processes))
    if missing:
        check_version(path, manifest)
    if missing and runtime != "keras":
        forward = runtimes.forward_of(manifest.runtime, forward, batches, options)
    check_room(path, manifest, missing)
    num_rows = sum(stop - start for start, stop in map(manifest.shard_rows, missing))
    size = f"{manifest.num_rows:,} rows × {manifest.bytes_per_row:,} bytes = {manifest.num_bytes / 1e6:,.1f} MB"
    headline = f"{path}: {size} in {manifest.num_shards} shards"
    if num_rows < manifest.num_rows:
        headline += f"; {manifest.num_rows - num_rows:,} rows need no work"
    if runtimes.note:
        headline += f"\n{runtimes.note}"
    with progress_bar("labelling", num_rows, progress, unit="items", headline=headline) as advance:
        if engine is None:
            try:
                _label_shards(path, manifest, missing, source, forward, advance)
            except ForeignDatasetError:
                # A stream that was refused leaves its folder to the one that takes its place.
                withdraw(path, manifest)
                raise
        else:
            _label_by_engine(engine, teacher, source, path, manifest, missing, options, advance)
    return SoftTargetStore.open(path, verify=False) if finish(path, manifest) else None


def _label_shards(
    path: Path,
    manifest: Manifest,
    indices: Sequence[int],
    source: "Source",
    forward: Callable,
    advance: Callable[[int], None],
    within: Path | None = None,
) -> None:
    """Runs the teacher and writes the shards, each `within` a folder until it is whole."""
    pending: deque[tuple[np.ndarray, Future, np.ndarray, np.ndarray | None]] = deque()
    with ShardQueue(path, manifest, indices, within) as shards, ThreadPoolExecutor(_BATCHES_AT_ONCE) as threads:
        for batch in source.batches(manifest, indices):
            rows, inputs = batch.rows, batch.inputs
            if hasattr(forward, "get_concrete_function"):
                # Traced in this thread, where the caller's device scope holds.
                outputs = threads.submit(forward.get_concrete_function(inputs), inputs)
            else:
                # A teacher of an unknown framework stays in the caller's thread, and in its contexts.
                outputs = Future()
                outputs.set_result(forward(inputs))
            # While the teacher is at work.
            marked = manifest.marked_rows(int(rows[0]) // manifest.rows_per_shard)
            marked = marked[(marked >= rows[0]) & (marked <= rows[-1])]
            pending.append((rows, outputs, source.marks(batch, marked), batch.places))
            if len(pending) > _BATCHES_AT_ONCE:
                advance(shards.put(*pending.popleft()))
        while pending:
            advance(shards.put(*pending.popleft()))


def _label_by_engine(
    engine: "Engine | str",
    teacher: Callable,
    source: "Source",
    path: Path,
    manifest: Manifest,
    indices: Sequence[int],
    options: RowOptions,
    advance: Callable[[int], None],
) -> None:
    """The same by an engine's workers, a shard a task."""
    from keras_distill.scale.engine import Job
    from keras_distill.scale.engines import engine_of
    from keras_distill.scale.serialization import serialize

    path = path.absolute()
    inputs = source.inputs, source.mask
    arguments = (serialize(teacher), inputs, source.batch_size, source.augmentation, path, manifest, options)
    # An error in one worker ends the others in the midst of their work, and what they began goes with this folder.
    with folder_aside(path / "shards") as aside:
        for _, num_rows in engine_of(engine).run(Job(_open_labeller, (*arguments, aside)), indices):
            advance(num_rows)


def _open_labeller(
    teacher: Teacher,
    inputs: tuple[TensorTree, np.ndarray | None],
    batch_size: int,
    augmentation: "Augmentation | None",
    path: Path,
    manifest: Manifest,
    options: RowOptions,
    within: Path,
) -> Callable[[int], int]:
    """In a worker: the function that labels shard `index` and returns its number of rows."""
    from keras_distill.scale.serialization import deserialize

    arrays, mask = inputs
    source = ArraySource((arrays,), None, batch_size, augmentation)
    if mask is not None:
        source = TokenSource((arrays,), mask, batch_size)
    forward = row_function(deserialize(teacher), source.first_batch(), options)

    def work(index: int) -> int:
        _label_shards(path, manifest, [index], source, forward, lambda num_done: None, within)
        start, stop = manifest.shard_rows(index)
        return stop - start

    return work


def _open_tokens(
    dataset: Data,
    mask: str | ArrayLike,
    batch_size: int,
    augmentation: "Augmentation | None",
    num_items: int | None,
    id_scheme: str,
) -> TokenSource:
    """The source of a store of tokens."""
    options: dict[str, Any] = {"augmentation": augmentation, "num_items": num_items}
    options["id_scheme"] = None if id_scheme == "position" else id_scheme
    for name, value in options.items():
        if value is not None:
            raise ValueError(
                error_message(f"{name} must be left out with a mask", repr(value), "Items are tokens then.")
            )
    if is_stream(dataset) or gives_batches(dataset):
        remedy = "Give arrays, memory maps too; a stream is labelled with its padding, without a mask."
        raise ValueError(error_message("a mask needs a dataset of arrays", f"a {type(dataset).__name__}", remedy))
    return TokenSource(dataset, mask, batch_size)


def _first_batches(source: "Source", manifest: Manifest, first_batch: TensorTree) -> list[TensorTree]:
    """What runtimes are compared on: the first batch, and more where looking ahead takes nothing away."""
    if source.inputs is None:
        return [first_batch]
    return [batch.inputs for batch in islice(source.batches(manifest, range(manifest.num_shards)), _BATCHES_AT_ONCE)]


def _check_teacher_of_folds(teacher: object, runtime: str) -> None:
    if teacher is not None:
        remedy = "It has seen every item, perhaps; make_teacher makes those that have not."
        raise ValueError(error_message("the teacher must be None with folds", f"{teacher!r:.80}", remedy))
    if runtime != "keras":
        remedy = "Training the teachers is what takes the time."
        raise ValueError(error_message("runtime must be 'keras' with folds", repr(runtime), remedy))


def _check_without_folds(teacher: object, **of_folds: object) -> None:
    if teacher is None:
        remedy = "Pass one, or folds=5 and make_teacher=…"
        raise ValueError(error_message("the teacher must be a model or a function without folds", None, remedy))
    for name, value in of_folds.items():
        if value is not None:
            raise ValueError(error_message(f"{name} must be left out without folds", f"{value!r:.80}", "Pass folds=5."))


def _check_for_engine(source: "Source", num_processes: int, runtime: str) -> None:
    if runtime != "keras":
        remedy = "Its workers run the teacher itself."
        raise ValueError(error_message("runtime must be 'keras' with an engine", repr(runtime), remedy))
    if num_processes != 1:
        remedy = "An engine knows its own: keras_distill.scale.Processes(num_workers)."
        raise ValueError(error_message("num_processes must be 1 with an engine", num_processes, remedy))
    if source.inputs is None:
        remedy = "Give arrays (memory maps of files that all workers see stay there), or use process and num_processes."
        raise ValueError(error_message("an engine needs a dataset of arrays", "a stream", remedy))


def _without_strings(teacher: Teacher, dataset: Data) -> Data:
    """The dataset, its texts made what the teacher reads."""
    refuse_string_stream(dataset, teacher)
    inputs = dataset[0] if isinstance(dataset, tuple) and len(dataset) else dataset
    return preprocess_strings(inputs, teacher) if holds_strings(inputs) else dataset


def num_views_of(augmentation: "Augmentation | None", views: int | None) -> int:
    """How many views of an item are labelled, of those that an augmentation has."""
    if isinstance(augmentation, keras.layers.Layer):
        name = type(augmentation).__name__
        remedy = f"Wrap it: Augmentation(keras.layers.{name}(…))."
        raise TypeError(error_message("augmentation must be an Augmentation", f"the layer {name}", remedy))
    if augmentation is None:
        if views not in (None, 1):
            raise ValueError(error_message("views must be 1 without an augmentation", views, "Pass augmentation=…"))
        return 1
    if augmentation.num_views is not None and views not in (None, augmentation.num_views):
        remedy = "An exhaustive augmentation has exactly that many."
        raise ValueError(error_message(f"views must be {augmentation.num_views} or None", views, remedy))
    return augmentation.num_views or check_count("views", views or 1)
