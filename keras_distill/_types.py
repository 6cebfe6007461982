"""The types that signatures share. Nothing here runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import keras

# A tensor of whichever backend Keras runs on, or a symbolic one: the backends have no base class in common, and a
# protocol of all operators would refuse some of them.
Tensor: TypeAlias = Any
# One tensor or array, or a dict, list or tuple of such, nested as a model takes or gives them.
TensorTree: TypeAlias = Any
# What NumPy makes an array of: arrays, nested lists, tensors of the host's memory.
ArrayLike: TypeAlias = npt.ArrayLike
# What a data set holds for a model: one array, or arrays by the names of the model's inputs, all of as many rows.
Inputs: TypeAlias = np.ndarray | dict[str, np.ndarray]
# What a model may be called with or trained on: whatever Keras's own `fit` takes.
Data: TypeAlias = Any
# A teacher: a Keras model, an ensemble, or any function from a batch of inputs to logits.
Teacher: TypeAlias = Callable[..., TensorTree]
# The settings of a layer, loss or model, as Keras serialises them.
Config: TypeAlias = dict[str, Any]
# What Keras's callbacks are told.
Logs: TypeAlias = Mapping[str, Any] | None
# Sets of classes, one for each specialist.
ClassSets: TypeAlias = Sequence[Sequence[int]]
# A number, or what changes it from step to step: a schedule (a layer) or a variable.
Schedulable: TypeAlias = "float | keras.Layer | keras.Variable"
# A tensor's shape, `None` where a size is open; of several inputs a structure of such.
Shape: TypeAlias = Any
