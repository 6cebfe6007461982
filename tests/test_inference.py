"""A model run over a whole data set: any number of items, heads and batch sizes, against one call of the model."""

import logging

import keras
import numpy as np
import pytest

from keras_distill.models.compilation import compiled
from keras_distill.models.inference import BATCH_SIZE, all_logits

X = np.random.default_rng(0).normal(size=(2 * BATCH_SIZE + 7, 3)).astype("float32")


def dense(x, model):
    kernel, bias = model.layers[-1].get_weights()
    return x.astype("float64") @ kernel + bias


@pytest.mark.parametrize("head", ["linear", "softmax"])
@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("num_items", [1, 5, BATCH_SIZE, len(X)])
def test_logits_are_those_of_the_last_layer(head, batch_size, num_items):
    model = keras.Sequential([keras.Input((3,), batch_size=batch_size), keras.layers.Dense(4, head)])
    found = all_logits(model, X[:num_items])
    assert found.shape == (num_items, 4)
    np.testing.assert_allclose(found, dense(X[:num_items], model), rtol=1e-4, atol=1e-5)


@pytest.mark.tensorflow
def test_tensorflow_does_not_take_ten_models_for_one_that_is_traced_ten_times():
    warnings = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("tensorflow").addHandler(handler)
    try:
        for _ in range(10):
            layer = keras.layers.Dense(4)
            compiled(lambda x, layer=layer: layer(x))(X[:5])
    finally:
        logging.getLogger("tensorflow").removeHandler(handler)
    assert warnings == []


def test_a_teacher_of_another_kind_sees_numpys_arrays():
    kinds = []

    def teacher(x):
        kinds.append(type(x))
        return 2.0 * x

    np.testing.assert_array_equal(all_logits(teacher, X), 2.0 * X)
    assert kinds == [np.ndarray] * 3


def test_named_inputs_are_cut_alike():
    first, second = keras.Input((3,), name="first"), keras.Input((3,), name="second")
    model = keras.Model({"first": first, "second": second}, keras.layers.Subtract()([first, second]))
    np.testing.assert_allclose(all_logits(model, {"first": X, "second": 3 * X}), -2 * X, rtol=1e-6)
