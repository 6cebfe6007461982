"""From a teacher to the rows of a store: its forward pass as fields, and the manifest that describes them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_count, check_positive, error_message
from keras_distill.models.compilation import compiled
from keras_distill.models.forward_pass import logits_model
from keras_distill.models.heads import LINEAR, find_heads
from keras_distill.models.layer_roles import is_readable
from keras_distill.models.probabilities import SOFTMAX, activation_behind, logits_of, promised_activation
from keras_distill.targets.manifest import Manifest

if TYPE_CHECKING:
    pass


def row_function(
    teacher: Callable,
    first_batch: Any,
    members: bool,
    temperature: float | None,
    top_k: int | None,
    dtype: str,
    from_logits: bool,
) -> Callable:
    """A function from inputs to the fields of rows, with one trace for all batches.

    `first_batch` shows whether a teacher of which nothing is known gives what `from_logits` promises.
    """
    if temperature is not None:
        check_positive("temperature", temperature)
        if members:
            raise ValueError(
                error_message("temperature must be None with members=True", temperature, "Members serve every one.")
            )
    if members and top_k is not None:
        raise ValueError(
            error_message("top_k must be None with members=True", top_k, "Merge them at a temperature instead.")
        )
    if hasattr(teacher, "soft_targets"):
        run = teacher.soft_targets
    elif isinstance(teacher, keras.Model):
        # Dense rows show by themselves what the teacher gives.
        example = first_batch if top_k is not None or not from_logits else None
        model = logits_model(teacher, from_logits=from_logits, example=example)
        run = lambda inputs: model(inputs, training=False)  # noqa: E731
    else:
        run = _KeepsItsPromise(teacher, from_logits)

    def rows(given: Any) -> dict[str, Any]:
        if isinstance(given, dict) and not members:
            if temperature is None:
                remedy = "Pass members=True, or the temperature at which to merge them."
                raise ValueError(
                    error_message(
                        "an arithmetic ensemble's store must hold its members or their merged logits", "neither", remedy
                    )
                )
            each = ops.log_softmax(given["member_logits"] / temperature, axis=-1)
            weights = ops.expand_dims(ops.log(given["member_weights"]), axis=-1)
            given = temperature * ops.logsumexp(each + weights, axis=-2)
        elif members and not isinstance(given, dict):
            remedy = "Only an arithmetic Ensemble has members to keep; a geometric one is right at every temperature."
            raise ValueError(
                error_message("members=True needs a teacher that is an arithmetic ensemble", "another", remedy)
            )
        elif temperature is not None and not isinstance(given, dict):
            remedy = "Raw logits serve every temperature: leave it out."
            raise ValueError(
                error_message(
                    "temperature must be left out unless the teacher is an arithmetic ensemble", temperature, remedy
                )
            )
        if isinstance(given, dict):
            return {**given, "member_logits": ops.cast(given["member_logits"], dtype)}
        logits = ops.cast(given, "float32")
        if top_k is None:
            return {"logits": ops.cast(logits, dtype), "width": ops.shape(logits)[-1]}
        if check_count("top_k", top_k) > logits.shape[-1]:
            raise ValueError(error_message(f"top_k must be <= {logits.shape[-1]}, the number of classes", top_k))
        values, ids = ops.top_k(logits, top_k)
        normalizer = ops.logsumexp(logits, axis=-1)
        fields = {"top_k_logits": ops.cast(values, dtype), "top_k_ids": ids, "log_normalizer": normalizer}
        return {**fields, "width": ops.shape(logits)[-1]}

    if isinstance(teacher, keras.Model):
        return compiled(lambda inputs: rows(run(inputs)), teacher)
    compiled_rows = compiled(rows)

    def eagerly(inputs: Any) -> dict[str, Any]:
        # A teacher that is no Keras model may be of any framework: it takes and gives NumPy's arrays.
        given = run(keras.tree.map_structure(np.asarray, inputs))
        return compiled_rows(keras.tree.map_structure(ops.convert_to_tensor, given))

    return eagerly


def check_rows(teacher: Callable, rows: dict[str, np.ndarray]) -> None:
    """Raises `ValueError` where the rows of a first batch are probabilities."""
    logits = rows.get("logits", rows.get("member_logits"))
    if logits is None or activation_behind(logits) != SOFTMAX:
        return
    # A softmax of a softmax has such logits.
    outputs = getattr(teacher, "outputs", []) if is_readable(teacher) else []
    if not outputs or any(head.activation in (None, LINEAR) for head in find_heads(outputs)):
        promised_activation("the teacher's outputs", logits, from_logits=True)


class _KeepsItsPromise:
    """A callable whose logits are wanted, as a callable that gives them; its first batch is looked at."""

    def __init__(self, teacher: Callable, from_logits: bool):
        self._teacher, self._from_logits = teacher, from_logits
        self._activation: str | None = None
        self._was_looked_at = False

    def __call__(self, inputs: Any) -> Any:
        given = self._teacher(inputs)
        if not self._was_looked_at:
            self._activation = promised_activation("the teacher's outputs", given, self._from_logits)
            self._was_looked_at = True
        return given if self._activation is None else logits_of(ops.convert_to_tensor(given), self._activation)


def describe_rows(
    outputs: dict[str, np.ndarray], members: bool, temperature: float | None, top_k: int | None, dtype: str
) -> Manifest:
    """The manifest of a first batch's rows, the dataset not yet filled in."""
    if members:
        logits = outputs["member_logits"]
        weights = outputs["member_weights"].reshape(-1, logits.shape[-2])[0]
        return Manifest(
            kind="members",
            num_items=1,
            num_classes=logits.shape[-1],
            example_shape=logits.shape[1:-2],
            dtype=dtype,
            member_weights=tuple(float(weight) for weight in weights),
        )
    first = outputs["logits" if top_k is None else "top_k_logits"]
    if first.ndim < 2:
        raise ValueError(
            error_message("the teacher's logits must have shape (batch, …, num_classes)", f"shape {first.shape}")
        )
    return Manifest(
        kind="dense" if top_k is None else "top_k",
        num_items=1,
        num_classes=int(outputs["width"]),
        example_shape=first.shape[1:-1],
        dtype=dtype,
        top_k=top_k,
        temperature=None if temperature is None else float(temperature),
    )
