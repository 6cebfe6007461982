"""Losses over the tokens of a transformer against independent NumPy in float64, one sequence at a time."""

import keras
import numpy as np
import pytest
from backend import gradient
from losses.in_numpy import kl, numerical_gradient, softmax

from keras_distill.losses import (
    CosineDistance,
    Hint,
    SelfAttentionRelation,
    cosine_distance,
    self_attention_relation,
)

LENGTHS = (5, 3, 1)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def padded(values):
    return np.arange(values.shape[1]) < np.array(LENGTHS)[:, None]


def relation_in_numpy(teacher, student, num_heads):
    """MiniLM v2's equations 4 to 8 of one sequence without padding, written out: `(tokens,)`."""
    width = {"teacher": teacher.reshape(len(teacher), -1), "student": student.reshape(len(student), -1)}
    divergences = []
    for head in range(num_heads):
        relations = []
        for vectors in width.values():
            size = vectors.shape[1] // num_heads
            part = vectors[:, head * size : (head + 1) * size]
            relations.append(softmax(part @ part.T / np.sqrt(size)))
        divergences.append(kl(*relations))
    return np.mean(divergences, axis=0)


def test_cosine_distance_is_one_minus_the_cosine():
    teacher, student = draw(3, 5, 4), draw(3, 5, 4, seed=1)
    cosines = np.sum(teacher * student, -1) / np.linalg.norm(teacher, axis=-1) / np.linalg.norm(student, axis=-1)
    np.testing.assert_allclose(cosine_distance(teacher, student), 1 - cosines, rtol=1e-6)
    np.testing.assert_allclose(cosine_distance(teacher, 7.0 * teacher), 0.0, atol=1e-6)
    np.testing.assert_allclose(cosine_distance(teacher, -teacher), 2.0, rtol=1e-6)
    assert float(cosine_distance([[1.0, 0.0]], [[0.0, 0.0]])[0]) == 1.0


def test_cosine_distance_of_vectors_of_zero_has_a_finite_gradient():
    slope = gradient(lambda student: keras.ops.sum(cosine_distance(np.zeros((1, 3)), student)), np.zeros((1, 3)))
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("shapes", [((2, 4), (2, 4)), ((2, 4), (4, 3)), ((8,), (12,)), ((4, 2), (4,))])
def test_relations_are_the_papers_whatever_the_heads_and_the_width(num_heads, shapes):
    teacher, student = draw(3, 5, *shapes[0]), draw(3, 5, *shapes[1], seed=1)
    expected = [relation_in_numpy(*pair, num_heads) for pair in zip(teacher, student, strict=True)]
    np.testing.assert_allclose(self_attention_relation(teacher, student, num_heads), expected, rtol=1e-5, atol=1e-9)


def test_padding_is_nobody_s_partner():
    teacher, student = draw(3, 5, 2, 4), draw(3, 5, 12, seed=1)
    mask = padded(teacher)
    values = np.asarray(self_attention_relation(teacher, student, 2, mask.astype("int32")))
    for row, length in enumerate(LENGTHS):
        expected = relation_in_numpy(teacher[row, :length], student[row, :length], 2)
        np.testing.assert_allclose(values[row, :length], expected, rtol=1e-5, atol=1e-9)
    assert np.isfinite(np.asarray(self_attention_relation(teacher, student, 2, np.zeros_like(mask)))).all()


def test_the_gradient_of_relations_is_the_slope_and_none_of_it_is_for_padding():
    teacher, student = draw(3, 5, 8), draw(3, 5, 4, seed=1)
    mask = padded(teacher)
    slope = gradient(
        lambda student: keras.ops.sum(self_attention_relation(teacher, student, 2, mask) * mask.astype("float64")),
        student,
    )

    def total(student):
        rows = zip(teacher, student, LENGTHS, strict=True)
        return sum(relation_in_numpy(ours[:size], theirs[:size], 2).sum() for ours, theirs, size in rows)

    np.testing.assert_allclose(slope, numerical_gradient(total, student), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(slope)[~mask], 0.0)


def test_extreme_features_give_finite_relations():
    for scale in (1e-6, 1e2, 1e4):
        values = self_attention_relation(
            np.float32(scale * draw(2, 4, 6)), np.float32(scale * draw(2, 4, 6, seed=1)), 2
        )
        assert np.isfinite(np.asarray(values)).all()


@pytest.mark.parametrize(
    ("teacher", "student", "heads", "message"),
    [
        ((2, 5, 2, 4), (2, 5, 6), 3, "num_relation_heads must divide the teacher's width of 8; got 3"),
        ((2, 5, 6), (2, 5, 2, 4), 3, "num_relation_heads must divide the student's width of 8; got 3"),
        ((2, 5, 6), (2, 4, 6), 3, "the student must have the teacher's 5 tokens; got 4. Give both the same token ids"),
        ((2, 6), (2, 5, 6), 3, r"the teacher's features must have shape \(batch, tokens, width\); got \(2, 6\)"),
    ],
)
def test_relations_of_what_does_not_fit_are_refused(teacher, student, heads, message):
    with pytest.raises(ValueError, match=message):
        SelfAttentionRelation("q", num_relation_heads=heads).validate_outputs(draw(*teacher), draw(*student))


def test_relation_heads_must_be_a_count():
    with pytest.raises(ValueError, match="num_relation_heads must be"):
        SelfAttentionRelation("q", num_relation_heads=0)


@pytest.mark.parametrize(
    "loss",
    [
        Hint("h", mask_layer_name="padding_mask"),
        CosineDistance("h", mask_layer_name="padding_mask"),
        SelfAttentionRelation("h", num_relation_heads=2, mask_layer_name="padding_mask"),
    ],
)
def test_a_mask_that_nobody_looks_up_is_refused(loss):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.mask_layer_name == "padding_mask"
    with pytest.raises(ValueError, match=r"mask_layer_name must be trained by keras_distill.Distiller"):
        loss.compute_loss(draw(2, 3, 4), draw(2, 3, 4))


def test_a_mask_of_other_tokens_is_refused_in_a_sentence():
    loss = SelfAttentionRelation("query", num_relation_heads=1)
    features = np.ones((2, 6, 4), "float32")
    with pytest.raises(ValueError, match=r"the mask must have shape \(batch, 6\), one entry a token; got \(2, 3\)"):
        loss.per_example(features, features, mask=np.ones((2, 3)))
