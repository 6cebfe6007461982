"""What the commands that train share: how a model is measured on data, and how that is shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import numpy as np
    from rich.table import Table

    from keras_distill._types import Inputs, Teacher
    from keras_distill.data import Dataset, Split
    from keras_distill.targets import SoftTargetStore
    from keras_distill.teachers.knowledge import Knowledge, Ways


def check_model_fits_dataset(model: "keras.Model", dataset: "Dataset", who: str) -> None:
    """Raises `ValueError` where a model's inputs, vocabulary or number of classes are not the dataset's."""
    from keras_distill._checks import error_message
    from keras_distill._inputs import arrays_by_name, take_rows
    from keras_distill.deploy.trace import signature_of
    from keras_distill.models.vocabulary import check_vocabulary

    signature = signature_of(model, take_rows(dataset.train.inputs, slice(1)))
    taken = dict(zip(signature.names, (tuple(spec.shape[1:]) for spec in signature.specs), strict=True))
    held = {name: array.shape[1:] for name, array in arrays_by_name(dataset.train.inputs).items()}
    if len(taken) == len(held) == 1 and "" in held:
        # An only input needs no name.
        held = dict(zip(taken, held.values(), strict=True))
    if set(taken) != set(held):
        names = "one array without a name" if "" in held else ", ".join(held)
        remedy = "Name the model's keras.Input layers as the data's arrays, or the arrays (x_train/NAME) as those."
        raise ValueError(
            error_message(f"the {who} must take the inputs of {dataset.name}: {names}", ", ".join(taken), remedy)
        )
    for name, expected in held.items():
        received = taken[name]
        if len(expected) != len(received) or any(b not in (None, a) for a, b in zip(expected, received, strict=True)):
            remedy = f"The {who} must take what {dataset.name} holds; see keras_distill.data."
            subject = f"the {who}'s input" if len(held) == 1 else f"the {who}'s input {name!r}"
            raise ValueError(error_message(f"{subject} must have shape {expected}", received, remedy))
    if dataset.preparation is not None and dataset.preparation.kind == "text":
        check_vocabulary(model, dataset.preparation.specification["vocabulary_size"], who)
    if model.output_shape[-1] != dataset.num_classes:
        check_num_classes(model.output_shape[-1], dataset, who)


def check_num_classes(num_classes: int, dataset: "Dataset", who: str) -> None:
    """Raises `ValueError` where a model has other classes than the dataset."""
    from keras_distill._checks import error_message

    if num_classes != dataset.num_classes:
        names = ", ".join(dataset.class_names[:4]) + (", …" if dataset.num_classes > 4 else "")
        expectation = f"the {who}'s output must have {dataset.num_classes} classes, as {dataset.name} has ({names})"
        remedy = f"Take a {who} of the same classes, or cut its last layer to these and train it on them."
        if num_classes == 1 and dataset.num_classes == 2:
            remedy = "One sigmoid unit of logit z is the two logits 0 and z: add a layer that says so."
        raise ValueError(error_message(expectation, f"{num_classes} classes", remedy))


def label_loss(student: "keras.Model") -> "keras.losses.Loss":
    """Cross-entropy with the labels, for a student with or without a softmax."""
    from keras import losses

    from keras_distill.models.heads import head_activation

    return losses.SparseCategoricalCrossentropy(from_logits=head_activation(student) != "softmax")


def arrays_of(split: "Split") -> "tuple[Inputs, np.ndarray]":
    """`(inputs, labels)`, as `fit` takes them."""
    return split.inputs, split.labels


def answers_function(model: "Teacher") -> "Callable[[Inputs], np.ndarray]":
    """A function from inputs to a model's answers, class ids, `(num_items,)`."""
    from keras_distill.models.inference import logits_function

    logits_of = logits_function(model)
    return lambda inputs: logits_of(inputs).argmax(axis=-1)


def check_teacher(teacher: "Teacher", path: str, dataset: "Dataset", *, insist: bool) -> "Knowledge":
    """What the teacher of a file knows of the validation data; raises `ValueError` where it is no more than luck."""
    from keras_distill.teachers import knowledge

    answers_to = answers_function(teacher)
    return knowledge.check_teacher(answers_to, f"the teacher {path}", dataset, insist=insist, ways=_by_options())


def check_store(store: "SoftTargetStore", path: str, dataset: "Dataset", *, insist: bool) -> "Knowledge":
    """What a store's teacher knew of the training data; raises `ValueError` where it was no more than luck."""
    from keras_distill.teachers import knowledge

    return knowledge.check_store(store, f"the store {path}", dataset, insist=insist, ways=_by_options())


def _by_options() -> "Ways":
    from keras_distill.cli.data_options import pixel_range_option
    from keras_distill.teachers.knowledge import Ways

    return Ways(
        "With --any-teacher it is taken as it is.",
        lambda pixel_range: f"add {pixel_range_option(pixel_range)}",
        "Label again with a teacher that knows them, at the scale that it was trained on (label --pixel-range).",
    )


@dataclass(frozen=True)
class Measured:
    """How a model does on a split.

    Attributes:
        num_errors: items whose most probable class is not their label.
        num_items: items in all.
        interval: lowest and highest error rate that this does not contradict (Wilson, 95 %), in [0, 1].
        negative_log_likelihood: the mean of −log p(label), in nats.
    """

    num_errors: int
    num_items: int
    interval: tuple[float, float]
    negative_log_likelihood: float

    @property
    def error_rate(self) -> float:
        """Errors over items, in [0, 1]."""
        return self.num_errors / self.num_items

    def as_json(self) -> dict[str, Any]:
        """The attributes and the rate, for a JSON file."""
        return {
            "errors": self.num_errors,
            "items": self.num_items,
            "error_rate": self.error_rate,
            "error_rate_interval": list(self.interval),
            "negative_log_likelihood_nats": self.negative_log_likelihood,
        }


def measured(logits: "np.ndarray", labels: "np.ndarray") -> Measured:
    """Compares logits, `(num_items, num_classes)`, with labels."""
    from keras_distill.report import metrics

    num_errors = round(metrics.error_rate(logits, labels) * len(labels))
    interval = metrics.wilson_interval(num_errors, len(labels))
    return Measured(num_errors, len(labels), interval, metrics.negative_log_likelihood(logits, labels))


def comparison_table(rows: Sequence[tuple[str, Measured]], dataset: "Dataset") -> "Table":
    """A table of models on the test set; at most 80 columns wide, with no number cut."""
    from rich.table import Table

    table = Table(title=f"{dataset.name}, {len(dataset.test):,} test items")
    for column in ("model", "errors", "error rate", "95 % interval", "NLL (nats)"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for name, found in rows:
        low, high = found.interval
        table.add_row(
            name,
            f"{found.num_errors:,}",
            f"{100 * found.error_rate:.2f} %",
            f"{100 * low:.2f} to {100 * high:.2f}",
            f"{found.negative_log_likelihood:.4f}",
        )
    return table
