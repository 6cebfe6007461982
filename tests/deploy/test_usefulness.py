"""Red, amber, green: what a student is worth, by hand and by SciPy."""

import json

import numpy as np
import pytest
from scipy import stats

from keras_distill.deploy.usefulness import class_recalls, usefulness_of
from keras_distill.report.verdict import compare_models

NAMES = ("ant", "bee", "cat", "dog")


def answering(answers):
    return 3.0 * np.eye(len(NAMES))[answers]


def wrong_at(labels, positions):
    answers = labels.copy()
    answers[positions] = (answers[positions] + 1) % len(NAMES)
    return answering(answers)


LABELS = np.tile(np.arange(4), 100)


def test_a_good_student_is_green_and_its_figures_are_those_of_hand_and_scipy():
    teacher, student = wrong_at(LABELS, np.arange(8)), wrong_at(LABELS, np.arange(20))
    found = usefulness_of(student, LABELS, NAMES, teacher_logits=teacher)
    assert (found.colour, found.reasons) == ("green", ())
    assert (found.accuracy, found.teacher_accuracy) == (pytest.approx(0.95), pytest.approx(0.98))
    assert found.drop_from_teacher == pytest.approx(0.03)
    assert found.drop_interval[0] > 0.0
    assert found.drop_interval[0] < 0.03 < found.drop_interval[1]
    wilson = stats.binomtest(380, 400).proportion_ci(method="wilson")
    assert found.accuracy_interval == pytest.approx((wilson.low, wilson.high))
    assert found.chance == pytest.approx(0.25)
    # Five of each class are wrong.
    assert (found.lowest_recall, found.lowest_class) == (0.95, "ant")
    assert json.loads(json.dumps(found.to_json()))["drop_interval"] == list(found.drop_interval)
    assert "95.00%" in str(found)
    assert "-3.00 points" in str(found)


@pytest.mark.parametrize(
    "answers",
    [np.zeros(400, int), (LABELS + 1) % 4, np.random.default_rng(0).integers(0, 4, 400)],
    ids=["always one class", "always wrong", "at random"],
)
def test_near_chance_is_red(answers):
    found = usefulness_of(answering(answers), LABELS, NAMES)
    assert found.colour == "red"
    assert "no better than chance" in found.reasons[0]


def test_the_most_frequent_class_alone_is_red_and_a_rare_one_found_is_not():
    labels = np.repeat([0, 1], [380, 20])
    always = np.zeros(400, int)
    assert usefulness_of(answering(always), labels, NAMES).colour == "red"
    finds = always.copy()
    # Half of the rare ones, at the price of as many false alarms: no more right answers than by never looking.
    finds[380:390], finds[:10] = 1, 1
    assert np.mean(finds == labels) == np.mean(always == labels)
    found = usefulness_of(answering(finds), labels, NAMES)
    assert found.colour == "green"
    assert found.chance == pytest.approx(0.95**2 + 0.05**2)


def test_a_tenth_of_what_the_teacher_knows_may_be_lost_and_no_more():
    teacher = answering(LABELS)
    # Beyond luck the teacher has 0.75; nine tenths of it are 0.675, with luck 0.925, or 30 errors.
    at_the_limit = usefulness_of(wrong_at(LABELS, np.arange(28)), LABELS, NAMES, teacher_logits=teacher)
    beyond = usefulness_of(wrong_at(LABELS, np.arange(32)), LABELS, NAMES, teacher_logits=teacher)
    assert (at_the_limit.colour, beyond.colour) == ("green", "amber")
    # (0.92 - 0.25) / 0.75
    assert "keeps 89% of what its teacher knows beyond luck: 92.00% right against 100.00%" in beyond.reasons[0]


def test_amber_names_a_teacher_near_chance_a_better_twin_and_a_class_never_recognised():
    student = wrong_at(LABELS, np.arange(40))
    lost = answering(np.where(LABELS == 2, 0, LABELS))
    of_teacher = usefulness_of(student, LABELS, NAMES, teacher_logits=answering(0 * LABELS))
    of_twin = usefulness_of(student, LABELS, NAMES, baseline_logits=wrong_at(LABELS, np.arange(4)))
    of_class = usefulness_of(lost, LABELS, NAMES)
    assert [found.colour for found in (of_teacher, of_twin, of_class)] == ["amber"] * 3
    assert "The teacher is no better than chance: it is right on 25.00%" in of_teacher.reasons[0]
    assert "labels alone is better. WORSE: 10.00 % errors against 1.00 %, +9.00 points" in of_twin.reasons[0]
    assert of_class.reasons == ("Never recognised: 'cat' (of 100 examples).",)


def test_the_verdict_of_its_making_counts_where_no_twin_is_there():
    student, twin = wrong_at(LABELS, np.arange(40)), wrong_at(LABELS, np.arange(4))
    worse, better = compare_models(LABELS, student, twin), compare_models(LABELS, twin, student)
    assert usefulness_of(student, LABELS, NAMES, verdict=worse).colour == "amber"
    assert usefulness_of(student, LABELS, NAMES, verdict=better).colour == "green"
    assert usefulness_of(student, LABELS, NAMES, verdict=worse, baseline_logits=student).colour == "green"


def test_a_handful_of_examples_is_amber_and_not_red():
    labels = np.array([0, 1, 2])
    found = usefulness_of(answering(labels), labels, NAMES)
    assert found.colour == "amber"
    assert "3 test examples are too few" in found.reasons[0]


def test_recalls_by_class_are_a_loops():
    generator = np.random.default_rng(1)
    labels, answers = generator.integers(0, 3, 200), generator.integers(0, 5, 200)
    found = class_recalls(answers, labels, 5)
    np.testing.assert_allclose(found[:3], [np.mean(answers[labels == index] == index) for index in range(3)])
    assert np.isnan(found[3:]).all()
