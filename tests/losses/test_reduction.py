"""The mean over a batch, by weights and masks, against NumPy."""

import numpy as np
import pytest
from keras import ops

from keras_distill.losses.reduction import WeightedMean, unscaled

VALUES = np.random.default_rng(0).uniform(1.0, 2.0, (3, 4)).astype("float32")
WEIGHTS = np.float32([1.0, 0.0, 2.5])
MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], bool)


def test_values_without_weights_or_mask_have_the_plain_mean():
    np.testing.assert_allclose(WeightedMean()(VALUES, None, None), VALUES.mean(), rtol=1e-6)
    assert WeightedMean().name == "distillation_mean"


@pytest.mark.parametrize("weights", [WEIGHTS, WEIGHTS[:, None], np.repeat(WEIGHTS[:, None], 4, axis=1)])
def test_a_weight_is_that_of_all_values_of_its_item_and_the_divisor_counts_all(weights):
    expected = np.sum(VALUES * WEIGHTS[:, None]) / 12
    np.testing.assert_allclose(WeightedMean()(VALUES, None, ops.convert_to_tensor(weights)), expected, rtol=1e-6)
    alone = WeightedMean()(VALUES[:, 0], None, ops.convert_to_tensor(WEIGHTS))
    np.testing.assert_allclose(alone, np.sum(VALUES[:, 0] * WEIGHTS) / 3, rtol=1e-6)


def test_masked_values_count_in_neither_the_sum_nor_the_divisor():
    np.testing.assert_allclose(
        WeightedMean()(VALUES, ops.convert_to_tensor(MASK), None), VALUES[MASK].mean(), rtol=1e-6
    )
    as_integers = ops.convert_to_tensor(MASK.astype("int32"))
    np.testing.assert_allclose(WeightedMean()(VALUES, as_integers, None), VALUES[MASK].mean(), rtol=1e-6)
    weighed = WeightedMean()(VALUES, ops.convert_to_tensor(MASK), ops.convert_to_tensor(WEIGHTS))
    np.testing.assert_allclose(weighed, np.sum((VALUES * WEIGHTS[:, None])[MASK]) / MASK.sum(), rtol=1e-6)


def test_a_mask_of_another_length_is_not_that_of_the_values():
    np.testing.assert_allclose(
        WeightedMean()(VALUES[:, :2], ops.convert_to_tensor(MASK), None), VALUES[:, :2].mean(), rtol=1e-6
    )


def test_a_scalar_is_its_own_mean_on_one_device():
    value = ops.convert_to_tensor(np.float32(3.25))
    assert float(WeightedMean()(value, ops.convert_to_tensor(MASK), ops.convert_to_tensor(WEIGHTS))) == 3.25
    assert float(unscaled(value)) == 3.25
