"""What a store says of itself: `Manifest`, the fields of `manifest.json`; and the errors that refuse a store by name.

The format is specified in `store.py`.
"""

import hashlib
import json
import math
import os
import re
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill._checks import check_choice, check_count, check_positive, error_message

FORMAT = "keras-distill soft targets"
# The newest that is read. Sampled rows came with it and nothing else: the other kinds are still written as version 2,
# which they can read who know no other.
VERSION = 3
_VERSION_OF = {"dense": 2, "top_k": 2, "members": 2, "sampled": 3}
# What a row holds for the logarithm of a share of 0: all numbers of a store are finite.
NOTHING = -1e30
_SAMPLING = ("sample", "sampling_temperature", "sampling_seed")
_NEW_IN = {"every_item_fingerprint": 2, "folds": 2, "runtime": 2, "head": 2, **dict.fromkeys(_SAMPLING, 3)}
# What most stores have nothing to say of: left out where it is null, so that they are as they always were.
_OPTIONAL = {"folds", "runtime", "head"}
_MAX_ROW_BYTES = 1 << 30
# The counts of a sampled row are so many in all: what 8 bits hold.
NUM_COUNTS = 255


class StoreError(ValueError):
    """A store that cannot be used as asked."""


class FormatVersionError(StoreError):
    """Not a store, or one of another version of the format."""


class UnfinishedStoreError(StoreError):
    """A store whose labelling has not come to its end."""


class StaleTeacherError(StoreError):
    """A store of another teacher's soft targets."""


class ForeignDatasetError(StoreError):
    """A store of another data set: its length, its ids or its contents differ."""


class DamagedShardError(StoreError):
    """A shard or manifest that is absent, cut short, or not what was written."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store says of itself; the fields are those of `manifest.json`, described in the module's text.

    Example:
        >>> manifest = Manifest(kind="top_k", num_items=1_000_000, num_classes=32_000, top_k=16)
        >>> manifest.bytes_per_row, manifest.num_bytes
        (68, 68000000)
    """

    kind: str
    num_items: int
    num_classes: int
    num_views: int = 1
    example_shape: tuple[int, ...] = ()
    dtype: str = "float16"
    top_k: int | None = None
    member_weights: tuple[float, ...] | None = None
    temperature: float | None = None
    teacher_fingerprint: str = ""
    dataset_fingerprint: str = ""
    id_scheme: str = "position"
    augmentation: dict[str, Any] | None = None
    rows_per_shard: int = 65536
    shards: tuple[str, ...] | None = None
    every_item_fingerprint: str = ""
    sample: int | None = None
    sampling_temperature: float | None = None
    sampling_seed: int | None = None
    folds: dict[str, Any] | None = None
    runtime: str | None = None
    head: str | None = None
    # 0 becomes the one that rows of this kind are written in.
    version: int = 0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, tuple(_VERSION_OF))
        if check_count("version", self.version, 0) == 0:
            object.__setattr__(self, "version", version_of(self.kind))
        oldest, newest = 3 if self.kind == "sampled" else 1, version_of(self.kind)
        if not oldest <= self.version <= newest:
            known = " to ".join(map(str, sorted({oldest, newest})))
            expectation = f"version must be {known} for kind {self.kind!r}"
            raise ValueError(error_message(expectation, self.version))
        check_choice("dtype", self.dtype, ("float16", "float32"))
        check_count("num_items", self.num_items)
        check_count("num_classes", self.num_classes)
        check_count("num_views", self.num_views)
        check_count("rows_per_shard", self.rows_per_shard)
        if (self.kind == "top_k") != (self.top_k is not None):
            raise ValueError(
                error_message(
                    f"top_k must be given for kind 'top_k' and for no other (kind is {self.kind!r})", self.top_k
                )
            )
        if (self.kind == "members") != (self.member_weights is not None):
            received = f"{self.member_weights} for kind {self.kind!r}"
            raise ValueError(
                error_message("member_weights must be given for kind 'members' and for no other", received)
            )
        if self.top_k is not None and check_count("top_k", self.top_k) > self.num_classes:
            raise ValueError(error_message(f"top_k must be <= num_classes = {self.num_classes}", self.top_k))
        if self.temperature is not None:
            check_positive("temperature", self.temperature)
        self._check_sampling()
        self._check_shapes()
        for name in ("teacher_fingerprint", "dataset_fingerprint", "every_item_fingerprint", "id_scheme"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(error_message(f"{name} must be text", repr(getattr(self, name))))
        if not isinstance(self.augmentation, (dict, type(None))):
            raise TypeError(error_message("augmentation must be an object or null", repr(self.augmentation)))
        if self.folds is not None and not isinstance(self.folds, dict):
            raise TypeError(error_message("folds must be an object or null", repr(self.folds)))
        if self.folds is not None:
            check_count("num_folds", self.folds.get("num_folds"), 2)
        if self.runtime is not None:
            check_choice("runtime", self.runtime, ("onnxruntime",))
        if self.head is not None:
            check_choice("head", self.head, ("sigmoid",))
            if self.kind not in ("dense", "members"):
                remedy = "A softmax alone has a tail, or classes to draw: leave top_k and sample out."
                raise ValueError(error_message("rows of a teacher of sigmoids must be whole", self.kind, remedy))
        # A name is a path below `shards/`: any other one may lead out of the store.
        if not isinstance(self.shards, (tuple, type(None))):
            raise TypeError(error_message("shards must be names or null", repr(self.shards)))
        for index, name in enumerate(self.shards or ()):
            if not (isinstance(name, str) and re.fullmatch(rf"{index:06d}-[0-9a-f]{{16}}\.npy", name)):
                expected = f"be {index:06d}-, 16 hexadecimal digits, .npy"
                raise ValueError(error_message(f"shards[{index}] must {expected}", repr(name)))

    def _check_sampling(self) -> None:
        for name in _SAMPLING:
            if (self.kind == "sampled") != (getattr(self, name) is not None):
                received = f"{getattr(self, name)} for kind {self.kind!r}"
                raise ValueError(error_message(f"{name} must be given for kind 'sampled' and for no other", received))
        if self.sample is None:
            return
        limit = min(NUM_COUNTS, self.num_classes)
        if check_count("sample", self.sample) > limit:
            remedy = f"A row holds one count for each of {NUM_COUNTS} parts of the target."
            raise ValueError(error_message(f"sample must be <= {limit}", self.sample, remedy))
        check_positive("sampling_temperature", self.sampling_temperature)
        if self.temperature not in (None, self.sampling_temperature):
            received = f"{self.temperature} and {self.sampling_temperature}"
            raise ValueError(error_message("merged rows must be sampled at the temperature of the merge", received))
        if check_count("sampling_seed", self.sampling_seed, 0) >= 1 << 63:
            raise ValueError(error_message("sampling_seed must be < 2^63", self.sampling_seed))

    def _check_shapes(self) -> None:
        if not isinstance(self.example_shape, tuple):
            raise TypeError(error_message("example_shape must be whole numbers", repr(self.example_shape)))
        for size in self.example_shape:
            check_count("example_shape", size)
        if self.member_weights is not None:
            if not isinstance(self.member_weights, tuple) or not self.member_weights:
                raise TypeError(error_message("member_weights must be numbers", repr(self.member_weights)))
            for weight in self.member_weights:
                check_positive("member_weights", weight)
        # NumPy's rows are at most as large as a C int says, and a batch of them lies in memory.
        width = (self.top_k or self.sample or self.num_classes) * len(self.member_weights or (1,))
        if 8 * width * math.prod(self.example_shape) > _MAX_ROW_BYTES:
            received = f"{(*self.example_shape, width)} numbers"
            raise ValueError(error_message(f"a row must take at most {_MAX_ROW_BYTES:,} bytes", received))

    @property
    def num_rows(self) -> int:
        """Views × items."""
        return self.num_views * self.num_items

    @property
    def num_shards(self) -> int:
        """How many shards hold the rows."""
        return -(-self.num_rows // self.rows_per_shard)

    @cached_property
    def row_dtype(self) -> np.dtype:
        """The structured type of a row."""
        number = "<f2" if self.dtype == "float16" else "<f4"
        shape = tuple(self.example_shape)
        if self.kind == "dense":
            return np.dtype([("logits", number, (*shape, self.num_classes))])
        if self.kind == "members":
            assert self.member_weights is not None  # __post_init__ saw to it
            return np.dtype([("member_logits", number, (*shape, len(self.member_weights), self.num_classes))])
        integer = "<u2" if self.num_classes <= 65536 else "<u4"
        if self.kind == "sampled":
            counted = (*shape, self.sample)
            return np.dtype([("sampled_ids", integer, counted), ("counts", "<u1", counted), ("entropy", "<f4", shape)])
        return np.dtype(
            [
                ("top_k_logits", number, (*shape, self.top_k)),
                ("top_k_ids", integer, (*shape, self.top_k)),
                ("log_normalizer" if self.version == 1 else "log_tail", "<f4", shape),
            ]
        )

    @property
    def bytes_per_row(self) -> int:
        """Bytes of a row."""
        return self.row_dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows; the shards' headers add 128 to 256 each."""
        return self.num_rows * self.bytes_per_row

    @property
    def only_temperature(self) -> float | None:
        """The temperature that rows were merged or sampled at, at which alone they are right; `None` for all others."""
        return self.temperature if self.sampling_temperature is None else self.sampling_temperature

    def shard_rows(self, index: int) -> tuple[int, int]:
        """First row of shard `index`, and the first after it."""
        start = index * self.rows_per_shard
        return start, min(start + self.rows_per_shard, self.num_rows)

    def marked_rows(self, index: int) -> np.ndarray:
        """The rows of shard `index` whose items are marked, int64, rising: four groups of four, evenly spaced.

        Groups, for each costs a look into a batch that is long out of the processor's cache.

        Example:
            >>> Manifest(kind="dense", num_items=100, num_classes=2).marked_rows(0).tolist()
            [0, 1, 2, 3, 32, 33, 34, 35, 64, 65, 66, 67, 96, 97, 98, 99]
        """
        start, stop = self.shard_rows(index)
        num_rows = 0 if self.version == 1 else stop - start
        if num_rows < 16:
            return np.arange(start, start + num_rows)
        # Whole numbers alone: the places are part of the format, and no rounding may move them.
        return (start + np.arange(4)[:, None] * (num_rows - 4) // 3 + np.arange(4)).reshape(-1)

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        content = {"format": FORMAT, **asdict(self)}
        content = {name: value for name, value in content.items() if _NEW_IN.get(name, 1) <= self.version}
        content = {name: value for name, value in content.items() if value is not None or name not in _OPTIONAL}
        content["checksum"] = _checksum(content)
        return json.dumps(content, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, path: Path) -> "Manifest":
        """Reads `manifest.json`; `path` is for the error messages."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DamagedShardError(f"{path} is damaged: it is not JSON ({error}). Copy it again.") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise FormatVersionError(f"{path} is no manifest of soft targets. Name a folder that `label` wrote.")
        version = content.get("version")
        if isinstance(version, bool) or version not in range(1, VERSION + 1):
            remedy = "Label again, or install the version of keras-distill that wrote it."
            expected = f"{path}: the format's version must be 1 to {VERSION}"
            raise FormatVersionError(error_message(expected, version, remedy))
        checksum = content.pop("checksum", None)
        if checksum != _checksum({"format": FORMAT, **content}):
            raise DamagedShardError(f"{path} is damaged: its checksum does not match. Copy it again.")
        known = {field.name for field in fields(cls) if _NEW_IN.get(field.name, 1) <= int(version or 0)}
        if unknown := set(content) - known:
            raise FormatVersionError(f"{path} has fields that version {version} does not know: {sorted(unknown)}.")
        if missing := sorted(known - _OPTIONAL - set(content)):
            raise DamagedShardError(f"{path} is damaged: it lacks {missing}. Copy it again.")
        for name in ("example_shape", "member_weights", "shards"):
            if isinstance(content[name], list):
                content[name] = tuple(content[name])
        try:
            return cls(**content)
        except (ValueError, TypeError) as error:
            raise DamagedShardError(f"{path} cannot be: {error} Copy it again.") from error


def version_of(kind: str) -> int:
    """The version of the format that rows of a kind are written in: the oldest that has them as they are today."""
    return _VERSION_OF[kind]


def rows_per_shard_for(num_rows: int, bytes_per_row: int, batch_size: int = 1) -> int:
    """A shard size, in rows: a kill costs at most a few per cent of the labelling, and 64 processes find work.

    A 64th of the rows, but at least 4096 and at most 256 MiB, since a shard is put together in memory; a
    multiple of `batch_size`, so that a shard's bytes do not depend on where an earlier run stopped.

    Example:
        >>> rows_per_shard_for(1_000_000, 68, batch_size=256)
        15872
    """
    rows = max(-(-num_rows // 64), 4096)
    rows = max(1, min(rows, (256 << 20) // bytes_per_row))
    return max(rows - rows % -batch_size, batch_size) if rows % batch_size else rows


def check_source(
    path: str | os.PathLike,
    manifest: Manifest,
    *,
    teacher_fingerprint: str | None = None,
    dataset_fingerprint: str | None = None,
    every_item_fingerprint: str = "",
    num_items: int | None = None,
    id_scheme: str | None = None,
) -> None:
    """Raises `StaleTeacherError` or `ForeignDatasetError` where the store is of another teacher or data set.

    `None` asks nothing, and neither does an `every_item_fingerprint` of `""`, here or in the manifest.
    """
    again = "Label again into a new folder"
    if teacher_fingerprint not in (None, manifest.teacher_fingerprint):
        raise StaleTeacherError(
            error_message(
                f"{path}: the teacher's fingerprint must be {teacher_fingerprint!r}, that of the teacher given now",
                repr(manifest.teacher_fingerprint),
                f"The teacher has changed since. {again}.",
            )
        )
    questions: tuple[tuple[str, Any, Any], ...] = (
        ("number of items", num_items, manifest.num_items),
        ("id scheme", id_scheme, manifest.id_scheme),
        ("data set's fingerprint", dataset_fingerprint, manifest.dataset_fingerprint),
        ("fingerprint of every item", *_if_both(every_item_fingerprint, manifest.every_item_fingerprint)),
    )
    for name, expected, received in questions:
        if expected not in (None, received):
            remedy = f"{again}, or give the data that were labelled, in their order."
            raise ForeignDatasetError(
                error_message(
                    f"{path}: the {name} must be {expected!r}, that of the data given now", repr(received), remedy
                )
            )


def _if_both(expected: str, received: str) -> tuple[str | None, str | None]:
    return (expected, received) if expected and received else (None, None)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
