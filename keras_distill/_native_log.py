"""What native code writes to standard error while it starts: known lines are dropped, all others are kept.

TensorFlow, XLA and LiteRT greet every program with a dozen lines about missing GPUs and rounding, from C++, before any
setting of theirs is read. They hide the first line that means something.
"""

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

# Information of absl and TensorFlow, what they say of CUDA that is not there, and LiteRT's delegate.
_KNOWN = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|I\d{4} \d\d:\d\d"
    rb"|[WE]\d{4} \d\d:\d\d.*(cuda|CUDA|cuInit|cuDNN|cuBLAS|cuFFT|TensorRT)"
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: (I |[WE] .*(cuda|CUDA|cuDNN|cuBLAS|cuFFT|TensorRT))"
    rb"|To enable the following instructions"
    rb"|INFO: Created TensorFlow Lite XNNPACK delegate"
)

# The descriptor is the process's: of two that redirected it at once, the second would leave it at the first one's file.
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def quiet_start() -> Iterator[TextIO | None]:
    """Holds back what is written to standard error inside, and afterwards writes what is no known line of a start.

    The file descriptor is redirected, since native code does not ask Python: so it is for starting alone.

    Yields:
        Standard error as it was, for what shall be seen meanwhile; `None` where there is none, as under pythonw.
    """
    if not _ONE_AT_A_TIME.acquire(blocking=False):
        # Somebody else's start is quiet already; what this one says may be heard.
        yield sys.stderr
        return
    try:
        with _redirected() as stderr:
            yield stderr
    finally:
        _ONE_AT_A_TIME.release()


@contextmanager
def _redirected() -> Iterator[TextIO | None]:
    try:
        sys.stderr.flush()
        place = os.dup(2)
    except (OSError, ValueError, AttributeError):
        yield None
        return
    with tempfile.TemporaryFile() as held, os.fdopen(place, "w", encoding="utf-8", errors="replace") as stderr:
        os.dup2(held.fileno(), 2)
        try:
            yield stderr
        finally:
            sys.stderr.flush()
            os.dup2(place, 2)
            held.seek(0)
            os.write(2, b"".join(line for line in held if not _KNOWN.match(line)))
