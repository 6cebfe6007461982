"""Rows made out of a table's rows, for a teacher to label: labels cost money, a teacher's answers do not."""

import numpy as np

from keras_distill._checks import check_count, check_fraction, error_message
from keras_distill._inputs import only_array
from keras_distill.data.dataset import Dataset
from keras_distill.data.table import width_of


def recombined(dataset: Dataset, num_copies: int = 9, *, share: float = 0.2, seed: int = 0) -> np.ndarray:
    """The training inputs of a table, and copies of them in which some columns are another row's.

    A student that is taught on them all is told what its teacher says between the rows, and not only at them. The
    copies have no labels: what a person with this age and that job earns, the teacher alone can say.

    Args:
        dataset: made of a table; its training split is taken.
        num_copies: of each row.
        share: how many of a copy's columns are another's, in [0, 1]: more lead further from what is real.
        seed: of what is drawn.

    Returns:
        float32, `((1 + num_copies) · num_items, num_features)`; the rows themselves come first.

    Raises:
        ValueError: the data was not prepared from a table.

    Example:
        >>> from keras_distill.data import from_table
        >>> colours = {"a": ["red", "blue"] * 20, "b": ["up", "up", "down", "down"] * 10, "kind": ["x", "y"] * 20}
        >>> rows = recombined(from_table(colours, "kind"), 3)
        >>> rows.shape, sorted(set(map(tuple, rows[:, :2].tolist())))
        ((116, 4), [(0.0, 1.0), (1.0, 0.0)])

    Reference:
        Bucilă, Caruana, Niculescu-Mizil, "Model Compression", KDD 2006, section 3: MUNGE, which swaps values between
        nearest neighbours where these come from any row.
    """
    check_count("num_copies", num_copies, 0)
    check_fraction("share", share)
    if dataset.preparation is None or dataset.preparation.kind != "table":
        received = "none" if dataset.preparation is None else f"a {dataset.preparation.kind}"
        remedy = "Load it with its label column: data.load('people.csv', label='income')."
        raise ValueError(error_message(f"the data {dataset.name!r} must be made of a table", received, remedy))
    inputs = only_array(dataset.train.inputs, "a table")
    generator = np.random.default_rng(seed)
    parts = [inputs]
    for _ in range(num_copies):
        copy, start = inputs.copy(), 0
        # Whole columns: of a category's features one is 1.
        for column in dataset.preparation.specification["columns"]:
            stop = start + width_of(column)
            changed = np.flatnonzero(generator.random(len(copy)) < share)
            copy[changed, start:stop] = inputs[generator.integers(0, len(copy), len(changed)), start:stop]
            start = stop
        parts.append(copy)
    return np.concatenate(parts)
