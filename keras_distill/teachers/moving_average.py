"""`MovingAverage`: a student's own past as its teacher."""

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_fraction, error_message


@dataclass(frozen=True)
class _Untracked:
    """Variables of a clone, whose layers the model tracks already; Keras's trackers do not look in here."""

    variables: list[Any]


class MovingAverage(keras.Model):
    """A teacher whose weights are the exponential moving average of the student's: self-distillation, "mean teacher".

    After each step θ' ← decay·θ' + (1 − decay)·θ, moving statistics included. It begins as a copy of the student; the
    `Distiller` moves it, inside the compiled step. Best with noise on the student's side (dropout, augmentation), and
    with few labels. It is not saved with the distiller: a resumed run begins its average anew.

    Args:
        student: a built Functional or Sequential model; another teacher's or distiller's is refused when it follows.
        decay: in [0, 1]; the paper takes 0.99 early, 0.999 later. 1 never moves.
        name: the model's name.

    Raises:
        ValueError: the decay is out of range, or the student has no graph.

    Example:
        >>> student = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        >>> teacher = MovingAverage(student, decay=0.75)
        >>> student.layers[0].kernel.assign([[1.0], [2.0]])
        <...>
        >>> teacher.follow(student)
        >>> teacher.weights[0].numpy().tolist()
        [[0.25], [0.5]]

    Reference:
        Tarvainen, Valpola, "Mean teachers are better role models", arXiv:1703.01780, section 2.
    """

    def __init__(self, student: keras.Model, decay: float = 0.999, *, name: str = "moving_average"):
        if not getattr(student, "inputs", None):
            remedy = "Build it with keras.Sequential or keras.Model(inputs, outputs)."
            raise ValueError(
                error_message(
                    "the student of a MovingAverage must be a Functional or Sequential model", student, remedy
                )
            )
        clone = keras.models.clone_model(student)
        clone.set_weights(student.get_weights())
        is_sequential = isinstance(clone, keras.Sequential)
        inputs, outputs = (clone.inputs[0], clone.outputs[0]) if is_sequential else (clone.input, clone.output)
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.decay = check_fraction("decay", decay)
        self._average = _Untracked(clone.variables)

    def follow(self, student: keras.Model) -> None:
        """Moves the average one step towards the student's weights; also inside a compiled step."""
        pairs = list(zip(self._average.variables, student.variables, strict=True))
        for average, variable in pairs:
            if keras.backend.is_float_dtype(average.dtype):
                decay = ops.cast(self.decay, average.dtype)
                average.assign(decay * average + (1.0 - decay) * ops.cast(variable, average.dtype))
