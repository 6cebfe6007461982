"""Confusable classes against NumPy's own covariance and against groups that were planted."""

import numpy as np
import pytest
from scipy.special import softmax

from keras_distill.specialists import cluster_classes, heat_map, table


def planted(groups, num_items=600, seed=0):
    """Logits in which the classes of a group rise and fall together."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=(num_items, max(groups) + 1)) * 3
    return shared[:, groups] + generator.normal(size=(num_items, len(groups)))


GROUPS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


@pytest.mark.parametrize("method", ["correlation", "covariance"])
def test_planted_groups_are_found(method):
    clusters = cluster_classes(planted(GROUPS), 3, method=method)
    assert sorted(map(sorted, clusters.class_sets)) == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert clusters.uncovered == []
    np.testing.assert_array_equal(clusters.coverage, np.ones(10))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_similarity_is_numpys_correlation_of_the_softened_predictions_without_its_diagonal(temperature):
    logits = planted(GROUPS)
    expected = np.corrcoef(softmax(logits / temperature, axis=1), rowvar=False)
    np.fill_diagonal(expected, 0.0)
    clusters = cluster_classes(np.array_split(logits, 7), 3, temperature=temperature)
    np.testing.assert_allclose(clusters.similarity, expected, atol=1e-9)


def test_covariance_is_numpys():
    logits = planted(GROUPS)
    expected = np.cov(softmax(logits / 2, axis=1), rowvar=False, bias=True)
    np.fill_diagonal(expected, 0.0)
    found = cluster_classes(iter(np.array_split(logits, 7)), 3, method="covariance").similarity
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_rare_class_is_grouped_by_correlation_where_covariance_sees_nothing():
    logits = planted(GROUPS)
    logits[:, 9] -= 6.0
    assert any({0, 3, 6, 9} == set(found) for found in cluster_classes(logits, 3).class_sets)


def test_groups_of_a_given_size_may_overlap_and_leave_classes_uncovered():
    clusters = cluster_classes(planted(GROUPS), 3, size=3)
    assert [len(class_set) for class_set in clusters.class_sets] == [3, 3, 3]
    assert len(clusters.uncovered) == 1
    assert clusters.uncovered[0] in {0, 3, 6, 9}
    wide = cluster_classes(planted(GROUPS), 3, size=6)
    assert wide.coverage.sum() == 18
    assert wide.coverage.max() > 1


def test_class_that_is_never_predicted_does_no_harm():
    logits = planted(GROUPS)
    logits[:, 4] = -1e4
    clusters = cluster_classes(logits, 3)
    assert np.isfinite(clusters.similarity).all()
    assert sum(len(class_set) for class_set in clusters.class_sets) == 10


def test_same_seed_finds_the_same():
    logits = np.random.default_rng(0).normal(size=(200, 12))
    assert cluster_classes(logits, 4, seed=3).class_sets == cluster_classes(logits, 4, seed=3).class_sets


def test_table_names_every_class_once_and_the_heat_map_is_an_image(tmp_path):
    clusters = cluster_classes(planted(GROUPS), 3, size=3)
    names = [f"class {label}" for label in range(10)]
    shown = table(clusters, names)
    cells = [cell for column in shown.columns for cell in column.cells]
    assert f"class {clusters.uncovered[0]}" in cells
    assert shown.row_count == 4
    heat_map(clusters, names, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("predictions", "arguments", "words"),
    [
        ([np.zeros((5, 3)), np.zeros((5, 4))], {"num_clusters": 2}, "always the same"),
        ([np.full((5, 3), np.nan)], {"num_clusters": 2}, "finite"),
        ([], {"num_clusters": 2}, "at least 2 items"),
        ([np.zeros((5, 3))], {"num_clusters": 4}, "<= 3"),
        ([np.zeros((5, 3))], {"num_clusters": 1}, "no size"),
        ([np.zeros((5, 3))], {"num_clusters": 2, "size": 3}, "size must be < 3"),
        ([np.zeros((5, 3))], {"num_clusters": 2, "method": "kmeans"}, "'correlation'"),
        ([np.zeros((5, 3))], {"num_clusters": 2, "temperature": 0}, "temperature must be > 0"),
    ],
)
def test_bad_arguments_are_refused(predictions, arguments, words):
    with pytest.raises(ValueError, match=words):
        cluster_classes(predictions, **arguments)
