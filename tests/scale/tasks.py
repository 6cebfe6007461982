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


class SlowTeacher:
    """Ten times the inputs, a batch at a time; each batch leaves a file with the first item's number and who did it.

    A file `together-N` in the folder: nobody's first batch ends before N have begun.
    """

    fingerprint = "ten times, slowly"

    def __init__(self, folder, seconds):
        self.folder, self.seconds, self.of_driver = Path(folder), seconds, str(os.getpid())

    def __call__(self, inputs):
        (self.folder / f"batch-{int(inputs[0, 0]):06d}-{os.getpid()}").touch()
        for meeting in self.folder.glob("together-*"):
            deadline = time.monotonic() + 240
            while len(self._workers()) < int(meeting.name.split("-")[1]) and time.monotonic() < deadline:
                time.sleep(0.05)
        time.sleep(self.seconds)
        return 10 * np.asarray(inputs)

    def _workers(self):
        return {file.name.split("-")[2] for file in self.folder.glob("batch-*")} - {self.of_driver}
