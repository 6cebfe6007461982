"""The optimum of a merge on the level of cells: Newton's method inside the simplex, EM, and how far a q is from it.

Everything is float32, of operations that ONNX and LiteRT both have. Masses are kept as logarithms; only the solver
works with the masses themselves, and what it finds is carried back to logarithms before the last step, which is EM's.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_distill._types import Tensor
from keras_distill.specialists.cells import NOTHING

# The least mass that the solver tells from zero.
_FLOOR = 1e-20
# A specialist whose dustbin has less than this has named all of its mass, and has no say in the rest.
_LEAST_DUSTBIN = 1e-12
# How hard a Newton step is held back; see `newton_step`. Anything from 2e-6 to 2e-5 does: with less rounding decides
# where dustbins contradict one another, with more ten steps are not always enough.
_PROXIMAL = 5e-6
# How far towards the boundary a step may go: 0.9 loses two steps, 0.98 gets stuck in float32.
_REACH = 0.95
# Below this slack a cell's q is known best by itself, above it by its mass and its slack.
_SMALL_SLACK = 0.1
# Cells are told apart by the active specialists as the bits of a number: 2 ** 10 for each example at most.
_MOST_BITS = 10
# What rounding may hide from the residual, as a part of the whole mass: 17 units in float32's last place. Of 80,000
# problems, after 1 to 40 steps, none was off by a third of it.
_ROUNDING = 2e-6
# A dustbin of less than this share counts for nothing in the residual's prices, whatever it asks.
_NEGLIGIBLE = 1e-8


class Problem(NamedTuple):
    """The merge on the level of cells.

    Attributes:
        is_outside: `(1 or batch, specialists, cells)`.
        is_active: `(batch, specialists)`.
        log_mass: `(batch, cells)`, what is observed, nats.
        log_dustbins: `(batch, specialists)`, nats; `NOTHING` where a specialist is not active.
        generalist_weight: the generalist's mass; an active specialist's is 1.
    """

    is_outside: Tensor
    is_active: Tensor
    log_mass: Tensor
    log_dustbins: Tensor
    generalist_weight: float

    def over_cells(self, values: Tensor) -> Tensor:
        """`(batch, cells)` → its sum outside of each specialist's set, `(batch, specialists)`."""
        return ops.squeeze(ops.matmul(self.is_outside, ops.expand_dims(values, -1)), -1)

    def over_specialists(self, values: Tensor) -> Tensor:
        """`(batch, specialists)` → its sum over the active ones that leave a cell out, `(batch, cells)`."""
        active = ops.expand_dims(values * self.is_active, -2)
        return ops.squeeze(ops.matmul(active, self.is_outside), -2)

    def total(self) -> Tensor:
        """The mass of all that is observed, w + M, `(batch, 1)`."""
        return self.generalist_weight + ops.sum(self.is_active, axis=-1, keepdims=True)

    def split_outside(self, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Each cell's part of what lies outside of a set, `log(q_c / Q_m)`, and `log Q_m` itself.

        The part is the difference of two logarithms before either is rounded: where all of Q is e^-5000 it is still
        exact to float32's last places.
        """
        outside = ops.where(self.is_outside > 0.5, ops.expand_dims(log_q, -2), NOTHING)
        top = ops.stop_gradient(ops.max(outside, axis=-1, keepdims=True))
        outside = outside - top
        log_sum = ops.log(ops.sum(ops.exp(outside), axis=-1, keepdims=True))
        return outside - log_sum, ops.squeeze(top + log_sum, -1)

    def em_step(self, log_q: Tensor) -> Tensor:
        """One step of EM, `(b_c + Σ_m d_m · q_c / Q_m) / (w + M)`, of logarithms; sums to one whatever q does."""
        log_part, _ = self.split_outside(log_q)
        log_shares = ops.expand_dims(self.log_dustbins, -1) + log_part
        top = ops.stop_gradient(ops.max(log_shares, axis=-2, keepdims=True))
        log_shares = top + ops.log(ops.sum(ops.exp(log_shares - top), axis=-2, keepdims=True))
        return ops.logaddexp(self.log_mass, ops.squeeze(log_shares, -2)) - ops.log(self.total())

    def residual(self, log_q: Tensor) -> Tensor:
        """An upper bound of the distance to the optimum, of a q that sums to one, nats, `(batch,)`.

        By weak duality: for any prices μ whose slacks `s = w + M − Σμ` are positive, no distribution whatever exceeds
        this q's objective by more than

            Σ_c b_c · log(b_c / (s_c · q_c))  +  Σ_m d_m · log(d_m / (μ_m · Q_m))

        which is 0 at the optimum with its prices `d_m / Q_m`.
        """
        total = self.total()
        _, log_outside = self.split_outside(log_q)
        # A dustbin without mass may ask an enormous price, and take all slack from a cell: bounded below, its Q makes
        # that price next to nothing, and costs the bound no more than its own mass does.
        log_bounded = ops.logaddexp(log_outside, math.log(_NEGLIGIBLE))
        dustbins = self.is_active * ops.exp(self.log_dustbins)
        prices = self.over_specialists(ops.exp(self.log_dustbins - log_bounded))
        log_slack = self.log_mass - log_q
        mass = ops.exp(self.log_mass)
        bounded = ops.sum(dustbins * (log_bounded - log_outside), axis=-1, keepdims=True)
        dustbins = ops.sum(dustbins, axis=-1, keepdims=True)

        def gap(scale: Tensor) -> Tensor:
            """The bound with all prices times `scale`."""
            slack = ops.maximum(total - scale * prices, 1e-30)
            return ops.sum(mass * (log_slack - ops.log(slack)), axis=-1, keepdims=True) - dustbins * ops.log(scale)

        # Two scales leave every slack positive. The largest that does is tight near the optimum. That of the
        # Frank–Wolfe gap `g = max_c(b_c / q_c + Σμ) − (w + M)` keeps the bound below g, however far the optimum is.
        allowed = ops.minimum(1.0, (1.0 - _ROUNDING) * total / ops.max(prices, axis=-1, keepdims=True))
        frank_wolfe = total / ops.max(ops.exp(log_slack) + prices, axis=-1, keepdims=True)
        found = bounded + ops.minimum(gap(allowed), gap(frank_wolfe))
        return ops.squeeze(ops.maximum(found, 0.0) + _ROUNDING * total, -1)

    def solve(self, steps: int) -> Tensor:
        """`log q`, `(batch, cells)`, up to a constant, after so many Newton steps, at least one."""
        has_say = ops.cast(self.log_dustbins > math.log(_LEAST_DUSTBIN), "float32")
        heard = self._replace(is_active=self.is_active * has_say)
        log_mass, size = self.log_mass, 1.0
        if self.is_active.shape[-1] <= _MOST_BITS:
            log_mass, size = heard.levelled()
        mass = ops.maximum(ops.exp(log_mass), _FLOOR)
        dustbins = heard.is_active * ops.exp(self.log_dustbins)
        state = heard.start(mass, dustbins)
        for _ in range(steps):
            state = heard.newton_step(_State(*(ops.stop_gradient(part) for part in state)), mass, dustbins, size)
        # A small slack is a difference of large prices, and a small q may be nothing but the floor.
        log_q = ops.where(state.slack < _SMALL_SLACK, ops.log(state.q), log_mass - ops.log(state.slack))
        return log_q + (self.log_mass - log_mass)

    def levelled(self) -> tuple[Tensor, Tensor]:
        """Masses that are equal wherever no active specialist tells cells apart, and how many such cells there are.

        Such cells share their slack, so q keeps the ratios of their masses, as classes within a cell do. The solver
        would have to find these ratios in directions in which the objective is flat, and float32 does not see them
        below 1e-5; so each of them gets the mean mass, and after the solver its own part of what they got.
        """
        num_active, num_cells = self.is_active.shape[-1], self.log_mass.shape[-1]
        pattern = self.over_specialists(ops.convert_to_tensor(2.0 ** np.arange(num_active), "float32"))
        # Whichever is fewer: the patterns that there may be, or those of the cells, where equal ones are equal groups.
        # Not `segment_sum`: LiteRT learns the size of what it gives only while it runs, moves its memory in the first
        # call, and with XNNPACK some files then answer every later call wrongly, as chance places that memory.
        groups = pattern if num_cells <= 2**num_active else np.arange(2**num_active, dtype="float32")[None]
        is_member = ops.equal(ops.expand_dims(pattern, -1), ops.expand_dims(groups, -2))

        def of_cells(of_groups: Tensor) -> Tensor:
            return ops.max(ops.where(is_member, ops.expand_dims(of_groups, -2), NOTHING), axis=-1)

        log_mass = ops.expand_dims(self.log_mass, -1)
        top = ops.stop_gradient(ops.max(ops.where(is_member, log_mass, NOTHING), axis=-2))
        below_top = self.log_mass - of_cells(top)
        sums = ops.sum(ops.where(is_member, ops.expand_dims(ops.exp(below_top), -1), 0.0), axis=-2)
        # A group's largest value gives 1; the bound is for groups without any.
        log_part = below_top - of_cells(ops.log(ops.maximum(sums, 0.5)))
        size = of_cells(ops.sum(ops.cast(is_member, "float32"), axis=-2))
        return self.log_mass - log_part - ops.log(size), size

    def start(self, mass: Tensor, dustbins: Tensor) -> "_State":
        """Half the observed masses, half the same for every cell: away from every boundary."""
        flat = 1.0 / mass.shape[-1]
        q = 0.5 * (mass / ops.sum(mass, axis=-1, keepdims=True) + flat)
        outside = self.over_cells(q)
        price = 0.5 * (dustbins + 0.1) / outside
        return _State(q, outside, ops.maximum(self.total() - self.over_specialists(price), 0.5), price)

    def newton_step(self, state: "_State", mass: Tensor, dustbins: Tensor, size: Tensor | float) -> "_State":
        """A predictor, a corrector for its second-order error, and a step that stays inside."""
        q, outside, slack, price = state
        total = ops.sum(mass, axis=-1, keepdims=True) + ops.sum(dustbins, axis=-1, keepdims=True)
        slack_error = total - self.over_specialists(price) - slack
        outside_error = self.over_cells(q) - outside
        # The Newton equations, for the steps of q, Q, s and μ, are
        #     s·δq + q·δs = target − q·s        δs + Σ_m δμ = slack error
        #     μ·δQ + Q·δμ = target − Q·μ        δQ − Σ_c δq = outside error
        # and eliminating all but δμ leaves `Σ_c q_c/s_c` over the cells that two specialists both leave out, plus Q/μ
        # on the diagonal. Where dustbins force mass on a cell that nobody names, q is near 1 and s near 0: q/s = 1e12
        # then fills a whole block of the matrix with one number, and nothing of Q/μ ≈ 1 is left in float32's seven
        # digits. So each step also keeps q near where it was: a multiple of δq joins the equation of δs, such that no
        # cell weighs more than 1/ρ of Q/μ of any specialist that leaves it out. At the optimum δq = 0, so that this
        # does not move the optimum, as larger floors or a ridge would. Levelled cells weigh as the one that they are.
        own = ops.where(self.is_active > 0.5, outside / price, ops.ones_like(price))
        held = slack + _PROXIMAL * size * q * self.over_specialists(1.0 / own)
        weight = q / held
        pairs = ops.matmul(self.is_outside * ops.expand_dims(weight, -2), ops.swapaxes(self.is_outside, -1, -2))
        pairs = pairs * ops.expand_dims(self.is_active, -1) * ops.expand_dims(self.is_active, -2)
        # What is not active has no equation: ones on the diagonal, and its right side is 0.
        solve = _solver(pairs, own)

        def direction(mass_target: Tensor, dustbin_target: Tensor) -> "_State":
            mass_missing = mass_target - q * slack
            dustbin_missing = dustbin_target - outside * price
            cells_right = mass_missing - q * slack_error
            specialists_right = dustbin_missing / price - outside_error

            def eliminated(cells_right: Tensor, specialists_right: Tensor) -> tuple[Tensor, Tensor]:
                rest = cells_right / held
                price_step = solve((specialists_right - self.over_cells(rest)) * self.is_active) * self.is_active
                return rest + weight * self.over_specialists(price_step), price_step

            q_step, price_step = eliminated(cells_right, specialists_right)
            # A weight of 1e5 times a difference of prices near 1 is known to 1e-2. What the equations, put together
            # again, are still missing is small, and is solved for to as many digits.
            q_more, price_more = eliminated(
                cells_right - held * q_step + q * self.over_specialists(price_step),
                specialists_right - self.over_cells(q_step) - own * price_step,
            )
            q_step, price_step = q_step + q_more, price_step + price_more
            # Not from the equation of δs: there a slack of 1e-12 is the difference of prices near 1.
            slack_step = (mass_missing - slack * q_step) / q
            outside_step = (dustbin_missing - outside * price_step) / price
            return _State(q_step, outside_step, slack_step, price_step)

        def reach(step: "_State") -> tuple[Tensor, Tensor]:
            """How far q and Q, and s and μ, may go along `step`, each `(batch, 1)`, at most 1."""
            # An inactive specialist's Q moves with nobody's leave: it is not part of the problem.
            first = ops.concatenate([-step.q / q, -step.outside / outside * self.is_active], axis=-1)
            second = ops.concatenate([-step.slack / slack, -step.price / price], axis=-1)
            primal, dual = (
                ops.stop_gradient(_REACH / ops.maximum(ops.max(side, axis=-1, keepdims=True), _REACH))
                for side in (first, second)
            )
            return primal, dual

        # The predictor aims at the masses themselves and leaves an error δq·δs, which the corrector aims off by: as
        # much of it as both steps, cut short at the boundary, would leave.
        step = direction(mass, dustbins)
        primal, dual = reach(step)
        second_order = ops.stop_gradient(primal * dual)
        step = direction(
            mass - second_order * ops.stop_gradient(step.q * step.slack),
            dustbins - second_order * ops.stop_gradient(step.outside * step.price),
        )
        primal, dual = reach(step)
        # At the optimum neither slack nor price exceeds w + M, and neither q nor Q exceeds 1. Within half of those
        # no cell of some mass can end up at q = s = 0, from where Newton's directions do not lead away.
        least_q, least_outside = 0.5 * mass / total, 0.5 * dustbins / total
        return _State(
            ops.maximum(q + primal * step.q, least_q),
            ops.where(self.is_active > 0.5, ops.maximum(outside + primal * step.outside, least_outside), outside),
            ops.maximum(slack + dual * step.slack, 0.5 * mass),
            ops.maximum(price + dual * step.price, 0.5 * dustbins),
        )


class _State(NamedTuple):
    """An interior point: all four positive.

    Attributes:
        q: `(batch, cells)`.
        outside: Q, `(batch, specialists)`.
        slack: s, `(batch, cells)`.
        price: μ, `(batch, specialists)`.
    """

    q: Tensor
    outside: Tensor
    slack: Tensor
    price: Tensor


def _solver(pairs: Tensor, own: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that solves `(pairs + diag(own)) x = right`, symmetric and positive, `(batch, n, n)`.

    Unrolled sweeps: neither `solve` nor `cholesky` can be exported.
    """
    size = own.shape[-1]
    identity = np.eye(size, dtype="float32")
    matrix = pairs + identity * ops.expand_dims(own, -1)
    # Q/μ spans twenty powers of ten, from certain dustbins to empty ones. With ones on the diagonal every other entry
    # is at most 1, so that what is lost to rounding is lost to all rows alike.
    scale = ops.rsqrt(ops.sum(matrix * identity, axis=-1))
    matrix = matrix * ops.expand_dims(scale, -1) * ops.expand_dims(scale, -2) + 1e-7 * identity
    # Gauss–Jordan in place. A sweep at pivot k subtracts `(a_k − e_k)(a_k + e_k)ᵀ / a_kk`, one product of a column and
    # a row: row and column k become those of the inverse so far, the rest becomes the Schur complement, and after the
    # last sweep the matrix is its inverse. Pivots come in order: a positive matrix's Schur complements are positive.
    inverse = matrix
    for pivot in range(size):
        # Rounding may leave a pivot below what the diagonal was given.
        value = ops.maximum(inverse[:, pivot : pivot + 1, pivot : pivot + 1], 1e-7)
        column = inverse[:, :, pivot : pivot + 1] - identity[:, pivot : pivot + 1]
        row = inverse[:, pivot : pivot + 1, :] + identity[pivot : pivot + 1, :]
        inverse = inverse - column * (row / value)

    def solve(right: Tensor) -> Tensor:
        scaled = ops.expand_dims(scale * right, -1)
        found = ops.matmul(inverse, scaled)
        # An explicit inverse loses digits where the system is nearly singular; one refinement brings them back.
        found = found + ops.matmul(inverse, scaled - ops.matmul(matrix, found))
        return scale * ops.squeeze(found, -1)

    return solve
