"""Files keep what a model has of its own: its names, its batch size, its state, its constants. Or they are refused."""

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from graphs import linear_onnx
from keras import layers, ops

from keras_distill._kit import kit_module
from keras_distill.deploy import ConversionError, quantize_onnx, to_litert, to_onnx, verify
from keras_distill.deploy.integer_onnx import kernel_types
from keras_distill.deploy.trace import named_outputs, signature_of

MAKERS = {"onnx": to_onnx, "tflite": to_litert}
RUNTIMES = pytest.mark.parametrize("runtime", MAKERS)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def convert(model, folder, runtime, **options):
    """The opened file of a model."""
    return kit_module().open_artifact(MAKERS[runtime](model, folder / f"model.{runtime}", **options))


def on_tensors(model, inputs):
    """The model's own answer, as its file is asked."""
    return keras.tree.map_structure(np.asarray, model(inputs, training=False))


# Names

NAMES = ["Image", "image", "_x", "logits", "a b", "x:0", "ünder/way", "input_001", "output_000", "file"]


def model_of_many_names():
    """Sums of all inputs, each times its own factor; some outputs have the names of inputs, and some none."""
    inputs = {name: keras.Input((3,), name=name.replace("/", "_")) for name in NAMES}
    total = sum(inputs[name] * float(factor) for factor, name in enumerate(NAMES, 1))
    return keras.Model(inputs, {"z": total[:, :1], "logits": total[:, 1:], "Image": total, "b": [total * 2.0, -total]})


@RUNTIMES
@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_inputs_and_outputs_keep_names_that_converters_cannot_have(runtime, tmp_path):
    model = model_of_many_names()
    artifact = convert(model, tmp_path, runtime)
    assert sorted(artifact.input_names) == sorted(NAMES)
    feed = {name: normal(4, 3, seed=seed) for seed, name in enumerate(NAMES)}
    total = sum(np.float64(feed[name]) * factor for factor, name in enumerate(NAMES, 1))
    expected = {
        "z": total[:, :1],
        "logits_output": total[:, 1:],
        "Image_output": total,
        "b_0": 2 * total,
        "b_1": -total,
    }
    found = artifact.run(feed)
    assert sorted(found) == sorted(expected)
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_outputs_are_in_the_models_order_in_a_file(tmp_path):
    inputs = keras.Input((5,))
    model = keras.Model(inputs, [layers.Dense(units)(inputs) for units in range(1, 13)])
    shapes = [shape[1] for shape in _output_shapes(to_onnx(model, tmp_path / "model.onnx"))]
    assert shapes == list(range(1, 13))


def _output_shapes(path):
    return [[size.dim_value for size in o.type.tensor_type.shape.dim] for o in onnx.load(path).graph.output]


def test_an_input_of_a_dictionary_is_called_by_its_key():
    a, b = keras.Input((2,), name="b"), keras.Input((2,), name="a")
    with pytest.warns(UserWarning, match="must match the names"):
        model = keras.Model({"a": a, "b": b}, a - 2.0 * b)
    first, second = normal(3, 2), normal(3, 2, seed=1)
    signature = signature_of(model)
    assert signature.names == ("a", "b")
    feed = signature.feed({"b": second, "a": first})
    np.testing.assert_array_equal(feed["a"], first)
    np.testing.assert_array_equal(feed["b"], second)


def test_only_what_has_no_name_is_numbered():
    named, unnamed = keras.Input((2,), name="inputs_1"), keras.Input((2,))
    assert signature_of(keras.Model([named, unnamed], named + unnamed)).names == ("inputs_1", "inputs_1_1")


def test_output_names():
    x = ops.ones((1, 2))
    assert list(named_outputs(x)) == list(named_outputs([x])) == ["logits"]
    assert list(named_outputs([x, x])) == ["logits_0", "logits_1"]
    assert list(named_outputs({"a": x, "b": [x, x]})) == ["a", "b_0", "b_1"]
    assert list(named_outputs(x, ["logits"])) == ["logits_output"]
    assert list(named_outputs(x, ["logits", "logits_output"])) == ["logits_output_1"]


# Batch size


def model_of_four():
    """Mixes examples of a batch, so that only batches of four can be right."""
    inputs = keras.Input(batch_shape=(4, 6), name="Four")
    mixed = ops.reshape(ops.reshape(inputs, (2, 12)) * 2.0, (4, 6))
    return keras.Model(inputs, layers.Dense(3)(mixed))


@RUNTIMES
def test_a_models_own_batch_size_is_kept(runtime, tmp_path):
    model = model_of_four()
    artifact = convert(model, tmp_path, runtime)
    assert artifact.fixed_batch == 4
    inputs = normal(4, 6)
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(artifact({"Four": inputs}), 2.0 * inputs @ kernel + bias, atol=1e-5)
    # Ten are two batches and a half.
    assert verify(model, tmp_path / f"model.{runtime}", normal(10, 6)).holds
    one_call = kit_module().for_one_call(artifact, {"Four": normal(1, 6)})
    assert artifact.step(one_call)()[0].shape == (4, 3)
    same = MAKERS[runtime](model, tmp_path / f"same.{runtime}", batch=4)
    assert kit_module().open_artifact(same).fixed_batch == 4
    with pytest.raises(ConversionError, match="batch must be 4"):
        MAKERS[runtime](model, tmp_path / f"other.{runtime}", batch=2)
    assert not (tmp_path / f"other.{runtime}").exists()


def test_int8_of_a_model_that_takes_four_is_calibrated_by_fours(tmp_path):
    model = model_of_four()
    calibration = {"Four": normal(30, 6)}
    source = to_onnx(model, tmp_path / "float32.onnx")
    for path in (
        quantize_onnx(source, tmp_path / "int8.onnx", calibration=calibration),
        to_litert(model, tmp_path / "int8.tflite", quantization="int8", calibration=calibration),
    ):
        # Ranges that came of other examples, or of fewer, would clip some of these.
        found = verify(model, path, calibration["Four"], precision="int8")
        assert found.max_abs_error < 0.03 * np.ptp(model(calibration["Four"][:4]))
    with pytest.raises(ConversionError, match=r"calibration must be of the inputs \['Four'\]; got \['four'\]"):
        quantize_onnx(source, tmp_path / "other.onnx", calibration={"four": normal(30, 6)})


def test_inputs_of_two_batch_sizes_are_refused():
    two, three = keras.Input(batch_shape=(2, 5)), keras.Input(batch_shape=(3, 5))
    model = keras.Model([two, three], [layers.Dense(1)(two), layers.Dense(1)(three)])
    with pytest.raises(ValueError, match=r"one batch size; got \[2, 3\]"):
        signature_of(model)


# State


class Counter(layers.Layer):
    def build(self, _):
        self.num_calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        self.num_calls.assign_add(1.0)
        return inputs * self.num_calls


def recurrent(kind):
    inputs = keras.Input(batch_shape=(2, 7, 4), name="sound")
    return keras.Model(inputs, layers.Dense(3)(kind(5, stateful=True, name="memory")(inputs)))


def counting():
    return keras.Sequential([keras.Input((4,), name="sound"), Counter(name="memory"), layers.Dense(3)])


STATEFUL = {
    "LSTM": lambda: (recurrent(layers.LSTM), normal(2, 7, 4)),
    "GRU": lambda: (recurrent(layers.GRU), normal(2, 7, 4)),
    "counter": lambda: (counting(), normal(2, 4)),
}


def state_of(model):
    memory = model.get_layer("memory")
    return [memory.num_calls] if isinstance(memory, Counter) else keras.tree.flatten(memory.states)


def begin_anew(model):
    for variable in state_of(model):
        variable.assign(ops.zeros_like(variable))


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_is_kept_in_litert_and_refused_in_onnx(name, tmp_path):
    model, inputs = STATEFUL[name]()
    begin_anew(model)
    calls = [on_tensors(model, inputs) for _ in range(3)]
    assert np.abs(calls[1] - calls[0]).max() > 1e-3
    begin_anew(model)
    artifact = convert(model, tmp_path, "tflite")
    for expected in calls:
        np.testing.assert_allclose(artifact({"sound": inputs}), expected, atol=1e-5)
    with pytest.raises(ConversionError, match=r"got 'memory', which keeps a state"):
        to_onnx(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
    assert all(not np.any(variable) for variable in state_of(model))


class BatchNormOfTheBatch(layers.BatchNormalization):
    """Writes its statistics at every call and reads none of them."""

    def call(self, inputs):
        return super().call(inputs, training=True)


def test_a_variable_that_is_written_and_never_read_is_no_state(tmp_path):
    model = keras.Sequential([keras.Input((6,)), BatchNormOfTheBatch(), layers.Dense(3)])
    inputs = normal(9, 6)
    found = convert(model, tmp_path, "onnx")({"inputs": inputs})
    kernel, bias = model.get_weights()[-2:]
    hidden = (inputs - inputs.mean(0)) / np.sqrt(inputs.var(0) + 1e-3)
    np.testing.assert_allclose(found, hidden @ kernel + bias, atol=1e-5)


def test_verification_leaves_the_state_as_it_was(tmp_path):
    model, inputs = recurrent(layers.LSTM), normal(2, 7, 4)
    path = to_litert(model, tmp_path / "model.tflite")
    model(inputs)
    before = [np.array(variable) for variable in state_of(model)]
    assert all(np.any(value) for value in before)
    verify(model, path, inputs)
    for variable, value in zip(state_of(model), before, strict=True):
        np.testing.assert_array_equal(variable, value)


# What a graph holds


class Held(layers.Layer):
    """Tensors made outside of `call`: a table, a mask, a scalar, positions; one of them read inside a loop."""

    def __init__(self, length, width, **kwargs):
        super().__init__(**kwargs)
        self.table = ops.convert_to_tensor(normal(width, width) / width)
        self.mask = ops.convert_to_tensor(np.arange(length) % 2 == 0)
        self.scale = ops.sqrt(8.0)
        self.positions = ops.expand_dims(ops.arange(length), 0)
        self.embedding = layers.Embedding(length, width)

    def build(self, shape):
        self.embedding.build((1, shape[1]))

    def call(self, inputs):
        hidden = ops.where(self.mask[None, :, None], inputs, 0.0) * self.scale + self.embedding(self.positions)
        return ops.fori_loop(0, 2, lambda _, value: ops.matmul(value, self.table), hidden)


@RUNTIMES
def test_tensors_that_a_layer_holds_are_constants_of_the_file(runtime, tmp_path):
    closed_over = tf.constant(normal(16, 3, seed=2))
    inputs = keras.Input((6, 16))
    outputs = ops.matmul(layers.GlobalAveragePooling1D()(Held(6, 16)(inputs)), closed_over)
    model = keras.Model(inputs, outputs)
    artifact = convert(model, tmp_path, runtime)
    assert artifact.input_names == ["inputs"]
    x = normal(5, 6, 16)
    np.testing.assert_allclose(artifact({"inputs": x}), on_tensors(model, x), atol=1e-5)


class Compiled(layers.Layer):
    """A function of TensorFlow's own that wants XLA."""

    @tf.function(jit_compile=True)
    def call(self, inputs):
        return tf.nn.relu(inputs) - 0.5


@RUNTIMES
def test_functions_that_want_xla_are_inlined(runtime, tmp_path):
    inputs = keras.Input((8, 8, 4))
    grouped = layers.Conv2D(4, 3, groups=2, padding="same", name="grouped")
    hidden = grouped(Compiled()(grouped(inputs)))
    hidden = layers.Conv2D(8, 3, groups=4, strides=2, activation="relu")(hidden)
    hidden = layers.Conv1D(6, 3, groups=2)(layers.Reshape((9, 8))(hidden))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(hidden)))
    x = normal(5, 8, 8, 4)
    np.testing.assert_allclose(convert(model, tmp_path, runtime)({"inputs": x}), on_tensors(model, x), atol=1e-5)


@RUNTIMES
def test_a_file_that_its_runtime_cannot_run_is_not_written(runtime, tmp_path):
    # tf2onnx forgets the groups of a volume's convolution, and LiteRT knows none.
    convolution = layers.Conv3D(4, 2, groups=2, name="volume")
    model = keras.Sequential([keras.Input((4, 4, 4, 2)), convolution, layers.Flatten(), layers.Dense(3)])
    with pytest.raises(ConversionError, match="must be convertible by to_"):
        MAKERS[runtime](model, tmp_path / f"model.{runtime}")
    assert list(tmp_path.iterdir()) == []


# What stays float


def test_what_a_quantised_file_computes_in_float_is_named(tmp_path):
    # onnxruntime's quantiser with calibrated ranges knows no LSTM.
    model = keras.Sequential([keras.Input((7, 4)), layers.LSTM(8, name="memory"), layers.Dense(3, name="logits")])
    source = to_onnx(model, tmp_path / "float32.onnx")
    with pytest.warns(UserWarning, match=r"computes these in float32 on this processor: '[^']*memory[^']*'\.$"):
        path = quantize_onnx(
            source, tmp_path / "int8.onnx", mode="static-uint8", calibration={"inputs": normal(32, 7, 4)}
        )
    assert sorted(kernel_types(path).values()) == ["float32", "int8"]


def test_a_quantised_file_without_float_says_nothing(tmp_path):
    source = linear_onnx(tmp_path / "float32.onnx", normal(8, 4))
    path = quantize_onnx(source, tmp_path / "int8.onnx", mode="static-uint8", calibration={"x": normal(32, 8)})
    assert len(kernel_types(path)) == 1
    assert "float32" not in kernel_types(path).values()
