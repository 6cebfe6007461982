"""Folds of a data set: which items are held back from a teacher together.

Not here: the teachers, and what they say of the items that were held back (`out_of_fold.py`).
"""

import numpy as np

from keras_distill._checks import check_count, error_message
from keras_distill._types import ArrayLike


def assign_folds(labels: ArrayLike, folds: int, *, groups: ArrayLike | None = None, seed: int = 0) -> np.ndarray:
    """The fold of each item, drawn by a seed; folds differ by one item at most, and so does their share of a class.

    Stratified, since a class that is rare could otherwise lie in one fold alone, and the teacher that answers for it
    would never have seen it: of a class of two items or more, every teacher sees some. Class ids, a column of them,
    names and one-hot rows are classes; other labels (regression, tokens) leave chance alone to deal.

    Groups are dealt whole, the largest first, each to the fold that has least of the group's classes. So folds are of
    equal size as far as the groups allow it.

    Args:
        labels: of the items, `(num_items, …)`.
        folds: how many, from 2 to `num_items`.
        groups: what an item belongs to that must not be split, `(num_items,)`: a speaker, a patient, a document.
        seed: of the dealing.

    Returns:
        Numbers from 0 to `folds - 1`, int64 `(num_items,)`; no fold is empty.

    Raises:
        ValueError: less than two folds, or more than there are items or groups; not one group for each item.

    Example:
        >>> fold_of = assign_folds([0, 0, 0, 0, 1, 1], 2)
        >>> np.bincount(fold_of).tolist(), np.bincount(fold_of[4:]).tolist()
        ([3, 3], [1, 1])
    """
    values = np.asarray(labels)
    num_items = len(values)
    remedy = "The teacher that answers for an item learns from the other folds; 5 is usual."
    if check_count("folds", folds, 2, remedy) > num_items:
        raise ValueError(error_message("folds must be at most as many as there are items", f"{folds} for {num_items}"))
    generator = np.random.default_rng(check_count("the seed of the folds", seed, 0))
    classes = _classes(values)
    if groups is not None:
        return _deal_groups(classes, _group_ids(groups, num_items, folds), folds, generator)
    # One class after the other, in an order of chance, dealt out like cards: neighbours lie in different folds.
    order = np.lexsort((generator.permutation(num_items), generator.permutation(classes.max() + 1)[classes]))
    fold_of = np.empty(num_items, np.int64)
    fold_of[order] = np.arange(num_items) % folds
    return fold_of


def _classes(values: np.ndarray) -> np.ndarray:
    """A number for each item's class, the same for all where the labels are no classes; int64 `(num_items,)`."""
    nothing = np.zeros(len(values), np.int64)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and values.dtype.kind in "biuf" and np.all((values != 0).sum(axis=1) == 1):
        values = values.argmax(axis=1)
    if values.ndim != 1 or values.dtype.kind not in "biuSUO":
        return nothing
    if values.dtype.kind == "O":
        values = values.astype(str)
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def _group_ids(groups: ArrayLike, num_items: int, folds: int) -> np.ndarray:
    values = np.asarray(groups)
    if values.shape != (num_items,):
        raise ValueError(error_message(f"groups must have shape ({num_items},), one for every item", values.shape))
    names, ids = np.unique(values.astype(str) if values.dtype.kind == "O" else values, return_inverse=True)
    if len(names) < folds:
        remedy = "A group is never split: take fewer folds."
        raise ValueError(error_message(f"there must be {folds} groups at least, one a fold", len(names), remedy))
    return ids.reshape(-1)


def _deal_groups(classes: np.ndarray, groups: np.ndarray, folds: int, generator: np.random.Generator) -> np.ndarray:
    sizes = np.bincount(groups)
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1])
    # What a fold has of each class, as a share of it; the last column, of all items.
    held = np.zeros((folds, classes.max() + 2))
    totals = np.append(np.bincount(classes), len(classes))
    fold_of = np.empty(len(classes), np.int64)
    for group in np.lexsort((generator.permutation(len(sizes)), -sizes)):
        found, counts = np.unique(np.append(classes[members[group]], totals.size - 1), return_counts=True)
        counts[-1] = sizes[group]
        # The sum over classes of squared shares grows least there; an empty fold comes before all others.
        cost = held[:, found[:-1]] @ counts[:-1]
        fold = int(np.lexsort((held[:, -1], cost, held[:, -1] > 0))[0])
        held[fold, found] += counts / totals[found]
        fold_of[members[group]] = fold
    return fold_of
