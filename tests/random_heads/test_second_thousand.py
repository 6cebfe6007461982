"""The second thousand of two thousand random models: in two files, so that two workers share them."""

import pytest

from tests.random_heads.checks import check_models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tensorflow,
    # Masks that a user's last layers drop: Keras says so, and they are dropped in both passes.
    pytest.mark.filterwarnings("ignore:(?s).*destroy the mask"),
]


@pytest.mark.parametrize("start", range(1100, 2100, 100))
def test_models_are_what_they_are(start):
    check_models(range(start, start + 100))
