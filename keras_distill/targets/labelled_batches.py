"""A `PyDataset` + store → its batches with their soft targets: `attach` of batches, on every backend.

An item's id is its place in the batches as they were labelled; so a batch is known by its number alone, and `fit` may
take the batches in any order.
"""

from typing import Any

import keras
import numpy as np

from keras_distill._checks import check_count, error_message
from keras_distill._types import Data
from keras_distill.targets.known_items import KnownItems
from keras_distill.targets.manifest import ForeignDatasetError
from keras_distill.targets.replaying import replay_of
from keras_distill.targets.source import gives_batches
from keras_distill.targets.store import SoftTargetStore


class LabelledBatches(keras.utils.PyDataset):
    """The batches of a `PyDataset` with the soft targets that were stored for their items.

    Args:
        dataset: what was labelled; all its batches but the last of one size.
        store: an open store.
        seed: of the choice of views.
        check_items: whether the items that the store knows are compared with those that were labelled.

    Raises:
        ForeignDatasetError: other items than those that were labelled.
        ValueError: batches of several sizes, or without an end.
    """

    def __init__(
        self, dataset: keras.utils.PyDataset, store: SoftTargetStore, *, seed: int = 0, check_items: bool = True
    ):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset, self.store, self.seed = dataset, store, check_count("seed", seed, 0)
        self.known_items = KnownItems(store) if check_items else None
        if not dataset.num_batches:
            expectation = "a PyDataset that is joined to a store must have a length"
            raise ValueError(error_message(expectation, dataset.num_batches))
        self.batch_size = _num_items(keras.utils.unpack_x_y_sample_weight(dataset[0])[0])
        num_items, most = store.manifest.num_items, self.batch_size * dataset.num_batches
        if not most - self.batch_size < num_items <= most:
            expectation = f"{store.path} must be of the dataset's items, {dataset.num_batches} batches of "
            raise ForeignDatasetError(error_message(f"{expectation}{self.batch_size}", f"a store of {num_items}"))
        # A batch cannot look a partner up by its id.
        self.replay = replay_of(store, "Give arrays.")
        self.epoch = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple:
        """Batch `index`: `(x, {"labels": y, "soft_targets": t})`, and weights."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(self.dataset[index])
        start = index * self.batch_size
        ids = np.arange(start, start + _num_items(x))
        wanted = min(self.batch_size, self.store.manifest.num_items - start)
        if len(ids) != wanted:
            remedy = "An item's id is its place: give batches of one size, the last one of what is left over."
            raise ValueError(error_message(f"batch {index} must hold {wanted} items", len(ids), remedy))
        if self.known_items is not None:
            self.known_items.check(ids, x)
        views = np.zeros_like(ids)
        if self.store.manifest.num_views > 1:
            generator = np.random.default_rng([self.seed, self.epoch, index])
            views = generator.integers(0, self.store.manifest.num_views, ids.shape)
        if self.replay is not None:
            x = keras.tree.map_structure(np.asarray, self.replay(x, ids, views))
        targets: dict[str, Any] = {"soft_targets": self.store.read(ids, views)} | ({} if y is None else {"labels": y})
        return (x, targets) if sample_weight is None else (x, targets, sample_weight)

    def on_epoch_begin(self) -> None:
        """As the dataset has it."""
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """As the dataset has it; the next epoch has other views."""
        self.dataset.on_epoch_end()
        self.epoch += 1


def is_py_dataset(dataset: Data) -> bool:
    """Whether a dataset is a `keras.utils.PyDataset` of the user's."""
    return isinstance(dataset, keras.utils.PyDataset)


def check_has_ids(dataset: Data) -> None:
    """Raises `ValueError` for a generator and other iterables: nobody knows which item is which."""
    if gives_batches(dataset) and not hasattr(dataset, "inputs"):
        remedy = "Give arrays, the PyDataset, or tf.data elements with their ids: dataset.enumerate()."
        expectation = "the dataset must be one whose items have places"
        raise ValueError(error_message(expectation, f"a {type(dataset).__name__}", remedy))


def _num_items(inputs: Data) -> int:
    return len(keras.tree.flatten(inputs)[0])
