"""Which variant ships is decided by measurement; int8 keeps its logits."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import linear_onnx

from keras_distill.deploy import Verification, quantize_onnx, verify
from keras_distill.deploy.calibration import choose_calibration, save_calibration
from keras_distill.deploy.quantize import Variant, choose
from keras_distill.deploy.worker import Refusal, calibration_batches


def variant(name, p50_ms, *, rmse=0.1, problems=(), num_bytes=10, failure=None):
    check = Verification("int8", 9, 0.1, rmse, 1.0, problems=problems)
    made = Variant("onnx-int8", name, "int8", Path("none"), check, {"p50_ms": p50_ms}, failure)
    made.num_bytes = num_bytes
    return made


FLOAT32 = variant("float32", 2.0, num_bytes=40)


def test_the_fastest_that_holds_is_chosen():
    fast = variant("fast", 1.0)
    assert choose([variant("slow", 1.5), fast], FLOAT32) == (fast, "")


def test_a_faster_one_that_does_not_hold_is_left_out():
    holds = variant("holds", 1.5)
    assert choose([variant("wrong", 0.5, problems=("accuracy drops",)), holds], FLOAT32)[0] is holds


def test_of_two_equally_fast_the_more_faithful_is_chosen():
    faithful = variant("faithful", 1.03, rmse=0.01)
    assert choose([variant("rough", 1.0, rmse=0.5), faithful], FLOAT32)[0] is faithful


@pytest.mark.parametrize("p50_ms", [1.95, 2.0, 3.0])
def test_what_is_not_faster_than_float32_is_left_out_with_its_ratio(p50_ms):
    chosen, why = choose([variant("static", p50_ms)], FLOAT32)
    assert chosen is None
    assert f"{p50_ms / 2.0:.2f} x" in why


def test_every_reason_is_given_when_nothing_is_left():
    crashed = Variant("onnx-int8", "crashed", "int8", failure="the converter died")
    chosen, why = choose([crashed, variant("wrong", 1.0, problems=("drops",))], FLOAT32)
    assert chosen is None
    assert why == "crashed: the converter died; wrong: drops"


def test_float16_must_be_smaller_and_may_be_as_slow():
    small = variant("float16", 2.0, num_bytes=20)
    assert choose([small], FLOAT32, must_be_faster=False)[0] is small
    assert choose([variant("float16", 1.0, num_bytes=40)], FLOAT32, must_be_faster=False)[0] is None


def test_calibration_is_the_same_for_a_seed_and_keeps_inputs_together():
    feed = {"a": np.arange(1000), "b": -np.arange(1000)}
    first, second = choose_calibration(feed), choose_calibration(feed)
    assert len(first["a"]) == 256
    assert len(set(first["a"])) == 256
    np.testing.assert_array_equal(first["a"], second["a"])
    np.testing.assert_array_equal(first["a"], -first["b"])


def test_calibration_that_is_missing_unequal_or_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="calibration must be given for int8"):
        save_calibration(None, tmp_path)
    with pytest.raises(ValueError, match="equally many"):
        save_calibration({"a": np.zeros((3, 1)), "b": np.zeros((4, 1))}, tmp_path)
    with pytest.raises(ValueError, match="must be finite"):
        save_calibration({"a": np.array([np.nan])}, tmp_path)


def batches_of(calibration, specs, folder):
    return list(calibration_batches(save_calibration(calibration, folder), specs))


@pytest.mark.parametrize(
    ("given", "wanted"), [("float64", "float32"), ("uint8", "float32"), ("int64", "int32"), ("float32", "float16")]
)
def test_calibration_has_the_dtype_of_the_input_whatever_it_was_given_in(tmp_path, given, wanted):
    values = (np.arange(6).reshape(3, 2) * (1.25 if "float" in given else 1)).astype(given)
    found = batches_of({"a": values}, {"a": ((None, 2), np.dtype(wanted))}, tmp_path)
    assert [batch["a"].dtype for batch in found] == [np.dtype(wanted)] * 3
    np.testing.assert_array_equal(np.concatenate([batch["a"] for batch in found]), values)


def test_calibration_of_a_model_of_one_input_needs_no_name_and_that_of_two_does(tmp_path):
    values, spec = np.arange(6.0).reshape(3, 2), ((2, 2), np.dtype("float32"))
    found = batches_of(values, {"a": spec}, tmp_path)
    # The model takes two a call: the last one is repeated.
    np.testing.assert_array_equal([batch["a"] for batch in found], [values[[0, 1]], values[[2, 2]]])
    with pytest.raises(Refusal, match=r"the inputs \['a', 'b'\]; got one array without a name"):
        batches_of(values, {"a": spec, "b": spec}, tmp_path)


def test_calibration_that_the_input_cannot_take_is_not_blamed_on_the_layers(tmp_path):
    spec = {"a": ((None, 2), np.dtype("int32"))}
    with pytest.raises(Refusal, match=r"calibration\['a'\] must be whole numbers of type int32; got 0\.5"):
        batches_of({"a": np.full((3, 2), 0.5)}, spec, tmp_path)
    with pytest.raises(Refusal, match=r"calibration\['a'\] must have shape \('examples', 2\); got \(3, 4\)"):
        batches_of({"a": np.zeros((3, 4))}, spec, tmp_path)
    with pytest.raises(ValueError, match=r"calibration must be arrays, one example a row; got 3 \(int\)"):
        save_calibration(3, tmp_path)


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear")
    generator = np.random.default_rng(0)
    # Large and of one sign: sums of two products leave 16 bits, and only 7-bit weights keep them inside.
    kernel = generator.uniform(0.5, 1.0, size=(64, 4)).astype("float32")
    inputs = generator.uniform(0.5, 1.0, size=(300, 64)).astype("float32")
    path = linear_onnx(folder / "float32.onnx", kernel)
    model = onnx.load(str(path))
    model.metadata_props.add(key="class_names", value='["a"]')
    onnx.save(model, str(path))
    return path, inputs, inputs @ kernel, folder


@pytest.mark.parametrize("mode", ["static", "static-uint8", "dynamic"])
def test_int8_rounds_and_does_not_saturate(linear, mode):
    source, inputs, logits, folder = linear
    path = quantize_onnx(source, folder / f"{mode}.onnx", mode=mode, calibration={"x": inputs[:256]})
    report = verify(logits, path, inputs, precision="int8")
    # A product of 7-bit weights and 8-bit inputs is off by under 1 % of its range; saturation loses a third.
    assert report.max_abs_error < 0.02 * logits.max()
    assert [entry.value for entry in onnx.load(str(path)).metadata_props if entry.key == "class_names"] == ['["a"]']
    assert not list(folder.glob("*folded*"))


def test_an_onnx_file_is_quantised_alike_by_float64_without_a_name(linear):
    source, inputs, _, folder = linear
    named = quantize_onnx(source, folder / "named.onnx", calibration={"x": inputs[:256]})
    bare = quantize_onnx(source, folder / "bare.onnx", calibration=inputs[:256].astype("float64"))
    assert named.read_bytes() == bare.read_bytes()


def test_static_quantisation_clips_no_logit(linear):
    source, inputs, _, folder = linear
    path = quantize_onnx(source, folder / "static.onnx", calibration={"x": inputs[:256]})
    graph = onnx.load(str(path)).graph
    (last,) = (node for node in graph.node if "logits" in node.output)
    assert last.op_type != "DequantizeLinear"


def test_an_unknown_mode_and_missing_calibration_are_refused(linear, tmp_path):
    with pytest.raises(ValueError, match="mode must be one of"):
        quantize_onnx(linear[0], tmp_path / "a.onnx", mode="int4")
    with pytest.raises(ValueError, match="calibration must be given"):
        quantize_onnx(linear[0], tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
