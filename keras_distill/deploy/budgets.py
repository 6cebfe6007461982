"""What every shipped artifact must keep to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keras_distill._checks import check_fraction, check_positive
from keras_distill.deploy.quantize import Variant

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Budgets:
    """What every shipped artifact must keep to.

    Attributes:
        max_accuracy_drop: loss of test accuracy against the Keras student, as a fraction.
        max_size: bytes of one artifact; `None` for no limit.
        max_latency_ms: p50 of one example on one thread of this machine; `None` for no limit.
    """

    max_accuracy_drop: float = 0.005
    max_size: int | None = None
    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        check_fraction("max_accuracy_drop", self.max_accuracy_drop)
        for name in ("max_size", "max_latency_ms"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))

    def broken_by(self, variant: Variant) -> list[str]:
        """How far a verified and measured variant is past each budget; empty if it keeps to all."""
        assert variant.verification is not None
        broken = []
        drop, size, latency = variant.verification.accuracy_drop, variant.num_bytes, variant.latency["p50_ms"]
        # The difference of two shares is rounded: 0.63 - 0.625 is more than 0.005.
        if drop is not None and drop > self.max_accuracy_drop + 1e-9:
            excess = drop - self.max_accuracy_drop
            broken.append(f"accuracy drops by {drop:.2%}: {excess:.2%} past the budget of {self.max_accuracy_drop:.2%}")
        if self.max_size is not None and size > self.max_size:
            broken.append(f"takes {size:,} bytes: {size - self.max_size:,} past the budget of {self.max_size:,}")
        if self.max_latency_ms is not None and latency > self.max_latency_ms:
            excess = latency - self.max_latency_ms
            broken.append(f"takes {latency:.3f} ms: {excess:.3f} ms past the budget of {self.max_latency_ms:g} ms")
        return broken
