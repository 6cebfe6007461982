"""From batches of rows to shards, which are written in the background while the next rows are computed."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from keras_distill._checks import error_message
from keras_distill.targets.manifest import ForeignDatasetError, Manifest
from keras_distill.targets.shards import write_shard
from keras_distill.targets.teacher_rows import stored_fields


class ShardQueue:
    """Puts shards together from batches; one is hashed and written while the next is computed.

    Args:
        path: the store's folder.
        manifest: the store's.
        indices: the shards that the batches make, in their order.
        within: where a shard is written until it is whole; `None` for the store's own folder.
    """

    def __init__(self, path: Path, manifest: Manifest, indices: Sequence[int], within: Path | None):
        self.path, self.manifest, self.within = path, manifest, within
        self._todo = deque(indices)
        self._writer = ThreadPoolExecutor(1)
        self._written: Future | None = None
        self._shard: np.ndarray | None = None
        self._marks: list[np.ndarray] = []
        self._filled = 0

    def __enter__(self) -> "ShardQueue":
        return self

    def put(self, rows: np.ndarray, outputs: Future, marks: np.ndarray, places: np.ndarray | None) -> int:
        """Adds a batch's rows, those at `places`, once they are there, with the marks of some; returns how many."""
        fields, num_rows = stored_fields(self.manifest, outputs.result(), rows, places), len(rows)
        if self._shard is None:
            start, stop = self.manifest.shard_rows(self._todo[0])
            self._shard, self._filled, self._marks = np.empty(stop - start, self.manifest.row_dtype), 0, []
        for name, values in fields.items():
            self._shard[name][self._filled : self._filled + num_rows] = values
        self._marks.append(marks)
        self._filled += num_rows
        if self._filled == len(self._shard):
            check_finite(self._shard, self.manifest)
            self._wait()
            index = self._todo.popleft()
            shard = (self.path, self.manifest, index, self._shard, np.concatenate(self._marks), self.within)
            self._written = self._writer.submit(write_shard, *shard)
            self._shard = None
        return num_rows

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if error is None:
                self._wait()
                if self._todo:
                    expected = f"hold {self.manifest.num_items} items, as announced"
                    raise ForeignDatasetError(
                        error_message(f"the dataset must {expected}", "fewer", "Pass its true num_items.")
                    )
        finally:
            self._writer.shutdown()

    def _wait(self) -> None:
        """Until the last shard is on the disk: at most one is held beside that which is being filled."""
        if self._written is not None:
            self._written.result()


def check_finite(shard: np.ndarray, manifest: Manifest) -> None:
    """Raises `ValueError` where rows are not finite."""
    for name in shard.dtype.names or ():
        values = shard[name]
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            remedy = "Look at the teacher's inputs and weights."
            if np.isinf(values).any() and manifest.dtype == "float16":
                remedy += ' Logits beyond ±65504 need dtype="float32".'
            num_bad = int(np.size(values) - np.count_nonzero(np.isfinite(values)))
            raise ValueError(
                error_message("the teacher's logits must be finite", f"{num_bad} NaN or infinite values", remedy)
            )
