"""Tiny backbones of KerasHub, where it is installed."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.pruning import channel_groups
from tests.pruning.test_prune import assert_exact, random_scores
from tests.pruning.test_rules import scattered, sizes

keras_hub = pytest.importorskip("keras_hub")
models = keras_hub.models


def resnet():
    return models.ResNetBackbone(
        input_conv_filters=[8],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 8],
        stackwise_num_blocks=[1, 2],
        stackwise_num_strides=[1, 2],
        block_type="bottleneck_block",
        image_shape=(16, 16, 3),
    )


def mobilenet():
    return models.MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64, 144, 144]],
        stackwise_num_blocks=[2, 3],
        stackwise_num_filters=[[16, 16], [24, 24, 24]],
        stackwise_kernel_size=[[3, 3], [5, 5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish"] * 3],
        stackwise_padding=[[1, 1], [2, 2, 2]],
        output_num_filters=32,
        input_activation="hard_swish",
        output_activation="hard_swish",
        input_num_filters=16,
        image_shape=(32, 32, 3),
        depthwise_filters=8,
        depthwise_stride=1,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
        last_layer_filter=40,
    )


def efficientnet():
    return models.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0, 1.0],
        stackwise_depth_coefficients=[1.0, 1.0],
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 2],
        stackwise_input_filters=[8, 16],
        stackwise_output_filters=[16, 24],
        stackwise_expansion_ratios=[1, 4],
        stackwise_strides=[1, 2],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_block_types=["v1", "v1"],
        stackwise_force_input_filters=[0, 0],
        stackwise_nores_option=[False, False],
        image_shape=(32, 32, 3),
        stem_conv_padding="same",
        min_depth=8,
        include_stem_padding=True,
    )


def vit():
    return models.ViTBackbone(
        image_shape=(16, 16, 3), patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )


TEXT = {
    "vocabulary_size": 30,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "max_sequence_length": 12,
}


def bert():
    return models.BertBackbone(**TEXT)


def gpt2():
    return models.GPT2Backbone(**TEXT)


def headed(backbone):
    """A classifier, so that the backbone's own width may be cut where a rule allows it."""
    output = backbone.output if not isinstance(backbone.output, dict) else backbone.output["pooled_output"]
    while len(output.shape) > 2:
        output = (
            layers.GlobalAveragePooling1D()(layers.Reshape((-1, output.shape[-1]))(output))
            if output.shape[1]
            else output[:, 0]
        )
    return keras.Model(backbone.input, layers.Dense(3)(output))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("backbone", "share", "expected"),
    [
        (resnet, 0.4, {}),
        (mobilenet, 0.97, {"block_1_0/expansion": 5}),
        (efficientnet, 0.99, {}),
        (vit, 0.9, {"vit_encoder/feed_forward": 32}),
        (bert, 0.9, {"transformer_layer_0/feed_forward": 32, "transformer_layer_1/feed_forward": 32}),
        (gpt2, 0.9, {"transformer_layer_0/feed_forward": 32, "transformer_layer_1/feed_forward": 32}),
    ],
)
def test_backbones_are_cut_exactly(backbone, share, expected):
    teacher = scattered(headed(backbone()))
    groups = channel_groups(teacher)
    assert expected.items() <= sizes(groups).items()
    shapes = {"int32": (2, 6), "float32": (2, *teacher.inputs[0].shape[1:3], 3)}
    generator = np.random.default_rng(4)
    inputs = {
        tensor.name: np.ones(shapes["int32"], "int32")
        if tensor.dtype == "int32"
        else generator.normal(size=[size or 32 for size in shapes["float32"]]).astype("float32")
        for tensor in teacher.inputs
    }
    given = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    pruned = assert_exact(teacher, given, groups, 0.5, random_scores(groups, 3))
    assert pruned.count_params() < share * teacher.count_params()


def test_the_heads_of_a_hub_layer_are_said_to_stay():
    assert "transformer_layer_0: heads" in channel_groups(bert()).kept_whole
