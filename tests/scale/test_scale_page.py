"""The commands of docs/scale.md, as they stand there."""

import os
import re
import shlex
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_distill import data
from keras_distill.deploy import read_bundle
from keras_distill.targets import SoftTargetStore

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line.strip()
]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
jax = pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed: pip install keras-distill[jax]")
ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install keras-distill[ray]")


def start(command, folder):
    words = shlex.split(command)
    # A Ray of its own: another test's cluster may run on this machine.
    of_ray = {"RAY_ADDRESS": "local", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3", PYTHONPATH=str(ROOT), **of_ray)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    assert words.pop(0) == "keras-distill"
    program = "import sys; from keras_distill.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder, *parts, **changes):
    """Runs the page's commands that have all these parts in them, at once; returns what they printed."""
    chosen = [command for command in COMMANDS if all(part in command for part in parts)]
    assert chosen, f"the page has no command with {parts}"
    for old, new in changes.items():
        chosen = [command.replace(old, new) for command in chosen]
    processes = [start(command, folder) for command in chosen]
    printed = [process.communicate(timeout=400)[0] for process in processes]
    for process, command, text in zip(processes, chosen, printed, strict=True):
        assert process.returncode == 0, f"{command}\n{text}"
    return printed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher and a student of the digits, both better than chance: what else they know is no matter here."""
    folder = tmp_path_factory.mktemp("page")
    for name, seed, units in (("teacher", 1, 32), ("student", 2, 8)):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(units, "relu"),
                keras.layers.Dense(10, "softmax"),
            ]
        )
        digits = data.load("digits").train
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        model.fit(digits.inputs, digits.labels, epochs=2, verbose=0)
        model.save(folder / f"{name}.keras")
    run(folder, "label", "--workers 2")
    return folder


def weights(path):
    return keras.models.load_model(path).get_weights()


def test_two_workers_label_what_the_teacher_says(folder):
    store = SoftTargetStore.open(folder / "targets")
    items = data.load("digits").train.inputs
    expected = np.asarray(keras.models.load_model(folder / "teacher.keras")(items))
    np.testing.assert_allclose(store.soft_targets(np.arange(len(items)), 1.0), expected, atol=2e-3)


@pytest.mark.ray
@ray
def test_ray_labels_the_same(folder):
    run(folder, "label", "--engine ray")
    stores = [
        {file.name: file.read_bytes() for file in (folder / name).rglob("*") if file.is_file()}
        for name in ("targets", "targets-by-ray")
    ]
    assert stores[0] == stores[1]


def test_two_workers_train_the_specialists(folder):
    [printed] = run(folder, "specialists")
    assert "merged" in printed
    assert len(list((folder / "specialists").glob("specialist-*.keras"))) == 3


def test_mirrored_devices_train_a_student(folder):
    [printed] = run(folder, "--distribute mirrored")
    assert "saved student-1.keras" in printed


@pytest.mark.jax
@jax
def test_one_process_of_jax_and_two_train_the_same_student(folder):
    run(folder, "--distribute data-parallel", "--out student-2")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    run(folder, "--coordinator", **{"first:9876": f"127.0.0.1:{port}"})
    one, *two = [weights(folder / f"student-{number}.keras") for number in (2, 3, 4)]
    for others in two:
        for weight, expected in zip(others, one, strict=True):
            # Adam's first steps divide a gradient by itself: its rounding shows.
            np.testing.assert_allclose(weight, expected, atol=2e-3)
    run(folder, "ship student-2.keras")
    assert set(read_bundle(folder / "bundle")["artifacts"]) == {"onnx", "litert"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("distill --distribute data-parallel", "Keras's backend for data-parallel must be jax; got tensorflow"),
        ("label --workers 0", "--workers must be >= 1; got 0"),
        ("label --workers 2 --process 0/2", "num_processes must be 1 with an engine"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(folder, tmp_path, capsys, options, message):
    from keras_distill.cli import main

    command, *rest = options.split()
    files = {"distill": ["--student", folder / "student.keras"], "label": []}[command]
    argv = [command, "--teacher", folder / "teacher.keras", *files, "--data", "digits"]
    assert main([*map(str, argv), "--out", str(tmp_path / "out.keras"), *rest]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
