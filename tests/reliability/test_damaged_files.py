"""Damaged and hostile files are refused with a message, in bounded time and memory, and lead nowhere.

The thousands are in `fuzzing.py`, which runs as a command of its own: here a few of each kind, in the slow half all.
"""

import ast
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_distill.cli import main
from keras_distill.models.saving import load_model
from keras_distill.targets.manifest import DamagedShardError, Manifest
from keras_distill.targets.shards import create, finish, write_shard
from keras_distill.targets.store import SoftTargetStore

ROOT = Path(__file__).parents[2]


def fuzz(*kinds, cases, seed):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [
        sys.executable,
        ROOT / "tests/reliability/fuzzing.py",
        *kinds,
        "--cases",
        str(cases),
        "--seed",
        str(seed),
    ]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    for kind in kinds:
        failed = {end: count for end, count in found[kind].items() if end.startswith("FAILED")}
        assert not failed, f"{kind}: {failed}"
        assert sum(found[kind].values()) == cases
    return found


def test_a_few_hundred_damaged_stores_and_bundles_are_read_or_refused():
    found = fuzz("manifests", "shards", "bundles", "archives", cases=300, seed=1)
    for kind, ends in found.items():
        # Most damage is noticed, and some does no harm: both ends are seen, or the fuzzer is blind.
        assert ends["refused"] > 100, kind
        assert ends["read"] > 0, kind


@pytest.mark.slow
def test_twelve_thousand_damaged_stores_and_bundles_are_read_or_refused():
    fuzz("manifests", "shards", "bundles", "archives", cases=3000, seed=2)


@pytest.mark.slow
def test_hundreds_of_damaged_models_and_command_lines_are_read_or_refused():
    fuzz("keras", "onnx", "tflite", "arguments", cases=150, seed=3)


# Paths


@pytest.fixture
def store(tmp_path):
    manifest = Manifest(kind="dense", num_items=6, num_classes=2, rows_per_shard=4)
    create(tmp_path / "store", manifest)
    for index in range(2):
        rows = np.zeros(4 if index == 0 else 2, manifest.row_dtype)
        write_shard(tmp_path / "store", manifest, index, rows)
    finish(tmp_path / "store", manifest)
    return tmp_path / "store"


def rewrite(store, **changes):
    """A manifest with other fields and the checksum that belongs to them."""
    content = json.loads((store / "manifest.json").read_text())
    del content["checksum"]
    content |= changes
    content["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (store / "manifest.json").write_text(json.dumps(content))
    return content


@pytest.mark.parametrize(
    "way_out", ["../../outside-0.npy", "/tmp/outside-0.npy", "../manifest.json", "x/../000001.npy"]
)
def test_a_shards_name_that_leads_out_of_the_store_is_refused_before_anything_is_opened(store, way_out):
    whole = sorted(file.name for file in (store / "shards").iterdir())
    (store.parent / "outside-0.npy").write_bytes((store / "shards" / whole[0]).read_bytes())
    rewrite(store, shards=[way_out, whole[1]])
    with pytest.raises(DamagedShardError, match=r"shards\[0\] must be 000000-, 16 hexadecimal digits, \.npy; got"):
        SoftTargetStore.open(store)


def test_a_shard_that_is_a_link_out_of_the_store_is_refused_and_one_inside_is_not(store):
    file = sorted((store / "shards").iterdir())[0]
    outside, inside = store.parent / "outside.npy", store / "elsewhere.npy"
    outside.write_bytes(file.read_bytes())
    file.rename(inside)
    file.symlink_to(inside)
    assert len(SoftTargetStore.open(store)) == 6
    file.unlink()
    file.symlink_to(outside)
    with pytest.raises(DamagedShardError, match="must be a file of the store; got a link that leaves it"):
        SoftTargetStore.open(store)


@pytest.mark.parametrize("field", ["kind", "example_shape", "shards", "augmentation", "num_items"])
def test_a_manifest_that_lacks_a_field_is_damaged_by_name(store, field):
    content = rewrite(store)
    del content[field], content["checksum"]
    content["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (store / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DamagedShardError, match=rf"manifest\.json is damaged: it lacks \['{field}'\]"):
        SoftTargetStore.open(store)


def test_rows_larger_than_a_gigabyte_are_no_rows(store):
    rewrite(store, example_shape=[2**31])
    with pytest.raises(DamagedShardError, match="a row must take at most 1,073,741,824 bytes"):
        SoftTargetStore.open(store)
    # What long sequences over large vocabularies take is far below.
    assert Manifest(kind="dense", num_items=1, num_classes=50_000, example_shape=(512,)).bytes_per_row == 51_200_000


# `.keras` files


def net():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


def repacked(path, compression=zipfile.ZIP_STORED, **changes):
    """A `.keras` file with members replaced or added."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in (members | changes).items():
            archive.writestr(name, data)


def test_a_file_that_unpacks_to_far_more_than_it_is_is_refused_and_a_packed_one_is_not(tmp_path):
    path = tmp_path / "model.keras"
    net().save(path)
    repacked(path, zipfile.ZIP_DEFLATED)
    assert load_model(path).output_shape == (None, 2)
    repacked(path, zipfile.ZIP_DEFLATED, **{"assets.bin": bytes(100 << 20)})
    with pytest.raises(ValueError, match=r"have about its own size once unpacked; got 1\d\d,\d{3},\d{3} bytes"):
        load_model(path)


@pytest.mark.filterwarnings("ignore:Skipping invalid path")
@pytest.mark.parametrize("name", ["../outside.txt", "assets/../../outside.txt"])
def test_a_member_whose_path_leads_out_writes_nothing_there(tmp_path, name):
    home = tmp_path / "home"
    home.mkdir()
    net().save(home / "model.keras")
    repacked(home / "model.keras", **{name: b"x"})
    # Keras leaves such a member out; 3.12 means to, stumbles over its own warning, and the file is refused.
    stumbles = keras.__version__.startswith("3.12.")
    with pytest.raises(ValueError, match=r"must be a \.keras file that Keras opens") if stumbles else nullcontext():
        load_model(home / "model.keras")
    assert [file.name for file in tmp_path.rglob("*")] == ["home", "model.keras"]


def test_code_in_a_file_is_refused_unless_its_author_is_trusted(tmp_path):
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2.0)]).save(path)
    with pytest.raises(ValueError, match="--trust-code"):
        load_model(path)


# Pickle


def python_files():
    return [file for folder in ("keras_distill", "export") for file in sorted((ROOT / folder).rglob("*.py"))]


# What hands functions to the workers that it starts itself, as Ray does, and reads no file of anybody's.
BETWEEN_OWN_PROCESSES = [
    ROOT / "keras_distill" / "scale" / name for name in ("serialization.py", "processes.py", "worker.py")
]


def test_nothing_of_ours_reads_a_pickle():
    """By its imports, and by every `numpy.load`: else NumPy refuses them by default."""
    files = python_files()
    assert set(BETWEEN_OWN_PROCESSES) <= set(files)
    for file in files:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules = {name.split(".")[0] for name in names}
            if file not in BETWEEN_OWN_PROCESSES:
                assert not modules & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}, file
            # It hashes what it would pickle; nothing else of it is used.
            is_of_joblib = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "joblib"
            assert not is_of_joblib or node.attr == "hash", file
            assert not (isinstance(node, ast.ImportFrom) and "joblib" in modules), file
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", file


def test_an_object_array_in_a_data_set_is_refused(tmp_path, capsys):
    path = tmp_path / "data.npz"
    objects = np.array([{"a": 1}] * 4, object)
    np.savez(path, x_train=objects, y_train=np.zeros(4, int), x_test=objects, y_test=np.zeros(4, int))
    net().save(tmp_path / "t.keras")
    assert main(["label", "--teacher", f"{tmp_path}/t.keras", "--data", str(path), "--out", f"{tmp_path}/s"]) == 2
    assert "got Python objects in x_train" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
