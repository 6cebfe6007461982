"""`verify` beside Keras models: heads say what the answer is, outputs keep their names, whatever shape they have."""

import keras
import numpy as np
import pytest
from graphs import onnx_file
from keras import layers
from subjects import two_outputs

from keras_distill.deploy import to_litert, to_onnx, verify
from keras_distill.deploy.trace import float32_outputs, heads_of, signature_of

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(64, 8)).astype("float32")
MAKERS = {"onnx": to_onnx, "tflite": to_litert}


def two_headed():
    inputs = keras.Input((8,), name="x")
    hidden = layers.Dense(16, "relu")(inputs)
    outputs = {"size": layers.Dense(1)(hidden), "kind": layers.Dense(3, "softmax")(hidden)}
    return keras.Model(inputs, outputs | {"is_new": layers.Dense(1, "sigmoid")(hidden)})


def tagger():
    inputs = keras.Input((6,), dtype="int32", name="ids")
    return keras.Model(inputs, layers.Dense(5, "softmax")(layers.Embedding(20, 8)(inputs)))


def segmenter():
    inputs = keras.Input((8, 8, 3), name="image")
    return keras.Model(inputs, layers.Conv2D(4, 1, activation="softmax")(layers.Conv2D(8, 3, padding="same")(inputs)))


def regressor():
    return keras.Sequential([keras.Input((8,), name="x"), layers.Dense(16, "tanh"), layers.Dense(2)])


class Opaque(keras.Model):
    """A subclassed model of one unit, which nobody can read."""

    def __init__(self, activation):
        super().__init__()
        self.head = layers.Dense(1, activation)

    def call(self, inputs):
        return self.head(inputs)


IDS = GENERATOR.integers(0, 20, (64, 6)).astype("int32")
IMAGES = GENERATOR.normal(size=(16, 8, 8, 3)).astype("float32")
# (model, inputs, labels, the answer of every output)
MODELS = {
    "several outputs": (
        two_headed,
        X,
        {"kind": np.arange(64) % 3, "is_new": np.arange(64) % 2},
        {"kind": "argmax", "size": "distance", "is_new": "threshold"},
    ),
    "tokens": (tagger, IDS, np.where(IDS > 10, IDS % 5, -1), {"logits": "argmax"}),
    "map": (segmenter, IMAGES, GENERATOR.integers(0, 4, (16, 8, 8)), {"logits": "argmax"}),
    "regression": (regressor, X, X[:, :2] + 0.1, {"logits": "distance"}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("several outputs", "onnx"),
        ("several outputs", "tflite"),
        ("tokens", "tflite"),
        ("map", "onnx"),
        ("regression", "tflite"),
    ],
)
def test_a_converted_model_of(name, suffix, tmp_path):
    make, inputs, labels, answers = MODELS[name]
    model = make()
    path = MAKERS[suffix](model, tmp_path / f"a.{suffix}")
    for given in (None, labels):
        found = verify(model, path, inputs, given)
        assert found.problems == ()
        if given is not None:
            assert {key: output.answer for key, output in found.outputs.items()} == answers
    if name == "tokens":
        right = np.asarray(model(IDS)).argmax(-1) == labels
        assert found.reference_accuracy == pytest.approx(right[labels >= 0].mean())
    # A file of the same kind that was trained otherwise.
    other = make()
    other.set_weights([np.random.default_rng(1).normal(size=weight.shape) for weight in other.get_weights()])
    assert not verify(other, path, inputs, labels).holds
    assert not verify(other, path, inputs, labels, precision="int8").holds


def test_heads_are_read_under_the_names_of_their_outputs():
    model = two_headed()
    outputs = float32_outputs(model, {"x": X}, signature_of(model))
    expected = {"kind": "softmax", "size": "linear", "is_new": "sigmoid"}
    assert heads_of(model, tuple(outputs)) == expected
    hidden = layers.Dense(4)(model.input)
    listed = keras.Model(model.input, [layers.Dense(3)(hidden), layers.Dense(1, "sigmoid")(hidden)])
    assert heads_of(listed, ("logits_0", "logits_1")) == {"logits_0": "linear", "logits_1": "sigmoid"}
    opaque = Opaque("sigmoid")
    opaque(X)
    assert heads_of(opaque, ("logits",)).get("logits") is None


@pytest.mark.parametrize(
    ("activation", "from_logits"), [("linear", True), ("sigmoid", True), ("sigmoid", False)], ids=str
)
def test_the_threshold_of_a_unit_that_cannot_be_read_is_where_its_values_say(activation, from_logits, tmp_path):
    model = Opaque(activation)
    model(X)
    kernel, bias = model.get_weights()
    nodes = [("MatMul", ["inputs", "kernel"], ["product"]), ("Add", ["product", "bias"], ["units"])]
    # Of probabilities that are declared as such the logits are asked for.
    if activation == "sigmoid" and from_logits:
        nodes.append(("Sigmoid", ["units"], ["shares"]))
    nodes.append(("Identity", [nodes[-1][2][0]], ["logits"]))
    inputs, outputs = {"inputs": ("float32", ["batch", 8])}, {"logits": ["batch", 1]}
    path = onnx_file(tmp_path / "a.onnx", nodes, inputs, outputs, {"kernel": kernel, "bias": bias})
    labels = (np.random.default_rng(1).normal(size=64) > 0).astype(int)
    found = verify(model, path, X, labels, from_logits=from_logits)
    assert found.holds
    is_yes = np.asarray(model(X))[:, 0] > (0.0 if activation == "linear" else 0.5)
    assert found.reference_accuracy == pytest.approx(np.mean(is_yes == labels))


def test_images_in_shares_are_no_images_in_uint8(tmp_path):
    inputs = keras.Input((4, 4, 1), dtype="uint8", name="image")
    scaled = layers.Rescaling(1 / 255)(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(scaled)))
    images = np.random.default_rng(1).integers(0, 256, (8, 4, 4, 1))
    with pytest.raises(ValueError, match="the input 'image' must be whole numbers of type uint8"):
        signature_of(model).feed(images / 255)
    kernel, bias = model.get_weights()
    nodes = [
        ("Cast", ["image"], ["floats"], {"to": 1}),
        ("Flatten", ["floats"], ["flat"]),
        ("MatMul", ["flat", "kernel"], ["product"]),
        ("Add", ["product", "bias"], ["logits"]),
    ]
    inputs, outputs = {"image": ("uint8", ["batch", 4, 4, 1])}, {"logits": ["batch", 3]}
    path = onnx_file(tmp_path / "a.onnx", nodes, inputs, outputs, {"kernel": kernel / 255, "bias": bias})
    assert verify(model, path, images).holds
    assert verify(model, path, images.astype("float64")).holds
    with pytest.raises(ValueError, match="whole numbers of type uint8"):
        verify(model, path, images / 255)


def test_labels_of_several_outputs_come_by_name(tmp_path):
    subject = two_outputs()
    path = subject.write(tmp_path / "a.onnx")
    with pytest.raises(
        ValueError, match=r"labels must be a dictionary with keys among \['kind', 'size'\]; got ndarray"
    ):
        verify(subject.outputs, path, subject.inputs, subject.labels["kind"])
