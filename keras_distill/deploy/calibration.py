"""The examples that show a quantiser what values to expect: explicit, and never from the test set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill._checks import check_finite, error_message
from keras_distill._types import ArrayLike

ENOUGH_EXAMPLES = 256


def choose_calibration(
    feed: Mapping[str, np.ndarray], *, num_examples: int = ENOUGH_EXAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Returns up to `num_examples` random examples of `feed`, `{input name: array}`; a seed repeats its choice."""
    chosen = drawn_rows(len(next(iter(feed.values()))), num_examples, seed)
    return {name: array[chosen] for name, array in feed.items()}


def drawn_rows(num_items: int, num_examples: int, seed: int = 0) -> np.ndarray:
    """Positions of up to `num_examples` random ones of `num_items` examples, ascending; a seed repeats them.

    Example:
        >>> drawn_rows(3, 256)
        array([0, 1, 2])
    """
    return np.sort(np.random.default_rng(seed).permutation(num_items)[:num_examples])


def save_calibration(calibration: Mapping[str, Any] | ArrayLike | None, folder: str | Path) -> str:
    """Writes calibration examples to a file in `folder` for the worker, which knows the inputs; returns its path.

    Args:
        calibration: `{input name: array}`, or the array of the only input.
        folder: where the file goes.

    Raises:
        ValueError: there are none, their counts differ, or one is NaN or infinite.
    """
    remedy = "Pass `calibration={input name: array}` of about 256 training or validation examples."
    if calibration is None or (isinstance(calibration, Mapping) and not calibration):
        raise ValueError(error_message("calibration must be given for int8", "none", remedy))
    if isinstance(calibration, Mapping):
        arrays = {name: check_finite(f"calibration[{name!r}]", array) for name, array in calibration.items()}
    else:
        arrays = {"": check_finite("calibration", calibration)}
        if not arrays[""].ndim:
            received = f"{calibration!r:.80} ({type(calibration).__name__})"
            raise ValueError(error_message("calibration must be arrays, one example a row", received, remedy))
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            error_message("calibration must have equally many examples for every input", sorted(counts), remedy)
        )
    path = Path(folder) / "calibration.npz"
    np.savez(path, **{f"input/{name}": array for name, array in arrays.items()})  # type: ignore[arg-type]  # NumPy's stub takes `allow_pickle` for one of the arrays
    return str(path)
