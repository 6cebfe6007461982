"""Artifacts that answer as their models do, of every shape that models have: none may be refused."""

import numpy as np
import pytest
from graphs import linear_onnx, onnx_file
from subjects import SUBJECTS, classes, float32, maps, one_unit, rare_class, several_labels, tokens, values

from keras_distill.deploy import verify


def as_precision(precision, array, bits=8):
    """Weights as a file of this precision has them: of one scale for each output."""
    if array.dtype != np.float32 or precision == "float32":
        return array
    if precision == "float16":
        return array.astype("float16").astype("float32")
    steps = 2.0 ** (bits - 1) - 1
    largest = np.abs(array).max(tuple(range(array.ndim - 1)), keepdims=True)
    scale = np.where(largest > 0, largest, 1.0) / steps
    return float32(np.round(array / scale) * scale)


def rounded(subject, precision, bits=8):
    return {name: as_precision(precision, array, bits) for name, array in subject.constants.items()}


OWN = object()


def assert_holds(subject, path, precision="float32", labels=OWN, **options):
    options.setdefault("answers", subject.answers)
    labels = subject.labels if labels is OWN else labels
    found = verify(subject.outputs, path, subject.inputs, labels, precision=precision, **options)
    assert found.problems == ()
    return found


@pytest.mark.parametrize("batch", ["batch", 1, 7])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_every_subject_in_every_precision_with_an_open_and_a_fixed_batch(name, precision, batch, tmp_path):
    subject = SUBJECTS[name]()
    path = subject.write(tmp_path / "a.onnx", constants=rounded(subject, precision), batch=batch)
    found = assert_holds(subject, path, precision)
    assert found.remarks == (() if batch == "batch" else (f"takes {batch} example(s) a call",)) or precision == "int8"
    assert set(found.outputs) == set(subject.outputs)
    assert_holds(subject, path, precision, None)


@pytest.mark.parametrize("num_items", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("make", [classes, one_unit, several_labels, values, tokens, maps])
def test_tiny_test_sets(make, precision, num_items, tmp_path):
    subject = make(num_items=num_items)
    path = subject.write(tmp_path / "a.onnx", constants=rounded(subject, precision))
    assert_holds(subject, path, precision)
    assert_holds(subject, path, precision, None)


# Labels as people have them


LAYOUTS = {
    "classes, flat": (classes, lambda labels: labels),
    "classes in a column": (classes, lambda labels: labels[:, None]),
    "classes in floats": (classes, lambda labels: labels.astype("float32")),
    "classes in int8": (classes, lambda labels: labels.astype("int8")),
    "classes as a list": (classes, lambda labels: labels.tolist()),
    "one-hot": (classes, lambda labels: np.eye(4)[labels]),
    "one-hot in booleans": (classes, lambda labels: np.eye(4, dtype=bool)[labels]),
    "classes, half of them unlabelled": (classes, lambda labels: np.where(np.arange(300) % 2, labels, -1)),
    "one-hot, half of them unlabelled": (
        classes,
        lambda labels: np.where(np.arange(300)[:, None] % 2, np.eye(4)[labels], -1),
    ),
    "yes or no, flat": (one_unit, lambda labels: labels),
    "yes or no in a column of floats": (one_unit, lambda labels: labels[:, None].astype("float32")),
    "yes or no in booleans": (one_unit, lambda labels: labels.astype(bool)),
    "yes or no, half of them unlabelled": (one_unit, lambda labels: np.where(np.arange(300) % 2, labels, -1)),
    "several labels in floats": (several_labels, lambda labels: labels.astype("float32")),
    "several labels, some unknown": (several_labels, lambda labels: np.where(labels.cumsum(1) > 1, -1, labels)),
    "a class a token in a last axis of one": (tokens, lambda labels: labels[..., None]),
    "a one-hot map": (maps, lambda labels: np.eye(3)[labels]),
    "targets in float64": (values, lambda labels: labels.astype("float64")),
}


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_as(layout, precision, tmp_path):
    make, change = LAYOUTS[layout]
    subject = make()
    path = subject.write(tmp_path / "a.onnx", constants=rounded(subject, precision))
    labels = change(subject.labels["logits"])
    # The answer is read from the labels where the head says nothing.
    found = assert_holds(subject, path, precision, labels, answers=None if make is not several_labels else "threshold")
    if make is not values:
        assert found.reference_accuracy == pytest.approx(accuracy_by_numpy(subject, np.asarray(labels), make))


def accuracy_by_numpy(subject, labels, make):
    logits = subject.outputs["logits"]
    if make in (one_unit, several_labels):
        flat, answers = labels.reshape(logits.shape), logits > 0
    elif labels.shape == logits.shape:
        flat, answers = np.where(labels.max(-1) > 0, labels.argmax(-1), -1), logits.argmax(-1)
    else:
        flat, answers = labels.reshape(logits.shape[:-1]), logits.argmax(-1)
    return (answers == flat)[flat >= 0].mean()


def test_of_a_regression_accuracy_is_the_explained_variance(tmp_path):
    subject = values()
    found = assert_holds(subject, subject.write(tmp_path / "a.onnx"), "float32")
    targets, outputs = np.float64(subject.labels["logits"]), np.float64(subject.outputs["logits"])
    squared = 1 - ((targets - outputs) ** 2).mean(0) / targets.var(0)
    assert found.reference_accuracy == pytest.approx(squared.mean(), abs=1e-6)
    assert found.outputs["logits"].answer == "distance"


# Outputs as models have them


def test_one_class_has_one_answer(tmp_path):
    subject = classes(num_classes=1)
    path = subject.write(tmp_path / "a.onnx", constants=rounded(subject, "int8"))
    for precision in ("float32", "int8"):
        path = subject.write(tmp_path / "a.onnx", constants=rounded(subject, precision))
        assert_holds(subject, path, precision, np.zeros(300, int), answers="argmax")


def test_outputs_in_another_order_than_the_reference_s(tmp_path):
    subject = SUBJECTS["two_outputs"]()
    path = subject.write(tmp_path / "a.onnx")
    subject.outputs = dict(reversed(subject.outputs.items()))
    assert_holds(subject, path)


def test_a_single_output_of_another_name(tmp_path):
    subject = classes()
    path = onnx_file(
        tmp_path / "a.onnx",
        [("MatMul", ["x", "kernel"], ["product"]), ("Add", ["product", "bias"], ["Identity:0"])],
        {"x": ("float32", ["batch", 8])},
        {"Identity:0": ["batch", 4]},
        subject.constants,
    )
    assert_holds(subject, path)
    assert verify(subject.outputs["logits"], path, subject.inputs["x"], subject.labels["logits"]).holds


def test_an_output_without_a_last_axis(tmp_path):
    subject = values()
    nodes = [("Gather", ["was", "first"], ["logits"], {"axis": 1})]
    subject.outputs = {"logits": subject.outputs["logits"][:, 0]}
    subject.labels = {"logits": subject.labels["logits"][:, 0]}
    for precision in ("float32", "int8"):
        constants = rounded(subject, precision) | {"first": np.array(0)}
        path = subject.write(tmp_path / "a.onnx", after=("logits", nodes), constants=constants)
        assert_holds(subject, path, precision)
        assert_holds(subject, path, precision, answers=None)


def test_an_embedding_of_many_values_some_of_them_all_but_dead(tmp_path):
    subject = classes(num_classes=256, num_features=32)
    scale = float32(np.where(np.arange(256) % 8 == 0, 0.01, 1.0))
    subject.constants = {name: array * scale for name, array in subject.constants.items()}
    outputs = np.float64(subject.inputs["x"]) @ subject.constants["kernel"] + subject.constants["bias"]
    subject.outputs = {"logits": float32(outputs)}
    for precision in ("float32", "float16", "int8"):
        path = subject.write(tmp_path / "a.onnx", constants=rounded(subject, precision))
        assert_holds(subject, path, precision, None, answers="distance")


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1e2, 1e5])
@pytest.mark.parametrize("make", [classes, values])
def test_values_of_any_unit(make, scale, precision, tmp_path):
    scale = min(scale, 1e2) if precision == "float16" else scale  # which ends at 65,504
    subject = make()
    for name in ("kernel", "bias"):
        subject.constants[name] = float32(scale * subject.constants[name])
    outputs = np.float64(subject.inputs["x"]) @ subject.constants["kernel"] + subject.constants["bias"]
    subject.outputs = {"logits": float32(outputs)}
    path = subject.write(tmp_path / "a.onnx", constants=rounded(subject, precision))
    assert_holds(subject, path, precision, None)


def test_a_temperature_in_kelvin(tmp_path):
    # 300 ± 2: the int8 rounding of the weights is small beside what varies, and nothing beside the mean.
    subject = classes(num_classes=1)
    subject.constants["bias"] = float32([300.0])
    subject.constants["kernel"] = float32(subject.constants["kernel"] / 2)
    outputs = np.float64(subject.inputs["x"]) @ subject.constants["kernel"] + 300.0
    subject.outputs, subject.labels = {"logits": float32(outputs)}, {"logits": float32(outputs + 0.1)}
    for precision in ("float32", "float16", "int8"):
        path = subject.write(tmp_path / "a.onnx", constants=rounded(subject, precision))
        assert_holds(subject, path, precision, answers="distance")
        assert_holds(subject, path, precision, answers=None)


# Models that are odd


def test_a_dead_model_that_answers_all_inputs_alike(tmp_path):
    subject = classes()
    subject.constants["kernel"] = 0 * subject.constants["kernel"]
    subject.outputs = {"logits": np.broadcast_to(subject.constants["bias"], (300, 4)).copy()}
    for precision in ("float32", "float16", "int8"):
        path = subject.write(tmp_path / "a.onnx", constants=rounded(subject, precision))
        found = assert_holds(subject, path, precision)
        assert "the float32 model answers all inputs alike, which shows little" in found.remarks
    nothing = classes()
    nothing.constants = {name: 0 * array for name, array in nothing.constants.items()}
    nothing.outputs = {"logits": np.zeros((300, 4), "float32")}
    assert_holds(nothing, nothing.write(tmp_path / "b.onnx"))


def test_classes_that_tie_for_every_input(tmp_path):
    subject = classes()
    kernel = subject.constants["kernel"].copy()
    kernel[:, 1] = kernel[:, 0] * (1 + 1e-7)
    bias = subject.constants["bias"].copy()
    bias[1] = bias[0]
    logits = np.float64(subject.inputs["x"]) @ np.float64(kernel) + bias
    subject.outputs = {"logits": float32(logits[:, [1, 0, 2, 3]])}
    for precision in ("float32", "float16", "int8"):
        path = subject.write(tmp_path / "a.onnx", constants={"kernel": kernel, "bias": bias})
        assert_holds(subject, path, precision, None)


def test_a_thousand_classes_of_three_examples(tmp_path):
    subject = classes(num_items=3000, num_classes=1000, num_features=64)
    path = subject.write(tmp_path / "a.onnx", constants=rounded(subject, "int8"))
    assert_holds(subject, path, "int8")
    assert_holds(subject, path, "int8", None)


def test_classes_that_the_test_set_has_no_example_of(tmp_path):
    subject = classes()
    path = subject.write(tmp_path / "a.onnx", constants=rounded(subject, "int8"))
    assert_holds(subject, path, "int8", np.minimum(subject.labels["logits"], 1))
    assert_holds(subject, path, "int8", np.zeros(300, int))
    assert_holds(subject, path, "int8", np.full(300, -1))


def test_a_rare_class_that_loses_one_of_its_examples_to_rounding(tmp_path):
    subject = rare_class(num_rare=12)
    # One of the twelve is next to the boundary.
    subject.inputs["x"][0, 0] = 6.01
    logits = np.float64(subject.inputs["x"]) @ subject.constants["kernel"] + subject.constants["bias"]
    subject.outputs = {"logits": float32(logits)}
    subject.labels = {"logits": (subject.inputs["x"][:, 0] > 6).astype("int32")}
    path = subject.write(tmp_path / "a.onnx", constants={"bias": float32([6.02, 0.0])})
    found = assert_holds(subject, path, "int8")
    (recall,) = found.outputs["logits"].fallen_recalls
    assert (recall.index, recall.before, recall.after) == (1, 1.0, pytest.approx(11 / 12))


def test_a_class_of_one_example_that_is_lost_is_remarked(tmp_path):
    subject = rare_class(num_rare=1)
    subject.inputs["x"][0, 0] = 6.01
    logits = np.float64(subject.inputs["x"]) @ subject.constants["kernel"] + subject.constants["bias"]
    subject.outputs = {"logits": float32(logits)}
    path = subject.write(tmp_path / "a.onnx", constants={"bias": float32([6.02, 0.0])})
    found = assert_holds(subject, path, "int8")
    assert "recall falls of class 1 from 100% to 0% of 1 examples" in found.remarks


def test_ranges_that_int8_finds_anew_for_every_batch(tmp_path):
    subject = classes()
    nodes = [
        ("Abs", ["x"], ["sizes"]),
        ("ReduceMax", ["sizes"], ["largest"], {"keepdims": 0}),
        ("Div", ["largest", "steps"], ["step"]),
        ("Div", ["x", "step"], ["counts"]),
        ("Round", ["counts"], ["whole"]),
        ("Mul", ["whole", "step"], ["now"]),
    ]
    path = subject.write(tmp_path / "a.onnx", before=("x", nodes), constants={"steps": float32(127)})
    found = assert_holds(subject, path, "int8")
    assert "an example alone gets other outputs than in a batch" in found.remarks
    # In float there is nothing that could be found anew.
    assert not verify(subject.outputs, path, subject.inputs).holds


def test_inputs_of_other_types_that_hold_the_same_values(tmp_path):
    subject = SUBJECTS["pixels"]()
    path = subject.write(tmp_path / "a.onnx")
    for dtype in ("int64", "float32", "float64"):
        assert verify(subject.outputs, path, {"image": subject.inputs["image"].astype(dtype)}).holds
    tokens_of = tokens()
    path = tokens_of.write(tmp_path / "b.onnx")
    assert verify(tokens_of.outputs, path, tokens_of.inputs["ids"].astype("int64").tolist()).holds
    linear = linear_onnx(tmp_path / "c.onnx", np.eye(3))
    assert verify(np.arange(6.0).reshape(2, 3), linear, np.arange(6).reshape(2, 3)).holds


def test_inputs_that_are_all_the_same_are_remarked(tmp_path):
    subject = classes()
    path = subject.write(tmp_path / "a.onnx")
    found = verify(np.tile(subject.constants["bias"], (5, 1)), path, np.zeros((5, 8), "float32"))
    assert found.holds
    assert "all inputs are the same, which shows little" in found.remarks


# Many of them: what int8 rounding does to random answers


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("make", [classes, one_unit, several_labels, values, tokens, maps])
def test_thirty_random_models_of_eight_and_of_seven_bits(make, bits, tmp_path):
    for seed in range(30):
        subject = make(seed=seed)
        path = subject.write(tmp_path / "a.onnx", constants=rounded(subject, "int8", bits))
        for labels in (subject.labels, None):
            found = verify(subject.outputs, path, subject.inputs, labels, precision="int8", answers=subject.answers)
            assert found.problems == (), seed
