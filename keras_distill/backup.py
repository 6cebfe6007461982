"""`Backup`: training that may be killed at any moment and goes on from its last epoch.

`keras.callbacks.BackupAndRestore` writes over its only file, and the epoch's number into another one: a kill in
between leaves half a file, or an epoch that is trained twice. It keeps no state of dropout's random numbers either.
Here a backup is a folder that appears whole, with all that the next step depends on.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill._checks import check_count, error_message
from keras_distill._files import whole_folder

_WEIGHTS, _RANDOM_STATES = "model.weights.h5", "random_states.npz"


class Backup(keras.callbacks.Callback):
    """Keeps the model's and the optimizer's state after every epoch; a `fit` that is begun again goes on from there.

    Give the same command again: weights, statistics, optimizer and the random states of layers are what they were. The
    result is bit for bit that of an undisturbed run where the items come in an order that does not depend on
    earlier epochs (`shuffle=False`, or a pipeline that fixes it) and operations are deterministic
    (`tf.config.experimental.enable_op_determinism`). The folder is removed when training ends.

    Args:
        folder: where the backup lies; of this training alone.
        every: epochs from one backup to the next.

    Raises:
        ValueError: the folder holds a backup that does not fit the model.

    Example:
        >>> import tempfile, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> backup = Backup(tempfile.mkdtemp() + "/backup")
        >>> history = model.fit(np.ones((4, 2)), np.ones(4), epochs=2, verbose=0, callbacks=[backup])
        >>> backup.folder.exists()
        False
    """

    def __init__(self, folder: str | os.PathLike, every: int = 1):
        super().__init__()
        self.folder = Path(folder)
        self.every = check_count("every", every)

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores the newest backup, if there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for aside in self.folder.glob(".partial-*"):
            shutil.rmtree(aside)
        kept = self._kept()
        if not kept:
            return
        epoch, newest = kept[-1]
        restore_state(self.model, newest)
        # `fit` looks here, as it does for `BackupAndRestore`.
        self.model._initial_epoch = epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the backup, then removes the older one."""
        if (epoch + 1) % self.every:
            return
        with whole_folder(self.folder / f"epoch-{epoch + 1:06d}") as aside:
            save_state(self.model, aside)
        for _, older in self._kept()[:-1]:
            shutil.rmtree(older)

    def on_train_end(self, logs: Any = None) -> None:
        """Removes the backup: what was trained is the caller's now."""
        for _, kept in self._kept():
            shutil.rmtree(kept)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _kept(self) -> list[tuple[int, Path]]:
        """`(epoch, folder)` of the backups, the newest last."""
        return [(int(kept.name.removeprefix("epoch-")), kept) for kept in sorted(self.folder.glob("epoch-[0-9]*"))]


def save_state(model: keras.Model, folder: Path) -> None:
    """Writes all that the next step of a compiled model depends on into an empty folder."""
    model.save_weights(folder / _WEIGHTS)
    np.savez(folder / _RANDOM_STATES, *[variable.numpy() for variable in _random_states(model)])


def restore_state(model: keras.Model, folder: Path) -> None:
    """Brings back what `save_state` wrote.

    Raises:
        ValueError: it does not fit the model.
    """
    optimizer = model.optimizer
    if optimizer is not None and not optimizer.built:
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
