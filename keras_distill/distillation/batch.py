"""What a batch brings: inputs, labels, soft targets, and the weight of each item."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import error_message
from keras_distill._keras_internals import mask_of

LABELS, SOFT_TARGETS, TEACHER_FEATURES = "labels", "soft_targets", "teacher_features"


UNLABELLED = "unlabelled"


def is_one_target(structure: dict[str, Any]) -> bool:
    """Whether a dict is one output's target and not a dict of outputs."""
    return "member_logits" in structure or "top_k_logits" in structure


def masked_weights(item_weights: Any, outputs: Any) -> Any:
    """Sample weights times the outputs' mask, `(batch, …)`; `None` where there is neither."""
    mask = mask_of(outputs)
    if mask is None:
        return item_weights
    mask = ops.cast(mask, "float32")
    if item_weights is None:
        return mask
    item_weights = ops.cast(item_weights, "float32")
    missing = max(len(mask.shape) - len(item_weights.shape), 0)
    return mask * ops.reshape(item_weights, (*ops.shape(item_weights), *[1] * missing))


def feature_or_logits(features: dict[str, Any], layer_name: str | None, logits: Callable[[], Any]) -> Any:
    """The features of `layer_name`; without a name what `logits()` gives."""
    if layer_name is None:
        return logits()
    if layer_name not in features:
        remedy = "Features need the teacher beside the student: stored soft targets hold none."
        raise ValueError(error_message(f"features of layer {layer_name!r} must be there", "none", remedy))
    return features[layer_name]


def batch_parts(y: Any) -> dict[str, Any]:
    """`y` as labels and soft targets, whichever of them it has."""
    if y is None or (isinstance(y, dict) and UNLABELLED in y):
        return {}
    if isinstance(y, dict) and SOFT_TARGETS in y:
        return {key: value for key, value in y.items() if value is not None}
    return {LABELS: y}


def item_weights_of(sample_weight: Any) -> Any:
    """The weights of the items: `fit` on arrays hands out a copy of them for each part of `y`."""
    if isinstance(sample_weight, dict) and {SOFT_TARGETS, UNLABELLED} & set(sample_weight):
        return sample_weight[LABELS] if LABELS in sample_weight else first_leaf(sample_weight)
    return sample_weight


def brings_soft_targets(x: Any, y: Any) -> bool:
    """Whether the batches of a training set hold soft targets, so that no teacher has to run."""
    if y is None and hasattr(x, "element_spec"):
        _, y, _ = keras.utils.unpack_x_y_sample_weight(x.element_spec)
    return isinstance(y, dict) and SOFT_TARGETS in y


def class_weights_as_sample_weights(x: Any, y: Any, class_weight: dict[int, float], sample_weight: Any) -> tuple:
    """Keras refuses class weights beside a `y` of several parts, of which only the labels have classes here."""
    table = np.ones(max(class_weight) + 1, "float32")
    table[list(class_weight)] = list(class_weight.values())
    if y is not None:
        weights = _look_up(table, np.asarray(y[LABELS]), np)
        return (weights if sample_weight is None else weights * sample_weight), x

    def weigh(*batch: Any) -> tuple:
        inputs, targets, weight = keras.utils.unpack_x_y_sample_weight(batch)
        weights = _look_up(table, targets[LABELS], ops)
        return inputs, targets, weights if weight is None else weights * ops.cast(weight, "float32")

    return None, x.map(weigh)


def _look_up(table: np.ndarray, labels: Any, library: Any) -> Any:
    """The weight of each label; 1 for classes that the user did not name, and for "no label"."""
    table = np.append(table, np.float32(1.0))
    other = len(table) - 1
    is_named = library.logical_and(labels >= 0, labels < other)
    return library.take(table, library.where(is_named, labels, other), axis=0)


def first_leaf(structure: Any) -> Any:
    """The first tensor of a structure."""
    return keras.tree.flatten(structure)[0]


def batch_size_of(x: Any) -> Any:
    """The number of items in a batch of inputs."""
    return ops.shape(first_leaf(x))[0]
