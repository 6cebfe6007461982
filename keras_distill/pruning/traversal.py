"""A model run on data, layer by layer, by somebody who looks at what each layer reads."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_distill._checks import check_count, error_message
from keras_distill._keras_internals import all_layers, mask_of, run_on_data, set_mask
from keras_distill._types import Tensor, TensorTree
from keras_distill.models.layer_roles import is_readable
from keras_distill.pruning.channels import ChannelGroups

# From a layer, the tensor that it reads and the number of each of its channels, to what the layer is to read.
Look = Callable[[Any, Tensor, np.ndarray], Tensor]


def run_looking(model: keras.Model, groups: ChannelGroups, inputs: TensorTree, look: Look) -> list[Tensor]:
    """Runs `model` in inference on a batch; `look` sees, and may replace, what each reader of a group's channels reads.

    Readers are layers of one kernel and recurrent layers. What a layer made of several layers reads inside is not seen.

    Args:
        model: the model that `groups` are of.
        groups: whose readers are looked at.
        inputs: a batch, as the model takes it.
        look: from `(layer, tensor (batch, …, channels), number of each channel)` to a tensor of that shape.

    Returns:
        The outputs, flat.
    """

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        channels = _channels_read(groups, operation, args[0]) if args else None
        if channels is not None:
            seen = look(operation, args[0], groups.root(channels))
            set_mask(seen, mask_of(args[0]))
            args = (seen, *args[1:])
        return operation(*args, **kwargs)

    return run_through(model, inputs, call)


def _channels_read(groups: ChannelGroups, operation: Any, tensor: Any) -> np.ndarray | None:
    """The channels of a tensor that a layer reads along an axis of its first weight; `None` where that is not so."""
    known = groups.widths.get(id(operation))
    if known is None or not keras.ops.is_tensor(tensor) or not keras.backend.is_float_dtype(tensor.dtype):
        return None
    is_one = isinstance(operation, keras.layers.RNN) or len(all_layers(operation)) == 1
    if not is_one or not any(axis.role == "reads" for axis in known[1].axes):
        return None
    # The first kernel meets the input, along the first of its axes that makes no channels.
    axis = next((axis for axis in known[1].axes if axis.weight == 0 and axis.role != "makes"), None)
    return axis.channels if axis is not None and len(axis.channels) == tensor.shape[-1] else None


def run_through(model: keras.Model, inputs: TensorTree, call: Callable[..., Any]) -> list[Tensor]:
    """Runs `model` on a batch with `call(operation, *args, **kwargs)` for each operation, in nested models too."""

    def enter(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if is_readable(operation):
            return run_on_data(operation, args[0], enter)
        return call(operation, *args, **kwargs)

    return run_on_data(model, inputs, enter)


def check_readable(model: keras.Model) -> None:
    """Raises `ValueError` for a model without a graph."""
    if not is_readable(model):
        remedy = "Rebuild a subclassed model as keras.Model(inputs, outputs) from its layers."
        expectation = "pruning needs a built functional or Sequential model"
        raise ValueError(error_message(expectation, type(model).__name__, remedy))


def batches(inputs: TensorTree, batch_size: int = 128) -> Iterator[TensorTree]:
    """Portions of arrays `(num_items, …)`, nested as a model takes them, in their order.

    Raises:
        ValueError: no item, or not as many in each array.
    """
    check_count("batch_size", batch_size)
    sizes = {len(array) for array in keras.tree.flatten(inputs)}
    if len(sizes) != 1 or not max(sizes):
        expectation = "calibration data must be arrays of as many items each, one at least"
        raise ValueError(error_message(expectation, f"{sorted(sizes)} items"))
    for start in range(0, max(sizes), batch_size):
        yield keras.tree.map_structure(lambda array: array[start : start + batch_size], inputs)  # noqa: B023
