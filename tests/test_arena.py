"""What `benchmarks.arena` concludes of error rates: ranks and significance, against cases whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import arena
from benchmarks.methods import methods

FIRST = methods()[0].name


def rows(rates):
    """Rows of the arena from `{method: {task: rates}}`."""
    return [
        {"task": task, "method": method, "default": list(found), "tuned": list(found), "teacher": 0.0}
        for method, tasks in rates.items()
        for task, found in tasks.items()
    ]


def test_ranks_are_means_over_tasks_and_ties_share_theirs():
    given = rows({"a": {"x": [0.1, 0.1], "y": [0.3, 0.2]}, "b": {"x": [0.2, 0.1], "y": [0.1, 0.1]}})
    found = arena.ranked(given, "default")
    assert found["a"][0] == pytest.approx((1 + 1.5 + 2 + 2) / 4)
    assert found["b"][0] == pytest.approx((2 + 1.5 + 1 + 1) / 4)
    assert found["a"][1] <= found["a"][0] <= found["a"][2]


def test_a_method_that_a_task_lacks_has_no_rank():
    given = rows({"a": {"x": [0.1], "y": [0.1]}, "maps": {"x": [0.0]}})
    assert set(arena.ranked(given, "tuned")) == {"a"}


def test_a_difference_is_significant_as_wilcoxon_and_holm_say():
    generator = np.random.default_rng(0)
    base = {task: generator.uniform(0.1, 0.2, 5) for task in "xyz"}
    rates = {
        FIRST: base,
        "better": {task: values - 0.02 for task, values in base.items()},
        "worse": {task: values + 0.05 * generator.random(5) for task, values in base.items()},
        "even": {task: values + 0.01 * np.array([1, -1, 2, -2, 0.5]) for task, values in base.items()},
    }
    found = arena.against_soft_targets(rows(rates), "default")
    assert -arena.SIGNIFICANT < found["better"] < 0 < found["worse"] < arena.SIGNIFICANT
    assert abs(found["even"]) > arena.SIGNIFICANT
    differences = np.concatenate([(rates["better"][task] - base[task]) / base[task].mean() for task in "xyz"])
    smallest = stats.wilcoxon(differences).pvalue
    assert abs(found["better"]) in (pytest.approx(3 * smallest), pytest.approx(2 * smallest))
    text = arena.page_of([*rows(rates), *rows({arena.LABELS_ALONE: base})])
    assert "fewer errors than plain soft targets: better; more: worse" in text
