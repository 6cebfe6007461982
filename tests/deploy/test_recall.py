"""The recall of each class: the binomial test is SciPy's, and a class counts by its examples."""

import numpy as np
import pytest
from scipy import stats

from keras_distill.deploy.recall import binomial_tail, fallen_recalls


@pytest.mark.parametrize("probability", [1e-4, 0.02, 0.5, 0.97])
@pytest.mark.parametrize("num_trials", [1, 2, 7, 50, 3000, 10**6])
def test_the_tail_is_scipy_s(num_trials, probability):
    mean = num_trials * probability
    deviation = np.sqrt(mean * (1 - probability))
    for at_least in {0, 1, int(mean), int(mean + deviation), int(mean + 6 * deviation) + 1, num_trials}:
        expected = stats.binom.sf(at_least - 1, num_trials, probability)
        assert binomial_tail(at_least, num_trials, probability) == pytest.approx(expected, rel=1e-6, abs=1e-300)
    assert binomial_tail(num_trials + 1, num_trials, probability) == 0.0
    assert binomial_tail(1, num_trials, 1.0) == 1.0


def test_recalls_are_counted_by_hand_and_the_deepest_fall_is_first():
    classes = np.array([0, 0, 0, 0, 1, 1, 2, -1])
    before = np.array([0, 0, 0, 1, 1, 1, 0, 0])
    after = np.array([0, 1, 0, 0, 0, 1, 2, 1])
    falls = fallen_recalls(classes, before, after, 4)
    # Class 0 loses one and gains one, class 2 only gains, class 3 has no example, and −1 is no class.
    assert [(fall.index, fall.num_examples, fall.before, fall.after) for fall in falls] == [(1, 2, 1.0, 0.5)]
    assert not falls[0].is_lost


def lost(num_examples, num_lost, num_others=1, **options):
    """Whether a class is lost of whose examples so many are; the other classes keep theirs."""
    classes = np.repeat(np.arange(num_others + 1), num_examples)
    after = classes.copy()
    after[:num_lost] = 1
    falls = fallen_recalls(classes, classes, after, num_others + 1, **options)
    return bool(falls) and falls[0].is_lost


@pytest.mark.parametrize(("num_examples", "fewest"), [(2, 2), (3, 2), (20, 4), (200, 11), (1000, 33)])
def test_the_fewest_that_count_of_two_classes(num_examples, fewest):
    assert lost(num_examples, fewest)
    assert not lost(num_examples, fewest - 1)
    expected = [count for count in range(num_examples + 1) if stats.binom.sf(count - 1, num_examples, 0.02) < 0.01 / 2]
    assert expected[0] == fewest


def test_one_example_is_never_enough():
    assert not lost(1, 1)


def test_the_more_classes_are_looked_at_the_less_is_one_fall():
    assert lost(20, 4, num_others=1)
    assert not lost(20, 4, num_others=30)
    assert lost(20, 6, num_others=30)


def test_who_allows_more_may_lose_more():
    assert lost(100, 12)
    assert not lost(100, 12, rate=0.1)


def test_a_class_that_loses_as_the_others_do_is_not_lost():
    generator = np.random.default_rng(0)
    classes = np.repeat(np.arange(5), 200)
    after = np.where(generator.random(1000) < 0.1, (classes + 1) % 5, classes)
    assert not any(fall.is_lost for fall in fallen_recalls(classes, classes, after, 5))
    after[:60] = 1
    assert [fall.index for fall in fallen_recalls(classes, classes, after, 5) if fall.is_lost] == [0]


def test_the_pixels_of_one_image_are_one_example():
    # A hundred pixels of class 1 in each image, and twenty lost: of one image, or one in five of each of ten.
    classes = np.zeros((10, 400), int)
    classes[:, :100] = 1
    item_of = np.repeat(np.arange(10), 400)
    in_one, in_all = classes.copy(), classes.copy()
    in_one[0, :100] = 0
    in_all[:, :60] = 0
    for after, is_lost, recall in ((in_one, False, 0.9), (in_all, True, 0.4)):
        flat = classes.ravel()
        (fall,) = fallen_recalls(flat, flat, after.ravel(), 2, item_of=item_of)
        assert (fall.index, fall.num_examples, fall.is_lost) == (1, pytest.approx(10), is_lost)
        assert fall.after == pytest.approx(recall)
