"""The steps on TensorFlow and PyTorch: the teacher runs inside the step, outside the gradient.

`jax_trainer.py` has those for JAX, as Keras keeps a trainer for each backend.
"""

from typing import Any

import keras

from keras_distill._types import Data, TensorTree
from keras_distill.distillation.trainable_model import TrainableModel


class Trainer(TrainableModel):
    """A Keras model whose batches the teacher sees before the student's step."""

    evaluate_distillation: bool

    def _with_teacher(self, x: TensorTree, y: TensorTree, training: bool = False) -> TensorTree:
        raise NotImplementedError

    def _evaluation_of_all(self, test_step: Any, *arguments: Any) -> Any:
        raise NotImplementedError

    def train_step(self, data: Data) -> dict[str, Any]:
        """One step: the teacher outside the gradient, then the student, the objective and the update."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        return super().train_step((x, self._with_teacher(x, y, training=True), sample_weight))

    def test_step(self, data: Data) -> dict[str, Any]:
        """One evaluation step of the student; the teacher runs only if `evaluate_distillation`."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if self.evaluate_distillation:
            y = self._with_teacher(x, y)
        return self._evaluation_of_all(super().test_step, (x, y, sample_weight))
