"""A dense or convolution layer as integer hardware runs it: BatchNorm folded in, ReLU fused, an int8 kernel."""

from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_choice
from keras_distill._types import Shape, Tensor, TensorTree
from keras_distill.quantize_aware.fake_quantization import fake_quantize_kernel

FUSED_ACTIVATIONS = ("linear", "relu", "relu6")


@keras.saving.register_keras_serializable(package="keras_distill")
class Int8Kernel(keras.layers.Layer):
    """`activation(batch_normalization(layer(inputs)))` with the kernel that will ship.

    Folded, a kernel is γ/σ times the layer's own, and that product is what int8 must say. In training σ belongs to the
    batch, and changes with it; so the kernel is folded and rounded with the *moving* σ, and the
    convolution's outputs are rescaled by the ratio of the two. One convolution does, where folding
    with the batch's σ needs two; and once the statistics are frozen, training computes what ships, exactly.

    Args:
        layer: a Dense, Conv1D, Conv2D or DepthwiseConv2D with channels last and a linear activation; without a bias
            where BatchNorm follows, whose mean would only take it off again.
        batch_normalization: the BatchNormalization that follows it, over the last axis, or `None`.
        activation: what follows that: `"linear"`, `"relu"` or `"relu6"`.

    Attributes:
        is_frozen: whether training uses the moving statistics and leaves them alone; `FreezeRanges` sets it.

    Reference:
        Jacob et al., CVPR 2018, section 3.2; Krishnamoorthi, 2018, section 3.2.2 (statistics, correction, freezing).
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        batch_normalization: keras.layers.BatchNormalization | None = None,
        activation: str = "linear",
        *,
        is_frozen: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.layer = layer
        self.batch_normalization = batch_normalization
        self.activation_name = check_choice("activation", activation, FUSED_ACTIVATIONS)
        self.is_frozen = bool(is_frozen)
        self.supports_masking = layer.supports_masking
        # As in FakeQuantize: only eager calls ever see this switched off.
        self.is_active = True

    def build(self, input_shape: Shape) -> None:
        """Builds the layer and its BatchNorm."""
        if not self.layer.built:
            self.layer.build(input_shape)
        if self.batch_normalization is not None and not self.batch_normalization.built:
            self.batch_normalization.build(self.layer.compute_output_shape(input_shape))

    def call(self, inputs: TensorTree, training: bool | None = None) -> Any:
        """The layer's output, float32, shaped as that of `layer`."""
        norm = self.batch_normalization
        is_1d = isinstance(self.layer, keras.layers.Conv1D)
        if is_1d:
            # A runtime has convolutions over images alone: of one row, from here to the rectifier, so that it fuses.
            inputs = ops.expand_dims(self._pad_causally(inputs), 1)
        if norm is None:
            outputs = self._apply(inputs, ops.convert_to_tensor(self.layer.kernel))
            outputs = outputs + self.layer.bias if self.layer.use_bias else outputs
        elif training and norm.trainable and not self.is_frozen:
            outputs = self._with_statistics_of_batch(inputs, norm)
        else:
            factor = self._factor(norm)
            outputs = self._apply(inputs, self._folded(factor)) + (self._shift(norm) - norm.moving_mean * factor)
        # The converters look for exactly this operation after the bias, and fuse it.
        outputs = {"linear": lambda values: values, "relu": ops.relu, "relu6": ops.relu6}[self.activation_name](outputs)
        return ops.squeeze(outputs, 1) if is_1d else outputs

    def freeze(self) -> None:
        """Leaves BatchNorm's statistics as they are; a traced training step must be traced again."""
        self.is_frozen = True

    def compute_output_shape(self, input_shape: Shape) -> Any:
        """That of `layer`."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        serialize = keras.saving.serialize_keras_object
        return super().get_config() | {
            "layer": serialize(self.layer),
            "batch_normalization": serialize(self.batch_normalization),
            "activation": self.activation_name,
            "is_frozen": self.is_frozen,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Int8Kernel":
        """Builds the layer that `get_config` described."""
        deserialize = keras.saving.deserialize_keras_object
        parts = {name: deserialize(config[name]) for name in ("layer", "batch_normalization")}
        return cls(**(config | parts))

    def _with_statistics_of_batch(self, inputs: TensorTree, norm: Any) -> Any:
        # Read before the statistics move: the kernel is folded with these.
        deviation = ops.sqrt(ops.convert_to_tensor(norm.moving_variance) + norm.epsilon)
        factor = self._factor(norm)
        # A channel with γ = 0 gives nothing to measure: its variance is 0 / tiny.
        divisor = ops.where(ops.abs(factor) < 1e-10, 1e-10, factor)
        outputs = self._apply(inputs, self._folded(factor))
        mean, variance = ops.moments(outputs, axes=list(range(len(outputs.shape) - 1)))
        own_mean, own_variance = mean / divisor, variance / ops.square(divisor)
        for moving, of_batch in ((norm.moving_mean, own_mean), (norm.moving_variance, own_variance)):
            moving.assign(norm.momentum * moving + (1.0 - norm.momentum) * ops.stop_gradient(of_batch))
        correction = deviation * ops.rsqrt(own_variance + norm.epsilon)
        return outputs * correction + (self._shift(norm) - mean * correction)

    def _factor(self, norm: Any) -> Any:
        """γ/σ of every output channel, `(channels,)`, by the moving statistics."""
        inverse = ops.rsqrt(ops.convert_to_tensor(norm.moving_variance) + norm.epsilon)
        return ops.convert_to_tensor(norm.gamma) * inverse if norm.scale else inverse

    @staticmethod
    def _shift(norm: Any) -> Any:
        return ops.convert_to_tensor(norm.beta) if norm.center else 0.0

    def _folded(self, factor: Tensor) -> Any:
        kernel = ops.convert_to_tensor(self.layer.kernel)
        if isinstance(self.layer, keras.layers.DepthwiseConv2D):
            factor = ops.reshape(factor, kernel.shape[2:])
        return kernel * factor

    def _apply(self, inputs: TensorTree, kernel: Tensor) -> Any:
        layer, rank = self.layer, len(kernel.shape)
        is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        if self.is_active:
            kernel = fake_quantize_kernel(kernel, [rank - 2, rank - 1] if is_depthwise else [rank - 1])
        if isinstance(layer, keras.layers.Dense):
            return ops.matmul(inputs, kernel)
        if is_depthwise:
            return ops.depthwise_conv(
                inputs, kernel, layer.strides, layer.padding, layer.data_format, layer.dilation_rate
            )
        strides, padding = layer.strides, layer.padding
        if isinstance(layer, keras.layers.Conv1D):
            kernel, strides = ops.expand_dims(kernel, 0), (1, *strides)
            padding = "valid" if padding == "causal" else padding
        return ops.conv(inputs, kernel, strides, padding, layer.data_format)

    def _pad_causally(self, inputs: TensorTree) -> Any:
        if self.layer.padding != "causal":
            return inputs
        return ops.pad(inputs, [[0, 0], [self.layer.kernel_size[0] - 1, 0], [0, 0]])
