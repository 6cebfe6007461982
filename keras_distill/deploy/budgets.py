"""What every shipped artifact must keep to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_distill._checks import check_fraction, check_positive
from keras_distill.deploy.quantize import Variant

_SIZES = ("max_size", "max_latency_ms", "max_arena")
_FRACTIONS = ("max_accuracy_drop", "min_accuracy", "max_drop_from_teacher", "min_class_recall")
# The difference of two shares is rounded: 0.63 - 0.625 is more than 0.005.
_ROUNDING_OF_SHARES = 1e-9
_MOST_NAMED = 3


@dataclass(frozen=True)
class Budgets:
    """What every shipped artifact must keep to.

    Attributes:
        max_accuracy_drop: loss of test accuracy against the Keras student, as a fraction.
        max_size: bytes of one artifact; `None` for no limit.
        max_latency_ms: p50 of one example on one thread of this machine; `None` for no limit.
        min_accuracy: test accuracy, as a fraction. `None`: it must be better than luck; who names a limit, 0 as well,
            has that limit alone.
        max_drop_from_teacher: loss of test accuracy against the teacher, as a fraction; `None` for no limit.
        min_class_recall: share of the test examples of each class that is recognised, as a fraction, of every class
            that has examples; `None` for no limit.
        max_arena: bytes of memory that a file for microcontrollers works in, by their interpreter's own count; `None`
            for no limit.

    Raises:
        ValueError: a fraction outside [0, 1]; a size, a latency or an arena that is not > 0.
    """

    max_accuracy_drop: float = 0.005
    max_size: int | None = None
    max_latency_ms: float | None = None
    min_accuracy: float | None = None
    max_drop_from_teacher: float | None = None
    min_class_recall: float | None = None
    max_arena: int | None = None

    def __post_init__(self) -> None:
        for name in _FRACTIONS:
            if getattr(self, name) is not None:
                check_fraction(name, getattr(self, name), "It is a fraction: 0.05 is five per cent.")
        for name in _SIZES:
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))

    def broken_by(
        self, variant: Variant, *, teacher_accuracy: float | None = None, class_names: Sequence[str] = ()
    ) -> list[str]:
        """How far a verified and measured variant is past each budget; empty if it keeps to all.

        Args:
            variant: with its `class_recalls` where there is a budget for them.
            teacher_accuracy: in [0, 1], of the same examples.
            class_names: in the order of `variant.class_recalls`.
        """
        assert variant.verification is not None
        broken = []
        drop, size, latency = variant.verification.accuracy_drop, variant.num_bytes, variant.latency["p50_ms"]
        if drop is not None and drop > self.max_accuracy_drop + _ROUNDING_OF_SHARES:
            excess = drop - self.max_accuracy_drop
            broken.append(f"accuracy drops by {drop:.2%}: {excess:.2%} past the budget of {self.max_accuracy_drop:.2%}")
        if self.max_size is not None and size > self.max_size:
            broken.append(f"takes {size:,} bytes: {size - self.max_size:,} past the budget of {self.max_size:,}")
        if self.max_latency_ms is not None and latency > self.max_latency_ms:
            excess = latency - self.max_latency_ms
            broken.append(f"takes {latency:.3f} ms: {excess:.3f} ms past the budget of {self.max_latency_ms:g} ms")
        if self.max_arena is not None and variant.micro is not None and variant.micro.arena_bytes > self.max_arena:
            arena = variant.micro.arena_bytes
            excess = arena - self.max_arena
            broken.append(f"needs an arena of {arena:,} bytes: {excess:,} past the budget of {self.max_arena:,}")
        return broken + self._useless(variant, teacher_accuracy, class_names)

    def _useless(self, variant: Variant, teacher_accuracy: float | None, class_names: Sequence[str]) -> list[str]:
        broken = []
        accuracy = variant.verification.accuracy if variant.verification else None
        if self.min_accuracy is not None and accuracy is not None:
            excess = self.min_accuracy - accuracy
            if excess > _ROUNDING_OF_SHARES:
                broken.append(
                    f"is right on {accuracy:.2%}: {excess:.2%} short of the budget of {self.min_accuracy:.2%}"
                )
        if self.max_drop_from_teacher is not None and accuracy is not None and teacher_accuracy is not None:
            drop = teacher_accuracy - accuracy
            excess = drop - self.max_drop_from_teacher
            if excess > _ROUNDING_OF_SHARES:
                broken.append(
                    f"accuracy is {drop:.2%} below the teacher's: {excess:.2%} past the budget of "
                    f"{self.max_drop_from_teacher:.2%}"
                )
        if self.min_class_recall is not None and variant.class_recalls is not None:
            recalls = np.asarray(variant.class_recalls)
            # NaN, of a class without examples, is below nothing.
            below = np.flatnonzero(recalls < self.min_class_recall - _ROUNDING_OF_SHARES)
            worst = below[np.argsort(recalls[below], kind="stable")]
            if len(worst):
                named = ", ".join(f"{class_names[index]} {recalls[index]:.2%}" for index in worst[:_MOST_NAMED])
                more = f" and {len(worst) - _MOST_NAMED} more" if len(worst) > _MOST_NAMED else ""
                broken.append(f"recall by class ({named}{more}) is below the budget of {self.min_class_recall:.2%}")
        return broken
