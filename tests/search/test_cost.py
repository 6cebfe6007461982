"""What is measured is what the file is; what is predicted follows what was measured."""

import keras
import numpy as np
import pytest

from keras_distill.models import multiply_adds
from keras_distill.search.cost import _NAMES, Cost, Meter, features_of
from keras_distill.search.families import hand_made

X = np.random.default_rng(0).random((32, 12, 12, 1)).astype("float32")


@pytest.fixture(scope="module")
def students():
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    made = []
    for number in range(24):
        family = hand_made((12, 12, 1), 4)[number % 3]
        width = float(np.exp(generator.uniform(np.log(0.02), np.log(0.4))))
        made.append((family.name, family.build(family.default(), width)))
    return made


def test_features_count_the_work_of_a_closed_form():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(5, 3, padding="same")(inputs)
    x = keras.layers.Conv2D(7, 1)(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    x = keras.layers.Dense(2)(keras.layers.Flatten()(x))
    found = features_of(keras.Model(inputs, x))
    # Kernels give vectors of 16 channels: 5, 7 and 2 cost what 16 do.
    np.testing.assert_array_equal(found[:4], [64 * 27 * 16, 64 * 5 * 16, 64 * 9 * 16, 448 * 16])
    np.testing.assert_array_equal(found[6:10], [64, 64, 64, 1])
    np.testing.assert_array_equal(found[12:18], [1, 1, 1, 1, 0, 0])
    assert found[18] == (27 * 5 + 5) + (35 + 7) + (63 + 7) + (896 + 2)
    assert found[19] == 5 + 7 + 7 + 2


def test_what_is_folded_costs_nothing_and_a_pool_what_it_reads():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(20, 3, use_bias=False)(inputs)))
    x = keras.layers.MaxPooling2D(2)(x)
    found = dict(zip(_NAMES, features_of(keras.Model(inputs, x)), strict=True))
    assert found["work conv"] == 36 * 27 * 32
    assert (found["work pool"], found["places pool"], found["calls pool"]) == (36 * 20, 9 * 20, 1)
    assert found["calls other"] == 0


def test_costs_that_are_linear_are_predicted_once_some_were_seen(students):
    meter = Meter("litert", X[:1], X, {})
    # A machine that does a multiply-add of a convolution in 0.1 ns, of a dense layer in 0.4, and starts in 5 µs.
    truth = np.array([1e-7, 1e-7, 3e-7, 4e-7, 0, 0, *[1e-7] * 6, *[1e-3] * 6, 0, 0, 5e-3])
    errors = []
    for family, model in students:
        features = features_of(model)
        cost = Cost(model.count_params(), 0, 4 * model.count_params() + 5000, float(features @ truth))
        predicted = meter.predict(model, "float32", family)
        errors.append((predicted.latency_ms / cost.latency_ms - 1, predicted.num_bytes / cost.num_bytes - 1))
        meter.learn(features, cost, "float32", family)
    latency, size = np.abs(np.array(errors)[12:]).T
    assert np.median(latency) < 0.05
    assert np.median(size) < 0.02


def test_int8_of_an_input_without_a_name_and_of_one_that_has_its_own():
    for name in (None, "Pixels"):
        inputs = keras.Input((12, 12, 1), name=name)
        model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
        assert Meter("litert", X[:1], X, {}).measure(model, "int8", "pruned").num_bytes > 3 * 144


@pytest.mark.parametrize(("runtime", "precision"), [("litert", "float32"), ("litert", "int8"), ("onnx", "int8")])
def test_what_is_measured_is_the_file_in_its_runtime(students, runtime, precision, tmp_path):
    family, model = students[0]
    meter = Meter(runtime, X[:1], X, {"class_names": list("abcd")})
    before = model.get_weights()
    cost = meter.measure(model, precision, family)
    assert all(np.array_equal(one, other) for one, other in zip(model.get_weights(), before, strict=True))
    # Of the trained student: its biases, still zero when it is measured, take bytes then.
    generator = np.random.default_rng(1)
    model.set_weights([values + generator.normal(0.0, 0.1, values.shape) for values in before])
    path = meter.write(model, tmp_path, precision)
    model.set_weights(before)
    assert abs(path.stat().st_size - cost.num_bytes) <= 64
    assert cost.num_parameters == model.count_params()
    assert cost.multiply_adds == multiply_adds(model)
    assert 0.0 < cost.latency_ms < 100.0
    # What was measured is what is predicted of the same model, nearly.
    assert meter.predict(model, precision, family).num_bytes == pytest.approx(cost.num_bytes, rel=0.1)


def test_the_tighter_limit_decides():
    cost = Cost(10, 5, 50, 0.2)
    assert cost.share_of(100, 0.1) == pytest.approx(2.0)
    assert cost.share_of(100, None) == pytest.approx(0.5)


def test_a_network_of_images_of_any_size_costs_what_the_example_costs():
    inputs = keras.Input((None, None, 1))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(4)(x))
    assert Meter("litert", X[:1], X, {}).measure(model, "float32", "pruned").multiply_adds == 12 * 12 * 9 * 4 + 16
