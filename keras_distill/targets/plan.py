"""What a store is to be: the manifest that data and the teacher's first batch make, and the function that fills it.

The first batch costs one pass more, says what rows look like, and compiles the teacher for all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_distill._checks import error_message
from keras_distill._types import Teacher, TensorTree
from keras_distill.models.heads import head_activation
from keras_distill.models.probabilities import SIGMOID
from keras_distill.targets.calibration import divided_by
from keras_distill.targets.fingerprints import fingerprint
from keras_distill.targets.manifest import Manifest, rows_per_shard_for
from keras_distill.targets.replaying import recipe
from keras_distill.targets.source import Source
from keras_distill.targets.teacher_rows import RowOptions, check_inputs, check_rows, describe_rows, row_function

if TYPE_CHECKING:
    from keras_distill.targets.augmentation import Augmentation


@dataclass(frozen=True)
class Plan:
    """A store to be.

    Attributes:
        manifest: what it will say of itself, its shards not yet there.
        forward: from a batch of inputs to what rows are made of.
        first_batch: of the data set.
    """

    manifest: Manifest
    forward: Callable
    first_batch: TensorTree


def plan(
    teacher: Teacher,
    source: Source,
    options: RowOptions,
    *,
    augmentation: "Augmentation | None",
    num_views: int,
    teacher_fingerprint: str | None,
    id_scheme: str = "position",
    seed: int = 0,
    rows_per_shard: int | None = None,
) -> Plan:
    """Looks at a teacher and its data; the arguments are those of `label`.

    Raises:
        ValueError: a teacher of several outputs, or of other inputs; probabilities where logits were promised, or the
            other way round; the largest or drawn logits of sigmoids; rows that are not whole batches a shard.
    """
    first_batch = source.first_batch()
    check_inputs(teacher, first_batch)
    forward = row_function(teacher, first_batch, options)
    outputs = {name: keras.ops.convert_to_numpy(values) for name, values in forward(first_batch).items()}
    check_rows(teacher, outputs)
    manifest = describe_rows(outputs, options, seed)
    if isinstance(teacher, keras.Model) and head_activation(teacher) == SIGMOID:
        manifest = replace(manifest, head=SIGMOID)
    if source.mask is not None:
        manifest = _of_tokens(manifest, source.mask)
    manifest = replace(
        manifest,
        num_items=source.num_items,
        num_views=num_views,
        augmentation=recipe(augmentation, source.first_item()) if augmentation else None,
        teacher_fingerprint=(teacher_fingerprint or fingerprint(teacher)) + divided_by(options.divisor),
        dataset_fingerprint=source.fingerprint,
        every_item_fingerprint=source.every_item_fingerprint,
        id_scheme=id_scheme,
    )
    batch_size = source.batch_size
    rows = rows_per_shard or rows_per_shard_for(manifest.num_rows, manifest.bytes_per_row, batch_size)
    if rows % batch_size:
        remedy = "A shard's bytes must not depend on where an earlier run stopped."
        raise ValueError(error_message(f"rows_per_shard must be a multiple of batch_size = {batch_size}", rows, remedy))
    return Plan(replace(manifest, rows_per_shard=rows), forward, first_batch)


def _of_tokens(manifest: Manifest, mask: np.ndarray) -> Manifest:
    """The manifest of rows of tokens, out of that of sequences."""
    if manifest.example_shape[:1] != mask.shape[1:]:
        expectation = f"with a mask the teacher's logits must have shape (batch, {mask.shape[1]}, num_classes)"
        received = ("batch", *manifest.example_shape, manifest.num_classes)
        raise ValueError(error_message(expectation, received, "One decision a sequence needs no mask."))
    return replace(manifest, example_shape=manifest.example_shape[1:])
