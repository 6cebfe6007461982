"""Arrays, with a store or without, → batches in NumPy: `attach` where Keras does not run on TensorFlow.

A batch is known by its number alone: the order of an epoch is a keyed permutation of any length in no memory, so that
several processes take their shares of the same batches without a word to each other. Not here: streams, which are
TensorFlow's (`dataset.py`).
"""

import os
from typing import Any

import keras
import numpy as np

from keras_distill._checks import check_count, error_message
from keras_distill._types import ArrayLike, Data, Teacher
from keras_distill.targets.arrays import check_scheme, checked_arrays, labels_to_blend
from keras_distill.targets.growing import LABELLING, GrowingStore, opened
from keras_distill.targets.labelled_batches import LabelledBatches, check_has_ids, is_py_dataset
from keras_distill.targets.replaying import replay_of
from keras_distill.targets.store import SoftTargetStore

_ROUNDS = 6
_WHOLE_ONLY = "Its partners are looked up in the whole dataset: give all of it, without ids."


class StoredBatches(keras.utils.PyDataset):
    """Batches of inputs, labels and stored soft targets, for `Distiller(…).fit(…, shuffle=False)`.

    Args:
        dataset: in memory, or arrays that lie on disk: a `Split`, `(inputs, labels)`, `(inputs, labels,
            sample_weight)`, or inputs alone.
        store: an open store; `None` gives inputs and labels alone, for a teacher beside the student.
        batch_size: items a batch, of all processes together.
        shuffle: whether each epoch has an order of its own.
        seed: of the order, and of the choice of views.
        ids: the ids of the arrays' items, where they are part of what was labelled, or in another order.
        mask: of a store of tokens, as it was labelled with. Targets are `(batch, tokens, …)` then, and weights
            `(batch, tokens)`, 0 at padding, times those that the dataset brings.
        drop_remainder: whether a last, smaller batch is left out.
        process: which of the processes that train together this one is, in [0, num_processes).
        num_processes: how many they are. Each has the whole arrays and gives its share of every batch.
        check_items: whether the items must be those that were labelled; `False` for a student that sees other inputs
            than its teacher saw, say smaller images.

    A last batch that several devices cannot share evenly is cut by what is left over, fewer items than devices.

    Raises:
        ForeignDatasetError: the arrays are not what was labelled.
        ValueError: a batch size that the processes cannot share evenly.
    """

    def __init__(
        self,
        dataset: Data,
        store: SoftTargetStore | None,
        *,
        batch_size: int = 128,
        shuffle: bool = True,
        seed: int = 0,
        ids: ArrayLike | None = None,
        mask: str | ArrayLike | None = None,
        drop_remainder: bool = False,
        process: int = 0,
        num_processes: int = 1,
        check_items: bool = True,
    ):
        super().__init__()
        self.store = store
        self.arrays, self.num_items, self.ids = checked_arrays(dataset, store, ids, check_items, mask)
        self.batch_size = check_count("batch_size", batch_size)
        if not 0 <= check_count("process", process, 0) < check_count("num_processes", num_processes):
            raise ValueError(error_message(f"process must be in [0, num_processes = {num_processes})", process))
        self.process, self.num_processes = process, num_processes
        distribution = keras.distribution.distribution()
        self._multiple = max(num_processes, getattr(distribution, "num_model_replicas", 1))
        if self.batch_size % self._multiple:
            expected = f"be a multiple of {self._multiple}, the devices or processes that share it"
            raise ValueError(error_message(f"batch_size must {expected}", batch_size))
        self.shuffle, self.seed, self.drop_remainder = shuffle, check_count("seed", seed, 0), drop_remainder
        self.replay = None if store is None else replay_of(store, _WHOLE_ONLY if self.ids is not None else "")
        if self.replay is not None and self.replay.pairs_items and store is not None and "labels" in self.arrays:
            self.arrays["labels"] = labels_to_blend(self.arrays["labels"], store.manifest.num_classes)
        self.epoch = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        num_whole, rest = divmod(self.num_items, self.batch_size)
        return num_whole + (not self.drop_remainder and rest >= self._multiple)

    def __getitem__(self, index: int) -> tuple:
        """Batch `index`, or this process's share of it: `(x, {"labels": y, "soft_targets": t})`, and weights."""
        start = index * self.batch_size
        stop = min(start + self.batch_size, self.num_items)
        share = (stop - start) // self._multiple * self._multiple // self.num_processes
        positions = np.arange(start + self.process * share, start + (self.process + 1) * share)
        if self.shuffle:
            positions = permuted(positions, self.num_items, [self.seed, self.epoch])
        which = positions if self.ids is None else self.ids[positions]
        views = np.zeros_like(which)
        if self.store is not None and self.store.manifest.num_views > 1:
            generator = np.random.default_rng([self.seed, self.epoch, index, self.process])
            views = generator.integers(0, self.store.manifest.num_views, which.shape)
        arrays = {
            name: keras.tree.map_structure(lambda array: array[positions], part) for name, part in self.arrays.items()
        }
        if self.replay is not None:
            arrays |= self._replayed(arrays, which, views)
        if isinstance(self.store, GrowingStore):
            self.store.label(which, views, arrays["inputs"])
        y: Any = arrays.get("labels")
        if self.store is not None:
            y = {"soft_targets": self.store.read(which, views)} | ({} if y is None else {"labels": y})
        return (arrays["inputs"], y, *([arrays["sample_weight"]] if "sample_weight" in arrays else []))

    def _replayed(self, arrays: dict[str, Any], ids: np.ndarray, views: np.ndarray) -> dict[str, Any]:
        """A batch's inputs as the teacher saw them; of blended items the labels, too, as shares of the classes."""
        assert self.replay is not None  # __getitem__ saw to it
        assert self.store is not None
        if not self.replay.pairs_items:
            return {"inputs": np.asarray(self.replay(arrays["inputs"], ids, views))}
        # The arrays are the whole dataset: a partner's place is its id.
        partners = np.asarray(self.replay.partners(ids, views, self.num_items))
        parts = arrays["inputs"], ids, views, self.arrays["inputs"][partners], self.num_items
        if "labels" not in arrays:
            return {"inputs": np.asarray(self.replay(*parts))}
        shares = [arrays["labels"], self.arrays["labels"][partners]]
        if shares[0].ndim == 1:
            shares = [np.eye(self.store.manifest.num_classes, dtype="float32")[classes] for classes in shares]
        inputs, labels = self.replay.with_labels(*parts, *shares)
        return {"inputs": np.asarray(inputs), "labels": np.asarray(labels)}

    def on_epoch_end(self) -> None:
        """The next epoch has another order."""
        self.epoch += 1


def attach(
    dataset: Data, store: SoftTargetStore | str | os.PathLike, *, teacher: Teacher | None = None, **options: Any
) -> StoredBatches | LabelledBatches:
    """`StoredBatches` over an open store or its folder (which is then verified); the options are its own.

    With a `teacher` the store grows: each view is labelled when it is first asked for, once. The options of
    `label` that say what is kept are taken too: `augmentation`, `views`, `top_k`, `dtype`, `members`, `temperature`,
    `from_logits`, `teacher_fingerprint`.

    A `keras.utils.PyDataset` becomes `LabelledBatches`, with its options `seed` and `check_items`.

    Example:
        >>> import tempfile
        >>> from keras_distill.targets.labelling import label
        >>> x, y = np.eye(4, dtype="float32"), np.arange(4)
        >>> store = label(lambda x: x * 5, x, tempfile.mkdtemp() + "/targets", teacher_fingerprint="five times")
        >>> batches = attach((x, y), store, batch_size=2)
        >>> all(np.array_equal(5 * x, y["soft_targets"]) for x, y in (batches[0], batches[1]))
        True
    """
    if hasattr(dataset, "element_spec"):
        remedy = "Give arrays (memory maps, too), or set KERAS_BACKEND=tensorflow."
        expected = f"be arrays on Keras's {keras.config.backend()} backend"
        raise ValueError(error_message(f"the dataset must {expected}", "a tf.data.Dataset", remedy))
    labelling = {name: options.pop(name) for name in LABELLING if name in options}
    store = opened(dataset, store, teacher, labelling, {name: options.get(name) for name in ("ids", "mask")})
    if is_py_dataset(dataset):
        check_scheme(store, None)
        return LabelledBatches(
            dataset, store, **{name: options[name] for name in ("seed", "check_items") if name in options}
        )
    check_has_ids(dataset)
    return StoredBatches(dataset, store, **options)


def permuted(positions: np.ndarray, num_items: int, key: list[int]) -> np.ndarray:
    """Where a permutation of [0, num_items), one for each key, sends some positions; int64, shaped as they are.

    A Feistel network over the next even number of bits; what it sends beyond `num_items` walks on until it is inside.

    Example:
        >>> sorted(permuted(np.arange(10), 10, [0, 1]).tolist()) == list(range(10))
        True

    Reference:
        Black, Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, sections 3 and 4.
    """
    half = np.uint64(max(1, -(-int(num_items - 1).bit_length() // 2)))
    mask = (np.uint64(1) << half) - np.uint64(1)
    round_keys = np.random.default_rng(key).integers(0, 1 << 63, _ROUNDS, dtype=np.uint64)
    values = np.array(positions, np.uint64)
    outside = np.ones(values.shape, bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mixed(right + round_key) & mask)
        values[outside] = (left << half) | right
        outside = values >= num_items
    return values.astype(np.int64)


def _mixed(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output function; uint64, shaped as `state`."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
