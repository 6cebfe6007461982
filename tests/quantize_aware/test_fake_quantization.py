import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill.quantize_aware import FakeQuantize, fake_quantize, fake_quantize_kernel


def rounded_by_hand(values, minimum, maximum):
    scale = (maximum - minimum) / 255
    zero_point = np.floor(-minimum / scale + 0.5)
    return scale * (np.clip(np.floor(values / scale + zero_point + 0.5), 0, 255) - zero_point)


@pytest.mark.parametrize(("minimum", "maximum"), [(0.0, 2.55), (-1.0, 2.0), (-6.3, 0.0)])
def test_activations_are_rounded_as_float64_arithmetic_says(minimum, maximum):
    values = np.random.default_rng(0).uniform(-7, 7, 1000)
    expected = rounded_by_hand(values, minimum, maximum)
    actual = fake_quantize(values.astype("float32"), minimum, maximum).numpy()
    # float32 may round a value beside a half the other way: one step, hardly ever.
    is_equal = np.abs(actual - expected) < 1e-5
    assert is_equal.mean() > 0.995
    assert np.abs(actual - expected).max() < (maximum - minimum) / 255 + 1e-5


def test_zero_is_exact_in_every_range():
    for minimum in (-0.1, -1.0, -2.99):
        assert float(fake_quantize(0.0, minimum, 3.0)) == 0.0


def test_gradient_passes_inside_the_range_and_reaches_the_end_that_clips():
    values = tf.constant([-2.0, 0.4, 0.9, 3.0, 5.0])
    low, high = tf.constant(-1.0), tf.constant(1.0)
    with tf.GradientTape() as tape:
        tape.watch([values, low, high])
        total = tf.reduce_sum(fake_quantize(values, low, high) * [1.0, 2.0, 3.0, 4.0, 5.0])
    of_values, of_low, of_high = tape.gradient(total, [values, low, high])
    np.testing.assert_array_equal(of_values, [0.0, 2.0, 3.0, 0.0, 0.0])
    assert float(of_low) == 1.0
    assert float(of_high) == 9.0


def test_each_channel_of_a_kernel_takes_255_values_of_its_own():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype("float32") * [1, 10, 0.1, 3, 1e-3]
    scale = np.abs(kernel).max((0, 1, 2)) / 127
    expected = np.round(kernel / scale) * scale
    np.testing.assert_allclose(fake_quantize_kernel(kernel.astype("float32"), [3]), expected, rtol=1e-4, atol=1e-8)


def test_channels_of_a_depthwise_kernel_lie_along_two_axes():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 2)).astype("float32")
    scale = np.abs(kernel).max((0, 1)) / 127
    np.testing.assert_allclose(fake_quantize_kernel(kernel, [2, 3]), np.round(kernel / scale) * scale, atol=1e-6)


def test_largest_weight_of_a_channel_is_exact_and_a_channel_of_zeros_stays():
    kernel = np.array([[0.3, 0.0], [-1.7, 0.0]], "float32")
    rounded = fake_quantize_kernel(kernel, [1]).numpy()
    assert rounded[1, 0] == np.float32(-1.7)
    np.testing.assert_array_equal(rounded[:, 1], 0.0)


def test_gradient_passes_straight_through_a_kernel():
    kernel = tf.constant(np.random.default_rng(0).normal(size=(4, 3)).astype("float32"))
    weights = np.arange(12.0).reshape(4, 3).astype("float32")
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        total = tf.reduce_sum(fake_quantize_kernel(kernel, [1]) * weights)
    np.testing.assert_array_equal(tape.gradient(total, kernel), weights)


def layer_with_range(minimum, maximum, **options):
    layer = FakeQuantize(**options)
    layer.build((None, 2))
    layer.set_range(minimum, maximum)
    return layer


def test_tracked_range_moves_by_its_momentum_in_training_alone():
    layer = layer_with_range(-1.0, 2.0, momentum=0.9)
    layer(np.array([[-3.0, 4.0]], "float32"), training=False)
    assert (float(layer.minimum), float(layer.maximum)) == (-1.0, 2.0)
    layer(np.array([[-3.0, 4.0]], "float32"), training=True)
    np.testing.assert_allclose([layer.minimum, layer.maximum], [-1.2, 2.2], rtol=1e-6)


def test_range_that_holds_peaks_grows_at_once_and_shrinks_slowly():
    layer = layer_with_range(-1.0, 2.0, momentum=0.9, holds_peaks=True, margin=0.5)
    np.testing.assert_allclose([layer.minimum, layer.maximum], [-1.5, 3.0])
    layer(np.array([[-4.0, 0.0]], "float32"), training=True)
    np.testing.assert_allclose([layer.minimum, layer.maximum], [-6.0, 2.7], rtol=1e-6)


def test_range_always_holds_zero():
    layer = layer_with_range(3.0, 5.0)
    assert (float(layer.minimum), float(layer.maximum)) == (0.0, 5.0)


@pytest.mark.parametrize("options", [{"ranges": "frozen"}, {"ranges": "learnt"}])
def test_other_ranges_do_not_follow_the_batches(options):
    layer = layer_with_range(-1.0, 2.0, **options)
    layer(np.array([[-9.0, 9.0]], "float32"), training=True)
    assert (float(layer.minimum), float(layer.maximum)) == (-1.0, 2.0)
    assert bool(layer.trainable_variables) == (options["ranges"] == "learnt")


def test_learnt_range_keeps_a_width_whatever_the_optimizer_does():
    layer = layer_with_range(-1.0, 2.0, ranges="learnt")
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.apply([tf.constant(-9.0), tf.constant(9.0)], layer.trainable_variables)
    assert float(layer.minimum) == 0.0
    assert float(layer.maximum) > 0.0


def test_frozen_range_is_saved_as_frozen():
    layer = layer_with_range(-1.0, 2.0)
    layer.freeze()
    restored = FakeQuantize.from_config(layer.get_config())
    restored.build((None, 2))
    restored(np.array([[-9.0, 9.0]], "float32"), training=True)
    assert float(restored.maximum) == 1.0


@pytest.mark.parametrize(("low", "high"), [(float("nan"), 1.0), (0.0, float("inf")), (0.7, 0.7)])
def test_range_without_a_finite_width_is_refused(low, high):
    with pytest.raises(ValueError, match="the range of"):
        layer_with_range(low, high)
