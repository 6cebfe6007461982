"""Train your student on what your teacher knows, and save it as a plain Keras model.

Several teachers are averaged (arithmetic mean of their softened predictions). The student's weights are
where its file left them; give it fresh ones to train from nothing.

With --quantize-aware it trains as the int8 network that it will be, best after it was distilled in float.
"""

import argparse
from typing import TYPE_CHECKING, Any

from keras_distill.cli import model_file
from keras_distill.cli.evaluation import arrays_of, check_model_fits_dataset, comparison_table, label_loss, measure
from keras_distill.cli.model_file import keras_file, load_teacher

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from keras_distill._types import Data
    from keras_distill.data import Dataset

SUMMARY = "distil your teacher into your student"


_NUM_CALIBRATION = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--teacher", nargs="+", metavar="T.keras", help="one teacher, or several to average")
    source.add_argument("--store", metavar="STORE", help="soft targets that `keras-distill label` stored")
    add("--student", required=True, metavar="S.keras", help="the model to train; the file itself is not changed")
    add("--data", required=True, help="digits, mnist, spoken_digit, cifar100, tfds:NAME, an .npz or an image folder")
    add("--out", required=True, metavar="OUT.keras", help="where the trained student goes")
    add("--temperature", type=float, default=4.0, help="how soft the targets are; 1 to 20 (default: %(default)s)")
    add("--student-loss-weight", type=float, default=0.1, help="weight of the hard labels (default: %(default)s)")
    add("--epochs", type=int, default=20, help="passes over the training set (default: %(default)s)")
    add("--batch-size", type=int, default=128, help="items a step (default: %(default)s)")
    add("--learning-rate", type=float, default=1e-3, help="Adam's, with cosine decay to zero (default: %(default)s)")
    add("--distribute", choices=("mirrored", "data-parallel"), help="train on all devices: of TensorFlow, of JAX")
    add("--coordinator", metavar="HOST:PORT", help="with data-parallel on several hosts: where process 0 listens")
    add("--process", default="0/1", metavar="I/N", help="which of N such processes this is (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the shuffling and of dropout (default: %(default)s)")
    add("--quantize-aware", action="store_true", help="train the student as an int8 network; export keeps its integers")
    model_file.add_loading_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Trains, saves and prints the table."""
    from keras_distill._checks import check_count, check_fraction, check_positive

    check_positive("--temperature", arguments.temperature, "Hinton et al. use 1 to 20.")
    check_positive("--learning-rate", arguments.learning_rate, "Adam is used to 1e-3.")
    check_fraction("--student-loss-weight", arguments.student_loss_weight)
    check_count("--epochs", arguments.epochs)
    check_count("--batch-size", arguments.batch_size)
    if arguments.quantize_aware:
        _check_for_int8(arguments.distribute)
    if arguments.distribute == "data-parallel":
        from keras_distill.cli import distill_in_parallel

        return distill_in_parallel.run(arguments)

    import keras
    from rich.console import Console

    from keras_distill import data
    from keras_distill._files import whole_file
    from keras_distill.distillation.distiller import Distiller
    from keras_distill.losses import SoftTargets
    from keras_distill.scale import distributed

    console = Console()
    keras.utils.set_random_seed(arguments.seed)
    # Opened before hours of training, so that an output that cannot be written is said now.
    with distributed(arguments.distribute), whole_file(keras_file(arguments.out)) as aside:
        student = model_file.load(arguments.student, arguments)
        dataset = data.load(arguments.data)
        check_model_fits_dataset(student, dataset, "student")
        teacher = load_teacher(arguments, dataset) if arguments.teacher else None
        before = measure(student, dataset.test)
        callbacks: list[keras.callbacks.Callback] = []
        if arguments.quantize_aware:
            student, callbacks = _quantize_aware(student, dataset, arguments.seed, console)

        distiller = Distiller(
            teacher,
            student,
            SoftTargets(arguments.temperature),
            student_loss_weight=arguments.student_loss_weight,
        )
        num_steps = arguments.epochs * -(-len(dataset.train) // arguments.batch_size)
        schedule = keras.optimizers.schedules.CosineDecay(arguments.learning_rate, num_steps)
        distiller.compile(keras.optimizers.Adam(schedule), loss=label_loss(student), metrics=["accuracy"])
        options: dict[str, Any] = {
            "epochs": arguments.epochs,
            "validation_data": arrays_of(dataset.validation),
            "callbacks": callbacks,
        }
        if teacher is None:
            distiller.fit(_stored_batches(arguments, dataset), shuffle=False, **options)
        else:
            inputs, labels = arrays_of(dataset.train)
            distiller.fit(inputs, labels, batch_size=arguments.batch_size, **options)
        student.save(aside)
        distilled = "student, distilled as int8" if arguments.quantize_aware else "student, distilled"
        rows = [("student, as given", before), (distilled, measure(student, dataset.test))]
        if teacher is not None:
            rows.insert(0, ("teacher", measure(teacher, dataset.test)))

    console.print(comparison_table(rows, dataset))
    console.print(f"saved {arguments.out}")
    return 0


def _check_for_int8(distribute: str | None) -> None:
    import keras

    from keras_distill._checks import error_message

    backend = "jax" if distribute == "data-parallel" else keras.config.backend()
    if backend != "tensorflow":
        received = f"{backend} (--distribute {distribute})" if distribute else backend
        remedy = "Distil in float first, then its student once more, on TensorFlow, with --quantize-aware."
        raise ValueError(error_message("Keras's backend for --quantize-aware must be tensorflow", received, remedy))


def _quantize_aware(
    student: "keras.Model", dataset: "Dataset", seed: int, console: "Console"
) -> "tuple[keras.Model, list[keras.callbacks.Callback]]":
    """The student as an int8 network, calibrated on training items, and what settles it in the last epoch."""
    import warnings

    import numpy as np

    from keras_distill.quantize_aware import FreezeRanges, quantize_aware

    chosen = np.random.default_rng(seed).permutation(len(dataset.train))[:_NUM_CALIBRATION]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantized = quantize_aware(student, dataset.train.inputs[np.sort(chosen)])
    # What stays float is for the user to read, without the line of code that says so.
    for warning in caught:
        console.print(f"note: {warning.message}", markup=False)
    return quantized, [FreezeRanges(num_last_epochs=1)]


def _stored_batches(arguments: argparse.Namespace, dataset: "Dataset") -> "Data":
    from keras_distill import targets

    store = targets.SoftTargetStore.open(arguments.store)
    return targets.attach(
        (dataset.train.inputs, dataset.train.labels), store, batch_size=arguments.batch_size, seed=arguments.seed
    )
