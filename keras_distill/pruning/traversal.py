"""A model run on data, layer by layer, by somebody who looks at what each layer reads."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_distill._checks import check_count, error_message
from keras_distill._keras_internals import mask_of, run_on_data, set_mask
from keras_distill._types import Tensor, TensorTree
from keras_distill.models.layer_roles import is_readable
from keras_distill.pruning.channels import ChannelGroups

# From a layer, the tensor that it reads and the number of each of its channels, to what the layer is to read.
Look = Callable[[Any, Tensor, np.ndarray], Tensor]


def run_looking(model: keras.Model, groups: ChannelGroups, inputs: TensorTree, look: Look) -> list[Tensor]:
    """Runs `model` in inference on a batch; `look` sees, and may replace, what each reader of a group's channels reads.

    Args:
        model: the model that `groups` are of.
        groups: whose readers are looked at: layers with weights along whose axes channels end.
        inputs: a batch, as the model takes it.
        look: from `(layer, tensor (batch, …, channels), number of each channel)` to a tensor of that shape.

    Returns:
        The outputs, flat.
    """
    # Of tensors, by their id; each is kept alive so that no other one gets its id.
    channels: dict[int, tuple[Tensor, np.ndarray]] = {}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        known = groups.widths.get(id(operation))
        if known is None:
            return operation(*args, **kwargs)
        if any(axis.role == "reads" for axis in known[1].axes) and args and id(args[0]) in channels:
            tensor, numbers = channels[id(args[0])]
            seen = look(operation, tensor, numbers)
            set_mask(seen, mask_of(tensor))
            args = (seen, *args[1:])
        output = operation(*args, **kwargs)
        channels[id(output)] = output, groups.root(known[1].output)
        return output

    return run_through(model, inputs, call)


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
