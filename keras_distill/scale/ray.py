"""The Ray engine: workers on all machines of a cluster, `keras-distill[ray]`.

A worker is an actor that opens the job once and then does tasks; a task is what is lost with a machine. Ray places
actors, moves the job's arrays once to each machine and notices who died; what to do about that is `engine.py`'s.
"""

import os
from collections import deque
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from keras_distill._checks import check_count, check_number, error_message
from keras_distill.scale.engine import Engine, Event, Job, WorkerPool
from keras_distill.scale.processes import thread_limits
from keras_distill.scale.serialization import pack, unpack
from keras_distill.scale.worker import portable


class Ray(Engine):
    """An engine of Ray actors.

    Joins the cluster that `address` or `RAY_ADDRESS` names, or that runs on this machine; without one it starts one
    here. Folders that tasks write to must be shared by all machines, and keras_distill installed on them.

    Args:
        num_workers: how many actors; `None` is as many as the cluster's processors and GPUs allow.
        cpus_per_worker: processors that an actor takes, and the threads that it computes with.
        gpus_per_worker: GPUs that it takes, possibly a part of one.
        address: the cluster's, as `ray.init` takes it.
        modules: those that register your own layers; each worker imports them.

    Raises:
        ImportError: Ray is not installed.
        ValueError: the cluster has no room for a single worker.
    """

    def __init__(
        self,
        num_workers: int | None = None,
        *,
        cpus_per_worker: int = 1,
        gpus_per_worker: float = 0,
        address: str | None = None,
        modules: Sequence[str] = (),
    ):
        ray = _ray()
        self.cpus_per_worker = check_count("cpus_per_worker", cpus_per_worker)
        self.gpus_per_worker = check_number("gpus_per_worker", gpus_per_worker)
        if not ray.is_initialized():
            # What Ray announces as its next default, and warns of until one chooses.
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            ray.init(address=address, include_dashboard=False, log_to_driver=False, configure_logging=False)
        room = self._room(ray.nodes())
        super().__init__(room if num_workers is None else num_workers, modules)

    def start_pool(self, job: Job) -> WorkerPool:
        """Actors that open `job`."""
        return _ActorPool(job, self.cpus_per_worker, self.gpus_per_worker, self.modules)

    def _room(self, nodes: list[dict[str, Any]]) -> int:
        """How many workers find a place; at least one."""
        room, most = 0, {"CPU": 0.0, "GPU": 0.0}
        for resources in (node["Resources"] for node in nodes if node["Alive"]):
            of_node = int(resources.get("CPU", 0) // self.cpus_per_worker)
            if self.gpus_per_worker:
                of_node = min(of_node, int(resources.get("GPU", 0) // self.gpus_per_worker))
            room += of_node
            most = {name: max(most[name], resources.get(name, 0)) for name in most}
        if not room:
            expected = f"have {self.cpus_per_worker} CPU and {self.gpus_per_worker:g} GPU for a worker"
            received = f"at most {most['CPU']:g} CPU and {most['GPU']:g} GPU"
            remedy = "Ask for less a worker, or add machines."
            raise ValueError(error_message(f"a machine of the Ray cluster must {expected}", received, remedy))
        return room


class _Worker:
    """What runs in an actor."""

    def open(self, data: bytes, buffers: list, modules: Sequence[str]) -> tuple[str, Any]:
        try:
            for module in modules:
                import_module(module)
            # References inside a list come as references: the arrays are mapped out of this machine's store.
            opened, arguments = unpack(data, _ray().get(buffers))
            self.work = opened(*arguments)
            return "ready", None
        except Exception as error:
            # Ray wraps what an actor raises in a class of its own, and loses what cannot travel.
            return "failed", portable(error)

    def do(self, task: Any) -> tuple[str, Any]:
        try:
            return "done", self.work(task)
        except Exception as error:
            return "failed", portable(error)


class _ActorPool(WorkerPool):
    """Running actors, and the references to what they were asked for."""

    def __init__(self, job: Job, num_cpus: int, num_gpus: float, modules: Sequence[str]):
        ray = _ray()
        data, buffers = pack((job.open, job.arguments))
        self._payload = (data, [ray.put(buffer) for buffer in buffers], list(modules))
        names = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL", "KERAS_DISTILL_DATA")
        environment = thread_limits(num_cpus) | {name: os.environ[name] for name in names if name in os.environ}
        self._actor = ray.remote(_Worker).options(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0, runtime_env={"env_vars": environment}
        )
        self._workers: list[Any] = []
        # References to the answers of each, in the order asked.
        self._asked: dict[int, deque[Any]] = {}

    def add(self) -> int:
        worker = self._actor.remote()
        self._workers.append(worker)
        number = len(self._workers) - 1
        self._asked[number] = deque([worker.open.remote(*self._payload)])
        return number

    def give(self, worker: int, task: Any) -> None:
        self._asked[worker].append(self._workers[worker].do.remote(task))

    def next_event(self) -> Event:
        ray = _ray()
        # Each one's oldest alone: of two answers that are there, Ray may name the younger first.
        oldest = {asked[0]: number for number, asked in self._asked.items() if asked}
        [reference], _ = ray.wait(list(oldest), num_returns=1)
        number = oldest[reference]
        self._asked[number].popleft()
        try:
            kind, value = ray.get(reference)
            return Event(kind, number, value)
        except ray.exceptions.RayTaskError:
            # Not the task's doing, which `_Worker` catches: a result that cannot travel, for example.
            raise
        except ray.exceptions.RayError:
            # Whatever else it was asked for is lost, too; and should it only be out of reach, it ends now.
            del self._asked[number]
            ray.kill(self._workers[number])
            return Event("lost", number)

    def close(self) -> None:
        for worker in self._workers:
            _ray().kill(worker)


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        remedy = "pip install keras-distill[ray]"
        raise ImportError(
            error_message("Ray must be installed for this engine", "no module named ray", remedy)
        ) from error
    return ray
