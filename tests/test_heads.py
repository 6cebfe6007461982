"""Heads are known by what they do: each kind by hand, what stays whole, and how it is written into the graph.

Random models of all of them are in `random_heads/`; what a wrong promise does, in `test_promises.py`.
"""

import keras
import numpy as np
import pytest
import scipy.special
from keras import layers, ops

from keras_distill.models import forward_pass, head_activation, logits_model
from keras_distill.models.heads import function_activation, layer_at_end
from keras_distill.models.probabilities import activation_behind, logits_of, share_of_probabilities

X = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")


def model_of(*tail, inputs=(5,)):
    return keras.Sequential([keras.Input(inputs), *tail])


def softmax(values):
    return scipy.special.softmax(np.asarray(values, "float64"), axis=-1)


# What a function is


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (keras.activations.softmax, "softmax"),
        (lambda x: ops.softmax(x, axis=-1), "softmax"),
        (layers.Softmax(), "softmax"),
        (ops.sigmoid, "sigmoid"),
        (lambda x: x, "linear"),
        (ops.relu, None),
        # As good as a softmax but for large logits, or for all but one class.
        (lambda x: ops.softmax(ops.clip(x, -20.0, 20.0)), "normalised"),
        (lambda x: ops.softmax(0.99 * x), "normalised"),
        (lambda x: ops.softmax(x)[..., :2], None),
        (lambda x: ops.softmax(x, axis=1), "a softmax over another axis than the last"),
    ],
)
def test_a_function_is_what_it_does(function, expected):
    assert function_activation(function, (None, 3, 4)) == expected


def test_a_function_that_fails_on_numbers_is_not_known():
    def picky(values):
        raise TypeError("not these")

    assert function_activation(picky, (None, 4)) is None


# What stays whole


def test_a_recurrent_layer_keeps_its_activation():
    for layer in (layers.SimpleRNN(3, activation="sigmoid"), layers.LSTM(3, activation="softmax")):
        model = model_of(layer, inputs=(4, 5))
        x = np.random.default_rng(1).normal(size=(2, 4, 5)).astype("float32")
        assert head_activation(model) is None
        outputs = forward_pass(model)(x, False)
        np.testing.assert_array_equal(outputs.logits, model(x))
        np.testing.assert_array_equal(outputs.output, model(x))


def test_a_regulariser_of_probabilities_still_sees_probabilities():
    head = layers.Dense(3, "softmax", activity_regularizer=keras.regularizers.L2(0.5))
    model = model_of(head)
    model(X)
    expected = [float(loss) for loss in model.losses]
    assert head_activation(model) == "softmax"
    outputs = forward_pass(model)(X, True)
    np.testing.assert_allclose(softmax(outputs.logits), model(X), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose([float(loss) for loss in model.losses], expected, rtol=1e-6)
    # Keras's own: half the sum of squares; newer versions divide it by the number of examples.
    penalty = 0.5 * np.sum(np.asarray(model(X)) ** 2)
    assert np.isclose(expected, [penalty, penalty / len(X)], rtol=1e-5).any()


def test_trying_a_head_adds_no_loss_and_moves_no_state():
    inputs = keras.Input(batch_shape=(2, 4, 5))
    memory = layers.GRU(3, stateful=True)
    penalty = keras.regularizers.L2(1.0)
    model = keras.Model(inputs, layers.Dense(3, "softmax", activity_regularizer=penalty)(memory(inputs)))
    model(np.ones((2, 4, 5), "float32"))
    state, num_losses = memory.states[0].numpy(), len(model.losses)
    forward_pass(model)
    logits_model(model)
    np.testing.assert_array_equal(memory.states[0].numpy(), state)
    assert len(model.losses) == num_losses


def test_a_state_is_kept_where_the_whole_model_is_tried():
    class Unknown(layers.Layer):
        def call(self, x):
            return 2.0 * x

    inputs = keras.Input(batch_shape=(2, 4, 5))
    memory = layers.GRU(3, stateful=True)
    model = keras.Model(inputs, Unknown()(memory(inputs)))
    model(np.ones((2, 4, 5), "float32"))
    state = memory.states[0].numpy()
    assert logits_model(model) is model
    np.testing.assert_array_equal(memory.states[0].numpy(), state)


def test_a_softmax_over_another_axis_is_refused_with_the_remedy():
    model = model_of(layers.Softmax(axis=1), inputs=(3, 4))
    with pytest.raises(ValueError, match=r"must be a softmax over the last axis; got a softmax over another.*Permute"):
        logits_model(model)
    moved = model_of(layers.Softmax(axis=1), layers.Permute((2, 1)), inputs=(3, 4))
    x = np.random.default_rng(1).normal(size=(2, 3, 4)).astype("float32")
    np.testing.assert_allclose(logits_model(moved)(x), np.swapaxes(x, 1, 2), rtol=1e-6)


def test_a_layer_of_transition_probabilities_makes_no_logits_of_probabilities():
    noise = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.0, 0.1, 0.9]])
    transition = layers.Dense(3, use_bias=False)
    model = model_of(layers.Dense(3, "softmax"), transition)
    assert head_activation(model) == "linear"
    transition.set_weights([noise])
    assert head_activation(model) is None
    with pytest.raises(ValueError, match="must be logits; got probabilities"):
        logits_model(model)
    np.testing.assert_allclose(softmax(logits_model(model, from_logits=False)(X)), model(X), rtol=1e-5)


def test_bad_weights_hide_no_head():
    model = model_of(layers.Dense(3, "softmax"))
    model.layers[-1].bias.assign([np.nan, 0.0, 0.0])
    assert head_activation(model) == "softmax"


# How it is written into the graph


def test_no_layer_runs_twice():
    calls = []

    class Spy(layers.Layer):
        def call(self, x):
            calls.append(self.name)
            return x

    inner_input = keras.Input((5,))
    hidden = Spy(name="inner")(layers.Dense(4, "tanh")(inner_input))
    outputs = [layers.Dense(3, "softmax")(hidden), layers.Dense(2, "sigmoid")(hidden), hidden]
    inner = keras.Model(inner_input, outputs)
    inputs = keras.Input((5,))
    first, second, features = inner(Spy(name="outer")(inputs))
    # Both heads of one inner model; and one that something else reads, too.
    readings = [[first, layers.Dropout(0.5)(second)], [first, layers.Dense(2, "softmax")(features)]]
    for model in [keras.Model(inputs, reading) for reading in readings]:
        run = forward_pass(model)
        calls.clear()
        given = run(X, False)
        assert sorted(calls) == ["inner", "outer"]
        names = {"softmax": softmax, "sigmoid": scipy.special.expit}
        for logits, output, activation, expected in zip(
            given.logits, given.output, run.activations, model(X), strict=True
        ):
            np.testing.assert_allclose(output, expected, rtol=1e-6)
            np.testing.assert_allclose(names[activation](np.asarray(logits)), expected, rtol=1e-5, atol=1e-6)


def test_an_inner_model_that_was_called_without_training_runs_as_keras_runs_it():
    inner = model_of(layers.BatchNormalization(), layers.Dense(3, "softmax"))
    inputs = keras.Input((5,))
    model = keras.Model(inputs, inner(inputs, training=False))
    norm = inner.layers[0]
    before = norm.get_weights()
    expected, after = np.asarray(model(X + 3.0, training=True)), norm.get_weights()
    for names in ([], [f"{inner.name}/{norm.name}"]):
        norm.set_weights(before)
        outputs = forward_pass(model, layer_names=names)(X + 3.0, True)
        np.testing.assert_allclose(outputs.output, expected, rtol=1e-5)
        np.testing.assert_allclose(norm.get_weights(), after, rtol=1e-6)


def test_dropout_after_a_softmax_drops_probabilities_and_no_logits():
    model = model_of(layers.Dense(3, "softmax"), layers.Dropout(0.5))
    keras.utils.set_random_seed(3)
    outputs = forward_pass(model)(X, True)
    whole = softmax(outputs.logits)
    dropped = np.asarray(outputs.output)
    np.testing.assert_allclose(dropped, np.where(dropped == 0.0, 0.0, 2.0 * whole), rtol=1e-5)
    assert 0 < np.count_nonzero(dropped == 0.0) < dropped.size


def test_layers_whose_names_ours_would_have_are_no_obstacle():
    names = ["head_without_activation", "head_activation", "head_logits"]
    body = [layers.Dense(4, "tanh", name=name) for name in names]
    model = model_of(*body, layers.Dense(3, "softmax", name="head"))
    np.testing.assert_allclose(softmax(forward_pass(model)(X, False).logits), model(X), rtol=1e-5, atol=1e-6)


def test_one_head_called_twice_is_taken_off_twice():
    left, right = keras.Input((5,)), keras.Input((5,))
    head = layers.Dense(3, "softmax")
    model = keras.Model([left, right], [head(left), head(right)])
    given = forward_pass(model)([X, -X], False)
    for logits, expected in zip(given.logits, model([X, -X]), strict=True):
        np.testing.assert_allclose(softmax(logits), expected, rtol=1e-5, atol=1e-6)


def test_the_layer_at_the_end_is_known():
    head = layers.Dense(3)
    for tail in ([head], [head, layers.Softmax()], [head, layers.Activation("softmax"), layers.Dropout(0.1)]):
        assert layer_at_end(model_of(*tail).outputs[0]) is head
    for tail in ([head, layers.Rescaling(2.0)], [layers.GRU(3)], [head, layers.Dense(3), layers.ReLU()]):
        shape = (4, 5) if isinstance(tail[0], layers.GRU) else (5,)
        assert layer_at_end(model_of(*tail, inputs=shape).outputs[0]) is not head


def test_mixed_precision_heads_are_found():
    for policy in ("mixed_float16", "mixed_bfloat16"):
        model = model_of(layers.Dense(8, "relu", dtype=policy), layers.Dense(3, "softmax", dtype=policy))
        assert head_activation(model) == "softmax"
        outputs = forward_pass(model)(X, False)
        tolerance = 1e-2 if "bfloat" in policy else 2e-3
        np.testing.assert_allclose(softmax(ops.cast(outputs.logits, "float32")), model(X), atol=tolerance)


# Probabilities as logits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_of_probabilities_are_those_of_scipy(dtype):
    probabilities = np.random.default_rng(2).dirichlet(np.ones(5), size=20).astype(dtype)
    exact = probabilities.astype("float64")
    np.testing.assert_allclose(logits_of(ops.convert_to_tensor(probabilities)), np.log(exact), rtol=1e-6)
    given = logits_of(ops.convert_to_tensor(probabilities), "sigmoid")
    np.testing.assert_allclose(given, scipy.special.logit(exact), rtol=1e-5, atol=1e-6)


def test_probabilities_that_rounded_away_have_the_nearest_logit():
    ends = np.array([0.0, 1.0], "float16")
    np.testing.assert_allclose(logits_of(ops.convert_to_tensor(ends)), [np.log(2.0**-24), 0.0], rtol=1e-6)
    given = np.asarray(logits_of(ops.convert_to_tensor(ends), "sigmoid"))
    np.testing.assert_allclose(given, [np.log(2.0**-24), -np.log(2.0**-11)], rtol=1e-4)
    given = np.asarray(logits_of(ops.convert_to_tensor(np.float32([0.0, 1.0])), "sigmoid"))
    np.testing.assert_allclose(given, [np.log(1e-30), -np.log(2.0**-24)], rtol=1e-5)


def test_what_is_no_probability_has_no_logit():
    values = ops.convert_to_tensor(np.float32([-0.5, 0.5, 1.5]))
    np.testing.assert_array_equal(np.isnan(logits_of(values)), [True, False, False])
    np.testing.assert_array_equal(np.isnan(logits_of(values, "sigmoid")), [True, False, True])


def test_values_tell_what_they_are():
    generator = np.random.default_rng(3)
    distributions = generator.dirichlet(np.ones(4), size=9)
    assert activation_behind(distributions) == "softmax"
    assert activation_behind(generator.random((9, 4))) == "sigmoid"
    assert activation_behind(generator.random((9, 1))) == "sigmoid"
    for values in (np.log(distributions), -distributions, np.full((2, 2), np.nan), np.zeros((0, 3))):
        assert activation_behind(values) is None
    halves = np.concatenate([distributions, np.log(distributions)])
    assert float(share_of_probabilities(ops.convert_to_tensor(halves))) == 0.5
    assert float(share_of_probabilities(ops.convert_to_tensor(halves), "sigmoid")) == 0.5


def test_a_layer_as_an_activation_sees_no_mask_that_it_did_not_see_before():
    inputs = keras.Input((4,), dtype="int32")
    tokens = layers.Embedding(7, 5, mask_zero=True)(inputs)
    model = keras.Model(inputs, layers.Dense(3, activation=layers.Softmax())(tokens))
    x = np.array([[0, 1, 2, 3], [4, 5, 6, 0]])
    run = forward_pass(model)
    assert run.activations == "softmax"
    given = run(x, False)
    np.testing.assert_allclose(given.output, model(x), rtol=1e-6)
    np.testing.assert_allclose(ops.softmax(given.logits), model(x), rtol=1e-5)


def test_one_of_several_outputs_of_an_operation_is_taken_as_it_is():
    inputs = keras.Input((8,))
    real, _ = keras.ops.fft((inputs, keras.ops.zeros_like(inputs)))
    model = keras.Model(inputs, real)
    x = np.random.default_rng(0).normal(size=(2, 8)).astype("float32")
    np.testing.assert_allclose(logits_model(model)(x), np.fft.fft(x).real, atol=1e-5)
