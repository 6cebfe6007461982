"""Keras's own callbacks see a distiller's losses by name, so every experiment tracker does."""

import csv

import keras
import numpy as np
import pytest

from keras_distill import Distiller, losses

WEIGHT = 0.3
NAMES = {"loss", "total_loss", "student_loss", "distillation_loss", "accuracy"}


def fit(callbacks):
    """Three epochs with validation; returns the history."""
    keras.utils.set_random_seed(0)
    inputs = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    labels = inputs.argmax(axis=1) % 3
    teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    distiller = Distiller(teacher, student, losses.SoftTargets(2.0), student_loss_weight=WEIGHT)
    distiller.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return distiller.fit(
        inputs, labels, validation_split=0.25, epochs=3, batch_size=16, verbose=0, callbacks=callbacks
    ).history


def test_csv_logger_writes_every_loss_by_name_and_they_add_up(tmp_path):
    history = fit([keras.callbacks.CSVLogger(str(tmp_path / "epochs.csv"))])
    with open(tmp_path / "epochs.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert NAMES | {"val_loss", "val_accuracy"} <= set(rows[0])
    for place, row in enumerate(rows):
        assert all(float(row[name]) == pytest.approx(history[name][place]) for name in history)
        parts = WEIGHT * float(row["student_loss"]) + (1 - WEIGHT) * float(row["distillation_loss"])
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-5)


def test_a_callback_of_a_few_lines_is_told_the_same():
    told = []

    class Tracker(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            told.append((epoch, dict(logs)))

    history = fit([Tracker()])
    assert [epoch for epoch, _ in told] == [0, 1, 2]
    for epoch, logs in told:
        assert set(history) == set(logs)
        assert all(logs[name] == pytest.approx(history[name][epoch]) for name in logs)


@pytest.mark.tensorflow
def test_tensorboard_has_a_curve_for_every_loss(tmp_path):
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    history = fit([keras.callbacks.TensorBoard(str(tmp_path), write_graph=False)])
    for split, prefix in (("train", ""), ("validation", "val_")):
        events = accumulators.EventAccumulator(str(tmp_path / split), size_guidance={"tensors": 0}).Reload()
        curves = {
            tag.removeprefix("epoch_"): [
                float(np.frombuffer(each.tensor_proto.tensor_content, "float32")[0])
                if each.tensor_proto.tensor_content
                else each.tensor_proto.float_val[0]
                for each in events.Tensors(tag)
            ]
            for tag in events.Tags()["tensors"]
            if tag.startswith("epoch_")
        }
        expected = {"loss", "accuracy"} if prefix else NAMES
        assert expected <= set(curves)
        for name in expected:
            np.testing.assert_allclose(curves[name], history[prefix + name], rtol=1e-6)
