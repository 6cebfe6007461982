"""Whether a teacher knows the data is asked before anything is trained, and what it was trained on is found out."""

import json
import math

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.cli import evaluation, main
from keras_distill.cli.model_file import as_one_teacher, load_teacher
from keras_distill.data import Dataset, Split
from keras_distill.data.pixel_range import in_pixel_range
from keras_distill.teachers import knowledge


class Options:
    modules = ()
    trust_code = False


def bright_corner(num_items, seed):
    """Images of four classes, in [0, 1]: the quarter that is brightest."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num_items) % 4
    images = generator.uniform(0.0, 0.4, size=(num_items, 4, 4, 1))
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 0.5
    return Split(images.astype("float32"), labels.astype("int32"))


def quarter_means():
    """A kernel `(16, 4)` of the mean of each quarter of an image."""
    kernel = np.zeros((4, 4, 4))
    for label in range(4):
        row, column = divmod(label, 2)
        kernel[2 * row : 2 * row + 2, 2 * column : 2 * column + 2, label] = 0.25
    return kernel.reshape(16, 4)


def teacher_of(threshold, order=(0, 1, 2, 3), sign=1.0, head=None):
    """A network that knows the quarters by what is brighter (with sign −1, darker) than a threshold."""
    network = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(4, "relu"), layers.Dense(4, activation=head)]
    )
    network.layers[1].set_weights([sign * quarter_means(), np.full(4, -sign * threshold)])
    network.layers[2].set_weights([sign * np.eye(4)[:, list(order)], np.zeros(4)])
    return network


@pytest.fixture(scope="module")
def dataset():
    splits = (bright_corner(num_items, seed) for seed, num_items in enumerate((80, 60, 40)))
    return Dataset("quarters", *splits, tuple("abcd"), "")


def check(teacher, dataset, insist=False):
    return evaluation.check_teacher(teacher, "big.keras", dataset, insist=insist)


def test_a_good_teacher_passes_and_luck_is_counted_by_the_binomial(dataset):
    found = check(teacher_of(0.3), dataset)
    assert (found.num_right, found.num_items, found.chance) == (60, 60, 0.25)
    assert found.p_value == pytest.approx(0.25**60)
    answers = np.where(np.arange(40) < 15, np.arange(40) % 4, (np.arange(40) + 1) % 4)
    found = knowledge.knowledge(answers, np.arange(40) % 4)
    tail = sum(math.comb(40, n) * found.chance**n * (1 - found.chance) ** (40 - n) for n in range(15, 41))
    assert found.num_right == 15
    assert found.p_value == pytest.approx(tail)


def test_always_the_most_frequent_class_is_luck_and_a_rare_class_found_is_not():
    labels = np.array([0] * 190 + [1] * 10)
    assert knowledge.knowledge(np.zeros(200, int), labels).is_near_chance
    assert not knowledge.knowledge(labels, labels).is_near_chance


@pytest.mark.parametrize(
    ("teacher", "option", "pixel_range"),
    [
        (lambda: teacher_of(60.0), "--pixel-range 0-255", "0-255"),
        (lambda: teacher_of(0.0, sign=-1.0), "--pixel-range=-1-1", "-1-1"),
    ],
)
def test_the_scale_that_a_teacher_was_trained_at_is_named(dataset, teacher, option, pixel_range):
    with pytest.raises(
        ValueError, match=rf"the teacher big.keras must know .* of quarters; got 15 of 60 right.* add {option}\.$"
    ):
        check(teacher(), dataset)
    assert check(teacher(), in_pixel_range(dataset, pixel_range)).num_right == 60
    assert check(teacher(), dataset, insist=True).num_right == 15


def test_from_python_the_way_is_an_argument_or_a_function(dataset):
    answers_to = evaluation.answers_function(teacher_of(60.0))
    with pytest.raises(
        ValueError, match=r"take keras_distill\.data\.pixel_range\.in_pixel_range\(dataset, '0-255'\)\.$"
    ):
        knowledge.check_teacher(answers_to, "the teacher", dataset)


def test_another_order_of_the_classes_is_named(dataset):
    with pytest.raises(
        ValueError,
        match=r"another order of the classes: its output 0 is 'c', its output 1 is 'd', its output 2 is 'a'\.",
    ):
        check(teacher_of(0.3, order=(2, 3, 0, 1)), dataset)


def test_a_teacher_that_knows_nothing_is_refused_unless_the_data_cannot_tell(dataset):
    nothing = teacher_of(0.3)
    nothing.layers[2].set_weights([np.ones((4, 4)), np.arange(4.0)])
    with pytest.raises(ValueError, match=r"None of the ranges 0-255, -1-1, standardised helps\. .* --any-teacher"):
        check(nothing, dataset)
    few = Dataset("few", dataset.train, dataset.validation.take(np.arange(2)), dataset.test, tuple("abcd"), "")
    assert check(nothing, few).num_items == 2


def test_teachers_of_other_formats_load(dataset, tmp_path):
    from onnx import TensorProto, helper, numpy_helper, save

    for head in (None, "softmax"):
        network = teacher_of(0.3, head=head)
        network.save(tmp_path / f"{head}.h5")
        teacher = load_teacher(str(tmp_path / f"{head}.h5"), Options(), dataset)
        assert check(teacher, dataset).num_right == 60
    # Channels first, as PyTorch has them, and probabilities.
    floats = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["batch", 1, 4, 4]), ("probabilities", ["batch", 4]))
    ]
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "kernel"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    kernel = numpy_helper.from_array((20 * quarter_means()).astype("float32"), "kernel")
    graph = helper.make_graph(nodes, "quarters", floats[:1], floats[1:], [kernel])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "t.onnx")
    teacher = load_teacher(str(tmp_path / "t.onnx"), Options(), dataset)
    assert check(teacher, dataset).num_right == 60
    expected = 20 * dataset.test.inputs.reshape(-1, 16) @ quarter_means()
    expected = expected - np.log(np.exp(expected).sum(-1, keepdims=True))
    np.testing.assert_allclose(teacher.logits(dataset.test.inputs), expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"several teachers must all be Keras models; got OnnxTeacher.* among them"):
        as_one_teacher([teacher, network])


def test_what_does_not_load_says_the_way(dataset, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/saved_model.pb").write_bytes(b"")
    (tmp_path / "bad.h5").write_bytes(b"no HDF5")
    (tmp_path / "bad.onnx").write_bytes(b"no ONNX")
    for name, said in {
        "saved": r"saved must be a SavedModel that TensorFlow loads; got ",
        ".": r"must name \.keras, \.h5 or \.onnx files, SavedModels or functions; got .*, a folder",
        "bad.h5": r"bad.h5 must be a model that Keras opens; got \w+: .*load_weights",
        "bad.onnx": r"bad.onnx must be a readable ONNX file",
    }.items():
        with pytest.raises(ValueError, match=said):
            load_teacher(str(tmp_path / name), Options(), dataset)


def test_the_command_stops_and_the_option_that_it_names_helps(dataset, tmp_path, capsys):
    arrays = {}
    for name in ("train", "validation", "test"):
        split = getattr(dataset, name)
        arrays |= {f"x_{name}": (255 * split.inputs).astype("uint8"), f"y_{name}": split.labels}
    np.savez(tmp_path / "quarters.npz", **arrays)
    teacher_of(60.0).save(tmp_path / "teacher.keras")
    keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(4)]).save(tmp_path / "student.keras")
    files = ["--student", f"{tmp_path}/student.keras", "--data", f"{tmp_path}/quarters.npz"]
    argv = ["distill", "--teacher", f"{tmp_path}/teacher.keras", *files, "--out", f"{tmp_path}/out/s.keras"]
    argv += ["--epochs", "1", "--no-twin"]
    assert main(argv) == 2
    assert "add --pixel-range 0-255." in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    assert main([*argv, "--pixel-range", "0-255"]) == 0
    assert "60 of 60 right, where chance gives 15" in capsys.readouterr().out
    record = json.loads((tmp_path / "out/s.json").read_text())
    assert record["data"]["pixel_range"] == "0-255"
    assert record["test"]["teacher"]["errors"] == 0
