"""What `verify` lets pass and what it stops, on graphs whose answers are known."""

import numpy as np
import pytest
from graphs import linear_onnx

from keras_distill.deploy import verify
from keras_distill.deploy.comparison import compare_output

GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.normal(size=(300, 6)).astype("float32")
KERNEL = GENERATOR.normal(size=(6, 4)).astype("float32")
LOGITS = INPUTS @ KERNEL
LABELS = LOGITS.argmax(-1).astype("int32")


def test_the_same_function_holds(tmp_path):
    report = verify(LOGITS, linear_onnx(tmp_path / "a.onnx", KERNEL), INPUTS, LABELS)
    assert report.holds
    assert report.num_items == 300
    assert report.argmax_agreement == report.accuracy == report.reference_accuracy == 1.0
    assert report.max_abs_error < 1e-5


def test_errors_are_those_that_numpy_finds(tmp_path):
    other = KERNEL + GENERATOR.normal(scale=0.1, size=KERNEL.shape).astype("float32")
    expected = np.float64(INPUTS) @ np.float64(other)
    report = verify(LOGITS, linear_onnx(tmp_path / "a.onnx", other), INPUTS, LABELS, precision="int8")
    assert report.max_abs_error == pytest.approx(np.abs(expected - LOGITS).max(), rel=1e-4)
    assert report.logit_rmse == pytest.approx(np.sqrt(np.mean((expected - LOGITS) ** 2)), rel=1e-4)
    assert report.argmax_agreement == np.mean(expected.argmax(-1) == LABELS)
    assert report.accuracy_drop == pytest.approx(1.0 - np.mean(expected.argmax(-1) == LABELS))


def test_a_logit_two_tolerances_off_is_stopped_in_float32_and_passes_in_float16(tmp_path):
    shifted = LOGITS.copy()
    shifted[7, 2] += 1e-3 * (1 + abs(shifted[7, 2]))
    path = linear_onnx(tmp_path / "a.onnx", KERNEL)
    assert "1 of 1200 logits" in verify(shifted, path, INPUTS).problems[0]
    assert verify(shifted, path, INPUTS, precision="float16").holds


def test_another_answer_is_a_problem_outside_ties_and_none_within(tmp_path):
    kernel = np.zeros((2, 2), "float32")
    kernel[0] = [1.0, 1.0 + 3e-5]
    path = linear_onnx(tmp_path / "a.onnx", kernel)
    inputs = np.array([[1.0, 0.0]], "float32")
    tie = np.array([[1.0 + 3e-5, 1.0]], "float32")
    assert verify(tie, path, inputs).holds
    far = np.array([[2.0, 1.0]], "float32")
    assert any("answers differ" in problem for problem in verify(far, path, inputs).problems)


def test_int8_is_judged_by_accuracy_and_says_by_how_much(tmp_path):
    kernel = KERNEL.copy()
    kernel[:, 0] -= 0.3
    path = linear_onnx(tmp_path / "a.onnx", kernel)
    drop = 1.0 - np.mean((INPUTS @ kernel).argmax(-1) == LABELS)
    report = verify(LOGITS, path, INPUTS, LABELS, precision="int8", max_accuracy_drop=0.01)
    assert f"{drop:.2%}" in report.problems[0]
    assert f"{drop - 0.01:.2%}" in report.problems[0]
    assert verify(LOGITS, path, INPUTS, LABELS, precision="int8", max_accuracy_drop=1.0).holds


def test_int8_without_labels_is_judged_by_agreement(tmp_path):
    kernel = KERNEL.copy()
    kernel[:, 0] -= 1.0
    assert not verify(LOGITS, linear_onnx(tmp_path / "a.onnx", kernel), INPUTS, precision="int8").holds


def test_nan_logits_are_a_problem(tmp_path):
    kernel = np.full_like(KERNEL, np.nan)
    report = verify(LOGITS, linear_onnx(tmp_path / "a.onnx", kernel), INPUTS, precision="int8")
    assert "some logits are NaN or infinite" in report.problems


def test_a_fixed_batch_is_fed_in_its_own_size_and_remarked(tmp_path):
    report = verify(LOGITS, linear_onnx(tmp_path / "a.onnx", KERNEL, batch=7), INPUTS)
    assert report.holds
    assert report.remarks == ("takes 7 example(s) a call",)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"a\.onnx must be a model that its runtime opens"):
        verify(LOGITS, tmp_path / "a.onnx", INPUTS)
    with pytest.raises(ValueError, match="does not exist"):
        verify(LOGITS, tmp_path / "b.onnx", INPUTS)


def test_labels_and_inputs_that_do_not_fit_are_refused(tmp_path):
    path = linear_onnx(tmp_path / "a.onnx", KERNEL)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 4\)"):
        verify(LOGITS, path, INPUTS, LABELS + 3)
    with pytest.raises(ValueError, match="there must be 300 labels"):
        verify(LOGITS, path, INPUTS, LABELS[:10])
    with pytest.raises(ValueError, match="inputs must be called"):
        verify(LOGITS, path, {"y": INPUTS})
    with pytest.raises(ValueError, match="precision must be one of"):
        verify(LOGITS, path, INPUTS, precision="int4")


def test_labels_that_are_no_numbers_or_of_no_output_are_refused(tmp_path):
    path = linear_onnx(tmp_path / "a.onnx", KERNEL)
    with pytest.raises(ValueError, match="labels must be numbers"):
        verify(LOGITS, path, INPUTS, ["ant"] * 300)
    with pytest.raises(ValueError, match=r"labels must be of outputs among \['logits'\]; got \['kind'\]"):
        verify(LOGITS, path, INPUTS, {"kind": LABELS})
    with pytest.raises(ValueError, match=r"answers must be of outputs among \['logits'\]"):
        verify(LOGITS, path, INPUTS, answers={"kind": "argmax"})
    with pytest.raises(ValueError, match="the answer of 'logits' must be one of 'argmax', 'threshold', 'distance'"):
        verify(LOGITS, path, INPUTS, answers="softmax")
    with pytest.raises(ValueError, match="labels must be finite"):
        verify(LOGITS, path, INPUTS, np.full((300, 4), np.nan))


def test_half_a_point_of_accuracy_is_allowed_whatever_the_difference_of_two_shares_is_in_float64(tmp_path):
    # 126 of 200 right before and 125 after: 0.63 - 0.625 is 0.0050000000000000044.
    rows = np.eye(2, dtype="float32")[np.arange(200) % 2]
    labels = np.where(np.arange(200) < 126, np.arange(200) % 2, 1 - np.arange(200) % 2)
    after = rows.copy()
    after[0] = [0.45, 0.55]
    found = compare_output("logits", rows, after, labels, precision="int8")
    assert found.accuracy_drop > 0.005
    assert not any("accuracy drops" in problem for problem in found.problems)


@pytest.mark.parametrize("places", [(5,), (3, 4)], ids=["tokens", "pixels"])
def test_labels_of_tokens_and_pixels_are_counted_place_by_place(tmp_path, places):
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(20, *places, 6)).astype("float32")
    labels = generator.integers(0, 4, (20, *places))
    logits = inputs @ KERNEL
    report = verify(logits, linear_onnx(tmp_path / "a.onnx", KERNEL, places=places), inputs, labels)
    assert report.holds
    assert report.accuracy == pytest.approx(np.mean(logits.argmax(-1) == labels))
