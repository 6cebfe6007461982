"""What the tests' workers do; in a module of its own, since workers import it by name."""

import os
import signal
import time
from pathlib import Path

import numpy as np


def opened_square(offset):
    return lambda task: task * task + offset


def opened_failing(message):
    def work(task):
        if task == 2:
            raise KeyError(message)
        return task

    return work


def cannot_open():
    raise ValueError("the job must be one that opens; got this one.")


def opened_logged(folder):
    """Each start of a task is a file; one whose number is in `kills` kills its worker so many times."""
    folder = Path(folder)

    def work(task):
        starts = len(list(folder.glob(f"start-{task}-*")))
        (folder / f"start-{task}-{starts}").touch()
        kills = folder / f"kill-{task}"
        if kills.exists() and starts < int(kills.read_text()):
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    return work


def wait_for(file):
    deadline = time.monotonic() + 240
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def hang(sign):
    """Leaves a sign and goes no further: its process will be killed."""
    sign.touch()
    wait_for(sign.with_name("never"))


class HalfSaved:
    """In place of a model: one whose saving never ends."""

    def __init__(self, begun):
        self.begun = begun

    def save(self, path):
        Path(path).write_bytes(b"half of a model")
        hang(self.begun)


class FailsAtSecondShard:
    """A teacher of shards of 16 items: the first's worker hangs while it writes, and then the second's fails."""

    fingerprint = "ten times, and then gone"

    def __init__(self, begun):
        self.begun, self.of_driver = begun, os.getpid()

    def __call__(self, inputs):
        if os.getpid() != self.of_driver and inputs[0, 0] == 0:
            from keras_distill import _files

            # The shard is written, and about to get its name.
            _files.sync = lambda path: hang(self.begun)
        elif os.getpid() != self.of_driver:
            wait_for(self.begun)
            raise RuntimeError("the device is gone")
        return 10 * np.asarray(inputs)


class SlowTeacher:
    """Ten times the inputs, a batch at a time.

    Each batch leaves a file with its first item's number, the process that did it, and that process's parent.
    A file `together-N` in the folder: nobody's first batch ends before N have begun.
    """

    fingerprint = "ten times, slowly"

    def __init__(self, folder, seconds):
        self.folder, self.seconds, self.of_driver = Path(folder), seconds, str(os.getpid())

    def __call__(self, inputs):
        (self.folder / f"batch-{int(inputs[0, 0]):06d}-{os.getpid()}-{os.getppid()}").touch()
        for meeting in self.folder.glob("together-*"):
            deadline = time.monotonic() + 240
            while len(self._workers()) < int(meeting.name.split("-")[1]) and time.monotonic() < deadline:
                time.sleep(0.05)
        time.sleep(self.seconds)
        return 10 * np.asarray(inputs)

    def _workers(self):
        return {file.name.split("-")[2] for file in self.folder.glob("batch-*")} - {self.of_driver}
