"""`SavedModelTeacher` and `FunctionTeacher`, and Keras's own `TFSMLayer`, against the model that was exported."""

import pickle

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill import Distiller
from keras_distill.losses import SoftTargets
from keras_distill.targets import label
from keras_distill.teachers import FunctionTeacher, SavedModelTeacher

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tensorflow

X = np.random.default_rng(0).normal(size=(11, 4)).astype("float32")


def network(batch=None, activation=None):
    return keras.Sequential([keras.Input((4,), batch_size=batch), layers.Dense(3, activation=activation)])


def exported(model, path, **options):
    model.export(path, verbose=False, **options)
    return path


def softmax(logits):
    exponentials = np.exp(np.float64(logits))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("batch", [None, 4])
def test_it_gives_the_models_logits_eagerly_and_in_a_graph(batch, from_logits, tmp_path):
    model = network(batch, None if from_logits else "softmax")
    teacher = SavedModelTeacher(exported(model, tmp_path / "saved"), from_logits=from_logits)
    kernel, bias = model.layers[0].get_weights()
    expected = softmax(X.astype("float64") @ kernel + bias)
    in_a_graph = tf.function(teacher).get_concrete_function(tf.TensorSpec((None, 4)))
    assert in_a_graph.structured_outputs.shape.as_list() == [None, 3]
    for logits in (teacher.logits(X), teacher(X), in_a_graph(tf.constant(X)), pickle.loads(pickle.dumps(teacher))(X)):
        np.testing.assert_allclose(softmax(logits), expected, atol=1e-6)
    assert teacher.num_classes == 3


def test_its_fingerprint_is_of_its_files_and_settings(tmp_path):
    path = exported(network(), tmp_path / "saved")
    teacher = SavedModelTeacher(path)
    assert teacher.fingerprint == SavedModelTeacher(path).fingerprint
    assert teacher.fingerprint != SavedModelTeacher(path, from_logits=False).fingerprint
    assert teacher.fingerprint != SavedModelTeacher(exported(network(), tmp_path / "other")).fingerprint


def test_several_inputs_and_outputs_go_by_name(tmp_path):
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="left"), tf.TensorSpec((None, 4), name="right")])
    def serve(left, right):
        return {"difference": left - right, "sum": left + right}

    module.serve = serve
    tf.saved_model.save(module, str(tmp_path), signatures={"a": serve, "b": serve})
    with pytest.raises(
        ValueError, match=r"must have the signature that is called; got 'serving_default', where it has"
    ):
        SavedModelTeacher(tmp_path)
    with pytest.raises(ValueError, match=r"must be one float tensor of rank >= 2; got .*Name it with output_name="):
        SavedModelTeacher(tmp_path, signature="a")
    with pytest.raises(ValueError, match=r"output_name must be one of \['difference', 'sum'\]; got 'product'"):
        SavedModelTeacher(tmp_path, "product", signature="a")
    teacher = SavedModelTeacher(tmp_path, "difference", signature="a", input_names={"right": "second"})
    np.testing.assert_array_equal(teacher.logits({"left": 3 * X, "second": X}), 3 * X - X)
    with pytest.raises(ValueError, match=r"must be a dict that holds \['second'\]; got \['left', 'right'\]"):
        teacher.logits({"left": X, "right": X})
    with pytest.raises(ValueError, match=r"the inputs must be a dict of left, right; got 1 without a name"):
        teacher.logits(X)
    with pytest.raises(FileNotFoundError, match=r"a folder with saved_model.pb; got .*, which has none"):
        SavedModelTeacher(tmp_path / "variables")


def test_preprocessing_is_before_it(tmp_path):
    model = network()
    teacher = SavedModelTeacher(exported(model, tmp_path / "saved"), preprocess=lambda batch: batch / 2)
    np.testing.assert_allclose(teacher(2 * X), model(X), atol=1e-6)


@pytest.mark.parametrize("as_model", [False, True])
def test_the_dict_of_one_output_of_keras_own_layer_teaches(as_model, tmp_path):
    model = network()
    layer = keras.layers.TFSMLayer(exported(model, tmp_path / "saved"), call_endpoint="serving_default")
    teacher = keras.Sequential([keras.Input((4,)), layer]) if as_model else layer
    store = label(teacher, X, tmp_path / "store", dtype="float32", teacher_fingerprint="the layer")
    np.testing.assert_allclose(store.read(np.arange(11)), model(X), atol=1e-6)
    student = keras.models.clone_model(model)
    student.set_weights(model.get_weights())
    distiller = Distiller(teacher, student, SoftTargets(2.0), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(X, np.arange(11) % 3, verbose=0)
    # A student that is its teacher has nothing to learn from it.
    np.testing.assert_allclose(student.get_weights()[0], model.get_weights()[0], atol=1e-6)


def logits_of_ours(batch):
    return 2.0 * batch[:, :3]


def test_a_functions_shape_is_known_in_a_graph():
    teacher = FunctionTeacher(f"{__name__}:logits_of_ours")
    graph = tf.function(teacher).get_concrete_function(tf.TensorSpec((None, 4)))
    assert graph.structured_outputs.shape.as_list() == [None, 3]
    np.testing.assert_array_equal(graph(tf.constant(X)), 2.0 * X[:, :3])
    assert pickle.loads(pickle.dumps(teacher)).fingerprint == teacher.fingerprint
    assert teacher.fingerprint != FunctionTeacher(f"{__name__}:softmax").fingerprint
