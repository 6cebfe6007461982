"""The paper's small nets, as plain functional Keras models. All of them end in logits.

Inputs are images with a channel axis (or any array, for `mlp`, which flattens it). Weights follow the
global seed: call `keras.utils.set_random_seed` first.
"""

from collections.abc import Sequence

import keras

from keras_distill._checks import check_count, error_message


def mlp(
    input_shape: Sequence[int],
    num_classes: int,
    widths: Sequence[int] = (800, 800),
    dropout: float = 0.0,
    *,
    input_dropout: float = 0.0,
    max_norm: float | None = None,
    name: str = "mlp",
) -> keras.Model:
    """Fully connected rectified layers: the paper's MNIST student (2 × 800) and teacher (2 × 1200, dropout 0.5).

    Args:
        input_shape: shape of one example; it is flattened.
        num_classes: width of the logits.
        widths: units of each hidden layer.
        dropout: share of each hidden layer's outputs that training drops.
        input_dropout: share of the inputs that training drops; the paper's teacher has 0.2.
        max_norm: bound on the norm of each hidden unit's incoming weights; `None` leaves them free.
        name: the model's name.

    Returns:
        A model from `(batch, *input_shape)` to logits `(batch, num_classes)`.

    Example:
        >>> mlp((28, 28, 1), 10, (800, 800)).count_params()
        1276810

    Reference:
        Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, section 3.
    """
    inputs = _inputs(input_shape)
    hidden = keras.layers.Flatten()(inputs)
    if input_dropout:
        hidden = keras.layers.Dropout(input_dropout)(hidden)
    for width in widths:
        constraint = keras.constraints.MaxNorm(max_norm) if max_norm else None
        hidden = keras.layers.Dense(
            width, activation="relu", kernel_initializer="he_normal", kernel_constraint=constraint
        )(hidden)
        if dropout:
            hidden = keras.layers.Dropout(dropout)(hidden)
    return keras.Model(inputs, _logits(hidden, num_classes), name=name)


def convnet(
    input_shape: Sequence[int],
    num_classes: int,
    widths: Sequence[int] = (32, 64),
    dropout: float = 0.0,
    *,
    dense_width: int = 128,
    name: str = "convnet",
) -> keras.Model:
    """A small ConvNet: for each width a 3 × 3 convolution of stride 2, BatchNorm and ReLU, then one dense layer.

    The strides take the place of pooling: on a CPU an epoch costs a quarter of what pooling makes of it.

    Args:
        input_shape: `(height, width, channels)`.
        num_classes: width of the logits.
        widths: filters of each block.
        dropout: share of the dense layer's inputs and outputs that training drops.
        dense_width: units of the dense layer.
        name: the model's name.

    Returns:
        A model from `(batch, *input_shape)` to logits `(batch, num_classes)`.

    Example:
        >>> convnet((28, 28, 1), 10).output_shape
        (None, 10)
    """
    inputs = hidden = _images(input_shape)
    for width in widths:
        hidden = keras.layers.Conv2D(
            width, 3, strides=2, padding="same", use_bias=False, kernel_initializer="he_normal"
        )(hidden)
        hidden = _normalized_relu(hidden)
    hidden = keras.layers.Flatten()(hidden)
    if dropout:
        hidden = keras.layers.Dropout(dropout)(hidden)
    hidden = keras.layers.Dense(dense_width, activation="relu", kernel_initializer="he_normal")(hidden)
    if dropout:
        hidden = keras.layers.Dropout(dropout)(hidden)
    return keras.Model(inputs, _logits(hidden, num_classes), name=name)


def separable_convnet(
    input_shape: Sequence[int],
    num_classes: int,
    widths: Sequence[int] = (32, 64, 128),
    dropout: float = 0.0,
    *,
    name: str = "separable_convnet",
) -> keras.Model:
    """A small depthwise-separable ConvNet, in the manner of MobileNet: few weights, meant for phones.

    A 3 × 3 convolution of the first width, then for each further one a depthwise 3 × 3 of stride 2 and a
    1 × 1 convolution, BatchNorm and ReLU after each; global average pooling.

    Args:
        input_shape: `(height, width, channels)`.
        num_classes: width of the logits.
        widths: filters of each stage.
        dropout: share of the pooled features that training drops.
        name: the model's name.

    Returns:
        A model from `(batch, *input_shape)` to logits `(batch, num_classes)`.

    Example:
        >>> separable_convnet((28, 28, 1), 10).count_params()
        13962

    Reference:
        Howard et al., MobileNets, 2017, section 3.
    """
    inputs = hidden = _images(input_shape)
    hidden = keras.layers.Conv2D(widths[0], 3, padding="same", use_bias=False)(hidden)
    hidden = _normalized_relu(hidden)
    for width in widths[1:]:
        hidden = keras.layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False)(hidden)
        hidden = _normalized_relu(hidden)
        hidden = keras.layers.Conv2D(width, 1, use_bias=False)(hidden)
        hidden = _normalized_relu(hidden)
    hidden = keras.layers.GlobalAveragePooling2D()(hidden)
    if dropout:
        hidden = keras.layers.Dropout(dropout)(hidden)
    return keras.Model(inputs, _logits(hidden, num_classes), name=name)


def _inputs(input_shape: Sequence[int]) -> keras.KerasTensor:
    return keras.Input(tuple(input_shape), name="inputs")


def _images(input_shape: Sequence[int]) -> keras.KerasTensor:
    if len(tuple(input_shape)) != 3:
        raise ValueError(
            error_message("input_shape must be (height, width, channels)", tuple(input_shape), "Use mlp instead.")
        )
    return _inputs(input_shape)


def _logits(hidden: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    # float32 also under a mixed policy: losses and exports want full logits.
    return keras.layers.Dense(check_count("num_classes", num_classes, 2), dtype="float32", name="logits")(hidden)


def _normalized_relu(hidden: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.ReLU()(keras.layers.BatchNormalization()(hidden))
