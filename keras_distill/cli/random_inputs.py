"""Inputs for a model of whose data nothing is known."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from keras_distill.deploy.trace import Signature


def random_feed(signature: "Signature", num_items: int) -> "dict[str, np.ndarray]":
    """Inputs by name, the same ones every time: numbers from 0 to 1, of integers 0 and 1, texts; open sizes are 8."""
    import numpy as np

    generator = np.random.default_rng(0)
    feed = {}
    for name, spec in zip(signature.names, signature.specs, strict=True):
        shape = (num_items, *(size or 8 for size in spec.shape[1:]))
        if spec.dtype == "string":
            feed[name] = np.full(shape, "a text", dtype=object)
            continue
        # What lies outside the model, such as the size of a vocabulary, is unknown: 0 and 1 are safe indices.
        values = generator.random(shape) if "float" in spec.dtype else generator.integers(0, 2, shape)
        feed[name] = values.astype(spec.dtype)
    return feed
