"""A pruned model against the teacher in which all that reads the dropped channels has zero weights."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.pruning import Axis, Widths, channel_groups, prune
from keras_distill.pruning.prune import kept_channels
from tests.random_models import draw

APPLICATIONS = {
    "MobileNet": 32, "MobileNetV2": 32, "MobileNetV3Small": 32, "MobileNetV3Large": 32, "ResNet50": 32,
    "ResNet101": 32, "ResNet50V2": 32, "DenseNet121": 32, "DenseNet169": 32, "EfficientNetB0": 32,
    "EfficientNetV2B0": 32, "InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71, "VGG16": 32, "NASNetMobile": 32,
    "ConvNeXtTiny": 32,
}  # fmt: skip


def outputs_of(model, inputs):
    return [np.asarray(part) for part in keras.tree.flatten(model(inputs, training=False))]


def scatter_weights(model, seed):
    """Every weight random, statistics and scales too; kernels scaled by their fan-in so that logits vary."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed_generator" in weight.path or not str(weight.dtype).startswith("float"):
            continue
        if len(weight.shape) > 1:
            continue
        value = (
            generator.uniform(0.7, 1.3, weight.shape)
            if "gamma" in weight.path or "variance" in weight.path
            else (generator.normal(0.0, 0.1, weight.shape))
        )
        weight.assign(value)


def assert_exact(teacher, inputs, groups, keep, importance):
    before = [np.array(weight) for weight in teacher.get_weights()]
    pruned = prune(teacher, keep, importance=importance)
    for was, is_now in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(was, is_now)
    kept = kept_channels(groups, keep, importance)
    for layer, widths in groups.widths.values():
        values = layer.get_weights()
        for axis in widths.axes:
            if axis.role == "reads":
                dropped = np.array([int(root) not in kept for root in groups.root(axis.channels)])
                np.moveaxis(values[axis.weight], axis.axis, 0)[dropped] = 0.0
        layer.set_weights(values)
    for expected, answer in zip(outputs_of(teacher, inputs), outputs_of(pruned, inputs), strict=True):
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)
    return pruned


def random_scores(groups, seed):
    generator = np.random.default_rng(seed)
    return {name: generator.random(group.size) for name, group in groups.groups.items()}


# Masks that a user's last layers drop: Keras says so, of the teacher as of the pruned model.
@pytest.mark.filterwarnings("ignore:(?s).*destroy the mask")
@pytest.mark.parametrize("start", range(0, 300, 30))
def test_random_models_answer_as_with_zeroed_readers(start):
    num_smaller = num_refused = 0
    for seed in range(start, start + 30):
        drawn = draw(seed)
        groups = channel_groups(drawn.model)
        try:
            pruned = assert_exact(drawn.model, drawn.inputs, groups, 0.5, random_scores(groups, seed))
        except ValueError as error:
            # Lambdas and layers that Keras cannot rebuild are refused, and nothing else is.
            if "rebuilds each layer" not in str(error):
                raise
            num_refused += 1
            continue
        num_smaller += pruned.count_params() < drawn.model.count_params()
    # Lambdas are in one of nine drawn models; a few others end where a layer without a rule begins.
    assert num_refused <= 10
    assert num_smaller >= 20


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_networks_of_keras_answer_as_with_zeroed_readers(name):
    keras.utils.set_random_seed(1)
    size = APPLICATIONS[name]
    options = {"weights": None, "input_shape": (size, size, 3), "classes": 10, "classifier_activation": None}
    teacher = getattr(keras.applications, name)(**options)
    scatter_weights(teacher, 1)
    groups = channel_groups(teacher)
    inputs = np.random.default_rng(2).normal(size=(1, size, size, 3)).astype("float32")
    pruned = assert_exact(teacher, inputs, groups, 0.5, random_scores(groups, 3))
    assert pruned.count_params() < 0.6 * teacher.count_params()
    assert np.std(outputs_of(pruned, inputs)[0]) > 1e-4


def small_network():
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(8, 3, padding="same", name="stem")(inputs))
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="branch")(x)
    x = layers.Flatten()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(4, name="logits")(x))


def test_the_ends_of_a_residual_sum_are_one_group():
    groups = channel_groups(small_network()).groups
    free = [group for group in groups.values() if group.is_free]
    assert [set(group.layers) for group in free] == [{"stem", "bn", "branch", "logits"}]


def test_it_keeps_the_channels_that_are_named_in_their_order():
    teacher = small_network()
    pruned = prune(teacher, {"stem": [5, 1]})
    kernel = teacher.get_layer("stem").get_weights()[0]
    np.testing.assert_array_equal(pruned.get_layer("stem").get_weights()[0], kernel[..., [1, 5]])


def test_widths_are_multiples_on_request():
    assert prune(small_network(), 0.3, multiple_of=4).get_layer("stem").filters == 4


def image_network(*parts):
    return keras.Sequential([keras.Input((4, 4, 3)), *parts, layers.Flatten(), layers.Dense(3)])


@pytest.mark.parametrize(
    ("parts", "keep", "multiple_of", "filters"),
    [
        # Four groups of eight channels: half of them are sixteen channels, a multiple of eight as they are.
        ([layers.Conv2D(32, 1, name="a"), layers.GroupNormalization(4)], 0.5, 8, {"a": 16}),
        # Eight groups of four: one would be four channels, two are eight.
        ([layers.Conv2D(32, 1, name="a"), layers.GroupNormalization(8)], 0.1, 8, {"a": 8}),
        # A place of a grouped convolution is a channel of each of its groups: of 32 and of 8 channels.
        ([layers.Conv2D(32, 1, name="a"), layers.Conv2D(64, 1, groups=8, name="b")], 0.25, 8, {"a": 8, "b": 16}),
        # Of three groups of 16 channels 8, so that 24 stay.
        ([layers.Conv2D(48, 1, name="a"), layers.Conv2D(48, 1, groups=3, name="b")], 0.3, 8, {"a": 24, "b": 24}),
        # Of four groups of three no number is a multiple of eight: all stay.
        ([layers.Conv2D(12, 1, name="a"), layers.GroupNormalization(4)], 0.3, 8, {"a": 12}),
        ([layers.Conv2D(32, 1, name="a"), layers.DepthwiseConv2D(1, depth_multiplier=2)], 0.3, 8, {"a": 16}),
    ],
)
def test_it_is_channels_that_are_a_multiple_where_several_go_as_one(parts, keep, multiple_of, filters):
    teacher = image_network(*parts)
    pruned = prune(teacher, keep, multiple_of=multiple_of)
    assert {name: pruned.get_layer(name).filters for name in filters} == filters


def test_a_width_that_others_repeat_is_a_multiple_in_each_of_them():
    # The sum ties each of six channels to four units: four units for each of two channels, eight.
    inputs = keras.Input((4, 6))
    flat = layers.Flatten()(layers.Dense(6, name="narrow")(inputs))
    wide = layers.Dense(24, name="wide")(layers.Flatten()(inputs))
    teacher = keras.Model(inputs, layers.Dense(3)(layers.Add()([flat, wide])))
    pruned = prune(teacher, 0.1, multiple_of=2)
    assert (pruned.get_layer("narrow").units, pruned.get_layer("wide").units) == (2, 8)


@pytest.mark.parametrize(
    ("attention", "num_heads"),
    [
        (lambda x: layers.MultiHeadAttention(4, 3, name="attention")(x, x), lambda layer: layer.num_heads),
        (
            lambda x: layers.GroupQueryAttention(3, 8, 4, name="attention")(x, x),
            lambda layer: layer.num_key_value_heads,
        ),
    ],
)
def test_heads_are_no_channels_and_not_rounded(attention, num_heads):
    inputs = keras.Input((5, 4))
    x = attention(layers.Dense(24, name="a")(inputs))
    pruned = prune(keras.Model(inputs, layers.Dense(3)(x)), 0.25, multiple_of=8)
    assert num_heads(pruned.get_layer("attention")) == 1
    assert pruned.get_layer("a").units == 8


def test_a_pruned_model_is_saved_and_loaded(tmp_path):
    pruned = prune(small_network(), 0.5)
    pruned.save(tmp_path / "student.keras")
    inputs = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    again = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(outputs_of(again, inputs)[0], outputs_of(pruned, inputs)[0])


class Gain(layers.Layer):
    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gain


def test_a_layer_without_a_rule_keeps_its_width_and_one_with_a_rule_is_cut():
    teacher = keras.Sequential([keras.Input((4,)), layers.Dense(8, name="a"), Gain(name="gain"), layers.Dense(2)])
    groups = channel_groups(teacher)
    assert groups.kept_whole == ["gain"]
    assert not groups.groups["a"].is_free
    assert prune(teacher, 0.5).count_params() == teacher.count_params()
    rule = lambda layer, inputs, output, new: Widths(inputs[0], (Axis(0, 0, inputs[0], "keeps"),))  # noqa: E731
    assert prune(teacher, 0.5, rules={Gain: rule}).get_layer("gain").gain.shape == (4,)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0.0, r"keep must be in \(0, 1\]"),
        (1.5, r"keep must be in \(0, 1\]"),
        ({"nobody": 0.5}, "There are: stem"),
        ({"stem": 0}, "between 1 and 8 channels"),
        ({"stem": []}, "at least one"),
        ({"stem": [8]}, "between 0 and 7"),
    ],
)
def test_what_cannot_be_kept_is_refused(keep, message):
    with pytest.raises(ValueError, match=message):
        prune(small_network(), keep)


def test_a_subclassed_model_is_refused_with_a_remedy():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="Rebuild a subclassed model"):
        prune(Own(), 0.5)
