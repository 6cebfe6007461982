"""The same student on one device and on several, on TensorFlow and on JAX, in one process and in two."""

import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from keras_distill import targets

sys.path.insert(0, str(Path(__file__).parent))
from student_run import CLASSES, arrays

SCRIPT = Path(__file__).parent / "student_run.py"
needs_jax = pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed: pip install keras-distill[jax]")


def start(out, *options, backend, devices=1):
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    argv = [sys.executable, str(SCRIPT), str(out), *map(str, options)]
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def two_processes(out, *options, of_second=()):
    """Two processes of JAX that train one student, on loopback; each knows its share of the store alone."""
    common = ("--distribute", "data-parallel", "--num-processes", 2, "--coordinator", f"127.0.0.1:{free_port()}")
    common = (*common, "--without", "tensorflow", *options)
    return [
        start(out, *common, "--process", 0, backend="jax"),
        start(out, *common, "--process", 1, *of_second, backend="jax"),
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's results by its options; each is run once."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def results(*options, backend="tensorflow", devices=1):
        key = (*options, backend, devices)
        if key not in done:
            out = folder / f"{len(done)}.npz"
            finish(start(out, *options, backend=backend, devices=devices))
            done[key] = dict(np.load(out))
        return done[key]

    return results


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Soft targets of the items, drawn at random: what they are is no matter here."""
    x, _, _ = arrays()
    logits = np.random.default_rng(8).normal(size=(len(x), CLASSES)).astype("float32")
    path = tmp_path_factory.mktemp("store") / "store"
    targets.label(lambda batch: logits[: len(batch)], x, path, teacher_fingerprint="random", dtype="float32")
    return path


def assert_same(found, expected):
    """Weights, losses and metrics within float32's rounding of sums in another order."""
    assert found.keys() == expected.keys()
    assert {"history total_loss", "evaluated accuracy", "weight 0"} <= found.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_two_mirrored_devices_train_the_student_that_one_trains(run):
    assert_same(run("--distribute", "mirrored"), run())


@pytest.mark.slow
@pytest.mark.jax
@needs_jax
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_on_jax_any_number_of_devices_trains_the_student_that_tensorflow_trains(run, devices):
    distribute = ("--distribute", "data-parallel") if devices > 1 else ()
    found = run(*distribute, "--without", "tensorflow", backend="jax", devices=devices)
    assert_same(found, run())


@pytest.mark.slow
@pytest.mark.jax
@needs_jax
def test_two_processes_train_the_student_that_one_trains(run, tmp_path):
    for process in two_processes(tmp_path / "two.npz"):
        finish(process)
    assert_same(dict(np.load(tmp_path / "two.npz")), run("--without", "tensorflow", backend="jax"))


@pytest.mark.slow
@pytest.mark.jax
@needs_jax
def test_two_processes_share_a_store_and_go_on_where_a_killed_one_left_them(run, store, tmp_path):
    shared = ("--store", store, "--backup", tmp_path / "backup")
    out = tmp_path / "two.npz"
    survivor, killed = two_processes(out, *shared, of_second=("--die-after", 2))
    killed.communicate(timeout=240)
    assert killed.returncode == -signal.SIGKILL
    # What waits for a lost peer is ended by whoever runs the job.
    survivor.kill()
    survivor.communicate()
    assert [file.name for file in (tmp_path / "backup").iterdir()] == ["epoch-000002"]

    for process in two_processes(out, *shared):
        finish(process)
    expected = run("--store", store, "--without", "tensorflow", backend="jax")
    found = dict(np.load(out))
    assert len(found["history total_loss"]) == 1, "two of the three epochs were done before the kill"
    for name, values in expected.items():
        last = values[-1:] if name.startswith("history") else values
        np.testing.assert_allclose(found[name], last, rtol=1e-5, atol=1e-6, err_msg=name)
    assert not (tmp_path / "backup").exists()
