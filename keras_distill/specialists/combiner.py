"""Merging a generalist with its specialists: the exact optimum, as a pure function, a layer and a model.

What the merged q minimises is the paper's; how it is found is not: gradient descent is replaced by an interior-point
method over the few *cells* of classes that the same specialists cover, which needs about ten steps.
"""

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill._checks import check_count, check_positive, error_message
from keras_distill._types import Shape, Tensor
from keras_distill.specialists.merge import check_class_sets, merge


@keras.saving.register_keras_serializable(package="keras_distill")
class SpecialistCombiner(keras.layers.Layer):
    """`merge` as a layer.

    Called with `[generalist_logits, specialist_logits_1, …]` and optionally `routes`; gives merged log probabilities,
    which are logits. No weights. Computes in float32 whatever the policy. Unrolled, of operations that ONNX and
    LiteRT both have.

    Args:
        class_sets: for each specialist its classes, in the order of its outputs.
        num_classes: how many classes the generalist has.
        steps: see `merge`.
        max_active: see `merge`.
        generalist_weight: see `merge`.

    Raises:
        ValueError: as `merge` does.

    Example:
        >>> import numpy as np
        >>> combiner = SpecialistCombiner([[0, 1]], num_classes=3)
        >>> merged = combiner([np.log([[0.5, 0.3, 0.2]]), np.log([[0.2, 0.6, 0.2]])], routes=np.array([[0]]))
        >>> print(np.exp(merged).round(3))
        [[0.5 0.3 0.2]]

    Reference: Hinton et al., arXiv:1503.02531, section 5.4, equation 5.
    """

    def __init__(
        self,
        class_sets: Sequence[Sequence[int]],
        num_classes: int,
        steps: int = 10,
        *,
        max_active: int | None = None,
        generalist_weight: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **{"dtype": "float32", **kwargs})
        self.num_classes = check_count("num_classes", num_classes, 2)
        self.class_sets = check_class_sets(class_sets, self.num_classes)
        self.steps = check_count("steps", steps)
        self.max_active = None if max_active is None else check_count("max_active", max_active)
        self.generalist_weight = check_positive("generalist_weight", generalist_weight)

    def build(self, input_shape: Shape) -> None:
        """There are no weights."""

    def call(self, inputs: Sequence[Any], routes: Tensor = None, return_residual: bool = False) -> Tensor:
        """`[(batch, C), (batch, k₁ + 1), …]` → `(batch, C)`, and with `return_residual` also `(batch,)`."""
        generalist_logits, *specialist_logits = inputs
        if generalist_logits.shape[-1] != self.num_classes:
            raise ValueError(
                error_message(f"generalist_logits must have {self.num_classes} classes", generalist_logits.shape[-1])
            )
        return merge(
            generalist_logits,
            specialist_logits,
            self.class_sets,
            self.steps,
            routes=routes,
            max_active=self.max_active,
            generalist_weight=self.generalist_weight,
            return_residual=return_residual,
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "class_sets": self.class_sets,
            "num_classes": self.num_classes,
            "steps": self.steps,
            "max_active": self.max_active,
            "generalist_weight": self.generalist_weight,
        }
