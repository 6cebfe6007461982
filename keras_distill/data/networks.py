"""The paper's small nets, and two for text, as plain functional Keras models. All of them end in logits.

Inputs are images with a channel axis (or any array, for `mlp`, which flattens it), or token ids where 0 is padding.
Weights follow the global seed: call `keras.utils.set_random_seed` first.
"""

from collections.abc import Sequence

import keras
from keras import ops

from keras_distill._checks import check_count, error_message

# A prime: neighbouring ids on the left do not fall into neighbouring rows.
_PAIR_FACTOR = 7919


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


def text_bag(
    length: int,
    vocabulary_size: int,
    num_classes: int,
    width: int = 32,
    dropout: float = 0.0,
    *,
    hidden_width: int = 128,
    word_dropout: float = 0.1,
    num_pairs: int = 0,
    name: str = "text_bag",
) -> keras.Model:
    """A sentence as the mean of its tokens' vectors, then one hidden layer: made for microseconds.

    A call reads `length` rows of a table and multiplies two small matrices. On Banking77 it answers as well as the
    sentence encoder that taught it (`examples/banking77.py`), most of all thanks to `word_dropout`. Order is lost;
    where it matters ("not paid"), `num_pairs` adds vectors for pairs of neighbours, hashed, so that they need no list.

    Args:
        length: tokens of one example; shorter ones are padded with zeros, which count for nothing.
        vocabulary_size: how many token ids there are, 0 among them.
        num_classes: width of the logits.
        width: size of a token's vector.
        dropout: share of the hidden layer's outputs that training drops.
        hidden_width: units of the hidden layer.
        word_dropout: share of the tokens that training leaves out of the mean.
        num_pairs: rows for pairs of neighbouring tokens; 0 for none.
        name: the model's name.

    Returns:
        A model from int32 token ids `(batch, length)` to logits `(batch, num_classes)`.

    Raises:
        ValueError: a count below its least; pairs of so large a vocabulary that they overflow int32.

    Example:
        >>> text_bag(48, 4000, 77).count_params()
        142157

    Reference:
        Iyyer, Manjunatha, Boyd-Graber, Daumé, Deep Unordered Composition Rivals Syntactic Methods for Text
        Classification, 2015; Joulin, Grave, Bojanowski, Mikolov, Bag of Tricks for Efficient Text Classification, 2016.
    """
    tokens = units = _tokens(length, vocabulary_size)
    num_pairs = check_count("num_pairs", num_pairs, 0)
    if num_pairs:
        check_count("length", length, 2, "A pair needs two; num_pairs=0 leaves pairs out.")
        most = (2**31 - 1) // (_PAIR_FACTOR + 1)
        if vocabulary_size > most:
            expectation = f"vocabulary_size must be <= {most} where pairs are hashed in int32"
            raise ValueError(error_message(expectation, vocabulary_size, "num_pairs=0 leaves pairs out."))
        left, right = tokens[:, :-1], tokens[:, 1:]
        rows = ops.mod(left * _PAIR_FACTOR + right, num_pairs) + vocabulary_size
        # Padding comes last, so a pair is whole where its second token is one.
        pairs = rows * ops.cast(ops.not_equal(right, 0), "int32")
        units = ops.concatenate([tokens, pairs], axis=1)
    vectors = keras.layers.Embedding(vocabulary_size + num_pairs, width, name="vectors")(units)
    present = _present(units)
    if word_dropout:
        # What is left grows by 1 / (1 - rate), in the sum and in the count alike: it stays a mean.
        present = keras.layers.Dropout(word_dropout)(present)
    mean = ops.sum(vectors * present, axis=1) / ops.maximum(ops.sum(present, axis=1), 1.0)
    hidden = keras.layers.Dense(hidden_width, activation="relu", kernel_initializer="he_normal")(mean)
    if dropout:
        hidden = keras.layers.Dropout(dropout)(hidden)
    return keras.Model(tokens, _logits(hidden, num_classes), name=name)


def text_conv(
    length: int,
    vocabulary_size: int,
    num_classes: int,
    width: int = 32,
    dropout: float = 0.0,
    *,
    num_filters: int = 128,
    kernel_size: int = 3,
    word_dropout: float = 0.1,
    name: str = "text_conv",
) -> keras.Model:
    """Token vectors, one convolution over neighbours, the largest answer of each filter over the sentence, logits.

    It sees the order of `kernel_size` tokens with no table of pairs, for more arithmetic a call than `text_bag`.

    Args:
        length: tokens of one example; shorter ones are padded with zeros, which count for nothing.
        vocabulary_size: how many token ids there are, 0 among them.
        num_classes: width of the logits.
        width: size of a token's vector.
        dropout: share of the pooled features that training drops.
        num_filters: of the convolution.
        kernel_size: tokens that a filter sees.
        word_dropout: share of the tokens whose vectors training sets to zero.
        name: the model's name.

    Returns:
        A model from int32 token ids `(batch, length)` to logits `(batch, num_classes)`.

    Raises:
        ValueError: a count below its least.

    Example:
        >>> text_conv(48, 4000, 77).count_params()
        150349

    Reference:
        Kim, Convolutional Neural Networks for Sentence Classification, 2014, section 2.
    """
    tokens = _tokens(length, vocabulary_size)
    present = _present(tokens)
    kept = keras.layers.Dropout(word_dropout)(present) if word_dropout else present
    vectors = keras.layers.Embedding(vocabulary_size, width, name="vectors")(tokens) * kept
    found = keras.layers.Conv1D(num_filters, kernel_size, padding="same", activation="relu")(vectors)
    # ReLU leaves nothing below zero: a place of padding, set to zero, is never larger than a token's.
    hidden = keras.layers.GlobalMaxPooling1D()(found * present)
    if dropout:
        hidden = keras.layers.Dropout(dropout)(hidden)
    return keras.Model(tokens, _logits(hidden, num_classes), name=name)


def _tokens(length: int, vocabulary_size: int) -> keras.KerasTensor:
    check_count("vocabulary_size", vocabulary_size, 2, "Id 0 is padding.")
    return keras.Input((check_count("length", length),), dtype="int32", name="inputs")


def _present(tokens: keras.KerasTensor) -> keras.KerasTensor:
    """1 where there is a token and 0 at padding, `(batch, length, 1)`: arithmetic, since masks do not export."""
    return ops.expand_dims(ops.cast(ops.not_equal(tokens, 0), "float32"), axis=-1)


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
