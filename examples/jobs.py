"""An experiment as independent jobs, each of which leaves a file: a killed run goes on where it stopped.

A job is a function of plain arguments that returns what JSON can hold. Jobs that do not need one another run side by
side, each on one core; what a job costs is written beside what it found.
"""

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        name: unique in the experiment; the name of its file.
        function: of a module, so that another process can find it.
        arguments: of the function, after the folder.
    """

    name: str
    function: Callable[..., dict[str, Any]]
    arguments: dict[str, Any] = field(default_factory=dict)


def run_jobs(jobs: Sequence[Job], folder: Path, num_workers: int = 1) -> dict[str, dict[str, Any]]:
    """Runs the jobs that have left no file yet, and reads what all of them found.

    Args:
        jobs: in the order in which they should begin; none needs another.
        folder: where their files are.
        num_workers: how many processes of one thread each; 1 runs the jobs here, on all the threads there are.

    Returns:
        Name → `{"figures": what the job returned, "cpu_seconds": …, "seconds": …}`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not _file(folder, job).is_file()]
    if num_workers == 1:
        for job in missing:
            _run(job, folder)
    elif missing:
        # Read by TensorFlow when a worker starts it.
        os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            for done in as_completed([pool.submit(_run, job, folder) for job in missing]):
                done.result()
    return {job.name: json.loads(_file(folder, job).read_text()) for job in jobs}


def run_phases(phases: Sequence[Sequence[Job]], arguments: Namespace) -> dict[str, dict[str, Any]]:
    """Runs one phase after another, each of which needs those before it, as the options that all experiments have say.

    Args:
        phases: the experiment's jobs.
        arguments: of `record.parser`: `out`, `jobs`, and `only`, the beginnings of the names that are wanted.

    Returns:
        What `run_jobs` found, of all phases.
    """
    found: dict[str, dict[str, Any]] = {}
    for jobs in phases:
        wanted = [job for job in jobs if arguments.only is None or job.name.startswith(tuple(arguments.only))]
        found |= run_jobs(wanted, arguments.out, arguments.jobs)
    return found


def _run(job: Job, folder: Path) -> None:
    wall, cpu = time.monotonic(), time.process_time()
    print(f"{job.name} …", file=sys.stderr, flush=True)
    figures = job.function(folder, **job.arguments)
    seconds, cpu_seconds = time.monotonic() - wall, time.process_time() - cpu
    found = {"figures": figures, "cpu_seconds": round(cpu_seconds, 1), "seconds": round(seconds, 1)}
    file = _file(folder, job)
    beside = file.with_suffix(".partial")
    beside.write_text(json.dumps(found, indent=1))
    beside.replace(file)
    print(f"{job.name}: {seconds:.0f} s, {cpu_seconds:.0f} CPU-s", file=sys.stderr, flush=True)


def _file(folder: Path, job: Job) -> Path:
    return folder / f"{job.name}.json"
