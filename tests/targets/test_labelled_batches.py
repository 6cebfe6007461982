"""`attach` of a `PyDataset`: every batch meets the targets of its own items, on any backend; others are refused."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill import Distiller
from keras_distill.losses import SoftTargets
from keras_distill.targets import attach, label
from keras_distill.targets.manifest import ForeignDatasetError

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(43, 4)).astype("float32")
Y = np.arange(43) % 3
KERNEL = GENERATOR.normal(size=(4, 3)).astype("float32")


class Batches(keras.utils.PyDataset):
    def __init__(self, x=X, size=10, weights=None):
        super().__init__()
        self.x, self.size, self.weights = x, size, weights

    def __len__(self):
        return -(-len(self.x) // self.size)

    def __getitem__(self, index):
        rows = slice(index * self.size, (index + 1) * self.size)
        part = (self.x[rows], Y[rows])
        return part if self.weights is None else (*part, self.weights[rows])


class WithoutEnd(Batches):
    def __len__(self):
        return None

    @property
    def num_batches(self):
        return None


@pytest.fixture
def store(tmp_path):
    return label(
        lambda x: x @ KERNEL, Batches(), tmp_path / "s", dtype="float32", teacher_fingerprint="x", batch_size=8
    )


def test_each_batch_has_the_targets_of_its_items_in_any_order(store):
    joined = attach(Batches(weights=np.arange(43.0)), store)
    assert len(joined) == 5
    for index in (4, 0, 2):
        x, y, weights = joined[index]
        rows = slice(10 * index, 10 * index + 10)
        np.testing.assert_array_equal(x, X[rows])
        np.testing.assert_array_equal(y["labels"], Y[rows])
        np.testing.assert_array_equal(weights, np.arange(43.0)[rows])
        np.testing.assert_allclose(y["soft_targets"], X[rows].astype("float64") @ KERNEL, atol=1e-5)


def test_a_student_learns_from_them(store):
    keras.utils.set_random_seed(0)
    student = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    distiller = Distiller(None, student, SoftTargets(1.0), student_loss_weight=0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(0.1), loss)
    distiller.fit(attach(Batches(), store), epochs=60, verbose=0)
    learnt = keras.ops.convert_to_numpy(student(X))
    # A softmax does not see what is common to all logits.
    difference = (learnt - learnt.mean(-1, keepdims=True)) - (X @ KERNEL - (X @ KERNEL).mean(-1, keepdims=True))
    assert np.abs(difference).max() < 0.2


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (Batches(X[::-1]), ForeignDatasetError, r"item \d+ must be the one that was labelled"),
        (Batches(size=4), None, ""),
        (Batches(X[:30]), ForeignDatasetError, "of the dataset's items, 3 batches of 10; got a store of 43"),
        (WithoutEnd(), ValueError, "must have a length; got None"),
        (
            (batch for batch in [(X, Y)]),
            ValueError,
            "whose items have places; got a generator. Give arrays, the PyData",
        ),
    ],
)
def test_other_items_are_refused_and_other_batches_of_the_same_are_not(dataset, error, message, store):
    if error is None:
        _, y = attach(dataset, store)[10]
        np.testing.assert_allclose(y["soft_targets"], X[40:43] @ KERNEL, atol=1e-5)
        return
    with pytest.raises(error, match=message):
        attach(dataset, store)[0]


def test_batches_of_several_sizes_are_refused(store):
    class Uneven(Batches):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return (x[:-1], y[:-1]) if index == 2 else (x, y)

    joined = attach(Uneven(), store)
    assert len(joined[1][0]) == 10
    with pytest.raises(ValueError, match="batch 2 must hold 10 items; got 9"):
        joined[2]


def test_items_may_be_others_where_that_is_said(store):
    x, y = attach(Batches(X[:, ::-1]), store, check_items=False)[1]
    np.testing.assert_allclose(y["soft_targets"], X[10:20] @ KERNEL, atol=1e-5)
    np.testing.assert_array_equal(x, X[10:20, ::-1])
