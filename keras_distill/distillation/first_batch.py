"""A `fit` that cannot succeed ends at its first batch, with the student as it was."""

from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_distill._checks import error_message
from keras_distill._keras_internals import sync_variables
from keras_distill._types import Logs

FIRST_BATCH_METRICS = {"teacher_not_finite", "other_temperature", "promises"}


class FirstBatchCheck(keras.callbacks.Callback):
    """Stops a `fit` that cannot succeed at its first batch, with the students' weights as they were.

    Args:
        students: the models that are trained.
        fault: gives what the first batch showed to be wrong, as an error's message, or `None`.
    """

    def __init__(self, students: Sequence[keras.Model], fault: Callable[[], str | None]):
        super().__init__()
        self.students, self.fault = list(students), fault

    def on_train_begin(self, logs: Logs = None) -> None:
        """Keeps the students' weights as they are, and refuses those that are not finite."""
        variables = [variable for student in self.students for variable in student.variables]
        self.before = [(variable, variable.numpy()) for variable in variables]
        self.has_begun = False
        for variable, value in self.before:
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                remedy = "Load or initialise it again: no training mends them."
                received = f"NaN or infinite values in {variable.path}"
                raise ValueError(error_message("the student's weights must be finite", received, remedy))

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Looks at what the first batch showed, once it is over."""
        # Before the second batch, not after the first: if any callback implements `on_train_batch_end`, Keras converts
        # every metric to a number after every batch, and waits for it.
        if self.has_begun and self.before:
            self._look()
            self.before = []
        self.has_begun = True

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Looks again: an epoch may be a single batch."""
        self._look()
        self.before = []

    def _look(self) -> None:
        sync_variables(self.model)
        message = self.fault()
        if message:
            for variable, value in self.before:
                variable.assign(value)
            raise ValueError(message)
