"""`text_bag` and `text_conv`: what NumPy makes of their weights, padding that counts for nothing, exports, pruning."""

import itertools

import keras
import numpy as np
import pytest

from keras_distill import deploy
from keras_distill.data import networks
from keras_distill.pruning import prune

LENGTH, VOCABULARY, CLASSES = 12, 50, 5
BUILDERS = {
    "bag": lambda length=LENGTH: networks.text_bag(length, VOCABULARY, CLASSES, 8, hidden_width=6),
    "pairs": lambda length=LENGTH: networks.text_bag(length, VOCABULARY, CLASSES, 8, hidden_width=6, num_pairs=32),
    "conv": lambda length=LENGTH: networks.text_conv(length, VOCABULARY, CLASSES, 8, num_filters=6),
}


@pytest.fixture(params=BUILDERS)
def build(request):
    keras.utils.set_random_seed(0)
    return BUILDERS[request.param]


def sentences(num=9, length=LENGTH):
    """Token ids of all lengths from none to all."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCABULARY, (num, length)).astype("int32")
    return np.where(np.arange(length) < rng.integers(0, length + 1, (num, 1)), tokens, 0).astype("int32")


def test_a_bag_is_the_mean_of_its_vectors_and_a_hidden_layer():
    model = BUILDERS["bag"]()
    table, kernel, bias, top, top_bias = (weights.astype("float64") for weights in model.get_weights())
    for tokens, logits in zip(sentences(), model.predict(sentences(), verbose=0), strict=True):
        ids = tokens[tokens > 0]
        mean = table[ids].mean(axis=0) if len(ids) else np.zeros(8)
        expected = np.maximum(mean @ kernel + bias, 0.0) @ top + top_bias
        np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_pairs_are_rows_behind_the_vocabulary():
    model = BUILDERS["pairs"]()
    table, kernel, bias, top, top_bias = (weights.astype("float64") for weights in model.get_weights())
    for tokens, logits in zip(sentences(), model.predict(sentences(), verbose=0), strict=True):
        ids = [int(token) for token in tokens if token]
        rows = ids + [VOCABULARY + (7919 * a + b) % 32 for a, b in itertools.pairwise(ids)]
        mean = table[rows].mean(axis=0) if rows else np.zeros(8)
        np.testing.assert_allclose(logits, np.maximum(mean @ kernel + bias, 0.0) @ top + top_bias, atol=1e-6)


def test_a_convolution_keeps_the_largest_answer_over_the_sentence():
    model = BUILDERS["conv"]()
    table, kernel, bias, top, top_bias = (weights.astype("float64") for weights in model.get_weights())
    for tokens, logits in zip(sentences(), model.predict(sentences(), verbose=0), strict=True):
        ids = tokens[tokens > 0]
        padded = np.concatenate([np.zeros((1, 8)), table[ids], np.zeros((1, 8))])
        places = [np.tensordot(padded[at : at + 3], kernel, 2) + bias for at in range(len(ids))]
        largest = np.maximum(places, 0.0).max(axis=0) if len(ids) else np.zeros(6)
        np.testing.assert_allclose(logits, largest @ top + top_bias, atol=1e-6)


def test_more_padding_changes_no_answer(build):
    model, longer = build(), build(LENGTH + 20)
    longer.set_weights(model.get_weights())
    padded = np.pad(sentences(), ((0, 0), (0, 20)))
    np.testing.assert_allclose(longer.predict(padded, verbose=0), model.predict(sentences(), verbose=0), atol=1e-6)


def test_training_leaves_words_out_and_keeps_the_mean(build):
    model = build()
    tokens = sentences()[:1]
    tokens[:] = np.arange(1, LENGTH + 1)
    drawn = np.array([model(tokens, training=True).numpy() for _ in range(50)])
    assert len(np.unique(drawn[:, 0, 0])) > 10
    if model.name == "text_bag":
        # Of one word over and over the mean is that word's vector, whatever is left out.
        model.get_layer("vectors").set_weights([np.ones((len(model.get_layer("vectors").get_weights()[0]), 8), "f4")])
        alike = np.array([model(tokens, training=True).numpy() for _ in range(20)])
        np.testing.assert_allclose(alike, np.broadcast_to(model(tokens).numpy(), alike.shape), atol=1e-5)


def test_both_runtimes_answer_as_keras(build, tmp_path):
    model = build()
    expected = {"logits": model.predict(sentences(), verbose=0)}
    files = [deploy.to_onnx(model, tmp_path / "m.onnx"), deploy.to_litert(model, tmp_path / "m.tflite")]
    for file in files:
        check = deploy.verify(expected, file, {"inputs": sentences()})
        assert not check.problems
        assert check.to_json()["logit_rmse"] < 1e-6


def test_a_saved_model_is_plain_keras(build, tmp_path):
    model = build()
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again.predict(sentences(), verbose=0), model.predict(sentences(), verbose=0))


def test_vectors_and_hidden_units_are_pruned(build):
    pruned = prune(build(), 0.5)
    assert pruned.get_layer("vectors").output_dim == 4
    assert pruned.predict(sentences(), verbose=0).shape == (9, CLASSES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length must be >= 1; got 0"),
        ({"vocabulary_size": 1}, "vocabulary_size must be >= 2; got 1. Id 0 is padding"),
        ({"length": 1, "num_pairs": 8}, "length must be >= 2; got 1.*num_pairs=0"),
        ({"vocabulary_size": 300_000, "num_pairs": 8}, "vocabulary_size must be <= 271146 .* got 300000.*num_pairs=0"),
    ],
)
def test_what_makes_no_bag_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        networks.text_bag(**{"length": 8, "vocabulary_size": 9, "num_classes": 3} | arguments)


def test_the_largest_vocabulary_hashes_its_pairs_without_overflow():
    vocabulary = (2**31 - 1) // 7920
    model = networks.text_bag(2, vocabulary, 3, 1, hidden_width=1, num_pairs=7)
    tokens = np.array([[vocabulary - 1, vocabulary - 1]], "int32")
    table = np.zeros((vocabulary + 7, 1), "float32")
    table[vocabulary + (7919 * (vocabulary - 1) + vocabulary - 1) % 7] = 3.0
    model.get_layer("vectors").set_weights([table])
    mean = keras.Model(model.input, next(layer for layer in model.layers if layer.name.startswith("dense")).input)
    assert float(mean.predict(tokens, verbose=0)[0, 0]) == pytest.approx(1.0)
