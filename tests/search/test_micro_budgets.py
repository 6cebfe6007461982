"""A microcontroller's memory as a budget of `compress`, by its interpreter's own count."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.data import Dataset, Split
from keras_distill.deploy import Budgets
from keras_distill.search.cost import Meter

pytest.importorskip("optuna", reason="Optuna is not installed: pip install keras-distill[tune]")
pytestmark = pytest.mark.tensorflow


def split(num_items, seed):
    """A bright spot in one of four corners."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, num_items).astype("int32")
    images = generator.normal(0.0, 0.3, (num_items, 8, 8, 1)).astype("float32")
    for image, label in zip(images, labels, strict=True):
        image[(label // 2) * 4 :, (label % 2) * 4 :][:4, :4] += 0.5
    return Split(images, labels)


@pytest.fixture(scope="module")
def dataset():
    return Dataset("corners", split(512, 0), split(256, 1), split(256, 2), tuple("abcd"), "none")


@pytest.fixture(scope="module")
def teacher(dataset):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(8, 3, activation="relu"), layers.Flatten(), layers.Dense(4)]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(dataset.train.inputs, dataset.train.labels, epochs=10, verbose=0)
    return model


def test_a_cost_has_the_arena_that_the_interpreter_counts(dataset, teacher, tmp_path):
    from keras_distill.deploy.tflm import to_tflm

    inputs = dataset.validation.inputs
    meter = Meter("tflm", inputs[:1], inputs, {})
    cost = meter.measure(teacher, "int8", "pruned")
    name = meter.feed(teacher, inputs)
    facts = to_tflm(teacher, tmp_path / "it-tflm.tflite", calibration=name)
    # The arena does not depend on the weights.
    assert cost.arena_bytes == facts.arena_bytes
    assert cost.share_of(None, None, cost.arena_bytes / 2) == pytest.approx(2.0)
    assert cost.share_of(10 * cost.num_bytes, None, None) == pytest.approx(0.1)
    assert f"an arena of {cost.arena_bytes:,} bytes" in str(cost)
    assert meter.predict(teacher, "int8", "pruned").arena_bytes == pytest.approx(cost.arena_bytes, rel=0.1)


@pytest.mark.slow
def test_an_arena_that_no_candidate_holds_is_refused_with_the_nearest(dataset, teacher, tmp_path):
    with pytest.raises(ValueError, match=r"got an arena of 500 bytes\. The nearest is .* an arena of [\d,]+ bytes"):
        kd.compress(teacher, dataset, Budgets(max_arena=500), tmp_path / "out", runtime="tflm", epochs=1)


@pytest.mark.parametrize(
    ("budgets", "runtime", "message"),
    [
        ({"max_arena": 9000}, "litert", "runtime must be tflm where max_arena is a budget; got litert"),
        ({"max_size": 9000, "max_latency_ms": 1.0}, "tflm", "max_latency_ms must be none on tflm"),
    ],
)
def test_budgets_of_a_chip_and_of_this_machine_are_not_mixed(budgets, runtime, message, dataset, teacher, tmp_path):
    with pytest.raises(ValueError, match=message):
        kd.compress(teacher, dataset, Budgets(**budgets), tmp_path / "out", runtime=runtime)


@pytest.mark.slow
def test_what_ships_holds_the_arena(dataset, teacher, tmp_path):
    found = kd.compress(
        teacher, dataset, Budgets(max_arena=6000, max_size=9000, max_accuracy_drop=0.1), tmp_path / "out",
        runtime="tflm", epochs=8, batch_size=64, num_trials=1,
    )  # fmt: skip
    assert found.bundle is not None
    (artifact,) = json.loads((found.bundle / "manifest.json").read_text())["artifacts"].values()
    assert artifact["runtime"] == "tflite-micro"
    assert artifact["micro"]["arena_bytes"] <= 6000
    assert {trial.precision for trial in found.trials} == {"int8"}
    assert "an arena of 6,000 bytes" in (tmp_path / "out" / "report.html").read_text()
