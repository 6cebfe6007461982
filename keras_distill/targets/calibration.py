"""Temperature scaling of a teacher before it answers: as sure as it is right, on examples that it did not train on."""

import keras
import numpy as np

from keras_distill._checks import check_count, check_labels, error_message
from keras_distill._inputs import num_rows, take_rows
from keras_distill._types import Data, Teacher, TensorTree
from keras_distill.models.heads import head_activation
from keras_distill.models.layer_roles import is_readable
from keras_distill.models.probabilities import SIGMOID
from keras_distill.models.strings import holds_strings, preprocess_strings
from keras_distill.report.metrics import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE, log_softmax
from keras_distill.targets.arrays import checked_arrays
from keras_distill.targets.teacher_rows import RowOptions, check_inputs, row_function

# In the fingerprint of a calibrated teacher.
DIVIDED_BY = ", logits / "


def calibration_temperature(
    teacher: Teacher, examples: Data, *, batch_size: int = 256, from_logits: bool = True
) -> float:
    """The temperature that makes a teacher as sure as it is right: its logits divided by it are calibrated.

    One number for all classes, and for all members of an ensemble: no answer changes. It minimises the negative
    log-likelihood of the labels.

    Args:
        teacher: what `label` takes.
        examples: a `Split` or `(inputs, labels)`, labels `(num_items,)` with −1 for none. Of data that the teacher was
            not trained on: on what it knows by heart it is always right, and cannot be too sure.
        batch_size: items a forward pass.
        from_logits: as `label` takes it.

    Returns:
        The temperature, above 1 where the teacher is too sure, to three digits: more of them would
        differ from device to device.

    Raises:
        ValueError: no labels; labels out of range; a teacher that makes no error, or that is worse than guessing, so
            that no temperature is best.

    Example:
        >>> sure = lambda x: 3.0 * np.log(np.array([[0.8, 0.2]] * len(x)))  # three times surer than it is right
        >>> calibration_temperature(sure, (np.zeros((5, 1)), np.array([0, 0, 0, 0, 1])))
        3.0

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 4.2.
    """
    from scipy import optimize

    check_count("batch_size", batch_size)
    inputs, labels = _inputs_and_classes(examples)
    if not (labels >= 0).any():
        remedy = "Give calibrate=(inputs, labels) of data that the teacher was not trained on."
        raise ValueError(error_message("a teacher must be calibrated on labelled examples", "no labels", remedy))
    _check_head(teacher)
    known = np.flatnonzero(labels >= 0)
    inputs, labels = take_rows(inputs, known), labels[known]
    if holds_strings(inputs):
        inputs = preprocess_strings(inputs, teacher)
    check_inputs(teacher, take_rows(inputs, slice(batch_size)))
    members = _has_members(teacher, take_rows(inputs, slice(1)))
    first = take_rows(inputs, slice(batch_size))
    rows = row_function(teacher, first, RowOptions(members=members, dtype="float32", from_logits=from_logits))
    found = [
        {name: keras.ops.convert_to_numpy(values) for name, values in rows(take_rows(inputs, part)).items()}
        for part in (slice(start, start + batch_size) for start in range(0, num_rows(inputs), batch_size))
    ]
    if members:
        logits = np.concatenate([fields["member_logits"] for fields in found])
        weights = np.concatenate([fields["member_weights"] for fields in found])
    else:
        logits = np.concatenate([fields["logits"] for fields in found])[:, None]
        weights = np.ones((len(logits), 1))
    if logits.shape[-1] == 1:
        remedy = "A single unit has no softmax: label without calibrate."
        raise ValueError(
            error_message("a teacher that is calibrated must have two classes or more", "one unit", remedy)
        )
    check_labels("labels to calibrate on", labels, logits.shape[-1])

    def loss(log_temperature: float) -> float:
        log_shares = log_softmax(logits, float(np.exp(log_temperature)))[np.arange(len(labels)), :, labels]
        return -float(np.mean(np.logaddexp.reduce(log_shares + np.log(weights), axis=-1)))

    bounds = (float(np.log(LOWEST_TEMPERATURE)), float(np.log(HIGHEST_TEMPERATURE)))
    best = float(optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5}).x)
    expectation = "a teacher that is calibrated must have some of the examples right and some wrong"
    if loss(bounds[0]) <= loss(best):
        remedy = "Calibrate on data that it was not trained on."
        raise ValueError(error_message(expectation, "one that makes no error on them", remedy))
    if loss(bounds[1]) <= loss(best):
        remedy = "Look at its inputs, and at the order of its classes."
        raise ValueError(error_message(expectation, "one that is no better than guessing", remedy))
    return float(f"{np.exp(best):.3g}")


def calibration_examples(calibrate: Data | bool | None, dataset: Data) -> Data | None:
    """What `label(calibrate=…)` asks for: labelled examples, those of the dataset itself for `True`, or `None`.

    Raises:
        TypeError: something else.
        ValueError: `True` with a stream, which is gone through batch by batch.
    """
    if calibrate is None or calibrate is False:
        return None
    examples = dataset if calibrate is True else calibrate
    if isinstance(examples, tuple) or (hasattr(examples, "inputs") and hasattr(examples, "labels")):
        return examples
    received = f"{calibrate!r:.80}" if calibrate is not True else f"True with a {type(dataset).__name__}"
    expectation = "calibrate must be (inputs, labels), a Split, or True where the dataset is one of these"
    raise TypeError(error_message(expectation, received, "Give arrays that the teacher was not trained on."))


def _inputs_and_classes(examples: Data) -> tuple[TensorTree, np.ndarray]:
    """Inputs, and class ids `(num_items,)`, of a column too."""
    if isinstance(examples, tuple) and len(examples) > 1 and isinstance(examples[1], list):
        examples = (examples[0], np.asarray(examples[1]), *examples[2:])
    arrays, num_items, _ = checked_arrays(examples, None)
    labels = arrays.get("labels")
    if labels is None:
        return arrays["inputs"], np.full(num_items, -1)
    remedy = "Teachers of quantities, several outputs, tokens or pixels are not calibrated."
    expectation = f"labels to calibrate on must be class ids, integers of shape ({num_items},)"
    if keras.tree.is_nested(labels):
        raise ValueError(error_message(expectation, f"a {type(labels).__name__}", remedy))
    labels = np.asarray(labels)
    if labels.shape == (num_items, 1):
        labels = labels[:, 0]
    if labels.shape != (num_items,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(error_message(expectation, f"shape {labels.shape}, dtype {labels.dtype}", remedy))
    return arrays["inputs"], labels


def _check_head(teacher: Teacher) -> None:
    """Raises `ValueError` for sigmoids: several labels an item have no one class that is right."""
    if isinstance(teacher, keras.Model) and is_readable(teacher) and head_activation(teacher) == SIGMOID:
        remedy = "Temperature scaling is of one class an item: label without calibrate."
        raise ValueError(error_message("a teacher that is calibrated must end in a softmax", "sigmoids", remedy))


def divided_by(divisor: float) -> str:
    """What the fingerprint of a calibrated teacher ends with.

    Example:
        >>> divided_by(1.73), divided_by(1.0)
        (', logits / 1.73', '')
    """
    return "" if divisor == 1.0 else f"{DIVIDED_BY}{divisor:g}"


def _has_members(teacher: Teacher, one: Data) -> bool:
    """Whether a teacher is an arithmetic ensemble, whose members have a temperature each."""
    return hasattr(teacher, "soft_targets") and isinstance(teacher.soft_targets(one), dict)
