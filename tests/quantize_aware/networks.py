"""Small networks that have every layer the integer runtimes know, with BatchNorm statistics that are not trivial."""

import keras
import numpy as np
from keras import layers


def image_network(num_classes=5, head=None):
    """Convolutions of every kind, a residual, a concatenation, pooling, hard-swish."""
    inputs = keras.Input((12, 12, 2), name="inputs")
    hidden = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(inputs)
    hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    hidden = layers.DepthwiseConv2D(3, strides=2, padding="same", name="depthwise")(hidden)
    hidden = layers.ReLU(6.0)(layers.BatchNormalization()(hidden))
    hidden = layers.Activation("hard_silu")(layers.BatchNormalization()(layers.Conv2D(8, 1, name="wide")(hidden)))
    hidden = trunk = layers.MaxPooling2D(padding="same")(hidden)
    hidden = layers.SeparableConv2D(8, 3, padding="same", activation="relu", name="separable")(hidden)
    hidden = layers.ReLU()(layers.Add(name="residual")([trunk, hidden]))
    side = layers.Conv2D(4, 3, padding="same", activation="relu", name="side")(hidden)
    hidden = layers.Concatenate()([hidden, side])
    hidden = layers.AveragePooling2D(2)(hidden)
    hidden = layers.Dropout(0.1)(layers.Flatten()(hidden))
    hidden = layers.ReLU()(layers.BatchNormalization()(layers.Dense(16, name="dense")(hidden)))
    return lively(keras.Model(inputs, layers.Dense(num_classes, activation=head, name="logits")(hidden)))


def sequence_network(num_classes=5):
    """One-dimensional convolutions, strided, causal and plain."""
    inputs = keras.Input((20, 4), name="inputs")
    hidden = layers.Conv1D(8, 3, padding="same", strides=2, name="strided")(inputs)
    hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    hidden = layers.MaxPooling1D()(layers.Conv1D(8, 3, padding="causal", activation="relu", name="causal")(hidden))
    hidden = layers.GlobalAveragePooling1D()(layers.Conv1D(8, 2, name="plain")(hidden))
    return lively(keras.Model(inputs, layers.Dense(num_classes, name="logits")(hidden)))


def lively(model, seed=0):
    """`model` with statistics, factors and biases as training would leave them."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.path.endswith(("beta", "moving_mean", "bias")):
            variable.assign(generator.normal(size=variable.shape) * 0.3)
        elif variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(generator.uniform(0.5, 2.0, size=variable.shape))
    return model


def examples_for(model, num_items=256, seed=1):
    """Random inputs, float32."""
    shape = (num_items, *model.input_shape[1:])
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


def random_network(seed):
    """Layers that quantisation keeps in integers, in an order that nobody chose."""
    draw = np.random.default_rng(seed)
    is_image = draw.random() < 0.75
    inputs = keras.Input((10, 10, 3) if is_image else (24, 4), name="inputs")

    def of(image, sequence):
        return image if is_image else sequence

    def convolved(hidden, filters=None):
        filters = filters or int(draw.choice([4, 8]))
        activation, size = str(draw.choice(["linear", "relu", "relu6", "hard_silu"])), int(draw.integers(1, 4))
        kind = str(draw.choice(["plain", "plain", "depthwise", "separable"])) if is_image else "plain"
        if kind == "depthwise":
            layer = layers.DepthwiseConv2D(size, padding="same", activation=activation)
        elif kind == "separable":
            layer = layers.SeparableConv2D(filters, size, padding="same", activation=activation)
        elif is_image:
            layer = layers.Conv2D(filters, size, padding="same", activation=activation)
        else:
            padding = str(draw.choice(["same", "causal"]))
            layer = layers.Conv1D(filters, size, padding=padding, activation=activation)
        hidden = layer(hidden)
        after = [[], [layers.ReLU()], [layers.ReLU(6.0)], [layers.Activation("hard_silu")]]
        # BatchNorm is folded where nothing stands before it.
        after += [[layers.BatchNormalization(), layers.ReLU()]] if activation == "linear" else []
        for layer in after[draw.integers(len(after))]:
            hidden = layer(hidden)
        return hidden

    def joined(hidden):
        first = convolved(hidden)
        same = of(layers.Conv2D, layers.Conv1D)(first.shape[-1], 1)
        return layers.Add()([first, same(hidden)])

    steps = [
        lambda hidden: layers.Concatenate()([convolved(hidden), convolved(hidden)]),
        lambda hidden: layers.Concatenate()([hidden, convolved(hidden)]),
        joined,
        lambda hidden: of(layers.ZeroPadding2D, layers.ZeroPadding1D)(1)(hidden),
        lambda hidden: of(layers.MaxPooling2D, layers.MaxPooling1D)(2, padding="same")(hidden),
        lambda hidden: of(layers.AveragePooling2D, layers.AveragePooling1D)(2, padding="same")(hidden),
        lambda hidden: layers.Dropout(0.2)(hidden),
    ]
    hidden = convolved(inputs)
    for step in draw.choice(len(steps), 4, replace=False):
        hidden = steps[step](hidden)
        hidden = convolved(hidden) if draw.random() < 0.6 else hidden
    mean = of(layers.GlobalAveragePooling2D, layers.GlobalAveragePooling1D)
    hidden = mean()(hidden) if draw.random() < 0.5 else layers.Flatten()(hidden)
    return lively(keras.Model(inputs, layers.Dense(4, name="logits")(hidden)), seed)
