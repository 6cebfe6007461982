"""What is refused rather than trained: heads, losses, labels and soft targets that do not fit each other."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import error_message
from keras_distill._types import Data, Tensor, TensorTree
from keras_distill.distillation.objective import Term
from keras_distill.distillation.promises import Promise
from keras_distill.models.forward_pass import ForwardPass
from keras_distill.models.heads import LINEAR, MISPLACED
from keras_distill.models.probabilities import SIGMOID, SOFTMAX
from keras_distill.models.strings import holds_strings
from keras_distill.schedules import current

_LOSSES_OF_PROBABILITIES = ("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy")


def check_not_empty(x: Data) -> None:
    """Raises `ValueError` where a training set is known to hold nothing."""
    num_items = None
    if isinstance(x, (np.ndarray, list, tuple, dict)) and keras.tree.flatten(x):
        num_items = min((len(part) for part in keras.tree.flatten(x) if hasattr(part, "__len__")), default=None)
    elif hasattr(x, "cardinality"):
        num_items = int(x.cardinality())
    if num_items == 0:
        raise ValueError(error_message("the training set must not be empty", "0 items"))


def check_labels_are_numbers(x: Data, y: Data) -> None:
    """Raises `ValueError` where labels are texts, those of a `tf.data.Dataset` too."""
    spec = getattr(x, "element_spec", None)
    labels = spec[1] if isinstance(spec, tuple) and len(spec) > 1 else y
    if holds_strings(labels):
        remedy = "Number the classes: numpy.unique(labels, return_inverse=True)[1]."
        raise ValueError(error_message("labels must be numbers, those of classes integers", "texts", remedy))


def check_label_range(labels: TensorTree, loss: Any, num_classes: int | None) -> None:
    """Raises `ValueError` where an array of labels holds one that is no class of the student's."""
    is_sparse = loss == "sparse_categorical_crossentropy" or isinstance(
        loss, keras.losses.SparseCategoricalCrossentropy
    )
    if not isinstance(labels, np.ndarray) or not is_sparse or num_classes is None or not labels.size:
        return
    outside = labels[((labels < 0) | (labels >= num_classes)) & (labels != getattr(loss, "ignore_class", None))]
    if outside.size:
        remedy = "For items without a label use SparseCategoricalCrossentropy(ignore_class=-1)."
        raise ValueError(
            error_message(f"labels must be in [0, {num_classes})", f"{outside[0]} ({outside.size} such)", remedy)
        )


def check_heads(terms: Sequence[Term], who: str, activation_of: Callable[[Term], str | None]) -> None:
    """Raises `ValueError` for a softmax loss on a sigmoid head, or the reverse: it would train, and be wrong.

    Args:
        terms: the distillation losses.
        who: `"teacher"` or `"student"`.
        activation_of: the activation that ends the output which a term reads.
    """
    for term in terms:
        expected, activation = term.head, activation_of(term)
        expectation = f"the head of the {who} under {type(term.loss).__name__} must be {expected}"
        if activation == MISPLACED and expected in (SOFTMAX, SIGMOID):
            remedy = "Move the classes last before the softmax, with keras.layers.Permute, or end the model before it."
            raise ValueError(error_message(f"{expectation} over the last axis", activation, remedy))
        # Keras's own losses may compare the logits of sigmoids too.
        if (
            activation in (SOFTMAX, SIGMOID)
            and expected not in (None, activation)
            and hasattr(term.loss, "per_example")
        ):
            name = "BinarySoftTargets" if activation == SIGMOID else "SoftTargets"
            remedy = f"Use a loss for it, such as keras_distill.losses.{name}."
            if expected == LINEAR:
                remedy = f"Let the models end in the numbers themselves; for probabilities use {name}."
            raise ValueError(error_message(expectation, activation, remedy))


def check_loss_fits_head(loss: Any, activation: Any) -> None:
    """Raises `ValueError` for a loss of probabilities on a student that ends in logits: it trains, and badly."""
    if activation != "linear" or keras.tree.is_nested(loss):
        return
    if loss in _LOSSES_OF_PROBABILITIES:
        name = "".join(word.capitalize() for word in loss.split("_"))
    elif isinstance(loss, keras.losses.Loss) and loss.get_config().get("from_logits") is False:
        name = type(loss).__name__
    else:
        return
    remedy = f"Pass loss=keras.losses.{name}(from_logits=True)."
    raise ValueError(
        error_message("a student that ends in logits needs a loss of logits", "one of probabilities", remedy)
    )


def num_not_finite(soft_targets: TensorTree) -> Tensor:
    """For each tensor among the soft targets 1.0 where it holds NaN or infinite values, else 0.0."""
    # Values times zero sum to zero exactly where all of them are finite: one pass, no boolean tensor.
    sums = [ops.sum(ops.cast(values, "float32") * 0.0) for values in keras.tree.flatten(soft_targets)]
    return ops.stack([ops.cast(ops.isnan(total), "float32") for total in sums])


def num_of_other_temperature(
    terms: Sequence[Term], soft_targets: TensorTree, output_names: Sequence[str] | None
) -> Tensor | None:
    """How many rows were sampled at another temperature than their loss has now; `None` where none was sampled."""
    counts = []
    for term in terms:
        rows = term.part_of(soft_targets, output_names)
        if isinstance(rows, dict) and "sampling_temperature" in rows and hasattr(term.loss, "temperature"):
            ratio = rows["sampling_temperature"] / ops.cast(current(term.loss.temperature), "float32")
            counts.append(ops.sum(ops.cast(ops.abs(ratio - 1.0) > 1e-3, "float32")))
    return ops.sum(ops.stack(counts)) if counts else None


def _promise_of(who: str, term: Term, run: ForwardPass | None, activation: Any) -> Promise | None:
    """What nothing but the caller's word says of the logits that a term reads; `None` where their head is known.

    Args:
        who: `"teacher"` or `"student"`.
        term: the distillation loss.
        run: the model's pass; `None` for soft targets that a batch brings.
        activation: what ends the output that the term reads, if it is known.
    """
    if term.head not in (SOFTMAX, SIGMOID) or activation is not None:
        return None
    if run is None:
        remedy = "Pass logits: of a softmax's probabilities that is the logarithm."
        return Promise("the soft targets", True, term.head, remedy)
    remedy = f"Pass {who}_from_logits={not run.from_logits} to Distiller"
    remedy += f", or let the model end before its {term.head}." if run.from_logits else "."
    return Promise(f"the {who}'s outputs", run.from_logits, term.head, remedy)


def promised_logits(
    terms: Sequence[Term],
    sides: Sequence[tuple[str, ForwardPass | None, TensorTree]],
    output_names: Sequence[str] | None,
) -> dict[int, tuple[Promise, Tensor]]:
    """The logits of a batch of which nothing is known but what the caller said.

    Args:
        terms: the distillation losses.
        sides: `"teacher"` and `"student"`, each with its pass (`None` for soft targets that a batch brings) and logits.
        output_names: the student's outputs, in their order.

    Returns:
        What `Promises.update_state` takes; the tensor of side s for term t is at position t · len(sides) + s.
    """
    found = {}
    for place, (term, (who, run, structure)) in enumerate(itertools.product(terms, sides)):
        activations = None if run is None else run.activations
        promise = _promise_of(who, term, run, term.part_of(activations, output_names))
        logits = term.part_of(structure, output_names)
        if isinstance(logits, dict):
            # Of the largest k of a row nobody knows the sum.
            logits = logits.get("member_logits")
        if promise is not None and ops.is_tensor(logits):
            found[place] = promise, logits
    return found
