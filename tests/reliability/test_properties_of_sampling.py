"""What holds of every sampled row, whatever the logits: hypothesis looks for the case that breaks it."""

import numpy as np
from drawn import TEMPERATURES, logits_of_shape
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from keras_distill.targets.sampling import draw, inclusion
from tests.targets.test_sampling import expectation, largest


@given(data=st.data(), rows=st.integers(1, 4), classes=st.integers(1, 9), temperature=TEMPERATURES)
def test_rows_are_whole_and_the_softmax_in_expectation(data, rows, classes, temperature):
    logits = data.draw(logits_of_shape((rows, classes))).astype("float32")
    k = data.draw(st.integers(1, classes))
    number = st.floats(0.0, 1.0, exclude_max=True)
    numbers = np.array(data.draw(st.lists(st.tuples(number, number), min_size=rows, max_size=rows)))
    ids = largest(logits, k)
    drawn, counts = draw(logits, ids, numbers, temperature)
    assert (np.sort(drawn, axis=-1)[:, 1:] > np.sort(drawn, axis=-1)[:, :-1]).all()
    assert (drawn >= 0).all()
    assert (drawn < classes).all()
    assert (counts.sum(axis=-1, dtype=int) == 255).all()
    # The largest logit first, and what is certain has its own share, rounded up or down.
    taken = np.take_along_axis(logits, drawn, axis=-1)
    assert (taken[:, 1:] <= taken[:, :-1]).all()
    shares, num_certain, line = inclusion(logits, ids, temperature)
    targets = softmax(logits.astype("float64") / temperature, axis=-1)
    for row, certain in enumerate(num_certain):
        sure = counts[row, :certain] / 255 - np.sort(targets[row])[::-1][:certain]
        assert (np.abs(sure) < 1 / 255 + 1e-5).all()
        found = expectation(ids[row], shares[row], certain, line[row])
        np.testing.assert_allclose(found, targets[row], rtol=1e-5, atol=2e-6)
