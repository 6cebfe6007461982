"""Training on several devices: of one process, and on JAX of many."""

from contextlib import AbstractContextManager, nullcontext

import keras

from keras_distill._checks import check_choice, error_message


def distributed(
    how: str | None = None, *, coordinator: str | None = None, process: int = 0, num_processes: int = 1
) -> AbstractContextManager:
    """A context in which models that are made, and `fit`, use all devices.

    A batch is shared out evenly; losses, metrics and the student are those of one device that has the whole batch.

    Args:
        how: `"mirrored"`: TensorFlow's `MirroredStrategy` over this machine's GPUs, or its logical processors;
            `"data-parallel"`: `keras.distribution.DataParallel` over JAX's devices, those of other processes too; each
            process brings its share of every batch (`StoredBatches(worker=…, num_workers=…)`). `None`: one device.
        coordinator: `HOST:PORT` where process 0 listens; `None` with several processes lets JAX find out (Slurm, TPU).
        process: which of several processes this one is.
        num_processes: how many they are.

    Raises:
        ValueError: Keras's backend cannot do it.

    Example:
        >>> with distributed(None):
        ...     student = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    """
    if how is None:
        return nullcontext()
    check_choice("how to distribute", how, ("mirrored", "data-parallel"))
    needed = {"mirrored": "tensorflow", "data-parallel": "jax"}[how]
    if keras.config.backend() != needed:
        remedy = f"Set KERAS_BACKEND={needed}; Keras's other backends cannot do it."
        raise ValueError(error_message(f"Keras's backend for {how} must be {needed}", keras.config.backend(), remedy))
    if how == "mirrored":
        import tensorflow as tf

        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices]).scope()
    if num_processes > 1:
        keras.distribution.initialize(coordinator, num_processes, process)
    # Of several processes each gives its own share: nothing is left to share out.
    return keras.distribution.DataParallel(auto_shard_dataset=False).scope()
