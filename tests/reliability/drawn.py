"""What hypothesis draws for the properties: logits, weights, sets of classes; small, in float64."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

LIMIT = 30.0
# Temperatures reach a graph as float32.
TEMPERATURES = st.floats(0.25, 20.0, width=32)
SHIFTS = st.floats(-100.0, 100.0)


def logits_of_shape(shape, limit=LIMIT):
    """Float64 logits in [-limit, limit]."""
    return npst.arrays(np.float64, shape, elements=st.floats(-limit, limit, allow_subnormal=False))


@st.composite
def pairs(draw, min_rows=1, max_rows=5, min_classes=2, max_classes=7, limit=LIMIT):
    """Teacher's and student's logits, each `(rows, classes)`."""
    shape = (draw(st.integers(min_rows, max_rows)), draw(st.integers(min_classes, max_classes)))
    return draw(logits_of_shape(shape, limit)), draw(logits_of_shape(shape, limit))


@st.composite
def members(draw, max_members=4):
    """Members' logits `(rows, members, classes)`, their weights `(members,)`, and a student's logits."""
    rows, count, classes = (draw(st.integers(*span)) for span in ((1, 4), (1, max_members), (2, 6)))
    weights = draw(npst.arrays(np.float64, count, elements=st.floats(0.05, 1.0)))
    return (
        draw(logits_of_shape((rows, count, classes))),
        weights / weights.sum(),
        draw(logits_of_shape((rows, classes))),
    )


def permutations_of(count):
    """An order of `count` things, as an array."""
    return st.permutations(range(count)).map(np.array)
