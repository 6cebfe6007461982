"""What is refused rather than trained: heads, losses, labels and soft targets that do not fit each other."""

import warnings
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error_message


def warn_of_scalar_loss(loss: Any) -> None:
    """Warns that a loss of one number a batch knows no weights of items."""
    warnings.warn(
        f"{type(loss).__name__} gives one number a batch: sample weights cannot weigh it. "
        "A keras_distill.losses.PerExampleLoss respects them.",
        stacklevel=2,
    )


def check_not_empty(x: Any) -> None:
    """Raises `ValueError` where a training set is known to hold nothing."""
    num_items = None
    if isinstance(x, (np.ndarray, list, tuple, dict)) and keras.tree.flatten(x):
        num_items = min((len(part) for part in keras.tree.flatten(x) if hasattr(part, "__len__")), default=None)
    elif hasattr(x, "cardinality"):
        num_items = int(x.cardinality())
    if num_items == 0:
        raise ValueError(error_message("the training set must not be empty", "0 items"))
