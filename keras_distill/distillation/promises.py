"""What was promised of a tensor, logits or probabilities, and what a batch shows of it.

Most heads are found, and what they give is known. Of the others (subclassed models, callables, stored soft targets)
there is nothing but `from_logits`, which trains in silence where it is wrong. So a few rows of every batch are looked
at inside the step, and the first batch ends a `fit` whose promises are broken.
"""

from collections.abc import Mapping
from typing import NamedTuple

import keras
from keras import ops

from keras_distill._checks import error_message
from keras_distill._types import Tensor
from keras_distill.models.probabilities import (
    NO_PROBABILITIES,
    ROWS_SUM_TO_ONE,
    SOFTMAX,
    VALUES_IN_UNIT_INTERVAL,
    is_enough,
    share_of_probabilities,
)


class Promise(NamedTuple):
    """What is said of a tensor.

    Attributes:
        who: whose it is, as an error says it: `"the teacher's outputs"`.
        is_logits: whether logits are promised, or probabilities.
        activation: what makes probabilities of such logits, `"softmax"` or `"sigmoid"`.
        remedy: what to do where it is wrong.
    """

    who: str
    is_logits: bool
    activation: str
    remedy: str


class Promises(keras.metrics.Metric):
    """How much of each tensor looks like probabilities: of those of which nothing but a promise is known.

    A metric, because replicas and compiled steps know how to add it up.

    Args:
        num_tensors: how many tensors there are, watched or not.
        name: the metric's name.
    """

    def __init__(self, num_tensors: int, name: str = "promises"):
        super().__init__(name=name)
        self._total = self.add_variable((num_tensors,), "zeros", name="total")
        self._count = self.add_variable((), "zeros", name="count")
        # What is promised of which tensor, known once a step is traced.
        self._made: dict[int, Promise] = {}

    def update_state(self, watched: Mapping[int, tuple[Promise, Tensor]]) -> None:
        """Adds a batch.

        Args:
            watched: a tensor's position → its promise and its logits `(batch, …, num_classes)`.
        """
        shares = [0.0] * self._total.shape[0]
        for position, (promise, logits) in watched.items():
            self._made[position] = promise
            shares[position] = _share(promise, logits)
        self._total.assign_add(ops.stack([ops.cast(share, self._total.dtype) for share in shares]))
        self._count.assign_add(1.0)

    def result(self) -> Tensor:
        """The mean share of each tensor, `(num_tensors,)`; 0 for one that is not watched."""
        return self._total / ops.maximum(self._count, 1.0)

    def broken(self) -> str | None:
        """The error of the first promise that is broken, if any."""
        shares = ops.convert_to_numpy(self.result())
        for position, promise in sorted(self._made.items()):
            if promise.is_logits and shares[position] == 1.0:
                received = ROWS_SUM_TO_ONE if promise.activation == SOFTMAX else VALUES_IN_UNIT_INTERVAL
                return error_message(f"{promise.who} must be logits", received, promise.remedy)
            if not promise.is_logits and shares[position] < 0.5:
                expected = "be probabilities, as from_logits=False promises"
                return error_message(f"{promise.who} must {expected}", NO_PROBABILITIES, promise.remedy)
        return None


def _share(promise: Promise, logits: Tensor) -> Tensor:
    # A few rows tell: the sums of all would cost a large vocabulary's step one more pass over its logits.
    logits = logits[:64] if len(logits.shape) < 3 else logits[:8, :8]
    if promise.is_logits:
        share = share_of_probabilities(logits, promise.activation)
        return share * is_enough(logits, promise.activation)
    # Logits that were made of probabilities, on the way back; what was outside of [0, 1] is NaN since.
    back = ops.exp(logits) if promise.activation == SOFTMAX else ops.sigmoid(logits)
    return share_of_probabilities(back, promise.activation)
