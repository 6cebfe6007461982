"""Whether a teacher knows the data that it is to teach, asked before anything is trained, labelled or shipped.

A teacher that is fed pixels of another scale, or whose classes are in another order, answers at chance and raises no
error; a student would learn that. What is compared are answers and labels alone: how a model is run is the caller's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from keras_distill._checks import error_message
from keras_distill._types import Inputs

if TYPE_CHECKING:
    from keras_distill.data import Dataset
    from keras_distill.targets import SoftTargetStore

# How seldom guessing does as well by luck as a teacher that passes.
_SIGNIFICANCE = 0.01
# How many examples the other scales are tried on.
_NUM_TRIED = 512


@dataclass(frozen=True)
class Ways:
    """What an error tells its reader to do: from Python by arguments, on the command line by options.

    Attributes:
        insist: how a teacher near chance is taken all the same.
        rescale: from a range of pixels to how the data is brought into it.
        label_again: how a store is made anew.
    """

    insist: str
    rescale: Callable[[str], str]
    label_again: str


IN_PYTHON = Ways(
    "With any_teacher=True it is taken as it is.",
    lambda pixel_range: f"take keras_distill.data.pixel_range.in_pixel_range(dataset, {pixel_range!r})",
    "Label again with a teacher that knows them, at the scale that it was trained on.",
)


@dataclass(frozen=True)
class Knowledge:
    """How many labels some answers hit, and how many they would hit by luck.

    Attributes:
        num_right: answers that are the label.
        num_items: answers in all.
        chance: the share that would be right were the same answers dealt out at random, `Σ_c p(answer c) · p(label c)`.
            An answer that is always the most frequent class is right by luck alone.
        p_value: how often luck does as well: the upper tail of a binomial distribution.
    """

    num_right: int
    num_items: int
    chance: float
    p_value: float

    @property
    def is_near_chance(self) -> bool:
        """Whether luck may well have done it, at one per cent."""
        return self.p_value > _SIGNIFICANCE

    def __str__(self) -> str:
        return f"{self.num_right:,} of {self.num_items:,} right, where chance gives {self.chance * self.num_items:,.0f}"


def knowledge(answers: np.ndarray, labels: np.ndarray) -> Knowledge:
    """Compares answers with labels.

    Args:
        answers: class ids, `(num_items,)`.
        labels: class ids, `(num_items,)`.

    Example:
        >>> labels = np.arange(90) % 3
        >>> knowledge(np.zeros(90, int), labels).is_near_chance, knowledge(labels, labels).is_near_chance
        (True, False)
    """
    from keras_distill.report.verdict import chance_of

    chance, p_value = chance_of(answers, labels)
    return Knowledge(int(np.count_nonzero(answers == labels)), len(labels), chance, p_value)


def class_order(answers: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """Which class each answer stands for, where the answers know the data in another order of the classes.

    The order is found on half of the items and judged on the others, so that luck finds none.

    Returns:
        The class id that stands behind each answer, `(num_classes,)`, or `None` where no order explains the labels.

    Example:
        >>> labels = np.arange(90) % 3
        >>> class_order((labels + 1) % 3, labels).tolist()
        [2, 0, 1]
    """
    from scipy.optimize import linear_sum_assignment

    num_classes = int(max(answers.max(), labels.max())) + 1
    table = np.zeros((num_classes, num_classes), int)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    found_on, judged_on = shuffled[::2], shuffled[1::2]
    np.add.at(table, (answers[found_on], labels[found_on]), 1)
    _, order = linear_sum_assignment(table, maximize=True)
    found = knowledge(order[answers[judged_on]], labels[judged_on])
    is_known = not found.is_near_chance and 2 * found.num_right > found.num_items
    return order if is_known and not np.array_equal(order, np.arange(num_classes)) else None


def check_teacher(
    answers_to: Callable[[Inputs], np.ndarray],
    who: str,
    dataset: "Dataset",
    *,
    insist: bool = False,
    ways: Ways = IN_PYTHON,
) -> Knowledge:
    """Asks a teacher for its answers to the validation data; near chance, finds out what it was trained on.

    Args:
        answers_to: a function from inputs to class ids, `(num_items,)`.
        who: the teacher as an error names it: "the teacher big.keras".
        dataset: whose validation split is asked; its inputs as the student will see them.
        insist: whether a teacher near chance is taken all the same.
        ways: what the error tells its reader to do.

    Returns:
        What it knows.

    Raises:
        ValueError: it is near chance, on data that could tell a good teacher from luck. The error names the range of
            pixels in which it is not, or the order of its classes, where there is one.
    """
    validation = dataset.validation
    answers = answers_to(validation.inputs)
    found = knowledge(answers, validation.labels)
    if found.is_near_chance and not insist and _can_tell(validation.labels):
        remedy = _remedy(answers, answers_to, dataset, ways)
        raise ValueError(_near_chance(who, f"the validation data of {dataset.name}", found, remedy))
    return found


def check_store(
    store: "SoftTargetStore", who: str, dataset: "Dataset", *, insist: bool = False, ways: Ways = IN_PYTHON
) -> Knowledge:
    """The same of a store, which holds a teacher's answers to the training data.

    Raises:
        ValueError: they are near chance.
    """
    answers, labels = stored_answers(store), dataset.train.labels
    found = knowledge(answers, labels)
    if found.is_near_chance and not insist and _can_tell(labels):
        order = class_order(answers, labels)
        remedy = f"{ways.label_again} {ways.insist}" if order is None else _reorder(order, dataset, ways)
        raise ValueError(_near_chance(who, f"the training data of {dataset.name}", found, remedy))
    return found


def stored_answers(store: "SoftTargetStore") -> np.ndarray:
    """The most probable class of each item in a store's first view, int, `(num_items,)`."""
    answers = []
    for start in range(0, len(store), 65536):
        ids = np.arange(start, min(start + 65536, len(store)))
        targets = store.soft_targets(ids, store.manifest.only_temperature or 1.0)
        # A top-k or sampled row has its largest logit first.
        answers.append(targets["ids"][..., 0] if isinstance(targets, dict) else targets.argmax(axis=-1))
    return np.concatenate(answers)


def _near_chance(who: str, what: str, found: Knowledge, remedy: str) -> str:
    return error_message(f"{who} must know {what}", f"{found} (p = {found.p_value:.2g})", remedy)


def _can_tell(labels: np.ndarray) -> bool:
    """Whether there are labels enough to tell a perfect teacher from luck."""
    return not knowledge(labels, labels).is_near_chance


def _remedy(answers: np.ndarray, answers_to: Callable[[Inputs], np.ndarray], dataset: "Dataset", ways: Ways) -> str:
    from keras_distill.data.pixel_range import in_pixel_range, other_pixel_ranges

    labels = dataset.validation.labels
    order = class_order(answers, labels)
    if order is not None:
        return _reorder(order, dataset, ways)
    chosen = np.sort(np.random.default_rng(0).permutation(len(labels))[:_NUM_TRIED])
    tried = {}
    for pixel_range in other_pixel_ranges(dataset):
        scaled = in_pixel_range(dataset, pixel_range).validation.take(chosen)
        tried[pixel_range] = knowledge(answers_to(scaled.inputs), scaled.labels)
    best = max(tried, key=lambda name: tried[name].num_right, default=None)
    if best is not None and not tried[best].is_near_chance:
        known = tried[best]
        right = f"{known.num_right:,} of {known.num_items:,}"
        return f"With pixels in the range {best} it has {right}: {ways.rescale(best)}."
    nothing = f"None of the ranges {', '.join(tried)} helps. " if tried else ""
    return f"{nothing}Give it the data that it was trained on, or train it first. {ways.insist}"


def _reorder(order: np.ndarray, dataset: "Dataset", ways: Ways) -> str:
    moved = [answer for answer in range(len(order)) if order[answer] != answer][:3]
    names = dataset.class_names
    shown = ", ".join(
        f"its output {answer} is {names[order[answer]]!r}" for answer in moved if order[answer] < len(names)
    )
    return (
        f"It knows them in another order of the classes: {shown}. Bring labels and outputs into one order. "
        f"{ways.insist}"
    )
