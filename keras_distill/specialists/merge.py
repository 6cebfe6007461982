"""Merging a generalist with its specialists: the exact optimum, as a pure function.

What the merged q minimises is the paper's; how it is found is not: gradient descent is replaced by an interior-point
method (`interior_point.py`) over the few *cells* of classes that the same specialists cover (`cells.py`), which needs
about ten steps.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_distill._checks import check_count, check_finite, check_positive, error_message
from keras_distill._types import ClassSets, Tensor
from keras_distill.specialists.cells import NOTHING, cells_of, log_observed, parts_by_segment
from keras_distill.specialists.interior_point import Problem


def merge(
    generalist_logits: Tensor,
    specialist_logits: Sequence[Tensor],
    class_sets: ClassSets,
    steps: int = 10,
    *,
    routes: Tensor = None,
    max_active: int | None = None,
    generalist_weight: float = 1.0,
    return_residual: bool = False,
) -> Tensor:
    """The distribution nearest to a generalist and its active specialists.

    The paper merges by gradient descent on the logits of q for every example. The objective is concave in q, and its
    optimum is a weighted centre: with `b` the mass observed for a class and `d_m` that in a dustbin,

        maximise over q:  Σ_c b_c · log q_c  +  Σ_m d_m · log Q_m,   Q_m = Σ_{c outside set m} q_c

    which is `−w · KL(p_g‖q) − Σ_m KL(p_m‖q)` up to a constant, where w is 1 in the paper. Its optimality conditions are

        q_c · s_c = b_c,   Q_m · μ_m = d_m,   s_c = w + M − Σ_{m: c outside set m} μ_m

    Classes that the same specialists cover share their `s`, so Newton's method on these conditions (primal–dual, with
    a second-order corrector, stopping short of the boundary) works on a few cells and an M × M system. The last step
    is one of EM, in the log domain, exact for a single active specialist. Gradients flow through the last of Newton's
    steps and that of EM alone: at the optimum that is the implicit derivative.

    Args:
        generalist_logits: float, `(batch, num_classes)`.
        specialist_logits: for each specialist float, `(batch, k + 1)`: its classes in the order of its set, then the
            dustbin.
        class_sets: for each specialist its classes, each once, at least one and not all of them.
        steps: the last is EM, the ones before Newton. 10 bring the objective within 1e-5 nats of its optimum, sharp,
            flat, nested or contradicting one another, whatever the logits; nearly always within 1e-9. The objective is
            flat where dustbins leave mass to classes that hardly anybody names: up to one such example in a hundred has
            log probabilities (of p > 1e-8) that are more than 1e-4 nats off, though its objective is right.
        routes: `(batch, num_specialists)`, non-zero where a specialist counts; `None`: all count everywhere.
        max_active: how many specialists at most are active for one example, if that is fewer than there are: keeps
            the system small. Where more are active, those with the lowest positions count.
        generalist_weight: w, how much the generalist counts beside each specialist. Below 1 specialists that know their
            classes better than it does are diluted less.
        return_residual: whether to return also how far the result may be from the optimum.

    Returns:
        Merged log probabilities, nats, float32 `(batch, num_classes)`. With `return_residual` also an upper bound of
        the distance to the optimal objective, nats, float32 `(batch,)`: a duality gap, plus 2e-6 · (w + M) for what
        float32 rounds away. Where the merge has not converged it says so.

    Raises:
        ValueError: a set that is empty, names a class twice or one out of range, or holds all of them; an output
            count that does not fit its set; a weight that is not positive; NaN or infinite logits (outside of a graph).

    Example:
        >>> generalist = np.log([[0.5, 0.3, 0.2]])
        >>> specialist = np.log([[0.2, 0.6, 0.2]])  # classes 0 and 1, then the dustbin
        >>> print(np.exp(merge(generalist, [specialist], [[0, 1]])).round(3))
        [[0.35 0.45 0.2 ]]

    Reference: Hinton et al., arXiv:1503.02531, section 5.4, equation 5; the method is Mehrotra's predictor-corrector,
        SIAM Journal on Optimization 2 (1992), towards a weighted centre.
    """
    num_classes = generalist_logits.shape[-1]
    class_sets = check_class_sets(class_sets, num_classes)
    check_count("steps", steps)
    check_positive("generalist_weight", generalist_weight)
    _check_outputs(generalist_logits, specialist_logits, class_sets)
    log_generalist = ops.log_softmax(ops.cast(generalist_logits, "float32"), axis=-1)
    if not class_sets:
        return (log_generalist, ops.zeros_like(log_generalist[:, 0])) if return_residual else log_generalist
    cells = cells_of(class_sets, num_classes)

    log_specialists = [ops.log_softmax(ops.cast(logits, "float32"), axis=-1) for logits in specialist_logits]
    log_dustbins = ops.stack([log_probabilities[:, -1] for log_probabilities in log_specialists], axis=-1)
    is_active = ops.ones_like(log_dustbins) if routes is None else ops.cast(ops.not_equal(routes, 0), "float32")
    num_active = len(class_sets) if max_active is None else check_count("max_active", max_active)
    is_bounded = num_active < len(class_sets)
    if is_bounded:
        place = ops.cumsum(is_active, axis=-1)
        is_active *= ops.cast(place <= num_active, "float32")
    log_mass = log_observed(log_generalist + math.log(generalist_weight), log_specialists, is_active, cells)
    # Within a cell classes keep the ratios of their masses: cells are merged, and share out what they get.
    log_part, log_cell_mass = parts_by_segment(ops.transpose(log_mass), cells.cell_of_class, cells.is_outside.shape[1])
    log_part, log_cell_mass = ops.transpose(log_part), ops.transpose(log_cell_mass)

    # (1 or batch, specialists, cells): where few of many are active, each example keeps only the rows of its own.
    is_outside = cells.is_outside[None]
    if is_bounded:
        # The first active one, the second, …: `(batch, num_active, specialists)`. Not `top_k` nor `take_along_axis`:
        # LiteRT learns the size of what they give only while it runs; see `Problem.levelled`.
        is_chosen = ops.equal(ops.expand_dims(place, -2), np.arange(1, num_active + 1, dtype="float32")[:, None])
        is_chosen = ops.cast(is_chosen, "float32") * ops.expand_dims(is_active, -2)
        is_active = ops.sum(is_chosen, axis=-1)
        log_dustbins = ops.max(ops.where(is_chosen > 0.5, ops.expand_dims(log_dustbins, -2), NOTHING), axis=-1)
        # Where fewer are active there is nobody, who leaves every cell out.
        is_outside = ops.matmul(is_chosen, cells.is_outside[None]) + ops.expand_dims(1.0 - is_active, -1)
    log_dustbins = ops.where(is_active > 0.5, log_dustbins, NOTHING)
    problem = Problem(is_outside, is_active, log_cell_mass, log_dustbins, generalist_weight)
    # With one specialist or none, EM from the observed masses is exact, whatever the solver would say.
    log_q = log_cell_mass
    if is_active.shape[-1] > 1 and steps > 1:
        are_several = ops.sum(is_active, axis=-1, keepdims=True) > 1.5
        log_q = ops.where(are_several, problem.solve(steps - 1), log_q)
    log_q = problem.em_step(log_q)
    log_q = log_q - ops.logsumexp(log_q, axis=-1, keepdims=True)
    log_merged = log_part + ops.take(log_q, cells.cell_of_class, axis=1)
    return (log_merged, problem.residual(log_q)) if return_residual else log_merged


def check_class_sets(class_sets: ClassSets, num_classes: int) -> list[list[int]]:
    """Returns `class_sets` as lists of ints; raises `ValueError` where a set is no set of some of the classes."""
    checked = []
    for position, class_set in enumerate(class_sets):
        subject = f"class_sets[{position}]"
        classes = [check_count(f"{subject}[{place}]", label, 0) for place, label in enumerate(class_set)]
        if not classes:
            raise ValueError(
                error_message(f"{subject} must hold at least one class", "none", "Leave the specialist out.")
            )
        outside = [label for label in classes if label >= num_classes]
        if outside:
            raise ValueError(error_message(f"{subject} must hold classes in [0, {num_classes})", outside[0]))
        label, times = Counter(classes).most_common()[0]
        if times > 1:
            raise ValueError(error_message(f"{subject} must hold each class once", f"{label} {times} times"))
        if len(classes) == num_classes:
            remedy = "A dustbin needs a class outside the set."
            raise ValueError(
                error_message(f"{subject} must leave out at least one of the {num_classes} classes", "all", remedy)
            )
        checked.append(classes)
    return checked


def _check_outputs(generalist_logits: Tensor, specialist_logits: Sequence[Tensor], class_sets: list[list[int]]) -> None:
    if len(specialist_logits) != len(class_sets):
        expected = f"be {len(class_sets)} tensors, one for each class set"
        raise ValueError(error_message(f"specialist_logits must {expected}", len(specialist_logits)))
    for position, (logits, class_set) in enumerate(zip(specialist_logits, class_sets, strict=True)):
        num_outputs, num_special = logits.shape[-1], len(class_set)
        if num_outputs != num_special + 1:
            lacks = num_outputs == num_special
            remedy = "Its dustbin is missing: the last output is for all other classes." if lacks else ""
            expected = f"have {num_special + 1} outputs, its {num_special} classes and the dustbin"
            raise ValueError(error_message(f"specialist_logits[{position}] must {expected}", num_outputs, remedy))
    for name, logits in [("generalist_logits", generalist_logits)] + [
        (f"specialist_logits[{position}]", logits) for position, logits in enumerate(specialist_logits)
    ]:
        # Inside of a graph there are no values yet.
        if isinstance(logits, np.ndarray) or hasattr(logits, "numpy"):
            check_finite(name, logits, "Look at the model that gave them.")
