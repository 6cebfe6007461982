"""A process that has imported the converters and forks a worker for every conversion.

A conversion takes half a second, importing TensorFlow before it three. So the first conversion of a program starts this
process, which imports, runs nothing, and stays at hand for a minute after the last one. Each conversion still has
a process of its own, forked from what a fresh one is after its imports: what it breaks, leaks or dies of ends with it.

Forking is safe only in a process of one thread. TensorFlow starts its threads at its first operation, which no
server ever runs, and `serve` makes sure. Where a fork is not to be had, `conversion.py` starts a fresh process each
time: the same worker, and slower.
"""

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

# How long a server without work waits for more, in seconds; it holds some 300 MB.
IDLE_S = 60.0
# What every job of `worker.py` needs, and what starts no thread when imported; onnxruntime would.
PRELOADED = (
    "numpy",
    "tensorflow",
    "tf2onnx.tfonnx",
    "onnx",
    "flatbuffers",
    "ai_edge_litert.schema_py_generated",
    "keras_distill.deploy.worker",
)
# What those import where it is installed, and can do without: Arrow starts a thread, and then nobody may fork.
LEFT_OUT = ("pandas", "pyarrow")
# A worker that was killed is gone after so many seconds, or never.
DEATH_S = 10.0


class NotServed(Exception):
    """No worker was forked: this machine cannot, or the server does not start."""


def environment() -> dict[str, str]:
    """The environment of a process that converts: the caller's packages, no GPU, Keras on TensorFlow."""
    return os.environ | {
        # The worker finds packages where this process did, whether installed, editable or on a test's path.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "KERAS_BACKEND": "tensorflow",
    }


# The caller's side


class WarmProcess:
    """A server that is started when it is first needed, and again when it has gone.

    Args:
        command: what starts it; the number of its socket is appended.
    """

    def __init__(self, command: Sequence[str]):
        self._command = list(command)
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._connection: socket.socket | None = None
        self._owner = 0
        self._is_available = sys.platform == "linux"

    def start(self) -> None:
        """Begins the imports, while the caller has something else to do."""
        if self._is_available:
            with self._lock:
                self._start()

    def run(self, job: Mapping[str, Any], time_limit_s: float) -> subprocess.CompletedProcess[str]:
        """Runs one job in a worker of its own; returns its exit code, `-signal` where one killed it, and its stderr.

        Args:
            job: what `serve` hands to the worker, JSON.
            time_limit_s: seconds until the worker is killed.

        Raises:
            NotServed: nobody took the job.
            subprocess.TimeoutExpired: the worker was killed for its time.
        """
        while self._is_available:
            with ExitStack() as ends:
                exit_code, stderr = _pipe(ends), _pipe(ends)
                with self._lock:
                    is_new = self._start()
                    assert self._connection is not None
                    try:
                        writes = [exit_code[1].fileno(), stderr[1].fileno()]
                        socket.send_fds(self._connection, [json.dumps(job).encode()], writes)
                    except OSError:
                        pass  # it has just gone, and the empty pipe says so below
                    exit_code[1].close()
                    stderr[1].close()
                worker = _Worker(exit_code[0].fileno(), stderr[0].fileno())
                worker.wait(time_limit_s)
            if worker.said:
                return subprocess.CompletedProcess([], worker.exit_code, stderr=worker.stderr.decode(errors="replace"))
            # One that had been idle for too long left this very moment; one that was just started cannot serve.
            self._is_available = not is_new
        raise NotServed

    def stop(self) -> None:
        """Ends the server; workers that are at work end by themselves."""
        with self._lock:
            self._stop()

    def _start(self) -> bool:
        """Starts the server unless it runs; returns whether it is a new one."""
        # A fork of this process has its variables and is not its parent.
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return False
        self._stop()
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno())],
                # BLAS would start threads when NumPy is imported.
                env=environment() | {"OPENBLAS_NUM_THREADS": "1"},
                cwd="/",
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C in the terminal is for the caller, which ends its workers itself.
                start_new_session=True,
            )
        self._owner = os.getpid()
        atexit.unregister(self.stop)
        atexit.register(self.stop)
        return True

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None and self._owner == os.getpid():
            # It would see the closed connection only after its imports.
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None


class _Worker:
    """A worker as its caller sees it: through two pipes.

    Attributes:
        said: what the server says of it: its process id and, once it has ended, its exit code.
        stderr: the end of what it printed.
    """

    def __init__(self, exit_code: int, stderr: int):
        self._pipes = [exit_code, stderr]
        self.said = self.stderr = b""

    def wait(self, time_limit_s: float) -> None:
        """Waits for its end; where that does not come in time, or the wait is interrupted, kills it."""
        try:
            self._read(time_limit_s)
        except BaseException:
            if self.said:
                self._kill()
                with suppress(subprocess.TimeoutExpired):
                    self._read(DEATH_S)
            raise
        if len(self.said.split()) == 1:
            # The server was killed, and the worker is nobody's now.
            self._kill()

    @property
    def exit_code(self) -> int:
        """`-signal` where one killed it."""
        words = self.said.split()
        return int(words[1]) if len(words) > 1 else -signal.SIGKILL

    def _read(self, time_limit_s: float) -> None:
        exit_code, *others = self._pipes
        deadline = time.monotonic() + time_limit_s
        while True:
            left = deadline - time.monotonic()
            ready = select.select(self._pipes, [], [], max(0.0, left))[0]
            if not ready:
                raise subprocess.TimeoutExpired("worker", time_limit_s)
            if others and others[0] in ready:
                part = os.read(others[0], 1 << 16)
                self.stderr = (self.stderr + part)[-(1 << 16) :]
                if not part:
                    del self._pipes[1:]
                    others = []
            elif part := os.read(exit_code, 64):
                self.said += part
            else:
                return

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(int(self.said.split()[0]), signal.SIGKILL)


# The one server of this process; it starts when it is first needed.
WARM_PROCESS = WarmProcess([sys.executable, "-P", "-m", "keras_distill.deploy.warm"])


def _pipe(ends: ExitStack) -> tuple[Any, Any]:
    read, write = os.pipe()
    return ends.enter_context(open(read, "rb", 0)), ends.enter_context(open(write, "wb", 0))


# The server's side


def serve(connection: socket.socket, work: Callable[[Any], int], preloaded: Sequence[str] = PRELOADED) -> int:
    """Forks a worker for every job that arrives; returns an exit code, the server's in itself and a job's in a worker.

    A job comes with two pipes: the server writes the worker's process id into the first and, at its end, its exit
    code; the second is the worker's stdout and stderr.

    Args:
        connection: where jobs come from; at its other end's closing the server ends.
        work: what a worker does with a job.
        preloaded: modules to import first.
    """
    with _as_if_absent(LEFT_OUT):
        for name in preloaded:
            importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        return 1
    # What is here now is never swept again: a sweep would copy every page of it into every worker.
    gc.collect()
    gc.freeze()
    pipes: dict[int, int] = {}
    wakes, waker = socket.socketpair()
    wakes.setblocking(False)
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno())
    while True:
        ready = select.select([connection, wakes], [], [], None if pipes else IDLE_S)[0]
        if not ready:
            return 0
        if wakes in ready:
            wakes.recv(4096)
            _bury(pipes)
        if connection not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        if not message:
            return 0
        exit_code, stderr = descriptors
        worker = os.fork()
        if not worker:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for stream in (1, 2):
                os.dup2(stderr, stream)
            for descriptor in (exit_code, stderr, *pipes.values()):
                os.close(descriptor)
            for end in (connection, wakes, waker):
                end.close()
            return work(json.loads(message))
        os.close(stderr)
        pipes[worker] = exit_code
        if not _tell(exit_code, worker):
            # The caller has given up while this process was importing.
            os.kill(worker, signal.SIGKILL)


@contextmanager
def _as_if_absent(names: Sequence[str]) -> Iterator[None]:
    """Modules that are not there for whoever imports them in the meantime."""
    # `None` is Python's own sign for it. A worker may import them afterwards.
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _bury(pipes: dict[int, int]) -> None:
    """Says of every worker that has ended how it did."""
    while pipes:
        worker, status = os.waitpid(-1, os.WNOHANG)
        if not worker:
            return
        pipe = pipes.pop(worker)
        _tell(pipe, os.waitstatus_to_exitcode(status))
        os.close(pipe)


def _tell(pipe: int, number: int) -> bool:
    """Writes a number into a pipe; returns whether anybody reads it."""
    try:
        os.write(pipe, f"{number}\n".encode())
    except BrokenPipeError:
        return False
    return True


def _convert(job: Any) -> int:
    from keras_distill.deploy.worker import main

    os.chdir(Path(job["request"]).parent)
    return main(job["request"], job["reply"])


if __name__ == "__main__":
    sys.exit(serve(socket.socket(fileno=int(sys.argv[1])), _convert))
