"""The store's format against NumPy itself, and every refusal by name."""

import copy
import hashlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.special
import scipy.stats

from keras_distill.targets import upgrading
from keras_distill.targets.manifest import (
    DamagedShardError,
    ForeignDatasetError,
    FormatVersionError,
    Manifest,
    StaleTeacherError,
    StoreError,
    UnfinishedStoreError,
    rows_per_shard_for,
)
from keras_distill.targets.rows import MappedRows, PositionedRows
from keras_distill.targets.sampling import draw
from keras_distill.targets.shards import create, finish, labelled_shards, missing_shards, write_shard
from keras_distill.targets.store import SoftTargetStore
from keras_distill.targets.upgrading import upgrade


def random_rows(manifest, seed=0):
    """Rows of random logits for every item and view, top-k ones cut from dense ones."""
    generator = np.random.default_rng(seed)
    rows = np.zeros(manifest.num_rows, manifest.row_dtype)
    shape = (manifest.num_rows, *manifest.example_shape)
    if manifest.kind == "top_k":
        dense = generator.normal(scale=2.0, size=(*shape, manifest.num_classes))
        ids = np.argsort(-dense, axis=-1)[..., : manifest.top_k]
        rows["top_k_ids"] = ids
        rows["top_k_logits"] = np.take_along_axis(dense, ids, axis=-1)
        others = dense.copy()
        np.put_along_axis(others, ids, -np.inf, axis=-1)
        rows["log_tail"] = np.maximum(scipy.special.logsumexp(others, axis=-1), -1e30)
        return rows, dense
    if manifest.kind == "sampled":
        flat = generator.normal(
            scale=2.0, size=(len(rows) * int(np.prod(manifest.example_shape)), manifest.num_classes)
        )
        flat = flat.astype("float32")
        ids = np.argsort(-flat, axis=-1)[:, : manifest.sample]
        drawn, counts = draw(flat, ids, generator.random((len(flat), 2)), manifest.sampling_temperature)
        rows["sampled_ids"], rows["counts"] = (x.reshape(rows["counts"].shape) for x in (drawn, counts))
        targets = scipy.special.softmax(flat.astype("float64") / manifest.sampling_temperature, axis=-1)
        rows["entropy"] = scipy.stats.entropy(targets, axis=-1).reshape(shape)
        return rows, flat.reshape(*shape, manifest.num_classes)
    name = manifest.row_dtype.names[0]
    dense = generator.normal(scale=2.0, size=rows[name].shape)
    rows[name] = dense
    return rows, dense


def write_store(path, manifest, seed=0):
    rows, dense = random_rows(manifest, seed)
    create(path, manifest)
    for index in range(manifest.num_shards):
        write_shard(path, manifest, index, rows[slice(*manifest.shard_rows(index))])
    assert finish(path, manifest)
    return rows, dense


def dense_manifest(**changes):
    settings = {"kind": "dense", "num_items": 50, "num_classes": 5, "rows_per_shard": 16, "teacher_fingerprint": "t"}
    return Manifest(**{**settings, **changes})


def top_k_manifest(**changes):
    return dense_manifest(**{"kind": "top_k", "top_k": 3, "num_classes": 9, **changes})


def sampled_manifest(**changes):
    settings = {"kind": "sampled", "sample": 4, "sampling_temperature": 2.0, "sampling_seed": 3, "num_classes": 9}
    return dense_manifest(**{**settings, **changes})


KINDS = {
    "dense": dense_manifest(),
    "float32": dense_manifest(dtype="float32"),
    "sequence": dense_manifest(example_shape=(4,)),
    "views": dense_manifest(num_views=3),
    "top_k": top_k_manifest(),
    "top_k_of_many": top_k_manifest(num_classes=70_000, num_items=20),
    "members": dense_manifest(kind="members", member_weights=(0.25, 0.75)),
    "sampled": sampled_manifest(),
    "sampled_sequence_of_many": sampled_manifest(num_classes=70_000, num_items=20, example_shape=(2,)),
}


@pytest.fixture
def dense_store(tmp_path):
    write_store(tmp_path / "store", dense_manifest())
    return tmp_path / "store"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_numpy_reads_from_the_shards(tmp_path, kind):
    manifest = KINDS[kind]
    write_store(tmp_path, manifest)
    whole = np.concatenate([np.load(file) for file in sorted((tmp_path / "shards").iterdir())])
    store = SoftTargetStore.open(tmp_path)
    ids = np.random.default_rng(1).integers(0, manifest.num_items, (3, 7))
    views = ids % manifest.num_views
    read = store.read(ids, views)
    read = read if isinstance(read, dict) else {"logits": read}
    if kind.startswith("sampled"):
        read["counts"] = 255 * read.pop("sampled_shares")
        np.testing.assert_allclose(read["counts"].sum(axis=-1), 255, rtol=1e-6)
    for name in whole.dtype.names:
        expected = whole[name][views * manifest.num_items + ids]
        np.testing.assert_allclose(read[name], expected, rtol=1e-6 if name == "counts" else 0)
        assert read[name].dtype == (np.int32 if name.endswith("_ids") else np.float32)
    if kind == "members":
        np.testing.assert_array_equal(read["member_weights"], np.broadcast_to([0.25, 0.75], (3, 7, 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_give_each_item_once_in_order(tmp_path, kind):
    manifest = KINDS[kind]
    write_store(tmp_path, manifest)
    store = SoftTargetStore.open(tmp_path)
    last = manifest.num_views - 1
    batches = [batch if isinstance(batch, dict) else {"logits": batch} for batch in store.batches(7, view=last)]
    everything = store.read(np.arange(manifest.num_items), last)
    everything = everything if isinstance(everything, dict) else {"logits": everything}
    for name, values in everything.items():
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in batches]), values)


def test_top_16_of_32000_classes_fits_in_seventy_bytes():
    assert top_k_manifest(top_k=16, num_classes=32_000).bytes_per_row == 16 * (2 + 2) + 4


def test_twelve_classes_drawn_of_32000_fit_in_forty_bytes():
    manifest = sampled_manifest(sample=12, num_classes=32_000)
    assert (manifest.bytes_per_row, manifest.version) == (12 * (2 + 1) + 4, 3)


def test_sampled_targets_are_their_shares_at_the_temperature_they_were_drawn_at_and_no_other(tmp_path):
    rows, _ = write_store(tmp_path, sampled_manifest())
    store = SoftTargetStore.open(tmp_path)
    targets = store.soft_targets([7, 3], 2.0)
    np.testing.assert_allclose(targets["probabilities"], rows["counts"][[7, 3]] / 255, rtol=1e-6)
    np.testing.assert_array_equal(targets["ids"], rows["sampled_ids"][[7, 3]])
    np.testing.assert_array_equal(targets["tail_probability"], [0, 0])
    with pytest.raises(StoreError, match=r"be 2\.0, at which the rows were sampled; got 4\.0.*temperature=4"):
        store.soft_targets([7], 4.0)


def test_other_kinds_are_written_as_before_there_were_sampled_rows(tmp_path):
    """So that whoever knows version 2 alone reads them, and refuses sampled rows by their version."""
    for kind, manifest in KINDS.items():
        content = json.loads(manifest.to_json())
        names = {"sample", "sampling_temperature", "sampling_seed"} & set(content)
        assert (content["version"], len(names)) == ((3, 3) if kind.startswith("sampled") else (2, 0))
        assert Manifest.from_json(manifest.to_json(), tmp_path) == manifest
    content = json.loads(sampled_manifest().to_json()) | {"version": 2}
    del content["checksum"]
    content["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    with pytest.raises(FormatVersionError, match=r"fields that version 2 does not know.*'sample'"):
        Manifest.from_json(json.dumps(content), tmp_path)


def test_shard_names_are_their_sha256_and_the_manifest_lists_them(dense_store):
    content = json.loads((dense_store / "manifest.json").read_text())
    assert content["shards"] == sorted(file.name for file in (dense_store / "shards").iterdir())
    for index, name in enumerate(content["shards"]):
        digest = hashlib.sha256((dense_store / "shards" / name).read_bytes()).hexdigest()
        assert name == f"{index:06d}-{digest[:16]}.npy"
    checksum = content.pop("checksum")
    assert checksum == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("num_rows", [1, 15, 16, 50])
def test_marks_stand_after_the_rows_as_numpy_appends_a_second_array(tmp_path, num_rows):
    """Four groups of four rows, evenly spaced, or all rows where there are fewer."""
    manifest = dense_manifest(num_items=num_rows, rows_per_shard=64)
    rows, _ = random_rows(manifest)
    places = list(range(num_rows))
    if num_rows >= 16:
        places = [group * (num_rows - 4) // 3 + place for group in range(4) for place in range(4)]
    assert manifest.marked_rows(0).tolist() == places
    create(tmp_path, manifest)
    marks = np.arange(1, len(places) + 1, dtype=np.uint64)
    with open(write_shard(tmp_path, manifest, 0, rows, marks), "rb") as file:
        np.testing.assert_array_equal(np.load(file), rows)
        np.testing.assert_array_equal(np.load(file), marks)
        assert file.read() == b""
    finish(tmp_path, manifest)
    ids, found = SoftTargetStore.open(tmp_path).marks()
    assert dict(zip(ids.tolist(), found.tolist(), strict=True)) == dict(zip(places, marks.tolist(), strict=True))


def test_rows_of_unknown_items_have_no_marks(dense_store):
    ids, marks = SoftTargetStore.open(dense_store).marks()
    assert (len(ids), len(marks)) == (0, 0)


def test_marks_of_another_shard_are_refused(tmp_path):
    manifest = dense_manifest()
    create(tmp_path, manifest)
    with pytest.raises(ValueError, match="shard 3 must have 2 marks"):
        write_shard(tmp_path, manifest, 3, random_rows(manifest)[0][48:], np.ones(16, np.uint64))


def test_a_pickled_store_is_the_same_in_another_process_and_another_folder(tmp_path, monkeypatch):
    rows, _ = write_store(tmp_path / "store", dense_manifest())
    monkeypatch.chdir(tmp_path)
    store = SoftTargetStore.open("store", resident_bytes=1)
    store.read([3])
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read([49, 3]).tolist())"
    run = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(store), capture_output=True, env=environment(), cwd="/"
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == rows["logits"][[49, 3]].astype("float32").tolist()
    again = pickle.loads(pickle.dumps(store))
    assert (again.resident_bytes, again.manifest) == (1, store.manifest)


def test_a_copied_store_reads_the_same(dense_store):
    store = SoftTargetStore.open(dense_store)
    store.read([3])
    for again in (copy.copy(store), copy.deepcopy(store)):
        np.testing.assert_array_equal(again.read(np.arange(50)), store.read(np.arange(50)))


# Version 1: the log-sum-exp of all logits, no marks.


def write_version_1(path, dense, k, dtype="float16", is_finished=True):
    """A store of top-k rows as version 1 wrote it, without the package's writer; returns its rows."""
    ids = np.argsort(-dense, axis=-1)[:, :k]
    fields = [("top_k_logits", np.dtype(dtype).newbyteorder("<"), (k,)), ("top_k_ids", "<u2", (k,))]
    rows = np.zeros(len(dense), [*fields, ("log_normalizer", "<f4")])
    rows["top_k_logits"], rows["top_k_ids"] = np.take_along_axis(dense, ids, axis=-1), ids
    rows["log_normalizer"] = scipy.special.logsumexp(dense, axis=-1)
    (path / "shards").mkdir(parents=True)
    names = []
    for index, start in enumerate(range(0, len(dense), 32)):
        part = rows[start : start + 32]
        header = f"{{'descr': {rows.dtype.descr}, 'fortran_order': False, 'shape': ({len(part)},)}}"
        header = header.ljust(-(-(11 + len(header)) // 64) * 64 - 11) + "\n"
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + part.tobytes()
        np.testing.assert_array_equal(np.load(io.BytesIO(content)), part)
        names.append(f"{index:06d}-{hashlib.sha256(content).hexdigest()[:16]}.npy")
        (path / "shards" / names[-1]).write_bytes(content)
    content = {
        "augmentation": None,
        "dataset_fingerprint": "",
        "dtype": dtype,
        "example_shape": [],
        "format": "keras-distill soft targets",
        "id_scheme": "position",
        "kind": "top_k",
        "member_weights": None,
        "num_classes": dense.shape[1],
        "num_items": len(dense),
        "num_views": 1,
        "rows_per_shard": 32,
        "shards": names if is_finished else None,
        "teacher_fingerprint": "t",
        "temperature": None,
        "top_k": k,
        "version": 1,
    }
    content["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return rows


def test_a_store_of_version_1_is_read(tmp_path):
    dense = np.random.default_rng(0).normal(size=(50, 40))
    rows = write_version_1(tmp_path, dense, 4, "float32")
    store = SoftTargetStore.open(tmp_path)
    read = store.read([49, 3])
    assert set(read) == {"top_k_logits", "top_k_ids", "log_normalizer", "classes"}
    assert read.pop("classes").shape == (2, 0, 40)
    for name, values in read.items():
        np.testing.assert_array_equal(values, rows[name][[49, 3]])
    falling = -np.sort(-dense, axis=-1)
    falling[:, 4:] = scipy.special.logsumexp(falling[:, 4:], axis=-1, keepdims=True) - np.log(36)
    targets = store.soft_targets(np.arange(50), 3.0)
    expected = scipy.special.softmax(falling / 3.0, axis=-1)
    np.testing.assert_allclose(targets["probabilities"], expected[:, :4], rtol=1e-4)
    np.testing.assert_allclose(targets["tail_probability"], expected[:, 4:].sum(axis=-1), rtol=1e-4)
    assert len(store.marks()[0]) == 0


def test_an_upgrade_that_was_killed_goes_on(tmp_path, monkeypatch):
    write_version_1(tmp_path / "old", np.random.default_rng(0).normal(size=(90, 40)), 4)
    whole = upgrade(tmp_path / "old", tmp_path / "whole")
    written = []

    def killed(*arguments):
        written.append(arguments[2])
        if len(written) == 2:
            raise KeyboardInterrupt
        return write_shard(*arguments)

    monkeypatch.setattr(upgrading, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        upgrade(tmp_path / "old", tmp_path / "killed")
    again = upgrade(tmp_path / "old", tmp_path / "killed")
    assert written == [0, 1, 1, 2]
    assert again.manifest == whole.manifest


def test_a_store_of_version_1_is_written_anew(tmp_path):
    dense = np.random.default_rng(0).normal(size=(50, 40))
    rows = write_version_1(tmp_path / "old", dense, 4, "float32")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    store = upgrade(tmp_path / "old", tmp_path / "new")
    assert store.manifest.version == 2
    found = store.read(np.arange(50))
    for name in ("top_k_logits", "top_k_ids"):
        np.testing.assert_array_equal(found[name], rows[name])
    rest = -np.sort(-dense, axis=-1)[:, 4:]
    np.testing.assert_allclose(found["log_tail"], scipy.special.logsumexp(rest, axis=-1), rtol=1e-5)
    assert len(store.marks()[0]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()} == before
    with pytest.raises(FormatVersionError, match="must be a store of an older format; got format 2"):
        upgrade(tmp_path / "new", tmp_path / "newer")


@pytest.mark.parametrize(("dtype", "tail"), [("float16", 1e-4), ("float32", 1e-8)])
def test_a_sure_teachers_store_of_version_1_is_read_with_a_warning(tmp_path, dtype, tail):
    dense = np.zeros((50, 40))
    # Every second row has a tail of which its rounding leaves nothing.
    dense[:, 0] = np.where(np.arange(50) % 2, np.log(39 / tail), np.log(39.0)) + 0.3
    write_version_1(tmp_path, dense, 1, dtype)
    with pytest.warns(UserWarning, match=r"in 50% of the rows looked at.*39 classes.*Label again"):
        SoftTargetStore.open(tmp_path)


def test_a_store_of_version_1_without_a_tail_needs_no_warning(tmp_path):
    dense = np.zeros((50, 4))
    dense[:, 0] = 30.0
    write_version_1(tmp_path, dense, 4)
    assert SoftTargetStore.open(tmp_path).soft_targets([0], 1.0)["tail_probability"] == 0.0


def test_a_finished_store_of_version_1_is_found_again_and_stays_as_it_is(tmp_path):
    write_version_1(tmp_path, np.random.default_rng(0).normal(size=(50, 40)), 4, "float32")
    before = tree(tmp_path)
    asked = Manifest(
        kind="top_k", num_items=50, num_classes=40, top_k=4, dtype="float32", rows_per_shard=32, teacher_fingerprint="t"
    )
    found = create(tmp_path, asked)
    assert found.version == 1
    assert missing_shards(tmp_path, found, range(2)) == []
    assert finish(tmp_path, found)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_dense_targets_are_softmaxes_of_the_logits(tmp_path, temperature):
    rows, _ = write_store(tmp_path, dense_manifest(num_views=2))
    logits = rows["logits"].astype("float64")
    targets = SoftTargetStore.open(tmp_path).soft_targets([3, 49], temperature, views=1)
    np.testing.assert_allclose(targets, scipy.special.softmax(logits[[53, 99]] / temperature, axis=-1), rtol=1e-5)


def test_targets_of_large_logits_are_finite(tmp_path):
    manifest = dense_manifest(dtype="float32", num_items=16)
    rows, _ = random_rows(manifest)
    rows["logits"] *= 1000.0
    create(tmp_path, manifest)
    write_shard(tmp_path, manifest, 0, rows)
    finish(tmp_path, manifest)
    expected = scipy.special.softmax(rows["logits"].astype("float64"), axis=-1)
    targets = SoftTargetStore.open(tmp_path).soft_targets(np.arange(16), 1.0)
    np.testing.assert_allclose(targets, expected, rtol=1e-4, atol=1e-30)


def test_members_targets_are_the_weighted_mean_of_their_softmaxes(tmp_path):
    rows, _ = write_store(tmp_path, KINDS["members"])
    each = scipy.special.softmax(rows["member_logits"].astype("float64") / 3.0, axis=-1)
    expected = 0.25 * each[:, 0] + 0.75 * each[:, 1]
    np.testing.assert_allclose(SoftTargetStore.open(tmp_path).soft_targets(np.arange(50), 3.0), expected, rtol=1e-5)


def test_merged_rows_refuse_any_other_temperature(tmp_path):
    write_store(tmp_path, dense_manifest(temperature=4.0))
    store = SoftTargetStore.open(tmp_path)
    np.testing.assert_allclose(store.soft_targets([0], 4.0).sum(), 1.0, rtol=1e-6)
    with pytest.raises(StoreError, match=r"temperature must be 4\.0"):
        store.soft_targets([0], 2.0)


def test_a_temperature_that_is_not_positive_is_refused(dense_store):
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="temperature must be"):
            SoftTargetStore.open(dense_store).soft_targets([0], temperature)


def test_top_k_targets_at_temperature_one_have_the_teachers_own_tail(tmp_path):
    _, dense = write_store(tmp_path, top_k_manifest(dtype="float32"))
    probabilities = np.sort(scipy.special.softmax(dense, axis=-1), axis=-1)[:, ::-1]
    targets = SoftTargetStore.open(tmp_path).soft_targets(np.arange(50), 1.0)
    np.testing.assert_allclose(targets["probabilities"], probabilities[:, :3], rtol=1e-4)
    np.testing.assert_allclose(targets["tail_probability"], probabilities[:, 3:].sum(axis=-1), rtol=1e-3)


def test_top_k_targets_at_any_temperature_share_the_tail_evenly(tmp_path):
    _, dense = write_store(tmp_path, top_k_manifest(dtype="float32"))
    falling = -np.sort(-dense, axis=-1)
    falling[:, 3:] = scipy.special.logsumexp(falling[:, 3:], axis=-1, keepdims=True) - np.log(6)
    expected = scipy.special.softmax(falling / 3.0, axis=-1)
    targets = SoftTargetStore.open(tmp_path).soft_targets(np.arange(50), 3.0)
    np.testing.assert_allclose(targets["probabilities"], expected[:, :3], rtol=1e-4)
    np.testing.assert_allclose(targets["tail_probability"], expected[:, 3:].sum(axis=-1), rtol=1e-4)


def test_top_k_targets_of_sequences_and_of_ids_in_rows_are_those_of_each_by_itself(tmp_path):
    _, dense = write_store(tmp_path, top_k_manifest(dtype="float32", example_shape=(4,)))
    ids = np.arange(10).reshape(2, 5)
    falling = -np.sort(-dense[ids], axis=-1)
    falling[..., 3:] = scipy.special.logsumexp(falling[..., 3:], axis=-1, keepdims=True) - np.log(6)
    expected = scipy.special.softmax(falling / 3.0, axis=-1)
    targets = SoftTargetStore.open(tmp_path).soft_targets(ids, 3.0)
    assert targets["probabilities"].shape == (2, 5, 4, 3)
    np.testing.assert_allclose(targets["probabilities"], expected[..., :3], rtol=1e-4)
    np.testing.assert_allclose(targets["tail_probability"], expected[..., 3:].sum(axis=-1), rtol=1e-4)


def test_no_class_outside_the_k_is_likelier_than_the_kth_though_it_was_rounded(tmp_path):
    """100.03 is 100 in float16, which leaves more to the third class than the second has."""
    manifest = top_k_manifest(num_classes=3, top_k=2, num_items=1)
    rows = np.zeros(1, manifest.row_dtype)
    rows["top_k_logits"], rows["top_k_ids"] = [101.0, 100.03], [0, 1]
    rows["log_tail"] = 100.03
    create(tmp_path, manifest)
    write_shard(tmp_path, manifest, 0, rows)
    finish(tmp_path, manifest)
    targets = SoftTargetStore.open(tmp_path).soft_targets([0], 1.0)
    expected = scipy.special.softmax([101.0, 100.0, 100.0])
    np.testing.assert_allclose(targets["probabilities"], [expected[:2]], rtol=1e-6)
    np.testing.assert_allclose(targets["tail_probability"], expected[2:], rtol=1e-6)


def test_top_k_of_all_classes_is_the_dense_softmax_at_any_temperature(tmp_path):
    _, dense = write_store(tmp_path, top_k_manifest(top_k=9, dtype="float32"))
    targets = SoftTargetStore.open(tmp_path).soft_targets(np.arange(50), 5.0)
    expected = np.sort(scipy.special.softmax(dense / 5.0, axis=-1), axis=-1)[:, ::-1]
    np.testing.assert_allclose(targets["probabilities"], expected, rtol=1e-4)
    np.testing.assert_array_equal(targets["tail_probability"], 0.0)


@pytest.fixture(params=[MappedRows, PositionedRows])
def open_shards(request):
    """Opens a store whose shards are read in one of the two ways."""
    return lambda path: SoftTargetStore.open(path, resident_bytes=1 if request.param is PositionedRows else 1 << 30)


@pytest.mark.parametrize("kind", KINDS)
def test_mapped_and_positioned_reads_are_the_same(tmp_path, kind):
    manifest = KINDS[kind]
    write_store(tmp_path, manifest)
    mapped, positioned = SoftTargetStore.open(tmp_path), SoftTargetStore.open(tmp_path, resident_bytes=1)
    assert (mapped._rows_of, positioned._rows_of) == (MappedRows, PositionedRows)
    ids = np.random.default_rng(1).integers(0, manifest.num_items, (3, 7))
    for pair in [
        (mapped.read(ids), positioned.read(ids)),
        (mapped.read([[3]]), positioned.read([[3]])),
        *zip(mapped.batches(7), positioned.batches(7), strict=True),
    ]:
        one, other = (read if isinstance(read, dict) else {"logits": read} for read in pair)
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name])


def test_rows_of_up_to_256_mib_are_mapped_and_more_are_read_by_position(tmp_path):
    a_kilobyte = dense_manifest(num_classes=512, num_items=256 * 1024)
    assert SoftTargetStore(tmp_path, a_kilobyte)._rows_of is MappedRows
    one_more = dense_manifest(num_classes=512, num_items=256 * 1024 + 1)
    assert SoftTargetStore(tmp_path, one_more)._rows_of is PositionedRows


def test_no_more_than_256_files_are_open_at_once(tmp_path, open_shards):
    """A process may have 1024 open, unless somebody allowed it more."""
    manifest = dense_manifest(num_items=260, rows_per_shard=1)
    rows, _ = write_store(tmp_path, manifest)
    store = open_shards(tmp_path)
    np.testing.assert_array_equal(store.read(np.arange(260)), rows["logits"].astype("float32"))
    assert len(open_files(tmp_path)) == 256


def test_the_shard_that_was_read_longest_ago_is_let_go(tmp_path, open_shards):
    write_store(tmp_path, dense_manifest())
    store = open_shards(tmp_path)
    store._max_shards = 2
    for item in (0, 16, 1, 32):
        store.read([item])
    assert [os.path.basename(file)[:6] for file in open_files(tmp_path)] == ["000000", "000002"]


def test_only_so_many_shards_are_open_at_once(tmp_path, open_shards):
    manifest = dense_manifest(num_items=400)
    rows, _ = write_store(tmp_path, manifest)
    store = open_shards(tmp_path)
    store._max_shards = 3
    for seed in range(5):
        ids = np.random.default_rng(seed).permutation(400)
        np.testing.assert_array_equal(store.read(ids), rows["logits"][ids].astype("float32"))
    assert len(store._shards) <= 3


def test_a_shard_that_is_cut_short_or_replaced_while_it_is_open_is_refused(tmp_path):
    manifest = dense_manifest(num_items=400)
    write_store(tmp_path, manifest)
    store = SoftTargetStore.open(tmp_path, resident_bytes=1)
    store.read([5])
    files = sorted((tmp_path / "shards").iterdir())
    os.truncate(files[0], 200)
    with pytest.raises(DamagedShardError, match=r"000000-.*must hold 10 bytes there"):
        store.read([15])
    with pytest.raises(DamagedShardError, match="000000-"):
        next(store.batches(16))
    files[1].write_bytes(files[1].read_bytes()[::-1])
    with pytest.raises(DamagedShardError, match=r"000001-.*another header"):
        store.read([20])


def test_threads_that_read_one_store_at_once_read_what_is_there(tmp_path, open_shards):
    """Shards are opened and let go under each other's reads."""
    manifest = dense_manifest(num_items=400)
    rows, _ = write_store(tmp_path, manifest)
    store = open_shards(tmp_path)
    store._max_shards = 2
    interval = sys.getswitchinterval()
    all_have_begun = threading.Barrier(5)

    def read(seed):
        all_have_begun.wait()
        generator = np.random.default_rng(seed)
        for _ in range(200):
            ids = generator.integers(0, 400, 40)
            np.testing.assert_array_equal(store.read(ids), rows["logits"][ids].astype("float32"))

    try:
        with ThreadPoolExecutor(4) as threads:
            reading = [threads.submit(read, seed) for seed in range(4)]
            all_have_begun.wait()
            # Not before: coverage.py installs itself as a thread begins, and cannot be interrupted in that.
            sys.setswitchinterval(1e-6)
            for done in reading:
                done.result()
    finally:
        sys.setswitchinterval(interval)


def test_an_empty_read_is_empty(dense_store):
    assert SoftTargetStore.open(dense_store).read(np.zeros((0,), int)).shape == (0, 5)


# What is refused, and by which name.


def test_a_folder_of_something_else_is_no_store(tmp_path):
    with pytest.raises(FormatVersionError, match=r"manifest\.json"):
        SoftTargetStore.open(tmp_path)
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match="a folder of something else"):
        create(tmp_path, dense_manifest())


def test_another_format_version_is_refused_by_its_number(dense_store):
    content = json.loads((dense_store / "manifest.json").read_text())
    content["version"] = 99
    (dense_store / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(FormatVersionError, match="version must be 1 to 3; got 99"):
        SoftTargetStore.open(dense_store)


@pytest.mark.parametrize("content", ["[1]", '{"format": "other"}'])
def test_another_json_file_is_refused(dense_store, content):
    (dense_store / "manifest.json").write_text(content)
    with pytest.raises(FormatVersionError, match="no manifest of soft targets"):
        SoftTargetStore.open(dense_store)


def test_an_altered_or_cut_manifest_is_refused(dense_store):
    file = dense_store / "manifest.json"
    text = file.read_text()
    file.write_text(text.replace('"num_classes": 5', '"num_classes": 6'))
    with pytest.raises(DamagedShardError, match="checksum does not match"):
        SoftTargetStore.open(dense_store)
    file.write_text(text[: len(text) // 2])
    with pytest.raises(DamagedShardError, match="not JSON"):
        SoftTargetStore.open(dense_store)


@pytest.mark.parametrize("flipped", [0x01, 0x10, 0x80])
def test_every_flipped_byte_of_a_manifest_is_refused_or_changes_nothing(dense_store, flipped):
    file = dense_store / "manifest.json"
    whole, manifest = file.read_bytes(), SoftTargetStore.open(dense_store).manifest
    num_refused = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= flipped
        file.write_bytes(damaged)
        try:
            assert SoftTargetStore.open(dense_store, verify=False).manifest == manifest
        except StoreError:
            num_refused += 1
    # A space that became another one is still JSON.
    assert num_refused > 0.9 * len(whole)


def test_another_teacher_is_refused_by_both_fingerprints(dense_store):
    with pytest.raises(StaleTeacherError, match=r"'new'.*got 't'"):
        SoftTargetStore.open(dense_store, teacher_fingerprint="new")
    with pytest.raises(StaleTeacherError):
        create(dense_store, dense_manifest(teacher_fingerprint="new"))


@pytest.mark.parametrize(
    ("question", "message"),
    [({"num_items": 51}, "number of items must be 51.*got 50"), ({"id_scheme": "file name"}, "id scheme")],
)
def test_another_dataset_is_refused_by_what_differs(dense_store, question, message):
    with pytest.raises(ForeignDatasetError, match=message):
        SoftTargetStore.open(dense_store, **question)
    with pytest.raises(ForeignDatasetError, match=message):
        create(dense_store, dense_manifest(**question))


@pytest.mark.parametrize("ids", [[50], [-1], [3, -1], [[0, 1], [2, 70_000]]])
def test_ids_outside_the_store_are_refused(dense_store, ids):
    with pytest.raises(ForeignDatasetError, match=r"ids must be in \[0, 50\)"):
        SoftTargetStore.open(dense_store).read(ids)


def test_the_first_of_several_ids_outside_the_store_is_named(dense_store):
    with pytest.raises(ForeignDatasetError, match=r"ids must be in \[0, 50\); got 50\b"):
        SoftTargetStore.open(dense_store).read([0, 49, 50, 51, -1])


def test_views_and_ids_of_the_wrong_kind_are_refused(dense_store):
    store = SoftTargetStore.open(dense_store)
    with pytest.raises(ForeignDatasetError, match=r"views must be in \[0, 1\)"):
        store.read([0], views=1)
    with pytest.raises(ForeignDatasetError, match=r"views must be in \[0, 1\); got 1"):
        store.read([0, 0], views=[0, 1])
    with pytest.raises(ForeignDatasetError, match=r"view must be in \[0, 1\)"):
        next(store.batches(8, view=1))
    with pytest.raises(TypeError, match="integers"):
        store.read([0.5])


def test_other_settings_are_refused_by_the_field_that_differs(dense_store):
    with pytest.raises(StoreError, match=r"dtype must be 'float32'.*got 'float16'"):
        create(dense_store, dense_manifest(dtype="float32"))


def test_every_flipped_byte_of_a_shard_is_found(dense_store):
    file = sorted((dense_store / "shards").iterdir())[1]
    whole = file.read_bytes()
    for position in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(DamagedShardError, match=file.name):
            SoftTargetStore.open(dense_store)
    file.write_bytes(whole)
    SoftTargetStore.open(dense_store).verify()


def test_of_many_altered_shards_three_are_named_and_the_others_counted(tmp_path):
    write_store(tmp_path, dense_manifest(num_items=80))
    shards = SoftTargetStore.open(tmp_path).manifest.shards
    for num_altered, words in enumerate(["0 more", "0 more", "0 more", "1 more", "2 more"], 1):
        file = tmp_path / "shards" / shards[num_altered - 1]
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        named = ", ".join(shards[: min(num_altered, 3)])
        rest = "" if words == "0 more" else f" and {words}"
        with pytest.raises(DamagedShardError, match=re.escape(f"got {num_altered} altered ({named}{rest})")):
            SoftTargetStore.open(tmp_path)


def test_a_truncated_shard_is_refused_even_without_verifying(dense_store):
    file = sorted((dense_store / "shards").iterdir())[2]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedShardError, match=f"{file.name} must be .* bytes long"):
        SoftTargetStore.open(dense_store, verify=False)


def test_a_store_copied_half_is_refused(dense_store, tmp_path):
    copy = tmp_path / "copy"
    (copy / "shards").mkdir(parents=True)
    shutil.copy(dense_store / "manifest.json", copy)
    for file in sorted((dense_store / "shards").iterdir())[:2]:
        shutil.copy(file, copy / "shards")
    with pytest.raises(DamagedShardError, match=r"000002-.*got nothing"):
        SoftTargetStore.open(copy)


def test_an_unfinished_store_says_how_far_it_came(tmp_path):
    manifest = dense_manifest()
    rows, _ = random_rows(manifest)
    create(tmp_path, manifest)
    write_shard(tmp_path, manifest, 2, rows[32:48])
    assert not finish(tmp_path, manifest)
    with pytest.raises(UnfinishedStoreError, match="1 of 4 shards"):
        SoftTargetStore.open(tmp_path)


def test_rows_of_another_shard_are_refused(tmp_path):
    manifest = dense_manifest()
    create(tmp_path, manifest)
    with pytest.raises(ValueError, match="shard 3 must have 2 rows"):
        write_shard(tmp_path, manifest, 3, random_rows(manifest)[0][:16])


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "sparse"},
        {"dtype": "bfloat16"},
        {"num_items": 0},
        {"top_k": 3},
        {"kind": "top_k", "top_k": 6},
        {"kind": "members"},
        {"temperature": 0.0},
        {"sample": 3},
        {"kind": "sampled"},
        {"version": 3},
        {"kind": "sampled", "sample": 6, "sampling_temperature": 1.0, "sampling_seed": 0},
        {"kind": "sampled", "sample": 3, "sampling_temperature": 0.0, "sampling_seed": 0},
        {"kind": "sampled", "sample": 3, "sampling_temperature": 1.0, "sampling_seed": 2**63},
        {"kind": "sampled", "sample": 3, "sampling_temperature": 1.0, "sampling_seed": 0, "version": 2},
        {"kind": "sampled", "sample": 3, "sampling_temperature": 1.0, "sampling_seed": 0, "temperature": 2.0},
        {"kind": "sampled", "sample": 256, "sampling_temperature": 1.0, "sampling_seed": 0, "num_classes": 999},
    ],
)
def test_a_manifest_that_means_nothing_is_refused(changes):
    with pytest.raises(ValueError, match="must be"):
        dense_manifest(**changes)


# Faults while writing.


def test_two_writers_of_one_shard_agree_and_their_leavings_are_swept(tmp_path):
    manifest = dense_manifest()
    rows, _ = write_store(tmp_path / "undisturbed", manifest)
    path = tmp_path / "disturbed"
    create(path, manifest)
    for index in [0, 1, 1, 0, 2, 3, 3]:
        write_shard(path, manifest, index, rows[slice(*manifest.shard_rows(index))])
    (path / "shards" / ".partial-abc000001.npy").write_bytes(b"half of a shard")
    (path / ".partial-manifest.json").write_bytes(b"{")
    assert create(path, manifest) == manifest
    assert finish(path, manifest)
    assert tree(path) == tree(tmp_path / "undisturbed")


def test_writers_that_differ_in_a_bit_still_make_one_sound_store(tmp_path):
    """Two graphics cards may round differently: whichever shard the manifest names is whole."""
    manifest = dense_manifest()
    rows, _ = random_rows(manifest)
    other = rows.copy()
    other["logits"][0, 0] += np.float16(0.01)
    create(tmp_path, manifest)
    for index in range(4):
        write_shard(tmp_path, manifest, index, rows[slice(*manifest.shard_rows(index))])
    write_shard(tmp_path, manifest, 0, other[:16])
    assert len(labelled_shards(tmp_path, manifest)[0]) == 2
    assert finish(tmp_path, manifest)
    read = SoftTargetStore.open(tmp_path).read([0])
    assert any(np.array_equal(read[0], written["logits"][0].astype("float32")) for written in (rows, other))


def test_a_damaged_shard_is_removed_and_labelled_again(dense_store):
    manifest = dense_manifest()
    file = sorted((dense_store / "shards").iterdir())[1]
    file.write_bytes(file.read_bytes()[:-7])
    assert missing_shards(dense_store, manifest, range(4)) == [1]
    assert not file.exists()
    assert missing_shards(dense_store, manifest, [0, 3]) == []


def test_a_full_disk_leaves_the_whole_shards_and_nothing_half_written(tmp_path):
    manifest = dense_manifest(num_items=40_000, rows_per_shard=10_000)
    writer = (
        "import sys, numpy as np\n"
        "from tests.targets.test_store import random_rows, dense_manifest\n"
        "from keras_distill.targets.shards import create, write_shard\n"
        "m = dense_manifest(num_items=40_000, rows_per_shard=10_000)\n"
        "rows, _ = random_rows(m)\n"
        "create(sys.argv[1], m)\n"
        "write_shard(sys.argv[1], m, 0, rows[:10_000])\n"
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "write_shard(sys.argv[1], m, 1, rows[10_000:20_000])\n"
    )
    run = subprocess.run([sys.executable, "-c", writer, tmp_path], capture_output=True, text=True, env=environment())
    assert run.returncode == 1
    assert "OSError" in run.stderr
    assert [file.name[:6] for file in (tmp_path / "shards").iterdir()] == ["000000"]
    assert missing_shards(tmp_path, manifest, range(4)) == [1, 2, 3]


def test_reading_a_store_needs_neither_tensorflow_nor_keras(dense_store):
    code = (
        "import sys\nfrom keras_distill.targets import SoftTargetStore\n"
        f"print(SoftTargetStore.open({str(dense_store)!r}).read([1]).shape, 'keras' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert run.stdout.strip() == "(1, 5) False"


def test_memory_does_not_grow_with_what_was_read(tmp_path):
    """64 MB are read, in order and at random, while 4 MB are allowed."""
    manifest = dense_manifest(num_items=400_000, num_classes=80, rows_per_shard=50_000)
    create(tmp_path, manifest)
    rows = np.zeros(50_000, manifest.row_dtype)
    for index in range(8):
        rows["logits"][:, 0] = index
        write_shard(tmp_path, manifest, index, rows)
    finish(tmp_path, manifest)
    store = SoftTargetStore.open(tmp_path, resident_bytes=4 << 20)
    store.read([0, 399_999])
    before = resident_bytes()
    generator = np.random.default_rng(0)
    most = 0
    for _ in range(200):
        ids = generator.integers(0, 400_000, 400)
        np.testing.assert_array_equal(store.read(ids)[:, 0], ids // 50_000)
        most = max(most, resident_bytes())
    for batch in store.batches(10_000):
        assert batch.shape == (10_000, 80)
        most = max(most, resident_bytes())
    # A batch of 10,000 rows, as they are stored and as they are given: 1.6 MB and 3.2 MB.
    assert most - before < 8 << 20


def test_shard_sizes_are_whole_batches_and_bounded():
    for num_rows, bytes_per_row, batch_size in [
        (10, 20, 256),
        (60_000, 20, 256),
        (10**9, 68, 512),
        (10**7, 64_000, 128),
    ]:
        rows = rows_per_shard_for(num_rows, bytes_per_row, batch_size)
        assert rows % batch_size == 0
        assert rows * bytes_per_row <= (256 << 20) + batch_size * bytes_per_row


def tree(path):
    """Every file below `path` with its bytes."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def environment():
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    return {**os.environ, "PYTHONPATH": root}


def open_files(path):
    """What this process holds open below a folder."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("open files are listed in /proc, which this system has not")
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    files = [os.readlink(link) for link in links if os.path.islink(link)]
    return sorted(file for file in files if file.startswith(str(path)))


def resident_bytes():
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("resident memory is read from /proc, which this system has not")
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize()
