"""Store + dataset → batches with their soft targets, joined by item id: `attach`.

Shuffling moves ids, not rows: ids are shuffled, batched, and then gathered, so that any order, any part
and any repetition of a dataset meets its own targets. Where the store holds views, the augmentation in its
manifest is replayed, and the student sees what the teacher saw.
"""

import os
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill._checks import check_count, error_message
from keras_distill._types import ArrayLike, Data, Teacher, TensorTree
from keras_distill.targets.arrays import check_scheme, checked_arrays, labels_to_blend
from keras_distill.targets.augmentation import Augmentation
from keras_distill.targets.growing import GrowingStore, opened
from keras_distill.targets.hashes import hashes, modulo
from keras_distill.targets.known_items import KnownItems
from keras_distill.targets.labelled_batches import LabelledBatches, check_has_ids, is_py_dataset
from keras_distill.targets.manifest import Manifest
from keras_distill.targets.replaying import replay_of
from keras_distill.targets.store import SoftTargetStore

# Sixteen batches a read: a call into Python costs more than the rows of one small batch.
_BATCHES_A_BLOCK, _BYTES_A_BLOCK = 16, 8 << 20


def attach(
    dataset: Data,
    store: SoftTargetStore | str | os.PathLike,
    *,
    teacher: Teacher | None = None,
    batch_size: int = 128,
    shuffle: bool = True,
    seed: int = 0,
    ids: ArrayLike | None = None,
    mask: str | ArrayLike | None = None,
    drop_remainder: bool = False,
    check_items: bool = True,
    **labelling: Any,
) -> "tf.data.Dataset | LabelledBatches":
    """A pipeline for `Distiller(teacher=None, …).fit`: inputs, labels and the stored soft targets.

    It brings its own order: `fit(attach(…), shuffle=False)` keeps Keras from warning that it will not shuffle it.

    Args:
        dataset: in memory: a `Split`, `(inputs, labels)`, `(inputs, labels, sample_weight)`, or inputs alone. Each
            epoch has its own order, and memory does not grow with the number of items beyond the arrays themselves.
            A stream: a `tf.data.Dataset` of `(id, (x, y))`, `(id, (x, y, sample_weight))` or `(id, x)`, as
            `enumerate` makes them, then shuffled, filtered and batched as you like (in any case batched, where the
            store holds views). A `keras.utils.PyDataset`, in the order and of the batches that were labelled; it comes
            back as one, which `fit` may shuffle.
        store: an open store or its folder (which is then verified).
        teacher: labels each view when training first asks for it, once, in the background, into the folder `store`;
            arrays only, the whole of them. A run that was killed goes on with what was kept, and once every view
            was asked for, the store is one like any other.
        batch_size: items a batch; arrays only, a stream brings its own batches.
        shuffle: whether arrays are gone through in a new order every epoch.
        seed: of the order, and of the choice of views, whatever TensorFlow's own seed is.
        ids: the ids of the arrays' items where they are part of what was labelled, or in another order; integers
            `(num_items,)`.
        mask: of a store of tokens, as it was labelled with; arrays only. Targets are `(batch, tokens, …)` then, and
            weights `(batch, tokens)`, 0 at padding, times those that the dataset brings.
        drop_remainder: whether a last, smaller batch is left out; arrays only.
        check_items: whether items are compared with those that were labelled under their ids: arrays at once, of a
            stream those that the store knows, as they come by. `False` for a student that sees other inputs than its
            teacher saw, say smaller images.
        **labelling: with a teacher, the arguments of `label` that say what is kept: `augmentation`, `views`, `top_k`,
            `dtype`, `members`, `temperature`, `from_logits`, `teacher_fingerprint`.

    Returns:
        A dataset of `(x, {"labels": y, "soft_targets": t})` or `(x, {…}, sample_weight)`; without labels, no
        `"labels"`. `t` is what the losses take. With `MixUp` or `CutMix`, labels are probabilities `(batch,
        num_classes)`.

    Raises:
        ForeignDatasetError: the arrays are not what was labelled.
        StoreError: the store cannot be used, by name.

    Example:
        >>> import tempfile
        >>> from keras_distill.targets.labelling import label
        >>> x, y = np.eye(4, dtype="float32"), np.arange(4)
        >>> store = label(lambda x: x * 5, x, tempfile.mkdtemp() + "/targets", teacher_fingerprint="five times")
        >>> batches = attach((x, y), store, batch_size=2)
        >>> all(np.array_equal(5 * x, y["soft_targets"]) for x, y in batches)
        True
    """
    store = opened(dataset, store, teacher, labelling, {"ids": ids, "mask": mask})
    if is_py_dataset(dataset) or isinstance(dataset, tf.data.Dataset):
        check_scheme(store, None)
    if is_py_dataset(dataset):
        return LabelledBatches(dataset, store, seed=seed, check_items=check_items)
    if isinstance(dataset, tf.data.Dataset):
        replay = replay_of(store, "A stream cannot look a partner up by its id: give arrays.")
        joined = _of_stream(dataset, store, replay, seed, check_items)
    else:
        check_has_ids(dataset)
        looked_up = "Its partners are looked up in the whole dataset: give all of it, without ids."
        replay = replay_of(store, "" if ids is None else looked_up)
        arrays, num_items, ids = checked_arrays(dataset, store, ids, check_items, mask)
        check_count("batch_size", batch_size)
        if replay is not None and replay.pairs_items and "labels" in arrays:
            arrays["labels"] = labels_to_blend(arrays["labels"], store.manifest.num_classes)
        joined = _of_arrays(arrays, num_items, store, replay, batch_size, shuffle, seed, ids, drop_remainder)
    return joined.prefetch(tf.data.AUTOTUNE)


def _of_arrays(
    arrays: dict[str, TensorTree],
    num_items: int,
    store: SoftTargetStore,
    replay: Augmentation | None,
    batch_size: int,
    shuffle: bool,
    seed: int,
    ids: np.ndarray | None,
    drop_remainder: bool,
) -> tf.data.Dataset:
    manifest = store.manifest
    num_batches = num_items // batch_size if drop_remainder else -(-num_items // batch_size)
    columns = _Columns(arrays)
    targets = _Targets(store)
    # One call into Python fetches the targets of many batches; inputs are gathered batch by batch.
    rows_a_batch = batch_size * (1 if ids is None else int(np.prod(ids.shape[1:])))
    batches_a_block = min(_BATCHES_A_BLOCK, max(1, _BYTES_A_BLOCK // (rows_a_batch * manifest.bytes_per_row)))
    block_size = batches_a_block * batch_size
    num_taken = min(num_items, num_batches * batch_size)
    grows = isinstance(store, GrowingStore)

    def block(number: tf.Tensor, salt: tf.Tensor) -> tuple:
        positions = tf.range(number * block_size, tf.minimum((number + 1) * block_size, num_taken))
        if shuffle:
            # A keyed permutation of [0, num_items): a shuffle of any length in no memory.
            high = tf.bitwise.right_shift(salt, tf.constant(32, tf.int64))
            key = tf.cast(tf.stack([salt, high, seed]) & 0xFFFFFFFF, tf.uint32)
            positions = tf.raw_ops.RandomIndexShuffle(
                index=positions, seed=key, max_index=tf.constant(num_items - 1, tf.int64), rounds=4
            )
        which = positions if ids is None else tf.cast(tf.gather(ids, positions), tf.int64)
        views = targets.views(which, salt)
        if grows:
            return positions, which, views, *targets.as_far_as_there(which, views)
        read = targets.read(which, views)
        # Without an augmentation nobody asks again which items these are.
        return (positions, read) if replay is None else (positions, read, which, views)

    num_blocks = -(-num_batches // batches_a_block)
    salts = _salts(seed).take(1).map(lambda salt: tf.repeat(salt, num_blocks)).unbatch()
    blocks = tf.data.Dataset.zip(tf.data.Dataset.range(num_blocks), salts).map(block)
    # Blocks are whole batches, the last one maybe not: this cuts them up and puts nothing together.

    def of_known(positions: tf.Tensor, read: TensorTree, *which: tf.Tensor) -> tuple:
        return _element(_seen(columns, replay, manifest, positions, *which), read)

    def of_growing(
        positions: tf.Tensor, ids: tf.Tensor, views: tf.Tensor, is_there: tf.Tensor, read: TensorTree
    ) -> tuple:
        # What is asked for now may not be there yet: the teacher wants the batch as the student sees it.
        arrays = _seen(columns, replay, manifest, positions, ids, views)
        return _element(arrays, targets.labelled(ids, views, arrays["inputs"], is_there, read))

    joined = blocks.rebatch(batch_size, drop_remainder).map(of_growing if grows else of_known)
    return joined.apply(tf.data.experimental.assert_cardinality(num_batches))


def _seen(
    columns: "_Columns",
    replay: Augmentation | None,
    manifest: Manifest,
    positions: tf.Tensor,
    ids: tf.Tensor | None = None,
    views: tf.Tensor | None = None,
) -> dict[str, TensorTree]:
    """A batch of the arrays, augmented as the teacher saw it."""
    arrays = columns.take(positions)
    if replay is None:
        return arrays
    if not replay.pairs_items:
        arrays["inputs"] = replay(arrays["inputs"], ids, views)
        return arrays
    # The arrays are the whole dataset: a partner's place is its id.
    beside = columns.take(replay.partners(ids, views, manifest.num_items))
    parts = arrays["inputs"], ids, views, beside["inputs"], manifest.num_items
    if "labels" not in arrays:
        arrays["inputs"] = replay(*parts)
    else:
        shares = [
            each["labels"] if each["labels"].shape.rank == 2 else tf.one_hot(each["labels"], manifest.num_classes)
            for each in (arrays, beside)
        ]
        arrays["inputs"], arrays["labels"] = replay.with_labels(*parts, *shares)
    return arrays


def _of_stream(
    dataset: tf.data.Dataset, store: SoftTargetStore, replay: Augmentation | None, seed: int, check_items: bool
) -> tf.data.Dataset:
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or not getattr(spec[0], "dtype", tf.float32).is_integer:
        remedy = "Put the ids there before shuffling: dataset.enumerate()."
        raise ValueError(error_message("the dataset's elements must be (id, (x, y)) or (id, x)", spec, remedy))
    if replay is not None and spec[0].shape.rank == 0:
        remedy = "Batch it first: dataset.batch(128)."
        raise ValueError(error_message("a stream must come in batches where its store holds views", "items", remedy))
    targets = _Targets(store, KnownItems(store) if check_items else None)

    def join(element: TensorTree, salt: tf.Tensor) -> tuple:
        ids, parts = element
        parts = parts if isinstance(parts, tuple) else (parts,)
        ids = tf.cast(ids, tf.int64)
        views = targets.views(ids, salt)
        arrays = dict(zip(("inputs", "labels", "sample_weight"), parts, strict=False))
        soft_targets = targets.read(ids, views, arrays["inputs"])
        if replay is not None:
            arrays["inputs"] = replay(arrays["inputs"], ids, views)
        return _element(arrays, soft_targets)

    joined = tf.data.Dataset.zip(dataset, _salts(seed)).map(join)
    cardinality = dataset.cardinality()
    return joined if cardinality < 0 else joined.apply(tf.data.experimental.assert_cardinality(cardinality))


class _Columns:
    """The arrays of a dataset, gathered by position: in TensorFlow, or where they lie on disk in NumPy."""

    def __init__(self, arrays: dict[str, TensorTree]):
        self.structure = arrays
        self.flat = tf.nest.flatten(arrays)
        with tf.device("cpu"):
            self.in_memory = [None if isinstance(array, np.memmap) else tf.constant(array) for array in self.flat]

    def take(self, positions: tf.Tensor) -> dict[str, TensorTree]:
        """The items at `positions`."""
        found = []
        for array, tensor in zip(self.flat, self.in_memory, strict=True):
            if tensor is None:
                values = tf.numpy_function(lambda rows, array=array: array[rows], [positions], array.dtype)
                values.set_shape([None, *array.shape[1:]])
            else:
                values = tf.gather(tensor, positions)
            found.append(values)
        return tf.nest.pack_sequence_as(self.structure, found)


class _Targets:
    """A store as operations of a graph, and the check that items are those it knows."""

    def __init__(self, store: SoftTargetStore, known_items: KnownItems | None = None):
        self.store = store
        self.known_items = known_items
        # One read tells the fields, their shapes and dtypes.
        self.example = store.example() if isinstance(store, GrowingStore) else store.read(np.zeros((1,), np.int64))

    def views(self, ids: tf.Tensor, salt: tf.Tensor) -> tf.Tensor:
        """Which view of each item this epoch has, int64."""
        num_views = self.store.manifest.num_views
        if num_views == 1:
            return tf.zeros_like(ids)
        flat = tf.reshape(ids, [-1])
        drawn = hashes(salt, flat, tf.zeros_like(flat), 1)[:, 0]
        return tf.reshape(modulo(drawn, num_views), tf.shape(ids))

    def read(self, ids: tf.Tensor, views: tf.Tensor, inputs: TensorTree = None) -> TensorTree:
        """The stored targets, `(*ids.shape, …)`; `inputs` are compared with those that were labelled."""
        examples = tf.nest.flatten(self.example)
        checked = [] if self.known_items is None or inputs is None else self._known(ids, inputs)

        @tf.autograph.experimental.do_not_convert
        def read(ids: np.ndarray, views: np.ndarray, *checked: np.ndarray) -> list[np.ndarray]:
            found = tf.nest.flatten(self.store.read(ids, views))
            if checked and self.known_items is not None:
                self.known_items.check(checked[0], list(checked[1:]))
            return found

        values = tf.numpy_function(read, [ids, views, *checked], [example.dtype for example in examples])
        for value, example in zip(values, examples, strict=True):
            value.set_shape(ids.shape.concatenate(example.shape[1:]))
        return tf.nest.pack_sequence_as(self.example, values)

    def as_far_as_there(self, ids: tf.Tensor, views: tf.Tensor) -> tuple[tf.Tensor, TensorTree]:
        """Of a store that grows which of some rows it has, bool, and their targets, zeros for the others."""
        store, examples = self.store, tf.nest.flatten(self.example)
        assert isinstance(store, GrowingStore)  # attach saw to it

        @tf.autograph.experimental.do_not_convert
        def read(ids: np.ndarray, views: np.ndarray) -> list[np.ndarray]:
            is_there = store.has(ids, views)
            if is_there.all():
                return [is_there, *tf.nest.flatten(store.read(ids, views))]
            found = [np.zeros((*ids.shape, *each.shape[1:]), each.dtype) for each in examples]
            for values, known in zip(found, tf.nest.flatten(store.read(ids[is_there], views[is_there])), strict=True):
                values[is_there] = known
            return [is_there, *found]

        is_there, *values = tf.numpy_function(read, [ids, views], [tf.bool, *(example.dtype for example in examples)])
        is_there.set_shape(ids.shape)
        for value, example in zip(values, examples, strict=True):
            value.set_shape(ids.shape.concatenate(example.shape[1:]))
        return is_there, tf.nest.pack_sequence_as(self.example, values)

    def labelled(
        self, ids: tf.Tensor, views: tf.Tensor, inputs: TensorTree, is_there: tf.Tensor, read: TensorTree
    ) -> TensorTree:
        """The targets of a store that grows, labelled first where they are not there yet.

        `is_there` and `read` are a batch of what `as_far_as_there` gave.
        """
        store, examples = self.store, tf.nest.flatten(self.example)
        assert isinstance(store, GrowingStore)  # attach saw to it
        dtypes = [example.dtype for example in examples]

        @tf.autograph.experimental.do_not_convert
        def keep(ids: np.ndarray, views: np.ndarray, missing: np.ndarray, *fields: np.ndarray) -> list[np.ndarray]:
            store.keep(ids[missing], views[missing], dict(zip(names, fields, strict=True)))
            return tf.nest.flatten(store.read(ids, views))

        @tf.autograph.experimental.do_not_convert
        def make() -> list[tf.Tensor]:
            # An item comes once an epoch: nobody has asked for these rows since.
            missing = tf.where(tf.logical_not(is_there))[:, 0]
            seen = tf.nest.map_structure(lambda part: tf.gather(part, missing), inputs)
            # In the graph: a call of TensorFlow's out of Python would wait for the thread that waits for it.
            fields = store.fields_of(seen)
            return tf.numpy_function(keep, [ids, views, missing, *(fields[name] for name in names)], dtypes)

        names = store.manifest.row_dtype.names or ()
        values = tf.cond(tf.reduce_all(is_there), lambda: tf.nest.flatten(read), make)
        for value, example in zip(values, examples, strict=True):
            value.set_shape(ids.shape.concatenate(example.shape[1:]))
        return tf.nest.pack_sequence_as(self.example, values)

    def _known(self, ids: tf.Tensor, inputs: TensorTree) -> list[tf.Tensor]:
        """Of a batch the ids that the store knows, `(n,)`, and their inputs: few, for Python gets a copy of them."""
        assert self.known_items is not None  # read saw to it
        if not len(self.known_items.ids) or not all(isinstance(part, tf.Tensor) for part in tf.nest.flatten(inputs)):
            return []
        known, flat = tf.constant(self.known_items.ids), tf.reshape(ids, [-1])
        nearest = tf.gather(known, tf.minimum(tf.searchsorted(known, flat), len(self.known_items.ids) - 1))
        places = tf.where(tf.equal(nearest, flat))[:, 0]
        num_axes = ids.shape.rank
        items = [tf.reshape(x, tf.concat([tf.shape(flat), tf.shape(x)[num_axes:]], 0)) for x in tf.nest.flatten(inputs)]
        return [tf.gather(part, places) for part in (flat, *items)]


def _salts(seed: int) -> tf.data.Dataset:
    """Endless random integers: others each time the dataset is gone through, the same for the same seed."""
    # What `Dataset.random` does but for the global seed, which that one mixes in; the first number is its default.
    spec = tf.TensorSpec([], tf.int64)
    numbers = tf.raw_ops.RandomDatasetV2(
        seed=87654321,
        seed2=seed,
        seed_generator=tf.raw_ops.DummySeedGenerator(),
        rerandomize_each_iteration=True,
        output_types=[spec.dtype],
        output_shapes=[spec.shape],
    )
    return tf.data.experimental.from_variant(numbers, spec)


def _element(arrays: dict[str, TensorTree], targets: TensorTree) -> tuple:
    known = {"labels": arrays["labels"]} if "labels" in arrays else {}
    y = {**known, "soft_targets": targets}
    return (arrays["inputs"], y, arrays["sample_weight"]) if "sample_weight" in arrays else (arrays["inputs"], y)
