"""From a teacher to the rows of a store: its forward pass as fields, and the manifest that describes them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_count, check_positive, error_message
from keras_distill._types import Teacher, Tensor, TensorTree
from keras_distill.models.compilation import compiled
from keras_distill.models.fixed_batch import fixed_batch_of, in_portions
from keras_distill.models.forward_pass import logits_model
from keras_distill.models.heads import LINEAR, find_heads
from keras_distill.models.layer_roles import is_readable
from keras_distill.models.probabilities import SOFTMAX, activation_behind, logits_of, promised_activation
from keras_distill.targets.manifest import NOTHING, Manifest
from keras_distill.targets.sampling import draw, uniforms


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """What is kept of a teacher's logits: arguments of `label`, but for `divisor`.

    What the teacher gives, an ensemble's every member, is divided by `divisor` before anything is made of it.
    """

    members: bool = False
    temperature: float | None = None
    top_k: int | None = None
    dtype: str = "float16"
    from_logits: bool = True
    divisor: float = 1.0
    sample: int | None = None


def row_function(teacher: Teacher, first_batch: TensorTree, options: RowOptions) -> Callable:
    """A function from inputs to what rows are made of, with one trace for all batches.

    `first_batch` shows whether a teacher of which nothing is known gives what `from_logits` promises.
    """
    members, temperature, top_k, dtype = options.members, options.temperature, options.top_k, options.dtype
    from_logits, divisor, sample = options.from_logits, options.divisor, options.sample
    if temperature is not None:
        check_positive("temperature", temperature)
        if members:
            raise ValueError(
                error_message("temperature must be None with members=True", temperature, "Members serve every one.")
            )
    if sample is not None:
        check_count("sample", sample)
        if members or top_k is not None:
            received = "members=True" if members else f"top_k={top_k}"
            raise ValueError(error_message("sample must be given alone", received, "A row is of one kind."))
    if members and top_k is not None:
        raise ValueError(
            error_message("top_k must be None with members=True", top_k, "Merge them at a temperature instead.")
        )
    if hasattr(teacher, "soft_targets"):
        run = teacher.soft_targets
    elif isinstance(teacher, keras.Model):
        _only_output(getattr(teacher, "output", None) if teacher.built else None)
        # Dense rows show by themselves what the teacher gives.
        example = first_batch if top_k is not None or not from_logits else None
        model = logits_model(teacher, from_logits=from_logits, example=example)
        run = lambda inputs: model(inputs, training=False)  # noqa: E731
    else:
        run = _KeepsItsPromise(teacher, from_logits)

    def rows(given: TensorTree) -> dict[str, Tensor]:
        given = _divided(_only_output(given), divisor)
        is_merged = isinstance(given, dict)
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
        elif temperature is not None and sample is None and not isinstance(given, dict):
            remedy = "Raw logits serve every temperature: leave it out."
            raise ValueError(
                error_message(
                    "temperature must be left out unless the teacher is an arithmetic ensemble or rows are sampled",
                    temperature,
                    remedy,
                )
            )
        if isinstance(given, dict):
            return {**given, "member_logits": ops.cast(given["member_logits"], dtype)}
        logits = ops.cast(given, "float32")
        if sample is not None:
            return _to_draw_from(logits, sample, temperature or 1.0) | {"is_merged": int(is_merged)}
        if top_k is None:
            return {"logits": ops.cast(logits, dtype), "width": ops.shape(logits)[-1]}
        if check_count("top_k", top_k) > logits.shape[-1]:
            raise ValueError(error_message(f"top_k must be <= {logits.shape[-1]}, the number of classes", top_k))
        values, ids = ops.top_k(logits, top_k)
        fields = {"top_k_logits": ops.cast(values, dtype), "top_k_ids": ids, "log_tail": _log_tail(logits, ids)}
        return {**fields, "width": ops.shape(logits)[-1]}

    if isinstance(teacher, keras.Model):
        size = fixed_batch_of(teacher)
        rows_of = compiled(lambda inputs: rows(run(inputs)), teacher)
        return rows_of if size is None else in_portions(rows_of, size)
    compiled_rows = compiled(rows)

    def eagerly(inputs: TensorTree) -> dict[str, Tensor]:
        # A teacher that is no Keras model may be of any framework: it takes and gives NumPy's arrays.
        given = run(keras.tree.map_structure(ops.convert_to_numpy, inputs))
        return compiled_rows(keras.tree.map_structure(ops.convert_to_tensor, given))

    return eagerly


def check_inputs(teacher: Teacher, batch: TensorTree) -> None:
    """Raises `ValueError` where a batch has other sizes than a Keras model was built for."""
    tensors = getattr(teacher, "inputs", None) if isinstance(teacher, keras.Model) else None
    arrays = keras.tree.flatten(batch)
    if not tensors or len(tensors) != len(arrays) or isinstance(batch, dict):
        return
    for tensor, array in zip(tensors, arrays, strict=True):
        wanted, given = tuple(tensor.shape[1:]), tuple(array.shape[1:])
        # Keras itself adds or drops a last axis of one place.
        if len(wanted) == len(given) and any(a not in (None, b) for a, b in zip(wanted, given, strict=True)):
            remedy = (
                "Wrap it in a model that takes them: keras.Sequential([keras.Input(…), layers.Resizing(…), teacher])."
            )
            expectation = f"the teacher's inputs must have shape {('batch', *wanted)}, as it was built"
            raise ValueError(error_message(expectation, ("batch", *given), remedy))


def check_rows(teacher: Teacher, rows: dict[str, np.ndarray]) -> None:
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

    def __init__(self, teacher: Teacher, from_logits: bool):
        self._teacher, self._from_logits = teacher, from_logits
        self._activation: str | None = None
        self._was_looked_at = False

    def __call__(self, inputs: TensorTree) -> TensorTree:
        given = _only_output(self._teacher(inputs))
        if not self._was_looked_at:
            self._activation = promised_activation("the teacher's outputs", given, self._from_logits)
            self._was_looked_at = True
        return given if self._activation is None else logits_of(ops.convert_to_tensor(given), self._activation)


def _only_output(given: TensorTree) -> TensorTree:
    """What a teacher gives: its logits, or an ensemble's members; raises `ValueError` where it has several outputs."""
    if not keras.tree.is_nested(given) or (isinstance(given, dict) and "member_logits" in given):
        return given
    outputs = keras.tree.flatten(given)
    if len(outputs) != 1:
        received = f"{len(outputs)}" + (f", {', '.join(map(repr, given))}" if isinstance(given, dict) else "")
        remedy = "Label each into a store of its own: keras.Model(teacher.inputs, teacher.outputs[0]) and so on."
        raise ValueError(error_message("a teacher must have one output to be labelled with", received, remedy))
    return outputs[0]


def _divided(given: TensorTree, divisor: float) -> TensorTree:
    """Logits, or an ensemble's members, divided by a temperature: at half precision too they do not grow."""
    if divisor == 1.0:
        return given
    if isinstance(given, dict):
        return {**given, "member_logits": ops.cast(given["member_logits"], "float32") / divisor}
    return ops.cast(given, "float32") / divisor


def _log_tail(logits: Tensor, kept_ids: Tensor) -> Tensor:
    """The log-sum-exp of all logits `(…, num_classes)` but those at `kept_ids`, `(…, k)`; `(…)`.

    By itself and not as a difference: 1 − Σ softmax(kept) is rounding and nothing else once the tail is below 1e-7.
    A NaN that is not among the k stays in the sum, where it is found.
    """
    num_classes, k = logits.shape[-1], kept_ids.shape[-1]
    ids = ops.reshape(kept_ids, (-1, k))
    items = ops.broadcast_to(ops.arange(ops.shape(ids)[0], dtype=ids.dtype)[:, None], ops.shape(ids))
    places = ops.stack([ops.reshape(items, (-1,)), ops.reshape(ids, (-1,))], axis=-1)
    nothing = ops.full(ops.shape(places)[:1], NOTHING, dtype=logits.dtype)
    others = ops.scatter_update(ops.reshape(logits, (-1, num_classes)), places, nothing)
    return ops.maximum(ops.reshape(ops.logsumexp(others, axis=-1), ops.shape(logits)[:-1]), NOTHING)


def _to_draw_from(logits: Tensor, sample: int, temperature: float) -> dict[str, Tensor]:
    """What the classes of sampled rows are drawn from, which is NumPy's to do."""
    if sample > logits.shape[-1]:
        raise ValueError(error_message(f"sample must be <= {logits.shape[-1]}, the number of classes", sample))
    log_shares = ops.log_softmax(logits / temperature, axis=-1)
    entropy = -ops.sum(ops.exp(log_shares) * log_shares, axis=-1)
    return {"logits": logits, "largest_ids": ops.top_k(logits, sample)[1], "entropy": entropy}


def stored_fields(
    manifest: Manifest, outputs: dict[str, np.ndarray], rows: np.ndarray, places: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The fields of a batch's rows.

    Args:
        manifest: of the store.
        outputs: what the function of `row_function` gave.
        rows: int64 `(n,)`: what sampled rows are drawn by.
        places: which of the outputs are the rows; `None` for one an item.
    """
    names = manifest.row_dtype.names or ()
    if manifest.kind == "sampled":
        names = ("logits", "largest_ids", "entropy")
    fields = {name: ops.convert_to_numpy(outputs[name]) for name in names}
    if places is not None:
        fields = {name: values[places] for name, values in fields.items()}
    if manifest.kind != "sampled":
        return fields
    assert manifest.sampling_seed is not None  # the manifest saw to it
    assert manifest.sampling_temperature is not None
    logits, largest_ids, entropy = fields.values()
    numbers = uniforms(manifest.sampling_seed, rows, 2 * math.prod(manifest.example_shape)).reshape(-1, 2)
    shape, (num_classes, k) = largest_ids.shape, (logits.shape[-1], largest_ids.shape[-1])
    flat, flat_ids = logits.reshape(-1, num_classes), largest_ids.reshape(-1, k)
    ids, counts = draw(flat, flat_ids, numbers, manifest.sampling_temperature)
    return {"sampled_ids": ids.reshape(shape), "counts": counts.reshape(shape), "entropy": entropy}


def describe_rows(outputs: dict[str, np.ndarray], options: RowOptions, seed: int = 0) -> Manifest:
    """The manifest of a first batch's rows, the dataset not yet filled in; `seed` is that of what is drawn."""
    temperature, top_k, dtype, sample = options.temperature, options.top_k, options.dtype, options.sample
    if options.members:
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
    if sample is not None:
        is_merged = temperature is not None and bool(outputs["is_merged"])
        return Manifest(
            kind="sampled",
            num_items=1,
            num_classes=first.shape[-1],
            example_shape=first.shape[1:-1],
            # That of the entropy: there is no logit in such a row.
            dtype="float32",
            sample=sample,
            sampling_temperature=float(temperature or 1.0),
            sampling_seed=seed,
            temperature=float(temperature) if is_merged and temperature is not None else None,
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
