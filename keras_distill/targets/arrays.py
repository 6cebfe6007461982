"""The arrays of a dataset, checked against a store: what both joins, `dataset.py` and `batches.py`, begin with."""

from typing import Any

import keras
import numpy as np

from keras_distill._checks import error_message
from keras_distill.targets.fingerprints import inputs_fingerprint
from keras_distill.targets.manifest import ForeignDatasetError, check_source
from keras_distill.targets.store import SoftTargetStore


def checked_arrays(
    dataset: Any, store: SoftTargetStore | None, ids: Any = None
) -> tuple[dict[str, Any], int, np.ndarray | None]:
    """A dataset as arrays by name, those that the store was labelled with.

    Args:
        dataset: a `Split`, `(inputs, labels)`, `(inputs, labels, sample_weight)`, or inputs alone.
        store: an open store; `None` takes any arrays.
        ids: the ids of the items, where they are a part of what was labelled or in another order.

    Returns:
        (`{"inputs": …, "labels": …, "sample_weight": …}` as far as they are there, how many items, the ids).

    Raises:
        ForeignDatasetError: these are not the data that were labelled.
        ValueError: arrays of several lengths; ids that are no integers.
    """
    parts = (dataset.inputs, dataset.labels) if hasattr(dataset, "inputs") else dataset
    parts = parts if isinstance(parts, tuple) else (parts,)
    # `None` labels are no labels: (inputs, None, sample_weight).
    arrays = {
        name: keras.tree.map_structure(np.asanyarray, part)
        for name, part in zip(("inputs", "labels", "sample_weight"), parts, strict=False)
        if part is not None
    }
    lengths = {len(array) for array in keras.tree.flatten(arrays)}
    if len(lengths) != 1:
        raise ValueError(error_message("inputs, labels and weights must have the same length", sorted(lengths)))
    num_items = lengths.pop()
    if store is None:
        return arrays, num_items, None
    manifest = store.manifest
    if ids is None:
        fingerprint = inputs_fingerprint(arrays["inputs"]) if manifest.dataset_fingerprint else None
        check_source(store.path, manifest, num_items=num_items, dataset_fingerprint=fingerprint)
        return arrays, num_items, None
    ids = np.asarray(ids)
    if ids.shape != (num_items,) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(error_message(f"ids must be integers of shape ({num_items},)", f"{ids.dtype} {ids.shape}"))
    if num_items and not (ids.min() >= 0 and ids.max() < manifest.num_items):
        outside = ids[(ids < 0) | (ids >= manifest.num_items)][0]
        raise ForeignDatasetError(error_message(f"ids must be in [0, {manifest.num_items}), the store's", outside))
    return arrays, num_items, ids
