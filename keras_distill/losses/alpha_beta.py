"""The α-β-divergence (ABKD): between forward and reverse Kullback–Leibler, with two numbers to say where."""

import math
from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_number, error_message
from keras_distill._types import Schedulable, Tensor
from keras_distill.losses.logit_loss import LogitLoss
from keras_distill.losses.per_example import at_least_float32


def alpha_beta_divergence(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable, *, alpha: float, beta: float
) -> Tensor:
    """T²·D(p ‖ q), for each example, p and q being teacher's and student's softmax at temperature T.

        D = −1 / (αβ) · Σ (pᵢ^α·qᵢ^β − α / (α + β)·pᵢ^(α+β) − β / (α + β)·qᵢ^(α+β))

    and where α or β is 0, its limit. α = 1, β = 0 is the forward divergence KL(p ‖ q), which is soft targets; α = 0,
    β = 1 the reverse one, KL(q ‖ p); α + β = 1 lies between them. The smaller α, the more classes count that the
    student has far wrong; the larger β, the more those count of which the student is sure.

    Args:
        teacher_logits: float `(..., num_classes)`.
        student_logits: float, the same shape.
        temperature: T > 0.
        alpha: α ≥ 0.
        beta: β ≥ 0.

    Returns:
        float `(...)`, at least float32; never negative.

    Example:
        >>> forward = alpha_beta_divergence([[1.0, 0.0]], [[0.0, 0.0]], 1.0, alpha=1.0, beta=0.0)
        >>> round(float(forward[0]), 6)  # log 2 less the entropy of sigmoid(1)
        0.110944

    Reference:
        Wang et al., "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
        α-β-Divergence", arXiv:2505.04560, the definition of the divergence; after Cichocki, Cruces and Amari,
        "Generalized Alpha-Beta Divergences", Entropy 13, 2011, whose limits these are.
    """
    student = at_least_float32(student_logits)
    temperature = ops.cast(temperature, student.dtype)
    log_p = ops.log_softmax(ops.cast(teacher_logits, student.dtype) / temperature, axis=-1)
    log_q = ops.log_softmax(student / temperature, axis=-1)
    # Of each class: from the smaller to the greater of p and q, so that no power of their ratio overflows, and with the
    # 1 taken off every exponential, so that nothing cancels where the two are near.
    difference = log_q - log_p
    total = alpha + beta
    if total == 0.0:
        parts = 0.5 * ops.square(difference)
    else:
        fall, rise = ops.minimum(difference, 0.0), ops.minimum(-difference, 0.0)
        parts = ops.exp(total * log_p) * _below(fall, alpha, beta) + ops.exp(total * log_q) * _below(rise, beta, alpha)
    return ops.square(temperature) * ops.sum(parts, axis=-1)


def _below(ratio: Tensor, alpha: float, beta: float) -> Tensor:
    """One class's share of the divergence over p^(α+β), where log(q / p) is `ratio` ≤ 0."""
    if alpha == 0.0:
        return (beta * ratio * ops.exp(beta * ratio) - ops.expm1(beta * ratio)) / beta**2
    if beta == 0.0:
        return (ops.expm1(alpha * ratio) - alpha * ratio) / alpha**2
    total = alpha + beta
    return (beta / total * ops.expm1(total * ratio) - ops.expm1(beta * ratio)) / (alpha * beta)


@keras.saving.register_keras_serializable(package="keras_distill")
class AlphaBetaDivergence(LogitLoss):
    """ABKD: soft targets by a divergence between forward and reverse Kullback–Leibler.

    Args:
        temperature: T > 0.
        alpha: α ≥ 0; less lets classes count more that the student has far wrong.
        beta: β ≥ 0; more lets classes count more of which the student is sure.
        from_logits: as in `SoftTargets`.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> loss = AlphaBetaDivergence.forward_kl(temperature=4.0)
        >>> loss.alpha, loss.beta
        (1.0, 0.0)

    Reference:
        Wang et al., arXiv:2505.04560. T² is ours, as in `SoftTargets`; the authors' code leaves it to the weight of
        the loss, and divides the limits at α = 0 and β = 0 once less by the other number: the same where that is 1.
    """

    def __init__(
        self, temperature: Schedulable = 4.0, alpha: float = 0.8, beta: float = 0.2, *, from_logits: bool = True
    ):
        super().__init__(temperature, from_logits=from_logits)
        self.alpha, self.beta = check_number("alpha", alpha), check_number("beta", beta)
        if min(self.alpha, self.beta) < 0.0 or not math.isfinite(self.alpha + self.beta):
            remedy = "(1, 0) is the forward divergence, (0, 1) the reverse one."
            raise ValueError(error_message("alpha and beta must be >= 0", (self.alpha, self.beta), remedy))

    @classmethod
    def forward_kl(cls, temperature: Schedulable = 4.0, *, from_logits: bool = True) -> "AlphaBetaDivergence":
        """KL(teacher ‖ student), α = 1 and β = 0: what `SoftTargets` computes."""
        return cls(temperature, 1.0, 0.0, from_logits=from_logits)

    @classmethod
    def reverse_kl(cls, temperature: Schedulable = 4.0, *, from_logits: bool = True) -> "AlphaBetaDivergence":
        """KL(student ‖ teacher), α = 0 and β = 1: the student keeps to what the teacher thinks likely."""
        return cls(temperature, 0.0, 1.0, from_logits=from_logits)

    @classmethod
    def alpha_divergence(
        cls, alpha: float, temperature: Schedulable = 4.0, *, from_logits: bool = True
    ) -> "AlphaBetaDivergence":
        """α + β = 1: from the reverse divergence at α = 0 to the forward one at α = 1; ½ is symmetric (Hellinger)."""
        return cls(temperature, alpha, 1.0 - alpha, from_logits=from_logits)

    def of_logits(self, teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable) -> Tensor:
        """Returns the loss of each example, `(...)`."""
        return alpha_beta_divergence(teacher_logits, student_logits, temperature, alpha=self.alpha, beta=self.beta)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta}
