"""Folds against what a partition must be: by counting, for any labels and groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_distill.targets.folds import assign_folds

quickly = settings(max_examples=60, deadline=None, derandomize=True, database=None)
LABELS = hnp.arrays("int32", st.integers(2, 60), elements=st.integers(-1, 5))


@quickly
@given(labels=LABELS, data=st.data(), seed=st.integers(0, 9))
def test_folds_are_a_partition_that_deals_items_and_every_class_evenly(labels, data, seed):
    folds = data.draw(st.integers(2, len(labels)))
    fold_of = assign_folds(labels, folds, seed=seed)
    assert fold_of.shape == labels.shape
    sizes = np.bincount(fold_of, minlength=folds)
    assert len(sizes) == folds
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1
    for label in np.unique(labels):
        held = np.bincount(fold_of[labels == label], minlength=folds)
        assert held.max() - held.min() <= 1
        if held.sum() > 1:
            # Whoever answers for one of them has seen another.
            assert held.max() < held.sum()
    np.testing.assert_array_equal(fold_of, assign_folds(labels.reshape(-1, 1), folds, seed=seed))


@quickly
@given(labels=LABELS, data=st.data(), seed=st.integers(0, 9))
def test_groups_are_never_split_and_no_fold_is_empty(labels, data, seed):
    groups = data.draw(hnp.arrays("int64", labels.shape, elements=st.integers(0, 9)))
    num_groups = len(np.unique(groups))
    if num_groups < 2:
        return
    folds = data.draw(st.integers(2, num_groups))
    fold_of = assign_folds(labels, folds, groups=groups, seed=seed)
    assert set(fold_of) == set(range(folds))
    for group in np.unique(groups):
        assert len(set(fold_of[groups == group])) == 1


def test_equal_groups_are_dealt_so_that_every_fold_has_its_share_of_a_class():
    """20 speakers with 10 sentences each: 15 of them say class 0 alone and 5 class 1."""
    groups = np.repeat([f"speaker {number}" for number in range(20)], 10)
    labels = np.repeat((np.arange(20) % 4 == 3).astype(int), 10)
    for seed in range(5):
        fold_of = assign_folds(labels, 5, groups=groups, seed=seed)
        counts = np.stack([np.bincount(labels[fold_of == fold], minlength=2) for fold in range(5)])
        np.testing.assert_array_equal(counts, [[30, 10]] * 5)


def test_the_seed_deals_and_other_seeds_deal_otherwise():
    labels = np.arange(400) % 4
    draws = [assign_folds(labels, 5, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    # Of two independent draws a fifth is alike.
    assert 0.1 < np.mean(draws[0] == draws[2]) < 0.3


@pytest.mark.parametrize(
    "labels",
    [np.repeat(["cat", "dog"], 4), np.repeat(np.eye(2), 4, axis=0), np.repeat(["cat", "dog"], 4).astype(object)],
)
def test_names_and_rows_are_classes_too(labels):
    fold_of = assign_folds(labels, 4)
    np.testing.assert_array_equal([sorted(fold_of[:4]), sorted(fold_of[4:])], [[0, 1, 2, 3]] * 2)


def test_labels_that_are_no_classes_leave_the_dealing_to_chance():
    fold_of = assign_folds(np.random.default_rng(0).normal(size=(103, 3)), 5)
    assert sorted(np.bincount(fold_of)) == [20, 20, 21, 21, 21]


@pytest.mark.parametrize(
    ("folds", "groups", "message"),
    [
        (1, None, r"folds must be >= 2; got 1\. The teacher that answers"),
        (7, None, "folds must be at most as many as there are items; got 7 for 6"),
        (3, [0, 0, 0, 1, 1, 1], r"there must be 3 groups at least, one a fold; got 2\. A group is never split"),
        (2, [0, 1], r"groups must have shape \(6,\), one for every item; got \(2,\)"),
    ],
)
def test_what_cannot_be_dealt_is_said(folds, groups, message):
    with pytest.raises(ValueError, match=message):
        assign_folds(np.zeros(6, int), folds, groups=groups)
