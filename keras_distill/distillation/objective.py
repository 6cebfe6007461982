"""What a `Distiller` minimises: its losses, their weights and the outputs that they read."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_number, error_message
from keras_distill._keras_internals import mask_of
from keras_distill._types import Tensor, TensorTree
from keras_distill.distillation.batch import LABELS, SOFT_TARGETS, TEACHER_FEATURES, masked_weights
from keras_distill.losses.reduction import WeightedMean, is_mask_of
from keras_distill.models.forward_pass import Outputs
from keras_distill.schedules import check_schedulable, current


@dataclass(frozen=True)
class Term:
    """One distillation loss, its weight, and the output that it reads where there are several."""

    loss: Any
    weight: Any
    output_name: str | None

    @property
    def head(self) -> str | None:
        """The activation of the heads whose logits the loss compares; `None` where it compares features, or any.

        Keras's own losses of logits are those of a softmax.
        """
        if isinstance(self.loss, keras.distillation.LogitsDistillation):
            return "softmax"
        is_of_features = getattr(self.loss, "teacher_layer_name", None) is not None
        return None if is_of_features else getattr(self.loss, "head", None)

    def part_of(self, structure: TensorTree, output_names: Sequence[str] | None) -> TensorTree:
        """This term's own part of what may be one tensor or one for each output.

        Args:
            structure: logits, labels, weights or activations.
            output_names: the student's outputs, in their order.
        """
        is_several = isinstance(structure, (list, tuple)) or (
            isinstance(structure, dict) and not is_one_target(structure)
        )
        if structure is None or not is_several:
            return structure
        if self.output_name is None:
            if not hasattr(self.loss, "per_example") or self.loss.teacher_layer_name is not None:
                return structure
            if len(structure) == 1:
                # A layer of a SavedModel gives a dict of its only output.
                return next(iter(structure.values())) if isinstance(structure, dict) else structure[0]
            names = list(structure) if isinstance(structure, dict) else output_names
            expectation = f"distillation_losses of several outputs must be given by name ({names})"
            raise ValueError(error_message(expectation, self.loss, "Give a dict {output name: loss or None}."))
        names = list(structure) if isinstance(structure, dict) else list(output_names or [])
        if self.output_name not in names:
            raise ValueError(error_message(f"output {self.output_name!r} must be one of {names}", "another"))
        return structure[self.output_name if isinstance(structure, dict) else names.index(self.output_name)]

    def pair(
        self,
        teacher_logits: TensorTree,
        teacher_features: Mapping[str, Tensor],
        student: Outputs,
        output_names: Sequence[str] | None,
    ) -> tuple[TensorTree, TensorTree]:
        """What is compared: the teacher's and the student's features, or their logits of one output."""
        sides = (
            ("teacher_layer_name", teacher_logits, teacher_features),
            ("student_layer_name", student.logits, student.features),
        )
        teacher, student_part = (
            self.part_of(logits, output_names)
            if (layer_name := getattr(self.loss, attribute, None)) is None
            else _feature(features, layer_name)
            for attribute, logits, features in sides
        )
        return teacher, student_part

    def mask(self, student_part: TensorTree, student_features: Mapping[str, Tensor]) -> Tensor | None:
        """Which places of what the student gives count: the layer that the loss names, or Keras's own mask."""
        layer_name = getattr(self.loss, "mask_layer_name", None)
        return mask_of(student_part) if layer_name is None else _feature(student_features, layer_name)


@dataclass(frozen=True)
class Objective:
    """What is summed, where Keras's trackers do not look, and how the caller wrote it."""

    terms: list[Term]
    student_loss_weight: Any
    given_losses: Any
    given_weights: Any

    @property
    def activation(self) -> str:
        """What makes probabilities of the logits that are compared: `"softmax"`, or `"sigmoid"` if all are of those."""
        return "sigmoid" if {term.head for term in self.terms} & {"softmax", "sigmoid"} == {"sigmoid"} else "softmax"

    def match(self, teacher: Outputs, student: Outputs, output_names: Sequence[str] | None) -> None:
        """Checks symbolic outputs against each other, and lets the losses make what the shapes need."""
        for term in self.terms:
            if hasattr(term.loss, "per_example"):
                pair = term.pair(teacher.logits, teacher.features, student, output_names)
                term.loss.build(*pair)
                term.loss.validate_outputs(*pair)

    def distillation_loss(
        self,
        parts: Mapping[str, TensorTree],
        student: Outputs,
        item_weights: TensorTree,
        output_names: Sequence[str] | None,
        reduce: WeightedMean,
    ) -> Tensor:
        """The weighted sum of the distillation losses of a batch, a scalar.

        Args:
            parts: the batch's soft targets, the teacher's features and the labels, whichever it has.
            student: the student's outputs.
            item_weights: of every item, or `None`.
            output_names: the student's outputs, in their order.
            reduce: from one value an example to a scalar.
        """
        losses = []
        for term in self.terms:
            loss = term.loss
            pair = term.pair(parts[SOFT_TARGETS], parts.get(TEACHER_FEATURES, {}), student, output_names)
            weights = term.part_of(item_weights, output_names)
            loss.validate_outputs(*pair)
            if hasattr(loss, "per_example"):
                context = dict.fromkeys(loss.reads)
                if "labels" in context:
                    context["labels"] = term.part_of(parts.get(LABELS), output_names)
                mask = term.mask(pair[1], student.features)
                if "mask" in context:
                    context["mask"] = mask
                if "item_weights" in context:
                    context["item_weights"] = masked_weights(weights, mask)
                values = loss.per_example(*pair, **context)
                check_mask(loss, mask, values)
                value = reduce(values, mask, weights)
            else:
                if item_weights is not None:
                    _warn_of_scalar_loss(loss)
                value = reduce(loss.compute_loss(*pair), None, None)
            losses.append(current(term.weight) * value)
        return ops.sum(ops.stack(losses))

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


def weighted_terms(named_losses: list[tuple[str | None, Any]], weights: Tensor) -> list[Term]:
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


def is_one_target(structure: Mapping[str, Any]) -> bool:
    """Whether a dict is the soft targets of one output and not a dict of outputs."""
    return any(name in structure for name in ("member_logits", "top_k_logits", "sampled_ids"))


def _feature(features: Mapping[str, Tensor], layer_name: str) -> Tensor:
    if layer_name not in features:
        remedy = "Features need the teacher beside the student: stored soft targets hold none."
        raise ValueError(error_message(f"features of layer {layer_name!r} must be there", "none", remedy))
    return features[layer_name]


def may_differ(weight: Any, number: float) -> bool:
    """Whether a weight is, or may become, other than `number`."""
    return not isinstance(weight, float) or weight != number


def map_losses(function: Callable[[Any], Any], structure: TensorTree) -> Any:
    """`function` of each loss or weight in a list, a dict or a list of dicts; `None` stays."""
    if isinstance(structure, dict) and "class_name" not in structure:
        return {name: map_losses(function, value) for name, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [map_losses(function, value) for value in structure]
    return None if structure is None else function(structure)


def layer_names(losses: Sequence[Any], *attributes: str) -> list[str]:
    """The layers whose outputs the losses read, of the teacher or of the student."""
    named = (getattr(loss, attribute, None) for loss in losses for attribute in attributes)
    return sorted({name for name in named if name is not None})


def check_mask(loss: Any, mask: Tensor | None, values: Tensor) -> None:
    """Raises `ValueError` where a mask that a loss names has another shape than what it masks."""
    name = getattr(loss, "mask_layer_name", None)
    if name is not None and mask is not None and not is_mask_of(mask, values):
        expectation = f"the mask {name!r} must have one entry for each of the {tuple(values.shape)} places that count"
        raise ValueError(error_message(expectation, tuple(mask.shape), "Name a layer whose output is (batch, tokens)."))


def _warn_of_scalar_loss(loss: Any) -> None:
    warnings.warn(
        f"{type(loss).__name__} gives one number a batch: sample weights cannot weigh it. "
        "A keras_distill.losses.PerExampleLoss respects them.",
        stacklevel=2,
    )
