"""`Backup`: training that may be killed at any moment and goes on from its last backup, on one process or on many.

`keras.callbacks.BackupAndRestore` writes over its only file, and the epoch's number into another one: a kill in
between leaves half a file, or an epoch that is trained twice. It keeps no state of dropout's random numbers either.
Here a backup is a folder that appears whole, with all that the next step depends on.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from keras_distill._checks import check_count, error_message
from keras_distill._files import whole_folder
from keras_distill._keras_internals import begin_at
from keras_distill._types import Logs

_WEIGHTS, _RANDOM_STATES = "model.weights.h5", "random_states.npz"


class EpochCounter(Protocol):
    """Batches whose order depends on the epoch, as those of `keras_distill.targets.StoredBatches` do."""

    epoch: int


class Backup(keras.callbacks.Callback):
    """Keeps the model's and the optimizer's state after every epoch; a `fit` that is begun again goes on from there.

    Give the same command again: weights, statistics, optimizer and the random states of layers are what they were. The
    result is bit for bit that of an undisturbed run where the items come in an order that does not depend on
    earlier epochs (`shuffle=False`, or a pipeline that fixes it) and operations are deterministic
    (`tf.config.experimental.enable_op_determinism`). The backup is removed when training ends.

    Of several processes that train together the first one writes and all of them read, so that all begin at the same
    epoch: the folder must be one that they share.

    Args:
        backup_dir: the folder that holds the backup; of this training alone.
        every: epochs from one backup to the next.
        batches: what `fit` reads, if its order depends on an attribute `epoch`: it goes on with the training.

    Raises:
        ValueError: the folder holds a backup that does not fit the model.

    Example:
        >>> import tempfile, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> backup = Backup(tempfile.mkdtemp() + "/backup")
        >>> history = model.fit(np.ones((4, 2)), np.ones(4), epochs=2, verbose=0, callbacks=[backup])
        >>> backup.backup_dir.exists()
        False
    """

    def __init__(self, backup_dir: str | os.PathLike, every: int = 1, batches: EpochCounter | None = None):
        super().__init__()
        self.backup_dir = Path(backup_dir)
        self.every = check_count("every", every)
        self.batches = batches

    def on_train_begin(self, logs: Logs = None) -> None:
        """Restores the newest backup, if there is one."""
        if _is_first_process():
            self.backup_dir.mkdir(parents=True, exist_ok=True)
            for aside in self.backup_dir.glob(".partial-*"):
                shutil.rmtree(aside)
        kept = self._kept()
        if not kept:
            return
        epoch, newest = kept[-1]
        restore_state(self.model, newest)
        begin_at(self.model, epoch)
        if self.batches is not None:
            # Keras may have counted one already, when it looked at a first batch; so it did in the killed run.
            self.batches.epoch += epoch

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Where to begin was said for this `fit` alone: the next one begins where its own arguments say."""
        begin_at(self.model, None)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Writes the backup, then removes the older one."""
        if (epoch + 1) % self.every:
            return
        if not _is_first_process():
            # To read a value that lies on several hosts is a step in common: all take it, one keeps what it wrote.
            with tempfile.TemporaryDirectory() as folder:
                save_state(self.model, Path(folder))
            return
        with whole_folder(self.backup_dir / f"epoch-{epoch + 1:06d}") as aside:
            save_state(self.model, aside)
        for _, older in self._kept()[:-1]:
            shutil.rmtree(older)

    def on_train_end(self, logs: Logs = None) -> None:
        """Removes the backup: what was trained is the caller's now."""
        begin_at(self.model, None)
        if not _is_first_process():
            return
        for _, kept in self._kept():
            shutil.rmtree(kept)
        if not any(self.backup_dir.iterdir()):
            self.backup_dir.rmdir()

    def _kept(self) -> list[tuple[int, Path]]:
        """`(epoch, folder)` of the backups, the newest last."""
        folders = sorted(self.backup_dir.glob("epoch-[0-9]*"))
        return [(int(kept.name.removeprefix("epoch-")), kept) for kept in folders]


def save_state(model: keras.Model, folder: Path) -> None:
    """Writes all that the next step of a compiled model depends on into an empty folder."""
    model.save_weights(folder / _WEIGHTS)
    np.savez(folder / _RANDOM_STATES, *[variable.numpy() for variable in _random_states(model)])


def restore_state(model: keras.Model, folder: Path) -> None:
    """Brings back what `save_state` wrote; raises `ValueError` where it does not fit the model."""
    optimizer = model.optimizer
    if optimizer is not None and not optimizer.built:
        # Until it has variables it has nowhere to put their values.
        optimizer.build(model.trainable_variables)
    try:
        model.load_weights(folder / _WEIGHTS)
        with np.load(folder / _RANDOM_STATES, allow_pickle=False) as states:
            for variable, name in zip(_random_states(model), states.files, strict=True):
                variable.assign(states[name])
    except (ValueError, OSError, KeyError) as error:
        remedy = "Name another folder, or remove it to begin anew."
        received = " ".join(str(error).split())[:240]
        raise ValueError(error_message(f"{folder} must be a backup of this model", received, remedy)) from error


def _random_states(model: keras.Model) -> list[Any]:
    """The states of dropout and its like, in the order of the layers: `variables` has them, `weights` has not."""
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def _is_first_process() -> bool:
    if keras.config.backend() != "jax":
        return True
    import jax

    return jax.process_index() == 0
