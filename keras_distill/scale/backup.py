"""`Backup`: a training that was killed goes on after its last whole epoch, on one process or on many."""

import os
import tempfile
from pathlib import Path
from typing import Any

import keras

from keras_distill._files import whole_file


class Backup(keras.callbacks.Callback):
    """Keeps weights and optimizer after each epoch in a folder; the same `fit`, called again, goes on from there.

    Of several processes the first one writes and all of them read, so that all begin at the same epoch: the folder
    must be one that they share. Files appear whole or not at all. The folder's files go when training has finished.

    Args:
        folder: where the states are kept.
        batches: `StoredBatches` that `fit` reads: their order goes on with the epoch, too.

    Example:
        >>> import tempfile, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> _ = model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[Backup(tempfile.mkdtemp())])
    """

    def __init__(self, folder: str | os.PathLike, batches: Any = None):
        super().__init__()
        self.folder, self.batches = Path(folder), batches

    def on_train_begin(self, logs: Any = None) -> None:
        """Brings back the newest state, if there is one."""
        files = sorted(self.folder.glob("epoch-*.weights.h5"))
        if not files:
            return
        # Until its optimizer has variables a model has nowhere to put their values.
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        self.model.load_weights(files[-1])
        self.model._initial_epoch = _epochs_done(files[-1])
        if self.batches is not None:
            # Keras may have counted one already, when it looked at a first batch; so it did in the killed run.
            self.batches.epoch += self.model._initial_epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the state, then removes the older one."""
        if not _is_first_process():
            # To read a value that lies on several hosts is a step in common: all take it, one keeps what it wrote.
            with tempfile.TemporaryDirectory() as folder:
                self.model.save_weights(Path(folder) / "not-kept.weights.h5")
            return
        older = list(self.folder.glob("epoch-*.weights.h5"))
        with whole_file(self.folder / f"epoch-{epoch + 1:06d}.weights.h5") as aside:
            self.model.save_weights(aside)
        for file in older:
            file.unlink(missing_ok=True)

    def on_train_end(self, logs: Any = None) -> None:
        """Training has come to its end: nothing is left to go on from."""
        self.model._initial_epoch = None
        if _is_first_process():
            for file in self.folder.glob("epoch-*.weights.h5"):
                file.unlink(missing_ok=True)


def _epochs_done(file: Path) -> int:
    return int(file.name.removeprefix("epoch-").removesuffix(".weights.h5"))


def _is_first_process() -> bool:
    if keras.config.backend() != "jax":
        return True
    import jax

    return jax.process_index() == 0
