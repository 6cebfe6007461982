"""Cells: classes that the same specialists cover, and what is observed of them.

Within a cell the merge keeps the ratios of the observed masses, so only cells are merged, however many classes there
are. Masses are logarithms, however small.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_distill._types import ClassSets, Tensor

# The logarithm of nothing. Finite, since infinities less infinities are NaN, and so are their gradients; twice it is
# still a float32.
NOTHING = -1e38


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


def cells_of(class_sets: ClassSets, num_classes: int) -> Cells:
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


def log_observed(log_generalist: Tensor, log_specialists: Sequence[Tensor], is_active: Tensor, cells: Cells) -> Tensor:
    """The log of the mass that each class is given by name, `(batch, num_classes)`, nats."""
    parts = [
        ops.where(is_active[:, position : position + 1] > 0.5, log_probabilities[:, :-1], NOTHING)
        for position, log_probabilities in enumerate(log_specialists)
    ]
    nothing = ops.full_like(is_active[:, :1], NOTHING)
    side_by_side = ops.concatenate([*parts, nothing], axis=-1)
    given = [ops.take(side_by_side, cells.sources[:, place], axis=1) for place in range(cells.sources.shape[1])]
    return ops.logsumexp(ops.stack([log_generalist, *given], axis=-1), axis=-1)


def parts_by_segment(log_values: Tensor, segments: Tensor, num_segments: Tensor | int) -> tuple[Tensor, Tensor]:
    """Each value's part of its segment's sum, `(rows, …)`, and these sums, `(segments, …)`, both as logarithms.

    The part is the difference of two logarithms before either is rounded.
    """
    top = ops.stop_gradient(ops.segment_max(log_values, segments, num_segments=num_segments))
    below_top = log_values - ops.take(top, segments, axis=0)
    # A segment's largest value gives 1; the bound is for segments without any.
    log_sum = ops.log(ops.maximum(ops.segment_sum(ops.exp(below_top), segments, num_segments=num_segments), 0.5))
    return below_top - ops.take(log_sum, segments, axis=0), top + log_sum
