"""Runs that are killed, interrupted, or find no room: TensorFlow is imported once, and every run is a fork.

    python tests/reliability/faults.py training FOLDER --kills 5
    python tests/reliability/faults.py commands FOLDER --names label distill

Each prints one JSON object of what happened; `test_faults.py` says what must have.
"""

import argparse
import contextlib
import fcntl
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
import keras_distill.backup
import keras_distill.cli
from keras_distill.losses import SoftTargets

EPOCHS, STEPS, BATCH = 5, 6, 16


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
        keras.Sequential(layers).save(folder / f"{name}.keras")


COMMANDS = {
    "label": "label --teacher {0}/teacher.keras --data {0}/data.npz --out {1} --batch-size 8 --dtype float32",
    "distill": "distill --teacher {0}/teacher.keras --student {0}/student.keras --data {0}/data.npz --epochs 40"
    " --out {1}.keras",
    "specialists": "specialists --generalist {0}/teacher.keras --data {0}/data.npz --num-clusters 3 --steps 200"
    " --out {1}",
    "export": "export {0}/student.keras --to onnx --out {1}",
    "ship": "ship {0}/student.keras --data {0}/data.npz --targets onnx --out {1}",
    "demo": "demo --quick --seeds 1 --out {1}",
}
# Seconds into a command that lie before its end on a fast machine and after its beginning on a slow one.
MOMENTS = {"label": 0.6, "distill": 2.0, "specialists": 2.0, "export": 1.5, "ship": 3.0, "demo": 4.0}


def run_command(argv):
    os.environ["COLUMNS"] = "200"
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    try:
        return keras_distill.cli.main(argv)
    except SystemExit as stopped:
        return stopped.code


def tree(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*"))


def faulty_commands(folder, names, faults):
    """Each command under each fault: its exit code, what it said, and what it left."""
    folder.chmod(0o755)
    inputs = folder / "inputs"
    inputs.mkdir()
    assert ended(forked(make_inputs, inputs)) == (0, None)
    found = {}
    for name in names:
        # Nobody may not read every package: what the command imports must be there before the fork.
        argv = COMMANDS[name].format(inputs, folder / f"{name}-whole").split()
        modules = folder / "modules.json"
        said = Said()
        if ended(forked(run_command, argv, output=said.write, modules_to=modules)) != (0, None):
            raise RuntimeError(said.text())
        for module in json.loads(modules.read_text()):
            if module not in sys.modules:
                with contextlib.suppress(ImportError):
                    importlib.import_module(module)
        for fault in faults:
            home = folder / f"{name}-{fault}"
            home.mkdir()
            argv = COMMANDS[name].format(inputs, home / "out").split()
            said, said_again = Said(), Said()
            home.chmod(0o555 if fault == "read-only" else 0o777)
            options = {"nobody": fault == "read-only", "output": said.write}
            if fault == "full-disk":
                options["max_file_bytes"] = 3000
            child = forked(run_command, argv, **options)
            began = time.monotonic()
            if fault in ("SIGTERM", "SIGINT"):
                time.sleep(MOMENTS[name])
                os.kill(child, getattr(signal, fault))
            code, killed_by = ended(child)
            seconds = time.monotonic() - began
            found[f"{name}, {fault}"] = {
                "code": code,
                "killed_by": killed_by,
                "said": said.text()[-1500:],
                "left": tree(home),
                "seconds": round(seconds, 1),
            }
            home.chmod(0o777)
            again, _ = ended(forked(run_command, argv, output=said_again.write))
            found[f"{name}, {fault}"] |= {"again": again, "then": tree(home), "again_said": said_again.text()[-800:]}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("training", "commands"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backup", choices=("keras", "ours"), default="keras")
    parser.add_argument("--names", nargs="+", choices=tuple(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--faults", nargs="+", default=["SIGTERM", "SIGINT", "full-disk", "read-only"])
    arguments = parser.parse_args()
    # Forked runs must reach their folder as nobody too.
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    if arguments.what == "training":
        found = killed_trainings(folder, arguments.kills, arguments.backup, arguments.seed)
    else:
        found = faulty_commands(folder, arguments.names, arguments.faults)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
