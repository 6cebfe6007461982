"""On JAX: batches that the teacher has seen, before they enter the student's compiled step.

Keras's step for JAX is a pure function of the model's own variables. A teacher inside it would be a constant of the
compiled program: compiled again with every new teacher, and refused where its weights lie on several hosts. So it
runs between the data and the step, as a compiled function of its own weights; one that cannot be compiled (another
runtime, NumPy) runs as it is. On TensorFlow the `Distiller`'s own step does this.
"""

from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_distill._keras_internals import all_layers
from keras_distill.models.compilation import compiled


class TeacherBatches:
    """An iterator over batches whose `y` has the teacher's part too.

    Args:
        batches: an iterator of `(x, y, sample_weight)`, any of which but `x` may be missing.
        teach: `(x, y) -> y` with the teacher's part.
    """

    def __init__(self, batches: Iterator, teach: Callable[[Any, Any], Any]):
        self._batches, self._teach = batches, teach

    def __iter__(self) -> "TeacherBatches":
        return self

    def __next__(self) -> tuple:
        """The next batch, `(x, y, sample_weight)`."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(next(self._batches))
        return x, self._teach(x, y), sample_weight


def teacher_pass(run: Callable[[Any, bool], Any], model: Any) -> Callable[[Any], Any]:
    """A teacher's pass as a function from a batch's inputs to `(logits, features)`.

    Args:
        run: `(inputs, training) -> Outputs`.
        model: whose weights `run` reads; only a `keras.Model` without layers that XLA cannot compile is compiled.
    """

    def parts(inputs: Any) -> tuple[Any, dict[str, Any]]:
        outputs = run(inputs, False)
        return outputs.logits, outputs.features

    is_compilable = isinstance(model, keras.Model) and all(layer.supports_jit for layer in all_layers(model))
    return compiled(parts, model) if is_compilable else parts


def follow(teacher: Any, student: Any, student_values: list[tuple[Any, Any]]) -> None:
    """`teacher.follow(student)`, while the student's variables are in the hands of the compiled step.

    Args:
        teacher: a teacher that moves with its student, such as `MovingAverage`.
        student: the model it follows.
        student_values: pairs of a student's variable and its present value.
    """
    with keras.StatelessScope(state_mapping=student_values) as scope:
        teacher.follow(student)
        moved = [(variable, scope.get_current_value(variable)) for variable in teacher.variables]
    for variable, value in moved:
        if value is not None:
            variable.assign(value)
