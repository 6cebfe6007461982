"""What is known of a Keras model before it is converted, made once and handed on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import keras_distill
from keras_distill._checks import error_message
from keras_distill._inputs import take_rows
from keras_distill.deploy.answers import answer_of
from keras_distill.deploy.shipment import Provenance
from keras_distill.deploy.trace import Signature, float32_outputs, heads_of, served_model, signature_of
from keras_distill.report import metrics

if TYPE_CHECKING:
    import keras

    from keras_distill.data import Dataset


@dataclass(frozen=True)
class Reference:
    """A classifier's own answers, which its artifacts must give too.

    Attributes:
        signature: how it is called.
        feed: the test set's inputs, `{input name: (num_items, ...)}`.
        validation_feed: the validation set's.
        outputs: everything that it gives for `feed`, in float32, `{output name: (num_items, ...)}`.
        answer: the name of the output that the labels belong to.
        answers: what counts as each output's answer, `{output name: one of answers.ANSWERS}`.
        temperature: the divisor of its logits that is best on the validation set.
    """

    signature: Signature
    feed: Mapping[str, np.ndarray]
    validation_feed: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    answer: str
    answers: Mapping[str, str]
    temperature: float

    @property
    def logits(self) -> np.ndarray:
        """The logits of all classes for the test set, `(num_items, num_classes)`."""
        return as_class_logits(self.outputs[self.answer])

    @property
    def output_names(self) -> list[str]:
        """All outputs, the one that the labels belong to first."""
        return [self.answer, *(name for name in self.outputs if name != self.answer)]


def reference_of(model: "keras.Model", dataset: "Dataset") -> Reference:
    """Asks a classifier for its answers to the test and validation split of `dataset`.

    Raises:
        ValueError: it takes other inputs, gives no logits of the dataset's classes, or any that are not finite.
    """
    from keras_distill.models.vocabulary import check_vocabulary

    signature = signature_of(model, take_rows(dataset.test.inputs, slice(1)))
    if dataset.preparation is not None and dataset.preparation.kind == "text":
        check_vocabulary(model, dataset.preparation.specification["vocabulary_size"], f"model {model.name!r}")
    feed = signature.feed(dataset.test.inputs)
    stripped = served_model(model, signature, from_logits=True)
    outputs = float32_outputs(stripped, feed, signature)
    answer = _labelled_output(model, outputs, dataset.num_classes)
    _check_logits(model, outputs[answer])
    validation_feed = signature.feed(dataset.validation.inputs)
    held_out = float32_outputs(stripped, validation_feed, signature)[answer]
    _check_logits(model, held_out)
    heads = heads_of(model, tuple(outputs))
    answers = {name: answer_of(heads.get(name), output) for name, output in outputs.items()}
    answers[answer] = answer_of(heads.get(answer), outputs[answer], dataset.test.labels)
    temperature = metrics.best_temperature(as_class_logits(held_out), dataset.validation.labels)
    return Reference(signature, feed, validation_feed, outputs, answer, answers, temperature)


def as_class_logits(output: np.ndarray) -> np.ndarray:
    """Logits of all classes, `(num_items, num_classes)`; a single unit z is the pair (0, z), for
    `softmax((0, z))[1] = sigmoid(z)`.

    Example:
        >>> as_class_logits(np.array([[2.0], [-1.0]])).tolist()
        [[0.0, 2.0], [0.0, -1.0]]
    """
    return np.concatenate([np.zeros_like(output), output], -1) if output.shape[-1] == 1 else output


def _labelled_output(model: "keras.Model", outputs: Mapping[str, np.ndarray], num_classes: int) -> str:
    """The name of the only output that has a logit for each class, or one unit where there are two."""
    widths = {num_classes, 1} if num_classes == 2 else {num_classes}
    fitting = [name for name, output in outputs.items() if output.ndim == 2 and output.shape[-1] in widths]
    if len(fitting) == 1:
        return fitting[0]
    expected = f"one of {num_classes} logits an example, as the data has {num_classes} classes"
    received = ", ".join(f"{name} of shape {output.shape}" for name, output in outputs.items())
    remedy = "Name the data that the model was trained for."
    raise ValueError(error_message(f"the output of {model.name!r} must be {expected}", received, remedy))


def _check_logits(model: "keras.Model", output: np.ndarray) -> None:
    from keras_distill.models.probabilities import SOFTMAX, activation_behind

    if not np.isfinite(output).all():
        raise ValueError(error_message(f"the output of {model.name!r} must be finite", "NaN or infinite logits"))
    is_unit_interval = output.shape[-1] == 1 and float(output.min()) >= 0.0 and float(output.max()) <= 1.0
    if is_unit_interval or activation_behind(output[:256]) == SOFTMAX:
        remedy = (
            "Let its call return the logits, without softmax; only a Functional or Sequential head can be taken off."
        )
        raise ValueError(error_message(f"the output of {model.name!r} must be logits", "probabilities", remedy))


def known_facts(provenance: Provenance, dataset: "Dataset", reference: Reference) -> dict[str, Any]:
    """What the manifest and the artifacts say about the student's making."""
    import keras
    import tensorflow as tf

    inputs: list[dict[str, Any]] = []
    for name, spec in zip(reference.signature.names, reference.signature.specs, strict=True):
        values = reference.feed[name]
        inputs.append(
            {
                "name": name,
                "shape": [None, *spec.shape[1:]],
                "dtype": str(spec.dtype),
                "value_range": [float(values.min()), float(values.max())],
                "pixel_range": pixel_range(values),
            }
        )
    in_range = f", pixel_range={provenance.pixel_range!r}" if provenance.pixel_range else ""
    each = [
        f"{entry['name'] + ': ' if len(inputs) > 1 else ''}{entry['dtype']} of shape {tuple(entry['shape'][1:])} per "
        f"example, values from {entry['value_range'][0]:g} to {entry['value_range'][1]:g}"
        for entry in inputs
    ]
    described = f"{'; '.join(each)}, as keras_distill.data.load({dataset.name!r}{in_range}) gives them"
    return {
        "name": provenance.name,
        "inputs": inputs,
        "outputs": reference.output_names,
        "preprocessing": provenance.preprocessing or _prepared_text(dataset) or described,
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


def _prepared_text(dataset: "Dataset") -> str:
    if dataset.preparation is None:
        return ""
    return f"raw rows become inputs by prepare.py and preparation.json ({dataset.preparation.description})"


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
