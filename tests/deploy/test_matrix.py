"""Every kind of model that people bring, in both runtimes, against the model itself."""

import keras
import numpy as np
import onnx
import pytest
from matrix_models import MODELS, with_probabilities

from keras_distill._kit import kit_module
from keras_distill.deploy import to_litert, to_onnx, verify
from keras_distill.deploy.trace import signature_of

MAKERS = {"onnx": (to_onnx, "student.onnx"), "litert": (to_litert, "student.tflite")}
WITH_PROBABILITIES = ("softmax head", "nested")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", MAKERS)
@pytest.mark.parametrize("name", MODELS)
def test_artifact_answers_as_the_model(name, runtime, tmp_path):
    model, inputs = MODELS[name]()
    own_answer = np.asarray(model(inputs, training=False), "float32")
    weights = [weight.copy() for weight in model.get_weights()]
    policies = [layer.dtype_policy.name for layer in model._flatten_layers()]
    make, file_name = MAKERS[runtime]

    path = make(model, tmp_path / file_name, class_names=list("abcde"))

    feed = signature_of(model).feed(inputs)
    artifact = kit_module().open_artifact(path)
    assert sorted(artifact.input_names) == sorted(feed)
    assert artifact.output_names == ["logits"]
    logits = artifact(feed)
    # The model itself, not our own float32 reference, is the truth; in half precision it is a rough one.
    tolerance = 2e-2 if name.startswith("mixed") else 1e-4
    answer = with_probabilities(logits) if name in WITH_PROBABILITIES else logits
    np.testing.assert_allclose(answer, own_answer, rtol=tolerance, atol=tolerance)
    report = verify(model, path, inputs)
    assert report.holds, report.problems
    one = artifact({key: array[:1] for key, array in feed.items()})
    np.testing.assert_allclose(one, logits[:1], atol=1e-5)
    if runtime == "onnx":
        assert [(entry.domain, entry.version) for entry in onnx.load(str(path)).opset_import if not entry.domain] == [
            ("", 18)
        ]
        assert all(shape[0] == "batch" for shape in artifact.input_shapes.values())
    else:
        assert artifact.fixed_batch == (1 if name in ("lstm", "gru") else None)
    assert [layer.dtype_policy.name for layer in model._flatten_layers()] == policies
    for weight, before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, before)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", MAKERS)
@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetV2B0", "ResNet50"])
def test_keras_application_with_random_weights_answers_as_the_model(name, runtime, tmp_path):
    build = getattr(keras.applications, name)
    model = build(weights=None, input_shape=(64, 64, 3), classes=10)
    images = np.random.default_rng(0).uniform(0, 255, (3, 64, 64, 3)).astype("float32")
    make, file_name = MAKERS[runtime]
    path = make(model, tmp_path / file_name)
    logits = kit_module().open_artifact(path)(signature_of(model).feed(images))
    np.testing.assert_allclose(with_probabilities(logits), np.asarray(model(images)), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_saved_and_loaded_subclassed_model_is_converted_without_its_class_in_the_worker(tmp_path):
    model, inputs = MODELS["subclassed"]()
    model.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    path = to_onnx(loaded, tmp_path / "student.onnx")
    logits = kit_module().open_artifact(path)({"inputs": inputs})
    np.testing.assert_allclose(logits, np.asarray(model(inputs)), atol=1e-5)
