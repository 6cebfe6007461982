"""`upgrade`: a store of format 1 as one of format 2."""

import os
from dataclasses import replace

import numpy as np

from keras_distill._checks import error_message
from keras_distill.targets.manifest import FormatVersionError, Manifest, version_of
from keras_distill.targets.shards import create, finish, labelled_shards, write_shard
from keras_distill.targets.store import SoftTargetStore


def upgrade(path: str | os.PathLike, out: str | os.PathLike) -> SoftTargetStore:
    """Writes a store of format 1 anew in the format of today. The old one stays; killed, the same call goes on.

    A top-k row gets its tail as well as it is still known: the difference of two rounded numbers, of which nothing is
    left below 1e-3 at float16 and 1e-6 at float32. Where that matters, opening the old store warns. Items have no
    marks, since the data are not here: the new store does not know them again, as the old one did not.

    Args:
        path: the store's folder.
        out: a new folder.

    Returns:
        The new store.

    Raises:
        FormatVersionError: no store, or one of today's format.
        UnfinishedStoreError: labelling has not finished.
        DamagedShardError: a shard is absent, cut short or altered.
        StoreError: `out` holds something else.
    """
    old = SoftTargetStore.open(path)
    if old.manifest.version == version_of(old.manifest.kind):
        expectation = f"{os.fspath(path)} must be a store of an older format"
        raise FormatVersionError(error_message(expectation, f"format {old.manifest.version}", "Use it as it is."))
    manifest = create(out, replace(old.manifest, version=version_of(old.manifest.kind), shards=None))
    done = labelled_shards(out, manifest)
    for index in range(manifest.num_shards):
        if index not in done:
            start, stop = manifest.shard_rows(index)
            write_shard(out, manifest, index, _upgraded(old, manifest, start, stop))
    finish(out, manifest)
    return SoftTargetStore.open(out)


def _upgraded(old: SoftTargetStore, manifest: Manifest, start: int, stop: int) -> np.ndarray:
    """Rows of the old store in the fields of the new one."""
    views, ids = np.divmod(np.arange(start, stop), manifest.num_items)
    found = old.read(ids, views)
    rows = np.zeros(stop - start, manifest.row_dtype)
    if not isinstance(found, dict):
        rows["logits"] = found
    elif "member_logits" in found:
        rows["member_logits"] = found["member_logits"]
    else:
        rows["top_k_logits"], rows["top_k_ids"] = found["top_k_logits"], found["top_k_ids"]
        rows["log_tail"] = _log_tails(found["top_k_logits"], found["log_normalizer"], manifest)
    return rows


def _log_tails(logits: np.ndarray, normalizer: np.ndarray, manifest: Manifest) -> np.ndarray:
    """The log-sum-exp of what was not kept, −1e30 where there is nothing or nothing is left of it."""
    if manifest.top_k == manifest.num_classes:
        return np.full(normalizer.shape, -1e30, "float32")
    logits, normalizer = logits.astype("float64"), normalizer.astype("float64")
    tail = 1.0 - np.sum(np.exp(np.minimum(logits - normalizer[..., None], 0.0)), axis=-1)
    return np.where(tail > 0.0, np.log(np.maximum(tail, 1e-300)) + normalizer, -1e30).astype("float32")
