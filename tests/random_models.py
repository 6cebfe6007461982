"""Random Keras models with every head that users write; what each of their outputs is comes with the draw.

A seed draws a small trunk (dense, convolutional, recurrent or of tokens; Sequential, functional, nested, with shared
layers, several inputs, dropout, batch normalisation, regularisers) and a head for each of its outputs. The same seed is
the same model on every machine. Nothing here imports keras_distill.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

SOFTMAX, SIGMOID, LINEAR = "softmax", "sigmoid", "linear"
# No activation that a reader of the graph could know: whatever the model gives is taken for logits, unless told.
UNKNOWN = None
# A softmax whose rows are no distributions over the last axis: no logits have it as their softmax.
MISPLACED = "softmax over another axis"


@dataclass(frozen=True)
class Drawn:
    """A random model.

    Attributes:
        model: the Keras model.
        inputs: a batch for it, of 3 examples, as the model takes them.
        truths: what each output is, in the order of `model.outputs`: `"softmax"`, `"sigmoid"`, `"linear"`, `MISPLACED`,
            or `UNKNOWN`.
        heads: the names of the heads that were drawn, one an output.
    """

    model: keras.Model
    inputs: Any
    truths: tuple[str | None, ...]
    heads: tuple[str, ...]


class Scaled(layers.Layer):
    """A layer of the user's own whose attribute `activation` is not what it applies last."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.activation = keras.activations.softmax
        self.dense = layers.Dense(3)

    def call(self, x: Any) -> Any:
        return 0.5 * self.activation(self.dense(x)) - 0.1


class OwnSoftmax(layers.Layer):
    """A softmax under a name that nobody knows."""

    def call(self, x: Any) -> Any:
        return ops.exp(x) / ops.sum(ops.exp(x), axis=-1, keepdims=True)


class Subclass(layers.Dense):
    """A Dense that does more after its activation."""

    def call(self, x: Any) -> Any:
        return 2.0 * super().call(x) - 0.3


# Heads: (features `(batch, …, channels)`, generator) -> output


def _units(generator: np.random.Generator) -> int:
    return int(generator.integers(2, 5))


def _dense(activation: Any) -> Callable:
    return lambda x, generator: layers.Dense(_units(generator), activation=activation)(x)


def _then(*following: Callable[[], Callable], units: int | None = None, activation: str = "softmax") -> Callable:
    """A softmax, and what follows it: functions that make a layer."""

    def head(x: Any, generator: np.random.Generator) -> Any:
        x = layers.Dense(units or _units(generator), activation=activation)(x)
        for make in following:
            x = make()(x)
        return x

    return head


def _several(merge: Callable[[list[Any]], Any], activation: str = "softmax") -> Callable:
    def head(x: Any, generator: np.random.Generator) -> Any:
        units = _units(generator)
        return merge([layers.Dense(units, activation)(x) for _ in range(3)])

    return head


def _weighted(members: list[Any]) -> Any:
    return 0.5 * members[0] + 0.3 * members[1] + 0.2 * members[2]


def _gated(x: Any, generator: np.random.Generator) -> Any:
    units = _units(generator)
    gate = layers.Dense(2, "softmax")(x)
    first, second = layers.Dense(units, "softmax")(x), layers.Dense(units, "softmax")(x)
    return gate[..., :1] * first + gate[..., 1:] * second


def _quantized(activation: str) -> Callable:
    def head(x: Any, generator: np.random.Generator) -> Any:
        layer = layers.Dense(_units(generator), activation=activation)
        output = layer(x)
        layer.quantize("int8")
        return output

    return head


def _nested(*following: str) -> Callable:
    """A model as the last layer, whose own head is a softmax; then other layers."""

    def head(x: Any, generator: np.random.Generator) -> Any:
        inner_input = keras.Input(x.shape[1:])
        hidden = layers.Dropout(0.3)(layers.BatchNormalization()(layers.Dense(5, "tanh")(inner_input)))
        inner = keras.Model(inner_input, layers.Dense(_units(generator), activation="softmax")(hidden))
        x = inner(x, training=False) if "frozen" in following else inner(x)
        return layers.Dropout(0.3)(x) if "dropout" in following else x

    return head


def _nested_with_a_second_reader(x: Any, generator: np.random.Generator) -> Any:
    """A model whose probabilities are an output and feed another part of the same model."""
    inner_input = keras.Input(x.shape[1:])
    hidden = layers.Dropout(0.3)(layers.Dense(5, "tanh")(inner_input))
    inner = keras.Model(inner_input, [hidden, layers.Dense(_units(generator), activation="softmax")(hidden)])
    hidden, probabilities = inner(x)
    return layers.Dense(3, "softmax")(layers.Concatenate()([hidden, probabilities]))


def _wrapped(x: Any, generator: np.random.Generator) -> Any:
    inner = keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(_units(generator), activation="softmax")])
    return layers.TimeDistributed(inner)(x)


def _softmax_layer(**options: Any) -> Callable:
    return lambda x, generator: layers.Softmax(**options)(layers.Dense(_units(generator))(x))


def _flatten_one(x: Any, generator: np.random.Generator) -> Any:
    x = layers.Dense(_units(generator), activation="softmax")(layers.Reshape((1, x.shape[-1]))(x))
    return layers.Flatten()(x)


def _classes_first(x: Any, generator: np.random.Generator) -> Any:
    """`(batch, tokens, channels)` to probabilities over the tokens' axis, moved last."""
    return layers.Permute((2, 1))(layers.Softmax(axis=1)(layers.Dense(_units(generator))(x)))


def _masked(x: Any, generator: np.random.Generator) -> Any:
    logits = layers.Dense(3)(x)
    return layers.Softmax()(logits, mask=ops.concatenate([logits[..., :1] < 9.0, logits[..., 1:] > 0.0], axis=-1))


def _dense_activation(make: Callable[[], Any]) -> Callable:
    return lambda x, generator: layers.Dense(_units(generator), activation=make())(x)


# name: (head, what it is, the ranks of features that it takes)
HEADS: dict[str, tuple[Callable, str | None, tuple[int, ...]]] = {
    "dense": (_dense(None), LINEAR, (2, 3, 4)),
    "dense linear": (_dense("linear"), LINEAR, (2, 3)),
    "dense softmax": (_dense("softmax"), SOFTMAX, (2, 3, 4)),
    "dense sigmoid": (_dense("sigmoid"), SIGMOID, (2, 3, 4)),
    "one unit": (lambda x, generator: layers.Dense(1, "sigmoid")(x), SIGMOID, (2, 3)),
    "lambda as activation": (_dense(lambda x: ops.softmax(x, axis=-1)), SOFTMAX, (2, 3)),
    "layer as activation": (_dense_activation(layers.Softmax), SOFTMAX, (2, 3)),
    "steeper softmax as activation": (_dense(lambda x: ops.softmax(2.0 * x, axis=-1)), SOFTMAX, (2, 3)),
    "softmax over the first axis as activation": (_dense(lambda x: ops.softmax(x, axis=1)), MISPLACED, (3,)),
    "relu": (_dense("relu"), UNKNOWN, (2, 3)),
    "log softmax": (_dense("log_softmax"), UNKNOWN, (2, 3)),
    "softmax layer": (_softmax_layer(), SOFTMAX, (2, 3, 4)),
    "softmax layer, axis=1": (_softmax_layer(axis=1), MISPLACED, (3, 4)),
    "softmax layer, mask": (_masked, SOFTMAX, (2, 3)),
    "softmax layer, classes moved last": (_classes_first, SOFTMAX, (3,)),
    "activation layer": (lambda x, generator: layers.Activation("softmax")(layers.Dense(3)(x)), SOFTMAX, (2, 3)),
    "sigmoid layer": (lambda x, generator: layers.Activation("sigmoid")(layers.Dense(2)(x)), SIGMOID, (2, 3)),
    "ops.softmax": (lambda x, generator: ops.softmax(layers.Dense(3)(x)), SOFTMAX, (2, 3)),
    "ops.softmax, axis=1": (lambda x, generator: ops.softmax(layers.Dense(3)(x), axis=1), MISPLACED, (3,)),
    "ops.sigmoid": (lambda x, generator: ops.sigmoid(layers.Dense(3)(x)), SIGMOID, (2, 3)),
    "lambda layer": (lambda x, generator: layers.Lambda(ops.softmax)(layers.Dense(3)(x)), SOFTMAX, (2, 3)),
    "convolution": (lambda x, generator: layers.Conv1D(3, 2, activation="softmax")(x), SOFTMAX, (3,)),
    "convolution sigmoid": (lambda x, generator: layers.Conv2D(2, 1, activation="sigmoid")(x), SIGMOID, (4,)),
    "einsum": (
        lambda x, generator: layers.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d", activation="softmax")(x),
        SOFTMAX,
        (3,),
    ),
    "average": (_several(lambda members: layers.Average()(members)), SOFTMAX, (2, 3)),
    "average of sigmoids": (_several(lambda members: layers.Average()(members), "sigmoid"), SIGMOID, (2, 3)),
    "weighted": (_several(_weighted), SOFTMAX, (2, 3)),
    "mean of a stack": (_several(lambda members: ops.mean(ops.stack(members, axis=0), axis=0)), SOFTMAX, (2, 3)),
    "gated": (_gated, SOFTMAX, (2, 3)),
    "average of logits": (_several(lambda members: layers.Average()(members), "linear"), UNKNOWN, (2, 3)),
    "softmax, reshape": (_then(lambda: layers.Reshape((1, 3)), units=3), SOFTMAX, (2,)),
    "softmax, flatten": (_flatten_one, SOFTMAX, (2,)),
    "softmaxes, flatten": (_then(layers.Flatten), MISPLACED, (3,)),
    "softmax, permute": (_then(lambda: layers.Permute((2, 1))), MISPLACED, (3,)),
    "softmax, last token": (_then(lambda: lambda x: x[:, -1]), SOFTMAX, (3,)),
    "softmax, one class": (_then(lambda: lambda x: x[..., 1:2]), MISPLACED, (2, 3)),
    "softmax, dropout": (_then(lambda: layers.Dropout(0.3)), SOFTMAX, (2, 3)),
    "softmax, lambda": (_then(lambda: layers.Lambda(lambda x: x)), SOFTMAX, (2, 3)),
    "softmax, clipped": (_then(lambda: layers.Lambda(lambda x: ops.clip(x, 1e-7, 1.0 - 1e-7))), SOFTMAX, (2, 3)),
    "softmax, cast": (_then(lambda: layers.Activation("linear", dtype="float32")), SOFTMAX, (2, 3)),
    "softmax, noise, dropout, reshape": (
        _then(
            lambda: layers.GaussianNoise(0.01),
            lambda: layers.Dropout(0.2),
            lambda: layers.Reshape((1, 1, 3)),
            lambda: layers.Reshape((1, 3)),
            units=3,
        ),
        SOFTMAX,
        (2,),
    ),
    "sigmoid, flatten": (_then(layers.Flatten, activation="sigmoid"), SIGMOID, (2, 3)),
    "softmax of softmax": (_then(layers.Softmax), SOFTMAX, (2, 3)),
    "softmax, dense": (_then(lambda: layers.Dense(3)), LINEAR, (2, 3)),
    "softmax, scaled": (_then(lambda: layers.Rescaling(2.0)), UNKNOWN, (2, 3)),
    "time distributed": (
        lambda x, generator: layers.TimeDistributed(layers.Dense(3, activation="softmax"))(x),
        SOFTMAX,
        (3, 4),
    ),
    "time distributed sigmoid": (
        lambda x, generator: layers.TimeDistributed(layers.Dense(2, activation="sigmoid"))(x),
        SIGMOID,
        (3,),
    ),
    "time distributed model": (_wrapped, SOFTMAX, (3,)),
    "regularised softmax": (
        lambda x, generator: layers.Dense(3, "softmax", activity_regularizer=keras.regularizers.L2(0.1))(x),
        SOFTMAX,
        (2, 3),
    ),
    "regularised sigmoid": (
        lambda x, generator: layers.Dense(2, "sigmoid", activity_regularizer=keras.regularizers.L1(0.1))(x),
        SIGMOID,
        (2, 3),
    ),
    "int8 softmax": (_quantized("softmax"), SOFTMAX, (2, 3)),
    "int8": (_quantized("linear"), LINEAR, (2,)),
    "simple rnn": (lambda x, generator: layers.SimpleRNN(3, activation="sigmoid")(x), UNKNOWN, (3,)),
    "lstm": (lambda x, generator: layers.LSTM(3, activation="softmax")(x), UNKNOWN, (3,)),
    "gru, all tokens": (
        lambda x, generator: layers.GRU(3, activation="softmax", return_sequences=True)(x),
        UNKNOWN,
        (3,),
    ),
    "own layer": (lambda x, generator: Scaled()(x), UNKNOWN, (2, 3)),
    "own softmax": (lambda x, generator: OwnSoftmax()(layers.Dense(3)(x)), UNKNOWN, (2, 3)),
    "own dense": (lambda x, generator: Subclass(3, activation="softmax")(x), UNKNOWN, (2, 3)),
    "nested": (_nested(), SOFTMAX, (2, 3)),
    "nested, frozen": (_nested("frozen"), SOFTMAX, (2, 3)),
    "nested, dropout": (_nested("dropout"), SOFTMAX, (2, 3)),
    "nested, read twice": (_nested_with_a_second_reader, SOFTMAX, (2, 3)),
}

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    HEADS |= {
        "tf.nn.softmax": (_dense(tf.nn.softmax), SOFTMAX, (2, 3, 4)),
        "tf.nn.sigmoid": (_dense(tf.nn.sigmoid), SIGMOID, (2, 3)),
        "lambda of tf.nn.softmax": (
            lambda x, generator: layers.Lambda(lambda z: tf.nn.softmax(z))(layers.Dense(3)(x)),
            SOFTMAX,
            (2, 3),
        ),
    }


# Trunks: (symbolic input, generator) -> features


def _vector(x: Any, generator: np.random.Generator) -> Any:
    hidden = layers.Dense(6, str(generator.choice(["relu", "tanh", "gelu"])))(x)
    if generator.random() < 0.4:
        hidden = layers.BatchNormalization()(hidden)
    if generator.random() < 0.4:
        hidden = layers.Dropout(0.4)(hidden)
    if generator.random() < 0.4:
        hidden = layers.Add()([hidden, layers.Dense(6, "tanh", kernel_regularizer=keras.regularizers.L2(0.01))(hidden)])
    if generator.random() < 0.3:
        hidden = layers.ActivityRegularization(l2=0.01)(hidden)
    return hidden


def _sequence(x: Any, generator: np.random.Generator) -> Any:
    if generator.random() < 0.8:
        return layers.Conv1D(5, 2, padding="same", activation="relu")(x)
    return layers.GRU(4, return_sequences=True)(x)


def _tokens(x: Any, generator: np.random.Generator) -> Any:
    embedded = layers.Embedding(7, 5, mask_zero=bool(generator.random() < 0.5))(x)
    return layers.Dense(5, "tanh")(embedded)


def _image(x: Any, generator: np.random.Generator) -> Any:
    return layers.Conv2D(4, 2, padding="same", activation="relu")(x)


_TRUNKS = {
    "vector": ((5,), "float32", _vector),
    "sequence": ((4, 5), "float32", _sequence),
    "tokens": ((4,), "int32", _tokens),
    "image": ((4, 5, 2), "float32", _image),
}


def draw(seed: int) -> Drawn:
    """The random model of a seed."""
    generator = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    kind = str(generator.choice(list(_TRUNKS), p=[0.5, 0.25, 0.15, 0.1]))
    shape, dtype, trunk = _TRUNKS[kind]
    names = ["first", "second"][: 2 if kind == "vector" and generator.random() < 0.25 else 1]
    inputs = [keras.Input(shape, dtype=dtype, name=f"{name}_{seed}") for name in names]
    features = _features(inputs, trunk, generator)
    rank = len(features.shape)
    able = [name for name, (_, _, ranks) in HEADS.items() if rank in ranks]
    if kind == "tokens":
        # Keras's Softmax takes a token's mask for one of classes, and refuses it.
        able = [name for name in able if "softmax layer" not in name and name != "softmax of softmax"]
    heads = [str(name) for name in generator.choice(able, 1 if generator.random() < 0.75 else 2)]
    outputs = [HEADS[name][0](features, generator) for name in heads]
    if len(heads) == 1 and generator.random() < 0.15 and len(outputs[0].shape) == rank:
        outputs, heads = _siamese(inputs, trunk, heads[0], generator)
    model = _assembled(inputs, outputs, generator, seed)
    arrays = [_batch(tensor, generator) for tensor in inputs]
    given = arrays[0] if len(arrays) == 1 else arrays
    if isinstance(getattr(model, "_inputs_struct", None), dict):
        given = dict(zip(model._inputs_struct, arrays, strict=True))
    return Drawn(model, given, tuple(HEADS[name][1] for name in heads), tuple(heads))


def _features(inputs: list[Any], trunk: Callable, generator: np.random.Generator) -> Any:
    """One trunk for each input, shared or not, nested or not."""
    is_nested, is_shared = generator.random() < 0.3, generator.random() < 0.5
    if is_nested or (is_shared and len(inputs) > 1):
        own = keras.Input(inputs[0].shape[1:], dtype=inputs[0].dtype)
        backbone = keras.Model(own, trunk(own, generator))
        options = {"training": False} if generator.random() < 0.3 else {}
        hidden = [backbone(tensor, **options) for tensor in inputs]
    else:
        hidden = [trunk(tensor, generator) for tensor in inputs]
    return hidden[0] if len(hidden) == 1 else layers.Concatenate()(hidden)


def _siamese(
    inputs: list[Any], trunk: Callable, head: str, generator: np.random.Generator
) -> tuple[list[Any], list[str]]:
    """One model of trunk and head, called twice on related inputs: two outputs, one set of weights."""
    own = [keras.Input(tensor.shape[1:], dtype=tensor.dtype) for tensor in inputs]
    shared = keras.Model(own, HEADS[head][0](_features(own, trunk, generator), generator))
    other = [ops.flip(tensor, axis=1) for tensor in inputs]
    return [shared(inputs), shared(other)], [head, head]


def _assembled(inputs: list[Any], outputs: list[Any], generator: np.random.Generator, seed: int) -> keras.Model:
    """The model of these tensors: plain, or the only layer of another; with lists or dicts of them."""
    name, structure, is_wrapped = f"model_{seed}", generator.random(), generator.random() < 0.15
    if len(inputs) == 1 and len(outputs) == 1 and is_wrapped and structure < 0.5:
        inner = keras.Model(inputs[0], outputs[0], name=name)
        return keras.Sequential([keras.Input(inputs[0].shape[1:], dtype=inputs[0].dtype), inner], name=f"{name}_outer")
    given: Any = inputs if len(inputs) > 1 else inputs[0]
    if len(inputs) > 1 and structure < 0.3:
        given = {tensor.name: tensor for tensor in inputs}
    returned: Any = outputs if len(outputs) > 1 else outputs[0]
    # Two outputs of one inner model have one name in a list.
    if len(outputs) > 1 and (structure > 0.6 or is_wrapped):
        returned = {"one": outputs[0], "two": outputs[1]}
    model = keras.Model(given, returned, name=name)
    if not is_wrapped:
        return model
    again = keras.tree.map_structure(
        lambda tensor: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name), given
    )
    return keras.Model(again, model(again), name=f"{name}_outer")


def _batch(tensor: Any, generator: np.random.Generator) -> np.ndarray:
    shape = (3, *tensor.shape[1:])
    if str(tensor.dtype).startswith("int"):
        return generator.integers(0, 7, shape).astype("int32")
    return generator.normal(size=shape).astype("float32")
