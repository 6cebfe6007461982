"""One stretch of a candidate's training, in this process or in a worker's: trained, scored, its state kept."""

import itertools
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from keras_distill._files import whole_file, whole_folder
from keras_distill.backup import restore_state, save_state
from keras_distill.distillation import Distiller
from keras_distill.models.saving import load_model
from keras_distill.search.cost import Meter
from keras_distill.search.training import DIVERGED, Part, Recipe, Training

# What all candidates are taught with: in the middle of what is tuned for the best of them.
TEMPERATURE, STUDENT_LOSS_WEIGHT = 2.0, 0.5
# Of a candidate: a converter's crash, a model that cannot be built, a full disk. It costs this candidate, whatever its
# runtime raises: LiteRT's own is a RuntimeError, TensorFlow's and ONNX Runtime's are of their own kinds.
OF_ONE = Exception


@dataclass(frozen=True)
class Stretch:
    """A part of a candidate's training: a task, so it is small.

    Attributes:
        number: of the candidate.
        precision: that it is served in.
        learning_rate: Adam's, at the beginning of the whole training.
        start: epochs trained before.
        stop: the epoch after which it is scored.
        rungs: after which epochs candidates are compared.
    """

    number: int
    precision: str
    learning_rate: float
    start: int
    stop: int
    rungs: tuple[int, ...]

    @property
    def parts(self) -> list[tuple[int, int]]:
        """From one epoch to the next, in the parts of a training that is halved: each has an order of its own.

        Example:
            >>> Stretch(0, "int8", 1e-3, 0, 4, (1, 2, 4, 8)).parts
            [(0, 1), (1, 2), (2, 4)]
        """
        between = (rung for rung in self.rungs if self.start < rung < self.stop)
        return list(itertools.pairwise(sorted({self.start, self.stop, *between})))


@dataclass(frozen=True)
class Result:
    """What became of a stretch.

    Attributes:
        score: negative log-likelihood on validation data, in nats.
        error_rate: share of the validation examples that it has wrong.
        seconds: that the training took.
        failure: why it failed; empty where it did not.
    """

    score: float = DIVERGED
    error_rate: float = 1.0
    seconds: float = 0.0
    failure: str = ""


@dataclass
class CandidateTrainer:
    """Trains candidates a stretch at a time.

    Attributes:
        training: teaches and scores them.
        meter: writes the file that is served.
        folder: for the states of those in training, on a disk that all workers share.
    """

    training: Training
    meter: Meter
    folder: Path
    _running: dict[int, Distiller] = field(default_factory=dict)

    def forget(self, number: int) -> None:
        """Removes what is kept of a candidate that has ended."""
        self._running.pop(number, None)
        shutil.rmtree(self._folder_of(number), ignore_errors=True)

    def forget_state(self, number: int, epoch: int) -> None:
        """Removes an older state of a candidate that has one of a later epoch, or its end."""
        shutil.rmtree(self._state_of(number, epoch), ignore_errors=True)

    def train(self, stretch: Stretch, make_student: Callable[[], keras.Model]) -> Result:
        """Trains on from where the candidate stood, from its beginning or from the state on disk.

        Args:
            stretch: which part.
            make_student: the candidate with the weights that its training begins from.
        """
        try:
            distiller = self._running.get(stretch.number) or self._resumed(stretch, make_student())
            self._running[stretch.number] = distiller
            started = time.monotonic()
            for start, stop in stretch.parts:
                part = self.training.go_on(distiller, start, stop)
            seconds = time.monotonic() - started
            score, error_rate = self._judged(stretch, distiller.student, part)
            if stretch.stop < self.training.epochs:
                with whole_folder(self._state_of(stretch.number, stretch.stop)) as aside:
                    save_state(distiller, aside)
        except OF_ONE as error:
            self._running.pop(stretch.number, None)
            return Result(failure=reason_of(error))
        return Result(score, error_rate, seconds)

    def save_start(self, number: int, make_student: Callable[[], keras.Model]) -> None:
        """Writes the model that a candidate's training begins from where workers find it."""
        path = self._start_of(number)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as aside:
                make_student().save(aside)

    def open(self) -> Callable[[Stretch], Result]:
        """In a worker: the function that trains what `save_start` wrote."""

        def work(stretch: Stretch) -> Result:
            # Written by this search, so code inside it is trusted.
            return self.train(
                stretch, lambda: load_model(self._start_of(stretch.number), compile=False, safe_mode=False)
            )

        return work

    def _start_of(self, number: int) -> Path:
        return self._folder_of(number) / "start.keras"

    def _state_of(self, number: int, epoch: int) -> Path:
        return self._folder_of(number) / str(epoch)

    def _folder_of(self, number: int) -> Path:
        return self.folder / str(number)

    def _resumed(self, stretch: Stretch, student: keras.Model) -> Distiller:
        recipe = Recipe(TEMPERATURE, STUDENT_LOSS_WEIGHT, stretch.learning_rate)
        distiller = self.training.begin(student, recipe)
        if stretch.start:
            restore_state(distiller, self._state_of(stretch.number, stretch.start))
        return distiller

    def _judged(self, stretch: Stretch, student: keras.Model, part: Part) -> tuple[float, float]:
        """Score and share of errors on validation data; of the int8 file, where the student was trained to its end."""
        inputs, labels = self.training.validation
        logits = self.training.logits_after(student, part, stretch.stop)
        if stretch.stop == self.training.epochs and stretch.precision == "int8" and np.isfinite(logits).all():
            logits = self.meter.logits(student, stretch.precision, inputs)
        score = self.training.score(logits)
        return score, 1.0 if score == DIVERGED else float(np.mean(logits.argmax(axis=-1) != np.asarray(labels)))


def reason_of(error: BaseException) -> str:
    """An error in one line.

    Example:
        >>> reason_of(ValueError("two   words")), reason_of(MemoryError())
        ('two words', 'MemoryError')
    """
    return " ".join(str(error).split()) or type(error).__name__
