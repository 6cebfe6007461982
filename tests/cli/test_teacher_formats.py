"""Teachers of other formats on the command line: each gives the logits that NumPy computes of the same kernel."""

import json
import re
import sys

import keras
import numpy as np
import onnx
import pytest
from keras import layers

from keras_distill.cli import main
from keras_distill.targets import SoftTargetStore

# A SavedModel runs in TensorFlow, beside whichever backend; here there is none beside another.
SAVED = pytest.param("saved", marks=pytest.mark.tensorflow)
SAVED_SOFTMAX = pytest.param("saved_softmax", marks=pytest.mark.tensorflow)

MODULE = """
import keras
import numpy as np

_kernel = np.load({path!r})

def logits(batch):
    return 4.0 * batch @ _kernel

def probabilities(batch):
    exponentials = np.exp(logits(batch))
    return exponentials / exponentials.sum(-1, keepdims=True)

def four(batch):
    return np.zeros((len(batch), 4))

def one_number(batch):
    return np.zeros(len(batch))

def failing(batch):
    raise RuntimeError("the service is down")

model = keras.models.load_model({model!r})
number = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A linear problem as an .npz, and its solution in every format."""
    folder = tmp_path_factory.mktemp("formats")
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(5, 3)).astype("float32")
    arrays = {"kernel": kernel}
    for split, num_items in (("train", 70), ("validation", 60), ("test", 40)):
        arrays[f"x_{split}"] = generator.normal(size=(num_items, 5)).astype("float32")
        arrays[f"y_{split}"] = (arrays[f"x_{split}"] @ kernel).argmax(axis=-1)
    np.savez(folder / "data.npz", **{name: array for name, array in arrays.items() if name != "kernel"})
    np.save(folder / "kernel.npy", kernel)
    for name, activation in (("plain", None), ("softmax", "softmax")):
        model = keras.Sequential([keras.Input((5,)), layers.Dense(3, activation=activation)])
        model.layers[0].set_weights([4.0 * kernel, np.zeros(3)])
        model.save(folder / f"{name}.keras")
        if keras.config.backend() == "tensorflow":
            model.export(folder / ("saved" if activation is None else "saved_softmax"), verbose=False)
    keras.models.load_model(folder / "plain.keras").save(folder / "old.h5")
    # Batches of seven alone; no split is a multiple of that.
    inputs = keras.Input((5,), batch_size=7)
    hidden = keras.ops.reshape(keras.ops.reshape(inputs, (35, 1)), (7, 5))
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    model.layers[-1].set_weights([4.0 * kernel, np.zeros(3)])
    model.save(folder / "fixed.keras")
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "kernel"], ["logits"])],
        "linear",
        [onnx.helper.make_tensor_value_info("x", floats, ["n", 5])],
        [onnx.helper.make_tensor_value_info("logits", floats, ["n", 3])],
        [onnx.numpy_helper.from_array(4.0 * kernel, "kernel")],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10),
        folder / "other.onnx",
    )
    code = MODULE.format(path=str(folder / "kernel.npy"), model=str(folder / "softmax.keras"))
    (folder / "formats_of_ours.py").write_text(code)
    (folder / "broken_module_of_ours.py").write_text("1 / 0\n")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(autouse=True)
def _started_there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("formats_of_ours", "broken_module_of_ours"):
        sys.modules.pop(name, None)


def label(teacher, store, *switches):
    return main(
        ["label", "--teacher", teacher, "--data", "data.npz", "--dtype", "float32", "--out", str(store), *switches]
    )


def centred(logits):
    return logits - logits.mean(-1, keepdims=True)


TEACHERS = [
    "plain.keras",
    "old.h5",
    "fixed.keras",
    "other.onnx",
    SAVED,
    SAVED_SOFTMAX,
    "formats_of_ours:logits",
    "formats_of_ours:probabilities",
    "formats_of_ours:model",
]


@pytest.mark.filterwarnings("ignore:.*HDF5")
@pytest.mark.parametrize("teacher", TEACHERS)
def test_label_stores_what_numpy_computes(teacher, folder, tmp_path, capsys):
    assert label(teacher, tmp_path / "store") == 0, capsys.readouterr().err
    expected = 4.0 * np.load("data.npz")["x_train"].astype("float64") @ np.load("kernel.npy")
    stored = SoftTargetStore.open(tmp_path / "store").read(np.arange(70))
    # Probabilities tell logits but for one number a row.
    np.testing.assert_allclose(centred(stored), centred(expected), atol=2e-4)
    # The same teacher again finds its store whole: its fingerprint is the same in another process, or as here again.
    assert label(teacher, tmp_path / "store") == 0


@pytest.mark.parametrize("teacher", ["other.onnx", SAVED_SOFTMAX, "formats_of_ours:logits"])
def test_distill_trains_beside_it(teacher, tmp_path, capsys):
    keras.utils.set_random_seed(0)
    keras.Sequential([keras.Input((5,)), layers.Dense(3)]).save(tmp_path / "student.keras")
    command = ["distill", "--teacher", teacher, "--student", str(tmp_path / "student.keras"), "--data", "data.npz"]
    options = ["--epochs", "25", "--batch-size", "10", "--learning-rate", "0.1", "--no-twin", "--quiet"]
    assert main([*command, *options, "--out", str(tmp_path / "out.keras")]) == 0, capsys.readouterr().err
    data = np.load("data.npz")
    student = keras.models.load_model(tmp_path / "out.keras")
    answers = keras.ops.convert_to_numpy(student(data["x_test"])).argmax(-1)
    assert (answers == data["y_test"]).mean() >= 0.95


@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore:.*HDF5")
@pytest.mark.parametrize(
    "teacher",
    [
        "formats_of_ours:probabilities",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("other.onnx", "saved_softmax", "old.h5")),
    ],
)
def test_a_bundle_compares_its_student_with_it(teacher, folder, tmp_path, capsys):
    """The student is the teacher but for one class, whose logit is 1 lower."""
    student = keras.models.load_model("plain.keras")
    kernel, bias = student.layers[0].get_weights()
    student.layers[0].set_weights([kernel, bias - np.float32([1, 0, 0])])
    student.save(tmp_path / "student.keras")
    command = ["ship", str(tmp_path / "student.keras"), "--data", "data.npz", "--targets", "onnx", "--teacher", teacher]
    assert main([*command, "--out", str(tmp_path / "bundle")]) == 0, capsys.readouterr()
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    figures = {row["name"]: row for row in manifest["figures"]}
    logits = 4.0 * np.load("data.npz")["x_test"].astype("float64") @ np.load("kernel.npy")
    same = np.mean(logits.argmax(-1) == (logits - [1, 0, 0]).argmax(-1))
    assert same < 1.0
    assert figures["student"]["agreement_with_teacher"] == figures["onnx"]["agreement_with_teacher"] == same
    # It is right everywhere, for the labels are its own.
    assert (figures["teacher"]["num_errors"], figures["student"]["num_errors"]) == (0, round(40 * (1 - same)))
    is_keras = teacher == "old.h5"
    assert figures["teacher"]["num_parameters"] == (18 if is_keras else None)
    assert bool(figures["teacher"]["latency"]) == is_keras
    assert "| teacher |" in (tmp_path / "bundle" / "model_card.md").read_text()


def test_a_function_teaches_in_worker_processes(tmp_path, capsys):
    assert label("formats_of_ours:logits", tmp_path / "one") == 0
    assert label("formats_of_ours:logits", tmp_path / "two", "--workers", "1", "--batch-size", "16") == 0
    one, two = (SoftTargetStore.open(tmp_path / name).read(np.arange(70)) for name in ("one", "two"))
    np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("formats_of_ours:nothing", "formats_of_ours:nothing must be there; got .*no attribute 'nothing'"),
        ("formats_of_ours:number", "formats_of_ours:number must be a function from a batch to logits; got int"),
        ("formats_of_ours:four", "the teacher's output must have 3 classes"),
        (
            "formats_of_ours:one_number",
            r"must return numbers of shape \(32, …, num_classes\) for 32 items; got .*\(32,\)",
        ),
        (
            "formats_of_ours:failing",
            "must take batches .* examples of \\(5,\\), as data has; got RuntimeError: the service",
        ),
        ("broken_module_of_ours:f", "the module broken_module_of_ours must be importable; got ZeroDivisionError"),
        ("no_module_of_ours:f", "the module no_module_of_ours must be importable; got ModuleNotFoundError.*PYTHONPATH"),
        ("empty", "must name .keras, .h5 or .onnx files, SavedModels or functions; got empty, a folder"),
    ],
)
def test_what_cannot_teach_is_refused_in_a_sentence(teacher, message, tmp_path, capsys):
    assert label(teacher, tmp_path / "store") == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tensorflow
def test_a_saved_model_of_other_inputs_or_cut_short_is_refused_in_a_sentence(tmp_path, capsys):
    keras.Sequential([keras.Input((6,)), layers.Dense(3)]).export(tmp_path / "six", verbose=False)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "saved_model.pb").write_bytes((tmp_path / "six" / "saved_model.pb").read_bytes()[:99])
    assert label(str(tmp_path / "six"), tmp_path / "store") == 2
    assert "must have shape (None, 6)" in capsys.readouterr().err
    assert label(str(tmp_path / "cut"), tmp_path / "store") == 2
    assert "must be a SavedModel that TensorFlow loads" in capsys.readouterr().err


@pytest.mark.parametrize("teacher", ["other.onnx", SAVED, "formats_of_ours:logits"])
def test_what_has_no_layers_is_not_cut(teacher, tmp_path, capsys):
    assert main(["prune", teacher, "--keep", "0.5", "--out", str(tmp_path / "out.keras")]) == 2
    assert "a teacher that is cut must have Keras's layers" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_several_teachers_are_keras_models(tmp_path, capsys):
    assert (
        main(["label", "--teacher", "plain.keras", "other.onnx", "--data", "data.npz", "--out", str(tmp_path / "s")])
        == 2
    )
    assert "several teachers must all be Keras models; got OnnxTeacher('other.onnx'" in capsys.readouterr().err
