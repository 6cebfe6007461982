"""A SpecialistEnsemble beside a student and before a store."""

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from keras_distill import Distiller
from keras_distill.losses import SoftTargets
from keras_distill.specialists import SpecialistEnsemble
from keras_distill.targets import label


def net(units, seed):
    kernel = keras.initializers.RandomNormal(stddev=2.0, seed=seed)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, "softmax", kernel_initializer=kernel)])


@pytest.fixture(scope="module")
def ensemble():
    return SpecialistEnsemble(net(6, 0), [net(3, 1), net(4, 2)], [[0, 1], [1, 2, 3]], num_routes=2)


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(0).normal(size=(50, 4)).astype("float32")


def test_distiller_learns_from_the_merge_at_its_own_temperature(ensemble, inputs):
    student = net(6, 9)
    distiller = Distiller(ensemble, student, SoftTargets(3.0), student_loss_weight=0.0)
    # Three batches, one smaller: the numbers that ask a specialist differ from batch to batch.
    distiller.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy())
    found = distiller.fit(inputs, np.zeros(50, int), batch_size=20, verbose=0).history["distillation_loss"][0]
    teacher = log_softmax(np.asarray(ensemble(inputs), "float64") / 3.0, axis=1)
    own = log_softmax(np.log(np.asarray(student(inputs), "float64")) / 3.0, axis=1)
    assert found == pytest.approx(9.0 * (np.exp(teacher) * (teacher - own)).sum(1).mean(), rel=1e-4)
    assert ensemble.trainable


def test_student_comes_near_the_merge(ensemble, inputs):
    keras.utils.set_random_seed(0)
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(6)])
    distiller = Distiller(ensemble, student, SoftTargets(1.0), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    distiller.fit(inputs, batch_size=50, epochs=150, verbose=0)
    np.testing.assert_allclose(softmax(student(inputs), axis=1), softmax(ensemble(inputs), axis=1), atol=0.1)


def test_store_holds_the_merged_logits(ensemble, inputs, tmp_path):
    store = label(ensemble, inputs, tmp_path / "store", dtype="float32", batch_size=16)
    np.testing.assert_allclose(store.read(np.arange(50)), ensemble(inputs), atol=1e-5)
