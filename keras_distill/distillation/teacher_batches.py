"""On JAX: batches that the teacher has seen, before they enter the student's compiled step.

Keras's step for JAX is a pure function of the model's own variables. A teacher inside it would be a constant of the
compiled program: compiled again with every new teacher, and refused where its weights lie on several hosts. So it
runs between the data and the step, as a compiled function of its own weights; one that cannot be compiled (another
runtime, NumPy) runs as it is. On TensorFlow the `Distiller`'s own step does this.
"""

from collections.abc import Callable, Iterator

import keras

from keras_distill._types import TensorTree


class TeacherBatches:
    """An iterator over batches whose `y` has the teacher's part too.

    Args:
        batches: an iterator of `(x, y, sample_weight)`, any of which but `x` may be missing.
        teach: `(x, y) -> y` with the teacher's part.
    """

    def __init__(self, batches: Iterator, teach: Callable[[TensorTree, TensorTree], TensorTree]):
        self._batches, self._teach = batches, teach

    def __iter__(self) -> "TeacherBatches":
        return self

    def __next__(self) -> tuple:
        """The next batch, `(x, y, sample_weight)`."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(next(self._batches))
        return x, self._teach(x, y), sample_weight
