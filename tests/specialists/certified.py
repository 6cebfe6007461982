"""The merge's optimum in float64, with a certificate of how far it can be from the true one; problems of every sort.

How the optimum is found does not matter, since the Frank–Wolfe gap bounds its distance: NumPy alone, one interior-point
step after the other, each towards masses of which the small ones are raised less and less.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp


class Case(NamedTuple):
    """What `merge` is given."""

    generalist: np.ndarray
    specialists: list
    class_sets: list
    routes: np.ndarray | None = None
    generalist_weight: float = 1.0

    def merged(self, merge, steps=10):
        """Log q `(batch, classes)` and the residual `(batch,)`, as float64."""
        found = merge(
            self.generalist,
            self.specialists,
            self.class_sets,
            steps,
            routes=self.routes,
            generalist_weight=self.generalist_weight,
            return_residual=True,
        )
        return tuple(np.asarray(part, "float64") for part in found)


class Problem(NamedTuple):
    """The masses of a batch, as logarithms: of classes, of dustbins (−∞ where nobody asks), and all of them."""

    log_mass: np.ndarray
    log_dustbins: np.ndarray
    outside: np.ndarray
    total: np.ndarray


def problem_of(case):
    """The problem that `case` poses, float64."""
    num_classes = case.generalist.shape[1]
    is_asked = np.ones((len(case.generalist), len(case.class_sets)), bool) if case.routes is None else case.routes != 0
    log_masses = [log_softmax(case.generalist.astype("float64"), axis=1) + np.log(case.generalist_weight)]
    outside, log_dustbins = np.ones((len(case.class_sets), num_classes)), []
    for place, (logits, class_set) in enumerate(zip(case.specialists, case.class_sets, strict=True)):
        log_probabilities = log_softmax(logits.astype("float64"), axis=1)
        log_probabilities[~is_asked[:, place]] = -np.inf
        named = np.full_like(log_masses[0], -np.inf)
        named[:, class_set] = log_probabilities[:, :-1]
        log_masses.append(named)
        log_dustbins.append(log_probabilities[:, -1])
        outside[place, class_set] = 0.0
    total = case.generalist_weight + is_asked.sum(axis=1)
    return Problem(logsumexp(log_masses, axis=0), np.stack(log_dustbins, axis=1), outside, total)


def objective_and_gap(log_q, problem):
    """What the merge maximises, and the most that any other q can have above it; nats, `(batch,)` each.

    The objective is concave, so it lies below its tangent: with g its gradient and W all mass, Σ qₖ·gₖ = W, and by
    Jensen's inequality no distribution is more than W·log(max g / W) above q.
    """
    log_q = log_q - logsumexp(log_q, axis=1, keepdims=True)
    log_outside = np.stack([logsumexp(np.where(row > 0, log_q, -np.inf), axis=1) for row in problem.outside], axis=1)
    dustbins = np.exp(problem.log_dustbins)
    hidden = np.where(dustbins > 0, dustbins * log_outside, 0.0).sum(axis=1)
    gradient = np.exp(problem.log_mass - log_q) + np.exp(problem.log_dustbins - log_outside) @ problem.outside
    gap = problem.total * np.log(np.maximum(gradient.max(axis=1) / problem.total, 1.0))
    return (np.exp(problem.log_mass) * log_q).sum(axis=1) + hidden, gap


def optimum(problem):
    """Log q `(batch, classes)` and its certificate, nats, `(batch,)`."""
    is_asked = np.isfinite(problem.log_dustbins)
    # Classes that nobody asked tells apart keep the ratios of their masses: they are levelled, and get their own part
    # of what they got afterwards.
    pattern = (is_asked * 2.0 ** np.arange(len(problem.outside))) @ problem.outside
    are_alike = pattern[:, :, None] == pattern[:, None, :]
    together = logsumexp(np.where(are_alike, problem.log_mass[:, None, :], -np.inf), axis=2)
    level = together - np.log(are_alike.sum(axis=2))
    found = _path(problem._replace(log_mass=level), is_asked) + (problem.log_mass - level)
    return found, objective_and_gap(found, problem)[1]


def _path(problem, is_asked, num_steps=60):
    log_mass, outside, total = problem.log_mass, problem.outside, problem.total[:, None]
    asked = is_asked.astype("float64")
    both_asked = asked[:, :, None] * asked[:, None, :]
    identity = np.eye(len(outside))
    q = np.full_like(log_mass, 1.0 / log_mass.shape[1])
    hidden = q @ outside.T
    price = asked * 0.5 * total / len(outside) * hidden
    slack = total - price @ outside
    best, best_gap = log_mass, np.full(len(q), np.inf)
    for step in range(num_steps):
        least = max(0.3**step, 1e-21)
        mass = np.maximum(np.exp(log_mass), least)
        dustbins = np.where(is_asked, np.maximum(np.exp(problem.log_dustbins), least), 0.0)
        safe_price = np.where(is_asked, price, 1.0)
        for _ in range(2):
            slack_error, hidden_error = total - price @ outside - slack, q @ outside.T - hidden
            matrix = np.einsum("mc,bc,nc->bmn", outside, q / slack, outside, optimize=True) * both_asked
            matrix += identity * np.where(is_asked, hidden / safe_price, 1.0)[:, :, None]
            rest = mass / slack - q - q / slack * slack_error
            right = asked * (dustbins / safe_price - hidden - hidden_error - rest @ outside.T)
            scale = 1.0 / np.sqrt(np.einsum("bmm->bm", matrix))
            scaled = matrix * scale[:, :, None] * scale[:, None, :] + 3e-15 * identity
            price_step = asked * scale * np.linalg.solve(scaled, (scale * right)[:, :, None])[:, :, 0]
            slack_step = slack_error - price_step @ outside
            q_step = (mass - q * slack - q * slack_step) / slack
            hidden_step = asked * (dustbins - hidden * price - hidden * price_step) / safe_price
            primal = _reach((q_step / q, hidden_step / hidden))
            dual = _reach((slack_step / slack, price_step / safe_price))
            q, hidden = q + primal * q_step, hidden + primal * hidden_step
            slack, price = slack + dual * slack_step, price + dual * price_step
            safe_price = np.where(is_asked, price, 1.0)
        if step > 15:
            # A q of next to no mass is known best by its slack, one of next to no slack by itself.
            for least_slack in (0.0, 1e-6, 1e-3, np.inf):
                log_q = np.where(slack > least_slack, log_mass - np.log(slack), np.log(q))
                _, gap = objective_and_gap(log_q, problem)
                best = np.where((gap < best_gap)[:, None], log_q, best)
                best_gap = np.minimum(gap, best_gap)
    return best - logsumexp(best, axis=1, keepdims=True)


def _reach(relative_steps):
    """How far a step may go and leave everything positive, `(batch, 1)`."""
    return np.minimum(1.0, 0.9 / np.maximum(-np.concatenate(relative_steps, axis=1).min(axis=1, keepdims=True), 1e-9))


def overlapping(generator, num_classes, num_specialists):
    """Sets of any size up to half of the classes."""
    sizes = generator.integers(1, max(2, num_classes // 2), num_specialists)
    return [generator.choice(num_classes, size, replace=False).tolist() for size in sizes]


def nested(generator, num_classes, num_specialists):
    """Sets that lie in each other, the smallest first."""
    order = generator.permutation(num_classes)
    return [order[: 2 * place + 1].tolist() for place in range(num_specialists)]


def disjoint(generator, num_classes, num_specialists):
    """Sets that share no class, and leave some to nobody."""
    parts = np.array_split(generator.permutation(num_classes), num_specialists + 1)
    return [part.tolist() for part in parts[:-1]]


def partition(generator, num_classes, num_specialists):
    """Sets that share out all classes: dustbins that are all certain contradict one another."""
    return [part.tolist() for part in np.array_split(generator.permutation(num_classes), num_specialists)]


def nearly_all(generator, num_classes, num_specialists):
    """Sets of all classes but one or two."""
    sizes = num_classes - generator.integers(1, 3, num_specialists)
    return [generator.choice(num_classes, size, replace=False).tolist() for size in sizes]


def flat(generator, batch, num_outputs, scale):
    """Normal logits."""
    return scale * generator.normal(size=(batch, num_outputs))


def wide(generator, batch, num_outputs, scale):
    """Uniform logits up to ±scale."""
    return generator.uniform(-scale, scale, (batch, num_outputs))


def certain(generator, batch, num_outputs, scale):
    """Uniform logits, and the last, a dustbin's, higher than all."""
    logits = wide(generator, batch, num_outputs, scale)
    logits[:, -1] = scale
    return logits


def mixed(generator, batch, num_outputs, scale):
    """Uniform logits; dustbins that are certain, that are certain of the contrary, and that are not."""
    logits = wide(generator, batch, num_outputs, scale)
    kind = generator.integers(0, 3, batch)
    logits[:, -1] = np.where(kind == 0, scale, np.where(kind == 1, -scale, logits[:, -1]))
    return logits


def contrary(generator, batch, num_outputs, scale):
    """Normal logits, one of them, any, higher by twice their spread: models that are sure of different things."""
    labels = generator.integers(0, num_outputs, batch)
    return scale * (generator.normal(size=(batch, num_outputs)) + 2.0 * np.eye(num_outputs)[labels])


def make_case(
    class_sets, of_specialist, scale, batch, *, num_classes=24, seed=0, part_asked=1.0, generalist_weight=1.0
):
    """A batch of problems; `part_asked` of the specialists count, drawn for each example."""
    generator = np.random.default_rng(seed)
    class_sets = class_sets(generator)
    of_generalist = contrary if of_specialist is contrary else flat if of_specialist is flat else wide
    generalist = of_generalist(generator, batch, num_classes, scale).astype("float32")
    specialists = [of_specialist(generator, batch, len(s) + 1, scale).astype("float32") for s in class_sets]
    routes = None
    if part_asked < 1.0:
        routes = (generator.uniform(size=(batch, len(class_sets))) < part_asked).astype("float32")
    return Case(generalist, specialists, class_sets, routes, generalist_weight)


def sharp_case(class_sets, scale, batch, *, num_classes=24, seed=0, generalist_weight=1.0):
    """Everybody knows the right class: it stands out by twice the spread of all others, as nets' outputs do."""
    generator = np.random.default_rng(seed)
    class_sets = class_sets(generator)
    labels = generator.integers(0, num_classes, batch)

    def logits(num_outputs, places):
        normal = generator.normal(size=(batch, num_outputs))
        return (scale * (normal + 2.0 * np.eye(num_outputs)[places])).astype("float32")

    places = [[s.index(label) if label in s else len(s) for label in labels] for s in class_sets]
    specialists = [logits(len(s) + 1, place) for s, place in zip(class_sets, places, strict=True)]
    return Case(logits(num_classes, labels), specialists, class_sets, None, generalist_weight)


def _sets(kind, num_classes, num_specialists):
    return lambda generator: kind(generator, num_classes, num_specialists)


# What `merge` is tried on: a name, and a function of the batch size and the seed.
SORTS = {
    "flat, overlapping": lambda n, s: make_case(_sets(overlapping, 24, 5), flat, 1.0, n, seed=s),
    "flat, nested": lambda n, s: make_case(_sets(nested, 24, 10), flat, 1.0, n, seed=s),
    "sharp, overlapping": lambda n, s: sharp_case(_sets(overlapping, 24, 5), 6.0, n, seed=s),
    "sharp, nested": lambda n, s: sharp_case(_sets(nested, 24, 10), 10.0, n, seed=s),
    "sure of different things": lambda n, s: make_case(_sets(overlapping, 24, 5), contrary, 10.0, n, seed=s),
    "±50, overlapping": lambda n, s: make_case(_sets(overlapping, 24, 10), wide, 50.0, n, seed=s),
    "±50, nested": lambda n, s: make_case(_sets(nested, 24, 10), wide, 50.0, n, seed=s),
    "±50, disjoint": lambda n, s: make_case(_sets(disjoint, 24, 5), wide, 50.0, n, seed=s),
    "±50, all classes but one or two": lambda n, s: make_case(_sets(nearly_all, 24, 5), wide, 50.0, n, seed=s),
    "±20, certain dustbins, overlapping": lambda n, s: make_case(_sets(overlapping, 24, 5), certain, 20.0, n, seed=s),
    "±50, certain dustbins, overlapping": lambda n, s: make_case(_sets(overlapping, 24, 10), certain, 50.0, n, seed=s),
    "±50, certain dustbins, three nested": lambda n, s: make_case(_sets(nested, 24, 3), certain, 50.0, n, seed=s),
    "±50, certain dustbins, ten nested": lambda n, s: make_case(_sets(nested, 24, 10), certain, 50.0, n, seed=s),
    "±50, certain dustbins, a partition": lambda n, s: make_case(_sets(partition, 24, 5), certain, 50.0, n, seed=s),
    "±50, some dustbins certain, nested": lambda n, s: make_case(_sets(nested, 24, 10), mixed, 50.0, n, seed=s),
    "±50, certain dustbins, some asked": lambda n, s: make_case(
        _sets(overlapping, 24, 6), certain, 50.0, n, seed=s, part_asked=0.4
    ),
    "±50, 25 specialists": lambda n, s: make_case(
        _sets(overlapping, 40, 25), mixed, 50.0, n, seed=s, num_classes=40, part_asked=0.7
    ),
    "sharp, a light generalist": lambda n, s: sharp_case(
        _sets(overlapping, 20, 3), 10.0, n, seed=s, num_classes=20, generalist_weight=0.1
    ),
    "±50, certain dustbins, nested, a light generalist": lambda n, s: make_case(
        _sets(nested, 24, 5), certain, 50.0, n, seed=s, generalist_weight=0.01
    ),
    "±50, certain dustbins, a heavy generalist": lambda n, s: make_case(
        _sets(overlapping, 24, 5), certain, 50.0, n, seed=s, generalist_weight=100.0
    ),
    "±1000, few classes": lambda n, s: make_case(_sets(overlapping, 8, 5), mixed, 1000.0, n, seed=s, num_classes=8),
    "one specialist, ±50, three classes": lambda n, s: make_case(
        _sets(overlapping, 3, 1), certain, 50.0, n, seed=s, num_classes=3
    ),
}
