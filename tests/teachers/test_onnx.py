"""OnnxTeacher: networks written node by node, and scikit-learn's own predictions, teach a Keras student."""

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from keras import layers
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression

import keras_distill as kd
from keras_distill.losses import SoftTargets
from keras_distill.targets.labelling import label


def save_graph(path, nodes, inputs, outputs, constants=()):
    """Writes an ONNX file of `nodes`; inputs and outputs are (name, type, shape)."""
    values = [[helper.make_tensor_value_info(*value) for value in part] for part in (inputs, outputs)]
    initialisers = [numpy_helper.from_array(array, name) for name, array in constants]
    graph = helper.make_graph(nodes, "teacher", *values, initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def linear(path, kernel, bias, batch="batch", dtype=TensorProto.FLOAT, softmax=False):
    nodes = [helper.make_node("Gemm", ["x", "kernel", "bias"], ["scores" if softmax else "logits"])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["scores"], ["logits"]))
    numpy_type = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"}[dtype]
    constants = [("kernel", kernel.astype(numpy_type)), ("bias", bias.astype(numpy_type))]
    shapes = [("x", dtype, [batch, len(kernel)])], [("logits", dtype, [batch, len(bias)])]
    return save_graph(path, nodes, *shapes, constants)


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    return generator.normal(size=(6, 3)), generator.normal(size=3), generator.normal(size=(20, 6)).astype("float32")


def student_net():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((6,)), layers.Dense(3)])


def test_logits_are_the_files(scores, tmp_path):
    kernel, bias, x = scores
    teacher = kd.OnnxTeacher(linear(tmp_path / "t.onnx", kernel, bias))
    assert teacher.num_classes == 3
    np.testing.assert_allclose(teacher(x), x @ kernel + bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(teacher(tf.constant(x)), x @ kernel + bias, rtol=1e-5, atol=1e-5)


def test_inside_a_graph_it_runs_and_its_shape_is_known(scores, tmp_path):
    kernel, bias, x = scores
    teacher = kd.OnnxTeacher(linear(tmp_path / "t.onnx", kernel, bias))
    shapes = []

    @tf.function(input_signature=[tf.TensorSpec([None, 6])])
    def run(inputs):
        logits = teacher(inputs)
        shapes.append(logits.shape)
        return logits

    np.testing.assert_allclose(run(x), x @ kernel + bias, rtol=1e-5, atol=1e-5)
    assert shapes[0].as_list() == [None, 3]


def test_files_of_a_fixed_batch_and_of_doubles_take_any_batch_of_floats(scores, tmp_path):
    kernel, bias, x = scores
    for count in (1, 8, 20):
        teacher = kd.OnnxTeacher(linear(tmp_path / "t.onnx", kernel, bias, batch=8, dtype=TensorProto.DOUBLE))
        logits = teacher(x[:count])
        assert logits.dtype == tf.float32
        np.testing.assert_allclose(logits, x[:count] @ kernel + bias, rtol=1e-5, atol=1e-5)


def test_probabilities_become_logits(scores, tmp_path):
    kernel, bias, x = scores
    path = linear(tmp_path / "t.onnx", kernel, bias, softmax=True)
    probabilities = tf.nn.softmax(kd.OnnxTeacher(path, from_logits=False)(x))
    np.testing.assert_allclose(probabilities, tf.nn.softmax(x @ kernel + bias), rtol=1e-4)


def test_beside_the_student_it_teaches_what_the_same_keras_teacher_would(scores, tmp_path):
    kernel, bias, x = scores
    twin = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    twin.set_weights([kernel, bias])
    weights = []
    for teacher in (twin, kd.OnnxTeacher(linear(tmp_path / "t.onnx", kernel, bias))):
        student = student_net()
        distiller = kd.Distiller(teacher, student, SoftTargets(2.0))
        # The compile's own "auto" must not choose XLA, which cannot call another runtime.
        distiller.compile(keras.optimizers.SGD(0.5))
        assert distiller.supports_jit is (teacher is twin)
        distiller.fit(x, batch_size=10, epochs=3, shuffle=False, verbose=0)
        weights.append(student.get_weights())
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_through_a_store_it_teaches_the_same(scores, tmp_path):
    kernel, bias, x = scores
    teacher = kd.OnnxTeacher(linear(tmp_path / "t.onnx", kernel, bias))
    store = label(teacher, x, tmp_path / "targets", dtype="float32", progress=False)
    np.testing.assert_allclose(store.read(np.arange(20)), x @ kernel + bias, rtol=1e-5, atol=1e-5)
    assert store.manifest.teacher_fingerprint == teacher.fingerprint


def test_fingerprint_is_the_files_and_the_settings(scores, tmp_path):
    kernel, bias, _ = scores
    path = linear(tmp_path / "a.onnx", kernel, bias)
    same = linear(tmp_path / "b.onnx", kernel, bias)
    other = linear(tmp_path / "c.onnx", kernel + 1e-3, bias)
    fingerprints = [kd.OnnxTeacher(file).fingerprint for file in (path, same, other)]
    fingerprints.append(kd.OnnxTeacher(path, from_logits=False).fingerprint)
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3


def test_scikit_learn_teaches(tmp_path):
    """As its converters write it: a label, and probabilities."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 6)).astype("float32")
    y = np.argmax(x @ generator.normal(size=(6, 3)), axis=-1)
    model = LogisticRegression(C=100.0, max_iter=500).fit(x, y)
    nodes = [
        helper.make_node("Gemm", ["x", "kernel", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    constants = [("kernel", model.coef_.T.astype("float32")), ("bias", model.intercept_.astype("float32"))]
    outputs = [("label", TensorProto.INT64, ["batch"]), ("probabilities", TensorProto.FLOAT, ["batch", 3])]
    path = save_graph(tmp_path / "t.onnx", nodes, [("x", TensorProto.FLOAT, ["batch", 6])], outputs, constants)
    teacher = kd.OnnxTeacher(path, from_logits=False)
    assert teacher.output_name == "probabilities"
    np.testing.assert_allclose(tf.nn.softmax(teacher(x)), model.predict_proba(x), atol=1e-5)

    student = student_net()
    distiller = kd.Distiller(teacher, student, SoftTargets(2.0))
    distiller.compile(keras.optimizers.Adam(0.05))
    distiller.fit(x, epochs=8, verbose=0)
    assert np.mean(np.asarray(student(x)).argmax(-1) == model.predict(x)) > 0.95


def test_probabilities_taken_for_logits_are_caught_at_the_first_batch(scores, tmp_path):
    kernel, bias, x = scores
    teacher = kd.OnnxTeacher(linear(tmp_path / "t.onnx", kernel, bias, softmax=True))
    distiller = kd.Distiller(teacher, student_net())
    distiller.compile("sgd")
    with pytest.raises(ValueError, match=r"the teacher's outputs must be logits; got probabilities"):
        distiller.fit(x, verbose=0)


def convolution(path):
    """As PyTorch writes it: channels first, then the mean over places."""
    kernel = np.random.default_rng(1).normal(size=(3, 2, 3, 3)).astype("float32")
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["map"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    inputs = [("x", TensorProto.FLOAT, ["batch", 2, 4, 6])]
    outputs = [("logits", TensorProto.FLOAT, ["batch", 3])]
    return save_graph(path, nodes, inputs, outputs, [("kernel", kernel)]), kernel


def test_channels_come_first_where_the_file_wants_it(tmp_path):
    path, kernel = convolution(tmp_path / "t.onnx")
    images = np.random.default_rng(2).normal(size=(5, 4, 6, 2)).astype("float32")
    expected = tf.reduce_mean(tf.nn.conv2d(images, kernel.transpose(2, 3, 1, 0), 1, "SAME"), axis=(1, 2))
    np.testing.assert_allclose(kd.OnnxTeacher(path, channels_first=True)(images), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"as the file's 'x'; got \(5, 4, 6, 2\).*channels_first=True"):
        kd.OnnxTeacher(path)(images)


def test_map_of_classes_comes_back_with_its_classes_last(tmp_path):
    kernel = np.random.default_rng(1).normal(size=(3, 2, 3, 3)).astype("float32")
    node = helper.make_node("Conv", ["x", "kernel"], ["logits"], pads=[1, 1, 1, 1])
    inputs = [("x", TensorProto.FLOAT, ["batch", 2, 4, 6])]
    outputs = [("logits", TensorProto.FLOAT, ["batch", 3, 4, 6])]
    path = save_graph(tmp_path / "t.onnx", [node], inputs, outputs, [("kernel", kernel)])
    images = np.random.default_rng(2).normal(size=(5, 4, 6, 2)).astype("float32")
    teacher = kd.OnnxTeacher(path, channels_first=True)
    assert teacher.num_classes == 3
    expected = tf.nn.conv2d(images, kernel.transpose(2, 3, 1, 0), 1, "SAME")
    np.testing.assert_allclose(teacher(images), expected, atol=1e-5)
    student = keras.Sequential([keras.Input((4, 6, 2)), layers.Conv2D(3, 1)])
    distiller = kd.Distiller(teacher, student, SoftTargets(2.0), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    found = SoftTargets(2.0).compute_loss(expected, student(images))
    history = distiller.fit(images, batch_size=5, verbose=0).history
    np.testing.assert_allclose(history["distillation_loss"], [float(found)], rtol=1e-4)


def test_own_preprocessing_comes_first(tmp_path):
    path, _ = convolution(tmp_path / "t.onnx")
    small = np.random.default_rng(2).normal(size=(5, 2, 3, 2)).astype("float32")
    big = small.repeat(2, axis=1).repeat(2, axis=2) / 3.0
    teacher = kd.OnnxTeacher(
        path, channels_first=True, preprocess=lambda images: images.repeat(2, axis=1).repeat(2, axis=2) / 3.0
    )
    np.testing.assert_allclose(teacher(small), kd.OnnxTeacher(path, channels_first=True)(big), atol=1e-6)


def test_several_inputs_go_by_name(tmp_path):
    node = helper.make_node("Sub", ["left", "right"], ["logits"])
    inputs = [(name, TensorProto.FLOAT, ["batch", 2]) for name in ("left", "right")]
    path = save_graph(tmp_path / "t.onnx", [node], inputs, [("logits", TensorProto.FLOAT, ["batch", 2])])
    a, b = np.float32([[5, 6]]), np.float32([[1, 2]])
    teacher = kd.OnnxTeacher(path)
    for given in ({"right": b, "left": a}, [a, b]):
        np.testing.assert_array_equal(teacher(given), a - b)
    renamed = kd.OnnxTeacher(path, input_names={"left": "one", "right": "two"})
    np.testing.assert_array_equal(renamed({"two": b, "one": a}), a - b)
    with pytest.raises(ValueError, match=r"a dict that holds \['left', 'right'\].*input_names"):
        teacher({"one": a, "two": b})
    with pytest.raises(ValueError, match=r"there must be 2 inputs \(left, right\); got 1"):
        teacher(a)


def test_files_that_are_no_teachers_are_refused(scores, tmp_path):
    kernel, bias, _ = scores
    with pytest.raises(FileNotFoundError, match=r"an \.onnx file; got no file"):
        kd.OnnxTeacher(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(ValueError, match="a readable ONNX file"):
        kd.OnnxTeacher(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match=r"output_name must be one of \['logits'\]; got 'scores'"):
        kd.OnnxTeacher(linear(tmp_path / "t.onnx", kernel, bias), output_name="scores")
    node = helper.make_node("Identity", ["x"], ["label"])
    shape = TensorProto.INT64, ["batch", 1]
    path = save_graph(tmp_path / "label.onnx", [node], [("x", *shape)], [("label", *shape)])
    with pytest.raises(ValueError, match=r"one float tensor of rank >= 2; got label .*zipmap"):
        kd.OnnxTeacher(path)
