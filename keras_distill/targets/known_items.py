"""The items that a store knows by their marks, and whether those that come to be joined are they."""

import numpy as np

from keras_distill._checks import error_message
from keras_distill._types import TensorTree
from keras_distill.targets.fingerprints import item_marks
from keras_distill.targets.manifest import ForeignDatasetError
from keras_distill.targets.store import SoftTargetStore

# More of a batch than this are not looked at: a foreign item seldom comes alone.
_MAX_COMPARED = 256


class KnownItems:
    """The marks of a store's items by id, up to 16 a shard.

    Args:
        store: an open store.

    Attributes:
        ids: of the items that are known, int64, rising.

    Raises:
        ForeignDatasetError: an item was another one in another view.

    Example:
        >>> import tempfile
        >>> from keras_distill.targets.labelling import label
        >>> x = np.eye(4, dtype="float32")
        >>> store = label(lambda x: 5 * x, x, tempfile.mkdtemp() + "/targets", teacher_fingerprint="five times")
        >>> KnownItems(store).check(np.array([2, 0]), x[[2, 0]])
        >>> KnownItems(store).check(np.array([2, 0]), x[[0, 2]])
        Traceback (most recent call last):
        ...
        keras_distill.targets.manifest.ForeignDatasetError: ...
    """

    def __init__(self, store: SoftTargetStore):
        self.path = store.path
        ids, marks = store.marks()
        self.ids, first = np.unique(ids, return_index=True)
        self._marks = marks[first]
        is_other = marks != self._marks[np.searchsorted(self.ids, ids)]
        if is_other.any():
            self._refuse(int(ids[is_other][0]), "another one in another view")

    def check(self, ids: np.ndarray, inputs: TensorTree) -> None:
        """Compares the known ones among some items with what was labelled.

        Args:
            ids: integers `(n,)`.
            inputs: an array or a structure of arrays, `(n, …)`.

        Raises:
            ForeignDatasetError: an item is not the one that was labelled under its id.
        """
        if not len(self.ids) or not len(ids):
            return
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        known = np.flatnonzero(self.ids[places] == ids)
        if len(known) > _MAX_COMPARED:
            known = known[np.arange(_MAX_COMPARED) * (len(known) - 1) // (_MAX_COMPARED - 1)]
        is_other = item_marks(inputs, known) != self._marks[places[known]]
        if is_other.any():
            self._refuse(int(ids[known[is_other][0]]), f"another one ({is_other.sum()} of {len(known)} are others)")

    def _refuse(self, item: int, received: str) -> None:
        remedy = (
            "Give ids before anything shuffles, and items as they were labelled. If the student is to see other inputs "
            "than the teacher saw, pass check_items=False."
        )
        raise ForeignDatasetError(
            error_message(f"{self.path}: item {item} must be the one that was labelled", received, remedy)
        )
