"""What is labelled: batches of inputs by row, out of arrays, out of a stream, or out of batches as `fit` takes them.

Whoever goes through a stream twice trusts it to give the same items again. Here it is held to that: the first items of
every pass are compared with those of the first one. What comes of them in the store are marks (`fingerprints.py`).
"""

import hashlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_count, error_message
from keras_distill._types import Data, Tensor, TensorTree
from keras_distill.targets.arrays import as_arrays
from keras_distill.targets.fingerprints import STREAM, every_item_fingerprint, inputs_fingerprint, item_marks
from keras_distill.targets.manifest import ForeignDatasetError, Manifest

if TYPE_CHECKING:
    from keras_distill.targets.augmentation import Augmentation

# So many first items of a stream are compared from pass to pass, whatever the batch size.
_NUM_COMPARED = 16


class Batch(NamedTuple):
    """Neighbouring rows of a store that is being labelled.

    Attributes:
        rows: int64 `(n,)`.
        items: the inputs as they are given, `(n, …)`.
        inputs: as the teacher sees them: augmented, and the backend's tensors.
        places: which of what the teacher gives are the rows, bool `(items, tokens)`; `None` for one row an item.
    """

    rows: np.ndarray
    items: TensorTree
    inputs: TensorTree
    places: np.ndarray | None = None


def open_source(
    dataset: Data,
    num_items: int | None,
    batch_size: int,
    augmentation: "Augmentation | None" = None,
    *,
    num_views: int = 1,
    num_axes: int | None = None,
) -> "Source":
    """The source for whatever `label` was given.

    Args:
        dataset: as in `label`.
        num_items: as in `label`.
        batch_size: items a forward pass.
        augmentation: what makes views of an item.
        num_views: how often every item is wanted.
        num_axes: of the teacher's inputs, the batch's counted, all inputs together: it tells whether the elements of a
            `tf.data.Dataset` are batches. `None` takes them for single examples.
    """
    if is_stream(dataset):
        return TensorFlowStream(dataset, num_items, batch_size, augmentation, num_axes)
    if isinstance(dataset, keras.utils.PyDataset) or gives_batches(dataset):
        return BatchStream(dataset, num_items, batch_size, augmentation, num_views)
    return ArraySource(dataset, num_items, batch_size, augmentation)


class Source:
    """Batches of inputs by row.

    Attributes:
        num_items: how many there are.
        inputs: the arrays, or `None` where there are none to look anything up in.
        mask: of sequences whose tokens are the items, which of them are; else `None`.
    """

    num_items: int
    inputs: TensorTree = None
    mask: np.ndarray | None = None

    def __init__(self, batch_size: int, augmentation: "Augmentation | None"):
        self.batch_size = check_count("batch_size", batch_size)
        self.augmentation = augmentation

    @property
    def fingerprint(self) -> str:
        """What the manifest keeps to know the dataset again."""
        raise NotImplementedError

    @property
    def every_item_fingerprint(self) -> str:
        """The same of all items, where that is cheap; else empty."""
        return ""

    def first_batch(self) -> TensorTree:
        """The first view of the first items, as the teacher sees them."""
        raise NotImplementedError

    def first_item(self) -> TensorTree:
        """The first item as it is given, a batch of one."""
        raise NotImplementedError

    def batches(self, manifest: Manifest, indices: Sequence[int]) -> Iterator[Batch]:
        """The shards at `indices`, which rise, in their order; no batch crosses from one shard into another."""
        raise NotImplementedError

    def marks(self, batch: Batch, rows: np.ndarray) -> np.ndarray:
        """The marks of the items of some of a batch's rows, uint64 `(len(rows),)`."""
        return item_marks(batch.items, rows - batch.rows[0])

    def _seen(self, items: TensorTree, rows: np.ndarray) -> TensorTree:
        if self.augmentation is None:
            return keras.tree.map_structure(_tensor, items)
        ids, views = rows % self.num_items, rows // self.num_items
        partners = None
        if self.augmentation.pairs_items:
            partners = self.inputs[np.asarray(self.augmentation.partners(ids, views, self.num_items))]
        seen = self.augmentation(items, ids, views, partners, self.num_items)
        return seen if keras.config.backend() == "tensorflow" else keras.tree.map_structure(np.asarray, seen)


class ArraySource(Source):
    """Arrays, in memory or mapped: an item's place is known, and any shard can be labelled by itself."""

    def __init__(
        self, dataset: Data, num_items: int | None, batch_size: int, augmentation: "Augmentation | None" = None
    ):
        super().__init__(batch_size, augmentation)
        if hasattr(dataset, "inputs") and not hasattr(dataset, "to_numpy"):
            dataset = dataset.inputs
        self.inputs = as_arrays(dataset[0] if isinstance(dataset, tuple) else dataset)
        lengths = {len(array) for array in keras.tree.flatten(self.inputs)}
        if len(lengths) != 1:
            raise ValueError(error_message("the inputs must be arrays of the same length", sorted(lengths)))
        self.num_items = lengths.pop()
        if num_items not in (None, self.num_items):
            raise ForeignDatasetError(error_message(f"the dataset must hold {num_items} items", self.num_items))
        _check_not_empty(self.num_items)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Of the arrays' shapes and up to 256 whole items."""
        return inputs_fingerprint(self.inputs)

    @cached_property
    def every_item_fingerprint(self) -> str:  # type: ignore[override]
        """Of all items, where the arrays lie in memory."""
        return every_item_fingerprint(self.inputs)

    def first_batch(self) -> TensorTree:
        """The first view of the first items, as the teacher sees them."""
        return self._at(np.arange(min(self.batch_size, self.num_items))).inputs

    def first_item(self) -> TensorTree:
        """The first item as it is given, a batch of one."""
        return _cut(self.inputs, 0, 1)

    def batches(self, manifest: Manifest, indices: Sequence[int]) -> Iterator[Batch]:
        """The shards at `indices`, in their order; no batch crosses from one shard into another."""
        for index in indices:
            start, stop = manifest.shard_rows(index)
            for first in range(start, stop, self.batch_size):
                yield self._at(np.arange(first, min(first + self.batch_size, stop)))

    def _at(self, rows: np.ndarray) -> Batch:
        ids = rows % self.num_items
        # Neighbours are a slice: no gather, one copy.
        where = slice(ids[0], ids[-1] + 1) if ids[-1] - ids[0] == len(ids) - 1 else ids
        items = keras.tree.map_structure(lambda array: array[where], self.inputs)
        return Batch(rows, items, self._seen(items, rows))


class StreamSource(Source):
    """Items that come in an order of their own, in passes from the first to the last."""

    def first_batch(self) -> TensorTree:
        """The first view of the first items, as the teacher sees them."""
        num_taken = min(self.batch_size, self.num_items)
        return self._seen(_cut(self._opening, 0, num_taken), np.arange(num_taken))

    def first_item(self) -> TensorTree:
        """The first item as it is given, a batch of one."""
        return _cut(self._opening, 0, 1)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Of the first items: one that begins otherwise, in another process or on another day, is another stream."""
        return STREAM + hashlib.sha256(self._opening_marks.astype("<u8").tobytes()).hexdigest()[:32]

    def batches(self, manifest: Manifest, indices: Sequence[int]) -> Iterator[Batch]:
        """The shards at `indices`, in their order; no batch crosses from one shard into another.

        Raises:
            ForeignDatasetError: this pass begins with other items than the first one.
        """
        for rows, items in self._rows(manifest, indices):
            ids = rows % self.num_items
            compared = np.flatnonzero(ids < len(self._opening_marks))
            if (item_marks(items, compared) != self._opening_marks[ids[compared]]).any():
                remedy = (
                    "Label it before .shuffle() and before anything random, or shuffle(…, seed=0, "
                    "reshuffle_each_iteration=False); random views of an item are made with augmentation=…"
                )
                expectation = "a stream must give the same items in the same order whenever it is gone through"
                raise ForeignDatasetError(error_message(expectation, "others the second time", remedy))
            yield Batch(rows, items, self._seen(items, rows))

    @cached_property
    def _opening(self) -> TensorTree:
        """The first items, as many as a batch has and as are compared."""
        return self._first_items(min(max(self.batch_size, _NUM_COMPARED), self.num_items))

    @cached_property
    def _opening_marks(self) -> np.ndarray:
        return item_marks(self._opening, range(min(_NUM_COMPARED, self.num_items)))

    def _first_items(self, num_wanted: int) -> TensorTree:
        raise NotImplementedError

    def _rows(self, manifest: Manifest, indices: Sequence[int]) -> Iterator[tuple[np.ndarray, TensorTree]]:
        raise NotImplementedError

    def _too_few(self, received: object) -> ForeignDatasetError:
        expectation = f"the dataset must hold {self.num_items} items, as announced"
        return ForeignDatasetError(error_message(expectation, received, "Pass its true num_items."))


class TensorFlowStream(StreamSource):
    """A `tf.data.Dataset` of single examples, or of batches."""

    def __init__(
        self,
        dataset: Data,
        num_items: int | None,
        batch_size: int,
        augmentation: "Augmentation | None",
        num_axes: int | None,
    ):
        import tensorflow as tf

        super().__init__(batch_size, augmentation)
        _check_no_pairs(augmentation, "a tf.data.Dataset")
        stream = dataset.map(lambda *parts: parts[0])
        specs = tf.nest.flatten(stream.element_spec)
        ranks = [spec.shape.rank for spec in specs]
        # With as many axes as the teacher wants, the batch's among them, elements are batches.
        is_batched = None not in ranks and sum(ranks) == num_axes
        if num_items is None:
            num_items = int(dataset.cardinality())
            if num_items < 0:
                remedy = "Pass num_items=…"
                raise ValueError(error_message("the dataset's length must be known", "unknown or infinite", remedy))
            if is_batched and specs[0].shape[0] is not None:
                num_items *= specs[0].shape[0]
            elif is_batched:
                # The last batch may be smaller, and only going through the stream tells.
                sizes = stream.map(lambda inputs: tf.shape(tf.nest.flatten(inputs)[0], tf.int64)[0])
                num_items = int(sizes.reduce(tf.constant(0, tf.int64), tf.add))
            _check_not_empty(num_items)
        self.stream = stream.unbatch() if is_batched else stream
        self.num_items = check_count("num_items", num_items)

    def _first_items(self, num_wanted: int) -> TensorTree:
        for items in self.stream.take(num_wanted).batch(num_wanted):
            if len(keras.tree.flatten(items)[0]) == num_wanted:
                return items
        raise self._too_few("fewer")

    def _rows(self, manifest: Manifest, indices: Sequence[int]) -> Iterator[tuple[np.ndarray, TensorTree]]:
        import tensorflow as tf

        wanted = np.zeros(manifest.num_shards, bool)
        wanted[list(indices)] = True
        rows_per_shard = manifest.rows_per_shard
        stream = self.stream.take(self.num_items).repeat(manifest.num_views).enumerate()
        if not wanted.all():
            stream = stream.filter(lambda row, inputs: tf.gather(wanted, row // rows_per_shard))
        # Shards are whole batches, so that batches of the wanted rows never cross from one into another.
        for rows, items in stream.batch(self.batch_size).prefetch(tf.data.AUTOTUNE):
            yield rows.numpy(), items


class BatchStream(StreamSource):
    """Batches as `fit` takes them, `x` or `(x, …)`: a `PyDataset`, a generator, or any iterable; cut anew here."""

    def __init__(
        self,
        dataset: Data,
        num_items: int | None,
        batch_size: int,
        augmentation: "Augmentation | None",
        num_views: int,
    ):
        super().__init__(batch_size, augmentation)
        _check_no_pairs(augmentation, type(dataset).__name__)
        self.dataset = dataset
        # Of a generator there is one pass: what `_first_items` takes out of it is put back in front.
        self._only_pass: Iterator[TensorTree] | None = None
        if hasattr(dataset, "__next__"):
            self._only_pass = map(self._inputs, dataset)
        if self._only_pass is not None and num_views > 1:
            remedy = "Give a PyDataset, or arrays."
            received = f"a {type(dataset).__name__}, which can be gone through once"
            raise ValueError(error_message(f"{num_views} views need a dataset of several passes", received, remedy))
        self.num_items = check_count("num_items", self._count() if num_items is None else num_items)

    def _count(self) -> int:
        if isinstance(self.dataset, keras.utils.PyDataset) and self.dataset.num_batches:
            # All batches but the last are of one size; where they are not, labelling ends too early or too late.
            first, last = (_num_items(self._inputs(self.dataset[at])) for at in (0, self.dataset.num_batches - 1))
            return first * (self.dataset.num_batches - 1) + last
        if self._only_pass is None and hasattr(self.dataset, "__len__") and len(self.dataset):
            return sum(_num_items(batch) for batch in self._pass())
        remedy = "Pass num_items=…"
        raise ValueError(error_message("the dataset's length must be known", type(self.dataset).__name__, remedy))

    def _pass(self) -> Iterator[TensorTree]:
        """The inputs of all batches, NumPy's."""
        if self._only_pass is not None:
            return self._only_pass
        if not isinstance(self.dataset, keras.utils.PyDataset):
            return map(self._inputs, self.dataset)
        num_batches = self.dataset.num_batches
        places = itertools.count() if num_batches is None else range(num_batches)
        return (self._inputs(self.dataset[place]) for place in places)

    @staticmethod
    def _inputs(batch: Data) -> TensorTree:
        return keras.tree.map_structure(_numpy, keras.utils.unpack_x_y_sample_weight(batch)[0])

    def _first_items(self, num_wanted: int) -> TensorTree:
        batches, taken, num_taken = self._pass(), [], 0
        while num_taken < num_wanted:
            if (batch := next(batches, None)) is None:
                raise self._too_few(num_taken)
            taken.append(batch)
            num_taken += _num_items(batch)
        if self._only_pass is not None:
            self._only_pass = itertools.chain(taken, batches)
        return _cut(_joined(taken), 0, num_wanted)

    def _rows(self, manifest: Manifest, indices: Sequence[int]) -> Iterator[tuple[np.ndarray, TensorTree]]:
        wanted = set(indices)
        start, held, num_held = 0, [], 0
        for piece in self._all_passes(manifest.num_views):
            begin, end = 0, _num_items(piece)
            while begin < end:
                stop = min(start + self.batch_size, manifest.num_rows)
                num_taken = min(stop - start - num_held, end - begin)
                held.append(_cut(piece, begin, begin + num_taken))
                begin, num_held = begin + num_taken, num_held + num_taken
                if start + num_held == stop:
                    # A shard is whole batches: this one lies within one of them.
                    if start // manifest.rows_per_shard in wanted:
                        yield np.arange(start, stop), _joined(held)
                    start, held, num_held = stop, [], 0

    def _all_passes(self, num_views: int) -> Iterator[TensorTree]:
        """The inputs of every batch of every pass, `num_items` a pass."""
        for _ in range(num_views):
            num_missing = self.num_items
            for batch in self._pass():
                yield _cut(batch, 0, num_missing)
                num_missing -= min(num_missing, _num_items(batch))
                if not num_missing:
                    break
            if num_missing:
                raise self._too_few(self.num_items - num_missing)


def is_stream(dataset: Data) -> bool:
    """Whether it is a `tf.data.Dataset`, of which there is none where nobody imported TensorFlow."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(dataset, tensorflow.data.Dataset)


def gives_batches(dataset: Data) -> bool:
    """Whether it is a generator or another iterable, and neither arrays nor a structure of them."""
    is_structure = isinstance(dataset, (tuple, list, dict, str, bytes))
    return hasattr(dataset, "__iter__") and not is_structure and not hasattr(dataset, "shape")


def _check_no_pairs(augmentation: "Augmentation | None", received: str) -> None:
    if augmentation is not None and augmentation.pairs_items:
        remedy = "A stream cannot look a partner up by its id."
        expectation = f"{augmentation.steps[-1].name} needs a dataset of arrays"
        raise ValueError(error_message(expectation, received, remedy))


def _check_not_empty(num_items: int) -> None:
    if not num_items:
        raise ValueError(error_message("the dataset must hold at least one item", "none"))


def _num_items(batch: TensorTree) -> int:
    return len(keras.tree.flatten(batch)[0])


def _cut(items: TensorTree, start: int, stop: int) -> TensorTree:
    return keras.tree.map_structure(lambda array: array[start:stop], items)


def _joined(parts: list[TensorTree]) -> TensorTree:
    return parts[0] if len(parts) == 1 else keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)


def _numpy(values: Tensor) -> np.ndarray:
    # `convert_to_numpy` knows the backend's own tensors, wherever they lie; TensorFlow's are arrays to any backend.
    return ops.convert_to_numpy(values) if ops.is_tensor(values) else np.asarray(values)


def _tensor(values: Tensor) -> Tensor:
    if not ops.is_tensor(values) and hasattr(values, "numpy"):
        values = values.numpy()
    return ops.convert_to_tensor(values)
