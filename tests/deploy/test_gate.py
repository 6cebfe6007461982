"""What the gate decides about a target, from variants whose figures are known."""

from pathlib import Path

import numpy as np
import pytest

from keras_distill.deploy import Budgets, Verification
from keras_distill.deploy.quantize import Variant
from keras_distill.deploy.ship import _decide
from keras_distill.deploy.shipment import Outcome


def variant(target, name, p50_ms, *, drop=0.0, num_bytes=100, failure=None):
    precision = "float32" if name == "float32" else "int8"
    check = Verification(precision, 9, 0.1, 0.1, 1.0, 0.9, 0.9 - drop, drop)
    latency = {} if failure else {"p50_ms": p50_ms}
    made = Variant(target, name, precision, Path("none"), None if failure else check, latency, failure)
    made.num_bytes = num_bytes
    return made


def settled(target, variants, **budgets):
    outcome = Outcome(target, required=True)
    _decide(outcome, variants, Budgets(**budgets).broken_by)
    return outcome


def test_a_float32_file_within_its_budgets_ships():
    onnx = variant("onnx", "float32", 1.0)
    assert settled("onnx", [onnx], max_size=100, max_latency_ms=1.0).variant is onnx
    assert settled("web", [onnx]).holds


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        ({"max_size": 90}, "takes 100 bytes: 10 past the budget of 90"),
        ({"max_latency_ms": 0.75}, "takes 1.000 ms: 0.250 ms past the budget of 0.75 ms"),
        ({"max_accuracy_drop": 0.01}, "accuracy drops by 3.00%: 2.00% past the budget of 1.00%"),
    ],
)
def test_past_a_budget_a_target_says_by_how_much(budgets, says):
    outcome = settled("onnx", [variant("onnx", "float32", 1.0, drop=0.03)], **{"max_accuracy_drop": 0.1, **budgets})
    assert not outcome.holds
    assert outcome.reasons == [says]


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        ({"min_accuracy": 0.95}, "is right on 87.00%: 8.00% short of the budget of 95.00%"),
        (
            {"max_drop_from_teacher": 0.02},
            "accuracy is 10.00% below the teacher's: 8.00% past the budget of 2.00%",
        ),
        (
            {"min_class_recall": 0.6},
            "recall by class (e 10.00%, b 20.00%, c 30.00% and 1 more) is below the budget of 60.00%",
        ),
        ({"min_accuracy": 0.87, "max_drop_from_teacher": 0.1, "min_class_recall": 0.1}, None),
    ],
)
def test_usefulness_is_a_budget_of_every_artifact(budgets, says):
    made = variant("onnx", "float32", 1.0, drop=0.03)
    made.class_recalls = np.array([0.9, 0.2, 0.3, 0.5, 0.1, np.nan])
    budget = Budgets(max_accuracy_drop=0.1, **budgets)
    broken = budget.broken_by(made, teacher_accuracy=0.97, class_names="abcdef")
    assert broken == ([] if says is None else [says])


@pytest.mark.parametrize("name", ["min_accuracy", "max_drop_from_teacher", "min_class_recall"])
def test_a_budget_in_per_cent_is_refused_and_the_fraction_named(name):
    with pytest.raises(ValueError, match=rf"{name} must be between 0 and 1; got 90\.0\. It is a fraction: 0\.05 is"):
        Budgets(**{name: 90.0})


def test_of_int8_variants_the_fastest_within_the_budgets_ships():
    rough = variant("onnx-int8", "dynamic", 0.1, drop=0.02)
    fine = variant("onnx-int8", "static", 0.5)
    outcome = settled("onnx-int8", [variant("onnx", "float32", 1.0), rough, fine], max_accuracy_drop=0.01)
    assert outcome.holds
    assert outcome.variant is fine


def test_int8_that_is_slower_does_not_hold_and_says_so():
    outcome = settled("onnx-int8", [variant("onnx", "float32", 1.0), variant("onnx-int8", "static", 1.5)])
    assert not outcome.holds
    assert outcome.reasons == ["static takes 1.50 x the time of float32"]


def test_int8_that_is_slower_holds_where_float32_is_past_a_budget():
    big, small = variant("onnx", "float32", 1.0, num_bytes=4000), variant("onnx-int8", "static", 1.5, num_bytes=1000)
    assert settled("onnx-int8", [big, small], max_size=2000).variant is small
    assert not settled("onnx-int8", [big, small], max_size=5000).holds
    assert not settled("onnx-int8", [big, small], max_size=2000, max_latency_ms=1.2).holds


def test_int8_whose_float32_file_does_not_open_does_not_hold_and_says_why():
    broken = variant("litert", "float32", 0.0, failure="student.tflite must be a model that its runtime opens")
    outcome = settled("litert-int8", [broken, variant("litert-int8", "int8", 1.0)])
    assert not outcome.holds
    assert "no float32 file to compare with: student.tflite must be" in outcome.reasons[0]
