"""A worker of the local engine: `python -m keras_distill.scale.worker FOLDER [MODULE …]`.

Opens the job in FOLDER, then does the tasks that come on its standard input, each a pickle, and says on its standard
output what came of them. It ends when its input does, as it does when the process that started it is gone.
"""

import os
import pickle
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill._types import Tensor
from keras_distill.scale.serialization import unpack


def main() -> int:
    """Opens, works, answers."""
    folder, modules = Path(sys.argv[1]), sys.argv[2:]
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever prints, prints to the error stream: the other one carries answers alone.
    os.dup2(2, 1)

    def answer(kind: str, value: Tensor) -> None:
        pickle.dump((kind, value), answers)
        answers.flush()

    try:
        work = open_job(folder, modules)
        answer("ready", None)
        while True:
            try:
                task = pickle.load(sys.stdin.buffer)
            except EOFError:
                return 0
            answer("done", work(task))
    except Exception as error:
        # The process that gave the task raises it again.
        answer("failed", portable(error))
        return 1


def open_job(folder: Path, modules: list[str]) -> Callable[[Any], Any]:
    """The function that does the tasks of the job in `folder`."""
    for module in modules:
        import_module(module)
    files = sorted(folder.glob("buffer-*"))
    buffers = [np.memmap(file, np.uint8, "r") if file.stat().st_size else b"" for file in files]
    opened, arguments = unpack((folder / "job.pickle").read_bytes(), buffers)
    return opened(*arguments)


def portable(error: Exception) -> Exception:
    """An exception that another process can read, with the lines where it arose."""
    lines = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        # Some exceptions hold what cannot travel, or want more arguments than they kept.
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a worker:\n{lines}")
    return error


if __name__ == "__main__":
    raise SystemExit(main())
