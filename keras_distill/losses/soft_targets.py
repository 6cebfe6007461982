"""Soft targets: T² times the KL divergence from teacher to student, both softened by T.

The pure functions take what a teacher may give: dense logits; the logits of an ensemble's members, whose
softened mean is no softening of any one set of logits; or, from a store, the k largest logits, or a few classes drawn
from all. `SoftTargets` is the object over them.
"""

import math
from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_choice, check_positive, error_message
from keras_distill._types import Schedulable, Tensor
from keras_distill.losses.logit_loss import check_several_classes, validate_logits
from keras_distill.losses.per_example import PerExampleLoss, log_probabilities, serialized, sum_dtype
from keras_distill.schedules import check_schedulable, current

TAIL_POLICIES = ("uniform", "bucket", "renormalise")
# The logarithm of a share of 0, finite so that its gradient is.
_NOTHING = -1e30


def soft_targets(teacher_logits: Tensor, student_logits: Tensor, temperature: Schedulable) -> Tensor:
    """T²·KL(softmax(teacher / T) ‖ softmax(student / T)), for each example, in nats.

    The soft targets' gradient shrinks as 1/T², so T² keeps its weight against the hard labels' when T
    changes. With respect to the student's logits it is `T·(q − p)`.

    Args:
        teacher_logits: float `(..., num_classes)`, before softmax, finite.
        student_logits: float, the same shape.
        temperature: T > 0, a float or a scalar tensor.

    Returns:
        float `(...)`, at least float32.

    Example:
        >>> loss = soft_targets([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]], [[1.0, 1.0, 0.0], [0.5, 0.2, 0.1]], 3.0)
        >>> round(float(ops.mean(loss)), 6)
        1.364872

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.
    """
    return _scaled_divergence(log_softmax(teacher_logits, temperature), student_logits, temperature)


def member_soft_targets(
    member_logits: Tensor, member_weights: Tensor, student_logits: Tensor, temperature: Schedulable
) -> Tensor:
    """T²·KL(Σₘ wₘ·softmax(memberₘ / T) ‖ softmax(student / T)), for each example, in nats.

    Args:
        member_logits: float `(..., members, num_classes)`, before softmax, finite.
        member_weights: float `(..., members)`, non-negative, summing to one.
        student_logits: float `(..., num_classes)`.
        temperature: T > 0, a float or a scalar tensor.

    Returns:
        float `(...)`, at least float32.

    Example:
        >>> members = [[[2.0, 0.0], [0.0, 0.0]]]
        >>> loss = member_soft_targets(members, [[0.5, 0.5]], [[0.0, 0.0]], 1.0)
        >>> round(float(loss[0]), 6)  # targets 0.6904 and 0.3096
        0.074366

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, sections 2 and 3: an arithmetic mean of the members' predictions.
    """
    log_probabilities = log_softmax(member_logits, temperature)
    log_weights = ops.log(ops.cast(member_weights, log_probabilities.dtype))[..., None]
    return _scaled_divergence(ops.logsumexp(log_probabilities + log_weights, axis=-2), student_logits, temperature)


def top_k_soft_targets(
    top_k_logits: Tensor,
    top_k_ids: Tensor,
    log_normalizer: Tensor,
    student_logits: Tensor,
    temperature: Schedulable,
    *,
    tail: str = "uniform",
    log_tail: Tensor = None,
) -> Tensor:
    """T²·KL(teacher ‖ student) where only the teacher's k largest logits are known, for each example, in nats.

    No dense row of the teacher's is ever made: the student's logits are gathered at the k ids, and its
    log-sum-exp is taken once; the gradient `T·(q − p)` is one softmax and k corrections. What becomes of the share that
    the teacher gives to the other `num_classes − k` classes, the *tail*, is the policy's:

    - `"uniform"`: they share it evenly, at every temperature: the same target as the dense row so filled.
    - `"bucket"`: they are one class, whose share the student must match, however it divides it.
    - `"renormalise"`: nothing; the k shares are scaled to sum to one.

    Each is a divergence of two distributions, so never negative, and with k = num_classes each is the dense loss.

    Args:
        top_k_logits: float `(..., k)`, the teacher's largest logits, raw.
        top_k_ids: integers `(..., k)`, their classes, no class twice.
        log_normalizer: float `(...)`, the log-sum-exp of all of the teacher's raw logits, at temperature 1; `None`
            where `log_tail` is given. It is off for a sure teacher: a tail of less than 1e-6 is lost in the rounding
            of float32, one of 1e-3 in that of float16, and at T = 4 such tails have a large share.
        student_logits: float `(..., num_classes)`.
        temperature: T > 0, a float or a scalar tensor.
        tail: `"uniform"`, `"bucket"` or `"renormalise"`.
        log_tail: float `(...)`, the log-sum-exp of the teacher's raw logits that are not among the k, at temperature 1:
            right however small the tail is.

    Returns:
        float `(...)`, at least float32.

    Raises:
        ValueError: an unknown tail, or neither `log_normalizer` nor `log_tail`.

    Example:
        >>> loss = top_k_soft_targets([[2.0]], [[0]], [2.5], [[0.0, 0.0, 0.0]], 1.0)
        >>> round(float(loss[0]), 6)  # targets e^-0.5 = 0.6065 and twice 0.1967
        0.155605
        >>> sure = top_k_soft_targets([[30.0]], [[0]], None, [[0.0, 0.0, 0.0]], 4.0, log_tail=[math.log(2.0)])
        >>> round(float(sure[0]), 4)  # dense logits 30, 0 and 0, whose tail is 2e-13 of the whole
        17.4275

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2, for the loss.
    """
    check_choice("tail", tail, TAIL_POLICIES)
    if log_normalizer is None and log_tail is None:
        remedy = "A store's rows have one of them."
        raise ValueError(error_message("log_normalizer or log_tail must be given", "neither", remedy))
    student_logits = ops.convert_to_tensor(student_logits)
    dtype = sum_dtype(student_logits)
    student_logits, top_k_logits, temperature = (
        ops.cast(values, dtype) for values in (student_logits, top_k_logits, temperature)
    )
    top_k_ids = ops.cast(top_k_ids, "int32")
    num_tail = student_logits.shape[-1] - top_k_ids.shape[-1]
    scaled = top_k_logits / temperature
    if num_tail == 0 or tail == "renormalise":
        log_kept = ops.log_softmax(scaled, axis=-1)
        divergence = _filled_divergence(log_kept, None, top_k_ids, student_logits, temperature)
    else:
        if log_tail is None:
            log_tail = _log_difference(ops.cast(log_normalizer, dtype), top_k_logits)
        # A stored k-th logit is rounded, and may be below the others' mean: no class outside the k is likelier.
        log_tail = ops.maximum(ops.cast(log_tail, dtype), _NOTHING)
        tail_logit = ops.minimum(log_tail - math.log(num_tail), ops.min(top_k_logits, axis=-1))
        everything = ops.concatenate([scaled, tail_logit[..., None] / temperature + math.log(num_tail)], axis=-1)
        log_shares = ops.log_softmax(everything, axis=-1)
        # e^-1e4 is 0 in any precision, and stays 0 when it is multiplied by its own logarithm and a million classes.
        log_kept, log_rest = log_shares[..., :-1], ops.maximum(log_shares[..., -1], -1e4)
        if tail == "uniform":
            log_each = log_rest - math.log(num_tail)
            divergence = _filled_divergence(log_kept, log_each, top_k_ids, student_logits, temperature)
        else:
            divergence = _bucket_divergence(log_kept, log_rest, top_k_ids, student_logits, temperature)
    return ops.square(temperature) * ops.maximum(divergence, 0.0)


def sampled_soft_targets(
    sampled_shares: Tensor,
    sampled_ids: Tensor,
    entropy: Tensor,
    student_logits: Tensor,
    temperature: Schedulable,
) -> Tensor:
    """An estimate of T²·KL(teacher ‖ student), unbiased as its gradient is, from classes drawn of each target, in nats.

    The divergence is the student's cross-entropy to the target less the target's entropy. The first is estimated as
    −T²·Σᵢ sᵢ·log qᵢ over the drawn classes, whose shares s are the target in expectation; the second is known. So the
    gradient is `T·(q − s)`, in expectation that of the dense target. The estimate for one example may well be
    negative; the mean of many is not, but for its noise. It is not clamped, which would bias it.

    Args:
        sampled_shares: float `(..., sample)`, summing to one.
        sampled_ids: integers `(..., sample)`, their classes, no class twice.
        entropy: float `(...)`, of the teacher's softmax at `temperature`, in nats.
        student_logits: float `(..., num_classes)`.
        temperature: T > 0, a float or a scalar tensor: the one at which the classes were drawn.

    Returns:
        float `(...)`, at least float32.

    Example:
        >>> target = [0.7, 0.2, 0.1]  # of which one class is drawn, by its share
        >>> entropy = [-sum(p * math.log(p) for p in target)]
        >>> each = [sampled_soft_targets([[1.0]], [[i]], entropy, [[0.5, 0.0, 0.0]], 2.0)[0] for i in range(3)]
        >>> dense = soft_targets([[2.0 * math.log(p) for p in target]], [[0.5, 0.0, 0.0]], 2.0)[0]
        >>> round(float(sum(p * value for p, value in zip(target, each))), 5), round(float(dense), 5)
        (0.84901, 0.84901)

    Reference:
        Anshumann et al., "Sparse Logit Sampling", arXiv:2503.16870, section 3: sampled targets, and why the k largest
        logits are biased.
    """
    student_logits = ops.convert_to_tensor(student_logits)
    dtype = sum_dtype(student_logits)
    student_logits, shares, entropy, temperature = (
        ops.cast(values, dtype) for values in (student_logits, sampled_shares, entropy, temperature)
    )
    gathered = _gathered_log_softmax(student_logits, temperature, ops.cast(sampled_ids, "int32"))
    # A class whose count was rounded to 0 has no part, however unlikely the student holds it.
    surprise = ops.where(shares > 0.0, -gathered[..., :-1], 0.0)
    return ops.square(temperature) * (ops.sum(shares * surprise, axis=-1) - entropy)


def _log_difference(log_normalizer: Tensor, top_k_logits: Tensor) -> Tensor:
    """The log-sum-exp of all logits but the k, from that of all: log(e^log_normalizer − Σ e^top_k_logits); `(...)`."""
    kept = ops.sum(ops.exp(top_k_logits - log_normalizer[..., None]), axis=-1)
    # Rounded logits may leave nothing, or less than nothing.
    return log_normalizer + ops.log(ops.maximum(1.0 - kept, 1e-30))


def _filled_divergence(
    log_kept: Tensor, log_each: Tensor, ids: Tensor, student_logits: Tensor, temperature: Schedulable
) -> Tensor:
    """KL(p ‖ softmax(student / T)), p being `exp(log_kept)` at `ids` and `exp(log_each)` (or 0) elsewhere; `(...)`."""
    gathered = _gathered_log_softmax(student_logits, temperature, ids)
    at_ids, elsewhere = gathered[..., :-1], gathered[..., -1]
    divergence = ops.sum(ops.exp(log_kept) * (log_kept - at_ids), axis=-1)
    if log_each is not None:
        num_tail = student_logits.shape[-1] - ids.shape[-1]
        divergence += ops.exp(log_each) * (num_tail * log_each - elsewhere)
    return divergence


def _gathered_log_softmax(logits: Tensor, temperature: Schedulable, ids: Tensor) -> Tensor:
    """log_softmax(logits / T) at the k `ids`, then its sum over all other classes; `(..., k + 1)`.

    The gradient is written out: the softmax of the way forward, with k corrections. Automatic differentiation
    would go through the row anew for the maximum, the exponentials, both sums and the gathered entries.
    """
    num_tail = logits.shape[-1] - ids.shape[-1]

    def gathered(logits: Tensor, temperature: Schedulable) -> tuple[Any, Any]:
        centred = (logits - ops.max(logits, axis=-1, keepdims=True)) / temperature
        shares = ops.softmax(centred, axis=-1)
        # The largest share is where `centred` is 0: one over the sum of exponentials.
        log_total = -ops.log(ops.max(shares, axis=-1, keepdims=True))
        kept = ops.take_along_axis(centred, ids, axis=-1)
        elsewhere = ops.sum(centred, axis=-1, keepdims=True) - ops.sum(kept, axis=-1, keepdims=True)
        at_ids = kept - log_total

        def gradient(*arguments: Any, upstream: Tensor = None) -> Tensor:
            upstream = (arguments[-1] if upstream is None else upstream) / temperature
            of_ids, of_each = upstream[..., :-1], upstream[..., -1:]
            total = ops.sum(of_ids, axis=-1, keepdims=True) + num_tail * of_each
            of_logits = _put_at(of_each - total * shares, ids, of_ids - total * ops.exp(at_ids))
            return of_logits, -ops.sum(of_logits * centred)

        return ops.concatenate([at_ids, elsewhere - num_tail * log_total], axis=-1), gradient

    return ops.custom_gradient(gathered)(logits, temperature)


def _bucket_divergence(
    log_kept: Tensor, log_tail: Tensor, ids: Tensor, student_logits: Tensor, temperature: Schedulable
) -> Tensor:
    """KL over k + 1 classes, the last of them all that are not at `ids`; `(...)`."""
    # Centred, so that of a sure student's logarithms near 0 no more is rounded than of themselves. The shift cancels.
    largest = ops.stop_gradient(ops.max(student_logits, axis=-1, keepdims=True))
    scaled = (student_logits - largest) / temperature
    # One less the k shares would lose a small bucket to rounding: the k are taken out of the row instead.
    log_bucket = ops.logsumexp(_put_at(scaled, ids, ops.full_like(log_kept, -1e30)), axis=-1)
    at_ids = ops.take_along_axis(scaled, ids, axis=-1)
    log_total = ops.logaddexp(ops.logsumexp(at_ids, axis=-1), log_bucket)
    of_kept = ops.sum(ops.exp(log_kept) * (log_kept - at_ids + log_total[..., None]), axis=-1)
    return of_kept + ops.exp(log_tail) * (log_tail - log_bucket + log_total)


def _put_at(rows: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """`rows` `(..., num_classes)` with `values` `(..., k)` in place of what is at `ids`."""
    num_classes, k = rows.shape[-1], ids.shape[-1]
    flat_ids = ops.reshape(ids, (-1, k))
    items = ops.broadcast_to(ops.arange(ops.shape(flat_ids)[0], dtype="int32")[:, None], ops.shape(flat_ids))
    places = ops.stack([ops.reshape(items, (-1,)), ops.reshape(flat_ids, (-1,))], axis=-1)
    replaced = ops.scatter_update(ops.reshape(rows, (-1, num_classes)), places, ops.reshape(values, (-1,)))
    return ops.reshape(replaced, ops.shape(rows))


def log_softmax(logits: Tensor, temperature: Schedulable) -> Tensor:
    """Log-probabilities of `logits / temperature` over the last axis, in float32 or, for float64, in float64."""
    logits = ops.convert_to_tensor(logits)
    logits = ops.cast(logits, sum_dtype(logits))
    return ops.log_softmax(logits / ops.cast(temperature, logits.dtype), axis=-1)


def _scaled_divergence(teacher_log_probabilities: Tensor, student_logits: Tensor, temperature: Schedulable) -> Tensor:
    student_log_probabilities = log_softmax(student_logits, temperature)
    teacher_log_probabilities = ops.cast(teacher_log_probabilities, student_log_probabilities.dtype)
    surprise = teacher_log_probabilities - student_log_probabilities
    divergence = ops.sum(ops.exp(teacher_log_probabilities) * surprise, axis=-1)
    # Rounding can leave a divergence of equal distributions at -1e-8, which T² would enlarge.
    return ops.square(ops.cast(temperature, divergence.dtype)) * ops.maximum(divergence, 0.0)


@keras.saving.register_keras_serializable(package="keras_distill")
class SoftTargets(PerExampleLoss):
    """Hinton's soft targets: T²·KL from the softened teacher to the softened student.

    A `keras.distillation.DistillationLoss`: our `Distiller` and Keras's both take it.

    Args:
        temperature: T > 0. Higher gives softer targets; Hinton et al. use 1 to 20. A schedule, a learnt temperature
            or a `keras.Variable` is read anew at every step.
        tail: what a top-k teacher's other classes get: `"uniform"`, `"bucket"` or `"renormalise"`, as in
            `top_k_soft_targets`. Dense targets have no tail.
        from_logits: `False` where the loss is used in plain Keras on models that end in a softmax: both outputs are
            probabilities then. In a `Distiller` the outputs are logits whatever the heads.

    Raises:
        ValueError: the temperature is not > 0, or an unknown tail.

    Example:
        >>> loss = SoftTargets(temperature=3.0)
        >>> round(float(loss.compute_loss([[2.0, -1.0, 0.5]], [[2.5, -0.5, 1.0]])), 6)
        0.0

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2.
    """

    head = "softmax"

    def __init__(self, temperature: Schedulable = 4.0, tail: str = "uniform", *, from_logits: bool = True):
        self.temperature = check_schedulable("temperature", temperature, check_positive, "Hinton et al. use 1 to 20.")
        self.tail = check_choice("tail", tail, TAIL_POLICIES)
        self.from_logits = bool(from_logits)

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Returns the loss of each example, `(...)`.

        Args:
            teacher_outputs: logits `(..., num_classes)`, or an ensemble's
                `{"member_logits": (..., members, num_classes), "member_weights": (..., members)}`, or a store's
                `{"top_k_logits": (..., k), "top_k_ids": (..., k), "log_tail": (...)}`, or `"log_normalizer"` in place
                of `"log_tail"`, or `{"sampled_shares": (..., sample), "sampled_ids": (..., sample), "entropy": (...)}`,
                which are of one temperature: it must be this loss's.
            student_outputs: logits `(..., num_classes)`.
        """
        temperature = current(self.temperature)
        if not self.from_logits:
            teacher_outputs, student_outputs = map(log_probabilities, (teacher_outputs, student_outputs))
        if isinstance(teacher_outputs, dict) and "top_k_ids" in teacher_outputs:
            return top_k_soft_targets(
                teacher_outputs["top_k_logits"],
                teacher_outputs["top_k_ids"],
                teacher_outputs.get("log_normalizer"),
                student_outputs,
                temperature,
                tail=self.tail,
                log_tail=teacher_outputs.get("log_tail"),
            )
        if isinstance(teacher_outputs, dict) and "sampled_ids" in teacher_outputs:
            return sampled_soft_targets(
                teacher_outputs["sampled_shares"],
                teacher_outputs["sampled_ids"],
                teacher_outputs["entropy"],
                student_outputs,
                temperature,
            )
        if isinstance(teacher_outputs, dict):
            members, weights = teacher_outputs["member_logits"], teacher_outputs["member_weights"]
            return member_soft_targets(members, weights, student_outputs, temperature)
        return soft_targets(teacher_outputs, student_outputs, temperature)

    def validate_outputs(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        """Raises `ValueError` where the two differ in rank or classes, or where a softmax would be constant."""
        validate_logits(teacher_outputs, student_outputs)
        check_several_classes(type(self).__name__, student_outputs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"temperature": serialized(self.temperature), "tail": self.tail, "from_logits": self.from_logits}
