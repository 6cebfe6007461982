"""Artifacts that were tampered with, in every way that converters and people have: none may pass the gate."""

import importlib
import itertools

import numpy as np
import pytest
from graphs import onnx_file
from subjects import SUBJECTS, Subject, float32

from keras_distill.deploy import verify


def refused(subject, path, precision="float32", with_labels=True):
    """Whether the gate refuses a file, by a problem or by a sentence; a crash of anything is no refusal."""
    labels = subject.labels if with_labels else None
    try:
        found = verify(subject.outputs, path, subject.inputs, labels, precision=precision, answers=subject.answers)
    except ValueError as error:
        return str(error).endswith(".")
    return not found.holds


# What is done to an output: nodes from `was` to the output's name, and their constants.


def after(*nodes, **constants):
    return lambda name, array: (
        [(node[0], node[1], [name if each == "out" else each for each in node[2]], *node[3:]) for node in nodes],
        {key: value(array) if callable(value) else value for key, value in constants.items()},
    )


def first_value(array, value):
    """Zeros, and `value` for the first class of all."""
    row = np.zeros(array.shape[-1], "float32")
    row[0] = value
    return row


AFTER = {
    "negated": after(("Neg", ["was"], ["out"])),
    "three times as large": after(("Mul", ["was", "three"], ["out"]), three=float32(3)),
    "always zero": after(("Mul", ["was", "none"], ["out"]), none=float32(0)),
    "always the first example's": after(
        ("Slice", ["was", "zero_", "one_", "zero_"], ["first"]),
        ("Shape", ["was"], ["shape"]),
        ("Expand", ["first", "shape"], ["out"]),
        zero_=np.array([0]),
        one_=np.array([1]),
    ),
    "the neighbour's in the batch": after(
        ("Slice", ["was", "one_", "many", "zero_"], ["rest"]),
        ("Slice", ["was", "zero_", "one_", "zero_"], ["first"]),
        ("Concat", ["rest", "first"], ["out"], {"axis": 0}),
        zero_=np.array([0]),
        one_=np.array([1]),
        many=np.array([2**31]),
    ),
    "less the batch's mean": after(
        ("ReduceMean", ["was", "axes_"], ["mean"]), ("Sub", ["was", "mean"], ["out"]), axes_=np.array([0])
    ),
    "scaled by the batch's range": after(
        ("ReduceMax", ["was", "axes_"], ["highest"]),
        ("ReduceMin", ["was", "axes_"], ["lowest"]),
        ("Sub", ["highest", "lowest"], ["range"]),
        ("Div", ["was", "range"], ["shares"]),
        ("Mul", ["shares", "known"], ["out"]),
        axes_=np.array([0]),
        known=lambda array: float32(np.ptp(array, 0)[None]),
    ),
    "more with the place in the batch": after(
        ("Shape", ["was"], ["shape"]),
        ("ConstantOfShape", ["shape"], ["nothing"]),
        ("Add", ["nothing", "spread"], ["ones"]),
        ("CumSum", ["ones", "axis_"], ["places"]),
        ("Add", ["was", "places"], ["out"]),
        axis_=np.array(0),
        spread=lambda array: float32(0.05 * array.std(tuple(range(array.ndim - 1))) + 0.001),
    ),
    "with noise": after(
        ("RandomNormalLike", ["was"], ["noise"]),
        ("Mul", ["noise", "spread"], ["scaled"]),
        ("Add", ["was", "scaled"], ["out"]),
        spread=lambda array: float32(0.3 * array.std(tuple(range(array.ndim - 1)))),
    ),
    "NaN where the first is largest": after(
        ("Sub", ["most", "was"], ["room"]),
        ("Sqrt", ["room"], ["root"]),
        ("Mul", ["root", "none"], ["nothing"]),
        ("Add", ["was", "nothing"], ["out"]),
        none=float32(0),
        most=lambda array: float32(np.quantile(array, 0.99)),
    ),
    "infinite where it is largest": after(
        ("Greater", ["was", "most"], ["is_large"]),
        ("Where", ["is_large", "infinity", "was"], ["out"]),
        infinity=float32(np.inf),
        most=lambda array: float32(np.quantile(array, 0.99)),
    ),
    "without its last row": after(
        ("Slice", ["was", "zero_", "minus_one_", "zero_"], ["out"]), zero_=np.array([0]), minus_one_=np.array([-1])
    ),
    "without its last value": after(
        ("Slice", ["was", "zero_", "minus_one_", "minus_one_"], ["out"]),
        zero_=np.array([0]),
        minus_one_=np.array([-1]),
    ),
    "with its values in reverse": after(
        ("Slice", ["was", "minus_one_", "lowest", "minus_one_", "minus_one_"], ["out"]),
        minus_one_=np.array([-1]),
        lowest=np.array([-(2**31)]),
    ),
    "with its first class lost": after(
        ("Sub", ["was", "fine"], ["out"]), fine=lambda array: first_value(array, 1e3 * (1 + np.abs(array).max()))
    ),
    "clipped to a tenth": after(
        ("Clip", ["was", "low", "high"], ["out"]),
        low=lambda array: float32(-0.1 * array.std()),
        high=lambda array: float32(0.1 * array.std()),
    ),
}
# One value has no order, a single one that is lost is clipped, not outvoted.
NEEDS_SEVERAL_VALUES = {"with its values in reverse", "without its last value"}


def cases_after():
    for name, make in SUBJECTS.items():
        for output, sabotage, precision in itertools.product(make().outputs, AFTER, ("float32", "float16", "int8")):
            width = make().outputs[output].shape[-1]
            if sabotage not in NEEDS_SEVERAL_VALUES or width > 1:
                yield pytest.param(name, output, sabotage, precision, id=f"{name}-{output}-{sabotage}-{precision}")


@pytest.mark.parametrize(("name", "output", "sabotage", "precision"), list(cases_after()))
def test_an_output_that_is(name, output, sabotage, precision, tmp_path):
    subject = SUBJECTS[name]()
    nodes, constants = AFTER[sabotage](output, subject.outputs[output])
    path = subject.write(tmp_path / "a.onnx", after=(output, nodes), constants=constants)
    assert refused(subject, path, precision)
    assert refused(subject, path, precision, with_labels=False)


# What is done to an input: nodes from its name to `now`.

BEFORE = {
    ("classes", "x", "without its second half"): (
        [("Mul", ["x", "mask"], ["now"])],
        {"mask": float32([1, 1, 1, 1, 0, 0, 0, 0])},
    ),
    ("classes", "x", "cut to whole numbers"): (
        [("Cast", ["x"], ["whole"], {"to": 6}), ("Cast", ["whole"], ["now"], {"to": 1})],
        {},
    ),
    ("classes", "x", "in [0, 255] instead of [0, 1]"): ([("Mul", ["x", "most"], ["now"])], {"most": float32(255)}),
    ("classes", "x", "with its features in reverse"): (
        [("Slice", ["x", "last", "lowest", "axis", "last"], ["now"])],
        {"last": np.array([-1]), "lowest": np.array([-100]), "axis": np.array([1])},
    ),
    ("tokens", "ids", "cut after eight tokens"): (
        [("Mul", ["ids", "mask"], ["now"])],
        {"mask": np.array([1] * 8 + [0] * 4, "int32")},
    ),
    ("tokens", "ids", "shifted by one token"): (
        [
            ("Slice", ["ids", "one_", "many", "one_"], ["rest"]),
            ("Slice", ["ids", "zero_", "one_", "one_"], ["start"]),
            ("Concat", ["rest", "start"], ["now"], {"axis": 1}),
        ],
        {"zero_": np.array([0]), "one_": np.array([1]), "many": np.array([99])},
    ),
    ("maps", "image", "with blue for red"): (
        [("Gather", ["image", "order"], ["now"], {"axis": 3})],
        {"order": np.array([2, 1, 0])},
    ),
    ("maps", "image", "with rows for columns"): ([("Transpose", ["image"], ["now"], {"perm": [0, 2, 1, 3]})], {}),
    ("maps", "image", "without its lower half"): (
        [("Mul", ["image", "mask"], ["now"])],
        {"mask": float32([1] * 5 + [0] * 5)[:, None, None]},
    ),
    ("pixels", "image", "scaled to [0, 1] and cut"): (
        [
            ("Cast", ["image"], ["floats_"], {"to": 1}),
            ("Div", ["floats_", "most"], ["shares"]),
            ("Cast", ["shares"], ["now"], {"to": 2}),
        ],
        {"most": float32(255)},
    ),
    ("two_inputs", "category", "always the first category"): (
        [("Mul", ["category", "none"], ["now"])],
        {"none": np.array(0)},
    ),
    ("two_inputs", "x", "with the last feature lost"): (
        [("Mul", ["x", "mask"], ["now"])],
        {"mask": float32([1] * 9 + [0])},
    ),
    ("values", "x", "rounded to halves"): (
        [("Mul", ["x", "two"], ["doubled"]), ("Round", ["doubled"], ["whole"]), ("Div", ["whole", "two"], ["now"])],
        {"two": float32(2)},
    ),
}


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(("name", "tensor", "sabotage"), BEFORE, ids=[" ".join(key) for key in BEFORE])
def test_an_input_that_is(name, tensor, sabotage, precision, tmp_path):
    subject = SUBJECTS[name]()
    nodes, constants = BEFORE[name, tensor, sabotage]
    path = subject.write(tmp_path / "a.onnx", before=(tensor, nodes), constants=constants)
    assert refused(subject, path, precision)
    assert refused(subject, path, precision, with_labels=False)


# Weights


def of_another_training(array):
    return float32(np.random.default_rng(99).normal(size=array.shape) * array.std())


def with_the_first_column_negated(array):
    changed = array.copy()
    changed[..., 0] *= -1
    return changed


def with_two_columns_swapped(array):
    return np.concatenate([array[..., 1:2], array[..., :1], array[..., 2:]], -1)


def of_one_bit(array):
    return float32(np.sign(array) * np.abs(array).mean())


WEIGHTS = [
    (name, constant, change)
    for name, constants in {
        "classes": ["kernel"],
        "one_unit": ["kernel"],
        "several_labels": ["kernel"],
        "values": ["kernel"],
        "tokens": ["kernel", "table", "left"],
        "maps": ["kernel"],
        "two_outputs": ["kind_kernel", "size_kernel", "hidden"],
        "two_inputs": ["kernel", "table"],
        "pixels": ["kernel"],
    }.items()
    for constant in constants
    for change in (of_another_training, with_the_first_column_negated, with_two_columns_swapped, of_one_bit)
    if change is not with_two_columns_swapped or SUBJECTS[name]().constants[constant].shape[-1] > 1
]


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(("name", "constant", "change"), WEIGHTS)
def test_weights(name, constant, change, precision, tmp_path):
    subject = SUBJECTS[name]()
    path = subject.write(tmp_path / "a.onnx", constants={constant: change(subject.constants[constant])})
    assert refused(subject, path, precision)
    assert refused(subject, path, precision, with_labels=False)


def test_a_forgotten_bias(tmp_path):
    for name in ("classes", "one_unit", "several_labels", "values"):
        subject = SUBJECTS[name]()
        path = subject.write(tmp_path / "a.onnx", constants={"bias": 0 * subject.constants["bias"]})
        assert refused(subject, path)
        # Of the others the bias is a twentieth of what the rest gives: what int8 may make of it.
        if name in ("classes", "several_labels"):
            assert refused(subject, path, "int8")


# Classes that are lost


@pytest.mark.parametrize("num_rare", [2, 3, 4, 8])
@pytest.mark.parametrize("with_labels", [True, False])
def test_a_rare_class_that_is_never_answered_again(num_rare, with_labels, tmp_path):
    subject = SUBJECTS["rare_class"](num_rare=num_rare)
    kernel = subject.constants["kernel"].copy()
    kernel[0, 1] = 0.0
    path = subject.write(tmp_path / "a.onnx", constants={"kernel": kernel})
    assert refused(subject, path, "int8", with_labels)
    problems = verify(subject.outputs, path, subject.inputs, subject.labels, precision="int8").problems
    assert any(f"class 1 from 100% to 0% of {num_rare} examples" in problem for problem in problems)


@pytest.mark.parametrize("with_labels", [True, False])
def test_a_rare_label_among_several_that_is_never_given_again(with_labels, tmp_path):
    subject = SUBJECTS["several_labels"]()
    assert 3 <= subject.labels["logits"][:, 4].sum() <= 30
    bias = subject.constants["bias"] - float32([0, 0, 0, 0, 3])
    path = subject.write(tmp_path / "a.onnx", constants={"bias": bias})
    assert refused(subject, path, "int8", with_labels)


@pytest.mark.parametrize("with_labels", [True, False])
def test_a_rare_class_of_pixels_that_is_never_answered_again(with_labels, tmp_path):
    generator = np.random.default_rng(0)
    images = float32(np.tile([1.0, 0.0], (12, 40, 40, 1)))
    spots = generator.integers(0, 39, (6, 2))
    for item, (row, column) in enumerate(spots):
        images[item, row : row + 2, column : column + 2] = [0.0, 1.0]
    images += float32(0.02 * generator.normal(size=images.shape))
    subject = Subject(
        {"image": images},
        [("MatMul", ["image", "kernel"], ["logits"])],
        {"kernel": float32(np.eye(2))},
        {"logits": images},
        {"logits": images.argmax(-1)},
    )
    # Four pixels of 1,600 in half of the images: agreement and accuracy stay above 99.8 %.
    path = subject.write(tmp_path / "a.onnx", constants={"kernel": float32([[1, 0.5], [0.5, 0.45]])})
    assert refused(subject, path, "int8", with_labels)


def test_one_answer_on_a_test_set_of_one_class(tmp_path):
    subject = SUBJECTS["classes"]()
    for constants in ({"kernel": 0 * subject.constants["kernel"]}, {"bias": float32([0, 0, 0, 9])}):
        path = subject.write(tmp_path / "a.onnx", constants=constants)
        found = verify(subject.outputs, path, subject.inputs, np.full(300, 3), precision="int8")
        assert found.accuracy_drop <= 0.0
        assert not found.holds


# Company, place and state


def test_a_batch_dependence_that_the_whole_test_set_does_not_show(tmp_path):
    # Right for batches of more than eight: nothing shows until an example comes alone.
    subject = SUBJECTS["classes"]()
    nodes = [
        ("Shape", ["was"], ["shape"], {"start": 0, "end": 1}),
        ("Less", ["shape", "nine"], ["is_small"]),
        ("Cast", ["is_small"], ["is_small_"], {"to": 1}),
        ("Mul", ["is_small_", "shift"], ["shift_"]),
        ("Add", ["was", "shift_"], ["logits"]),
    ]
    constants = {"nine": np.array([9]), "shift": float32([2, 0, 0, 0])}
    path = subject.write(tmp_path / "a.onnx", after=("logits", nodes), constants=constants)
    for precision in ("float32", "int8"):
        found = verify(subject.outputs, path, subject.inputs, subject.labels, precision=precision)
        assert found.max_abs_error < 1e-5
        assert found.problems == ("an example alone gets other outputs than in a batch",)


def test_a_place_dependence_that_one_order_does_not_show(tmp_path):
    # The table holds the answers to this very test set in this very order.
    subject = SUBJECTS["classes"](num_items=40)
    nodes = [
        ("Shape", ["was"], ["shape"], {"start": 0, "end": 1}),
        ("Slice", ["table", "zero_", "shape", "zero_"], ["logits"]),
    ]
    constants = {"table": subject.outputs["logits"], "zero_": np.array([0])}
    path = subject.write(tmp_path / "a.onnx", after=("logits", nodes), constants=constants)
    found = verify(subject.outputs, path, subject.inputs, precision="int8")
    assert found.max_abs_error == 0.0
    assert "an example gets other outputs in another place of another batch" in found.problems


def test_a_state_that_stays_from_call_to_call(tmp_path, monkeypatch):
    room = importlib.import_module("keras_distill.deploy.verify")
    subject = SUBJECTS["classes"](num_items=100)
    path = subject.write(tmp_path / "a.onnx")
    open_artifact = room.open_artifact

    def opened(path):
        artifact = open_artifact(path)
        run, num_calls = artifact.run, iter(range(99))
        # The first call, of all hundred, is right; each one after it less so.
        artifact.run = lambda inputs: {name: array + next(num_calls) for name, array in run(inputs).items()}
        return artifact

    monkeypatch.setattr(room, "open_artifact", opened)
    for precision in ("float32", "int8"):
        found = verify(subject.outputs, path, subject.inputs, precision=precision)
        assert found.max_abs_error < 1e-5
        assert found.problems == ("the same input gets other outputs when it is asked again",)


# Small values


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_values_that_are_all_below_the_tolerance(precision, tmp_path):
    scale = {"float32": 1e-5, "float16": 5e-3}[precision]
    subject = SUBJECTS["classes"](scale=scale)
    for change in (of_another_training, with_two_columns_swapped):
        path = subject.write(tmp_path / "a.onnx", constants={"kernel": change(subject.constants["kernel"])})
        assert refused(subject, path, precision)
    assert refused(subject, subject.write(tmp_path / "b.onnx", constants={"kernel": 0 * subject.constants["kernel"]}))


def test_a_value_of_a_small_unit_beside_a_large_one(tmp_path):
    subject = SUBJECTS["values"]()
    kernel = subject.constants["kernel"].copy()
    kernel[:, 2] = of_another_training(kernel[:, 2])
    path = subject.write(tmp_path / "a.onnx", constants={"kernel": kernel})
    for precision in ("float32", "float16", "int8"):
        assert refused(subject, path, precision, with_labels=False), precision


# NaN and infinity on both sides


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_what_is_no_number_equals_nothing_not_even_itself(value, precision, tmp_path):
    subject = SUBJECTS["classes"]()
    bias = subject.constants["bias"].copy()
    bias[0] = value
    path = subject.write(tmp_path / "a.onnx", constants={"bias": bias})
    broken = subject.outputs["logits"].copy()
    broken[:, 0] = value
    whole = subject.write(tmp_path / "b.onnx")
    for expected, file in ((broken, path), (subject.outputs, path), (broken, whole)):
        found = verify(expected, file, subject.inputs, subject.labels, precision=precision)
        assert any("NaN or infinite" in problem for problem in found.problems)
        assert found.to_json()["max_abs_error"] is None


# Files of another model


def test_files_of_other_inputs_outputs_and_shapes_are_refused_in_a_sentence(tmp_path):
    subject, other = SUBJECTS["two_outputs"](), SUBJECTS["classes"]()
    path = subject.write(tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"outputs must be called \['logits', 'size'\]; got \['kind', 'size'\]"):
        verify({"logits": subject.outputs["kind"], "size": subject.outputs["size"]}, path, subject.inputs)
    with pytest.raises(ValueError, match=r"outputs must be called \['kind'\]"):
        verify({"kind": subject.outputs["kind"]}, path, subject.inputs)
    with pytest.raises(ValueError, match="reference must be a dictionary"):
        verify(subject.outputs["kind"], path, subject.inputs)
    with pytest.raises(ValueError, match=r"the output 'logits' must have shape \(300, 3\); got \(300, 4\)"):
        verify(other.outputs["logits"][:, :3], other.write(tmp_path / "b.onnx"), other.inputs)
    with pytest.raises(ValueError, match=r"the reference's 'logits' must have 300 rows, one for every input"):
        verify(other.outputs["logits"][:10], tmp_path / "b.onnx", other.inputs)
    with pytest.raises(ValueError, match=r"the input 'x' must have the shape \('batch', 8\)"):
        verify(other.outputs, tmp_path / "b.onnx", {"x": other.inputs["x"][:, :6]})
    with pytest.raises(ValueError, match=r"inputs must be called \['x'\]"):
        verify(other.outputs, tmp_path / "b.onnx", {"y": other.inputs["x"]})
    two = SUBJECTS["two_inputs"]()
    with pytest.raises(ValueError, match="equally many examples"):
        verify(two.outputs, two.write(tmp_path / "c.onnx"), two.inputs | {"x": two.inputs["x"][:10]})


def test_inputs_that_the_artifact_s_type_cannot_hold_are_refused(tmp_path):
    subject = SUBJECTS["pixels"]()
    path = subject.write(tmp_path / "a.onnx")
    shares = float32(subject.inputs["image"]) / 255
    with pytest.raises(ValueError, match=r"the input 'image' must be whole numbers of type uint8; got 0\."):
        verify(subject.outputs, path, {"image": shares})
    with pytest.raises(ValueError, match="whole numbers of type uint8; got -1"):
        verify(subject.outputs, path, {"image": subject.inputs["image"].astype(int) - 256})
    assert verify(subject.outputs, path, {"image": float32(subject.inputs["image"])}).holds


def test_a_file_that_fails_as_it_runs_is_refused_in_a_sentence(tmp_path):
    # Fits only batches of 300, and does not say so.
    path = onnx_file(
        tmp_path / "a.onnx",
        [("Add", ["x", "table"], ["logits"])],
        {"x": ("float32", ["batch", 4])},
        {"logits": ["batch", 4]},
        {"table": np.zeros((300, 4), "float32")},
    )
    with pytest.raises(ValueError, match=r"the artifact a\.onnx must take the inputs"):
        verify(np.zeros((300, 4), "float32"), path, np.ones((300, 4), "float32"))


def test_there_are_more_than_forty_of_each_kind():
    assert len(list(cases_after())) > 200
    assert len(BEFORE) + len(WEIGHTS) > 40
