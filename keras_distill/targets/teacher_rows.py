"""From a teacher to the rows of a store: its forward pass as fields, and the manifest that describes them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_count, check_positive, error_message
from keras_distill.models.compilation import compiled
from keras_distill.models.forward_pass import logits_model
from keras_distill.targets.manifest import Manifest

if TYPE_CHECKING:
    pass


def row_function(
    teacher: Callable, members: bool, temperature: float | None, top_k: int | None, dtype: str, from_logits: bool
) -> Callable:
    """A function from inputs to the fields of rows, with one trace for all batches."""
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
        model = logits_model(teacher, from_logits=from_logits)
        run = lambda inputs: model(inputs, training=False)  # noqa: E731
    else:
        run = teacher if from_logits else lambda inputs: ops.log(ops.maximum(teacher(inputs), 1e-30))

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
