"""What a `Distiller` minimises: its losses, their weights and the outputs that they read."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_distill._checks import check_number, error_message
from keras_distill.schedules import check_schedulable


@dataclass(frozen=True)
class Term:
    """One distillation loss, its weight, and the output that it reads where there are several."""

    loss: Any
    weight: Any
    output_name: str | None


@dataclass(frozen=True)
class Objective:
    """What is summed, where Keras's trackers do not look, and how the caller wrote it."""

    terms: list[Term]
    student_loss_weight: Any
    given_losses: Any
    given_weights: Any

    def layers(self) -> list[keras.Layer]:
        """The layers among the losses' arguments and the weights, each once."""
        layers = [layer for term in self.terms for layer in getattr(term.loss, "layers", [])]
        weights = [*[term.weight for term in self.terms], self.student_loss_weight]
        layers += [weight for weight in weights if isinstance(weight, keras.Layer)]
        return list({id(layer): layer for layer in layers}.values())


def check_losses(losses: Any) -> list[tuple[str | None, Any]]:
    """(output name or `None`, loss or `None`) of each, checked."""
    by_output = list(losses) if isinstance(losses, (list, tuple)) else [losses]
    named: list[tuple[str | None, Any]] = []
    for losses_ in by_output:
        named += list(losses_.items()) if isinstance(losses_, dict) else [(None, losses_)]
    if not any(loss is not None for _, loss in named):
        raise ValueError(error_message("distillation_losses must be one loss or several", "an empty list"))
    for _, loss in named:
        if loss is None:
            continue
        if not hasattr(loss, "compute_loss"):
            remedy = "For example keras_distill.losses.SoftTargets(temperature=4.0)."
            raise TypeError(
                error_message("a distillation loss must be a keras.distillation.DistillationLoss", repr(loss), remedy)
            )
        if isinstance(loss, keras.distillation.LogitsDistillation) and keras.losses.kl_divergence in keras.tree.flatten(
            loss.loss
        ):
            warnings.warn(
                "LogitsDistillation with loss='kl_divergence', its default, compares raw logits without softmax or T². "
                "Pass keras_distill.losses.SoftTargets(temperature=…), or "
                "LogitsDistillation(temperature=…, loss=keras.losses.KLDivergence()).",
                stacklevel=3,
            )
        if getattr(loss, "from_logits", True) is False:
            remedy = "Leave from_logits out: a Distiller takes the heads off and hands on logits."
            raise ValueError(
                error_message(f"{type(loss).__name__} in a Distiller must take logits", "from_logits=False", remedy)
            )
    return named


def weighted_terms(named_losses: list[tuple[str | None, Any]], weights: Any) -> list[Term]:
    """The losses with their weights; an output without a loss has no term."""
    if weights is None:
        flat: list[Any] = [1.0] * len(named_losses)
    else:
        weights = list(weights) if isinstance(weights, (list, tuple)) else [weights]
        flat, names = [], [name for name, _ in named_losses]
        for weight in weights:
            if isinstance(weight, dict):
                flat += [weight.get(name, 1.0) for name in names[len(flat) : len(flat) + len(weight)]]
            else:
                flat.append(weight)
    if len(flat) != len(named_losses):
        raise ValueError(
            error_message(f"there must be {len(named_losses)} distillation_loss_weights, one for each loss", len(flat))
        )
    return [
        Term(loss, check_schedulable("a distillation loss's weight", weight, _check_weight), name)
        for (name, loss), weight in zip(named_losses, flat, strict=True)
        if loss is not None
    ]


def _check_weight(name: str, weight: Any) -> float:
    if not 0.0 <= check_number(name, weight) < float("inf"):
        raise ValueError(error_message(f"{name} must be >= 0 and finite", weight))
    return float(weight)


def may_differ(weight: Any, number: float) -> bool:
    """Whether a weight is, or may become, other than `number`."""
    return not isinstance(weight, float) or weight != number


def map_losses(function: Callable[[Any], Any], structure: Any) -> Any:
    """`function` of each loss or weight in a list, a dict or a list of dicts; `None` stays."""
    if isinstance(structure, dict) and "class_name" not in structure:
        return {name: map_losses(function, value) for name, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [map_losses(function, value) for value in structure]
    return None if structure is None else function(structure)


def layer_names(losses: Sequence[Any], attribute: str) -> list[str]:
    """The layers whose features the losses compare, of the teacher or of the student."""
    return sorted({name for loss in losses if (name := getattr(loss, attribute, None)) is not None})
