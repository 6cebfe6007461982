"""How many epochs a student trains by default, and whether they were too few."""

import numpy as np
import pytest

from keras_distill.cli import distill_report
from keras_distill.cli.distill_training import Training
from keras_distill.distillation.training_length import default_epochs, fall, was_too_short


@pytest.mark.parametrize("num_examples", [3, 100, 719, 2400, 20_000, 55_000, 1_281_167])
@pytest.mark.parametrize("batch_size", [20, 128])
def test_there_are_4000_steps_or_twenty_looks_at_each_example(num_examples, batch_size):
    epochs = default_epochs(num_examples, batch_size)
    steps = epochs * -(-num_examples // batch_size)
    assert 20 <= epochs <= 1000
    if 20 < epochs < 1000:
        assert 4000 <= steps < 4000 + -(-num_examples // batch_size)
    else:
        assert steps > 4000 if epochs == 20 else steps <= 4000


def decay(num_epochs, half_life):
    return list(0.1 + 2.0 * 0.5 ** (np.arange(num_epochs) / half_life))


def test_a_loss_that_still_falls_is_too_short_and_one_that_stands_or_rises_is_not():
    assert was_too_short(decay(40, 20))
    assert not was_too_short(decay(800, 20))
    assert not was_too_short([1.0, 0.9, 0.8, 0.7, 0.75, 0.8, 0.9, 1.0])
    assert was_too_short([3.0, 2.0, 1.0]) is None
    assert fall([9.0, 4.0, 3.0, 3.0]) == pytest.approx(0.25)


def test_the_note_says_by_how_much_and_what_to_try():
    training = Training(None, {"loss": decay(40, 20), "val_loss": decay(40, 20)}, 40, 1.0)
    quarter = [sum(decay(40, 20)[start : start + 10]) for start in (10, 20)]
    note = distill_report.length_note(training, 40, was_chosen=False)
    assert f"by {100 * (1 - quarter[1] / quarter[0]):.0f} %. Try --epochs 80." in note
    training = Training(None, {"loss": decay(800, 20), "val_loss": decay(800, 20)}, 800, 1.0)
    assert distill_report.length_note(training, 800, was_chosen=False) == ""
