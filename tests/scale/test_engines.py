"""Both engines keep one contract: all tasks done, whoever dies; stores and specialists are those of one process."""

import os
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_distill import targets
from keras_distill.scale import Job, Processes, Ray, WorkersLostError, make_models
from keras_distill.scale.engines import engine_of
from keras_distill.scale.serialization import pack, unpack
from keras_distill.specialists import train, train_all
from keras_distill.teachers import Ensemble, OnnxTeacher

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import tasks  # noqa: E402

has_ray = find_spec("ray") is not None
with_ray = pytest.param(
    "ray",
    marks=[
        pytest.mark.ray,
        pytest.mark.slow,
        pytest.mark.skipif(not has_ray, reason="Ray is not installed: pip install keras-distill[ray]"),
        # Ray's own: pipes and files that it leaves to the collector.
        pytest.mark.filterwarnings("ignore::ResourceWarning"),
        pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
        pytest.mark.filterwarnings("ignore::FutureWarning"),
    ],
)
# A cluster that hangs fails.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster():
    """A head without processors and three machines of one each, all of them raylets on loopback."""
    import ray
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[1]), *([before] if before else [])]))
        # Ray's workers give way to every other process, unless told not to: tests beside them would starve them.
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            nodes = [cluster.add_node(num_cpus=1, include_dashboard=False) for _ in range(3)]
            ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
            yield cluster, nodes
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(scope="module", params=["local", with_ray])
def engine(request):
    if request.param == "local":
        return Processes(2, threads_per_worker=1)
    request.getfixturevalue("cluster")
    return Ray(2)


def teacher(seed=0, classes=4):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(classes, "softmax")])


def inputs(num_items=200):
    return np.random.default_rng(0).normal(size=(num_items, 6)).astype("float32")


def content(folder):
    """The bytes of every file of a store."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_every_task_is_done_once(engine):
    # So many that two answers of one worker are there at once.
    found = list(engine.run(Job(tasks.opened_square, (1,)), range(400)))
    assert sorted(found) == [(task, task * task + 1) for task in range(400)]
    assert list(engine.run(Job(tasks.opened_square, (1,)), [])) == []


def test_functions_of_a_script_travel_by_value(engine):
    scale = np.arange(5.0)
    found = dict(engine.run(Job(lambda: lambda task: float(scale[task]) + 1, ()), range(5)))
    assert found == {task: task + 1.0 for task in range(5)}


def test_what_a_task_raises_is_raised_here_with_the_workers_lines(engine):
    with pytest.raises(KeyError, match="what went wrong") as caught:
        list(engine.run(Job(tasks.opened_failing, ("what went wrong",)), range(4)))
    assert any("opened_failing" in note or "in work" in note for note in caught.value.__notes__)
    with pytest.raises(ValueError, match="must be one that opens"):
        list(engine.run(Job(tasks.cannot_open, ()), range(4)))


def test_a_killed_worker_costs_its_task_and_no_other(engine, tmp_path):
    (tmp_path / "kill-3").write_text("1")
    found = dict(engine.run(Job(tasks.opened_logged, (tmp_path,)), range(12)))
    assert sorted(found) == list(range(12))
    starts = Counter(int(file.name.split("-")[1]) for file in tmp_path.glob("start-*"))
    assert starts == {task: 2 if task == 3 else 1 for task in range(12)}
    assert len(set(found.values())) <= 3, "the two workers and the one that took the dead one's place"


def test_a_task_that_kills_whoever_does_it_ends_the_run(engine, tmp_path):
    (tmp_path / "kill-1").write_text("9")
    with pytest.raises(WorkersLostError, match="got 3 that died at task 1"):
        list(engine.run(Job(tasks.opened_logged, (tmp_path,)), range(4)))


@pytest.mark.parametrize("kind", ["dense", "top-k", "members", "augmented"])
def test_the_store_is_that_of_one_process_byte_for_byte(engine, tmp_path, kind):
    x, of_whom = inputs(), teacher()
    options = {"batch_size": 16, "rows_per_shard": 32}
    if kind == "top-k":
        options["top_k"] = 2
    elif kind == "members":
        of_whom, options["members"] = Ensemble([teacher(1), teacher(2)]), True
    elif kind == "augmented":
        x = x.reshape(-1, 3, 2, 1)[:60]
        of_whom = keras.Sequential([keras.Input((3, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        options["augmentation"] = targets.Augmentation(targets.Shift(1, exhaustive=True))
    targets.label(of_whom, x, tmp_path / "one", **options)
    store = targets.label(of_whom, x, tmp_path / "several", engine=engine, **options)
    assert store is not None
    assert store.manifest.num_shards > 2 * engine.num_workers
    assert content(tmp_path / "several") == content(tmp_path / "one")


def test_labelling_goes_on_where_it_was(engine, tmp_path):
    x = np.repeat(np.arange(160, dtype="float32")[:, None], 3, axis=1)
    (tmp_path / "log").mkdir()
    slow = tasks.SlowTeacher(tmp_path / "log", 0.0)
    options = {"batch_size": 16, "rows_per_shard": 16, "dtype": "float32"}
    targets.label(slow, x, tmp_path / "store", process=0, num_processes=2, **options)
    for file in (tmp_path / "log").iterdir():
        file.unlink()
    store = targets.label(slow, x, tmp_path / "store", engine=engine, **options)
    firsts = Counter(int(file.name.split("-")[1]) for file in (tmp_path / "log").iterdir())
    # The first batch is run once more to see what rows look like; else only the odd shards were missing.
    assert firsts == dict.fromkeys((0, 16, 48, 80, 112, 144), 1)
    np.testing.assert_array_equal(store.read(np.arange(160)), 10 * x)


@dataclass
class Examples:
    inputs: np.ndarray
    labels: np.ndarray


def test_all_specialists_are_those_that_train_makes_one_by_one(engine, tmp_path):
    x = inputs()
    examples = Examples(x, np.arange(len(x)) % 4)
    sets, recipe = [[0, 1], [2, 3], [1, 2]], {"num_steps": 12, "batch_size": 16, "learning_rate": 0.01}
    generalist = teacher()
    paths = train_all(generalist, sets, examples, tmp_path / "all", engine=engine, seed=5, **recipe)
    assert [path.name for path in paths] == [f"specialist-00{i}.keras" for i in range(3)]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [path.name for path in paths]
    for position, path in enumerate(paths):
        expected = train(generalist, sets[position], examples, seed=5 + position, **recipe)
        for found, weight in zip(keras.models.load_model(path).get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_allclose(found, weight, rtol=1e-5, atol=1e-6)
    paths[1].unlink()
    stamps = [paths[i].stat().st_mtime_ns for i in (0, 2)]
    train_all(generalist, sets, examples, tmp_path / "all", engine=engine, seed=5, **recipe)
    assert [paths[i].stat().st_mtime_ns for i in (0, 2)] == stamps
    assert paths[1].exists()


def test_models_are_made_whole_or_not_at_all(engine, tmp_path):
    def make(position):
        if position == 1:
            raise ValueError("no such member")
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(position + 1)])

    paths = [tmp_path / f"{position}.keras" for position in range(2)]
    with pytest.raises(ValueError, match="no such member"):
        make_models(make, paths, engine=engine)
    assert {file.name for file in tmp_path.iterdir()} <= {"0.keras"}
    make_models(lambda position: make(0), paths, engine=engine)
    assert keras.models.load_model(paths[1]).output_shape == (None, 1)


def test_an_error_in_one_worker_leaves_nothing_of_what_another_was_writing(engine, tmp_path):
    begun = tmp_path / "begun"

    def make(position):
        if position == 0:
            return tasks.HalfSaved(begun)
        tasks.wait_for(begun)
        raise ValueError("no such member")

    paths = [tmp_path / "models" / f"{position}.keras" for position in range(2)]
    with pytest.raises(ValueError, match="no such member"):
        make_models(make, paths, engine=engine)
    assert begun.exists(), "the first was being written when the second failed"
    assert list((tmp_path / "models").iterdir()) == []


def test_an_error_in_one_worker_leaves_no_half_written_shard(engine, tmp_path):
    begun = tmp_path / "begun"
    x = np.repeat(np.arange(4 * 16, dtype="float32")[:, None], 3, axis=1)
    teacher = tasks.FailsAtSecondShard(begun)
    with pytest.raises(RuntimeError, match="the device is gone"):
        targets.label(teacher, x, tmp_path / "store", engine=engine, batch_size=16, rows_per_shard=16, dtype="float32")
    assert begun.exists(), "the first shard was being written when the second failed"
    assert not list((tmp_path / "store").rglob(".partial-*"))


@pytest.mark.parametrize("name", [with_ray])
def test_a_killed_raylet_loses_no_item_and_at_most_one_shard_of_work(cluster, name, tmp_path):
    head, nodes = cluster
    (tmp_path / "log").mkdir()
    x = np.repeat(np.arange(24 * 16, dtype="float32")[:, None], 3, axis=1)
    slow = tasks.SlowTeacher(tmp_path / "log", 0.25)
    options = {"batch_size": 16, "rows_per_shard": 16, "dtype": "float32"}

    class Killing(Ray):
        """Once a few shards are there, a machine that has done some dies as when its plug is pulled."""

        def run(self, job, indices):
            # Two, not three: on a busy machine one of the raylets may be minutes late, or gone by itself.
            (tmp_path / "log" / "together-2").touch()
            for number, done in enumerate(super().run(job, indices)):
                if number == 4:
                    at_work = {raylet for _, _, raylet in batches(tmp_path / "log")}
                    killed = next(node for node in nodes if raylet_of(node) in at_work)
                    nodes.remove(killed)
                    head.remove_node(killed, allow_graceful=False)
                yield done

    num_machines = len(nodes)
    store = targets.label(slow, x, tmp_path / "store", engine=Killing(3), **options)
    assert len(nodes) == num_machines - 1
    np.testing.assert_array_equal(store.read(np.arange(len(x))), 10 * x)
    by_workers = [worker for _, worker, _ in batches(tmp_path / "log") if worker != os.getpid()]
    assert len(set(by_workers)) >= 2, "machines worked together"
    assert len(by_workers) <= 24 + 1
    targets.label(slow, x, tmp_path / "one", **options)
    assert content(tmp_path / "store") == content(tmp_path / "one")


def batches(log):
    """What `SlowTeacher` noted: the first item of each batch, the process that did it, and that process's parent."""
    return [tuple(map(int, file.name.split("-")[1:])) for file in log.glob("batch-*")]


def raylet_of(node):
    """The process of a machine that starts its workers."""
    return node.all_processes["raylet"][0].process.pid


@pytest.mark.parametrize("name", [with_ray])
def test_a_cluster_without_room_for_a_worker_is_refused(cluster, name):
    import ray

    # That a machine is gone is noticed while one asks, so before and after.
    room = [int(ray.cluster_resources()["CPU"])]
    found = Ray().num_workers
    room.append(int(ray.cluster_resources()["CPU"]))
    assert found in room
    with pytest.raises(ValueError, match="must have 8 CPU and 0 GPU for a worker; got at most 1 CPU"):
        Ray(cpus_per_worker=8)


def test_a_teacher_of_another_runtime_travels_by_its_file(tmp_path):
    from onnx import TensorProto, helper, save

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "logits")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["logits"])], "twice", values[:1], values[1:])
    path = tmp_path / "teacher.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    again = unpack(*pack(OnnxTeacher(path, num_threads=1)))
    x = inputs(4)[:, :3]
    np.testing.assert_array_equal(again(x), 2 * x)
    assert again.fingerprint == OnnxTeacher(path, num_threads=1).fingerprint


def test_a_memory_map_travels_as_the_name_of_its_file(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(10_000))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    data, buffers = pack({"whole": mapped, "part": mapped[10:20]})
    assert [buffer.nbytes for buffer in buffers] == [80]
    assert len(data) < 1000
    found = unpack(data, buffers)
    assert isinstance(found["whole"], np.memmap)
    np.testing.assert_array_equal(found["whole"], np.arange(10_000))
    np.testing.assert_array_equal(found["part"], np.arange(10, 20))


def test_bad_engines_are_refused(tmp_path):
    with pytest.raises(ValueError, match="engine must be 'local', 'ray' or an engine"):
        engine_of("dask")
    with pytest.raises(ValueError, match="num_processes must be 1 with an engine"):
        targets.label(teacher(), inputs(), tmp_path / "s", engine="local", num_processes=2)
    with pytest.raises(ValueError, match="num_workers must be >= 1"):
        Processes(0)
    import tensorflow as tf

    stream = tf.data.Dataset.from_tensor_slices(inputs())
    with pytest.raises(ValueError, match="an engine needs a dataset of arrays"):
        targets.label(teacher(), stream, tmp_path / "s", engine="local")
    assert not (tmp_path / "s").exists()
