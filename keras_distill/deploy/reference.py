"""What is known of a Keras model before it is converted, made once and handed on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import keras_distill
from keras_distill._checks import error_message
from keras_distill.deploy.trace import Signature, float32_logits

if TYPE_CHECKING:
    import keras

    from keras_distill.data import Dataset
from keras_distill.deploy.shipment import Provenance


def checked_logits(
    model: "keras.Model", feed: Mapping[str, np.ndarray], signature: Signature, num_classes: int
) -> np.ndarray:
    """A classifier's logits on `feed`, `(num_items, num_classes)`; raises `ValueError` where they are none."""
    from keras_distill.models.forward_pass import logits_model
    from keras_distill.models.heads import looks_like_probabilities

    logits = float32_logits(logits_model(model), dict(feed), signature)
    if logits.ndim != 2 or logits.shape[-1] != num_classes:
        remedy = "Name the data that the model was trained for."
        expected = f"be one of {num_classes} logits an example, as the data has {num_classes} classes"
        raise ValueError(
            error_message(f"the output of {model.name!r} must {expected}", f"shape {logits.shape}", remedy)
        )
    if float(looks_like_probabilities(logits[:256])) == 1.0:
        remedy = (
            "Let its call return the logits, without softmax; only a Functional or Sequential head can be taken off."
        )
        raise ValueError(error_message(f"the output of {model.name!r} must be logits", "probabilities", remedy))
    if not np.isfinite(logits).all():
        raise ValueError(error_message(f"the output of {model.name!r} must be finite", "NaN or infinite logits"))
    return logits


def known_facts(
    provenance: Provenance, dataset: "Dataset", signature: Signature, feed: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """What the manifest and the artifacts say about the student's making."""
    import keras
    import tensorflow as tf

    inputs: list[dict[str, Any]] = []
    for name, spec in zip(signature.names, signature.specs, strict=True):
        values = feed[name]
        inputs.append(
            {
                "name": name,
                "shape": [None, *spec.shape[1:]],
                "dtype": str(spec.dtype),
                "value_range": [float(values.min()), float(values.max())],
                "pixel_range": pixel_range(values),
            }
        )
    first = inputs[0]
    low, high = first["value_range"]
    described = (
        f"{first['dtype']} of shape {tuple(first['shape'][1:])} per example, values from {low:g} to {high:g}, "
        f"as keras_distill.data.load({dataset.name!r}) gives them"
    )
    return {
        "name": provenance.name,
        "inputs": inputs,
        "preprocessing": provenance.preprocessing or described,
        "licence": provenance.licence,
        "provenance": {
            "source": provenance.source,
            "source_sha256": provenance.source_sha256,
            "data": dataset.name,
            "data_licence": dataset.licence,
            "made_by": f"keras-distill {keras_distill.__version__}",
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
    }


def pixel_range(values: np.ndarray) -> tuple[float, float] | None:
    """The values of black and white: those of the usual scaling that `values` keep to, or else their extremes.

    The extremes alone would not do: of dark photographs the brightest pixel is not white.

    Args:
        values: one input of a whole test set, `(num_items, height, width, channels)`.

    Returns:
        (black, white), or `None` where the input is no image.

    Example:
        >>> pixel_range(np.full((1, 2, 2, 1), 0.06, "float32")), pixel_range(np.full((1, 2, 2, 1), 250, "uint8"))
        ((0.0, 1.0), (0.0, 255.0))
    """
    if values.ndim != 4:
        return None
    low, high = float(values.min()), float(values.max())
    if values.dtype == np.uint8 or (low >= 0.0 and 128.0 <= high <= 255.0):
        return 0.0, 255.0
    if high <= 1.0 and low >= -1.0:
        return (0.0 if low >= 0.0 else -1.0), 1.0
    return low, high
