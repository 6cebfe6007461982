"""What a manifest says of a student's inputs."""

import numpy as np
import pytest

from keras_distill.deploy.reference import pixel_range


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # Twelve bits of data in images of sixteen: dark, but white is 1 all the same.
        (np.random.default_rng(0).integers(0, 4096, (3, 4, 4, 1)) / 65535.0, (0.0, 1.0)),
        (np.random.default_rng(0).uniform(0.1, 0.9, (3, 4, 4, 3)), (0.0, 1.0)),
        (np.random.default_rng(0).uniform(-0.9, 0.8, (3, 4, 4, 3)), (-1.0, 1.0)),
        (np.random.default_rng(0).integers(10, 40, (3, 4, 4, 3)).astype("uint8"), (0.0, 255.0)),
        (np.linspace(3.0, 200.0, 48).reshape(1, 4, 4, 3), (0.0, 255.0)),
        # Standardised values have no black and white of their own.
        (np.linspace(-2.5, 2.0, 48).reshape(1, 4, 4, 3), (-2.5, 2.0)),
        (np.zeros((3, 4)), None),
    ],
)
def test_black_and_white_are_those_of_the_usual_scaling(values, expected):
    assert pixel_range(values) == expected
