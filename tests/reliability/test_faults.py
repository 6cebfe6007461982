"""Killed, interrupted, terminated, out of room, without leave to write: nothing is lost and nothing half-written stays.

`targets.label` under SIGKILL and on a full disk is tested in `tests/targets/test_labelling.py`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_distill import Backup
from keras_distill.cli import main

ROOT = Path(__file__).parents[2]


def run_faults(what, *options):
    """What `faults.py` found, in a folder that nobody's processes may reach too."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory(prefix="keras-distill-faults-") as folder:
        Path(folder).chmod(0o755)
        command = [sys.executable, ROOT / "tests/reliability/faults.py", what, folder, *options]
        run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def trainings():
    """Trainings under either backup; TensorFlow starts once for all of them."""
    return run_faults("training", "--kills", "3")


@pytest.mark.slow
def test_training_killed_at_random_steps_is_bit_for_bit_the_undisturbed_one_by_keras_own_backup(trainings):
    found = trainings["keras"]
    assert found["kills"] == 3
    assert found["bit_for_bit"]
    assert found["left"] == []


@pytest.mark.slow
def test_training_killed_at_any_moment_also_while_it_saves_is_bit_for_bit_the_undisturbed_one_by_our_backup(trainings):
    found = trainings["ours"]
    assert found["kills"] == 3
    assert found["bit_for_bit"]
    assert found["left"] == []


def check_whole_or_absent(name, left, whole):
    """Of what stands there under a name of its own nothing is half-written; `partial` and `older` ones are hidden."""
    shown = [file for file in left if not any(part.startswith(".") for part in file.split("/"))]
    if name in ("label", "specialists"):
        # What is finished stays, to go on from.
        assert set(shown) <= set(whole)
    else:
        assert shown in ([], whole)


def check_stopped(name, fault, run, whole):
    said = run["said"]
    assert "Traceback" not in said, said
    check_whole_or_absent(name, run["left"], whole)
    if fault == "SIGKILL":
        assert run["killed_by"] == 9 or run["code"] == 0, said
        return
    assert run["killed_by"] is None, said
    assert not [file for file in run["left"] if ".partial" in file or ".older" in file], run["left"]
    assert run["temporary"] == []
    if fault.startswith("SIG") and run["code"] == 0:
        # Done before the signal came: then it stands there whole.
        assert set(whole) <= set(run["left"])
    elif fault.startswith("SIG"):
        assert run["code"] == {"SIGTERM": 143, "SIGINT": 130}[fault], said
        assert "nothing half-written was left. Run the same command again." in said
    else:
        assert run["code"] == 2, said
        assert f"keras-distill {name}: error:" in said
        assert "run the same command again" in said


@pytest.fixture(scope="module")
def stopped():
    """All commands, each under one fault after another in the same place; TensorFlow starts once for all of them."""
    return run_faults("commands")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["label", "distill", "specialists", "export", "ship"])
def test_a_command_that_is_stopped_again_and_again_ends_in_what_an_undisturbed_one_makes(stopped, name):
    found = stopped[name]
    for fault in ("read-only", "full-disk", "SIGTERM", "SIGINT", "SIGKILL"):
        check_stopped(name, fault, found["runs"][fault], found["whole"])
    # What stands there is whole: the same command goes on from it or begins anew.
    assert found["code"] == 0, found["said"]
    assert [file for file in found["then"] if ".partial-" not in file] == found["whole"]
    assert found["differing"] == []


@pytest.mark.slow
def test_the_specialists_went_on_from_their_backups_each_time(stopped):
    runs = [stopped["specialists"]["runs"][fault] for fault in ("SIGTERM", "SIGINT", "SIGKILL")]
    backups = [{name for file in run["left"] for name in re.findall(r"epoch-\d+", file)} for run in runs]
    # Each run wrote one backup before it was stopped, and removed the one that it had begun from.
    assert backups == [{"epoch-000001"}, {"epoch-000002"}, {"epoch-000003"}]


@pytest.mark.slow
def test_a_demo_that_is_killed_shows_nothing_and_runs_again(stopped):
    found = stopped["demo"]
    check_stopped("demo", "SIGKILL", found["runs"]["SIGKILL"], found["whole"])
    assert found["code"] == 0, found["said"]
    assert {"out/student.keras", "out/student.onnx", "out/student.tflite", "out/results.json"} <= set(found["then"])
    assert [file for file in found["then"] if ".partial-" not in file] == found["whole"]
    assert [file for file in found["differing"] if file.endswith((".keras", ".onnx"))] == []


# Backup by itself


def model(units=3, seed=0):
    keras.utils.set_random_seed(seed)
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dropout(0.5)])
    net.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=False)
    return net


class Stop(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def fit(net, folder, *callbacks, epochs=4, **options):
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    callbacks = [Backup(folder, **options), *callbacks]
    return net.fit(x, x[:, :3], batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)


@pytest.mark.parametrize(("every", "resumed"), [(1, 3), (2, 2)])
def test_a_resumed_training_is_the_undisturbed_one_from_its_last_backup_on(tmp_path, every, resumed):
    whole = model()
    expected = fit(whole, tmp_path / "whole", every=every).history["loss"]
    with pytest.raises(KeyboardInterrupt):
        fit(model(), tmp_path / "stopped", Stop(3), every=every)
    assert [file.name for file in (tmp_path / "stopped").iterdir()] == [f"epoch-{resumed:06d}"]
    again = model(seed=1)
    history = fit(again, tmp_path / "stopped", every=every)
    assert history.epoch == list(range(resumed, 4))
    np.testing.assert_allclose(history.history["loss"], expected[resumed:], rtol=1e-6)
    for a, b in zip(again.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert not (tmp_path / "stopped").exists()


def test_half_a_backup_is_swept_and_the_whole_one_before_it_is_taken(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(model(), tmp_path / "stopped", Stop(2))
    half = tmp_path / "stopped" / ".partial-epoch-000003-xyz"
    half.mkdir()
    (half / "model.weights.h5").write_bytes(b"half")
    assert fit(model(), tmp_path / "stopped").epoch == [2, 3]
    assert not (tmp_path / "stopped").exists()


def test_killed_after_the_last_epoch_there_is_nothing_left_to_train(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(model(), tmp_path / "stopped", Stop(2))
    net = model()
    assert fit(net, tmp_path / "stopped", epochs=2).epoch == []
    assert all(np.isfinite(weight).all() for weight in net.get_weights())


def test_a_fit_after_a_resumed_one_trains_all_its_epochs(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(model(), tmp_path / "stopped", Stop(2))
    net = model()
    assert fit(net, tmp_path / "stopped").epoch == [2, 3]
    assert fit(net, tmp_path / "new", epochs=2).epoch == [0, 1]


def test_an_error_in_a_resumed_training_leaves_the_next_fit_alone(tmp_path):
    for epoch in (2, 3):
        net = model()
        with pytest.raises(KeyboardInterrupt):
            fit(net, tmp_path / "stopped", Stop(epoch))
    assert fit(net, tmp_path / "new", epochs=2).epoch == [0, 1]


def test_the_epoch_of_the_batches_goes_on_with_the_training(tmp_path):
    class Batches:
        epoch = 1

    with pytest.raises(KeyboardInterrupt):
        fit(model(), tmp_path / "stopped", Stop(2))
    batches = Batches()
    fit(model(), tmp_path / "stopped", batches=batches)
    assert batches.epoch == 1 + 2


def test_a_backup_of_another_model_is_refused_by_its_file(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(model(), tmp_path / "stopped", Stop(2))
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(7), keras.layers.Dense(3)])
    other.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(ValueError, match=r"epoch-000002 must be a backup of this model"):
        fit(other, tmp_path / "stopped")


# Signals


def test_sigterm_is_an_exit_of_its_own_and_the_handler_of_the_caller_comes_back(monkeypatch, capsys):
    from keras_distill.cli import label

    monkeypatch.setattr(label, "run", lambda arguments: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert main(["label", "--teacher", "t.keras", "--data", "digits", "--out", "s"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "terminated: nothing half-written was left. Run the same command again." in capsys.readouterr().err


def test_a_place_where_nothing_can_be_made_is_said_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    net.save(tmp_path / "s.keras")
    for command in (["ship", f"{tmp_path}/s.keras", "--data", "digits"], ["export", f"{tmp_path}/s.keras"]):
        assert main([*command, "--out", f"{tmp_path}/file/below/out"]) == 2
        assert "Not a directory" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "s.keras"]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(28, "No space left on device", "/x"), "free some room"),
        (OSError("3600 requested and 718 written"), "free some room"),
        (PermissionError(13, "Permission denied", "/x"), "that you may write to"),
    ],
)
def test_a_full_or_closed_disk_says_what_to_do(monkeypatch, capsys, error, remedy):
    from keras_distill.cli import label

    def fail(arguments):
        raise error

    monkeypatch.setattr(label, "run", fail)
    assert main(["label", "--teacher", "t.keras", "--data", "digits", "--out", "s"]) == 2
    said = capsys.readouterr().err
    assert remedy in said
    assert "run the same command again" in said


def test_an_error_of_tensorflows_own_is_one_sentence_and_a_fault_of_ours_is_not_hidden(monkeypatch, capsys):
    import tensorflow as tf

    from keras_distill.cli import label

    def fail(arguments):
        raise tf.errors.ResourceExhaustedError(None, None, "/x/variables; File too large")

    monkeypatch.setattr(label, "run", fail)
    argv = ["label", "--teacher", "t.keras", "--data", "digits", "--out", "s"]
    assert main(argv) == 2
    assert "free some room" in capsys.readouterr().err
    monkeypatch.setattr(label, "run", lambda arguments: {}["a fault of ours"])
    with pytest.raises(KeyError):
        main(argv)
