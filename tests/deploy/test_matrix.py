"""Every kind of model that people bring, in both runtimes, against the model itself."""

import keras
import numpy as np
import onnx
import pytest
from hub_models import APPLICATIONS, HUB
from matrix_models import MODELS, with_probabilities

from keras_distill._kit import kit_module
from keras_distill.deploy import ConversionError, to_litert, to_onnx, verify
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


# What LiteRT's converter has no operation for.
REFUSED = {("Swin", "litert"): "the operation Roll"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*APPLICATIONS, *HUB])
def test_published_architecture_answers_as_the_model(name, tmp_path):
    if name in HUB:
        pytest.importorskip("keras_hub")
    model, inputs = (APPLICATIONS | HUB)[name]()
    own_answer = np.asarray(model(inputs, training=False))
    feed = signature_of(model).feed(inputs)
    for runtime, (make, file_name) in MAKERS.items():
        if (name, runtime) in REFUSED:
            with pytest.raises(ConversionError, match=rf"must be convertible by .* got {REFUSED[name, runtime]}\."):
                make(model, tmp_path / file_name)
            continue
        path = make(model, tmp_path / file_name)
        logits = kit_module().open_artifact(path)(feed)
        answer = with_probabilities(logits) if name in APPLICATIONS else logits
        np.testing.assert_allclose(answer, own_answer, rtol=1e-3, atol=1e-4)
        report = verify(model, path, inputs)
        assert report.holds, report.problems


@pytest.mark.slow
@pytest.mark.parametrize("runtime", MAKERS)
def test_complex_numbers_are_refused_with_the_way_around(runtime, tmp_path):
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.ops.fft((inputs, keras.ops.zeros_like(inputs)))[0])
    make, file_name = MAKERS[runtime]
    with pytest.raises(ConversionError, match=r"got the operation \w+\. Neither ONNX nor LiteRT .* cosines and sines"):
        make(model, tmp_path / file_name)


@pytest.mark.slow
def test_a_saved_and_loaded_subclassed_model_is_converted_without_its_class_in_the_worker(tmp_path):
    model, inputs = MODELS["subclassed"]()
    model.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    path = to_onnx(loaded, tmp_path / "student.onnx")
    logits = kit_module().open_artifact(path)({"inputs": inputs})
    np.testing.assert_allclose(logits, np.asarray(model(inputs)), atol=1e-5)
