"""The teachers and students whose steps are timed, from a small perceptron to a residual network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pair:
    """A teacher, a student and the batches that they see.

    Attributes:
        input_shape: of one example.
        num_classes: width of the logits.
        batch_size: examples a step.
        num_steps: steps a round: enough that a round is no shorter than what disturbs it, and that what a call of `fit`
            costs before its first step is lost in it.
        teacher: makes the teacher, untrained: what a step costs does not depend on what it knows.
        student: makes the student.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    batch_size: int
    num_steps: int
    teacher: Callable[[], Any]
    student: Callable[[], Any]


def perceptron(width: int) -> Any:
    """784-width-width-10: the paper's MNIST nets."""
    from keras_distill.data.networks import mlp

    return mlp((28, 28, 1), 10, (width, width))


def convolutional(width: int) -> Any:
    """Three 3 × 3 convolutions with BatchNorm on 32 × 32 × 3."""
    import keras
    from keras import layers

    inputs = hidden = keras.Input((32, 32, 3))
    for factor in (1, 2, 4):
        hidden = layers.Conv2D(factor * width, 3, strides=2, padding="same", use_bias=False)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
        hidden = layers.Conv2D(factor * width, 3, padding="same", use_bias=False)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    return keras.Model(inputs, layers.Dense(100)(layers.GlobalAveragePooling2D()(hidden)))


def depthwise(width: int) -> Any:
    """Depthwise-separable blocks with BatchNorm on 32 × 32 × 3, as MobileNet has them."""
    import keras
    from keras import layers

    inputs = keras.Input((32, 32, 3))
    hidden = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(inputs)
    hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    for factor, strides in ((2, 1), (4, 2), (4, 1), (8, 2)):
        hidden = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
        hidden = layers.Conv2D(factor * width, 1, use_bias=False)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    return keras.Model(inputs, layers.Dense(100)(layers.GlobalAveragePooling2D()(hidden)))


def residual() -> Any:
    """ResNet50 with random weights on 96 × 96 × 3."""
    import keras

    return keras.applications.ResNet50(
        weights=None, input_shape=(96, 96, 3), classes=100, classifier_activation=None, name="resnet50"
    )


def mobile() -> Any:
    """MobileNetV3Small with random weights on 96 × 96 × 3, without its dropout, so that losses can be compared."""
    import keras

    return keras.applications.MobileNetV3Small(
        weights=None,
        input_shape=(96, 96, 3),
        classes=100,
        classifier_activation=None,
        include_preprocessing=False,
        dropout_rate=0.0,
        name="mobilenet",
    )


def in_torch(model: Any) -> Any:
    """The same chain of layers in PyTorch, with the same weights and, for images, channels first.

    Raises:
        NotImplementedError: the model has a layer that is not translated, or is no chain.
    """
    import keras
    import torch

    chain: list[Any] = []
    for layer in model.layers[1:]:
        weights = [torch.from_numpy(array.copy()) for array in layer.get_weights()]
        if isinstance(layer, keras.layers.Flatten):
            chain.append(torch.nn.Flatten())
        elif isinstance(layer, keras.layers.GlobalAveragePooling2D):
            chain += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
        elif isinstance(layer, keras.layers.ReLU):
            chain.append(torch.nn.ReLU())
        elif isinstance(layer, keras.layers.Dense):
            linear = torch.nn.Linear(*weights[0].shape)
            linear.weight.data, linear.bias.data = weights[0].T.contiguous(), weights[1]
            chain += [linear, torch.nn.ReLU()] if layer.activation is keras.activations.relu else [linear]
        elif isinstance(layer, keras.layers.BatchNormalization):
            norm = torch.nn.BatchNorm2d(len(weights[0]), eps=layer.epsilon, momentum=1 - layer.momentum)
            norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var = weights
            chain.append(norm)
        elif isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
            is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            kernel = weights[0].permute((2, 3, 0, 1) if is_depthwise else (3, 2, 0, 1)).contiguous()
            num_inputs = kernel.shape[0] if is_depthwise else kernel.shape[1]
            size, strides = layer.kernel_size[0], layer.strides[0]
            # Keras pads an even side at its end alone where the stride is 2; PyTorch's padding is symmetric.
            if size == 3:
                chain.append(torch.nn.ZeroPad2d(1) if strides == 1 else torch.nn.ZeroPad2d((0, 1, 0, 1)))
            groups = num_inputs if is_depthwise else 1
            convolution = torch.nn.Conv2d(num_inputs, kernel.shape[0], size, strides, groups=groups, bias=False)
            convolution.weight.data = kernel
            chain.append(convolution)
        else:
            raise NotImplementedError(f"{type(layer).__name__} is not translated to PyTorch")
    return torch.nn.Sequential(*chain).to(memory_format=torch.channels_last)


def why_no_torch(*models: Any) -> str | None:
    """What keeps these models from PyTorch, if anything."""
    try:
        for model in models:
            in_torch(model)
    except (ImportError, NotImplementedError) as error:
        return str(error)
    return None


# Named by architecture and batch size.
PAIRS = {
    "mlp-128": Pair((28, 28, 1), 10, 128, 100, lambda: perceptron(1200), lambda: perceptron(800)),
    "mlp-256": Pair((28, 28, 1), 10, 256, 60, lambda: perceptron(1200), lambda: perceptron(800)),
    "convnet-64": Pair((32, 32, 3), 100, 64, 60, lambda: convolutional(32), lambda: depthwise(16)),
    "resnet-32": Pair((96, 96, 3), 100, 32, 3, residual, mobile),
}
