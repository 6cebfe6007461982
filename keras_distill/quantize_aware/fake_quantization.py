"""Floats that take only the values which int8 can say, and the range that those values span.

The arithmetic is that of the integer runtimes: a tensor of activations has one scale and one zero point; a kernel has a
scale for every output channel, no zero point, and the integers −127 … 127. Gradients pass straight
through the rounding. How ranges are first found is in `calibration.py`.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_choice, check_fraction, check_number, error_message
from keras_distill._types import Shape, Tensor, TensorTree

RANGES = ("tracked", "learnt", "frozen")
# Below this a float32 scale would be subnormal when squared.
SMALLEST_WIDTH = 1e-8


def fake_quantize(values: Tensor, minimum: Tensor, maximum: Tensor) -> Tensor:
    """Rounds `values` to the 256 numbers that uint8 or int8 can say between `minimum` and `maximum`.

    With scale = (maximum − minimum) / 255 and the zero point z = round(−minimum / scale), which makes 0.0 exact,

        scale · (clip(⌊values / scale + z + ½⌋, 0, 255) − z).

    The gradient is 1 for values inside the range and 0 for those outside; what lies below reaches `minimum`,
    what lies above reaches `maximum`.

    Args:
        values: float32, any shape.
        minimum: float32 scalar, <= 0.
        maximum: float32 scalar, >= 0, > `minimum`.

    Returns:
        float32, the shape of `values`.

    Example:
        >>> [round(float(value), 3) for value in fake_quantize([-0.2, 0.0, 0.5, 0.503, 9.0], 0.0, 2.55)]
        [0.0, 0.0, 0.5, 0.5, 2.55]

    Reference:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference, CVPR 2018, section 3.
    """
    # Not before it is needed: other backends, too, load files that might hold these layers.
    import tensorflow as tf

    # Converters know this one operation as "here is an int8 tensor"; arithmetic of the same values they do not.
    return tf.quantization.fake_quant_with_min_max_vars(values, minimum, maximum, num_bits=8)


def fake_quantize_kernel(kernel: Tensor, channel_axes: Sequence[int]) -> Tensor:
    """Rounds `kernel` to the 255 numbers −127·s … 127·s of each channel, s = max |kernel| / 127.

    The gradient is that of the identity. The channel's largest weight is always exact, so a converter that looks
    for the range of the rounded kernel finds the same s, and the integers again.

    Args:
        kernel: float32, any shape.
        channel_axes: the axes, from 0, along which channels lie: one of them, or two for a depthwise kernel
            `(height, width, channels, multiplier)`.

    Returns:
        float32, the shape of `kernel`.

    Example:
        >>> kernel = ops.convert_to_tensor([[1.27, 0.02], [0.006, 0.0201]])
        >>> [[round(float(value), 4) for value in row] for row in fake_quantize_kernel(kernel, [1])]
        [[1.27, 0.0199], [0.01, 0.0201]]

    Reference:
        Krishnamoorthi, Quantizing deep convolutional networks for efficient inference, 2018, section 3.1.
    """
    axes = [axis for axis in range(len(kernel.shape)) if axis not in channel_axes]
    largest = ops.max(ops.abs(kernel), axis=axes, keepdims=True)
    scale = ops.stop_gradient(ops.maximum(largest, SMALLEST_WIDTH) / 127.0)
    return kernel + ops.stop_gradient(ops.round(kernel / scale) * scale - kernel)


@keras.saving.register_keras_serializable(package="keras_distill")
class FakeQuantize(keras.layers.Layer):
    """Activations as int8: one scale and zero point for the whole tensor.

    Args:
        ranges: what training does with the range. `"tracked"`: it follows the batches' extremes; `"learnt"`: the loss
            moves it; `"frozen"`: it stays.
        momentum: how much of the old range a tracked one keeps at each batch, in [0, 1].
        holds_peaks: whether a tracked range grows at once and only shrinks slowly, so that it clips hardly
            anything: for logits, and for tensors that share one range.
        margin: what is added to either end, as a share of it.

    Attributes:
        minimum, maximum: the range, float32 scalars, minimum <= 0 <= maximum, so that 0.0 is exact.
        is_frozen: whether training leaves the range alone; `FreezeRanges` sets it.
    """

    def __init__(
        self,
        *,
        ranges: str = "tracked",
        momentum: float = 0.99,
        holds_peaks: bool = False,
        margin: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.ranges = check_choice("ranges", ranges, RANGES)
        self.momentum = check_fraction("momentum", momentum)
        self.holds_peaks = bool(holds_peaks)
        self.margin = check_number("margin", margin)
        self.is_frozen = ranges == "frozen"
        # Calibration and comparisons with the float model switch this off, in eager calls alone.
        self.is_active = True
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        """Adds the range."""
        trainable = self.ranges == "learnt"
        self.minimum = self.add_weight(
            name="minimum", shape=(), initializer="zeros", trainable=trainable, constraint=UpToZero()
        )
        self.maximum = self.add_weight(
            name="maximum", shape=(), initializer="ones", trainable=trainable, constraint=FromZero()
        )

    def call(self, inputs: TensorTree, training: bool | None = None) -> Tensor:
        """`inputs`, rounded; float32 of any shape."""
        if not self.is_active:
            return inputs
        if training and self.ranges == "tracked" and not self.is_frozen:
            self._follow(inputs)
        return fake_quantize(inputs, ops.convert_to_tensor(self.minimum), ops.convert_to_tensor(self.maximum))

    def set_range(self, minimum: float, maximum: float) -> None:
        """Sets the range to what was seen, widened by the margin and to zero.

        Raises:
            ValueError: NaN, infinite, or no width: the activation is constant.
        """
        low, high = (check_number(f"the range of {self.name!r}", end) for end in (minimum, maximum))
        if not high - low < float("inf"):
            raise ValueError(error_message(f"the range of {self.name!r} must be finite", f"[{low}, {high}]"))
        if high - low < SMALLEST_WIDTH:
            remedy = "Its layer is dead, or the calibration data are all alike."
            raise ValueError(error_message(f"the range of {self.name!r} must be wider than 0", f"always {low}", remedy))
        self.minimum.assign(min(low, 0.0) * (1.0 + self.margin))
        self.maximum.assign(max(high, 0.0) * (1.0 + self.margin))

    def freeze(self) -> None:
        """Leaves the range as it is from here on; a traced training step must be traced again."""
        self.is_frozen = True
        self.trainable = False

    def compute_output_shape(self, input_shape: Shape) -> Tensor:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, `ranges` as they are now."""
        return super().get_config() | {
            "ranges": "frozen" if self.is_frozen else self.ranges,
            "momentum": self.momentum,
            "holds_peaks": self.holds_peaks,
            "margin": self.margin,
        }

    def _follow(self, inputs: TensorTree) -> None:
        inputs = ops.stop_gradient(inputs)
        widened = 1.0 + self.margin
        # A gradual step towards the batch's extreme, or at once to it where peaks are held.
        for variable, extreme, wider in (
            (self.minimum, ops.minimum(ops.min(inputs), 0.0), ops.minimum),
            (self.maximum, ops.maximum(ops.max(inputs), 0.0), ops.maximum),
        ):
            seen = extreme * widened
            followed = self.momentum * variable + (1.0 - self.momentum) * seen
            variable.assign(wider(followed, seen) if self.holds_peaks else followed)


@keras.saving.register_keras_serializable(package="keras_distill")
class UpToZero(keras.constraints.Constraint):
    """Keeps the lower end of a learnt range at or below zero."""

    def __call__(self, value: Tensor) -> Tensor:
        """`value`, or 0."""
        return ops.minimum(value, 0.0)


@keras.saving.register_keras_serializable(package="keras_distill")
class FromZero(keras.constraints.Constraint):
    """Keeps the upper end of a learnt range above zero, so that it has a width."""

    def __call__(self, value: Tensor) -> Tensor:
        """`value`, or the smallest width."""
        return ops.maximum(value, SMALLEST_WIDTH)
