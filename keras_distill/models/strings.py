"""Texts for models that carry a preprocessor, as KerasHub's tasks do: made token ids once, before anything is trained.

KerasHub's own `fit` and `predict` do so for one model. Beside a teacher both models must read a text alike, and a store
knows its items again by what the models see: so the arrays come first, and everything after them is as always.

Models with an input of dtype string, as those that begin with a `TextVectorization`, get the texts themselves.
"""

from collections.abc import Sequence
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


def as_texts(inputs: Data) -> TensorTree:
    """Inputs with the texts among them in the one form that Keras trains on: arrays of objects, each a `str`.

    A column `(num_items, 1)` becomes `(num_items,)`, of which Keras makes a column again for a model that wants one.

    Example:
        >>> as_texts(np.array(["a", "bc"])), as_texts([b"a", "bc"]), as_texts({"age": np.zeros(1)})
        (array(['a', 'bc'], dtype=object), array(['a', 'bc'], dtype=object), {'age': array([0.])})
    """
    if not holds_strings(inputs):
        return inputs
    if isinstance(inputs, dict):
        return {name: as_texts(part) for name, part in inputs.items()}
    if isinstance(inputs, (list, tuple)) and not isinstance(inputs[0], (str, bytes)):
        return type(inputs)(as_texts(part) for part in inputs)
    values = ops.convert_to_numpy(inputs) if ops.is_tensor(inputs) else np.asarray(inputs, dtype=object)
    texts = np.empty(values.size, object)
    texts[:] = [text.decode() if isinstance(text, bytes) else str(text) for text in values.reshape(-1)]
    # Keras's `fit` takes no array of texts that has more than one axis.
    return texts if values.shape[1:] == (1,) else texts.reshape(values.shape)


def reads_texts(model: Any) -> bool:
    """Whether a model takes texts as they are: one of its inputs is of dtype string."""
    return any(str(getattr(tensor, "dtype", "")) == "string" for tensor in getattr(model, "inputs", None) or [])


def preprocess_strings(inputs: Data, *models: Any) -> TensorTree:
    """What the models read of texts, as arrays: what their preprocessors make, or the texts themselves.

    Args:
        inputs: texts, as `holds_strings` knows them.
        *models: those that will read them; one at least has a `preprocessor`, and those that have one agree; or one
            has an input of dtype string, and no other reads anything else.

    Returns:
        Arrays, usually a dict by input name. Of a preprocessor that makes labels too, as a causal language model's,
        the inputs alone (see `unpacked_strings`).

    Raises:
        ValueError: no model reads texts, or two read the same texts differently.
    """
    return unpacked_strings(inputs, *models)[0]


def unpacked_strings(inputs: Data, *models: Any) -> tuple[TensorTree, TensorTree, TensorTree]:
    """Inputs, and the labels and weights that a causal language model's preprocessor makes beside them, or `None`."""
    if _read_by_themselves(models):
        return as_texts(inputs), None, None
    reading = [model for model in models if getattr(model, "preprocessor", None) is not None]
    if not reading:
        expectation = "texts must be read by a model with a preprocessor, or with an input of dtype string"
        remedy = "Make token ids of them first, with keras_distill.data.text for one, or attach a preprocessor."
        raise ValueError(error_message(expectation, "neither", remedy))
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
        ValueError: a stream of texts that no model reads, or what `preprocess_strings` refuses.
    """
    refuse_string_stream(x, *models)
    if not holds_strings(x):
        return x, y, sample_weight
    x, made_y, made_weight = unpacked_strings(x, *models)
    if y is not None:
        return x, y, sample_weight
    # What a causal language model's preprocessor makes beside the inputs.
    return x, made_y, made_weight if sample_weight is None else sample_weight


def refuse_string_stream(dataset: Data, *models: Any) -> None:
    """Raises `ValueError` where the inputs of a `tf.data.Dataset` are texts, unless the models read these."""
    spec = getattr(dataset, "element_spec", None)
    if spec is None or getattr(dataset, "shape", None) is not None:
        return
    inputs = spec[0] if isinstance(spec, tuple) else spec
    holds_texts = any("string" in str(getattr(part, "dtype", "")) for part in keras.tree.flatten(inputs))
    if holds_texts and not _read_by_themselves(models):
        remedy = "Map them first: dataset.map(lambda x, y: (student.preprocessor(x), y))."
        raise ValueError(error_message("a tf.data.Dataset must give what the models read", "texts", remedy))


def _read_by_themselves(models: Sequence[Any]) -> bool:
    """Whether the models take texts as they are; raises where one does and another takes something else."""
    own = [model for model in models if reads_texts(model)]
    # Of a function, and of a subclassed model, nobody knows what it takes.
    others = [model for model in models if model not in own and getattr(model, "inputs", None)]
    if own and others:
        expectation = "teacher and student must read a text alike"
        received = f"texts by {own[0].name} and {others[0].inputs[0].dtype} by {others[0].name}"
        remedy = "Cut the TextVectorization off and give both the token ids that it makes."
        raise ValueError(error_message(expectation, received, remedy))
    return bool(own)


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
