"""A shard's rows, read in one of two ways: mapped into memory, or by their positions in the file.

A map is several times faster, but what was once read stays resident: a fault brings in the pages around it, of which
the kernel alone knows how many. Reading by position leaves nothing behind, whatever the size of the store.
"""

import mmap
import os
import weakref
from itertools import repeat
from pathlib import Path

import numpy as np

from keras_distill._checks import error_message
from keras_distill.targets.manifest import DamagedShardError

# Windows has no positioned reads: there every store is mapped.
READS_BY_POSITION = hasattr(os, "pread")


class MappedRows:
    """The rows of a shard as a memory map.

    Args:
        file: a shard.
        header: its opening bytes.
        row_dtype: raw bytes, `V<bytes a row>`: NumPy gathers those five times faster than structured rows.
        num_rows: how many there are.
    """

    def __init__(self, file: Path, header: bytes, row_dtype: np.dtype, num_rows: int):
        with open(file, "rb") as stream:
            _check_header(file, stream.read(len(header)), header)
            pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows = np.frombuffer(pages, row_dtype, count=num_rows, offset=len(header))

    def take(self, offsets: np.ndarray, out: np.ndarray) -> None:
        """Puts the rows at `offsets`, int64 `(n,)` and in range, into `out`, `(n,)`."""
        # "clip" writes straight into `out`.
        self._rows.take(offsets, out=out, mode="clip")

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Rows `[start, stop)`."""
        return self._rows[start:stop]


class PositionedRows:
    """The rows of a shard, read one by one; arguments and methods are those of `MappedRows`."""

    def __init__(self, file: Path, header: bytes, row_dtype: np.dtype, num_rows: int):
        self._file, self._row_dtype, self._num_rows, self._first = file, row_dtype, num_rows, len(header)
        self._handle = os.open(file, os.O_RDONLY)
        # With the last reference to these rows: another thread may be reading when the store lets go of them.
        weakref.finalize(self, os.close, self._handle)
        _check_header(file, os.pread(self._handle, len(header), 0), header)

    def take(self, offsets: np.ndarray, out: np.ndarray) -> None:
        """Puts the rows at `offsets`, int64 `(n,)` and in range, into `out`, `(n,)`."""
        size = self._row_dtype.itemsize
        places = (offsets * size + self._first).tolist()
        out[:] = self._rows_of(b"".join(map(os.pread, repeat(self._handle), repeat(size), places)), out.size)

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Rows `[start, stop)`."""
        size = self._row_dtype.itemsize
        num_rows = min(stop, self._num_rows) - start
        found = os.pread(self._handle, num_rows * size, start * size + self._first)
        return self._rows_of(found, num_rows)

    def _rows_of(self, found: bytes, num_rows: int) -> np.ndarray:
        expected = num_rows * self._row_dtype.itemsize
        if len(found) != expected:
            remedy = "It was cut short while it was read: copy the store again."
            raise DamagedShardError(
                error_message(f"{self._file!s} must hold {expected} bytes there", len(found), remedy)
            )
        return np.frombuffer(found, self._row_dtype)


def _check_header(file: Path, found: bytes, expected: bytes) -> None:
    if found != expected:
        remedy = "Copy the store again, or run the same `label` again: it replaces what is damaged."
        raise DamagedShardError(error_message(f"{file!s} must be a shard of this store", "another header", remedy))
