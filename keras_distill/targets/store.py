"""Soft targets on disk: the format, written and read with NumPy alone. This text is its specification.

A store is a folder::

    manifest.json                             what the targets are, and which shards hold them
    shards/000000-9f86d081884c7d65.npy        rows 0 … rows_per_shard - 1
    shards/000001-60303ae22b998861.npy        the rows after them, and so on

**Rows.** An item of a data set has an integer id in `[0, num_items)`. A *view* of it is what one augmentation
seed makes of it; a store without augmentation has one view. Row `view * num_items + id` holds the teacher's
*raw logits* for that view of that item, little-endian and packed:

========= =====================================================================================================
kind      fields of a row
========= =====================================================================================================
dense     `logits` dtype[*example_shape, num_classes]
top_k     `top_k_logits` dtype[*example_shape, k], in falling order; `top_k_ids` unsigned[*example_shape, k], 16
          bits where num_classes <= 65536, else 32; `log_tail` float32[*example_shape], the log-sum-exp of the raw
          logits that are *not* kept, at temperature 1, or -1e30 where they have no share or there are none
members   `member_logits` dtype[*example_shape, members, num_classes]; the members' weights are in the manifest
sampled   `sampled_ids` unsigned[*example_shape, sample], 16 bits where num_classes <= 65536, else 32, no class
          twice, the one with the largest logit first; `counts` uint8[*example_shape, sample], which sum to 255;
          `entropy` float32[*example_shape], of the teacher's softmax at the `sampling_temperature`, in nats
========= =====================================================================================================

`dtype` is float16 or float32; `example_shape` is `[]` for one decision an item and `[time]` for a sequence.
Raw logits serve every temperature, except where the manifest gives a `temperature`: such a *merged* row is
`temperature * log(target)`, right at that temperature only, and a reader refuses any other.

**Sampled rows** hold no logits. Over the seeds that they may be drawn with, `counts / 255`, put at `sampled_ids` in a
row of zeros, is the teacher's softmax at the `sampling_temperature` in expectation, for every class (but for rounding,
1e-6 of a share); so a cross-entropy to it, and its gradient, are in expectation those of the dense target. How:
with shares p and k = `sample` places, let b be the smallest number for which the (b + 1)-th largest share is less than
τ = (1 − the b largest shares) / (k − b). The b largest are in the row. Of the others, as many as places are left: on
a line on which each class has its share for a length, one after the other by their ids, those that lie at
(j + u) · τ for j = 0 … k − b − 1. The b have their own shares, the drawn ones τ each; and a row's shares become counts
by the running sum s of 255 times the shares: ⌊s + v⌋ after a share less ⌊s + v⌋ before it. u and v are the row's
numbers 2 · place and 2 · place + 1 of `sampling.uniforms`: of the seed, the row and the place in it alone. At another
temperature the same row would need weights that are almost all noise (twice the squared error at 1.2 times
the temperature, more than the target itself at 2 times): a reader refuses it.

**Shards.** A shard is a `.npy` file (version 1.0) of a structured array, the rows; `numpy.load` reads it. After it
stands a second one, as `numpy.save` appends it to an open file: the *marks*, uint64. Shard `i` holds the n rows
`[i * rows_per_shard, (i + 1) * rows_per_shard)`, the last one maybe fewer, and the marks of 16 of their items: of rows
`c * (n - 4) // 3 + j`, c and j from 0 to 3, or of all n < 16. A mark is the first 8 bytes, a little-endian number, of
the SHA-256 of the item as it was before any augmentation: the bytes of its input, or of its inputs in the order of
their sorted names; 0 where the item was not known. By its marks a store knows its items again. A shard's name is
`i` in six digits, a dash, and the first 16 hexadecimal digits of the SHA-256 of its bytes: `sha256sum` checks
it. It is written aside under a name that starts with `.partial-`, flushed to disk and renamed, so a shard that
can be seen is whole, and two writers of the same shard do no harm: equal bytes have equal names.

**Manifest.** JSON, sorted keys, no time and no path in it, so that the same labels give the same bytes:

`format`, `version`: `"keras-distill soft targets"`, 3 for `sampled` and 2 for all other kinds. `kind`, `num_items`,
`num_views`, `num_classes`, `example_shape`, `dtype`, `top_k` (or null), `member_weights` (or null; sum 1),
`temperature` (or null).
`teacher_fingerprint`, `dataset_fingerprint`, `id_scheme`: text, compared for equality; the scheme says what an
id is. `"position"`: the place in the data set. `"token"`: items are tokens of sequences, an id is a token's place
among all that are no padding, one sequence after the other, and its mark is that of its sequence.
`every_item_fingerprint`: text, of all items, where it was cheap to have, else empty, which equals anything.
`augmentation`: null, or what replays a view from a seed. Of version 3 alone: `sample`, the number of classes a row;
`sampling_temperature`; `sampling_seed`, in [0, 2^63).
Three fields are there only where they say something:
`folds`, of a store whose targets are out of fold: `num_folds`, the `seed` that drew them, hashes of each item's fold
(`item_folds`) and of the `labels`, `made_by`, the name of what made the teachers, `from_logits`, and `calibrated_on`:
null, `"the fold itself"`, or a hash of the examples; `teacher_fingerprint` is then that of all teachers together.
`runtime`: `"onnxruntime"` where that answered in the teacher's place.
`head`: `"sigmoid"` where each logit is that of a sigmoid by itself; such rows are kept whole, `dense` or `members`.
`rows_per_shard`. `shards`: null while labelling goes on; then the file names, in order. `checksum`: SHA-256,
hexadecimal, of the manifest's own JSON without this field.

**Version 1** is read too. It has no marks and no `every_item_fingerprint`; in place of `log_tail` it has
`log_normalizer`, the log-sum-exp of *all* raw logits, from which a small tail follows only as the difference of two
rounded numbers: below 1e-3 at float16 and 1e-6 at float32 there is nothing left of it. Who opens such a store is told.

Not here: writing (`shards.py`), how a shard's rows are read (`rows.py`), the teacher (`labelling.py`), the data set
(`dataset.py`), and what a temperature means for the distillation loss (`keras_distill.losses`).
"""

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill._checks import check_count, check_positive, error_message
from keras_distill._types import ArrayLike
from keras_distill.targets.manifest import (
    NUM_COUNTS,
    DamagedShardError,
    ForeignDatasetError,
    FormatVersionError,
    Manifest,
    StoreError,
    UnfinishedStoreError,
    check_source,
)
from keras_distill.targets.rows import READS_BY_POSITION, MappedRows, PositionedRows
from keras_distill.targets.shards import is_sound, labelled_shards, marks_header, shard_header, shard_size

# Bytes of rows that a store may keep in memory as a whole, unless it is told otherwise.
_RESIDENT = 256 << 20
_REMEDY = "Copy the store again, or run the same `label` again: it replaces what is damaged."


class SoftTargetStore:
    """Reads a finished store: at random, in order, at any temperature.

    Shards are opened on first use: as memory maps, or, where a store has more than `resident_bytes` of rows, to be read
    by position, so that memory does not grow with the number of items.

    Attributes:
        path: the folder.
        manifest: what the store says of itself.

    Example:
        >>> import tempfile
        >>> from keras_distill.targets.shards import create, finish, write_shard
        >>> folder = tempfile.mkdtemp() + "/targets"
        >>> manifest = create(folder, Manifest(kind="dense", num_items=3, num_classes=2, dtype="float32"))
        >>> rows = np.zeros(3, manifest.row_dtype)
        >>> rows["logits"] = [[0, 0], [2, 0], [0, 4]]
        >>> _ = write_shard(folder, manifest, 0, rows), finish(folder, manifest)
        >>> store = SoftTargetStore.open(folder)
        >>> store.read([2, 0])
        array([[0., 4.], [0., 0.]], dtype=float32)
        >>> store.soft_targets([1], temperature=2.0).round(3)
        array([[0.731, 0.269]], dtype=float32)
    """

    def __init__(self, path: str | os.PathLike, manifest: Manifest, *, resident_bytes: int = _RESIDENT) -> None:
        self.path = Path(path)
        self.manifest = manifest
        self.resident_bytes = resident_bytes
        self._raw_row = np.dtype(f"V{manifest.bytes_per_row}")
        is_large = manifest.num_bytes > resident_bytes and READS_BY_POSITION
        self._rows_of = PositionedRows if is_large else MappedRows
        # Each holds a file open: 256 of them stay well below the usual limit of 1024.
        self._shards: OrderedDict[int, MappedRows | PositionedRows] = OrderedDict()
        self._max_shards = 256
        # A training and a validation pipeline may read from threads of their own.
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or another process needs to open the store for itself: open files and locks do not travel."""
        return {"path": self.path.absolute(), "manifest": self.manifest, "resident_bytes": self.resident_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        *,
        teacher_fingerprint: str | None = None,
        num_items: int | None = None,
        id_scheme: str | None = None,
        verify: bool = True,
        resident_bytes: int = _RESIDENT,
    ) -> "SoftTargetStore":
        """Opens a finished store, refusing by name one that is not what it should be.

        Args:
            path: the folder.
            teacher_fingerprint: of the teacher that should have labelled it (`labelling.fingerprint`).
            num_items: length of the data set that it should belong to.
            id_scheme: what an id should mean.
            verify: read every shard once and compare its checksum, about a second per GB. Without it only the
                shards' presence and sizes are checked.
            resident_bytes: up to how many bytes of rows a store is mapped, and may then stay in memory as a whole.

        Raises:
            FormatVersionError: no store, or one of another version.
            UnfinishedStoreError: labelling has not finished.
            StaleTeacherError: another teacher's.
            ForeignDatasetError: another data set's.
            DamagedShardError: a shard is absent, cut short or altered.
        """
        path = Path(path)
        file = path / "manifest.json"
        if not file.is_file():
            remedy = "Write one with `keras-distill label`."
            raise FormatVersionError(error_message(f"{path!s} must be a folder with a manifest.json", "none", remedy))
        manifest = Manifest.from_json(file.read_bytes(), file)
        check_source(path, manifest, teacher_fingerprint=teacher_fingerprint, num_items=num_items, id_scheme=id_scheme)
        if manifest.shards is None:
            num_there = len(labelled_shards(path, manifest))
            received = f"{num_there} of {manifest.num_shards} shards"
            raise UnfinishedStoreError(
                error_message(f"{path!s} must be finished", received, "Run the same `label` again.")
            )
        store = cls(path, manifest, resident_bytes=resident_bytes)
        if verify:
            store.verify()
        else:
            store._check_sizes()
        if manifest.version == 1 and manifest.kind == "top_k":
            store._warn_of_lost_tails()
        return store

    def __len__(self) -> int:
        """The number of items."""
        return self.manifest.num_items

    def __repr__(self) -> str:
        m = self.manifest
        form = f"top-{m.top_k} of {m.num_classes}" if m.kind == "top_k" else f"{m.kind} {m.num_classes}"
        if m.kind == "sampled":
            form = f"{m.sample} sampled of {m.num_classes}"
        return f"SoftTargetStore({str(self.path)!r}: {m.num_views} × {m.num_items} items, {form}, {m.dtype})"

    def verify(self) -> None:
        """Compares every shard with its checksum; raises `DamagedShardError` naming those that differ."""
        self._check_sizes()
        damaged = [name for name in self._shard_names if not is_sound(self.path / "shards" / name)]
        if damaged:
            shown = ", ".join(damaged[:3]) + (f" and {len(damaged) - 3} more" if len(damaged) > 3 else "")
            raise DamagedShardError(
                error_message(
                    f"{self.path}: every shard must be as it was written", f"{len(damaged)} altered ({shown})", _REMEDY
                )
            )

    def read(self, ids: ArrayLike, views: ArrayLike = 0) -> np.ndarray | dict[str, np.ndarray]:
        """The stored soft targets of some items, in the form that the losses take.

        Args:
            ids: integers in [0, num_items), any shape.
            views: integers in [0, num_views), one for all or shaped as `ids`.

        Returns:
            `dense`: logits, float32 `(*ids.shape, …, num_classes)`. `top_k`: `{"top_k_logits": float32 (…, k),
            "top_k_ids": int32 (…, k), "log_tail": float32 (…)}`; version 1 gives `"log_normalizer"` in place of
            `"log_tail"`. `members`: `{"member_logits": float32 (…, members, num_classes), "member_weights": float32
            (…, members)}`. `sampled`: `{"sampled_shares": float32 (…, sample), "sampled_ids": int32 (…, sample),
            "entropy": float32 (…), "sampling_temperature": float32 (…)}`, the shares summing to one. `top_k` and
            `sampled` have `"classes"` too, (…, 0, num_classes): no numbers, but a shape that says how many there are.

        Raises:
            ForeignDatasetError: an id is outside the store.
        """
        ids = np.asarray(ids)
        if not np.issubdtype(ids.dtype, np.integer):
            raise TypeError(error_message("ids must be integers", f"dtype {ids.dtype}"))
        self._check_range("ids", ids, self.manifest.num_items)
        rows = ids.astype(np.int64, copy=False)
        if self.manifest.num_views > 1 or np.any(views):
            views = np.asarray(views)
            self._check_range("views", views, self.manifest.num_views)
            rows = rows + views.astype(np.int64) * self.manifest.num_items
        return self._fields(self._gather(rows.reshape(-1)), ids.shape)

    def soft_targets(
        self, ids: ArrayLike, temperature: float, views: ArrayLike = 0
    ) -> np.ndarray | dict[str, np.ndarray]:
        """The probabilities that the teacher gives some items at a temperature: of classes, or each by itself.

        Returns:
            float32 `(*ids.shape, …, num_classes)`; for a top-k store a dictionary of `"probabilities"` (…, k), their
            `"ids"`, and `"tail_probability"` (…), what is left for all other classes if they share it evenly. So for a
            sampled store too: an estimate, which is right in expectation and leaves nothing.

        Raises:
            StoreError: the rows were merged, or sampled, at another temperature.
        """
        self.check_temperature(temperature)
        stored = self.read(ids, views)
        probabilities = _sigmoid if self.manifest.head == "sigmoid" else _softmax
        if not isinstance(stored, dict):
            return probabilities(stored / np.float32(temperature))
        if "member_logits" in stored:
            each = probabilities(stored["member_logits"] / np.float32(temperature))
            return np.sum(each * stored["member_weights"][..., None], axis=-2)
        if "sampled_ids" in stored:
            nothing = np.zeros_like(stored["entropy"])
            shares, ids = stored["sampled_shares"], stored["sampled_ids"]
            return {"probabilities": shares, "ids": ids, "tail_probability": nothing}
        num_tail = self.manifest.num_classes - stored["top_k_ids"].shape[-1]
        logits = stored["top_k_logits"].astype(np.float64)
        if num_tail:
            if self.manifest.version == 1:
                normalizer = stored["log_normalizer"].astype(np.float64)
                kept = np.sum(np.exp(np.minimum(logits - normalizer[..., None], 0.0)), axis=-1)
                log_tail = np.log(np.maximum(1.0 - kept, 1e-30)) + normalizer
            else:
                log_tail = stored["log_tail"].astype(np.float64)
            # The smallest logit that was kept may have been rounded to below the others' mean.
            tail_logit = np.minimum(log_tail[..., None] - np.log(num_tail), logits.min(axis=-1, keepdims=True))
            logits = np.concatenate([logits, tail_logit + temperature * np.log(num_tail)], axis=-1)
        shares = _softmax(logits / temperature).astype(np.float32)
        tail = shares[..., -1] if num_tail else np.zeros(shares.shape[:-1], np.float32)
        kept_shares = shares[..., :-1] if num_tail else shares
        return {"probabilities": kept_shares, "ids": stored["top_k_ids"], "tail_probability": tail}

    def check_temperature(self, temperature: float) -> None:
        """Raises `StoreError` where the rows were merged or sampled at another temperature than this."""
        check_positive("temperature", temperature)
        if self.manifest.only_temperature in (None, float(temperature)):
            return
        how, remedy = "merged", "Keep the members (members=True) to ask for any temperature."
        if self.manifest.kind == "sampled":
            how = "sampled"
            remedy = (
                f"Label again with temperature={float(temperature):g}, or keep logits: they serve every temperature."
            )
        expectation = f"temperature must be {self.manifest.only_temperature}, at which the rows were {how}"
        raise StoreError(error_message(expectation, temperature, remedy))

    def check_softmax(self) -> None:
        """Raises `StoreError` where the rows are logits of sigmoids, which a softmax would take for its own."""
        if self.manifest.head == "sigmoid":
            remedy = "Distil in Python with keras_distill.losses.BinarySoftTargets, or take a teacher with a softmax."
            raise StoreError(error_message(f"{self.path} must hold logits of a softmax", "those of sigmoids", remedy))

    def batches(self, batch_size: int, view: int = 0) -> Iterator[np.ndarray | dict[str, np.ndarray]]:
        """One view of all items in order of their ids, `batch_size` at a time, in the form of `read`."""
        check_count("batch_size", batch_size)
        self._check_range("view", np.asarray(view), self.manifest.num_views)
        first = view * self.manifest.num_items
        for start in range(0, self.manifest.num_items, batch_size):
            stop = min(start + batch_size, self.manifest.num_items)
            yield self._fields(self._slice(first + start, first + stop), (stop - start,))

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Rows as they lie on the disk, of `manifest.row_dtype`, `(n,)`; `rows` are their numbers, int64 `(n,)`."""
        return self._gather(rows).view(self.manifest.row_dtype)

    def marks(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids of items, int64, and their marks, uint64, in the order of the shards: of up to 256 shards, evenly spaced.

        An id may come more than once, in several views; items that are not known are left out.
        """
        ids, marks = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        num_shards = self.manifest.num_shards
        for index in np.unique(np.linspace(0, num_shards - 1, 256).astype(np.int64)).tolist():
            rows = self.manifest.marked_rows(index)
            if not len(rows):
                continue
            with open(self.path / "shards" / self._shard_names[index], "rb") as stream:
                stream.seek(-8 * len(rows) - len(marks_header(len(rows))), os.SEEK_END)
                header, body = stream.read(len(marks_header(len(rows)))), stream.read()
            if header != marks_header(len(rows)) or len(body) != 8 * len(rows):
                raise DamagedShardError(
                    error_message(f"{self.path}: shard {index} must end with its marks", "something else", _REMEDY)
                )
            ids.append(rows % self.manifest.num_items)
            marks.append(np.frombuffer(body, "<u8").astype(np.uint64))
        all_ids, all_marks = np.concatenate(ids), np.concatenate(marks)
        return all_ids[all_marks != 0], all_marks[all_marks != 0]

    @property
    def _shard_names(self) -> tuple[str, ...]:
        return self.manifest.shards or ()

    def _check_range(self, name: str, values: np.ndarray, limit: int) -> None:
        if values.size and not (values.min() >= 0 and values.max() < limit):
            outside = values[(values < 0) | (values >= limit)][0]
            remedy = "These are not the data that were labelled."
            raise ForeignDatasetError(
                error_message(f"{self.path}: {name} must be in [0, {limit})", int(outside), remedy)
            )

    def _check_sizes(self) -> None:
        names = self._shard_names
        if len(names) != self.manifest.num_shards:
            received = f"{len(names)}"
            raise DamagedShardError(
                error_message(f"{self.path}: there must be {self.manifest.num_shards} shards", received, _REMEDY)
            )
        inside = self.path.resolve()
        for index, name in enumerate(names):
            file = self.path / "shards" / name
            if not file.resolve().is_relative_to(inside):
                raise DamagedShardError(
                    error_message(f"{file!s} must be a file of the store", "a link that leaves it", _REMEDY)
                )
            expected = shard_size(self.manifest, index)
            received = f"{file.stat().st_size} bytes" if file.is_file() else "nothing"
            if received != f"{expected} bytes":
                raise DamagedShardError(error_message(f"{file!s} must be {expected} bytes long", received, _REMEDY))

    def _warn_of_lost_tails(self) -> None:
        """Warns where the tails of up to 1,024 rows, evenly spaced, are lost in the rounding of a version 1 store."""
        num_tail = self.manifest.num_classes - (self.manifest.top_k or 0)
        if not num_tail:
            return
        rows = np.unique(np.linspace(0, self.manifest.num_rows - 1, 1024).astype(np.int64))
        found = self._gather(rows).view(self.manifest.row_dtype)
        logits, normalizer = found["top_k_logits"], found["log_normalizer"]
        shares = np.exp(np.minimum(logits.astype(np.float64) - normalizer.astype(np.float64)[..., None], 0.0))
        # A number is off by up to half the distance to its neighbour, and a share by as much of itself.
        noise = 0.5 * np.sum(shares * (np.spacing(np.abs(logits)) + np.spacing(np.abs(normalizer))[..., None]), axis=-1)
        is_lost = 1.0 - np.sum(shares, axis=-1) < 10.0 * noise
        if is_lost.any():
            warnings.warn(
                f"{self.path} is of format 1, which keeps no tail of its own: in {np.mean(is_lost):.0%} of the rows "
                f"looked at, what the teacher gave to the {num_tail} classes that were not kept is lost in rounding. A "
                "loss with tail='uniform' or 'bucket' may be several times too large. Label again into a new folder.",
                stacklevel=3,
            )

    def _shard(self, index: int) -> MappedRows | PositionedRows:
        with self._lock:
            if index not in self._shards:
                start, stop = self.manifest.shard_rows(index)
                file = self.path / "shards" / self._shard_names[index]
                header = shard_header(self.manifest, stop - start)
                self._shards[index] = self._rows_of(file, header, self._raw_row, stop - start)
                if len(self._shards) > self._max_shards:
                    self._shards.popitem(last=False)
            self._shards.move_to_end(index)
            return self._shards[index]

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        shards = rows // self.manifest.rows_per_shard
        offsets = rows - shards * self.manifest.rows_per_shard
        gathered = np.empty(rows.size, self._raw_row)
        if not rows.size:
            return gathered
        if (shards[0] == shards).all():
            self._shard(int(shards[0])).take(offsets, gathered)
            return gathered
        order = np.argsort(shards, kind="stable")
        shards, offsets = shards[order], offsets[order]
        starts = np.flatnonzero(np.diff(shards, prepend=-1))
        stops = [*starts[1:].tolist(), rows.size]
        for index, start, stop in zip(shards[starts].tolist(), starts.tolist(), stops, strict=True):
            self._shard(index).take(offsets[start:stop], gathered[start:stop])
        in_order = np.empty_like(gathered)
        in_order[order] = gathered
        return in_order

    def _slice(self, start: int, stop: int) -> np.ndarray:
        parts = []
        while start < stop:
            index, offset = divmod(start, self.manifest.rows_per_shard)
            part = self._shard(index).slice(offset, offset + stop - start)
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _fields(self, raw: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | dict[str, np.ndarray]:
        rows = raw.view(self.manifest.row_dtype)
        found = {}
        for name in self.manifest.row_dtype.names or ():
            values = rows[name]
            dtype = np.int32 if name.endswith("_ids") else np.float32
            found[name] = values.astype(dtype).reshape(shape + values.shape[1:])
        if "counts" in found:
            counts = found.pop("counts")
            found["sampled_shares"] = np.multiply(counts, np.float32(1.0 / NUM_COUNTS), out=counts)
            # A loss of another temperature would be wrong in silence: with it, a `Distiller` knows.
            temperature = np.float32(self.manifest.sampling_temperature)
            found["sampling_temperature"] = np.full(found["entropy"].shape, temperature)
        if self.manifest.kind == "dense":
            return found["logits"]
        if self.manifest.kind in ("top_k", "sampled"):
            # Of these rows alone nobody could tell that a student has other classes.
            found["classes"] = np.empty(
                (*shape, *self.manifest.example_shape, 0, self.manifest.num_classes), np.float32
            )
        if self.manifest.member_weights is not None:
            weights = np.asarray(self.manifest.member_weights, np.float32)
            found["member_weights"] = np.broadcast_to(weights, found["member_logits"].shape[:-1]).copy()
        return found


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    # By the hyperbolic tangent, which overflows nowhere.
    return 0.5 + 0.5 * np.tanh(0.5 * logits)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
