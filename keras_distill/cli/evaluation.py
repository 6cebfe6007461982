"""What the commands that train share: how a model is measured on data, and how that is shown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras
    import numpy as np
    from rich.table import Table

    from keras_distill.data import Dataset, Split


def check_model_fits_dataset(model: "keras.Model", dataset: "Dataset", who: str) -> None:
    """Raises `ValueError` where a model's input or number of classes is not the dataset's."""
    from keras_distill._checks import error_message

    expected = dataset.train.inputs.shape[1:]
    received = tuple(model.input_shape[1:])
    if len(expected) != len(received) or any(b not in (None, a) for a, b in zip(expected, received, strict=True)):
        remedy = f"The {who} must take what {dataset.name} holds; see keras_distill.data."
        raise ValueError(error_message(f"the {who}'s input must have shape {expected}", received, remedy))
    if model.output_shape[-1] != dataset.num_classes:
        expectation = f"the {who}'s output must have {dataset.num_classes} classes, as {dataset.name} has"
        raise ValueError(error_message(expectation, f"{model.output_shape[-1]} classes"))


def label_loss(student: "keras.Model") -> "keras.losses.Loss":
    """Cross-entropy with the labels, for a student with or without a softmax."""
    from keras import losses

    from keras_distill.models.heads import head_activation

    return losses.SparseCategoricalCrossentropy(from_logits=head_activation(student) != "softmax")


def arrays_of(split: "Split") -> "tuple[np.ndarray, np.ndarray]":
    """`(inputs, labels)`, as `fit` takes them."""
    return split.inputs, split.labels


def measure(model: "keras.Model", split: "Split") -> tuple[float, float]:
    """(errors, negative log-likelihood in nats) of a model on a split."""
    from keras_distill.models.forward_pass import logits_model
    from keras_distill.report import metrics

    logits = logits_model(model).predict(split.inputs, batch_size=512, verbose=0)
    return metrics.error_rate(logits, split.labels), metrics.negative_log_likelihood(logits, split.labels)


def comparison_table(rows: Sequence[tuple[str, tuple[float, float]]], dataset: "Dataset") -> "Table":
    """A table of `(model, (error rate, NLL))` on the test set."""
    from rich.table import Table

    table = Table(title=f"{dataset.name}, {len(dataset.test)} test items")
    for column in ("model", "errors", "error rate", "NLL (nats)"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, (error_rate, likelihood) in rows:
        errors = round(error_rate * len(dataset.test))
        table.add_row(name, str(errors), f"{100 * error_rate:.2f} %", f"{likelihood:.4f}")
    return table
