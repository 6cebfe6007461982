"""Students trained in parts from one store, and the score that tells them apart.

How many are trained and which of them go on is the search's own affair.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_distill._inputs import map_arrays, take_rows
from keras_distill._keras_internals import sync_variables
from keras_distill._types import ArrayLike, Inputs, Logs, TensorTree
from keras_distill.distillation import Distiller
from keras_distill.losses import SoftTargets
from keras_distill.models.heads import head_activation
from keras_distill.models.inference import all_logits
from keras_distill.models.layer_roles import is_readable
from keras_distill.pruning import reestimate_batch_normalization
from keras_distill.report import metrics
from keras_distill.targets import SoftTargetStore, attach

if TYPE_CHECKING:
    import optuna

# The score of a training that diverged: finite, since a study in SQLite keeps no NaN.
DIVERGED = 1e9
_RUNGS = (8, 4, 2)
_NUM_CALIBRATION = 512
# Calls of the compiled step, the first apart, that tell how long an epoch takes.
_NUM_TIMED = 4


@dataclass(frozen=True)
class Recipe:
    """What a student is trained with.

    Attributes:
        temperature: of the soft targets.
        student_loss_weight: of the labels; 1.0 is labels alone.
        learning_rate: Adam's, at the beginning of a cosine to zero.
    """

    temperature: float
    student_loss_weight: float
    learning_rate: float

    @property
    def is_on_labels(self) -> bool:
        """Whether labels are all that it learns from."""
        return self.student_loss_weight == 1.0


@dataclass(frozen=True)
class Part:
    """What a part of a training leaves.

    Attributes:
        history: by epoch, as `fit` reports it; what is validated, every `validated_every(epochs)`.
        weights: the average of the trainable weights over its second half.
    """

    history: dict[str, list[float]]
    weights: list[np.ndarray]


@dataclass(frozen=True)
class Training:
    """What is the same for all students of a search.

    Attributes:
        train: inputs (an array or a dict of named ones) and integer labels, `(num_items, …)` and `(num_items,)`: what
            the store was labelled with.
        validation: inputs and integer labels, to score on.
        store: the teacher's soft targets for `train`.
        epochs: of a whole training.
        batch_size: items a step.
        seed: of the order of the examples and of dropout.
        distillation_losses: from a temperature to what `Distiller` takes by that name.
        distillation_loss_weights: what `Distiller` takes by that name.
        teacher: the model beside the student, where losses read its layers; `None` trains from the store.
    """

    train: tuple[TensorTree, ArrayLike]
    validation: tuple[TensorTree, ArrayLike]
    store: SoftTargetStore
    epochs: int
    batch_size: int
    seed: int
    distillation_losses: Callable[[float], Any] = SoftTargets
    distillation_loss_weights: Any = None
    teacher: keras.Model | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Of the training split."""
        return -(-len(np.asarray(self.train[1])) // self.batch_size)

    @property
    def num_steps(self) -> int:
        """Of a whole training."""
        return self.epochs * self.steps_per_epoch

    @property
    def _steps_per_execution(self) -> int:
        """The most steps, up to 32, that an epoch is a multiple of: a call from Python costs as much as a step."""
        return max(steps for steps in range(1, 33) if self.steps_per_epoch % steps == 0)

    def rungs(self, size: int) -> list[tuple[int, int]]:
        """Successive halving: up to which epochs how many of `size` students are trained, the last of them to the end.

        Reference:
            Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
            arXiv:1502.07943, section 3.
        """
        rungs = []
        for divisor in _RUNGS:
            if size > 1:
                rungs.append((max(1, self.epochs // divisor), size))
                size = max(1, size // 2)
        return [*rungs, (self.epochs, size)]

    def cost(self, *sizes: int) -> float:
        """What halvings of so many students cost, in whole trainings."""
        epochs = 0
        for size in sizes:
            before = 0
            for rung, left in self.rungs(size):
                epochs += left * (rung - before)
                before = rung
        return epochs / self.epochs

    def begin(self, student: keras.Model, recipe: Recipe) -> Distiller:
        """A student with the optimizer of a whole training."""
        # A loss of no weight is not computed: a projector of its own would have no gradient, and Keras would warn.
        objective = (None, SoftTargets(recipe.temperature), None)
        if not recipe.is_on_labels:
            objective = (self.teacher, self.distillation_losses(recipe.temperature), self.distillation_loss_weights)
        teacher, losses, weights = objective
        distiller = Distiller(teacher, student, losses, weights, student_loss_weight=recipe.student_loss_weight)
        schedule = keras.optimizers.schedules.CosineDecay(recipe.learning_rate, self.num_steps)
        loss = keras.losses.SparseCategoricalCrossentropy(head_activation(student) != "softmax", ignore_class=-1)
        distiller.compile(
            keras.optimizers.Adam(schedule),
            loss=loss,
            metrics=["accuracy"],
            steps_per_execution=self._steps_per_execution,
        )
        return distiller

    def timed(self, student: keras.Model) -> tuple[float, float]:
        """Seconds until a student's step is compiled, and those of an epoch; it is trained a little, and of no use."""
        began = time.monotonic()
        distiller = self.begin(student, Recipe(2.0, 0.5, 1e-3))
        batches = attach(self.train, self.store, batch_size=self.batch_size, seed=self.seed)
        moments: list[float] = []
        clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: moments.append(time.monotonic()))
        repeated = batches.repeat() if keras.config.backend() == "tensorflow" else batches
        steps = self._steps_per_execution
        distiller.fit(repeated, epochs=_NUM_TIMED, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[clock])
        return moments[0] - began, float(np.min(np.diff(moments))) * self.steps_per_epoch / steps

    def go_on(
        self, distiller: Distiller, start: int, stop: int, callbacks: Sequence[keras.callbacks.Callback] = ()
    ) -> Part:
        """Trains from one epoch to another, validated every `validated_every(epochs)`."""
        # Each part of a training has an order of its own, the same for all students and after a kill.
        keras.utils.set_random_seed(self.seed + start)
        examples, ids = self.examples(on_labels=distiller.student_loss_weight == 1.0)
        options: dict[str, Any] = {"initial_epoch": start, "epochs": stop, "verbose": 0}
        if distiller.teacher is not None:
            options |= {"x": examples[0], "y": examples[1], "batch_size": self.batch_size}
        else:
            batches = attach(examples, self.store, batch_size=self.batch_size, seed=self.seed + start, ids=ids)
            options |= {"x": batches, "shuffle": False}
            if keras.config.backend() == "tensorflow":
                # One stream for all epochs: to begin a new one costs as much as ten steps of a small student.
                options |= {"x": batches.repeat(), "steps_per_epoch": self.steps_per_epoch}
        validated: dict[str, list[float]] = {}

        def validate(epoch: int, logs: Logs = None) -> None:
            # Keras's own validation would compile a second step for each candidate, which costs half a second.
            if (epoch + 1) % validated_every(self.epochs) == 0:
                for metric, value in self._validation_figures(self.validation_logits(distiller.student)).items():
                    validated.setdefault(metric, []).append(value)

        average = WeightAverage(distiller.student, (stop - start) * self.steps_per_epoch, self._steps_per_execution)
        own = [keras.callbacks.LambdaCallback(on_epoch_end=validate), average]
        history = distiller.fit(callbacks=[*own, *callbacks], **options)
        figures = {metric: [float(value) for value in values] for metric, values in history.history.items()}
        return Part(figures | validated, average.weights)

    def logits_after(self, student: keras.Model, part: Part, epoch: int) -> np.ndarray:
        """A student's logits for the validation data after a part; before the end as if its rate had gone to zero.

        The average of the weights along a training stands for where annealing would lead: the higher the rate, the
        further the last step's weights are from it, and the worse they look. BatchNormalization gets the statistics of
        the training data, since moving ones lag behind.

        Reference:
            Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", arXiv:1803.05407,
            section 3.
        """
        if epoch == self.epochs:
            return self.validation_logits(student)
        before = student.get_weights()
        for variable, mean in zip(student.trainable_variables, part.weights, strict=True):
            variable.assign(mean)
        if is_readable(student):
            drawn = np.random.default_rng(0).permutation(len(np.asarray(self.train[1])))[:_NUM_CALIBRATION]
            reestimate_batch_normalization(student, take_rows(_arrays(self.train[0]), np.sort(drawn)))
        logits = self.validation_logits(student)
        student.set_weights(before)
        return logits

    def examples(self, *, on_labels: bool) -> tuple[tuple[TensorTree, ArrayLike], np.ndarray | None]:
        """What a candidate trains on, and the ids where they are not all items in their order.

        Where some items have no label, those that have one come as often as makes an epoch of as many steps.
        """
        inputs, labels = _arrays(self.train[0]), np.asarray(self.train[1])
        if not on_labels or labels.min() >= 0:
            return self.train, None
        ids = np.resize(np.flatnonzero(labels >= 0), len(labels))
        return (take_rows(inputs, ids), labels[ids]), ids

    def validation_logits(self, student: keras.Model) -> np.ndarray:
        """A student's logits for the validation data."""
        return all_logits(student, _arrays(self.validation[0]))

    def score(self, logits: np.ndarray) -> float:
        """The negative log-likelihood of the validation labels at the temperature that suits the logits best, in nats.

        On few examples it tells two students apart where their errors do not.
        """
        return score_of(logits, np.asarray(self.validation[1]))

    def _validation_figures(self, logits: np.ndarray) -> dict[str, float]:
        """What `fit` would report of the validation data."""
        if not np.isfinite(logits).all():
            return {"val_loss": math.nan, "val_accuracy": math.nan}
        labels = np.asarray(self.validation[1])
        loss, errors = metrics.negative_log_likelihood(logits, labels), metrics.error_rate(logits, labels)
        return {"val_loss": loss, "val_accuracy": 1.0 - errors}


class WeightAverage(keras.callbacks.Callback):
    """Averages the trainable weights of a student over the second half of some steps.

    Args:
        student: whose weights are averaged.
        num_steps: how many steps there will be.
        steps_per_call: after how many of them the weights are looked at.

    Attributes:
        weights: the average so far; empty in the first half.
    """

    def __init__(self, student: keras.Model, num_steps: int, steps_per_call: int):
        super().__init__()
        self._student, self._num_calls = student, -(-num_steps // steps_per_call)
        self._calls = 0
        self.weights: list[np.ndarray] = []

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Takes note of the weights after as many steps as a call makes."""
        self._calls += 1
        number = self._calls - self._num_calls // 2
        if number < 1:
            return
        # On JAX the weights are in the step while it runs, and come back when asked for.
        sync_variables(self.model)
        now = [keras.ops.convert_to_numpy(variable) for variable in self._student.trainable_variables]
        before = self.weights or now
        self.weights = [mean + (each - mean) / number for mean, each in zip(before, now, strict=True)]


def validated_every(epochs: int) -> int:
    """Epochs from one validation to the next in a student's history: some twenty in all, for they cost time.

    Example:
        >>> validated_every(12), validated_every(667)
        (1, 34)
    """
    return -(-epochs // 20)


def _arrays(inputs: TensorTree) -> Inputs:
    return map_arrays(np.asarray, inputs)


def score_of(logits: np.ndarray, labels: np.ndarray) -> float:
    """The negative log-likelihood of labels at the temperature that suits the logits best, in nats."""
    if not np.isfinite(logits).all():
        return DIVERGED
    return metrics.negative_log_likelihood(logits, labels, metrics.best_temperature(logits, labels))


@contextmanager
def optuna_quiet(command: str) -> Iterator[None]:
    """Without a line of Optuna's for each trial.

    Raises:
        ImportError: it is not installed; `command` says who needs it.
        OSError: a study cannot be read or written: a disk is full, or closed.
    """
    from keras_distill._checks import error_message

    try:
        import optuna
        import sqlalchemy
    except ImportError as error:
        raise ImportError(f"{command} needs Optuna: pip install keras-distill[tune]") from error
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        received = str(getattr(cause, "orig", None) or cause or error)
        remedy = "Make room on its disk, or name another folder; what was written stays, and the search goes on."
        raise OSError(error_message("the study's file must be one that can be written", received, remedy)) from error
    finally:
        optuna.logging.set_verbosity(before)


def start_again(study: "optuna.Study", settings: dict, folder: str) -> None:
    """Notes what a study is of, or checks that it is of the same.

    Raises:
        ValueError: it is of other settings, another teacher or other data.
    """
    from keras_distill._checks import error_message

    known = study.user_attrs.get("settings", settings)
    if known != settings:
        different = sorted(key for key in settings if settings[key] != known.get(key))
        remedy = "Name another folder, or remove it to begin anew."
        expectation = f"{folder} must be the study of these settings"
        raise ValueError(error_message(expectation, f"one of another {', '.join(different)}", remedy))
    study.set_user_attr("settings", settings)
