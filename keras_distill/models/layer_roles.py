"""Which layers and operations may end a model, and what each of them may do there.

A class counts by whose `call` runs: one of a user's that inherits Dense and adds to its `call` is no Dense. Here is
only what is known of types; what a model does with them is tried on a sample, in `heads.py`.
"""

from enum import Enum
from typing import Any

import keras
from keras import layers

from keras_distill._keras_internals import has_own_call, is_operation


class Role(Enum):
    """What an operation is to a head.

    `KERNEL`: computes with weights, applies its activation last. `SQUASH`: an activation and nothing else. `IDENTITY`:
    gives its input back in inference. `LAYOUT`: moves, repeats or drops values, and changes none. `FUNCTION`: of one
    tensor, the user's own, which may be anything. `MERGE`: a function of its inputs alone. `NESTED`: a model whose
    graph can be read. `OTHER`: not known.
    """

    KERNEL = 1
    SQUASH = 2
    IDENTITY = 3
    LAYOUT = 4
    FUNCTION = 5
    MERGE = 6
    NESTED = 7
    OTHER = 8


_LAYERS: dict[Role, tuple[type, ...]] = {
    Role.KERNEL: (
        layers.Conv1D,
        layers.Conv1DTranspose,
        layers.Conv2D,
        layers.Conv2DTranspose,
        layers.Conv3D,
        layers.Conv3DTranspose,
        layers.Dense,
        layers.DepthwiseConv1D,
        layers.DepthwiseConv2D,
        layers.EinsumDense,
        layers.SeparableConv1D,
        layers.SeparableConv2D,
    ),
    Role.SQUASH: (layers.Activation, layers.Lambda, layers.Softmax),
    Role.IDENTITY: (
        layers.ActivityRegularization,
        layers.AlphaDropout,
        layers.Dropout,
        layers.GaussianDropout,
        layers.GaussianNoise,
        layers.Identity,
        layers.SpatialDropout1D,
        layers.SpatialDropout2D,
        layers.SpatialDropout3D,
    ),
    Role.LAYOUT: (
        layers.Cropping1D,
        layers.Cropping2D,
        layers.Cropping3D,
        layers.Flatten,
        layers.Permute,
        layers.RepeatVector,
        layers.Reshape,
        layers.UpSampling1D,
    ),
    Role.MERGE: (
        layers.Add,
        layers.Average,
        layers.Concatenate,
        layers.Dot,
        layers.Maximum,
        layers.Minimum,
        layers.Multiply,
        layers.Rescaling,
        layers.Subtract,
    ),
}
_OPERATIONS: dict[Role, set[str]] = {
    Role.SQUASH: {"Sigmoid", "Softmax"},
    Role.LAYOUT: {
        "Cast",
        "ExpandDims",
        "Flip",
        "GetItem",
        "Moveaxis",
        "Ravel",
        "Repeat",
        "Reshape",
        "Squeeze",
        "Swapaxes",
        "Transpose",
    },
}


def is_readable(model: Any) -> bool:
    """Whether `model` is a built Functional or Sequential whose `call` is Keras's own."""
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        return False
    return has_own_call(model)


def role_of(operation: Any) -> Role:
    """What a layer or an operation is to a head.

    Example:
        >>> role_of(keras.layers.Dense(3, "softmax")), role_of(keras.layers.LSTM(3, "softmax"))
        (<Role.KERNEL: 1>, <Role.OTHER: 8>)
    """
    if is_readable(operation):
        return Role.NESTED
    if is_operation(operation):
        name = type(operation).__name__
        return next((role for role, names in _OPERATIONS.items() if name in names), Role.MERGE)
    if _runs_call_of(operation, layers.TimeDistributed):
        inner = role_of(operation.layer)
        return Role.KERNEL if inner is Role.NESTED else inner
    return next(
        (role for role, types in _LAYERS.items() if any(_runs_call_of(operation, kind) for kind in types)), Role.OTHER
    )


def _runs_call_of(layer: keras.layers.Layer, kind: Any) -> bool:
    own: Any = type(layer)
    return isinstance(layer, kind) and own.call is kind.call and own.__call__ is keras.layers.Layer.__call__
