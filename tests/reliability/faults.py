"""Runs that are killed, interrupted, or find no room: TensorFlow is imported once, and every run is a fork.

    python tests/reliability/faults.py training FOLDER --kills 5
    python tests/reliability/faults.py commands FOLDER --names label distill

Each prints one JSON object of what happened; `test_faults.py` says what must have.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import importlib
import io
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
import keras_distill.backup
import keras_distill.cli
from keras_distill.deploy import conversion, warm
from keras_distill.losses import SoftTargets
from keras_distill.specialists import training

EPOCHS, STEPS, BATCH = 5, 6, 16
BACKUPS = ("keras", "ours")


def forked(function, *arguments, nobody=False, max_file_bytes=None, output=None, modules_to=None):
    """Runs `function` in a fork and returns its process id; its exit code is what the function returns."""
    child = os.fork()
    if child:
        return child
    try:
        if output is not None:
            os.dup2(output, 1)
            os.dup2(output, 2)
        if max_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
        if nobody and os.getuid() == 0:
            # Root may write everywhere.
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        code = function(*arguments) or 0
        # As Python does at its end: threads finish, and sweep what is theirs.
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        if modules_to is not None:
            modules_to.write_text(json.dumps(sorted(sys.modules)))
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Said:
    """What a child prints: through a pipe, since a limit on the size of files would cut a log as well."""

    def __init__(self):
        self._read, self.write = os.pipe()
        fcntl.fcntl(self._read, fcntl.F_SETPIPE_SZ, 1 << 20)

    def anything(self):
        """Whether the child has said anything yet."""
        return bool(select.select([self._read], [], [], 0)[0])

    def text(self):
        """All of it, once the child has ended."""
        os.close(self.write)
        with open(self._read, "rb") as stream:
            return stream.read().decode(errors="replace")


def ended(child):
    """(exit code or `None`, signal or `None`) of a process."""
    _, status = os.waitpid(child, 0)
    return (os.WEXITSTATUS(status), None) if os.WIFEXITED(status) else (None, os.WTERMSIG(status))


# Training


class KillAtStep(keras.callbacks.Callback):
    """SIGKILL to this very process after so many steps of it."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def student_net(dropout):
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(64, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(4),
        ]
    )


def train(folder, result, backup, kill_at=None):
    """Five epochs of distillation with Adam, from the backup where there is one; saves weights and optimizer."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(3)
    tf.config.experimental.enable_op_determinism()
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(STEPS * BATCH, 8)).astype("float32"), generator.integers(0, 4, STEPS * BATCH)
    teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32, "tanh"), keras.layers.Dense(4)])
    # Keras's own backup does not bring the state of dropout's random numbers back; ours does.
    distiller = kd.Distiller(teacher, student_net(0.0 if backup == "keras" else 0.3), SoftTargets(3.0))
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(0.01), hard, jit_compile=False)
    kind = keras.callbacks.BackupAndRestore if backup == "keras" else kd.backup.Backup
    callbacks = [kind(folder)] + ([] if kill_at is None else [KillAtStep(kill_at)])
    distiller.fit(x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)
    np.savez(
        result, *distiller.student.get_weights(), *[variable.numpy() for variable in distiller.optimizer.variables]
    )


def killed_trainings(folder, num_kills, backup, seed):
    """A run that nobody disturbs, and runs that are killed again and again, then left to end; how far they differ."""
    generator = np.random.default_rng(seed)
    assert ended(forked(train, folder / "whole-backup", folder / "whole.npz", backup)) == (0, None)
    kills = rounds = 0
    largest, equal = 0.0, True
    while kills < num_kills:
        name = folder / f"killed{rounds}"
        for _ in range(min(num_kills - kills, 3)):
            if backup == "keras":
                # Between two steps: what a kill inside its saving leaves is not promised.
                child = forked(train, name, f"{name}.npz", backup, int(generator.integers(1, 2 * STEPS)))
            else:
                child = forked(train, name, f"{name}.npz", backup)
                began = time.monotonic()
                # From its first backup on, at any moment, also while it writes.
                while not name.exists() and time.monotonic() - began < 120:
                    time.sleep(0.005)
                time.sleep(generator.uniform(0.0, 0.4))
                os.kill(child, signal.SIGKILL)
            kills += ended(child)[1] == signal.SIGKILL
        assert ended(forked(train, name, f"{name}.npz", backup)) == (0, None)
        with np.load(folder / "whole.npz") as whole, np.load(f"{name}.npz") as found:
            pairs = [(whole[key], found[key]) for key in whole.files]
        equal &= all(np.array_equal(a, b) for a, b in pairs)
        largest = max(largest, *(float(np.abs(a.astype("float64") - b).max()) for a, b in pairs))
        rounds += 1
    left = sorted(file.name for file in folder.iterdir() if not file.name.endswith(".npz"))
    return {"kills": kills, "rounds": rounds, "bit_for_bit": equal, "largest_difference": largest, "left": left}


# Commands


class SharedServer(warm.WarmProcess):
    """One server for the conversions of all forks, a fork as well: TensorFlow is imported already."""

    def __init__(self):
        super().__init__([])
        warm.IDLE_S = 3600.0
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            self._connection.close()
            os._exit(warm.serve(theirs, warm._convert))
        theirs.close()

    def _start(self):
        # As if it were new each time: should it be gone, nobody waits for another.
        return True


def make_inputs(folder):
    """A data set, a teacher and a student, all small."""
    generator = np.random.default_rng(0)
    centres = np.repeat(generator.normal(size=(3, 5)) * 3, 2, axis=0) + generator.normal(size=(6, 5)) * 0.5
    arrays = {}
    for split, num_items in (("train", 600), ("validation", 60), ("test", 120)):
        labels = np.arange(num_items) % 6
        arrays[f"y_{split}"] = labels
        arrays[f"x_{split}"] = (centres[labels] + generator.normal(size=(num_items, 5))).astype("float32")
    np.savez(folder / "data.npz", **arrays)
    for name, width in (("teacher", 64), ("student", 16)):
        layers = [keras.Input((5,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(6)]
        model = keras.Sequential(layers)
        if name == "teacher":
            # One that answers at chance is refused.
            model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            model.fit(arrays["x_train"], arrays["y_train"], epochs=3, verbose=0)
        model.save(folder / f"{name}.keras")


COMMANDS = {
    "label": "label --teacher {0}/teacher.keras --data {0}/data.npz --out {1} --batch-size 1 --dtype float32",
    "distill": "distill --teacher {0}/teacher.keras --student {0}/student.keras --data {0}/data.npz --epochs 12"
    " --out {1}.keras",
    "specialists": "specialists --generalist {0}/teacher.keras --data {0}/data.npz --num-clusters 2 --steps 200"
    " --out {1}",
    "export": "export {0}/student.keras --to onnx --out {1}",
    "ship": "ship {0}/student.keras --data {0}/data.npz --targets onnx --min-accuracy 0 --out {1}",
    "demo": "demo --quick --seeds 1 --out {1}",
}
# In this order, since the first two end before the work has begun or soon after.
FAULTS = ("read-only", "full-disk", "SIGTERM", "SIGINT", "SIGKILL")
# What a demo costs is spent on one signal.
FAULTS_OF = dict.fromkeys(COMMANDS, FAULTS) | {"demo": ("SIGKILL",)}
# The steps between two backups of the specialists: a tenth of `--steps`.
STEPS_A_BACKUP = 20
# The file whose appearance says that the work has begun (or, without one, the first words of the command), and after
# how many seconds more at most the signal comes. Specialists send it to themselves: see `StopAfterBackup`.
MOMENTS = {
    "label": (None, 0.1),
    "distill": (None, 1.0),
    "export": ("temporary/keras-distill-export-*", 0.7),
    "ship": ("temporary/keras-distill-ship-*", 1.5),
    "demo": (".partial-out-*", 4.0),
}


def smallest_demo():
    """The demo's digits with the least that its machinery takes: a killed run is no matter of accuracy."""
    from keras_distill.cli import demo_recipe

    small = {"teacher_widths": (4,), "teacher_dense_width": 8, "student_widths": (4,), "student_dense_width": 8}
    demo_recipe.RECIPES["digits"] = dataclasses.replace(demo_recipe.RECIPES["digits"], **small)


class StopAfterBackup(kd.backup.Backup):
    """A signal to this very process, so many steps after the first backup that it has written."""

    signal, left = None, 0

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self.has_written = True

    def on_train_batch_end(self, batch, logs=None):
        StopAfterBackup.left -= getattr(self, "has_written", False)
        if self.left == 0:
            os.kill(os.getpid(), self.signal)


def run_command(argv, temporary, server=None, stop=None):
    os.environ["COLUMNS"], os.environ["TMPDIR"] = "200", str(temporary)
    tempfile.tempdir = str(temporary)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if argv[0] == "demo":
        smallest_demo()
    if server is not None:
        conversion.WARM_PROCESS = server
    if stop is not None:
        StopAfterBackup.signal, StopAfterBackup.left = stop
        training.Backup = StopAfterBackup
    try:
        return keras_distill.cli.main(argv)
    except SystemExit as stopped:
        return stopped.code


def tree(folder):
    files = (file.relative_to(folder) for file in folder.rglob("*"))
    return sorted(file.as_posix() for file in files if file.parts[0] != "temporary")


def signalled(child, number, home, name, said, delay):
    """Sends a signal some seconds after the work has begun; a command that has ended by then is left alone."""
    pattern, _ = MOMENTS[name]
    before, began = set(home.glob(pattern)) if pattern else set(), time.monotonic()

    def begun():
        return set(home.glob(pattern)) - before if pattern else said.anything()

    while not begun() and time.monotonic() - began < 120:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(child, number)


def contents(file):
    """What two runs of a command must agree in, of a file that holds no times: arrays, operations, else bytes."""
    if file.suffix == ".keras":
        import h5py

        arrays = {}
        with zipfile.ZipFile(file) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights:
            weights.visititems(
                lambda key, node: arrays.update({key: node[()].tobytes()} if hasattr(node, "dtype") else {})
            )
        return arrays
    if file.suffix == ".onnx":
        import onnx

        # The converter numbers its constants in an order that changes from process to process.
        graph = onnx.load(file).graph
        weights = [onnx.numpy_helper.to_array(tensor).tobytes() for tensor in graph.initializer]
        return {"operations": [node.op_type for node in graph.node], "weights": sorted(weights)}
    return file.read_bytes() if file.suffix in (".npy", ".tflite", ".png") else None


def differing(whole, found):
    """Files that one of two folders lacks, and those whose contents are not bit for bit the same."""
    if whole.with_suffix(".keras").is_file():
        return [] if contents(whole.with_suffix(".keras")) == contents(found.with_suffix(".keras")) else ["out.keras"]
    names, others = tree(whole), tree(found)
    different = [name for name in names if name in others and (whole / name).is_file()]
    different = [name for name in different if contents(whole / name) != contents(found / name)]
    return sorted(set(names) ^ set(others)) + different


def faulty_command(folder, inputs, name, faults, seed, server):
    """One command under one fault after another, in the same place, then left to end: beside an undisturbed run."""
    generator = np.random.default_rng(seed)
    homes = {}
    for which in ("whole", "faulty"):
        homes[which] = folder / f"{name}-{which}"
        (homes[which] / "temporary").mkdir(parents=True)
        (homes[which] / "temporary").chmod(0o777)

    def begin(which, stop=None, **options):
        said = Said()
        argv = COMMANDS[name].format(inputs, homes[which] / "out").split()
        # An export starts a server of its own, as it does for everybody.
        arguments = argv, homes[which] / "temporary", None if name == "export" else server, stop
        return forked(run_command, *arguments, output=said.write, **options), said

    modules = folder / "modules.json"
    child, said = begin("whole", modules_to=modules)
    if ended(child) != (0, None):
        raise RuntimeError(said.text())
    # Nobody may not read every package: what the command imports must be there before the fork.
    for module in json.loads(modules.read_text()):
        if module not in sys.modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
    home, runs = homes["faulty"], {}
    for fault in faults:
        home.chmod(0o555 if fault == "read-only" else 0o777)
        options = {"max_file_bytes": 3000} if fault == "full-disk" else {}
        is_signal = fault.startswith("SIG")
        if is_signal and name not in MOMENTS:
            options["stop"] = getattr(signal, fault), int(generator.integers(1, STEPS_A_BACKUP))
        child, said = begin("faulty", nobody=fault == "read-only", **options)
        if is_signal and name in MOMENTS:
            delay = MOMENTS[name][1] * generator.uniform()
            signalled(child, getattr(signal, fault), home, name, said, delay)
        code, killed_by = ended(child)
        runs[fault] = {"code": code, "killed_by": killed_by, "said": said.text()[-1500:], "left": tree(home)}
        # What TensorFlow leaves there at its end is its own.
        runs[fault]["temporary"] = sorted(file.name for file in (home / "temporary").glob("keras-distill-*"))
        home.chmod(0o777)
        # What a killed process could not sweep is no matter of the next one.
        for left in (home / "temporary").iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    child, said = begin("faulty")
    code, _ = ended(child)
    return {
        "runs": runs,
        "whole": tree(homes["whole"]),
        "code": code,
        "said": said.text()[-1500:],
        "then": tree(home),
        "differing": differing(homes["whole"] / "out", home / "out"),
    }


def faulty_commands(folder, names, faults, seed):
    folder.chmod(0o755)
    inputs = folder / "inputs"
    inputs.mkdir()
    server = SharedServer()
    assert ended(forked(make_inputs, inputs)) == (0, None)
    return {name: faulty_command(folder, inputs, name, faults or FAULTS_OF[name], seed, server) for name in names}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("training", "commands"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backups", nargs="+", choices=BACKUPS, default=BACKUPS)
    parser.add_argument("--names", nargs="+", choices=tuple(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--faults", nargs="+", choices=FAULTS)
    arguments = parser.parse_args()
    # Forked runs must reach their folder as nobody too.
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    if arguments.what == "training":
        found = {}
        for backup in arguments.backups:
            (folder / backup).mkdir()
            found[backup] = killed_trainings(folder / backup, arguments.kills, backup, arguments.seed)
    else:
        found = faulty_commands(folder, arguments.names, arguments.faults, arguments.seed)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
