"""`keras-distill export`: files that answer as the model does, or one sentence."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill import cli
from keras_distill._kit import kit_module
from keras_distill.deploy import read_metadata


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Flatten(),
            layers.Dense(16, activation="gelu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    path = tmp_path_factory.mktemp("model") / "student.keras"
    model.save(path)
    return path


def export(path, out, *arguments):
    return cli.main(["export", str(path), "--out", str(out), *arguments])


@pytest.mark.slow
def test_both_files_answer_as_the_model_and_know_their_classes(path, tmp_path):
    assert export(path, tmp_path / "out", "--data", "digits") == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["student.onnx", "student.tflite"]
    inputs = np.random.default_rng(0).uniform(size=(5, 8, 8, 1)).astype("float32")
    expected = np.log(np.asarray(keras.saving.load_model(path)(inputs)))
    for name in ("student.onnx", "student.tflite"):
        logits = kit_module().open_artifact(tmp_path / "out" / name)({"image": inputs})
        np.testing.assert_allclose(logits - logits[:, :1], expected - expected[:, :1], atol=1e-4)
        assert read_metadata(tmp_path / "out" / name)["class_names"].startswith('["0", "1"')


@pytest.mark.slow
def test_one_format_alone_without_data(path, tmp_path, capsys):
    assert export(path, tmp_path / "out", "--to", "onnx") == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["student.onnx"]
    assert "random inputs" in capsys.readouterr().out


@pytest.mark.slow
def test_a_file_that_does_not_hold_is_not_written(path, tmp_path, monkeypatch, capsys):
    from keras_distill import deploy

    def wrong(*_, **__):
        return deploy.Verification("float32", 5, 1.0, 0.5, 0.2, problems=("2 answers differ outside ties",))

    monkeypatch.setattr(deploy, "verify", wrong)
    assert export(path, tmp_path / "out", "--to", "onnx") == 1
    assert "Nothing was written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_one_sentence(path, tmp_path, capsys):
    assert export(tmp_path / "none.keras", tmp_path / "out") == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "text.keras").write_text("nonsense")
    assert export(tmp_path / "text.keras", tmp_path / "out") == 2
    assert "must be a .keras file" in capsys.readouterr().err
    assert export(path, tmp_path / "out", "--batch", "0", "--to", "onnx") == 2
    assert "batch must be >= 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_class_that_keras_does_not_know_is_refused_with_the_switch_named(tmp_path, capsys):
    class Stranger(layers.Layer):
        def call(self, inputs):
            return 2.0 * inputs

    keras.Sequential([keras.Input((4,)), Stranger(), layers.Dense(2)]).save(tmp_path / "stranger.keras")
    assert export(tmp_path / "stranger.keras", tmp_path / "out") == 2
    assert "--import" in capsys.readouterr().err


@pytest.mark.tensorflow
def test_a_model_of_texts_is_refused_by_the_layer_that_no_converter_knows(tmp_path, capsys):
    words = layers.TextVectorization(8, output_sequence_length=4, vocabulary=["a", "b"])
    ends = [layers.Embedding(8, 2), layers.Flatten(), layers.Dense(2)]
    keras.Sequential([keras.Input((), dtype="string"), words, *ends]).save(tmp_path / "texts.keras")
    assert export(tmp_path / "texts.keras", tmp_path / "out", "--to", "onnx") == 2
    assert "the layer 'text_vectorization" in capsys.readouterr().err
