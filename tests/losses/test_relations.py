"""Relations between items against loops over pairs and triples in float64."""

import itertools

import numpy as np
import pytest
from backend import gradient
from keras import ops
from scipy.spatial.distance import cdist

from keras_distill.losses import RelationalKD, SimilarityPreserving, angle_relation, distance_relation
from keras_distill.losses import similarity_preserving as similarity
from keras_distill.losses.relations import pairwise_distances

TEACHER = np.random.default_rng(0).normal(size=(6, 4))
STUDENT = np.random.default_rng(1).normal(size=(6, 3))
WEIGHTS = np.array([1.0, 0.0, 2.0, 1.0, 0.0, 0.5])
KEPT = WEIGHTS > 0


def huber(difference):
    size = abs(difference)
    return 0.5 * size**2 if size <= 1 else size - 0.5


def numpy_distances(rows):
    distances = cdist(rows, rows)
    return distances / distances[~np.eye(len(rows), dtype=bool)].mean()


def numpy_distance_relation(teacher, student):
    theirs, ours = numpy_distances(teacher), numpy_distances(student)
    return np.mean([huber(ours[i, j] - theirs[i, j]) for i, j in itertools.permutations(range(len(teacher)), 2)])


def cosine(rows, i, j, k):
    first, second = rows[i] - rows[j], rows[k] - rows[j]
    return first @ second / np.linalg.norm(first) / np.linalg.norm(second)


def numpy_angle_relation(teacher, student):
    triples = itertools.permutations(range(len(teacher)), 3)
    return np.mean([huber(cosine(student, *triple) - cosine(teacher, *triple)) for triple in triples])


def numpy_similarity(teacher, student):
    grams = [rows.reshape(len(rows), -1) @ rows.reshape(len(rows), -1).T for rows in (teacher, student)]
    theirs, ours = (gram / np.linalg.norm(gram, axis=1, keepdims=True) for gram in grams)
    return np.linalg.norm(theirs - ours) ** 2 / len(teacher) ** 2


RELATIONS = [
    pytest.param(distance_relation, numpy_distance_relation, id="distance"),
    pytest.param(angle_relation, numpy_angle_relation, id="angle"),
    pytest.param(similarity, numpy_similarity, id="similarity"),
]


@pytest.mark.parametrize(("relation", "reference"), RELATIONS)
def test_mean_over_items_is_the_loops_value(relation, reference):
    np.testing.assert_allclose(np.mean(relation(TEACHER, STUDENT)), reference(TEACHER, STUDENT), rtol=1e-6)


@pytest.mark.parametrize(("relation", "reference"), RELATIONS)
def test_gradient_is_that_of_the_loops(relation, reference):
    found = gradient(lambda student: ops.mean(relation(TEACHER, student)), STUDENT)
    for place in ((0, 0), (3, 2), (5, 1)):
        step = np.zeros_like(STUDENT)
        step[place] = 1e-5
        expected = (reference(TEACHER, STUDENT + step) - reference(TEACHER, STUDENT - step)) / 2e-5
        np.testing.assert_allclose(found[place], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("relation", "reference"), RELATIONS)
def test_items_of_weight_zero_are_nobodys_partner(relation, reference):
    ones = KEPT.astype("float64")
    found = np.asarray(relation(TEACHER, STUDENT, ones))[KEPT].mean()
    np.testing.assert_allclose(found, reference(TEACHER[KEPT], STUDENT[KEPT]), rtol=1e-6)


@pytest.mark.parametrize(("relation", "reference"), [RELATIONS[0], RELATIONS[2]])
def test_item_of_weight_two_counts_as_two(relation, reference):
    """In the mean over the pairs of different items: a copy of an item is no partner of its own."""
    weights = np.array([2.0, 1.0, 1.0])
    found = np.sum(weights * np.asarray(relation(TEACHER[:3], STUDENT[:3], weights)))
    if relation is similarity:
        twice = [0, 0, 1, 2]
        np.testing.assert_allclose(found / 4, reference(TEACHER[twice], STUDENT[twice]), rtol=1e-6)
        return
    theirs, ours = cdist(TEACHER[:3], TEACHER[:3]), cdist(STUDENT[:3], STUDENT[:3])
    pairs = np.outer(weights, weights) * (1 - np.eye(3))
    theirs, ours = (d / (np.sum(pairs * d) / np.sum(pairs)) for d in (theirs, ours))
    losses = 0.5 * (ours - theirs) ** 2
    assert np.abs(ours - theirs).max() <= 1
    partners = pairs / weights[:, None]
    expected = np.sum(weights * np.sum(partners * losses, 1) / np.sum(partners, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("relation", "reference"), RELATIONS)
def test_turned_and_stretched_features_relate_the_same(relation, reference):
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0]
    np.testing.assert_allclose(relation(TEACHER, 3.0 * TEACHER @ turn), 0.0, atol=1e-9)


@pytest.mark.parametrize(("relation", "reference"), RELATIONS)
@pytest.mark.parametrize("student", [np.zeros((6, 3)), np.ones((6, 3)), np.repeat(STUDENT[:2], 3, axis=0)])
def test_equal_items_have_finite_losses_and_gradients(relation, reference, student):
    student = student.astype("float32")
    assert np.isfinite(relation(TEACHER, student)).all()
    assert np.isfinite(gradient(lambda student: relation(TEACHER, student), student)).all()


def test_far_from_the_origin_distances_keep_their_digits():
    rows = (STUDENT + 1000.0).astype("float32")
    np.testing.assert_allclose(pairwise_distances(rows), numpy_distances(rows.astype("float64")), atol=1e-3)


def test_far_from_the_origin_angles_keep_their_digits():
    far = (STUDENT + 1000.0).astype("float32")
    found = np.mean(angle_relation(TEACHER.astype("float32"), far))
    np.testing.assert_allclose(found, numpy_angle_relation(TEACHER, far.astype("float64")), atol=1e-3)


def test_a_single_item_relates_to_nobody():
    loss = RelationalKD("layer")
    np.testing.assert_array_equal(loss.per_example(TEACHER[:1], STUDENT[:1]), [0.0])


def test_relational_loss_is_the_weighted_sum_of_distances_and_angles():
    expected = 25.0 * numpy_distance_relation(TEACHER, STUDENT) + 50.0 * numpy_angle_relation(TEACHER, STUDENT)
    np.testing.assert_allclose(RelationalKD("layer").compute_loss(TEACHER, STUDENT), expected, rtol=1e-6)
    only = RelationalKD("layer", distance_weight=0.0, angle_weight=2.0).compute_loss(TEACHER, STUDENT)
    np.testing.assert_allclose(only, 2.0 * numpy_angle_relation(TEACHER, STUDENT), rtol=1e-6)
    only = RelationalKD("layer", distance_weight=3.0, angle_weight=0.0).compute_loss(TEACHER, STUDENT)
    np.testing.assert_allclose(only, 3.0 * numpy_distance_relation(TEACHER, STUDENT), rtol=1e-6)


def test_maps_are_compared_as_rows():
    teacher, student = TEACHER.reshape(6, 2, 2, 1), STUDENT.reshape(6, 3, 1)
    np.testing.assert_allclose(
        SimilarityPreserving("layer").compute_loss(teacher, student), numpy_similarity(TEACHER, STUDENT), rtol=1e-6
    )


def test_a_sequence_counts_by_the_mean_of_its_tokens_weights():
    tokens = np.stack([WEIGHTS, WEIGHTS], axis=1)
    found = RelationalKD("layer").per_example(TEACHER, STUDENT, item_weights=ops.convert_to_tensor(tokens))
    expected = RelationalKD("layer").per_example(TEACHER, STUDENT, item_weights=ops.convert_to_tensor(WEIGHTS))
    np.testing.assert_allclose(found, expected)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="distance_weight and angle_weight must be >= 0"):
        RelationalKD("layer", distance_weight=-1.0)


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 1e-2), ("float64", 1e-6)])
def test_near_duplicates_are_as_far_apart_as_they_are(dtype, gap):
    rows = np.random.default_rng(0).normal(size=(5, 4))
    rows[1] = rows[0] + gap * np.array([1.0, 0.0, 0.0, 0.0])
    found = np.asarray(pairwise_distances(ops.convert_to_tensor(rows, dtype=dtype)))
    np.testing.assert_allclose(found, numpy_distances(rows), rtol=1e-3)
