"""`keras-distill distill --distribute data-parallel`: on all of JAX's devices, in one process or in one a host.

Models are trained on all devices, and measured where one device holds a whole model: a test set need not be shared out
evenly.
"""

import os
import tempfile
from typing import TYPE_CHECKING, Any

from keras_distill.cli import evaluation, model_file
from keras_distill.cli.distill_settings import DistillSettings
from keras_distill.cli.distill_training import Training, compiled_distiller, fit, name_of
from keras_distill.cli.engine_options import share_of

if TYPE_CHECKING:
    from keras_distill._types import Teacher
    from keras_distill.data import Dataset
    from keras_distill.targets import SoftTargetStore


def find_each_other(settings: DistillSettings) -> None:
    """Connects the processes that train together, before anything else is computed.

    Raises:
        ValueError: Keras does not run on JAX, or `--process` is no share.
    """
    from keras_distill.scale import distributed

    process, num_processes = share_of(settings.process)
    distributed("data-parallel", coordinator=settings.coordinator, process=process, num_processes=num_processes)


def train(
    settings: DistillSettings,
    dataset: "Dataset",
    epochs: int,
    teacher: "Teacher | None",
    store: "SoftTargetStore | None",
    *,
    on_labels: bool = False,
) -> Training:
    """As `distill_training.train`, on all devices; the teacher is loaded once more, onto all of them."""
    import keras

    from keras_distill.scale import distributed
    from keras_distill.targets import StoredBatches

    process, num_processes = share_of(settings.process)
    options: dict[str, Any] = {"batch_size": settings.batch_size, "process": process, "num_processes": num_processes}
    with tempfile.TemporaryDirectory(prefix="keras-distill-") as folder:
        path = os.path.join(folder, "student.keras")
        with distributed("data-parallel"):
            keras.utils.set_random_seed(settings.seed)
            student = model_file.load(settings.student, settings)
            if teacher is not None and not on_labels:
                teacher = model_file.as_one_teacher(
                    [model_file.load_teacher(file, settings, dataset) for file in settings.teacher or []]
                )
            batches = StoredBatches(evaluation.arrays_of(dataset.train), store, seed=settings.seed, **options)
            validation = StoredBatches(evaluation.arrays_of(dataset.validation), None, shuffle=False, **options)
            num_steps = epochs * len(batches)
            distiller = compiled_distiller(settings, num_steps, teacher, student, on_labels=on_labels)
            history, seconds = fit(
                settings,
                distiller,
                name_of(on_labels),
                epochs,
                (batches,),
                validation if len(validation) else None,
                shown=process == 0,
                shuffle=False,
            )
            student.save(path)
        # Read back onto one device.
        return Training(model_file.load(path, settings), history, len(history["loss"]) * len(batches), seconds)
