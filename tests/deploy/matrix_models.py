"""The models that people bring: name → a function that builds one, and its inputs."""

import keras
import numpy as np
from keras import layers

NUM_CLASSES = 5


def floats(*shape):
    return np.random.default_rng(0).normal(size=(9, *shape)).astype("float32")


def tokens(length, vocabulary):
    return np.random.default_rng(0).integers(0, vocabulary, (9, length)).astype("int32")


def sequential():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, activation="relu"), layers.Dense(NUM_CLASSES)])
    return model, floats(8)


def functional():
    inputs = keras.Input((8,), name="measurements")
    hidden = layers.Dense(16, activation="tanh")(inputs)
    return keras.Model(inputs, layers.Dense(NUM_CLASSES)(layers.Concatenate()([hidden, inputs]))), floats(8)


@keras.saving.register_keras_serializable(package="tests_deploy")
class Subclassed(keras.Model):
    """Calls `call` with a training flag and a branch on it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.head = layers.Dense(16, activation="relu"), layers.Dense(NUM_CLASSES)
        self.dropout = layers.Dropout(0.5)

    def call(self, inputs, training=False):
        return self.head(self.dropout(self.hidden(inputs), training=training))


def subclassed():
    model = Subclassed()
    model(floats(8))
    return model, floats(8)


def two_inputs():
    left, right = keras.Input((8,), name="left"), keras.Input((3,), name="right")
    return keras.Model([left, right], layers.Dense(NUM_CLASSES)(layers.Concatenate()([left, right]))), [
        floats(8),
        floats(3),
    ]


def dictionary_of_inputs():
    inputs = {"b": keras.Input((8,), name="b"), "a": keras.Input((3,), name="a")}
    hidden = layers.Concatenate()([layers.Dense(4, activation="relu")(inputs["b"]), inputs["a"]])
    return keras.Model(inputs, layers.Dense(NUM_CLASSES)(hidden)), {"b": floats(8), "a": floats(3)}


def rescaling():
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3), name="image"),
            layers.Rescaling(1 / 127.5, offset=-1.0),
            layers.Conv2D(8, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(NUM_CLASSES),
        ]
    )
    return model, np.random.default_rng(0).integers(0, 256, (9, 12, 12, 3)).astype("float32")


def normalization():
    layer = layers.Normalization()
    layer.adapt(3.0 + 2.0 * floats(8))
    model = keras.Sequential([keras.Input((8,)), layer, layers.Dense(NUM_CLASSES)])
    return model, 3.0 + 2.0 * floats(8)


def softmax_head():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(NUM_CLASSES, activation="softmax")])
    return model, floats(8)


def batch_norm_convolutions():
    inputs = keras.Input((12, 12, 3))
    hidden = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(inputs)
    hidden = layers.ReLU(6.0)(layers.BatchNormalization()(hidden))
    hidden = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(hidden)
    hidden = layers.ReLU(6.0)(layers.BatchNormalization()(hidden))
    model = keras.Model(inputs, layers.Dense(NUM_CLASSES)(layers.GlobalAveragePooling2D()(hidden)))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            generator = np.random.default_rng(1)
            count = layer.moving_mean.shape[0]
            layer.moving_mean.assign(generator.normal(size=count))
            layer.moving_variance.assign(generator.uniform(0.5, 2.0, size=count))
    return model, floats(12, 12, 3)


def mixed(policy):
    def build():
        model = keras.Sequential(
            [
                keras.Input((8,)),
                layers.Dense(16, activation="relu", dtype=policy),
                layers.BatchNormalization(dtype=policy),
                layers.Dense(NUM_CLASSES, dtype=policy),
            ]
        )
        return model, floats(8)

    return build


def exact_gelu():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, activation="gelu"), layers.Dense(NUM_CLASSES)])
    return model, floats(8)


def transcendental():
    inputs = keras.Input((8,))
    logits = layers.Dense(NUM_CLASSES)(inputs)
    return keras.Model(
        inputs, keras.ops.log1p(keras.ops.abs(logits)) + keras.ops.expm1(keras.ops.tanh(logits))
    ), floats(8)


def lstm():
    return keras.Sequential([keras.Input((7, 4)), layers.LSTM(8), layers.Dense(NUM_CLASSES)]), floats(7, 4)


def gru():
    return keras.Sequential([keras.Input((7, 4)), layers.GRU(8), layers.Dense(NUM_CLASSES)]), floats(7, 4)


def attention():
    words = keras.Input((10,), dtype="int32", name="tokens")
    embedded = layers.Embedding(50, 8)(words)
    mixed_words = layers.LayerNormalization()(embedded + layers.MultiHeadAttention(2, 4)(embedded, embedded))
    model = keras.Model(words, layers.Dense(NUM_CLASSES)(layers.GlobalAveragePooling1D()(mixed_words)))
    return model, tokens(10, 50)


def nested():
    body = keras.Sequential([keras.Input((8,)), layers.Dense(16, activation="silu")], name="body")
    inputs = keras.Input((8,))
    return keras.Model(inputs, layers.Dense(NUM_CLASSES, activation="softmax")(body(inputs))), floats(8)


def ensemble():
    from keras_distill.teachers import Ensemble

    return Ensemble([functional()[0], exact_gelu()[0]]), floats(8)


def specialist_ensemble():
    from keras_distill.specialists import SpecialistEnsemble

    generalist = keras.Sequential([keras.Input((8,)), layers.Dense(NUM_CLASSES)])
    specialists = [keras.Sequential([keras.Input((8,)), layers.Dense(3)]) for _ in range(2)]
    return SpecialistEnsemble(generalist, specialists, [[0, 1], [2, 3]]), floats(8)


MODELS = {
    "sequential": sequential,
    "functional": functional,
    "subclassed": subclassed,
    "two inputs": two_inputs,
    "dictionary of inputs": dictionary_of_inputs,
    "rescaling": rescaling,
    "normalization": normalization,
    "softmax head": softmax_head,
    "batch norm convolutions": batch_norm_convolutions,
    "mixed_float16": mixed("mixed_float16"),
    "mixed_bfloat16": mixed("mixed_bfloat16"),
    "exact gelu": exact_gelu,
    "log1p and expm1": transcendental,
    "lstm": lstm,
    "gru": gru,
    "attention": attention,
    "nested": nested,
    "ensemble": ensemble,
    "specialist ensemble": specialist_ensemble,
}


def with_probabilities(logits):
    """Softmax in float64."""
    exponentials = np.exp(np.float64(logits) - np.max(logits, -1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)
