"""Merging a generalist with its specialists: the exact optimum, as a pure function.

What the merged q minimises is the paper's; how it is found is not: gradient descent is replaced by an interior-point
method over the few *cells* of classes that the same specialists cover, which needs about ten steps.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_distill._checks import check_count, check_finite, check_positive, error_message

# A dustbin's mass may meet classes that nobody gave any. They get this share of it outright, in proportion to what
# they have: without it the solver meets ratios of 1e40, which float32 cannot tell apart; with it the objective moves by
# less than 3e-8 nats.
_SHARE = 1e-8


# What the solver calls zero. The class probabilities themselves stay in the log domain, down to exp(-120).
_FLOOR = 1e-12


_LOWEST = -120.0


# exp(-120 + 50) and 62 · exp(50) both fit float32.
_SHIFT = 50.0


# How far towards the boundary a step may go: 0.9 loses two steps, 0.99 gets stuck in float32.
_REACH = 0.95


# Two objectives closer than this, nats, may be the same in float32.
_RESOLUTION = 1e-5


class Cells(NamedTuple):
    """Classes grouped by who covers them: within a cell the merged ratios are those of the observed masses.

    Attributes:
        cell_of_class: int32 `(num_classes,)`.
        is_outside: float32 `(num_specialists, num_cells)`, 1 where the cell is not in the specialist's set.
        sources: int32 `(num_classes, depth)`, positions in the specialists' class outputs laid side by side; the
            position after the last one stands for nothing.
    """

    cell_of_class: np.ndarray
    is_outside: np.ndarray
    sources: np.ndarray


def cells_of(class_sets: Sequence[Sequence[int]], num_classes: int) -> Cells:
    """Groups the classes by the specialists that cover them.

    Args:
        class_sets: the classes of each specialist, in the order of its outputs.
        num_classes: how many classes the generalist has.

    Example:
        >>> cells = cells_of([[0, 1], [1, 2]], num_classes=5)
        >>> cells.cell_of_class.tolist(), cells.is_outside.tolist()
        ([2, 3, 1, 0, 0], [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    """
    outputs = [np.asarray(class_set, "int64") for class_set in class_sets]
    inside = np.zeros((num_classes, len(outputs)), bool)
    covered_by: list[list[int]] = [[] for _ in range(num_classes)]
    first_output = 0
    for specialist, class_set in enumerate(outputs):
        inside[class_set, specialist] = True
        for offset, label in enumerate(class_set):
            covered_by[label].append(first_output + offset)
        first_output += len(class_set)
    patterns, cell_of_class = np.unique(inside, axis=0, return_inverse=True)
    depth = max(map(len, covered_by))
    sources = [positions + [first_output] * (depth - len(positions)) for positions in covered_by]
    return Cells(
        cell_of_class.ravel().astype("int32"),
        (~patterns.T).astype("float32"),
        np.asarray(sources, "int32").reshape(num_classes, depth),
    )


def merge(
    generalist_logits: Any,
    specialist_logits: Sequence[Any],
    class_sets: Sequence[Sequence[int]],
    steps: int = 10,
    *,
    routes: Any = None,
    max_active: int | None = None,
    generalist_weight: float = 1.0,
    return_residual: bool = False,
) -> Any:
    """The distribution nearest to a generalist and its active specialists.

    The paper merges by gradient descent on the logits of q for every example. The objective is concave in q, and its
    optimum is a weighted centre: with `b` the mass observed for a class and `d_m` that in a dustbin,

        maximise over q:  Σ_c b_c · log q_c  +  Σ_m d_m · log Q_m,   Q_m = Σ_{c outside set m} q_c

    which is `−w · KL(p_g‖q) − Σ_m KL(p_m‖q)` up to a constant, where w is 1 in the paper. Its optimality conditions are

        q_c · s_c = b_c,   Q_m · μ_m = d_m,   s_c = w + M − Σ_{m: c outside set m} μ_m

    Classes that the same specialists cover share their `s`, so Newton's method on these conditions (primal–dual, with
    a second-order corrector, stopping short of the boundary) works on a few cells and an M × M system. The last step
    is one of EM, exact for a single active specialist. Gradients flow through the best of Newton's steps and that of EM
    alone: at the optimum that is the implicit derivative.

    Args:
        generalist_logits: float, `(batch, num_classes)`. Log probabilities below −120 nats count as −120 when masses
            are added up.
        specialist_logits: for each specialist float, `(batch, k + 1)`: its classes in the order of its set, then the
            dustbin.
        class_sets: for each specialist its classes, each once, at least one and not all of them.
        steps: the last is EM, the ones before Newton. 10 bring the objective within 1e-6 nats of its optimum for up to
            10 active specialists whose logits span ±50. Where a class stands out by twenty nats beside a light
            generalist, a few examples in a hundred have log probabilities that are more than 1e-4 nats off: the
            objective is flat there, and float32 cannot tell who gets what the dustbins leave. Of ten sets nested in
            each other whose dustbins are all certain, some examples stay away from the optimum however many the steps;
            `return_residual` tells which.
        routes: `(batch, num_specialists)`, non-zero where a specialist counts; `None`: all count everywhere.
        max_active: how many specialists at most are active for one example, if that is fewer than there are: keeps
            the system small. Where more are active, those with the lowest positions count.
        generalist_weight: w, how much the generalist counts beside each specialist. Below 1 specialists that know their
            classes better than it does are diluted less.
        return_residual: whether to return also how far the result may be from the optimum.

    Returns:
        Merged log probabilities, nats, float32 `(batch, num_classes)`. With `return_residual` also an upper bound of
        the distance to the optimal objective, nats, float32 `(batch,)`, not below what float32 resolves (about 1e-5).

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
        is_active *= ops.cast(ops.cumsum(is_active, axis=-1) <= num_active, "float32")
    log_mass = _log_observed(log_generalist + math.log(generalist_weight), log_specialists, is_active, cells)
    log_cell_mass = _log_sum_by_cell(log_mass, cells)

    # (1 or batch, specialists, cells): where few of many are active, each example keeps only the rows of its own.
    is_outside = cells.is_outside[None]
    if is_bounded:
        is_active, chosen = ops.top_k(is_active, num_active)
        log_dustbins = ops.take_along_axis(log_dustbins, chosen, axis=1)
        is_outside = ops.take(cells.is_outside, chosen, axis=0)
    log_dustbins = ops.maximum(log_dustbins, _LOWEST)
    problem = _Problem(is_outside, is_active, log_cell_mass, log_dustbins, generalist_weight)
    # With one specialist or none, EM from the observed masses is exact, whatever the solver would say.
    log_scale = ops.zeros_like(log_cell_mass)
    if is_active.shape[-1] > 1:
        several = ops.sum(is_active, axis=-1, keepdims=True) > 1.5
        log_scale = ops.where(several, problem.solve(steps - 1), log_scale)
    log_scale = problem.em_step(log_scale)
    log_merged = log_mass + ops.take(log_scale, cells.cell_of_class, axis=1)
    log_merged = log_merged - ops.logsumexp(log_merged, axis=-1, keepdims=True)
    return (log_merged, problem.residual(log_scale)) if return_residual else log_merged


def check_class_sets(class_sets: Sequence[Sequence[int]], num_classes: int) -> list[list[int]]:
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


class _Problem(NamedTuple):
    """The merge on the level of cells.

    Attributes:
        is_outside: `(1 or batch, specialists, cells)`.
        is_active: `(batch, specialists)`.
        log_mass: `(batch, cells)`, what is observed, nats.
        log_dustbins: `(batch, specialists)`, nats.
        generalist_weight: the generalist's mass; an active specialist's is 1.
    """

    is_outside: Any
    is_active: Any
    log_mass: Any
    log_dustbins: Any
    generalist_weight: float

    def over_cells(self, values: Any) -> Any:
        """`(batch, cells)` → its sum outside of each specialist's set, `(batch, specialists)`."""
        return ops.squeeze(ops.matmul(self.is_outside, ops.expand_dims(values, -1)), -1)

    def over_specialists(self, values: Any) -> Any:
        """`(batch, specialists)` → its sum over the active ones that leave a cell out, `(batch, cells)`."""
        active = ops.expand_dims(values * self.is_active, -2)
        return ops.squeeze(ops.matmul(active, self.is_outside), -2)

    def total(self) -> Any:
        """The mass of all that is observed, w + M, `(batch, 1)`."""
        return self.generalist_weight + ops.sum(self.is_active, axis=-1, keepdims=True)

    def em_step(self, log_scale: Any) -> Any:
        """One step of EM; `log_scale` is `log(q / observed mass)`, `(batch, cells)`, up to a constant before."""
        return ops.logaddexp(0.0, log_scale + ops.log(self.shares(log_scale))) - ops.log(self.total())

    def shares(self, log_scale: Any) -> Any:
        """`Σ_m d_m / Q_m` over the active specialists that leave a cell out, `(batch, cells)`, never zero."""
        outside = self.over_cells(ops.exp(self.log_mass + log_scale))
        return ops.maximum(self.over_specialists(ops.exp(self.log_dustbins) / ops.maximum(outside, 1e-30)), 1e-30)

    def residual(self, log_scale: Any) -> Any:
        """The Frank–Wolfe gap, of a q that sums to one: above the distance to the optimum; nats, `(batch,)`."""
        steepest = ops.max(ops.exp(-log_scale) + self.shares(log_scale), axis=-1)
        return ops.maximum(steepest - ops.squeeze(self.total(), -1), 0.0)

    def solve(self, steps: int) -> Any:
        """`log(q / observed mass)`, `(batch, cells)`, after so many Newton steps."""
        if not steps:
            return ops.zeros_like(self.log_mass)
        log_outside = ops.log(self.over_cells(ops.exp(self.log_mass + _SHIFT))) - _SHIFT
        log_shares = ops.log(self.over_specialists(ops.exp(self.log_dustbins - log_outside - _SHIFT)) + math.exp(-80.0))
        log_boost = ops.logaddexp(0.0, log_shares + _SHIFT + math.log(_SHARE))
        mass = ops.maximum(ops.exp(self.log_mass + log_boost), _FLOOR)
        dustbins = ops.maximum(ops.exp(self.log_dustbins), _FLOOR)
        state = best = self.start(mass, dustbins)
        best_objective, best_error = self.objective(best, mass, dustbins), self.error(best, mass, dustbins)
        for _ in range(steps):
            state = self.newton_step(_State(*(ops.stop_gradient(part) for part in state)), mass, dustbins)
            objective, error = self.objective(state, mass, dustbins), self.error(state, mass, dustbins)
            # Float32 can lose its way at the boundary, so the best state is kept. The objective is flat at its optimum:
            # there a state 1e-4 away looks as good, and the conditions tell them apart.
            gain = objective - best_objective
            is_nearer = ops.logical_and(gain > -_RESOLUTION, error < best_error)
            is_better = ops.logical_or(gain > _RESOLUTION, is_nearer)
            best = _State(*(ops.where(is_better, new, old) for new, old in zip(state, best, strict=True)))
            best_objective = ops.where(is_better, objective, best_objective)
            best_error = ops.where(is_better, error, best_error)
        # q = mass / slack, whichever of the two float32 knows better: a small slack is a difference of large prices,
        # and a small q may be nothing but the floor.
        log_scale = ops.log(best.q) - self.log_mass
        return ops.where(best.slack < 0.1, log_scale, log_boost - ops.log(best.slack))

    def start(self, mass: Any, dustbins: Any) -> "_State":
        """Half the observed masses, half the same for every cell: away from every boundary."""
        flat = 1.0 / mass.shape[-1]
        q = 0.5 * (mass / ops.sum(mass, axis=-1, keepdims=True) + flat)
        outside = self.over_cells(q)
        price = 0.5 * (dustbins + 0.1) / outside
        return _State(q, outside, ops.maximum(self.total() - self.over_specialists(price), 0.5), price)

    def objective(self, state: "_State", mass: Any, dustbins: Any) -> Any:
        """What is maximised, with `q` scaled to sum to one; nats, `(batch, 1)`."""
        q = state.q / ops.sum(state.q, axis=-1, keepdims=True)
        observed = ops.sum(mass * ops.log(q), axis=-1, keepdims=True)
        hidden = self.is_active * dustbins * ops.log(self.over_cells(q))
        return observed + ops.sum(hidden, axis=-1, keepdims=True)

    def error(self, state: "_State", mass: Any, dustbins: Any) -> Any:
        """How far the optimality conditions are from holding, mass, `(batch, 1)`."""
        q, outside, slack, price = state
        slack_error = self.total() - self.over_specialists(price) - slack
        outside_error = self.over_cells(q) - outside
        of_cells = ops.abs(q * slack - mass) + q * ops.abs(slack_error)
        of_specialists = ops.abs(outside * price - dustbins) + price * ops.abs(outside_error)
        return ops.sum(of_cells, axis=-1, keepdims=True) + ops.sum(
            self.is_active * of_specialists, axis=-1, keepdims=True
        )

    def newton_step(self, state: "_State", mass: Any, dustbins: Any) -> "_State":
        """A predictor, a corrector for its second-order error, and a step that stays inside."""
        q, outside, slack, price = state
        slack_error = self.total() - self.over_specialists(price) - slack
        outside_error = self.over_cells(q) - outside
        weight = ops.expand_dims(q / slack, -2)
        pairs = ops.matmul(self.is_outside * weight, ops.swapaxes(self.is_outside, -1, -2))
        pairs = pairs * ops.expand_dims(self.is_active, -1) * ops.expand_dims(self.is_active, -2)
        own = ops.where(self.is_active > 0.5, outside / price, ops.ones_like(price))
        solve = _solver(pairs, own)

        def direction(mass_target: Any, dustbin_target: Any) -> "_State":
            missing = mass_target / slack - q - q / slack * slack_error
            right = dustbin_target / price - outside - outside_error - self.over_cells(missing)
            price_step = solve(right * self.is_active)
            slack_step = slack_error - self.over_specialists(price_step)
            q_step = (mass_target - q * slack - q * slack_step) / slack
            outside_step = (dustbin_target - outside * price - outside * price_step) / price
            return _State(q_step, outside_step, slack_step, price_step * self.is_active)

        def reach(step: "_State") -> tuple[Any, Any]:
            """How far q and Q, and s and μ, may go along `step`, each `(batch, 1)`, at most 1."""
            # An inactive specialist's Q moves with nobody's leave: it is not part of the problem.
            first = ops.concatenate([-step.q / q, -step.outside / outside * self.is_active], axis=-1)
            second = ops.concatenate([-step.slack / slack, -step.price / price], axis=-1)
            return tuple(  # type: ignore[return-value]
                ops.stop_gradient(_REACH / ops.maximum(ops.max(side, axis=-1, keepdims=True), _REACH))
                for side in (first, second)
            )

        step = direction(mass, dustbins)
        primal, dual = reach(step)
        second_order = ops.stop_gradient(primal * dual)
        step = direction(
            mass - second_order * ops.stop_gradient(step.q * step.slack),
            dustbins - second_order * ops.stop_gradient(step.outside * step.price),
        )
        primal, dual = reach(step)
        outside_next = ops.where(self.is_active > 0.5, outside + primal * step.outside, outside)
        return _State(q + primal * step.q, outside_next, slack + dual * step.slack, price + dual * step.price)


class _State(NamedTuple):
    """An interior point: all four positive.

    Attributes:
        q: `(batch, cells)`.
        outside: Q, `(batch, specialists)`.
        slack: s, `(batch, cells)`.
        price: μ, `(batch, specialists)`.
    """

    q: Any
    outside: Any
    slack: Any
    price: Any


def _solver(pairs: Any, own: Any) -> Any:
    """A function that solves `(pairs + diag(own)) x = right`, symmetric and positive, `(batch, n, n)`.

    Unrolled sweeps: neither `solve` nor `cholesky` can be exported.
    """
    size = own.shape[-1]
    identity = np.eye(size, dtype="float32")
    matrix = pairs + identity * ops.expand_dims(own, -1)
    scale = ops.rsqrt(ops.sum(matrix * identity, axis=-1))
    matrix = matrix * ops.expand_dims(scale, -1) * ops.expand_dims(scale, -2) + 1e-7 * identity
    inverse = matrix
    for pivot in range(size):
        # Rounding may leave a pivot below what the diagonal was given.
        value = ops.maximum(inverse[:, pivot : pivot + 1, pivot : pivot + 1], 1e-7)
        column = inverse[:, :, pivot : pivot + 1] - identity[:, pivot : pivot + 1]
        row = inverse[:, pivot : pivot + 1, :] + identity[pivot : pivot + 1, :]
        inverse = inverse - column * (row / value)

    def solve(right: Any) -> Any:
        scaled = ops.expand_dims(scale * right, -1)
        found = ops.matmul(inverse, scaled)
        # An explicit inverse loses digits where the system is nearly singular; one refinement brings them back.
        found = found + ops.matmul(inverse, scaled - ops.matmul(matrix, found))
        return scale * ops.squeeze(found, -1)

    return solve


def _log_observed(log_generalist: Any, log_specialists: Sequence[Any], is_active: Any, cells: Cells) -> Any:
    """The log of the mass that each class is given by name, `(batch, num_classes)`, nats."""
    parts = [
        ops.where(is_active[:, position : position + 1] > 0.5, log_probabilities[:, :-1], 100.0 * _LOWEST)
        for position, log_probabilities in enumerate(log_specialists)
    ]
    nothing = ops.full_like(is_active[:, :1], 100.0 * _LOWEST)
    side_by_side = ops.concatenate([*parts, nothing], axis=-1)
    given = [ops.take(side_by_side, cells.sources[:, place], axis=1) for place in range(cells.sources.shape[1])]
    return ops.logsumexp(ops.stack([log_generalist, *given], axis=-1), axis=-1)


def _log_sum_by_cell(log_mass: Any, cells: Cells) -> Any:
    """`(batch, num_classes)` → `(batch, cells)`, nats."""
    mass = ops.exp(ops.maximum(log_mass, _LOWEST) + _SHIFT)
    summed = ops.segment_sum(ops.transpose(mass), cells.cell_of_class, num_segments=cells.is_outside.shape[1])
    return ops.log(ops.transpose(summed)) - _SHIFT


def _check_outputs(generalist_logits: Any, specialist_logits: Sequence[Any], class_sets: list[list[int]]) -> None:
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
