"""Transformers of KerasHub without some of their blocks: what is left is the teacher's, weight for weight."""

import json

import keras
import numpy as np
import pytest

from keras_distill.cli import main
from keras_distill.pruning import prune, residual_blocks

hub = pytest.importorskip("keras_hub")
models = hub.models

SIZES = {"vocabulary_size": 30, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16, "max_sequence_length": 10}


def backbone(kind, num_layers):
    own = {"Gemma": {"num_query_heads": 2, "num_key_value_heads": 1, "head_dim": 4}}.get(kind, {})
    sizes = {name: value for name, value in SIZES.items() if not own or name in ("vocabulary_size", "hidden_dim")}
    sizes["intermediate_dim"] = 16
    return getattr(models, f"{kind}Backbone")(num_layers=num_layers, **sizes, **own)


def classifier(kind, num_layers=4):
    return getattr(models, f"{kind}TextClassifier")(backbone(kind, num_layers), num_classes=3, dropout=0.0)


def language_model(kind, num_layers=4):
    return getattr(models, f"{kind}CausalLM")(backbone=backbone(kind, num_layers))


def inputs_of(model):
    ids = np.random.default_rng(0).integers(1, 30, (3, 7)).astype("int32")
    every = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": (np.arange(7) < [[7], [5], [2]]).astype("int32")}
    return {tensor.name: every[tensor.name] for tensor in model.inputs}


@pytest.mark.parametrize(
    ("build", "kind", "left"),
    [
        (classifier, "Bert", "transformer_layer_{}"),
        (classifier, "DistilBert", "transformer_layer_{}"),
        (classifier, "Roberta", "transformer_layer_{}"),
        (language_model, "GPT2", "transformer_layer_{}"),
        (language_model, "Gemma", "decoder_block_{}"),
    ],
)
def test_every_second_block_goes_and_the_rest_is_the_teachers_own(build, kind, left):
    teacher = build(kind)
    before = teacher.get_weights()
    student = prune(teacher, drop_blocks="every second")
    inner, whole = (
        next(each for each in model.layers if isinstance(each, keras.Model)) for model in (student, teacher)
    )
    numbers = [0, 2]
    kept = [layer.name for layer in inner.layers if layer.name in {left.format(number) for number in range(4)}]
    assert kept == [left.format(number) for number in numbers]
    for name in kept:
        for ours, theirs in zip(inner.get_layer(name).weights, whole.get_layer(name).weights, strict=True):
            assert ours is not theirs
            np.testing.assert_array_equal(ours, theirs)
    # A model of half the blocks that KerasHub itself builds takes the weights, and gives the same.
    expected, x = build(kind, 2), inputs_of(teacher)
    expected.set_weights(student.get_weights())
    np.testing.assert_allclose(student(x), expected(x), rtol=1e-6, atol=1e-7)
    for was, is_now in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(was, is_now)


def test_blocks_that_share_one_layer_are_none():
    albert = models.AlbertBackbone(num_layers=4, embedding_dim=4, num_inner_repetitions=1, **SIZES)
    assert not residual_blocks(albert)


@pytest.mark.tensorflow
@pytest.mark.slow
def test_the_command_cuts_a_classifier_of_named_inputs(tmp_path):
    teacher = classifier("Bert")
    teacher.save(tmp_path / "teacher.keras")
    command = ["prune", str(tmp_path / "teacher.keras"), "--drop-every-second-block", "--import", "keras_hub"]
    assert main([*command, "--out", str(tmp_path / "student.keras"), "--quiet"]) == 0
    student = keras.models.load_model(tmp_path / "student.keras")
    expected, x = prune(teacher, drop_blocks="every second"), inputs_of(teacher)
    np.testing.assert_array_equal(student(x), expected(x))
    costs = json.loads((tmp_path / "student.json").read_text())["costs"]
    assert costs["student"]["parameters"] == expected.count_params()
