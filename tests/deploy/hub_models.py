"""Models of keras.applications and KerasHub, in tiny configurations: name → a function that builds one, and inputs."""

import keras
import numpy as np
from keras import layers
from keras.src.applications import convnext as convnexts  # public are only the large configurations
from keras.src.applications import densenet as densenets
from keras.src.applications import efficientnet_v2 as efficientnets
from keras.src.applications import resnet as resnets
from matrix_models import NUM_CLASSES, floats, tokens

try:
    import keras_hub
except ImportError:
    keras_hub = None

NUM_WORDS, NUM_TOKENS = 30, 10


def shaken(model):
    """The model, noise on all its weights: a scale of 1e-6 or a bias of 0 would hide what follows it."""
    generator = np.random.default_rng(0)
    for weight in model.weights:
        # Seeds of Dropout are integers.
        if "float" in str(weight.dtype):
            noise = 0.1 * generator.normal(size=weight.shape)
            weight.assign(weight + (np.abs(noise) if weight.name.endswith("variance") else noise))
    return model


# keras.applications


def of_applications(build, size=32, **options):
    def made():
        model = build(input_shape=(size, size, 3), weights=None, classes=NUM_CLASSES, **options)
        return shaken(model), np.random.default_rng(0).uniform(0, 255, (5, size, size, 3)).astype("float32")

    return made


def convnext():
    return of_applications(convnexts.ConvNeXt, depths=[1, 1, 2, 1], projection_dims=[8, 8, 16, 16], name="convnext")()


def densenet():
    return of_applications(densenets.DenseNet, blocks=[1, 2, 1, 1])()


def efficientnet_v2():
    return of_applications(
        efficientnets.EfficientNetV2,
        width_coefficient=0.25,
        depth_coefficient=0.2,
        default_size=32,
        name="efficientnetv2-b0",
    )()


def resnet():
    def stack(tensor):
        block = resnets.stack_residual_blocks_v1
        return block(block(tensor, 8, 1, stride1=1, name="conv2"), 16, 2, name="conv3")

    return of_applications(resnets.ResNet, stack_fn=stack, preact=False, use_bias=True)()


def mobilenet():
    return of_applications(keras.applications.MobileNet, alpha=0.25)()


def mobilenet_v2():
    return of_applications(keras.applications.MobileNetV2, alpha=0.35)()


def mobilenet_v3():
    return of_applications(keras.applications.MobileNetV3Small, alpha=0.75, minimalistic=False)()


# KerasHub


def classifier(backbone, name=None):
    """Logits out of a backbone's features: of its first token, or the mean of its pixels."""
    features = backbone.output if name is None else backbone.output[name]
    if len(features.shape) == 4:
        features = layers.GlobalAveragePooling2D()(features)
    elif len(features.shape) == 3:
        features = features[:, 0]
    return shaken(keras.Model(backbone.input, layers.Dense(NUM_CLASSES)(features)))


def words(*names):
    lengths = np.arange(9) % 4 + 6
    arrays = {
        "token_ids": tokens(NUM_TOKENS, NUM_WORDS),
        "padding_mask": (np.arange(NUM_TOKENS) < lengths[:, None]).astype("int32"),
        "segment_ids": (np.arange(NUM_TOKENS) >= lengths[:, None] // 2).astype("int32"),
    }
    return {name: arrays[name] for name in names}


TEXT = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32, "max_sequence_length": NUM_TOKENS}
MASKED, SEGMENTED = ("token_ids", "padding_mask"), ("token_ids", "padding_mask", "segment_ids")


def text_classifier(name, output=None, inputs=MASKED, **options):
    def made():
        backbone = getattr(keras_hub.models, f"{name}Backbone")(**({"vocabulary_size": NUM_WORDS} | TEXT | options))
        return classifier(backbone, output), words(*inputs)

    return made


def electra():
    options = TEXT | {"vocab_size": NUM_WORDS, "embedding_dim": 8}
    return classifier(keras_hub.models.ElectraBackbone(**options), "pooled_output"), words(*SEGMENTED)


def language_model(name, **options):
    """Logits of the next word after each, `(batch, tokens, words)`."""

    def made():
        backbone = getattr(keras_hub.models, f"{name}Backbone")(vocabulary_size=NUM_WORDS, num_layers=2, **options)
        model = getattr(keras_hub.models, f"{name}CausalLM")(backbone=backbone, preprocessor=None)
        return shaken(model), words(*MASKED)

    return made


ROTARY = {"num_query_heads": 2, "num_key_value_heads": 1, "hidden_dim": 16, "intermediate_dim": 32}


def image_classifier(name, inputs=None, **options):
    def made():
        backbone = getattr(keras_hub.models, f"{name}Backbone")(**options)
        image = (
            backbone.input_shape
            if not isinstance(backbone.input_shape, dict)
            else next(iter(backbone.input_shape.values()))
        )
        return classifier(backbone), floats(*image[1:])

    return made


APPLICATIONS = {
    "ConvNeXt": convnext,
    "DenseNet": densenet,
    "EfficientNetV2": efficientnet_v2,
    "MobileNet": mobilenet,
    "MobileNetV2": mobilenet_v2,
    "MobileNetV3": mobilenet_v3,
    "ResNet": resnet,
}

IMAGE = {"image_shape": (32, 32, 3)}
HUB = {
    "BERT": text_classifier("Bert", "pooled_output", SEGMENTED),
    "ALBERT": text_classifier("Albert", "pooled_output", SEGMENTED, embedding_dim=8),
    "RoBERTa": text_classifier("Roberta"),
    "ELECTRA": electra,
    "DeBERTa": text_classifier("DebertaV3", bucket_size=8),
    "GPT-2": language_model("GPT2", num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=NUM_TOKENS),
    "Gemma": language_model("Gemma", head_dim=8, **ROTARY),
    "Llama": language_model("Llama", **ROTARY),
    "ViT": image_classifier("ViT", **IMAGE, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32),
    "DeiT": image_classifier(
        "DeiT", **IMAGE, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32
    ),
    "Swin": image_classifier(
        "SwinTransformer", **IMAGE, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4, patch_size=4
    ),
    "ResNet of KerasHub": image_classifier(
        "ResNet",
        **IMAGE,
        input_conv_filters=[8],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 8],
        stackwise_num_blocks=[1, 2],
        stackwise_num_strides=[1, 2],
        block_type="bottleneck_block",
    ),
    "MobileNet of KerasHub": image_classifier(
        "MobileNet",
        **IMAGE,
        stackwise_expansion=[[40, 56], [64, 144]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[16, 16], [24, 24]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish"] * 2],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=32,
        input_activation="hard_swish",
        output_activation="hard_swish",
        input_num_filters=16,
        depthwise_filters=8,
        depthwise_stride=1,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
        last_layer_filter=40,
    ),
    "SegFormer's encoder": image_classifier(
        "MiT",
        **IMAGE,
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        hidden_dims=[8, 16],
    ),
}
