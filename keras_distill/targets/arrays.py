"""The arrays of a dataset, checked against a store: what both joins, `dataset.py` and `batches.py`, begin with."""

import keras
import numpy as np

from keras_distill._checks import error_message
from keras_distill._types import ArrayLike, Data, TensorTree
from keras_distill.models.strings import as_texts
from keras_distill.targets.fingerprints import STREAM, every_item_fingerprint, inputs_fingerprint
from keras_distill.targets.known_items import KnownItems
from keras_distill.targets.manifest import ForeignDatasetError, check_source
from keras_distill.targets.store import SoftTargetStore
from keras_distill.targets.tokens import TOKEN, token_ids, token_mask


def as_arrays(inputs: TensorTree) -> TensorTree:
    """Inputs as arrays, whatever holds them: a table becomes `(rows, columns)`, one column `(rows, 1)`, as in `fit`.

    Texts become objects, in whatever form they are given.

    Example:
        >>> as_arrays({"a": np.zeros((2, 3)), "b": keras.ops.ones((2,))})["b"]
        array([1., 1.], dtype=float32)

    Raises:
        TypeError: something that is no array; a table with columns that are no numbers.
    """
    return keras.tree.map_structure(_as_array, as_texts(inputs))


def _as_array(part: ArrayLike) -> ArrayLike:
    if hasattr(part, "to_numpy"):
        values = part.to_numpy()
        if values.dtype.hasobject:
            remedy = "Encode them first, or take them out."
            raise TypeError(error_message("the columns of a table must be numbers", "text or mixed types", remedy))
        return values[:, None] if values.ndim == 1 else values
    if keras.ops.is_tensor(part):
        return keras.ops.convert_to_numpy(part)
    if not (hasattr(part, "shape") and hasattr(part, "dtype") and len(part.shape)):
        remedy = "Wrap a list in numpy.asarray(…)."
        raise TypeError(error_message("inputs must be arrays, one item a row", type(part).__name__, remedy))
    # TensorFlow's own beside another backend. What lies on disk, in a map or in HDF5, stays there.
    return part.numpy() if hasattr(part, "numpy") else part


def checked_arrays(
    dataset: Data,
    store: SoftTargetStore | None,
    ids: ArrayLike | None = None,
    check_items: bool = True,
    mask: str | ArrayLike | None = None,
) -> tuple[dict[str, TensorTree], int, np.ndarray | None]:
    """A dataset as arrays by name, those that the store was labelled with.

    Args:
        dataset: a `Split`, `(inputs, labels)`, `(inputs, labels, sample_weight)`, or inputs alone.
        store: an open store; `None` takes any arrays.
        ids: the ids of the items, where they are a part of what was labelled or in another order.
        check_items: whether the items must be those that were labelled; otherwise only their number is compared.
        mask: of a store of tokens, as it was labelled with. Padding then weighs 0.

    Returns:
        (`{"inputs": …, "labels": …, "sample_weight": …}` as far as they are there, how many items, the ids: of items
        `(num_items,)` or of tokens `(num_items, tokens)`).

    Raises:
        ForeignDatasetError: these are not the data that were labelled.
        ValueError: arrays of several lengths; ids that are no integers.
    """
    is_split = hasattr(dataset, "inputs") and not hasattr(dataset, "to_numpy")
    parts = (dataset.inputs, dataset.labels) if is_split else dataset
    parts = parts if isinstance(parts, tuple) else (parts,)
    # `None` labels are no labels: (inputs, None, sample_weight).
    arrays = {
        name: keras.tree.map_structure(np.asanyarray, as_arrays(part) if name == "inputs" else part)
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
    check_scheme(store, mask)
    if mask is not None:
        if ids is not None:
            remedy = "Give the arrays that were labelled, whole and in their order."
            raise ValueError(error_message("ids must be left out with a mask", "ids", remedy))
        is_token = token_mask(mask, arrays["inputs"])
        check_source(store.path, manifest, num_items=int(is_token.sum()))
        if check_items:
            _check_whole((arrays["inputs"], is_token), store)
        return {**arrays, "sample_weight": _token_weights(arrays, is_token)}, num_items, token_ids(is_token)
    if ids is None:
        check_source(store.path, manifest, num_items=num_items)
        if check_items:
            _check_whole(arrays["inputs"], store)
        return arrays, num_items, None
    ids = np.asarray(ids)
    if ids.shape != (num_items,) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(error_message(f"ids must be integers of shape ({num_items},)", f"{ids.dtype} {ids.shape}"))
    if num_items and not (ids.min() >= 0 and ids.max() < manifest.num_items):
        outside = ids[(ids < 0) | (ids >= manifest.num_items)][0]
        raise ForeignDatasetError(error_message(f"ids must be in [0, {manifest.num_items}), the store's", outside))
    if check_items:
        KnownItems(store).check(ids, arrays["inputs"])
    return arrays, num_items, ids


def check_scheme(store: SoftTargetStore, mask: str | ArrayLike | None) -> None:
    """Raises `ValueError` where a store of tokens is to be joined without their mask, or another with one."""
    if (store.manifest.id_scheme == TOKEN) != (mask is not None):
        holds, received = ("tokens", "no mask") if mask is None else ("whole items", "a mask")
        remedy = "Give arrays and mask=…, as for label." if mask is None else "Leave the mask out."
        raise ValueError(error_message(f"{store.path} holds {holds}, and must be joined so", received, remedy))


def labels_to_blend(labels: TensorTree, num_classes: int) -> np.ndarray:
    """Labels of items that views blend: classes, int64 `(num_items,)`, or shares of classes, as they are given.

    Args:
        labels: whole numbers `(num_items,)` or `(num_items, 1)`, or one row a class, `(num_items, num_classes)`.
        num_classes: the teacher's.

    Raises:
        ValueError: labels of another shape, or that are no classes; −1, "no label", among them.

    Example:
        >>> labels_to_blend(np.array([[2], [0]]), 3), labels_to_blend(np.array([[0, 1]]), 2)
        (array([2, 0]), array([[0., 1.]], dtype=float32))
    """
    given = keras.tree.flatten(labels)
    shapes = [tuple(np.shape(part)) for part in given]
    if len(given) == 1 and len(shapes[0]) == 2 and shapes[0][1] == num_classes > 1:
        return np.asarray(given[0], "float32")
    if len(given) != 1 or shapes[0] not in ((len(given[0]),), (len(given[0]), 1)):
        expectation = f"labels of items that are blended must have shape (num_items,) or (num_items, {num_classes})"
        raise ValueError(error_message(expectation, ", ".join(map(str, shapes))))
    classes = np.asarray(given[0]).reshape(-1).astype(np.int64)
    outside = classes[(classes < 0) | (classes >= num_classes)]
    if outside.size:
        remedy = "Of an item without a label no blend is known: leave the labels out, or label items as they are."
        expectation = f"labels of items that are blended must be in [0, {num_classes})"
        raise ValueError(error_message(expectation, f"{outside[0]} ({outside.size} such)", remedy))
    return classes


def _token_weights(arrays: dict[str, TensorTree], is_token: np.ndarray) -> np.ndarray:
    """The weight of each token, float32 `(num_items, tokens)`; padding weighs 0."""
    weights = is_token.astype("float32")
    if "sample_weight" not in arrays:
        return weights
    given = np.asarray(arrays["sample_weight"], "float32")
    if given.shape not in (weights.shape, weights.shape[:1]):
        expectation = f"sample weights must have shape {weights.shape} as the mask has, or one a sequence"
        raise ValueError(error_message(expectation, given.shape))
    return weights * (given if given.ndim > 1 else given[:, None])


def _check_whole(inputs: TensorTree, store: SoftTargetStore) -> None:
    """Compares arrays with what the store knows of those that were labelled."""
    manifest = store.manifest
    if manifest.dataset_fingerprint.startswith(STREAM):
        KnownItems(store).check(np.arange(manifest.num_items), inputs)
    elif manifest.dataset_fingerprint:
        every_item = every_item_fingerprint(inputs) if manifest.every_item_fingerprint else ""
        check_source(
            store.path,
            manifest,
            dataset_fingerprint=inputs_fingerprint(inputs),
            every_item_fingerprint=every_item,
        )
