"""The field's protocol for CIFAR-100: its networks, its images, and a run that stops and goes on, on digits."""

import json
import sys

import keras
import numpy as np
import pytest

import keras_distill as kd
from examples import cifar100
from examples.cifar100 import QUICK, Draws, Images, Recipe, wide_resnet


def test_networks_have_the_weights_of_the_published_ones():
    for depth, num_weights in ((16, 703_284), (40, 2_255_156)):
        network = wide_resnet((32, 32, 3), 100, depth, 2, 0.0)
        assert sum(int(np.prod(weight.shape)) for weight in network.trainable_weights) == num_weights


def test_decay_is_that_of_every_weight_as_pytorch_has_it():
    network = wide_resnet((8, 8, 1), 10, 10, 1, 0.01)
    half_squares = 0.5 * sum(float(np.sum(np.square(weight))) for weight in network.trainable_weights)
    assert sum(float(loss) for loss in network.losses) == pytest.approx(0.01 * half_squares, rel=1e-5)


def test_images_are_cropped_and_flipped_as_numpy_does():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (7, 6, 6, 3)).astype("uint8")
    row, corner = generator.integers(0, 7, 20), generator.integers(0, 5, (20, 2))
    flip = np.arange(20) % 2
    found = np.asarray(Images(pixels, 2)(row.astype("int32"), corner.astype("int32"), flip.astype("int32")))
    bordered = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for place, (top, left) in enumerate(corner):
        expected = bordered[row[place], top : top + 6, left : left + 6]
        np.testing.assert_array_equal(found[place], expected[:, ::-1] if flip[place] else expected)


def test_an_epoch_draws_every_image_once_and_the_same_whenever_it_comes():
    recipe = Recipe(batch_size=5, padding=4)
    draws, again = (Draws(np.arange(20), recipe, 3) for _ in range(2))
    rows = [draws[index][0]["row"] for index in range(4)]
    assert sorted(np.concatenate(rows)) == list(range(20))
    draws.on_epoch_end()
    again.epoch = 1
    for name, values in draws[2][0].items():
        np.testing.assert_array_equal(values, again[2][0][name])
    assert not np.array_equal(draws[0][0]["row"], rows[0])
    assert set(np.unique(np.concatenate([draws[index][0]["corner"] for index in range(4)]))) <= set(range(9))


def run(out, monkeypatch, *options):
    """The example's `main` on digits, and what it was said to take."""
    command = ["cifar100", "--quick", "--epochs", "2", "--seeds", "0", "--out", str(out), "--only", "teacher", "kd"]
    monkeypatch.setattr(sys, "argv", [*command, *options])
    said = []
    assert cifar100.main(said.append) == 0
    return said[0]


def test_a_run_that_is_stopped_after_every_epoch_ends_in_what_one_run_makes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cifar100, "estimate", lambda *_: 1.0)
    run(tmp_path / "whole", monkeypatch)
    for _ in range(4):
        run(tmp_path / "parts", monkeypatch, "--minutes", "0")
        if (tmp_path / "parts" / "results.json").exists():
            break
    assert "the same command goes on" in capsys.readouterr().out
    whole, parts = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "parts"))
    assert [row["row"] for row in whole["rows"]] == [cifar100.NAMES["teacher"], cifar100.NAMES["kd"]]
    assert whole["backend"] == keras.config.backend()
    # Of ten classes; two epochs of sixteen steps.
    assert whole["rows"][0]["ours"]["mean"] > 30.0
    for one, other in zip(whole["rows"], parts["rows"], strict=True):
        assert one["ours"]["mean"] == pytest.approx(other["ours"]["mean"], abs=1.5)
        # Goals are those of the protocol, which this is not.
        assert one["goal"] is None


def test_the_estimate_is_of_all_models(monkeypatch):
    class Clock:
        """A second passes with every look, so that five steps take one."""

        seconds = 0.0

        def monotonic(self):
            self.seconds += 1.0
            return self.seconds

    monkeypatch.setattr(cifar100, "time", Clock())
    digits = kd.data.load("digits")
    num_steps = QUICK.epochs * ((len(digits.train) + len(digits.validation)) // QUICK.batch_size)
    step, forward = 0.2, 0.2 / 3
    for num_seeds in (1, 3):
        # The teacher; and of each seed one student on labels and four that are taught.
        seconds = num_steps * (step + num_seeds * (step + 4 * (step + forward)))
        assert cifar100.estimate(QUICK, num_seeds) == pytest.approx(seconds / 60)
