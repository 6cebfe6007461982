"""What an output answers, and what its labels say in the same code. NumPy alone.

An output's head says what its answer is:

- `"argmax"`: the class of the largest value, `(num_items, ..., num_classes)`;
- `"threshold"`: one unit or several labels, each yes or no, `(num_items, ..., num_labels)`;
- `"distance"`: the values themselves, as of a regression; they have no right and wrong, only near and far.
"""

import math

import numpy as np

from keras_distill._checks import error_message
from keras_distill._types import Tensor

ANSWERS = ("argmax", "threshold", "distance")
# A probability of e^-1000 is none.
SMALLEST_RULED_OUT = 1e3
ROWS_TO_FIND_A_GAP = 1000


def answer_of(head: str | None, expected: np.ndarray, labels: Tensor = None) -> str:
    """What an output answers, from the activation that ends it and from the labels' layout.

    Args:
        head: `"softmax"`, `"sigmoid"`, `"linear"`, another activation's name, or `None` where it is not known.
        expected: the output, `(num_items, ..., num_values)`.
        labels: as given; `None` without.

    Example:
        >>> answer_of("sigmoid", np.zeros((8, 1))), answer_of("softmax", np.zeros((8, 3)))
        ('threshold', 'argmax')
        >>> answer_of("linear", np.zeros((8, 1))), answer_of("linear", np.zeros((8, 1)), np.array([0, 1] * 4))
        ('distance', 'threshold')
    """
    width = 1 if expected.ndim == 1 else expected.shape[-1]
    if head == "softmax":
        return "argmax"
    layout = None if labels is None else _layout(np.asarray(labels), expected, width)
    if layout == "classes":
        return "argmax"
    if head == "sigmoid":
        return "threshold"
    if layout is not None:
        return {"one-hot": "argmax", "yes or no": "threshold"}.get(layout, "distance")
    return "argmax" if head in ("linear", None) and width > 1 else "distance"


def _layout(labels: np.ndarray, expected: np.ndarray, width: int) -> str:
    """How labels are written: `"classes"`, `"one-hot"` (or soft), `"yes or no"`, `"values"`."""
    values = labels.astype("float64")
    is_whole = bool(np.all(values == np.round(values)))
    if width > 1 and is_whole and labels.size * width == expected.size:
        return "classes"
    if width > 1 and labels.shape == expected.shape:
        is_unlabelled = np.all(values == -1, -1)
        is_share = np.all((values >= 0) & (values <= 1), -1) & (np.abs(values.sum(-1) - 1.0) <= 1e-3)
        if np.all(is_unlabelled | is_share):
            return "one-hot"
    return "yes or no" if is_whole and np.isin(values, (-1, 0, 1)).all() else "values"


def threshold_of(head: str | None, expected: np.ndarray, *, from_logits: bool = True) -> float:
    """Where yes begins: at 0 of a logit, also of one that was made of a probability; at 0.5 of what lies in [0, 1]."""
    if head == "sigmoid" or not from_logits:
        return 0.0
    return 0.5 if expected.size and np.min(expected) >= 0.0 and np.max(expected) <= 1.0 else 0.0


def as_rows(output: np.ndarray) -> np.ndarray:
    """An output as `(num_rows, num_values)`: each token and each pixel is a row, and so is a single value."""
    return output.reshape(-1, 1) if output.ndim == 1 else output.reshape(-1, output.shape[-1])


def coded(rows: np.ndarray, answer: str, threshold: float = 0.0) -> np.ndarray:
    """The answers of `(num_rows, num_values)` as classes, int `(num_answers,)`.

    Each label of several has two classes of its own, `2 * label` for no and `2 * label + 1` for yes.
    """
    if answer == "argmax":
        return np.argmax(rows, -1)
    return (2 * np.arange(rows.shape[-1]) + (rows > threshold)).reshape(-1)


def coded_labels(subject: str, labels: Tensor, expected: np.ndarray, answer: str) -> np.ndarray:
    """Labels in the same code as the answers, int `(num_answers,)`; −1 where there is none.

    Args:
        subject: what the labels are called in an error.
        labels: classes `(num_items, ...)`, with or without a last axis of 1, or one-hot; or, for `"threshold"`, 0 and 1
            for every label. −1 is no label.
        expected: the output that they belong to.
        answer: `"argmax"` or `"threshold"`.

    Raises:
        ValueError: their number or their values do not fit the output.
    """
    labels = np.asarray(labels)
    rows = as_rows(expected)
    if answer == "argmax" and labels.shape == expected.shape and labels.ndim > 1 and expected.shape[-1] > 1:
        one_hot = labels.reshape(rows.shape)
        return np.where(one_hot.max(-1) > 0, np.argmax(one_hot, -1), -1)
    wanted = len(rows) if answer == "argmax" else rows.size
    if labels.size != wanted:
        shape = expected.shape[:-1] if answer == "argmax" and expected.ndim > 1 else expected.shape
        raise ValueError(error_message(f"{subject} must have shape {shape}", labels.shape))
    flat = labels.reshape(-1)
    if answer == "threshold" and flat.dtype.kind == "f":
        # A target between no and yes, such as a grey pixel's, counts as the nearer one.
        flat = np.where((flat > 0) & (flat < 1), flat > 0.5, flat)
    if flat.dtype.kind == "f" and np.any(flat != np.round(flat)):
        raise ValueError(error_message(f"{subject} must be whole numbers", f"dtype {labels.dtype}"))
    flat = flat.astype(np.int64)
    num_classes = rows.shape[-1] if answer == "argmax" else 2
    outside = flat[(flat < -1) | (flat >= num_classes)]
    if outside.size:
        received = f"{outside[0]} ({outside.size} such)"
        raise ValueError(error_message(f"{subject} must be in [0, {num_classes})", received))
    if answer == "argmax":
        return flat
    return np.where(flat < 0, -1, 2 * np.tile(np.arange(rows.shape[-1]), len(rows)) + flat)


def without_ruled_out(rows: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two outputs of classes or labels, with 0 for what both rule out, such as the −1e9 of a masked class.

    Such logits say "never", at whatever size; beside them everything else would be next to nothing. They are told by a
    gap: nothing lies within a factor of a thousand between them and all others, none of them is positive, and no row
    has them alone.

    Args:
        rows: the reference, `(num_rows, num_values)`.
        found: the artifact's.

    Returns:
        Both as they were where nothing is ruled out.

    Example:
        >>> rows, found = np.array([[1.0, -1e9], [2.0, 3.0]]), np.array([[1.5, -9e8], [2.0, 3.5]])
        >>> [array.tolist() for array in without_ruled_out(rows, found)]
        [[[1.0, 0.0], [2.0, 3.0]], [[1.5, 0.0], [2.0, 3.5]]]
    """
    lowest = float(rows.min())
    if lowest > -SMALLEST_RULED_OUT:
        return rows, found
    sizes = np.unique(np.abs(rows[:: max(1, len(rows) // ROWS_TO_FIND_A_GAP)]))
    sizes = sizes[sizes > 0]
    gaps = np.flatnonzero(sizes[1:] >= 1e3 * sizes[:-1])
    if not gaps.size or sizes[gaps[-1] + 1] < SMALLEST_RULED_OUT:
        return rows, found
    limit = -math.sqrt(sizes[gaps[-1]]) * math.sqrt(sizes[gaps[-1] + 1])
    is_out = rows < limit
    if float(rows.max()) > -limit or is_out.all(-1).any():
        return rows, found
    both = is_out & (found < limit)
    return np.where(both, 0.0, rows), np.where(both, 0.0, found)


def margins(rows: np.ndarray, answers: np.ndarray, answer: str, threshold: float, chosen: np.ndarray) -> np.ndarray:
    """How far each output in `rows` is from giving the other answer `answers[chosen]`, `(num_chosen,)`.

    Args:
        rows: the reference, `(num_rows, num_values)`.
        answers: the artifact's, in code, `(num_answers,)`.
        answer: `"argmax"` or `"threshold"`.
        threshold: of `"threshold"`.
        chosen: int, which answers.
    """
    if answer == "argmax":
        return np.max(rows[chosen], -1) - rows[chosen, answers[chosen]]
    return np.abs(rows.reshape(-1)[chosen] - threshold)
