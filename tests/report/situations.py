"""Situations in which distilling helps, or does not, and why: small nets in NumPy, on data whose truth is drawn.

Ten Gaussian clouds a class make classes that a line does not part. A fresh test set of ten times the size is the truth.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.special import log_softmax, softmax

NUM_CLASSES, SIZE = 5, 12


@dataclass
class Situation:
    """What a verdict is asked of, and what is true of it."""

    labels: np.ndarray
    candidate: np.ndarray
    baseline: np.ndarray
    fresh_labels: np.ndarray
    fresh_candidate: np.ndarray
    fresh_baseline: np.ndarray
    more: dict = field(default_factory=dict)


def world(generator):
    """A function that draws so many labelled examples of one world."""
    centres = generator.normal(size=(NUM_CLASSES, 10, SIZE)) * 1.3

    def draw(num_items):
        labels = generator.integers(0, NUM_CLASSES, num_items)
        clouds = generator.integers(0, 10, num_items)
        return centres[labels, clouds] + generator.normal(size=(num_items, SIZE)), labels

    return draw


class Net:
    """One hidden layer of rectifiers, trained by Adam on any targets."""

    def __init__(self, generator, width, size=SIZE):
        self.generator = generator
        self.weights = [
            generator.normal(size=(size, width)) * np.sqrt(2 / size),
            np.zeros(width),
            generator.normal(size=(width, NUM_CLASSES)) * np.sqrt(1 / width),
            np.zeros(NUM_CLASSES),
        ]

    def hidden(self, inputs):
        return np.maximum(inputs @ self.weights[0] + self.weights[1], 0)

    def __call__(self, inputs):
        return self.hidden(inputs) @ self.weights[2] + self.weights[3]

    def fit(self, inputs, targets, steps=600, temperature=1.0, rate=0.01, batch=128, held_out=None):
        """Cross-entropy of softened targets, times T, which is T² over the T of its own gradient; rates fall to zero.

        Returns the labels' loss on the held-out examples, at sixteen moments.
        """
        first, second = [np.zeros_like(part) for part in self.weights], [np.zeros_like(part) for part in self.weights]
        losses = []
        for step in range(steps):
            chosen = self.generator.integers(0, len(inputs), batch)
            x, wanted = inputs[chosen], targets[chosen]
            hidden = self.hidden(x)
            given = softmax((hidden @ self.weights[2] + self.weights[3]) / temperature, axis=-1)
            if held_out and step * 16 // steps > (step - 1) * 16 // steps:
                likely = log_softmax(self(held_out[0]), axis=-1)
                losses.append(-likely[np.arange(len(held_out[1])), held_out[1]].mean())
            error = temperature * (given - wanted) / batch
            back = (error @ self.weights[2].T) * (hidden > 0)
            gradients = [x.T @ back, back.sum(0), hidden.T @ error, error.sum(0)]
            for place, gradient in enumerate(gradients):
                first[place] = 0.9 * first[place] + 0.1 * gradient
                second[place] = 0.999 * second[place] + 0.001 * gradient**2
                size = rate * 0.5 * (1 + np.cos(np.pi * step / steps))
                size *= np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
                self.weights[place] = self.weights[place] - size * first[place] / (np.sqrt(second[place]) + 1e-8)
        return losses


def one_hot(labels):
    return np.eye(NUM_CLASSES)[labels]


@dataclass
class Setting:
    """What there is before a student is trained: examples, a teacher (`None`: there is none), and how long to train."""

    generator: np.random.Generator
    draw: Callable
    labelled: tuple
    pool: np.ndarray
    teacher: Callable | None
    test: tuple
    fresh: tuple
    width: int
    steps: int
    temperature: float = 2.0


def setting(name, seed, num_test=1000):
    """What one of the situations begins with, by its name, drawn from a seed."""
    generator = np.random.default_rng([seed, *map(ord, name)])
    draw = world(generator)
    test, fresh = draw(num_test), draw(10 * num_test)
    width, steps = 32, 600
    train, known = draw(2000), draw(4000)
    labelled, pool = train, train[0]

    def teacher_on(inputs, labels, width=128, steps=1500):
        net = Net(generator, width)
        net.fit(inputs, one_hot(labels), steps)
        return net

    teacher = None
    if name == "teacher at chance":
        good = teacher_on(*known)
        teacher = lambda inputs: np.roll(good(1e-3 * inputs + 3.0), 1, axis=-1)  # noqa: E731
    elif name == "leaking teacher":
        labelled = draw(300)
        pool = labelled[0]
        teacher = teacher_on(*labelled, width=256, steps=3000)
    elif name == "saturated student":
        width, teacher = 3, teacher_on(*known)
    elif name in ("few labels", "unlabelled pool"):
        labelled = tuple(part[: 60 if name == "few labels" else 150] for part in train)
        pool = draw(8000)[0] if name == "unlabelled pool" else train[0]
        teacher = teacher_on(*known)
    elif name == "noisy labels":
        flipped = np.where(generator.random(2000) < 0.5, generator.integers(0, NUM_CLASSES, 2000), train[1])
        labelled, teacher = (train[0], flipped), teacher_on(*known)
    elif name == "under-trained":
        steps, teacher = 25, teacher_on(*known)
    elif name == "tiny test set":
        # A gain that is real, of some four points, and that so few examples cannot show.
        labelled = tuple(part[:1000] for part in train)
        test, teacher = tuple(part[:40] for part in test), teacher_on(*known)
    elif name == "teacher is the student":
        teacher = teacher_on(*train, width=width, steps=600)
    return Setting(generator, draw, labelled, pool, teacher, test, fresh, width, steps)


def situation(name, seed, num_test=1000):
    """One of the situations by its name, drawn and trained from a seed."""
    given = setting(name, seed, num_test)
    generator, draw, labelled, pool, teacher = given.generator, given.draw, given.labelled, given.pool, given.teacher
    test, fresh, width, steps, temperature = given.test, given.fresh, given.width, given.steps, given.temperature
    more = {}
    baseline, candidate = Net(generator, width), Net(generator, width)
    candidate.weights = [part.copy() for part in baseline.weights]
    baseline.fit(labelled[0], one_hot(labelled[1]), steps)
    held_out = draw(1000)
    if teacher is None:
        losses = candidate.fit(labelled[0], one_hot(labelled[1]), steps, held_out=held_out)
    else:
        soft_targets = softmax(teacher(pool) / temperature, axis=-1)
        losses = candidate.fit(pool, soft_targets, steps, temperature, held_out=held_out)
        more = {"teacher_logits": teacher(test[0]), "temperature": temperature}
        seen_labels = labelled[1] if pool is labelled[0] else None
        if seen_labels is not None:
            more["seen"] = (seen_labels, candidate(pool), teacher(pool))
    more["was_too_short"] = bool(np.mean(losses[8:12]) < 0.95 * np.mean(losses[4:8]))
    return Situation(
        test[1], candidate(test[0]), baseline(test[0]), fresh[1], candidate(fresh[0]), baseline(fresh[0]), more
    )
