"""The showcase of texts in a quick run: every job leaves its figures, and they are of what they say."""

import json
import sys

import numpy as np
import pytest

from examples import banking77

pytest.importorskip("tokenizers")


@pytest.mark.needs_data
def test_ten_sentences_of_each_class_are_labelled_and_others_for_another_seed():
    train, test = banking77.load_sentences()
    assert (len(train.texts), len(test.texts)) == (10_003, 3_080)
    known = banking77.labelled(train.labels, 0)
    assert np.bincount(train.labels[known]).tolist() == [10] * 77
    assert len(set(known)) == 770
    assert set(known) != set(banking77.labelled(train.labels, 1))
    # Features and texts are in one order: those of one class are near one another.
    own = [train.features[train.labels == label].mean(axis=0) for label in range(77)]
    assert ((np.array(own) @ test.features.T).argmax(axis=0) == test.labels).mean() > 0.7


def test_data_that_are_not_there_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_DISTILL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"KERAS_DISTILL_DATA must name a folder with banking77_minilm.npz"):
        banking77.load_sentences()


@pytest.mark.slow
@pytest.mark.needs_data
def test_a_quick_run_leaves_every_figure(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["banking77", "--quick", "--seeds", "0", "--out", str(tmp_path)])
    assert banking77.main() == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["quick"] is True
    printed = capsys.readouterr().out
    assert all(line["row"] in printed for line in results["rows"])
    figures = json.loads((tmp_path / "litert-0.json").read_text())["figures"]
    size = (tmp_path / "distilled-0.tflite").stat().st_size
    assert figures["model_bytes"] == size
    assert figures["largest_difference"] < 1e-4
    # The teacher is fitted whole in a quick run too; luck would have 1.3 %.
    assert json.loads((tmp_path / "teacher-head-0.json").read_text())["figures"]["accuracy"] > 0.8
