"""The benchmark of `kd.tune`: its page says what it found, and its stacked grid trains as `Distiller` does."""

import json

import keras
import numpy as np
import pytest

import keras_distill as kd
from benchmarks import tuning
from benchmarks.stacked import stacked_logits, train_stacked
from keras_distill.data.networks import mlp
from keras_distill.search import Recipe


def test_the_table_on_the_page_is_that_of_the_kept_figures():
    result = json.loads(tuning.RESULTS.read_text())
    page = (tuning.DOCS / "distill.md").read_text()
    shown = page.split("<!-- tuning: ")[1].split("-->\n")[1].split("<!-- end of tuning")[0]
    assert shown == tuning.page_part(result) + "\n"
    assert [row["name"] for row in result["rows"]] == [*tuning.SITUATIONS, *tuning.DATA_SETS]
    # The rows are the sums of their seeds, and of what tuning may cost none goes beyond.
    for row in result["rows"]:
        wrong = [sum(seed[key]["errors"] for seed in row["seeds"]) for key in ("tuned", "grid_by_nll")]
        assert row["ratio"] == pytest.approx(wrong[0] / wrong[1])
        assert row["cost_in_trainings"] <= tuning.COST_LIMIT


@pytest.mark.tensorflow
def test_a_stacked_grid_trains_as_the_distiller_does():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(32, 6)).astype("float32")
    labels = np.where(np.arange(32) < 20, generator.integers(0, 3, 32), -1).astype("int32")
    teacher_logits = (3 * generator.normal(size=(32, 3))).astype("float32")
    keras.utils.set_random_seed(1)
    student = mlp((6,), 3, (8,))
    candidates = [Recipe(4.0, 0.1, 0.01), Recipe(1.0, 0.5, 0.03), Recipe(2.0, 0.0, 0.003)]
    begin = student.get_weights()
    parts = train_stacked(begin, (inputs, labels, teacher_logits), candidates, num_steps=30, batch_size=32)
    together = stacked_logits(parts, inputs).numpy()
    for candidate, logits in zip(candidates, together, strict=True):
        student.set_weights(begin)
        losses = kd.losses.SoftTargets(candidate.temperature)
        distiller = kd.Distiller(None, student, losses, student_loss_weight=candidate.student_loss_weight)
        schedule = keras.optimizers.schedules.CosineDecay(candidate.learning_rate, 30)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
        distiller.compile(keras.optimizers.Adam(schedule), loss=loss)
        # One batch an epoch: the order within it changes nothing.
        targets = {"labels": labels, "soft_targets": teacher_logits}
        distiller.fit(inputs, targets, batch_size=32, epochs=30, verbose=0)
        np.testing.assert_allclose(logits, np.asarray(student(inputs)), rtol=2e-3, atol=2e-3)
