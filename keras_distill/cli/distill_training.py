"""Training the student of a `distill` run, and its twin: the same student on labels alone, step by step alike."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras

from keras_distill.cli import evaluation, model_file
from keras_distill.cli.distill_settings import DistillSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keras_distill._types import Data, Logs, Teacher
    from keras_distill.data import Dataset
    from keras_distill.targets import SoftTargetStore

_NUM_CALIBRATION = 512


@dataclass(frozen=True)
class Training:
    """A trained student and how it came about.

    Attributes:
        student: the plain Keras model.
        history: by epoch, as `fit` reports it.
        num_steps: how many steps were made.
        seconds: wall time.
        notes: what the user should read.
    """

    student: keras.Model
    history: dict[str, list[float]]
    num_steps: int
    seconds: float
    notes: list[str] = field(default_factory=list)


def train(
    settings: DistillSettings,
    dataset: "Dataset",
    epochs: int,
    teacher: "Teacher | None",
    store: "SoftTargetStore | None",
    *,
    on_labels: bool = False,
) -> Training:
    """Trains the student that `--student` names, in this process.

    Args:
        settings: the command's.
        dataset: what it trains and validates on.
        epochs: how many.
        teacher: beside the student; `None` reads the store.
        store: soft targets; `None` asks the teacher.
        on_labels: whether this is the twin: the same weights, seed, order of the examples, steps and learning rates,
            and no soft targets.
    """
    student, callbacks, notes = _student(settings, dataset)
    steps_per_epoch = -(-len(dataset.train) // settings.batch_size)
    distiller = compiled_distiller(settings, epochs * steps_per_epoch, teacher, student, on_labels=on_labels)
    arrays = evaluation.arrays_of(dataset.train)
    examples: Sequence[Any] = arrays
    # Portions of a size that suits a forward pass: validation is half of what an epoch of few examples costs.
    options: dict[str, Any] = {"batch_size": settings.batch_size, "validation_batch_size": 512}
    if store is not None:
        from keras_distill import targets

        examples = (targets.attach(arrays, store, batch_size=settings.batch_size, seed=settings.seed),)
        options = {"shuffle": False, "validation_batch_size": 512}
    validation = evaluation.arrays_of(dataset.validation)
    history, seconds = fit(settings, distiller, name_of(on_labels), epochs, examples, validation, callbacks, **options)
    return Training(student, history, len(history["loss"]) * steps_per_epoch, seconds, notes)


def name_of(on_labels: bool) -> str:
    """What a training is called: on the bar, and by TensorBoard."""
    return "labels" if on_labels else "distilled"


def compiled_distiller(
    settings: DistillSettings, num_steps: int, teacher: "Teacher | None", student: keras.Model, *, on_labels: bool
) -> keras.Model:
    """A student's `Distiller` with Adam, whose learning rate falls to zero by a cosine over so many steps.

    With `on_labels` it has no teacher, and the labels' loss is all that it has.
    """
    from keras_distill.distillation.distiller import Distiller
    from keras_distill.losses import SoftTargets

    weight = 1.0 if on_labels else settings.student_loss_weight
    losses = SoftTargets(settings.temperature)
    distiller = Distiller(None if on_labels else teacher, student, losses, student_loss_weight=weight)
    schedule = keras.optimizers.schedules.CosineDecay(settings.learning_rate, num_steps)
    distiller.compile(keras.optimizers.Adam(schedule), loss=evaluation.label_loss(student), metrics=["accuracy"])
    return distiller


def fit(
    settings: DistillSettings,
    distiller: keras.Model,
    name: str,
    epochs: int,
    examples: "Sequence[Any]",
    validation: "Data | None",
    callbacks: "Sequence[keras.callbacks.Callback]" = (),
    *,
    shown: bool = True,
    **options: Any,
) -> tuple[dict[str, list[float]], float]:
    """Fits with the callbacks that the settings ask for; the history by epoch, and wall seconds.

    Args:
        settings: the command's.
        distiller: compiled.
        name: of the training, for the bar and for TensorBoard: "distilled" or "labels".
        epochs: how many at most.
        examples: the first arguments of `distiller.fit`.
        validation: what is validated on after each epoch.
        callbacks: more of them.
        shown: whether this process is the one that speaks.
        options: more arguments of `fit`.
    """
    callbacks = [*callbacks]
    if settings.early_stopping is not None:
        stop = keras.callbacks.EarlyStopping("val_loss", patience=settings.early_stopping, restore_best_weights=True)
        callbacks.append(stop)
    if settings.log_dir and shown:
        callbacks.append(_tensorboard(f"{settings.log_dir}/{name}"))
    began = time.monotonic()
    with ExitStack() as stack:
        if shown and not settings.quiet and not settings.verbose:
            from keras_distill._progress import progress_bar

            work = "on labels" if name == "labels" else "distilling"
            advance = stack.enter_context(progress_bar(work, epochs, None, unit="epochs"))
            callbacks.append(_Epochs(advance))
        history = distiller.fit(
            *examples,
            epochs=epochs,
            validation_data=validation,
            validation_freq=validated_every(settings, epochs),
            callbacks=callbacks,
            verbose=2 if settings.verbose and shown else 0,
            **options,
        )
    figures = {metric: [float(value) for value in values] for metric, values in history.history.items()}
    return figures, time.monotonic() - began


def validated_every(settings: DistillSettings, epochs: int) -> int:
    """Epochs from one validation to the next: about a hundred in all, and after every epoch where one may end it.

    Example:
        >>> from types import SimpleNamespace as Settings
        >>> validated_every(Settings(early_stopping=None), 500), validated_every(Settings(early_stopping=9), 500)
        (5, 1)
    """
    return max(1, epochs // 100) if settings.early_stopping is None else 1


class _Epochs(keras.callbacks.Callback):
    """Moves a bar on with each epoch."""

    def __init__(self, advance: "Callable[[int], None]"):
        super().__init__()
        self.advance = advance

    def on_epoch_end(self, epoch: int, logs: "Logs" = None) -> None:
        """One epoch more."""
        self.advance(1)


def _tensorboard(log_dir: str) -> keras.callbacks.Callback:
    from keras_distill._checks import error_message

    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        remedy = "pip install tensorflow tensorboard, or read the history in OUT.json."
        raise ImportError(error_message("--log-dir needs TensorFlow to write its events", "none", remedy)) from error
    return keras.callbacks.TensorBoard(log_dir, write_graph=False)


def _student(
    settings: DistillSettings, dataset: "Dataset"
) -> tuple[keras.Model, list[keras.callbacks.Callback], list[str]]:
    """The student as its file left it, or as an int8 network; the callbacks that it needs, and what to say of it."""
    # Dropout draws its seed when a model is loaded: twins draw the same one.
    keras.utils.set_random_seed(settings.seed)
    student = model_file.load(settings.student, settings)
    if not settings.quantize_aware:
        return student, [], []
    import warnings

    import numpy as np

    from keras_distill.quantize_aware import FreezeRanges, quantize_aware

    chosen = np.random.default_rng(settings.seed).permutation(len(dataset.train))[:_NUM_CALIBRATION]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantized = quantize_aware(student, dataset.train.take(np.sort(chosen)).inputs)
    # What stays float is for the user to read, without the line of code that says so.
    return quantized, [FreezeRanges(num_last_epochs=1)], [str(warning.message) for warning in caught]
