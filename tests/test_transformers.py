"""Transformers of KerasHub, in tiny configurations, taught by hidden states and attention, with padding."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import losses
from keras_distill.models.forward_pass import forward_pass

hub = pytest.importorskip("keras_hub")

NUM_CLASSES, LENGTH, VOCABULARY = 3, 8, 22


def classifier(num_layers, hidden_dim=8, num_heads=2, seed=0):
    keras.utils.set_random_seed(seed)
    backbone = hub.models.BertBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        intermediate_dim=2 * hidden_dim,
        max_sequence_length=LENGTH,
        dropout=0.0,
        name="bert_backbone",
    )
    model = hub.models.BertTextClassifier(backbone, num_classes=NUM_CLASSES, dropout=0.0)
    for variable in model.trainable_variables:
        # KerasHub begins so near to zero that every sequence looks the same.
        variable.assign(variable.value * (10.0 if "embedding" in variable.path else 3.0))
    return model


def sentences(count, seed=0):
    """Sequences of 3 to 8 ids between 1 and 21, and which third of the vocabulary most of their tokens are of."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, LENGTH + 1, count)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype("int32")
    favourite = generator.integers(0, NUM_CLASSES, (count, 1))
    third = np.where(generator.random((count, LENGTH)) < 0.8, favourite, generator.integers(0, 3, (count, LENGTH)))
    ids = (1 + 7 * third + generator.integers(0, 7, (count, LENGTH))).astype("int32")
    return {"token_ids": ids * mask, "segment_ids": 0 * ids, "padding_mask": mask}, favourite[:, 0]


def block(number, path=""):
    return f"bert_backbone/transformer_layer_{number}{path}"


LOSSES = {
    "hint": lambda: losses.Hint(block(3), block(1), mask_layer_name="padding_mask"),
    "cosine": lambda: losses.CosineDistance(block(3), block(1), mask_layer_name="padding_mask"),
    **{
        f"relation of {part}": lambda part=part: losses.SelfAttentionRelation(
            block(3, f"/self_attention_layer/{part}"),
            block(1, f"/self_attention_layer/{part}"),
            num_relation_heads=3,
            mask_layer_name="padding_mask",
        )
        for part in ("query", "key", "value")
    },
}


def distillation_loss(distiller, x, **options):
    return distiller.fit(x, batch_size=len(x["token_ids"]), verbose=0, **options).history["distillation_loss"][0]


def still(teacher, student, loss):
    """A distiller that reports and does not train."""
    distiller = kd.Distiller(teacher, student, loss, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0), jit_compile=False, run_eagerly=True)
    return distiller


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_with_padding_is_that_of_the_sequences_without(name):
    """A teacher of three heads and width 12, a student of two and width 6; the mean is over all real tokens."""
    teacher, student = classifier(4, 12, 3), classifier(2, 6, 2, seed=1)
    distiller = still(teacher, student, LOSSES[name]())
    x, _ = sentences(3)
    lengths = x["padding_mask"].sum(1)
    alone = [
        distillation_loss(distiller, {key: values[row : row + 1, :length] for key, values in x.items()})
        for row, length in enumerate(lengths)
    ]
    expected = np.average(alone, weights=lengths)
    assert min(alone) > 1e-4
    np.testing.assert_allclose(distillation_loss(distiller, x), expected, rtol=1e-6, atol=1e-6)
    # And what stands at the padding is no matter.
    noisy = x | {"token_ids": np.where(x["padding_mask"] == 1, x["token_ids"], 5)}
    np.testing.assert_allclose(distillation_loss(distiller, noisy), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_weight_for_each_token_weighs_the_hint_beside_the_mask():
    teacher, student = classifier(4), classifier(2, seed=1)
    distiller = still(teacher, student, losses.Hint(block(3), block(1), mask_layer_name="padding_mask"))
    x, _ = sentences(6)
    weights = np.random.default_rng(1).uniform(size=(6, LENGTH)).astype("float32")
    theirs, ours = (
        np.asarray(forward_pass(model, layer_names=[block(number)])(x, False).features[block(number)], "float64")
        for model, number in ((teacher, 3), (student, 1))
    )
    mask = x["padding_mask"]
    expected = np.sum(mask * weights * 0.5 * np.mean((theirs - ours) ** 2, -1)) / mask.sum()
    np.testing.assert_allclose(distillation_loss(distiller, x, sample_weight=weights), expected, rtol=1e-5)


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_queries_keys_and_values_are_what_their_layers_give(part):
    model, (x, _) = classifier(2), sentences(4)
    path = block(1, f"/self_attention_layer/{part}")
    before = model(x)
    outputs = forward_pass(model, layer_names=[path, block(0), block(1)])(x, False)
    layer = model.backbone.get_layer("transformer_layer_1")
    (dense,) = (each for each in layer._flatten_layers() if each.name == part)
    expected = np.einsum("btd,dhs->bths", outputs.features[block(0)], dense.kernel) + dense.bias
    np.testing.assert_allclose(outputs.features[path], expected, rtol=1e-5, atol=1e-6)
    # The layer that is watched gives what it always gave, and the model is as it was.
    after = layer(outputs.features[block(0)], padding_mask=x["padding_mask"])
    np.testing.assert_allclose(outputs.features[block(1)], after, rtol=1e-6)
    np.testing.assert_array_equal(outputs.output, before)
    np.testing.assert_array_equal(model(x), before)
    assert "call" not in vars(dense) | vars(layer)


def test_the_layers_inside_are_named_where_one_is_not_there():
    teacher, student = classifier(2), classifier(2)
    for path, message in (
        ("/self_attention_layer/querry", "none: it has query, key, value.*Did you mean query"),
        ("/attention/query", "'attention' must name a layer inside 'transformer_layer_1' .TransformerEncoder.;"),
    ):
        loss = losses.SelfAttentionRelation(block(1, path), num_relation_heads=2)
        with pytest.raises(ValueError, match=message):
            kd.Distiller(teacher, student, loss)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_mask_of_other_places_is_refused():
    loss = losses.Hint(block(1), mask_layer_name=block(0))
    distiller = still(classifier(2), classifier(2, seed=1), loss)
    with pytest.raises(ValueError, match=r"must have one entry for each of the .* places that count; got"):
        distillation_loss(distiller, sentences(4)[0])


# On JAX KerasHub's own `fit` wants another package.
@pytest.mark.tensorflow
def test_a_student_of_half_the_blocks_learns_from_hidden_states_attention_and_soft_targets(tmp_path):
    x, y = sentences(400)
    test_x, test_y = sentences(200, seed=1)
    teacher = classifier(4, 16)
    teacher.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    teacher.fit(x, y, epochs=6, batch_size=50, shuffle=False, verbose=0)
    student = classifier(2, 8, seed=1)
    relations = [LOSSES[f"relation of {part}"]() for part in ("query", "key", "value")]
    for relation in relations:
        relation.num_relation_heads = 4
    terms = [losses.SoftTargets(2.0), LOSSES["hint"](), LOSSES["cosine"](), *relations]
    distiller = kd.Distiller(teacher, student, terms, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0], student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    history = distiller.fit(x, epochs=10, batch_size=50, verbose=0).history["distillation_loss"]
    right = {
        name: np.mean(np.argmax(model.predict(test_x, verbose=0), -1) == test_y)
        for name, model in {"teacher": teacher, "student": student}.items()
    }
    assert right["teacher"] > 0.9
    assert right["student"] > right["teacher"] - 0.05
    assert history[-1] < 0.6 * history[0]
    # It is a model of KerasHub as before, with nothing of the distillation in it.
    student.save(tmp_path / "student.keras")
    again = keras.saving.load_model(tmp_path / "student.keras", compile=False)
    np.testing.assert_allclose(
        again.predict(test_x, verbose=0), student.predict(test_x, verbose=0), rtol=1e-5, atol=1e-6
    )
