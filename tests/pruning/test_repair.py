"""Statistics and biases against NumPy in float64."""

import keras
import numpy as np
from keras import layers

from keras_distill.pruning import channel_groups, correct_biases, kept_channels, prune, reestimate_batch_normalization


def images(num_items=40):
    return np.random.default_rng(1).normal(0.5, 2.0, (num_items, 6, 6, 2)).astype("float32")


def test_statistics_are_the_means_over_batches_of_what_training_sees():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.BatchNormalization(name="first"),
            layers.Dropout(0.5),
            layers.Conv2D(3, 1, name="conv"),
            layers.BatchNormalization(name="second"),
        ]
    )
    model.get_layer("first").gamma.assign([0.5, 2.0])
    model.get_layer("second").trainable = False
    inputs = images()
    assert reestimate_batch_normalization(model, inputs, batch_size=16) == 2
    first, second = [], []
    kernel, bias = (value.astype("float64") for value in model.get_layer("conv").get_weights())
    # 40 items make two batches of 16; the rest is left out.
    for batch in (inputs[:16].astype("float64"), inputs[16:32].astype("float64")):
        mean, variance = batch.mean((0, 1, 2)), batch.var((0, 1, 2))
        first.append((mean, variance))
        hidden = (batch - mean) / np.sqrt(variance + 1e-3) * [0.5, 2.0] @ kernel[0, 0] + bias
        second.append((hidden.mean((0, 1, 2)), hidden.var((0, 1, 2))))
    for name, expected in (("first", first), ("second", second)):
        layer = model.get_layer(name)
        np.testing.assert_allclose(layer.moving_mean, np.mean([each[0] for each in expected], 0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.moving_variance, np.mean([each[1] for each in expected], 0), rtol=1e-4)
        assert layer.momentum == 0.99
    assert not model.get_layer("second").trainable


def convolutional():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(inputs)
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="reader")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(layers.Flatten()(x)))


def test_biases_gain_the_mean_output_that_was_lost():
    teacher, inputs = convolutional(), images()
    before = [np.array(weight) for weight in teacher.get_weights()]
    groups, keep = channel_groups(teacher), {"stem": [0, 3, 4]}
    student = prune(teacher, keep)
    assert correct_biases(student, teacher, groups, kept_channels(groups, keep), inputs, batch_size=16) == 1
    for was, is_now in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(was, is_now)

    # By hand, in float64: ReLU of the stem, its dropped channels alone, through the reader's kernel at stride 2, for
    # which an even side is padded at its end alone.
    kernel, bias, reader, reader_bias = (value.astype("float64") for value in teacher.get_weights()[:4])
    padded = np.pad(inputs.astype("float64"), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    hidden = np.maximum(np.einsum("nhwcij,ijco->nhwo", windows, kernel) + bias, 0.0)
    hidden[..., [0, 3, 4]] = 0.0
    padded = np.pad(hidden, ((0, 0), (0, 1), (0, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    lost = np.einsum("nhwcij,ijco->nhwo", windows, reader).mean((0, 1, 2))
    np.testing.assert_allclose(student.get_layer("reader").get_weights()[1], reader_bias + lost, rtol=1e-4, atol=1e-5)


def test_a_reader_that_is_cut_itself_has_its_own_biases_corrected():
    teacher, inputs = convolutional(), images()
    groups = channel_groups(teacher)
    keep = {"stem": [0, 3, 4], "reader": [1, 3]}
    kept = kept_channels(groups, keep)
    whole, narrow = prune(teacher, {"stem": [0, 3, 4]}), prune(teacher, keep)
    correct_biases(whole, teacher, groups, kept_channels(groups, {"stem": [0, 3, 4]}), inputs)
    assert correct_biases(narrow, teacher, groups, kept, inputs) == 2
    np.testing.assert_allclose(
        narrow.get_layer("reader").get_weights()[1], whole.get_layer("reader").get_weights()[1][[1, 3]], rtol=1e-6
    )


def test_constant_channels_are_made_up_for_exactly():
    """What is lost is the same for every input: the corrected student answers as its teacher."""
    teacher = keras.Sequential([keras.Input((3,)), layers.Dense(5, "relu", name="hidden"), layers.Dense(2)])
    kernel, bias = teacher.layers[0].get_weights()
    kernel[:, 2:], bias[2:] = 0.0, [1.0, 2.0, 3.0]
    teacher.layers[0].set_weights([kernel, bias])
    inputs = np.random.default_rng(0).normal(size=(9, 3)).astype("float32")
    student = prune(teacher, {"hidden": [0, 1]}, calibration=inputs, repair=True)
    np.testing.assert_allclose(student(inputs), teacher(inputs), rtol=1e-5, atol=1e-6)
