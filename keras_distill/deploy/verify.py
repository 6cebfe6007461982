"""Does an artifact, in the runtime that will serve it, answer as the Keras model does?"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill._checks import check_choice, check_fraction, check_labels, error_message
from keras_distill.deploy.kit import kit_module
from keras_distill.deploy.trace import float32_logits, signature_of

if TYPE_CHECKING:
    import keras

# (relative, absolute) distance of a logit from the float32 model's; an int8 network is judged by its answers instead.
TOLERANCES = {"float32": (1e-4, 1e-4), "float16": (1e-2, 5e-2)}
PRECISIONS = ("float32", "float16", "int8")
SMALLEST_AGREEMENT = 0.99


@dataclass(frozen=True)
class Verification:
    """How an artifact compares with its Keras model, over all given inputs.

    Attributes:
        precision: `"float32"`, `"float16"` or `"int8"`: which tolerance was applied.
        num_items: how many inputs were compared.
        max_abs_error: largest distance of a logit.
        logit_rmse: root of the mean squared distance of the logits.
        argmax_agreement: share of inputs with the same most probable class.
        reference_accuracy: the Keras model's share of right answers; `None` without labels.
        accuracy: the artifact's; `None` without labels.
        accuracy_drop: `reference_accuracy - accuracy`; `None` without labels.
        problems: why the artifact must not be used; empty if it may.
        remarks: what is worth knowing and forbids nothing.
    """

    precision: str
    num_items: int
    max_abs_error: float
    logit_rmse: float
    argmax_agreement: float
    reference_accuracy: float | None = None
    accuracy: float | None = None
    accuracy_drop: float | None = None
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the artifact may be used."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return asdict(self) | {"holds": self.holds}


def verify(
    reference: "keras.Model | np.ndarray",
    path: str | os.PathLike,
    inputs: Any,
    labels: Any = None,
    *,
    precision: str = "float32",
    max_accuracy_drop: float = 0.005,
    from_logits: bool = True,
) -> Verification:
    """Reloads an artifact in onnxruntime or LiteRT and compares its logits with the Keras model's.

    Args:
        reference: the Keras model, or its float32 logits, `(num_items, ..., num_classes)`.
        path: the `.onnx` or `.tflite` file.
        inputs: real inputs: `{input name: array}`, or as the model takes them.
        labels: integer classes `(num_items,)`; `None` leaves accuracy out.
        precision: of the artifact. In float32, each logit within 1e-4 (relative or absolute) and no answer different
            outside ties; in float16, within 5e-2; int8 is judged by `max_accuracy_drop`, or, without labels, by 99 %
            of answers being equal.
        max_accuracy_drop: largest loss of accuracy of an int8 artifact, as a fraction.
        from_logits: whether a subclassed `reference` gives logits.

    Raises:
        ValueError: the artifact cannot be opened, or the inputs do not fit it.
    """
    check_choice("precision", precision, PRECISIONS)
    check_fraction("max_accuracy_drop", max_accuracy_drop)
    kit = kit_module()
    artifact = open_artifact(path)
    if not isinstance(reference, np.ndarray):
        from keras_distill.models.forward_pass import logits_model

        signature = signature_of(reference, inputs)
        feed = signature.feed(inputs)
        expected = float32_logits(logits_model(reference, from_logits=from_logits), feed, signature)
    else:
        feed, expected = as_feed(artifact, inputs), reference
    missing = sorted(set(artifact.input_names) ^ set(feed))
    if missing:
        raise ValueError(
            error_message(f"the artifact's inputs must be called {sorted(feed)}", sorted(artifact.input_names))
        )
    num_items = len(expected)
    logits = run_in_batches(artifact, feed)
    figures = kit.compare(expected, logits)
    problems: list[str] = []
    remarks: list[str] = []
    if not np.isfinite(logits).all():
        problems.append("some logits are NaN or infinite")
    one = artifact({name: array[:1] for name, array in feed.items()})
    if artifact.fixed_batch is None and not np.allclose(one, logits[:1], rtol=1e-3, atol=1e-3):
        # Ranges that are found at every call are those of the whole batch.
        sentence = "an example alone gets other logits than in a batch"
        (remarks if precision == "int8" else problems).append(sentence)
    if artifact.fixed_batch is not None:
        remarks.append(f"takes {artifact.fixed_batch} example(s) a call")
    accuracies: dict[str, float] = {}
    if labels is not None:
        labels = check_labels("labels", labels, expected.shape[-1])
        if len(labels) != num_items:
            raise ValueError(error_message(f"there must be {num_items} labels, one for every input", len(labels)))
        reference_accuracy = float(np.mean(np.argmax(expected, -1) == labels))
        accuracy = float(np.mean(np.argmax(logits, -1) == labels))
        accuracies = {
            "reference_accuracy": reference_accuracy,
            "accuracy": accuracy,
            "accuracy_drop": reference_accuracy - accuracy,
        }
    problems += _distance_problems(expected, logits, precision)
    if precision == "int8":
        agreement = figures["argmax_agreement"]
        if labels is not None and accuracies["accuracy_drop"] > max_accuracy_drop:
            drop = accuracies["accuracy_drop"]
            problems.append(
                f"accuracy drops by {drop:.2%}, {drop - max_accuracy_drop:.2%} more than {max_accuracy_drop:.2%}"
            )
        elif agreement < SMALLEST_AGREEMENT:
            sentence = f"answers as the float32 model in {agreement:.2%} of cases, less than {SMALLEST_AGREEMENT:.0%}"
            (problems if labels is None else remarks).append(sentence)
    return Verification(precision, num_items, **figures, **accuracies, problems=tuple(problems), remarks=tuple(remarks))


def open_artifact(path: str | os.PathLike) -> Any:
    """Opens an artifact with the kit; raises `ValueError` where the runtime refuses it."""
    if not Path(path).is_file():
        raise ValueError(error_message("an artifact must be a file", f"{os.fspath(path)}, which does not exist"))
    return kit_module().open_artifact(path)


def as_feed(artifact: Any, inputs: Any) -> dict[str, np.ndarray]:
    """Named arrays for an artifact: a dictionary as it is, a single array under the artifact's only name."""
    if isinstance(inputs, Mapping):
        return {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    if len(artifact.input_names) != 1:
        raise ValueError(
            error_message(f"inputs must be a dictionary with the keys {artifact.input_names}", type(inputs).__name__)
        )
    return {artifact.input_names[0]: np.ascontiguousarray(inputs)}


def run_in_batches(artifact: Any, feed: Mapping[str, np.ndarray], batch_size: int = 256) -> np.ndarray:
    """The artifact's logits for all inputs, in batches that fit into memory."""
    num_items = len(next(iter(feed.values())))
    # A last batch of another size makes LiteRT plan its memory anew, which is right and rare.
    parts = [
        artifact({name: array[start : start + batch_size] for name, array in feed.items()})
        for start in range(0, num_items, batch_size)
    ]
    return np.concatenate(parts)


def _distance_problems(expected: np.ndarray, logits: np.ndarray, precision: str) -> list[str]:
    if precision not in TOLERANCES:
        return []
    relative, absolute = TOLERANCES[precision]
    distance = np.abs(logits - expected)
    allowed = absolute + relative * np.abs(expected)
    problems = []
    num_far = int(np.count_nonzero(~(distance <= allowed)))
    if num_far:
        worst = float(np.max(distance))
        problems.append(
            f"{num_far} of {distance.size} logits are too far off, at worst {worst:.2g} (allowed {absolute:g})"
        )
    # Where the two best logits are closer than the tolerance, rounding may choose either.
    best = np.sort(expected, -1)[..., -2:]
    is_tie = best[..., -1] - best[..., 0] <= 2 * allowed.max(-1) if expected.shape[-1] > 1 else np.ones(len(best), bool)
    num_flips = int(np.count_nonzero((np.argmax(logits, -1) != np.argmax(expected, -1)) & ~is_tie))
    if num_flips:
        problems.append(f"{num_flips} answers differ outside ties")
    return problems
