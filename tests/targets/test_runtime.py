"""Which runtime answers for a Keras teacher: held to the teacher itself, chosen by clocks that are set by hand."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_distill.deploy.conversion import ConversionError
from keras_distill.targets import runtime
from keras_distill.targets.labelling import label
from keras_distill.targets.manifest import Manifest, StoreError
from tests.targets.test_store import tree

CONVERTED: dict[str, bytes] = {}
IMAGES = np.random.default_rng(0).normal(size=(80, 6, 6, 2)).astype("float32")


@pytest.fixture(scope="module")
def teacher():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6, 6, 2)), keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(3, "softmax")])


@pytest.fixture
def clocks(monkeypatch):
    """Seconds that each runtime takes for some batches; whoever waits has the patience for it."""
    seconds = {"keras": 2.0, "onnxruntime": 1.0}

    def timed(forward, batches):
        # It must run: what is timed is what labels.
        assert all(len(next(iter(forward(batch).values()))) == len(batch) for batch in batches)
        return seconds["keras" if hasattr(forward, "get_concrete_function") else "onnxruntime"]

    monkeypatch.setattr(runtime, "_seconds", timed)
    monkeypatch.setattr(runtime, "_PATIENCE", 1e3)
    return seconds


@pytest.fixture
def converted_once(monkeypatch):
    """The teacher's conversion, of which every test has the file of the first."""
    from keras_distill.deploy import conversion

    convert = conversion.convert

    def kept(job, request, layer_names=()):
        if job not in CONVERTED:
            convert(job, request, layer_names)
            CONVERTED[job] = Path(request["path"]).read_bytes()
        Path(request["path"]).write_bytes(CONVERTED[job])
        return {"float_layers": []}

    monkeypatch.setattr(conversion, "convert", kept)


@pytest.fixture
def note(monkeypatch):
    """What is said above the bar."""
    from contextlib import contextmanager

    from keras_distill.targets import labelling

    said = []

    @contextmanager
    def bar(work, total, shown, *, unit="", headline=""):
        said.append(headline)
        yield lambda num_more: None

    monkeypatch.setattr(labelling, "progress_bar", bar)
    return said


def labelled(teacher, path, wanted, **settings):
    return label(teacher, IMAGES, path, batch_size=16, dtype="float32", rows_per_shard=32, runtime=wanted, **settings)


def test_onnxruntime_answers_as_the_teacher_and_the_manifest_says_so(teacher, tmp_path, clocks, converted_once):
    own = labelled(teacher, tmp_path / "own", "keras")
    forced = labelled(teacher, tmp_path / "forced", "onnxruntime")
    assert (own.manifest.runtime, forced.manifest.runtime) == (None, "onnxruntime")
    bare = keras.Model(teacher.inputs[0], teacher.layers[-1].input)
    features = bare(IMAGES).numpy().astype("float64")
    kernel, bias = teacher.layers[-1].get_weights()
    np.testing.assert_allclose(forced.read(np.arange(80)), features @ kernel + bias, rtol=1e-4, atol=1e-4)
    file = tmp_path / "forced" / "manifest.json"
    assert Manifest.from_json(file.read_text(), file) == forced.manifest
    assert "runtime" not in json.loads((tmp_path / "own" / "manifest.json").read_text())
    # The same answers to the bit, whoever chose them.
    assert tree(labelled(teacher, tmp_path / "auto", "auto").path) == tree(forced.path)


def test_the_faster_one_answers_and_a_resumed_run_stays_with_it(teacher, tmp_path, clocks, note, converted_once):
    clocks["onnxruntime"] = 3.0
    store = labelled(teacher, tmp_path / "slower", "auto")
    assert store.manifest.runtime is None
    assert note[-1].endswith("Keras answers: onnxruntime takes 1.50 × as long")
    clocks["onnxruntime"] = 1.0
    whole = tree(labelled(teacher, tmp_path / "whole", "auto").path)
    assert note[-1].endswith("onnxruntime answers: onnxruntime takes 0.50 × as long")
    labelled(teacher, tmp_path / "s", "auto")
    for shard in sorted((tmp_path / "s" / "shards").iterdir())[1:]:
        shard.unlink()
    # The clocks have changed; what has begun has the say.
    clocks["onnxruntime"] = 9.0
    assert labelled(teacher, tmp_path / "s", "auto").manifest.runtime == "onnxruntime"
    assert tree(tmp_path / "s") == whole
    with pytest.raises(StoreError, match="runtime must be None, as asked for now; got 'onnxruntime'"):
        labelled(teacher, tmp_path / "s", "keras")
    with pytest.raises(StoreError, match="runtime must be 'onnxruntime', as asked for now; got None"):
        labelled(teacher, tmp_path / "slower", "onnxruntime")


def test_of_processes_that_choose_otherwise_the_first_has_the_say(
    teacher, tmp_path, clocks, monkeypatch, converted_once
):
    """The second one chooses by itself, since it looked before the first had begun the store."""
    assert labelled(teacher, tmp_path / "s", "auto", process=0, num_processes=2) is None
    from keras_distill.targets import labelling

    monkeypatch.setattr(labelling, "begun", lambda path: None)
    clocks["onnxruntime"] = 9.0
    shared = labelled(teacher, tmp_path / "s", "auto", process=1, num_processes=2)
    assert shared.manifest.runtime == "onnxruntime"
    assert tree(shared.path) == tree(labelled(teacher, tmp_path / "alone", "onnxruntime").path)


def test_what_does_not_pay_or_cannot_be_converted_stays_with_keras_and_says_so(
    teacher, tmp_path, clocks, note, monkeypatch
):
    @keras.saving.register_keras_serializable("tests")
    class Unheard(keras.layers.Layer):
        def call(self, inputs):
            import tensorflow as tf

            given = tf.py_function(lambda values: values, [inputs], tf.float32)
            given.set_shape(inputs.shape)
            return given

        def compute_output_shape(self, shape):
            return shape

    odd = keras.Sequential([keras.Input((6, 6, 2)), keras.layers.Flatten(), Unheard(), keras.layers.Dense(3)])
    assert labelled(odd, tmp_path / "odd", "auto").manifest.runtime is None
    assert "Keras answers: ConversionError: " in note[-1]
    with pytest.raises(ConversionError):
        labelled(odd, tmp_path / "forced", "onnxruntime")
    assert not (tmp_path / "forced").exists()

    function = lambda inputs: np.zeros((len(inputs), 3), "float32")  # noqa: E731
    assert labelled(function, tmp_path / "function", "auto", teacher_fingerprint="f").manifest.runtime is None
    assert note[-1].endswith("Keras answers: the teacher is no Keras model of its own")
    with pytest.raises(ValueError, match="runtime='onnxruntime' needs a Keras model for a teacher"):
        labelled(function, tmp_path / "forced", "onnxruntime", teacher_fingerprint="f")
    with pytest.raises(ValueError, match="runtime must be 'keras' with an engine; got 'auto'"):
        labelled(teacher, tmp_path / "engine", "auto", engine="local")
    with pytest.raises(ValueError, match="runtime must be one of 'keras', 'onnxruntime', 'auto'; got 'onnx'"):
        labelled(teacher, tmp_path / "word", "onnx")

    # Five batches of 2 / 3 s each.
    monkeypatch.setattr(runtime, "_PATIENCE", 0.1)
    assert labelled(teacher, tmp_path / "short", "auto").manifest.runtime is None
    assert note[-1].endswith("Keras answers: labelling takes about 3.3 s, and a conversion would not pay")
    monkeypatch.setattr(runtime, "_SHORTEST_CONVERSION", 0.0)
    monkeypatch.setattr(runtime, "_PATIENCE", 1e-9)
    assert labelled(teacher, tmp_path / "impatient", "auto").manifest.runtime is None
    assert "Keras answers: TimeoutError: the conversion takes longer" in note[-1]


def test_answers_that_are_not_the_teachers_are_not_taken(teacher, tmp_path, clocks, note, monkeypatch):
    """Another model's file in the place of the teacher's: the gate sees it on the first batches."""
    from keras_distill.deploy import onnx

    keras.utils.set_random_seed(1)
    other = keras.models.clone_model(teacher)
    trace = onnx.trace_for_onnx
    monkeypatch.setattr(onnx, "trace_for_onnx", lambda model, *given, **settings: trace(other, *given, **settings))
    assert labelled(teacher, tmp_path / "auto", "auto").manifest.runtime is None
    assert "Keras answers: ValueError: onnxruntime must answer as the teacher does; got" in note[-1]
    with pytest.raises(ValueError, match="onnxruntime must answer as the teacher does; got"):
        labelled(teacher, tmp_path / "forced", "onnxruntime")


def test_rows_of_every_kind_and_named_inputs_are_labelled(tmp_path):
    left, right = keras.Input((2,), name="left"), keras.Input((3,), name="right")
    logits = keras.layers.Dense(5)(keras.layers.Concatenate()([left, right]))
    teacher = keras.Model({"left": left, "right": right}, logits)
    generator = np.random.default_rng(0)
    inputs = {"left": generator.normal(size=(50, 2)), "right": generator.normal(size=(50, 3))}
    inputs = {name: array.astype("float32") for name, array in inputs.items()}
    found = label(teacher, inputs, tmp_path / "top", top_k=2, dtype="float32", batch_size=16, runtime="onnxruntime")
    kernel, bias = teacher.get_weights()
    expected = np.concatenate([inputs["left"], inputs["right"]], axis=1).astype("float64") @ kernel + bias
    rows = found.read(np.arange(50))
    np.testing.assert_array_equal(rows["top_k_ids"], np.argsort(-expected, axis=1)[:, :2])
    np.testing.assert_allclose(rows["top_k_logits"], -np.sort(-expected, axis=1)[:, :2], rtol=1e-4, atol=1e-5)
    stream = (({name: array[at : at + 10] for name, array in inputs.items()}, None) for at in range(0, 50, 10))
    options = {"dtype": "float32", "batch_size": 16, "num_items": 50, "runtime": "onnxruntime"}
    np.testing.assert_allclose(
        label(teacher, stream, tmp_path / "stream", **options).read(np.arange(50)), expected, rtol=1e-4, atol=1e-4
    )
