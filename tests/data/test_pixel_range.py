"""Pixels in the scales that models elsewhere were trained on: Keras's own preprocessing is the measure."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_distill.data import Dataset, Split, load
from keras_distill.data.pixel_range import in_pixel_range, other_pixel_ranges, pixel_range_of

KERAS_MODES = {"-1-1": "tf", "imagenet": "torch", "caffe": "caffe"}


def dataset(num_channels=3, scale=1.0):
    generator = np.random.default_rng(0)
    splits = [
        Split((scale * generator.uniform(size=(size, 5, 4, num_channels))).astype("float32"), np.arange(size) % 2)
        for size in (40, 10, 10)
    ]
    splits[0].inputs[0, 0, 0] = scale
    return Dataset("noise", *splits, ("a", "b"), "")


@pytest.mark.parametrize("mode", KERAS_MODES)
@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_it_is_what_keras_preprocesses(mode, scale):
    given = dataset(scale=scale)
    pixels = given.test.inputs * np.float32(255.0 / scale)
    expected = keras.applications.imagenet_utils.preprocess_input(pixels.copy(), "channels_last", KERAS_MODES[mode])
    np.testing.assert_allclose(in_pixel_range(given, mode).test.inputs, expected, atol=2e-4)


@pytest.mark.parametrize("there", ["0-255", "-1-1"])
def test_there_and_back_is_where_it_was(there):
    given = dataset(1)
    back = in_pixel_range(in_pixel_range(given, there), "0-1")
    np.testing.assert_allclose(back.validation.inputs, given.validation.inputs, atol=1e-6)
    assert pixel_range_of(in_pixel_range(given, there).train.inputs) == there


def test_standardised_is_by_the_training_split_and_by_channel():
    given = dataset()
    given.train.inputs[..., 1] = 0.5
    inputs = in_pixel_range(given, "standardised").train.inputs
    np.testing.assert_allclose(inputs.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(inputs.std((0, 1, 2)), [1.0, 0.0, 1.0], atol=1e-5)
    train = given.train.inputs[..., 2].astype("float64")
    expected = (given.test.inputs[..., 2] - train.mean()) / train.std()
    np.testing.assert_allclose(in_pixel_range(given, "standardised").test.inputs[..., 2], expected, atol=1e-5)


def test_what_cannot_be_is_refused_with_a_remedy():
    ids = Split(np.zeros((4, 5, 4, 3), "int32"), np.zeros(4, int))
    tokens = dataclasses.replace(dataset(), train=ids)
    with pytest.raises(ValueError, match=r"needs the inputs of 'noise' to be floats; got int32\. Leave --pixel-range"):
        in_pixel_range(tokens, "0-255")
    assert other_pixel_ranges(tokens) == ()
    with pytest.raises(ValueError, match=r"must be pixels from 0 to 1, .*; got values from -?[\d.]+ to 1000\. Save"):
        in_pixel_range(dataset(scale=1000.0), "0-255")
    assert other_pixel_ranges(dataset(scale=1000.0)) == ("standardised",)
    with pytest.raises(ValueError, match=r"caffe needs images of shape \(height, width, 3\); got \(5, 4, 1\)"):
        in_pixel_range(dataset(1), "caffe")
    with pytest.raises(ValueError, match=r"the pixel range must be one of '0-1', .*; got '0-2'"):
        load("digits", pixel_range="0-2")
