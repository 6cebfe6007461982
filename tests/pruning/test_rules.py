"""Each kind of layer, cut, against the teacher in which what reads the dropped channels is zero."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_distill.pruning import channel_groups, prune
from tests.pruning.test_prune import assert_exact, random_scores


def scattered(model, seed=0):
    """All weights at random, biases and statistics too."""
    generator = np.random.default_rng(seed)
    values = [generator.normal(0.0, 0.4, weight.shape) for weight in model.weights]
    is_spread = ["variance" in weight.path or "gamma" in weight.path for weight in model.weights]
    model.set_weights([abs(value) + 0.5 if spread else value for value, spread in zip(values, is_spread, strict=True)])
    return model


def batch_for(model, seed=1):
    generator = np.random.default_rng(seed)
    arrays = [
        generator.integers(0, 7, (3, *tensor.shape[1:])).astype("int32")
        if tensor.dtype == "int32"
        else generator.normal(size=(3, *tensor.shape[1:])).astype(tensor.dtype)
        for tensor in model.inputs
    ]
    return arrays if len(arrays) > 1 else arrays[0]


def cut(model, keep=0.5, seed=2):
    """The model pruned by random scores, after the comparison."""
    scattered(model)
    groups = channel_groups(model)
    return assert_exact(model, batch_for(model), groups, keep, random_scores(groups, seed)), groups


def sizes(groups):
    return {group.name: group.size for group in groups.groups.values() if group.is_free}


def network(shape, *parts, dtype="float32", head=True):
    inputs = x = keras.Input(shape, dtype=dtype, name="x")
    for part in parts:
        x = part(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x) if head else x)


IMAGE, SEQUENCE = (6, 6, 3), (5, 4)


@pytest.mark.parametrize(
    ("shape", "parts", "expected"),
    [
        # Grouped: place i of all groups is one unit; 12 = 3 groups of 4 and 6 = 3 groups of 2.
        (IMAGE, [layers.Conv2D(12, 1, name="a"), layers.Conv2D(6, 3, groups=3, name="b")], {"a": 4, "b": 2}),
        # A group a channel is a depthwise convolution, with two outputs a channel.
        (IMAGE, [layers.Conv2D(8, 1, name="a"), layers.Conv2D(16, 3, groups=8)], {"a": 8}),
        (IMAGE, [layers.Conv2D(8, 1, name="a"), layers.DepthwiseConv2D(3, depth_multiplier=2)], {"a": 8}),
        (IMAGE, [layers.SeparableConv2D(8, 3, name="a"), layers.Conv2DTranspose(4, 2, name="b")], {"a": 8, "b": 4}),
        (IMAGE, [layers.Conv2D(12, 1, name="a"), layers.GroupNormalization(4)], {"a": 4}),
        (IMAGE, [layers.Conv2D(12, 1, name="a"), layers.GroupNormalization(12)], {"a": 12}),
        (IMAGE, [layers.Conv2D(4, 1, name="a"), layers.Permute((2, 1, 3)), layers.Flatten()], {"a": 4}),
        (IMAGE, [layers.Conv2D(4, 1, name="a"), layers.Reshape((6, -1, 4))], {"a": 4}),
        (IMAGE, [layers.Conv2D(4, 1, name="a"), layers.Reshape((6, 24))], {"a": 4}),
        (SEQUENCE, [layers.EinsumDense("abc,cd->abd", (None, 6), bias_axes="d", name="a")], {"a": 6}),
        (SEQUENCE, [layers.SimpleRNN(6, name="a")], {"a": 6}),
        (SEQUENCE, [layers.LSTM(6, return_sequences=True, name="a"), layers.LSTM(4, name="b")], {"a": 6, "b": 4}),
        (SEQUENCE, [layers.GRU(6, name="a")], {"a": 6}),
        (SEQUENCE, [layers.GRU(6, reset_after=False, use_bias=False, name="a")], {"a": 6}),
        (SEQUENCE, [layers.Bidirectional(layers.LSTM(6), name="a")], {"a": 6}),
        (SEQUENCE, [layers.Bidirectional(layers.GRU(6), merge_mode="sum", name="a")], {"a": 6}),
        (SEQUENCE, [layers.TimeDistributed(layers.Dense(6, "relu"), name="a")], {"a": 6}),
        (SEQUENCE, [layers.Dense(6, name="a"), layers.TimeDistributed(layers.BatchNormalization())], {"a": 6}),
        (SEQUENCE, [layers.Dense(6, name="a"), layers.Softmax(axis=1)], {"a": 6}),
        # What a softmax over channels, or a layer that normalises them, is given stays; what is before is free.
        (SEQUENCE, [layers.Dense(6, name="a"), layers.Dense(4, "softmax")], {"a": 6}),
        (SEQUENCE, [layers.Dense(6, name="a"), layers.Dense(4), layers.LayerNormalization()], {"a": 6}),
        (SEQUENCE, [layers.Dense(6, name="a"), lambda x: ops.relu(2.0 * x) - 1.0], {"a": 6}),
        (SEQUENCE, [layers.Dense(6, name="a"), lambda x: ops.mean(x, axis=1, keepdims=True) * x], {"a": 6}),
        (SEQUENCE, [layers.Dense(6, name="a"), lambda x: x[:, -1]], {"a": 6}),
        (SEQUENCE, [layers.Dense(6, name="a"), lambda x: x[..., 1:3]], {}),
        (SEQUENCE, [layers.Dense(6, name="a"), lambda x: x + np.arange(6, dtype="float32")], {}),
    ],
)
def test_a_layer_is_cut_exactly(shape, parts, expected):
    model = network(shape, *parts)
    pruned, groups = cut(model)
    assert sizes(groups) == expected
    assert (pruned.count_params() < model.count_params()) == bool(expected)


@pytest.mark.parametrize(
    "attention",
    [
        lambda x: layers.MultiHeadAttention(4, 3, name="attention")(x, x),
        lambda x: layers.MultiHeadAttention(4, 3, value_dim=2, output_shape=5, name="attention")(
            x, x, use_causal_mask=True
        ),
        lambda x: layers.MultiHeadAttention(4, 3, use_bias=False, name="attention")(
            x, x, attention_mask=ops.greater(x[:, :, :1], -9.0)
        ),
        lambda x: layers.GroupQueryAttention(3, 8, 4, name="attention")(x, x),
    ],
)
def test_heads_are_cut_whole(attention):
    pruned, groups = cut(network(SEQUENCE, layers.Dense(6, name="a"), attention))
    assert sizes(groups)["attention/heads"] == 4
    layer = pruned.get_layer("attention")
    assert getattr(layer, "num_heads", None) == 2 or layer.num_query_heads == 4


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
@pytest.mark.parametrize("kind", ["plain", "grouped"])
def test_a_mask_is_known_by_its_name_whatever_its_numbers(kind, dtype):
    # As many tokens as channels: a mask is as wide as a key would be.
    inputs, mask = keras.Input((6, 4), name="x"), keras.Input((6, 6), dtype=dtype, name="mask")
    layer = layers.MultiHeadAttention(4, 3, name="attention")
    if kind == "grouped":
        layer = layers.GroupQueryAttention(3, 8, 4, name="attention")
    x = layers.Dense(6, name="a")(inputs)
    model = keras.Model([inputs, mask], layers.Dense(3)(layer(x, x, attention_mask=mask)))
    groups = channel_groups(model)
    assert (groups.kept_whole, sizes(groups)["attention/heads"]) == ([], 4)
    before = model.get_weights()
    generator = np.random.default_rng(0)
    batch = [generator.normal(size=(3, 6, 4)).astype("float32"), (generator.random((3, 6, 6)) < 0.7).astype(dtype)]
    pruned = assert_exact(model, batch, groups, 0.5, random_scores(groups, 1))
    assert pruned.get_layer("a").units == 3
    assert sum(weight.size for weight in before) > pruned.count_params()


def test_query_value_and_key_are_known_by_their_names():
    # By name they come in the order of the alphabet: key, query, value.
    inputs = keras.Input((5, 4))
    parts = {name: layers.Dense(width, name=f"to_{name}")(inputs) for name, width in WIDTHS.items()}
    attention = layers.MultiHeadAttention(4, 3, name="attention")
    pruned, groups = cut(keras.Model(inputs, layers.Dense(3)(attention(**parts))))
    assert groups.kept_whole == []
    assert {name: pruned.get_layer(f"to_{name}").units for name in WIDTHS} == {"query": 3, "value": 4, "key": 5}


WIDTHS = {"query": 6, "value": 8, "key": 10}


def test_what_attention_reads_is_free_of_what_it_makes():
    attention = layers.MultiHeadAttention(4, 3, name="attention")
    _, groups = cut(
        network(SEQUENCE, layers.Dense(6, name="a"), lambda x: attention(x, x), layers.LayerNormalization())
    )
    assert sizes(groups) == {"a": 6, "attention/heads": 4}


def transformer_block(x, name):
    y = layers.LayerNormalization(name=f"{name}_norm")(x)
    x = x + layers.MultiHeadAttention(2, 4, name=f"{name}_attention")(y, y)
    y = layers.Dense(12, "gelu", name=f"{name}_wide")(layers.LayerNormalization()(x))
    return x + layers.Dense(8)(y)


def test_a_transformer_keeps_its_stream_and_loses_heads_and_feed_forward_width():
    tokens = keras.Input((5,), dtype="int32")
    x = transformer_block(transformer_block(layers.Embedding(7, 8, name="table")(tokens), "one"), "two")
    pruned, groups = cut(keras.Model(tokens, layers.Dense(3)(x[:, 0])))
    assert sizes(groups) == {"one_attention/heads": 2, "one_wide": 12, "two_attention/heads": 2, "two_wide": 12}
    assert "one_norm" in groups.kept_whole
    assert pruned.get_layer("two_wide").units == 6


def test_a_tied_embedding_is_cut_once():
    tokens = keras.Input((5,), dtype="int32")
    table = layers.ReversibleEmbedding(7, 8, name="table")
    x = layers.BatchNormalization()(table(tokens))
    pruned, groups = cut(keras.Model(tokens, table(x, reverse=True)))
    assert sizes(groups) == {"table": 8}
    assert pruned.get_layer("table").embeddings.shape == (7, 4)


def test_an_encoders_states_are_as_wide_as_its_decoder():
    source, target = keras.Input((5, 4)), keras.Input((3, 4))
    _, *states = layers.LSTM(6, return_state=True, name="encoder")(source)
    decoded = layers.LSTM(6, return_sequences=True, name="decoder")(target, initial_state=states)
    pruned, groups = cut(keras.Model([source, target], layers.Dense(3)(decoded)))
    assert sizes(groups) == {"encoder": 6}
    assert pruned.get_layer("encoder").units == pruned.get_layer("decoder").units == 3


def test_channels_flow_through_a_model_that_is_called_twice():
    own = keras.Input((8,), name="own")
    inner = keras.Model(own, layers.Dense(10, name="deep")(layers.Dense(6, "relu", name="hidden")(own)), name="inner")
    inputs = keras.Input((4,))
    first, second = layers.Dense(8, name="first")(inputs), layers.Dense(8, name="second")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Concatenate()([inner(first), inner(second)])))
    pruned, groups = cut(model)
    assert sorted(sizes(groups).values()) == [6, 8, 10]
    assert pruned.get_layer("inner").input_shape == (None, 4)
    assert pruned.get_layer("second").units == 4


def test_a_shared_layer_ties_whatever_it_is_given():
    inputs, shared = keras.Input((4,)), layers.Dense(6, "relu", name="shared")
    first, second = layers.Dense(8, name="first")(inputs), layers.Dense(8, name="second")(inputs)
    _, groups = cut(keras.Model(inputs, [layers.Dense(3)(shared(first)), layers.Dense(2)(shared(second))]))
    assert sorted(sizes(groups).values()) == [6, 8]


def test_several_inputs_are_fixed_and_what_is_between_is_free():
    one, other = keras.Input((4,), name="one"), keras.Input((6, 6, 3), name="other")
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, name="conv")(other))
    x = layers.Concatenate()([one, pooled, layers.Dense(6, name="dense")(one)])
    pruned, groups = cut(keras.Model([one, other], [layers.Dense(3)(x), layers.Dense(2, "softmax")(pooled)]))
    assert sizes(groups) == {"conv": 8, "dense": 6}
    assert [tensor.shape[-1] for tensor in pruned.inputs] == [4, 3]


def test_squeeze_and_excitation_is_cut_with_what_it_scales():
    def excite(x):
        y = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(x))
        y = layers.Conv2D(8, 1, activation="sigmoid", name="expand")(layers.Conv2D(2, 1, name="reduce")(y))
        return layers.Multiply()([x, y])

    _, groups = cut(network(IMAGE, layers.Conv2D(8, 3, name="a"), excite))
    assert sizes(groups) == {"a": 8, "reduce": 2}


def test_an_activation_is_known_by_what_it_does():
    own = keras.saving.register_keras_serializable("tests")(_spread)
    pruned, _ = cut(network((4,), layers.Dense(6, activation=own, name="a")))
    assert pruned.get_layer("a").units == 3
    mixing = keras.saving.register_keras_serializable("tests")(_softmax_by_hand)
    pruned, _ = cut(network((4,), layers.Dense(6, activation=mixing, name="a")))
    assert pruned.get_layer("a").units == 6


def _spread(x):
    return ops.sinh(x) + 0.1


def _softmax_by_hand(x):
    return ops.exp(x) / ops.sum(ops.exp(x), axis=-1, keepdims=True)


def test_the_printed_groups_have_their_shares():
    model = network((4,), layers.Dense(8, name="hidden"))
    # 4 · 8 + 8 + 8 · 3 + 3 = 67 parameters, 32 + 24 multiply-adds.
    groups = channel_groups(model)
    assert groups.shares() == {"x": (32 / 67, 32 / 56), "hidden": (64 / 67, 1.0), "logits": (27 / 67, 24 / 56)}
    assert "hidden: 8 channels; 95.5% of the parameters, 100.0% of the multiply-adds (hidden, logits)" in str(groups)


def test_shares_of_multiply_adds_are_left_out_where_a_length_is_unknown():
    assert "of the parameters (a, logits)" in str(channel_groups(network((None, 4), layers.Dense(6, name="a"))))


def test_a_cut_transformer_is_saved_and_loaded(tmp_path):
    pruned = prune(network(SEQUENCE, lambda x: layers.MultiHeadAttention(4, 3)(x, x), layers.LSTM(6)), 0.5)
    pruned.save(tmp_path / "student.keras")
    again, inputs = keras.models.load_model(tmp_path / "student.keras"), batch_for(pruned)
    np.testing.assert_array_equal(again(inputs), pruned(inputs))
