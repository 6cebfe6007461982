"""Fingerprints and marks against the definitions written out."""

import hashlib

import numpy as np
import pytest

from keras_distill.targets.fingerprints import every_item_fingerprint, item_marks


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64", "bool"])
@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 3), (50, 5, 7), (50, 8)])
def test_every_item_counts_by_the_sum_of_its_bytes_eight_at_a_time(dtype, shape):
    x = np.random.default_rng(0).integers(0, 250, shape).astype(dtype)
    sums = []
    for item in x:
        content = np.asarray(item).tobytes()
        words = [int.from_bytes(content[at : at + 8], "little") for at in range(0, len(content), 8)]
        sums.append((sum(words) % 2**64).to_bytes(8, "little"))
    assert every_item_fingerprint(x) == hashlib.sha256(b"".join(sums)).hexdigest()[:32]


def test_an_array_of_any_layout_has_the_fingerprint_of_its_copy():
    x = np.random.default_rng(0).normal(size=(40, 6, 4))
    for view in (x[::2], x[:, ::-1], x.transpose(0, 2, 1), np.asfortranarray(x)):
        assert every_item_fingerprint({"a": view}) == every_item_fingerprint({"a": view.copy(order="C")})


def test_large_arrays_are_summed_block_by_block(monkeypatch):
    from keras_distill.targets import fingerprints

    x = np.random.default_rng(0).normal(size=(40, 6))
    whole = every_item_fingerprint(x)
    monkeypatch.setattr(fingerprints, "_BLOCK", 100)
    assert every_item_fingerprint(x) == whole


def test_what_does_not_lie_in_memory_has_none(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(3))
    assert every_item_fingerprint(np.load(tmp_path / "x.npy", mmap_mode="r")) == ""
    assert every_item_fingerprint([np.eye(3), np.array(["a", "b", "c"], object)]) == ""


def test_a_mark_is_the_beginning_of_the_items_sha256():
    inputs = {"b": np.arange(6, dtype="float32").reshape(3, 2), "a": np.arange(3, dtype="uint8")}
    for position, mark in enumerate(item_marks(inputs, range(3))):
        content = inputs["a"][position].tobytes() + inputs["b"][position].tobytes()
        assert int(mark) == int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


@pytest.mark.tensorflow
def test_a_text_has_one_mark_whoever_holds_it():
    import tensorflow as tf

    texts = ["one", "zwölf", ""]
    held = [
        np.array(texts),
        np.array(texts, object),
        np.array([text.encode() for text in texts], object),
        tf.constant(texts),
    ]
    marks = {tuple(item_marks(texts, range(3)).tolist()) for texts in held}
    assert len(marks) == 1
    assert len(set(marks.pop())) == 3
