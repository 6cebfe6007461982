"""The local engine: processes on this machine, each with threads of its own share.

A worker is `python -m keras_distill.scale.worker`, spoken to through its standard input and output. So a script needs
no `if __name__ == "__main__"`, a notebook works, and nothing of this process (TensorFlow's threads, a GPU's memory) is
inherited.
"""

import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_distill._checks import check_count
from keras_distill.scale.engine import Engine, Event, Job, WorkerPool
from keras_distill.scale.serialization import pack


class Processes(Engine):
    """An engine of local processes.

    Args:
        num_workers: how many; `None` is one for each core.
        threads_per_worker: what each may compute with; `None` shares the cores out evenly.
        modules: those that register your own layers; each worker imports them.

    Example:
        >>> Processes(2, threads_per_worker=1).num_workers
        2
    """

    def __init__(
        self, num_workers: int | None = None, *, threads_per_worker: int | None = None, modules: Sequence[str] = ()
    ):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        super().__init__(cores if num_workers is None else num_workers, modules)
        share = max(1, cores // self.num_workers) if threads_per_worker is None else threads_per_worker
        self.threads_per_worker = check_count("threads_per_worker", share)

    def start_pool(self, job: Job) -> WorkerPool:
        """Processes that open `job`."""
        return _ProcessPool(job, self.threads_per_worker, self.modules)


def thread_limits(num_threads: int) -> dict[str, str]:
    """The environment in which NumPy, TensorFlow and JAX compute with so many threads.

    Example:
        >>> thread_limits(2)["TF_NUM_INTRAOP_THREADS"]
        '2'
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NPROC")
    return dict.fromkeys(names, str(num_threads))


class _ProcessPool(WorkerPool):
    """Running processes, and what they say, in one queue."""

    def __init__(self, job: Job, num_threads: int, modules: Sequence[str]):
        self._folder = tempfile.TemporaryDirectory(prefix="keras-distill-job-")
        data, buffers = pack((job.open, job.arguments))
        (Path(self._folder.name) / "job.pickle").write_bytes(data)
        # Workers map these files: however many they are, the arrays are in memory once.
        for number, buffer in enumerate(buffers):
            buffer.tofile(Path(self._folder.name) / f"buffer-{number:06d}")
        self._environment = os.environ | thread_limits(num_threads)
        self._environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._modules = list(modules)
        self._workers: list[subprocess.Popen] = []
        self._events: queue.Queue = queue.Queue()

    def add(self) -> int:
        argv = [sys.executable, "-m", "keras_distill.scale.worker", self._folder.name, *self._modules]
        # In a session of its own it does not hear the Ctrl-C that is meant for this process, which then ends it.
        worker = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment, start_new_session=True
        )
        self._workers.append(worker)
        number = len(self._workers) - 1
        threading.Thread(target=self._listen, args=(number, worker), daemon=True).start()
        return number

    def give(self, worker: int, task: Any) -> None:
        pipe = self._workers[worker].stdin
        assert pipe is not None
        try:
            pickle.dump(task, pipe)
            pipe.flush()
        except OSError:
            # It is dead; its listener says so.
            return

    def next_event(self) -> Event:
        return self._events.get()

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        self._folder.cleanup()

    def _listen(self, number: int, worker: subprocess.Popen) -> None:
        assert worker.stdout is not None
        while True:
            try:
                kind, value = pickle.load(worker.stdout)
            except (EOFError, OSError, pickle.UnpicklingError, ValueError):
                self._events.put(Event("lost", number))
                return
            self._events.put(Event(kind, number, value))
