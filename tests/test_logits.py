"""Heads are found and taken off, the user's model stays as it was, and one pass is one pass."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.models.forward_pass import forward_pass, logits_model
from keras_distill.models.heads import head_activation
from keras_distill.models.probabilities import share_of_probabilities


def functional(head):
    inputs = keras.Input((6,))
    return keras.Model(inputs, head(layers.Dense(5, "relu", name="hidden")(inputs)))


def nested(activation):
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.Dense(3, activation=activation)], name="inner")
    return keras.Sequential([keras.Input((6,)), layers.Dense(5, "relu", name="hidden"), inner])


def convolutional():
    head = layers.Conv1D(3, 1, activation="softmax")
    return keras.Sequential([keras.Input((4, 6)), layers.Conv1D(5, 1, name="hidden"), head])


MODELS = {
    "dense softmax": (lambda: functional(layers.Dense(3, activation="softmax")), "softmax"),
    "softmax layer": (lambda: functional(lambda x: layers.Softmax()(layers.Dense(3)(x))), "softmax"),
    "activation layer": (lambda: functional(lambda x: layers.Activation("softmax")(layers.Dense(3)(x))), "softmax"),
    "softmax op": (lambda: functional(lambda x: keras.ops.softmax(layers.Dense(3)(x))), "softmax"),
    "cast to float32": (
        lambda: functional(lambda x: layers.Activation("linear", dtype="float32")(layers.Dense(3, "softmax")(x))),
        "softmax",
    ),
    "nested": (lambda: nested("softmax"), "softmax"),
    "convolution": (convolutional, "softmax"),
    "sigmoid": (lambda: functional(layers.Dense(3, activation="sigmoid")), "sigmoid"),
}
INVERSE = {
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
}


@pytest.mark.parametrize("name", MODELS)
def test_head_is_taken_off_and_its_activation_gives_the_output_back(name):
    build, activation = MODELS[name]
    model = build()
    x = np.random.default_rng(0).normal(size=(7, *model.input_shape[1:])).astype("float32")
    before = model.to_json(), [weight.copy() for weight in model.get_weights()], np.asarray(model(x))
    assert head_activation(model) == activation

    logits = np.asarray(logits_model(model)(x), "float64")
    np.testing.assert_allclose(INVERSE[activation](logits), before[2], rtol=1e-5, atol=1e-6)
    assert not np.allclose(logits.sum(axis=-1), 1.0)

    outputs = forward_pass(model)(x, False)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-6)
    np.testing.assert_allclose(outputs.output, before[2], rtol=1e-6)

    assert model.to_json() == before[0]
    np.testing.assert_array_equal(np.asarray(model(x)), before[2])
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before[1], strict=True))


def test_weights_are_shared_not_copied():
    model = functional(layers.Dense(3, activation="softmax"))
    stripped = logits_model(model)
    assert {id(variable) for variable in stripped.variables} == {id(variable) for variable in model.variables}


def test_model_that_ends_in_logits_is_given_back_itself():
    model = functional(layers.Dense(3))
    assert head_activation(model) == "linear"
    assert logits_model(model) is model


def test_softmax_in_the_middle_stays():
    model = functional(lambda x: layers.Dense(3)(layers.Softmax()(x)))
    assert logits_model(model) is model


def test_dictionaries_of_inputs_and_outputs_keep_their_names():
    left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    joined = layers.Concatenate()([left, right])
    model = keras.Model(
        {"left": left, "right": right},
        {"kind": layers.Dense(3, activation="softmax", name="k")(joined), "size": layers.Dense(1, name="s")(joined)},
    )
    x = {"left": np.ones((4, 2), "float32"), "right": np.zeros((4, 2), "float32")}
    outputs = forward_pass(model)(x, False)
    assert set(outputs.logits) == set(outputs.output) == {"kind", "size"}
    np.testing.assert_allclose(keras.ops.softmax(outputs.logits["kind"]), model(x)["kind"], rtol=1e-5)
    np.testing.assert_allclose(outputs.output["size"], model(x)["size"], rtol=1e-6)


def test_named_features_come_from_the_same_pass():
    calls = []

    class Spy(layers.Layer):
        def call(self, x):
            calls.append(1)
            return x

    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(layers.Dense(5, name="hidden")(Spy()(inputs))))
    run = forward_pass(model, layer_names=["hidden"])
    calls.clear()
    x = np.ones((2, 6), "float32")
    outputs = run(x, True)
    assert len(calls) == 1
    np.testing.assert_allclose(outputs.features["hidden"], model.get_layer("hidden")(x), rtol=1e-6)


def test_masks_reach_the_logits():
    tokens = keras.Input((4,), dtype="int32")
    hidden = layers.Embedding(9, 3, mask_zero=True)(tokens)
    model = keras.Model(tokens, layers.Dense(2, activation="softmax")(hidden))
    outputs = forward_pass(model)(np.array([[1, 2, 0, 0]]), True)
    for tensor in (outputs.logits, outputs.output):
        np.testing.assert_array_equal(tensor._keras_mask, [[True, True, False, False]])


class Subclassed(keras.Model):
    def __init__(self, activation):
        super().__init__()
        self.head = layers.Dense(3, activation=activation)

    def call(self, x):
        return self.head(x)


def test_probabilities_of_a_model_that_cannot_be_read_become_logarithms():
    model, x = Subclassed("softmax"), np.ones((2, 6), "float32")
    assert head_activation(model) is None
    np.testing.assert_allclose(forward_pass(model, from_logits=False)(x, False).logits, np.log(model(x)), rtol=1e-6)
    np.testing.assert_allclose(logits_model(model, from_logits=False)(x), np.log(model(x)), rtol=1e-6)
    assert logits_model(model) is model


def test_features_of_a_model_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="must be Functional or Sequential; got Subclassed"):
        forward_pass(Subclassed(None), layer_names=["hidden"])


def test_unknown_layer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'nowhere' must name a layer of .*: it has .*hidden"):
        forward_pass(functional(layers.Dense(3)), layer_names=["nowhere"])


def test_only_rows_that_sum_to_one_look_like_probabilities():
    probabilities = np.random.default_rng(1).dirichlet(np.ones(5), size=20).astype("float32")
    assert float(share_of_probabilities(probabilities)) == 1.0
    assert float(share_of_probabilities(np.log(probabilities))) == 0.0
    assert float(share_of_probabilities(np.concatenate([probabilities, -probabilities]))) == 0.5
