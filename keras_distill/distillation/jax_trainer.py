"""The steps on JAX: the teacher runs between the data and the compiled step, as `teacher_batches.py` says."""

from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_distill._checks import error_message
from keras_distill._keras_internals import give_back_variables
from keras_distill._types import Data, Teacher, TensorTree
from keras_distill.distillation.teacher_batches import TeacherBatches
from keras_distill.distillation.trainable_model import TrainableModel

_STATE = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")


class JaxTrainer(TrainableModel):
    """A Keras model whose batches the teacher sees before they enter the student's step."""

    evaluate_distillation: bool
    teacher: Teacher | None
    train_function: Any
    test_function: Any

    def _with_teacher(
        self, x: TensorTree, y: TensorTree, training: bool = False, student_values: list | None = None
    ) -> TensorTree:
        raise NotImplementedError

    def _evaluation_of_all(self, test_step: Any, *arguments: Any) -> Any:
        raise NotImplementedError

    def make_train_function(self, force: bool = False) -> None:
        """Keras's own, over batches that the teacher has seen."""
        is_new = self.train_function is None or force
        super().make_train_function(force)
        if is_new:
            self.train_function = self._with_teacher_batches(self.train_function, training=True)

    def make_test_function(self, force: bool = False) -> None:
        """Keras's own; the teacher sees the batches only if `evaluate_distillation`."""
        is_new = self.test_function is None or force
        super().make_test_function(force)
        if is_new and self.evaluate_distillation:
            self.test_function = self._with_teacher_batches(self.test_function, training=False)

    def test_step(self, state: tuple, data: Data) -> tuple:
        """Keras's own; with `evaluate_distillation` the student gives all that the objective needs."""
        return self._evaluation_of_all(super().test_step, state, data)

    def _teacher_reads_the_student(self) -> bool:
        """Whether what the teacher says depends on the step before."""
        own = {id(variable) for variable in self.variables}
        shared = any(id(variable) in own for variable in getattr(self.teacher, "variables", ()))
        return hasattr(self.teacher, "follow") or shared

    def _with_teacher_batches(self, function: Callable[[tuple, Iterator], Any], training: bool) -> Callable:
        if training and self.steps_per_execution > 1 and self._teacher_reads_the_student():
            expected = "steps_per_execution must be 1 on JAX for a teacher that follows its student or shares layers"
            raise ValueError(error_message(expected, self.steps_per_execution))

        def step(state: tuple, batches: Iterator) -> Any:
            def teach(x: TensorTree, y: TensorTree) -> TensorTree:
                variables = self.trainable_variables + self.non_trainable_variables
                return self._with_teacher(x, y, training, list(zip(variables, state[0] + state[1], strict=True)))

            try:
                return function(state, TeacherBatches(batches, teach))
            except Exception:
                self._restore_variables(state)
                raise

        return step

    def _restore_variables(self, state: tuple) -> None:
        """Gives the variables the values that Keras took from them for a step that failed."""
        if any(value.is_deleted() for value in keras.tree.flatten(state)):
            return
        # An evaluation holds no optimizer's variables.
        names = [name for name in _STATE if len(state) == len(_STATE) or name != "optimizer_variables"]
        give_back_variables(self, dict(zip(names, state, strict=True)))
