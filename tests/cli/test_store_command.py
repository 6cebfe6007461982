"""`keras-distill store`: what is in a store, whether it is whole, what another kind would cost."""

import json

import numpy as np
import pytest

from keras_distill.cli import main
from keras_distill.targets.manifest import Manifest
from keras_distill.targets.shards import create, finish, write_shard


@pytest.fixture
def store(tmp_path):
    manifest = create(
        tmp_path / "targets", Manifest(kind="dense", num_items=50, num_classes=40, rows_per_shard=20, num_views=2)
    )
    for index in range(manifest.num_shards):
        start, stop = manifest.shard_rows(index)
        write_shard(tmp_path / "targets", manifest, index, np.zeros(stop - start, manifest.row_dtype))
    finish(tmp_path / "targets", manifest)
    return tmp_path / "targets"


def test_it_says_what_is_there_and_what_other_kinds_cost(store, capsys):
    assert main(["store", str(store)]) == 0
    text = capsys.readouterr().out
    assert "50 items of 40 classes, 2 views each, format 2" in text
    assert "whole: 5 shards" in text
    assert main(["store", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # Two views of 40 halves; of 16 largest: a half and a 16-bit id each, and the float32 tail.
    assert found["bytes_an_item"] == 2 * 40 * 2
    assert found["as_other_kinds"] == {
        "all logits, float32": 2 * 40 * 4,
        "the 16 largest logits, float16": 2 * (16 * 4 + 4),
        "the 16 largest logits, float32": 2 * (16 * 6 + 4),
        # A 16-bit id and a byte each, and the float32 entropy.
        "12 classes drawn": 2 * (12 * 3 + 4),
    }
    assert found["problem"] is None
    assert found["num_bytes"] == 50 * found["bytes_an_item"]


def test_damage_and_unfinished_work_are_told_by_the_exit_code(store, capsys):
    shard = next((store / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[-200] ^= 1
    shard.write_bytes(content)
    assert main(["store", str(store)]) == 1
    assert "not whole: " in capsys.readouterr().out
    create(store.with_name("begun"), Manifest(kind="dense", num_items=50, num_classes=40))
    assert main(["store", str(store.with_name("begun"))]) == 1
    assert "unfinished: 0 of 1 shards. Run the same label again." in capsys.readouterr().out


def test_what_is_no_store_is_refused(tmp_path, store, capsys):
    assert main(["store", str(tmp_path)]) == 2
    assert "must be a store, a folder with a manifest.json; got none" in capsys.readouterr().err
    assert main(["store", str(store), "--upgrade", str(tmp_path / "new")]) == 2
    assert "must be a store of an older format; got format 2" in capsys.readouterr().err
