"""What is labelled: batches of inputs by row, out of arrays or out of a stream."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_count, error_message
from keras_distill.targets.manifest import ForeignDatasetError, Manifest

if TYPE_CHECKING:
    from keras_distill.targets.augmentation import Augmentation
from keras_distill.targets.fingerprints import inputs_fingerprint


class Source:
    """Batches of inputs by row, out of arrays or out of a stream."""

    def __init__(self, dataset: Any, num_items: int | None, batch_size: int, augmentation: "Augmentation | None"):
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.stream: Any = None
        self.inputs: Any = None
        if is_stream(dataset):
            if augmentation is not None and augmentation.mixup is not None:
                remedy = "A stream cannot look a partner up by its id."
                raise ValueError(error_message("Mixup needs a dataset of arrays", "a tf.data.Dataset", remedy))
            self.stream = dataset.map(lambda *parts: parts[0])
            cardinality = int(dataset.cardinality())
            if num_items is None and cardinality < 0:
                remedy = "Pass num_items=…"
                raise ValueError(error_message("the dataset's length must be known", "unknown or infinite", remedy))
            self.num_items = cardinality if num_items is None else check_count("num_items", num_items)
            self.fingerprint = ""
        else:
            inputs = dataset.inputs if hasattr(dataset, "inputs") else dataset
            self.inputs = inputs[0] if isinstance(inputs, tuple) else inputs
            lengths = {len(array) for array in keras.tree.flatten(self.inputs)}
            if len(lengths) != 1:
                raise ValueError(error_message("the inputs must be arrays of the same length", sorted(lengths)))
            self.num_items = lengths.pop()
            if num_items not in (None, self.num_items):
                raise ForeignDatasetError(error_message(f"the dataset must hold {num_items} items", self.num_items))
            if self.num_items:
                self.fingerprint = inputs_fingerprint(self.inputs)
        if not self.num_items:
            raise ValueError(error_message("the dataset must hold at least one item", "none"))

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


def is_stream(dataset: Any) -> bool:
    """Whether it is a `tf.data.Dataset`, of which there is none where nobody imported TensorFlow."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(dataset, tensorflow.data.Dataset)
