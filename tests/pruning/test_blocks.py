"""Blocks that go, against the same network built without them; and smaller inputs."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.pruning import prune, residual_blocks


def residual_network(names=("one", "two", "three"), size=8, pooling=True):
    """A stem, residual blocks and a head; the same seed gives each layer of a name the same weights."""

    def named(kind, name, *arguments, **options):
        seed = sum(map(ord, name))
        return kind(*arguments, name=name, kernel_initializer=keras.initializers.HeNormal(seed), **options)

    inputs = keras.Input((size, size, 2))
    x = named(layers.Conv2D, "stem", 4, 3, padding="same")(inputs)
    for name in names:
        branch = named(layers.Conv2D, f"{name}_conv", 4, 3, padding="same", activation="relu")(x)
        x = layers.Add(name=name)([branch, x])
    x = layers.GlobalAveragePooling2D()(x) if pooling else layers.Flatten()(x)
    return keras.Model(inputs, named(layers.Dense, "logits", 3)(x), name="net")


def images(size=8):
    return np.random.default_rng(0).normal(size=(3, size, size, 2)).astype("float32")


@pytest.mark.parametrize(
    ("drop", "left"), [("every second", ("one", "three")), (["one", "three"], ("two",)), ("two", ("one", "three"))]
)
def test_what_is_left_is_the_network_without_the_block(drop, left):
    teacher, expected = residual_network(), residual_network(left)
    before = teacher.get_weights()
    student = prune(teacher, drop_blocks=drop)
    np.testing.assert_array_equal(student(images()), expected(images()))
    assert student.count_params() == expected.count_params()
    assert not {layer.name for layer in student.layers} & {
        f"{name}_conv" for name in {"one", "two", "three"} - set(left)
    }
    for was, is_now in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(was, is_now)
    np.testing.assert_array_equal(teacher(images()), residual_network()(images()))


def test_channels_and_blocks_go_together_and_share_nothing_with_the_teacher(tmp_path):
    teacher = residual_network()
    student = prune(teacher, {"stem": [1, 2]}, drop_blocks="two")
    expected = prune(residual_network(("one", "three")), {"stem": [1, 2]})
    np.testing.assert_array_equal(student(images()), expected(images()))
    student.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(again(images()), student(images()))
    before = teacher.get_weights()
    student.set_weights([np.zeros_like(value) for value in student.get_weights()])
    for was, is_now in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(was, is_now)


def test_blocks_of_nested_models_are_named_by_their_path():
    inner = residual_network()
    inputs = keras.Input((8, 8, 2))
    teacher = keras.Model(inputs, layers.Dense(2)(inner(inputs)))
    assert [block.name for block in residual_blocks(teacher)] == ["net/one", "net/two", "net/three"]
    student = prune(teacher, drop_blocks=["net/two"])
    assert student.count_params() == teacher.count_params() - inner.get_layer("two_conv").count_params()


def test_projections_sums_around_sums_and_embeddings_of_positions_are_no_blocks():
    class PositionEmbedding(layers.Layer):
        def build(self, shape):
            self.positions = self.add_weight(shape=shape[1:])

        def call(self, x):
            return keras.ops.broadcast_to(self.positions, keras.ops.shape(x))

    inputs = keras.Input((5, 4))
    x = layers.Add(name="positions")([inputs, PositionEmbedding()(inputs)])
    inner = layers.Add(name="inner")([x, layers.Dense(4)(x)])
    outer = layers.Add(name="outer")([x, layers.Dense(4)(inner)])
    y = layers.Add(name="projected")([layers.Dense(6)(outer), layers.Dense(6)(layers.Dense(7)(outer))])
    plus = y + layers.Dense(6)(y)
    model = keras.Model(inputs, layers.Dense(2)(plus))
    names = [block.name for block in residual_blocks(model)]
    assert names[0] == "inner"
    assert len(names) == 2
    assert names[1].startswith("add")


@keras.saving.register_keras_serializable("tests")
class Encoder(layers.Layer):
    """A transformer layer as KerasHub's is one: several layers, the shape stays."""

    def build(self, shape):
        self.attention = layers.MultiHeadAttention(2, 4)
        self.attention.build(shape, shape)
        self.forward = layers.Dense(shape[-1], "relu")
        self.forward.build(shape)
        super().build(shape)

    def call(self, x, training=None):
        x = x + self.attention(x, x)
        return x + self.forward(x)


def test_transformer_layers_go_by_name_or_every_second():
    model = keras.Sequential([keras.Input((6, 8)), *(Encoder(name=f"layer_{n}") for n in range(4)), layers.Dense(2)])
    model.build()
    blocks = residual_blocks(model)
    assert [block.name for block in blocks] == [f"layer_{n}" for n in range(4)]
    student = prune(model, drop_blocks="every second")
    assert [layer.name for layer in student.layers if isinstance(layer, Encoder)] == ["layer_0", "layer_2"]
    x = np.random.default_rng(0).normal(size=(2, 6, 8)).astype("float32")
    expected = model.layers[4](model.layers[2](model.layers[0](x)))
    np.testing.assert_allclose(student(x), expected, rtol=1e-6, atol=1e-6)


def test_transformer_layers_of_keras_hub_go_with_their_masks():
    hub = pytest.importorskip("keras_hub")
    sizes = {"vocabulary_size": 50, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16, "max_sequence_length": 12}
    teacher, expected = (hub.models.BertBackbone(num_layers=number, **sizes) for number in (4, 2))
    student = prune(teacher, drop_blocks="every second")
    names = [block.name for block in residual_blocks(teacher)]
    assert names == [f"transformer_layer_{number}" for number in range(4)]
    expected.set_weights(student.get_weights())
    ids = np.random.default_rng(0).integers(1, 50, (2, 7))
    inputs = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": np.tile(np.arange(7) < 5, (2, 1))}
    for ours, theirs in zip(*(keras.tree.flatten(each(inputs)) for each in (student, expected)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_second_is_of_those_that_are_alike():
    """Attention and feed-forward as sums of their own: of each the second goes, and never all of one kind."""
    inputs = x = keras.Input((6, 8))
    for number in range(2):
        x = layers.Add(name=f"attention_{number}")([x, layers.MultiHeadAttention(2, 4)(x, x)])
        x = layers.Add(name=f"forward_{number}")([x, layers.Dense(8, "relu")(x)])
    student = prune(keras.Model(inputs, layers.Dense(2)(x)), drop_blocks="every second")
    assert [layer.name for layer in student.layers if isinstance(layer, layers.Add)] == ["attention_0", "forward_0"]


def test_networks_of_keras_have_the_blocks_of_their_papers():
    """He et al.: 3, 4, 6, 3 blocks of which the first of each stage projects. Sandler et al.: ten of 17 have a sum."""
    options = {"weights": None, "input_shape": (32, 32, 3), "classes": 2}
    assert len(residual_blocks(keras.applications.ResNet50(**options))) == 12
    assert len(residual_blocks(keras.applications.MobileNetV2(**options))) == 10


def test_a_smaller_input_is_the_teacher_on_resized_images():
    teacher = residual_network()
    student = prune(teacher, input_scale=0.5)
    assert student.input_shape == teacher.input_shape
    # Half the size, pixel centres: each pixel is the mean of four.
    small = images().reshape(3, 4, 2, 4, 2, 2).mean((2, 4))
    x = teacher.get_layer("stem")(small)
    for name in ("one", "two", "three"):
        x = x + teacher.get_layer(f"{name}_conv")(x)
    x = teacher.get_layer("logits")(keras.ops.mean(x, (1, 2)))
    np.testing.assert_allclose(student(images()), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (residual_network, {"drop_blocks": "four"}, "There are: one, two, three"),
        (residual_network, {"drop_blocks": ["twoo"]}, "Did you mean two"),
        (lambda: residual_network(("one",)), {"drop_blocks": "every second"}, "no two blocks of 'net' are alike"),
        (residual_network, {"input_scale": 0.0}, r"input_scale must be in \(0, 1\]"),
        (lambda: residual_network(pooling=False), {"input_scale": 0.5}, "'logits' .* put GlobalAveragePooling2D"),
        (lambda: keras.Sequential([keras.Input((4,)), layers.Dense(2)]), {"input_scale": 0.5}, "needs a model of one"),
    ],
)
def test_what_cannot_go_is_refused_with_a_remedy(build, options, message):
    with pytest.raises(ValueError, match=message):
        prune(build(), **options)
