"""What an engine is: workers that open a job once and do its tasks one at a time; those of dead workers are redone.

`processes.py` and `ray.py` say how workers are started and heard; here it is said what they do.
"""

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from keras_distill._checks import check_count, error_message


@dataclass(frozen=True)
class Job:
    """What a worker opens: `open(*arguments)` gives the function that does a task.

    Both travel to the worker: functions and classes that can be imported there, or (by value) those of a script or a
    notebook. A Keras model travels as `serialize(model)`.
    """

    open: Callable[..., Callable[[Any], Any]]
    arguments: tuple


@dataclass(frozen=True)
class Event:
    """What is heard of a worker: `"ready"`, `"done"` (a result), `"failed"` (an exception) or `"lost"`."""

    kind: str
    worker: int
    value: Any = None


class WorkersLostError(RuntimeError):
    """Workers died, and those that took their place died too."""


class WorkerPool(ABC):
    """The workers of one run. A context: leaving it ends them."""

    @abstractmethod
    def add(self) -> int:
        """Starts a worker, which opens the job; returns its number."""

    @abstractmethod
    def give(self, worker: int, task: Any) -> None:
        """Gives a ready worker a task; it does them in the order given."""

    @abstractmethod
    def next_event(self) -> Event:
        """Waits until something is heard."""

    @abstractmethod
    def close(self) -> None:
        """Ends all workers."""

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


class Engine(ABC):
    """Runs jobs.

    Attributes:
        num_workers: how many workers a run has at most.
        modules: imported by each worker before it opens a job: those that register your own layers.
    """

    #: How many workers may die at a task, or before they are ready, until the run gives up.
    max_deaths = 3

    def __init__(self, num_workers: int, modules: Sequence[str] = ()):
        self.num_workers = check_count("num_workers", num_workers)
        self.modules = tuple(modules)

    @abstractmethod
    def start_pool(self, job: Job) -> WorkerPool:
        """Workers for a job, none of them started."""

    def run(self, job: Job, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Does all tasks, in any order, each once or, where a worker dies at it, again.

        Args:
            job: what each worker opens.
            tasks: what its function is called with; small, they travel each time.

        Yields:
            (task, result), as they are done.

        Raises:
            WorkersLostError: `max_deaths` workers in a row died at the same task, or before they were ready.
            Exception: what opening the job or a task raised in a worker; the other workers are ended.
        """
        waiting = deque(enumerate(tasks))
        if not waiting:
            return
        deaths: Counter = Counter()
        held: dict[int, deque] = {}
        with self.start_pool(job) as pool:
            for _ in range(min(self.num_workers, len(waiting))):
                pool.add()
            while waiting or any(held.values()):
                event = pool.next_event()
                if event.kind == "failed":
                    raise event.value
                if event.kind == "lost":
                    mine = held.pop(event.worker, None)
                    died_at = mine[0][0] if mine else None
                    deaths[died_at] += 1
                    if deaths[died_at] >= self.max_deaths:
                        raise WorkersLostError(_of_deaths(mine[0][1] if mine else None, deaths[died_at]))
                    waiting.extendleft(reversed(mine or ()))
                    if waiting:
                        pool.add()
                elif event.kind == "ready":
                    held[event.worker] = deque()
                    deaths[None] = 0
                else:
                    _, task = held[event.worker].popleft()
                # One at a time: a worker that dies at a task it was given ahead may take the last one's answer with it.
                for worker, tasks_of_worker in held.items():
                    if waiting and not tasks_of_worker:
                        tasks_of_worker.append(waiting.popleft())
                        pool.give(worker, tasks_of_worker[-1][1])
                if event.kind == "done":
                    yield task, event.value


def _of_deaths(task: Any, number: int) -> str:
    place = "before it was ready" if task is None else f"at task {task!r}"
    remedy = "Look at the workers' output, and whether their machine has memory for the model and the data."
    return error_message("a worker must stay alive until its task is done", f"{number} that died {place}", remedy)
