"""Fingerprints and marks: whether a teacher, a dataset or an item is the one that a store was made from."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import error_message
from keras_distill._keras_internals import all_layers
from keras_distill._types import ArrayLike, TensorTree

# How the fingerprint of a stream begins, of which only the first items are known.
STREAM = "stream:"
# Items are summed so many bytes at a time.
_BLOCK = 16 << 20


def fingerprint(teacher: Callable) -> str:
    """A hash of what a teacher is: its configuration and its weights, whatever names Keras gave its layers.

    Args:
        teacher: a Keras model, or anything with an attribute `fingerprint`.

    Returns:
        32 hexadecimal digits.

    Raises:
        ValueError: a callable of which nothing is known.

    Example:
        >>> def model(units):
        ...     return keras.Sequential([keras.Input((2,)), keras.layers.Dense(units, kernel_initializer="ones")])
        >>> fingerprint(model(3)) == fingerprint(model(3)), fingerprint(model(3)) == fingerprint(model(4))
        (True, False)
    """
    given = getattr(teacher, "fingerprint", None)
    if isinstance(given, str):
        return given
    if not isinstance(teacher, keras.Model):
        remedy = "Pass teacher_fingerprint=…, any text that changes whenever the teacher does."
        raise ValueError(
            error_message("the teacher must be a Keras model or have a fingerprint", repr(teacher), remedy)
        )
    digest = hashlib.sha256()
    try:
        config = keras.saving.serialize_keras_object(teacher)
    except NotImplementedError:
        # A subclassed model that cannot be written down is known by its class and its weights.
        config = {"class_name": type(teacher).__name__, "module": type(teacher).__module__}
    digest.update(json.dumps(_nameless(config), sort_keys=True, default=repr).encode())
    for layer in all_layers(teacher):
        if isinstance(layer, (keras.layers.TextVectorization, keras.layers.StringLookup)):
            # What it has learnt by `adapt` is neither among the weights nor in the configuration.
            digest.update(json.dumps([str(word) for word in layer.get_vocabulary()]).encode())
    for weight in teacher.weights:
        values = np.ascontiguousarray(ops.convert_to_numpy(weight))
        digest.update(f"{values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:32]


def inputs_fingerprint(inputs: TensorTree) -> str:
    """A hash of arrays: their shapes, dtypes, and up to 256 items evenly spaced from the first to the last."""
    digest = hashlib.sha256()
    for array in keras.tree.flatten(inputs):
        digest.update(f"{array.dtype} {array.shape}".encode())
        for position in np.unique(np.linspace(0, len(array) - 1, 256).astype(np.int64)):
            digest.update(_content(array[position]))
    return digest.hexdigest()[:32]


def every_item_fingerprint(inputs: TensorTree) -> str:
    """A hash to which every item of some arrays contributes: the sum of its bytes, eight at a time.

    An item in another's place changes it, at the cost of reading the memory once. The sum does not see the order of
    things inside an item; `inputs_fingerprint` sees that, in some.

    Returns:
        32 hexadecimal digits, or `""` where the arrays do not lie in memory: to read a disk twice is not cheap.

    Example:
        >>> x = np.arange(2000.0)
        >>> swapped = x.copy()
        >>> swapped[[12, 13]] = x[[13, 12]]
        >>> [of(x) == of(swapped) for of in (inputs_fingerprint, every_item_fingerprint)]
        [True, False]
    """
    digest = hashlib.sha256()
    for array in keras.tree.flatten(inputs):
        if not isinstance(array, np.ndarray) or isinstance(array, np.memmap) or array.dtype.hasobject:
            return ""
        size = max(array.nbytes // max(len(array), 1), 1)
        step = max(_BLOCK // size, 1)
        for start in range(0, len(array), step):
            digest.update(_sums(array[start : start + step]).tobytes())
    return digest.hexdigest()[:32]


def _sums(items: np.ndarray) -> np.ndarray:
    """The sum of each item's bytes, taken as numbers of 64 bits, the last one filled up with zeros; uint64 `(n,)`."""
    content = np.ascontiguousarray(items).reshape(len(items), -1).view(np.uint8)
    num_whole = content.shape[1] // 8 * 8
    sums = content[:, :num_whole].view(np.uint64).sum(axis=1, dtype=np.uint64)
    if num_whole < content.shape[1]:
        last = np.zeros((len(items), 8), np.uint8)
        last[:, : content.shape[1] - num_whole] = content[:, num_whole:]
        sums += last.view(np.uint64)[:, 0]
    return sums


def item_marks(inputs: TensorTree, positions: Sequence[int] | np.ndarray) -> np.ndarray:
    """What a store knows some items by: the first 8 bytes of the SHA-256 of each one's bytes.

    Args:
        inputs: an array or a structure of arrays, `(n, …)`; NumPy's or tensors.
        positions: of the items in it.

    Returns:
        uint64 `(len(positions),)`, none of them 0.

    Example:
        >>> x = np.eye(3)
        >>> marks = item_marks(x, [2, 0])
        >>> bool(marks[1] == item_marks(x[:1], [0])[0]), bool(marks[0] == marks[1])
        (True, False)
    """
    if not len(positions):
        return np.empty(0, np.uint64)
    arrays = [array if isinstance(array, np.ndarray) else np.asarray(array) for array in keras.tree.flatten(inputs)]
    marks = []
    for position in positions:
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(_content(array[position]))
        # 0 stands for "not known".
        marks.append(int.from_bytes(digest.digest()[:8], "little") or 1)
    return np.array(marks, np.uint64)


def _content(item: ArrayLike) -> bytes:
    """An item's bytes; a text is the same whether NumPy, Python or TensorFlow holds it."""
    item = np.asarray(item)
    if item.dtype.kind not in "OSU":
        return item.tobytes()
    texts = [text.encode() if isinstance(text, str) else bytes(text) for text in item.reshape(-1).tolist()]
    return b"".join(len(text).to_bytes(8, "little") + text for text in texts)


def _nameless(config: Any) -> Any:
    """`config` without the names of layers: Keras numbers them by how many were made before."""
    names: dict[str, str] = {}

    def collect(part: Any) -> None:
        if isinstance(part, dict):
            if isinstance(part.get("name"), str):
                names.setdefault(part["name"], f"name {len(names)}")
            for value in part.values():
                collect(value)
        elif isinstance(part, (list, tuple)):
            for value in part:
                collect(value)

    def rename(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: rename(value) for key, value in part.items() if key != "compile_config"}
        if isinstance(part, (list, tuple)):
            return [rename(value) for value in part]
        return names.get(part, part) if isinstance(part, str) else part

    collect(config)
    return rename(config)
