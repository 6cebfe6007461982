"""What is labelled of sequences with a mask: the tokens that are no padding, batch of sequences by batch."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import keras
import numpy as np

from keras_distill._types import ArrayLike, Data, TensorTree
from keras_distill.targets.fingerprints import every_item_fingerprint, inputs_fingerprint, item_marks
from keras_distill.targets.manifest import Manifest
from keras_distill.targets.source import ArraySource, Batch
from keras_distill.targets.tokens import token_ids, token_mask


class TokenSource(ArraySource):
    """Arrays of padded sequences, of which the tokens that count are labelled: those are the items.

    Args:
        dataset: arrays, as for `ArraySource`.
        mask: as in `token_mask`.
        batch_size: sequences a forward pass.

    Attributes:
        mask: bool `(num_sequences, tokens)`.
    """

    mask: np.ndarray

    def __init__(self, dataset: Data, mask: str | ArrayLike, batch_size: int):
        super().__init__(dataset, None, batch_size)
        self.mask = token_mask(mask, self.inputs)
        self.num_items = int(self.mask.sum())
        self._ids = token_ids(self.mask)
        # The first id after each sequence.
        self._ends = np.cumsum(self.mask.sum(axis=1))

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Of the arrays, and of the mask."""
        return inputs_fingerprint((self.inputs, self.mask))

    @cached_property
    def every_item_fingerprint(self) -> str:  # type: ignore[override]
        """Of all items, and of the whole mask, where the arrays lie in memory."""
        return every_item_fingerprint((self.inputs, self.mask))

    def first_batch(self) -> TensorTree:
        """The first sequences, as the teacher sees them."""
        return self._sequences(0, min(self.batch_size, len(self.mask)))

    def batches(self, manifest: Manifest, indices: Sequence[int]) -> Iterator[Batch]:
        """The shards at `indices`, in their order; a sequence that lies in two of them is seen twice.

        So a shard's bytes depend on the shard alone, and not on where an earlier run stopped.
        """
        for index in indices:
            start, stop = manifest.shard_rows(index)
            first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
            for begin in range(first, last + 1, self.batch_size):
                end = min(begin + self.batch_size, last + 1)
                ids = self._ids[begin:end]
                places = self.mask[begin:end] & (ids >= start) & (ids < stop)
                if places.any():
                    yield Batch(ids[places], self.inputs, self._sequences(begin, end), places)

    def marks(self, batch: Batch, rows: np.ndarray) -> np.ndarray:
        """Of tokens, that of their whole sequence."""
        return item_marks(batch.items, np.searchsorted(self._ends, rows, side="right"))

    def _sequences(self, begin: int, end: int) -> TensorTree:
        return self._seen(keras.tree.map_structure(lambda array: array[begin:end], self.inputs), np.arange(begin, end))
