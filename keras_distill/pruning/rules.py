"""What each layer does with channels: the list of all rules. Each is one small function, in the file of its kind.

A rule of your own takes five lines::

    def gain_rule(layer, inputs, output, new):
        # one weight of shape (channels,) that multiplies its input
        return Widths(inputs[0], (Axis(0, 0, inputs[0], "keeps"),))

    prune(teacher, 0.5, rules={Gain: gain_rule})

LayerNormalization, RMSNormalization and a softmax over the channels have none: their statistics run over the channels,
so that a channel whose readers are zero still counts, and cutting it would change the others.
"""

from collections.abc import Mapping
from types import MappingProxyType

from keras import layers

from keras_distill.pruning import hub_rules, kernel_rules, scale_rules, sequence_rules, shape_rules
from keras_distill.pruning.widths import Rule


def built_in_rules(own: Mapping[type | str, Rule] = MappingProxyType({})) -> dict[type | str, Rule]:
    """The rules for Keras's own layers by class, for `keras.ops` and KerasHub by path; `own` go before them."""
    rules: dict[type | str, Rule] = {**_KERNELS, **_SCALES, **_SHAPES, **_SEQUENCES, **_OPERATIONS, **_HUB, **own}
    # A wrapper asks the rule of what it wraps.
    rules[layers.TimeDistributed] = sequence_rules.time_distributed(rules)
    return {**rules, **own}


_KERNELS: dict[type | str, Rule] = {
    layers.Dense: kernel_rules.kernel,
    layers.EinsumDense: kernel_rules.einsum_dense,
    **dict.fromkeys([layers.Conv1D, layers.Conv2D, layers.Conv3D], kernel_rules.convolution),
    **dict.fromkeys(
        [layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose], kernel_rules.transposed_convolution
    ),
    **dict.fromkeys([layers.DepthwiseConv1D, layers.DepthwiseConv2D], kernel_rules.depthwise_convolution),
    **dict.fromkeys([layers.SeparableConv1D, layers.SeparableConv2D], kernel_rules.separable_convolution),
}
_SCALES: dict[type | str, Rule] = {
    layers.BatchNormalization: scale_rules.batch_normalization,
    layers.GroupNormalization: scale_rules.group_normalization,
    layers.PReLU: scale_rules.prelu,
    layers.Rescaling: scale_rules.rescaling,
    layers.Activation: scale_rules.activation,
    layers.Softmax: scale_rules.softmax,
    "keras.applications.convnext.LayerScale": scale_rules.layer_scale,
}
# Each channel by itself, without weights.
_CHANNELWISE = [
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Dropout,
    layers.AlphaDropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.Identity,
    layers.ActivityRegularization,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.RepeatVector,
    "keras.applications.convnext.StochasticDepth",
]
_MERGING = [layers.Add, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum, layers.Subtract]
_SHAPES: dict[type | str, Rule] = {
    **dict.fromkeys(_CHANNELWISE, shape_rules.channelwise),
    **dict.fromkeys(_MERGING, shape_rules.elementwise),
    layers.Concatenate: shape_rules.concatenate,
    layers.Flatten: shape_rules.flatten,
    layers.Reshape: shape_rules.reshape,
    layers.Permute: shape_rules.permute,
}
_SEQUENCES: dict[type | str, Rule] = {
    layers.Embedding: sequence_rules.embedding,
    layers.ReversibleEmbedding: sequence_rules.reversible_embedding,
    layers.SimpleRNN: sequence_rules.recurrent,
    layers.GRU: sequence_rules.recurrent,
    layers.LSTM: sequence_rules.recurrent,
    layers.Bidirectional: sequence_rules.bidirectional,
    layers.MultiHeadAttention: sequence_rules.multi_head_attention,
    layers.GroupQueryAttention: sequence_rules.grouped_query_attention,
}
_ELEMENTWISE_OPERATIONS = [
    "Absolute", "Add", "Cast", "Celu", "Clip", "Cos", "Divide", "Elu", "Erf", "Exp", "Expm1", "Gelu",
    "HardSigmoid", "HardSilu", "HardTanh", "Identity", "LeakyRelu", "Log", "Log1p", "LogSigmoid", "Maximum",
    "Minimum", "Mod", "Multiply", "Negative", "Power", "Reciprocal", "Relu", "Relu6", "Rsqrt", "Selu", "Sigmoid",
    "Sign", "Silu", "Sin", "Softplus", "Softsign", "Sqrt", "Square", "Subtract", "Tanh", "TrueDivide", "Where",
]  # fmt: skip
_OPERATIONS: dict[type | str, Rule] = {
    **{f"keras.ops.{name}": shape_rules.elementwise for name in _ELEMENTWISE_OPERATIONS},
    **{f"keras.ops.{name}": shape_rules.reduction for name in ("Max", "Mean", "Min", "Prod", "Std", "Sum", "Var")},
    "keras.ops.Concatenate": shape_rules.concatenate,
    "keras.ops.Flip": shape_rules.flip,
    "keras.ops.GetItem": shape_rules.get_item,
}
_HUB: dict[type | str, Rule] = {
    "keras_hub.layers.modeling.reversible_embedding.ReversibleEmbedding": sequence_rules.reversible_embedding,
    "keras_hub.layers.modeling.transformer_encoder.TransformerEncoder": hub_rules.transformer,
    "keras_hub.layers.modeling.transformer_decoder.TransformerDecoder": hub_rules.transformer,
    "keras_hub.models.vit.vit_layers.ViTEncoder": hub_rules.vit_encoder,
    "keras_hub.models.mobilenet.mobilenet_backbone.InvertedResidualBlock": hub_rules.inverted_residual,
}
