"""A model on smaller images: a resize in front, and the same layers behind it."""

from typing import Any

import keras

from keras_distill._checks import check_number, error_message
from keras_distill._keras_internals import input_structure, output_structure, run_again
from keras_distill._types import TensorTree
from keras_distill.models.layer_roles import is_readable
from keras_distill.pruning.traversal import check_readable


def with_smaller_input(model: keras.Model, scale: float) -> keras.Model:
    """The model with a resize in front of it: a new graph over the same layers, whose weights it shares.

    It takes the images that the model takes and computes on smaller ones, at about `scale`² of the cost.

    Args:
        model: a functional or Sequential model of images `(height, width, channels)` of known size.
        scale: of height and width, in (0, 1].

    Raises:
        ValueError: a scale out of range, no images, or a layer that is made for one size, as Flatten and Dense are: the
            network must be convolutional up to a global pooling.
    """
    if not 0.0 < check_number("input_scale", scale) <= 1.0:
        raise ValueError(error_message("input_scale must be in (0, 1]", scale, "0.5 halves height and width."))
    check_readable(model)
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or None in shapes[0][1:]:
        expectation = "input_scale needs a model of one image (height, width, channels) of known size"
        raise ValueError(error_message(expectation, f"inputs of shape {shapes}", "Leave input_scale out."))
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(error_message("input_scale needs channels last", keras.config.image_data_format()))
    height, width = (max(1, round(side * scale)) for side in shapes[0][1:3])
    inputs = input_structure(model)
    resized = keras.layers.Resizing(height, width, interpolation="bilinear", name="input_resizing")(model.inputs[0])
    flat = _redrawn(model, keras.tree.pack_sequence_as(inputs, [resized]))
    for was, is_now in zip(model.outputs, flat, strict=True):
        if tuple(was.shape) != tuple(is_now.shape):
            raise _of_one_size(model, f"an output of shape {tuple(is_now.shape)} in place of {tuple(was.shape)}")
    return keras.Model(inputs, keras.tree.pack_sequence_as(output_structure(model), flat), name=model.name)


def _redrawn(model: keras.Model, inputs: TensorTree) -> list[Any]:
    """The model's outputs, flat, drawn again from `inputs`; refused where a layer does not take their size."""

    def call(operation: Any, *args: Any, **kwargs: Any) -> TensorTree:
        if is_readable(operation):
            anew = [keras.Input(batch_shape=part.shape, dtype=part.dtype) for part in keras.tree.flatten(args[0])]
            inner = keras.tree.pack_sequence_as(args[0], anew)
            outputs = keras.tree.pack_sequence_as(output_structure(operation), _redrawn(operation, inner))
            return keras.Model(inner, outputs, name=operation.name)(*args, **kwargs)
        try:
            outputs = operation(*args, **kwargs)
        except (ValueError, TypeError) as error:
            raise _of_one_size(model, f"{operation.name!r} ({type(operation).__name__}), which is not") from error
        if any(size is not None and size < 1 for part in keras.tree.flatten(outputs) for size in part.shape):
            raise _of_one_size(model, f"{operation.name!r} ({type(operation).__name__}), of which nothing is left")
        return outputs

    return keras.tree.flatten(run_again(model, inputs, call))


def _of_one_size(model: keras.Model, received: str) -> ValueError:
    expectation = f"input_scale needs a network that is convolutional up to a global pooling, as {model.name!r}"
    remedy = "Leave input_scale out, or put GlobalAveragePooling2D in the place of Flatten."
    return ValueError(error_message(f"{expectation} is to be", received, remedy))
