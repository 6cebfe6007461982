"""Texts for models that carry a preprocessor, as KerasHub's tasks do: made token ids once, before anything is trained.

KerasHub's own `fit` and `predict` do so for one model. Beside a teacher both models must read a text alike, and a store
knows its items again by what the models see: so the arrays come first, and everything after them is as always.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import error_message
from keras_distill._types import Data, TensorTree

_NUM_COMPARED = 8


def holds_strings(inputs: Data) -> bool:
    """Whether inputs are texts: a list of them, an array, or a structure with one among its parts.

    Example:
        >>> holds_strings(["where is it", "here"]), holds_strings({"a": np.zeros(3)}), holds_strings(np.array(["a"]))
        (True, False, True)
    """
    if isinstance(inputs, (str, bytes)):
        return True
    if isinstance(inputs, dict):
        return any(holds_strings(part) for part in inputs.values())
    if isinstance(inputs, (list, tuple)):
        return any(holds_strings(part) for part in inputs[:_NUM_COMPARED])
    dtype = getattr(inputs, "dtype", None)
    kind = getattr(dtype, "kind", "")
    if kind in ("U", "S") or "string" in str(dtype):
        return True
    return kind == "O" and isinstance(next(iter(inputs), None), (str, bytes))


def preprocess_strings(inputs: Data, *models: Any) -> TensorTree:
    """What the models' preprocessors make of texts, as arrays.

    Args:
        inputs: texts, as `holds_strings` knows them.
        *models: those that will read them; one at least has a `preprocessor`, and those that have one agree.

    Returns:
        Arrays, usually a dict by input name. Of a preprocessor that makes labels too, as a causal language model's,
        the inputs alone (see `unpacked_strings`).

    Raises:
        ValueError: no model has a preprocessor, or two make different arrays of the same texts.
    """
    return unpacked_strings(inputs, *models)[0]


def unpacked_strings(inputs: Data, *models: Any) -> tuple[TensorTree, TensorTree, TensorTree]:
    """Inputs, and the labels and weights that a causal language model's preprocessor makes beside them, or `None`."""
    reading = [model for model in models if getattr(model, "preprocessor", None) is not None]
    if not reading:
        remedy = "Make token ids of them first, with keras_distill.data.text for one, or attach a preprocessor."
        raise ValueError(
            error_message("texts must be read by a model with a preprocessor", "none that has one", remedy)
        )
    first = _applied(reading[0], _some(inputs))[0] if len(reading) > 1 else None
    for model in reading[1:]:
        made = _applied(model, _some(inputs))[0]
        if not _are_alike(first, made):
            received = f"{_described(first)} by {reading[0].name} and {_described(made)} by {model.name}"
            remedy = "Build the one with the other's preprocessor, or let each label texts of its own."
            raise ValueError(error_message("teacher and student must read a text alike", received, remedy))
    return _applied(reading[0], inputs)


def without_strings(x: Data, y: Data, sample_weight: Data, *models: Any) -> tuple[Data, Data, Data]:
    """A `fit`'s data with arrays in place of texts; data without texts as they are.

    Raises:
        ValueError: a stream of texts, or what `preprocess_strings` refuses.
    """
    refuse_string_stream(x)
    if not holds_strings(x):
        return x, y, sample_weight
    x, made_y, made_weight = unpacked_strings(x, *models)
    if y is not None:
        return x, y, sample_weight
    # What a causal language model's preprocessor makes beside the inputs.
    return x, made_y, made_weight if sample_weight is None else sample_weight


def refuse_string_stream(dataset: Data) -> None:
    """Raises `ValueError` where the inputs of a `tf.data.Dataset` are texts."""
    spec = getattr(dataset, "element_spec", None)
    if spec is None or getattr(dataset, "shape", None) is not None:
        return
    inputs = spec[0] if isinstance(spec, tuple) else spec
    if any("string" in str(getattr(part, "dtype", "")) for part in keras.tree.flatten(inputs)):
        remedy = "Map them first: dataset.map(lambda x, y: (student.preprocessor(x), y))."
        raise ValueError(error_message("a tf.data.Dataset must give what the models read", "texts", remedy))


def _applied(model: Any, inputs: Data) -> tuple[TensorTree, TensorTree, TensorTree]:
    texts = tuple(map(_listed, inputs)) if isinstance(inputs, tuple) else _listed(inputs)
    made = keras.tree.map_structure(ops.convert_to_numpy, model.preprocessor(texts))
    return keras.utils.unpack_x_y_sample_weight(made)


def _listed(part: Any) -> list[str]:
    values = ops.convert_to_numpy(part) if ops.is_tensor(part) else np.asarray(part, dtype=object)
    return [text.decode() if isinstance(text, bytes) else str(text) for text in values.reshape(-1)]


def _some(inputs: Data) -> Data:
    return tuple(part[:_NUM_COMPARED] for part in inputs) if isinstance(inputs, tuple) else inputs[:_NUM_COMPARED]


def _are_alike(one: TensorTree, other: TensorTree) -> bool:
    try:
        keras.tree.assert_same_structure(one, other)
    except (ValueError, TypeError):
        return False
    pairs = zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True)
    return all(a.shape == b.shape and bool((a == b).all()) for a, b in pairs)


def _described(made: TensorTree) -> str:
    parts = made.items() if isinstance(made, dict) else enumerate(keras.tree.flatten(made))
    return ", ".join(f"{name} {getattr(part, 'shape', '')}" for name, part in parts)
