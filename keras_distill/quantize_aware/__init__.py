"""A student as the int8 network that it will be, for training: Keras 3 has no such thing of its own.

`quantize_aware(student, calibration_data)` gives a Keras model whose forward pass rounds wherever the integer
runtimes do; it trains under `fit` or a `Distiller` and exports as an integer graph.
"""

from keras_distill.quantize_aware.calibration import FreezeRanges, calibrate, freeze, in_float, is_quantized
from keras_distill.quantize_aware.fake_quantization import FakeQuantize, fake_quantize, fake_quantize_kernel
from keras_distill.quantize_aware.kernel import Int8Kernel
from keras_distill.quantize_aware.rewriting import quantize_aware

__all__ = [
    "FakeQuantize",
    "FreezeRanges",
    "Int8Kernel",
    "calibrate",
    "fake_quantize",
    "fake_quantize_kernel",
    "freeze",
    "in_float",
    "is_quantized",
    "quantize_aware",
]
