"""What a cut has put out of place, put right on data before any training: statistics and biases."""

from collections import Counter, defaultdict
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._keras_internals import twin_of
from keras_distill._types import Tensor, TensorTree
from keras_distill.models.layer_roles import is_readable
from keras_distill.pruning.channels import ChannelGroups
from keras_distill.pruning.traversal import batches, run_looking, run_through


def reestimate_batch_normalization(model: keras.Model, inputs: TensorTree, *, batch_size: int = 128) -> int:
    """Gives every BatchNormalization of a model the statistics of data, in place of its moving ones.

    They are the mean over batches of each batch's mean and variance, every layer reading what the layers before it
    give in training, as the moving ones are, without their decay. Everything else stays in inference.

    Args:
        model: a functional or Sequential model, whose moving means and variances change.
        inputs: arrays `(num_items, …)`, as the model takes them; 20 batches do, drawn as training's are. A last batch
            that is smaller than the others is left out.
        batch_size: items a batch, as in training.

    Returns:
        How many layers have new statistics.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
        >>> reestimate_batch_normalization(model, np.array([[1.0], [5.0]], "float32"))
        1
        >>> model.layers[0].moving_mean.numpy().tolist(), model.layers[0].moving_variance.numpy().tolist()
        ([3.0], [4.0])
    """
    num_calls: Counter[int] = Counter()

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(operation, keras.layers.BatchNormalization):
            return operation(*args, **kwargs)
        num_calls[id(operation)] += 1
        # The moving mean of decay (k − 1) / k is the mean of the k values so far.
        before = operation.momentum, operation.trainable
        operation.momentum, operation.trainable = 1.0 - 1.0 / num_calls[id(operation)], True
        try:
            return operation(*args, **kwargs | {"training": True})
        finally:
            operation.momentum, operation.trainable = before

    for number, batch in enumerate(batches(inputs, batch_size)):
        if number and len(keras.tree.flatten(batch)[0]) < batch_size:
            break
        run_through(model, batch, call)
    return len(num_calls)


def correct_biases(
    student: keras.Model,
    teacher: keras.Model,
    groups: ChannelGroups,
    kept: set[int],
    inputs: TensorTree,
    *,
    batch_size: int = 128,
) -> int:
    """Adds to the student's biases the mean output that its layers lost with the channels that they read no more.

    That is, in the teacher and over data and places, the mean of what a layer gives for the dropped channels of what it
    reads. Layers without a bias stay as they are; where BatchNormalization follows, its statistics make up for it.

    Args:
        student: what `prune` cut; its biases change.
        teacher: what it was cut from; it stays as it is.
        groups: the channel groups of `teacher`.
        kept: the channels that stayed, from `kept_channels`.
        inputs: arrays `(num_items, …)`, as the teacher takes them.
        batch_size: items a pass.

    Returns:
        How many biases were corrected.
    """
    sums: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(()))
    num_calls: Counter[int] = Counter()

    def look(layer: Any, tensor: Tensor, channels: np.ndarray) -> Tensor:
        is_dropped = np.array([channel not in kept for channel in channels.tolist()])
        if is_dropped.any() and getattr(layer, "bias", None) is not None:
            # Without its activation the layer is its bias plus what each channel gives.
            linear = twin_of(layer, activation=keras.activations.linear)
            lost = linear(tensor * ops.cast(is_dropped, tensor.dtype)) - ops.cast(layer.bias, tensor.dtype)
            values = ops.convert_to_numpy(ops.cast(lost, "float32")).astype("float64")
            sums[id(layer)] = sums[id(layer)] + values.reshape(-1, values.shape[-1]).sum(axis=0)
            num_calls[id(layer)] += values.size // values.shape[-1]
        return tensor

    for batch in batches(inputs, batch_size):
        run_looking(teacher, groups, batch, look)
    narrow = _layers_by_path(student)
    num_corrected = 0
    for path, layer in _layers_by_path(teacher).items():
        if id(layer) not in sums:
            continue
        (made,) = (
            axis.channels for axis in groups.widths[id(layer)][1].axes if layer.weights[axis.weight] is layer.bias
        )
        stays = [channel in kept for channel in groups.root(made).tolist()]
        bias = narrow[path].bias
        bias.assign(ops.convert_to_numpy(bias) + (sums[id(layer)] / num_calls[id(layer)])[stays].astype("float32"))
        num_corrected += 1
    return num_corrected


def repair(
    student: keras.Model,
    teacher: keras.Model,
    groups: ChannelGroups,
    kept: set[int],
    inputs: TensorTree,
    *,
    batch_size: int = 128,
) -> tuple[int, int]:
    """Both, biases first, so that the statistics are those of the corrected student.

    Returns:
        How many biases were corrected, and how many layers have new statistics.
    """
    num_biases = correct_biases(student, teacher, groups, kept, inputs, batch_size=batch_size)
    return num_biases, reestimate_batch_normalization(student, inputs, batch_size=batch_size)


def _layers_by_path(model: keras.Model, path: str = "") -> dict[str, Any]:
    """The layers of a model and of the models in it, by name."""
    found: dict[str, Any] = {}
    for layer in model.layers:
        name = f"{path}{layer.name}"
        found |= _layers_by_path(layer, f"{name}/") if is_readable(layer) else {name: layer}
    return found
