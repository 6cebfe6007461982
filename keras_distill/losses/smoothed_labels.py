"""Smoothed labels: hard labels of which every class gets a little, a control for soft targets."""

from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_fraction
from keras_distill._keras_internals import set_mask
from keras_distill._types import Tensor
from keras_distill.losses.decoupled import target_classes
from keras_distill.losses.per_example import at_least_float32, log_probabilities


@keras.saving.register_keras_serializable(package="keras_distill")
class SmoothedLabels(keras.losses.Loss):
    """Hard labels of which every class gets a little: a control for what soft targets bring beyond smoothing.

    A plain Keras loss over integer labels: `Distiller(teacher, student, student_loss_weight=1.0)` compiled with it
    trains the same student, in the same steps, without the teacher. Items whose label is negative count in no mean, as
    under `SparseCategoricalCrossentropy(ignore_class=-1)`.

    Args:
        smoothing: ε in [0, 1]: the target class gets 1 − ε + ε / num_classes, each other one ε / num_classes.
        from_logits: whether the student ends in logits.
        name: the loss's name.
        reduction: as in `keras.losses.Loss`.

    Example:
        >>> loss = SmoothedLabels(0.2)
        >>> round(float(loss([0], [[2.0, 0.0]])), 6)  # log(1 + e⁻²) + 0.1·2
        0.326928

    Reference:
        Szegedy et al., "Rethinking the Inception Architecture", arXiv:1512.00567, section 7.
    """

    def __init__(
        self,
        smoothing: float = 0.1,
        from_logits: bool = True,
        name: str = "smoothed_labels",
        reduction: str = "sum_over_batch_size",
    ):
        super().__init__(name=name, reduction=reduction)
        self.smoothing = check_fraction("smoothing", smoothing)
        self.from_logits = bool(from_logits)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The cross-entropy of each example, `(...)`."""
        y_pred = at_least_float32(y_pred)
        log_q = ops.log_softmax(y_pred if self.from_logits else log_probabilities(y_pred))
        targets = target_classes(y_true, y_pred)
        targets = (1.0 - self.smoothing) * targets + self.smoothing / y_pred.shape[-1]
        values = -ops.sum(targets * log_q, axis=-1)
        labels = ops.convert_to_tensor(y_true)
        if len(labels.shape) == len(y_pred.shape) and labels.shape[-1] != 1:
            return values
        is_labelled = ops.reshape(labels, ops.shape(values)) >= 0
        values = ops.where(is_labelled, values, 0.0)
        # As Keras's own `ignore_class` does it: `Loss.__call__` takes the mean over what the mask leaves.
        set_mask(values, is_labelled)
        return values

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "smoothing": self.smoothing, "from_logits": self.from_logits}
