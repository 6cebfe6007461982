"""Does an artifact, in the runtime that will serve it, answer as the Keras model does?

Every output is compared, by name: its values and what its head makes of them (`comparison.py`), the recall of each
class (`recall.py`), and whether an example's company matters (`steadiness.py`).
"""

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill._checks import cast_exactly, check_choice, check_fraction, error_message
from keras_distill._kit import kit_module
from keras_distill._native_log import quiet_start
from keras_distill._types import ArrayLike, Tensor, TensorTree
from keras_distill.deploy.comparison import OutputComparison, compare_output
from keras_distill.deploy.steadiness import CALL, unsteadiness
from keras_distill.deploy.trace import float32_outputs, heads_of, served_model, signature_of

if TYPE_CHECKING:
    import keras

PRECISIONS = ("float32", "float16", "int8")


@dataclass(frozen=True)
class Verification:
    """How an artifact compares with its Keras model, over all given inputs.

    Attributes:
        precision: `"float32"`, `"float16"` or `"int8"`: which rules were applied.
        num_items: how many inputs were compared.
        max_abs_error: largest distance of a value of any output; `inf` where one is NaN or infinite.
        logit_rmse: root of the mean squared distance, of the output where it is largest.
        argmax_agreement: share of equal answers, of the output where it is smallest.
        reference_accuracy: the Keras model's share of right answers, of the labelled output that loses most of it;
            `None` without labels. Of a regression, this and the next two are R².
        accuracy: the artifact's; `None` without labels.
        accuracy_drop: `reference_accuracy - accuracy`; `None` without labels.
        problems: why the artifact must not be used; empty if it may.
        remarks: what is worth knowing and forbids nothing.
        outputs: each output by itself.
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
    outputs: Mapping[str, OutputComparison] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether the artifact may be used."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON, which has no infinity: `None` stands for it."""
        return _as_json(asdict(self) | {"holds": self.holds})


def verify(
    reference: "keras.Model | np.ndarray | Mapping[str, np.ndarray]",
    path: str | os.PathLike,
    inputs: TensorTree,
    labels: ArrayLike | Mapping[str, ArrayLike] | None = None,
    *,
    precision: str = "float32",
    max_accuracy_drop: float = 0.005,
    from_logits: bool = True,
    answers: str | Mapping[str, str] | None = None,
) -> Verification:
    """Reloads an artifact in onnxruntime or LiteRT and compares all its outputs with the Keras model's, by name.

    In float32 each value must be within 1e-4 (relative or absolute) and no answer different outside ties; in float16
    within 1e-2 (relative) or 5e-2. The root mean squared error is at most 1 %, 10 % or, in int8, half of how much the
    output varies. int8 is judged by its answers:

    - accuracy drops by `max_accuracy_drop` at most;
    - at most 1 % of the answers differ, or twice `max_accuracy_drop` where that is more, not counting those that
      rounding decides; of a regression, that share of the reference's variance is lost at most;
    - no class loses more of its right answers (without labels: of the reference's answers) than chance explains where
      each may be lost with a probability of 2 %, or of four times `max_accuracy_drop` (see `recall.py`).

    Whatever the precision, nothing may be NaN or infinite, and an example gets the same answer when it is asked again,
    when it is alone, and in another place of another batch.

    Args:
        reference: the Keras model, or its float32 outputs: `{output name: (num_items, ...)}`, or the only one.
        path: the `.onnx` or `.tflite` file.
        inputs: real inputs: `{input name: array}`, or as the model takes them.
        labels: of the only output, or `{output name: labels}`; `None` leaves accuracy out. Classes `(num_items, ...)`,
            one a token or pixel where the output has such, or one-hot; 0 and 1 for one unit or several labels; the
            targets of a regression. −1 stands for no label.
        precision: of the artifact.
        max_accuracy_drop: largest loss of accuracy of an int8 artifact, as a fraction.
        from_logits: what a `reference` gives whose head cannot be found: logits, or (`False`) probabilities.
        answers: what counts as an output's answer: `"argmax"`, `"threshold"` (of one unit or several labels) or
            `"distance"` (of a regression), for all outputs or by output name. `None` goes by the model's heads, by the
            labels where a head says nothing, and then takes several values for classes and a single one for itself.

    Raises:
        ValueError: the artifact cannot be opened, the inputs do not fit it, or its outputs have other names or shapes.
    """
    check_choice("precision", precision, PRECISIONS)
    check_fraction("max_accuracy_drop", max_accuracy_drop)
    artifact = open_artifact(path)
    heads: Mapping[str, str | None] = {}
    if isinstance(reference, (np.ndarray, Mapping)):
        feed, outputs = as_feed(artifact, inputs), reference
    else:
        signature = signature_of(reference, inputs)
        feed = signature.feed(inputs)
        outputs = float32_outputs(served_model(reference, signature, from_logits), feed, signature)
        heads = heads_of(reference, tuple(outputs))
    found = run_in_batches(artifact, feed, name=Path(path).name)
    expected, name_of = _paired(outputs, found)
    labels_of = _by_output("labels", labels, tuple(expected))
    answer_of = dict.fromkeys(expected, answers) if isinstance(answers, str) else dict(answers or {})
    if unknown := sorted(set(answer_of) - set(expected)):
        raise ValueError(error_message(f"answers must be of outputs among {sorted(expected)}", unknown))
    compared = {
        name: compare_output(
            name,
            output,
            found[name_of[name]],
            labels_of.get(name),
            precision=precision,
            max_accuracy_drop=max_accuracy_drop,
            answer=answer_of.get(name),
            head=heads.get(name),
            from_logits=from_logits,
        )
        for name, output in expected.items()
    }
    spreads = {name_of[name]: output.spread for name, output in compared.items()}
    problems, remarks = unsteadiness(artifact, feed, found, spreads, precision)
    if artifact.fixed_batch is not None:
        remarks.append(f"takes {artifact.fixed_batch} example(s) a call")
    if len(next(iter(feed.values()))) > 1 and all(np.all(array == array[:1]) for array in feed.values()):
        remarks.append("all inputs are the same, which shows little")
    labelled = [output for output in compared.values() if output.accuracy_drop is not None]
    worst = max(labelled, key=lambda output: output.accuracy_drop or 0.0, default=None)
    return Verification(
        precision,
        len(next(iter(feed.values()))),
        max_abs_error=max(output.max_abs_error for output in compared.values()),
        logit_rmse=max(output.rmse for output in compared.values()),
        argmax_agreement=min(output.agreement for output in compared.values()),
        reference_accuracy=worst.reference_accuracy if worst else None,
        accuracy=worst.accuracy if worst else None,
        accuracy_drop=worst.accuracy_drop if worst else None,
        problems=(*_told({name: output.problems for name, output in compared.items()}), *problems),
        remarks=(*_told({name: output.remarks for name, output in compared.items()}), *remarks),
        outputs=compared,
    )


def open_artifact(path: str | os.PathLike) -> Any:
    """Opens an artifact with the kit; raises `ValueError` where the runtime refuses it."""
    if not Path(path).is_file():
        raise ValueError(error_message("an artifact must be a file", f"{os.fspath(path)}, which does not exist"))
    with quiet_start():
        artifact = kit_module().open_artifact(path)
        if allocate := getattr(getattr(artifact, "interpreter", None), "allocate_tensors", None):
            # LiteRT greets when it first allocates. Where it cannot, it says so again at the first call.
            with suppress(RuntimeError):
                allocate()
    return artifact


def as_feed(artifact: Any, inputs: TensorTree) -> dict[str, np.ndarray]:
    """Named arrays of the artifact's types: a dictionary of its names, or a single array for its only name.

    Raises:
        ValueError: values that the artifact's type cannot hold, such as 0.5 in uint8.
    """
    if not isinstance(inputs, Mapping):
        if len(artifact.input_names) != 1:
            expected = f"inputs must be a dictionary with the keys {artifact.input_names}"
            raise ValueError(error_message(expected, type(inputs).__name__))
        inputs = {artifact.input_names[0]: inputs}
    types = artifact.input_types
    return {name: cast_exactly(f"the input {name!r}", each, types.get(name)) for name, each in inputs.items()}


def run_in_batches(
    artifact: Any, feed: Mapping[str, np.ndarray], *, name: str = "in question", batch_size: int = CALL
) -> dict[str, np.ndarray]:
    """All outputs of an artifact for all inputs, `{output name: (num_items, ...)}`, in batches that fit into memory."""
    counts = {name: len(array) for name, array in feed.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(error_message("inputs must hold equally many examples, at least one", counts))
    answers_to = kit_module().answers_to
    # A last batch of another size makes LiteRT plan its memory anew, which is right and rare.
    parts = [
        answers_to(name, artifact, {each: array[start : start + batch_size] for each, array in feed.items()})
        for start in range(0, next(iter(counts.values())), batch_size)
    ]
    return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}


def _paired(outputs: Any, found: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The reference's outputs, and the artifact's name for each; raises where names or shapes differ."""
    if not isinstance(outputs, Mapping):
        if len(found) != 1:
            expectation = f"reference must be a dictionary with the artifact's outputs {sorted(found)}"
            raise ValueError(error_message(expectation, "one array"))
        outputs = dict.fromkeys(found, outputs)
    expected = {name: np.asarray(output) for name, output in outputs.items()}
    # A single output is the one that is meant, whatever a converter called it.
    is_only = len(expected) == len(found) == 1
    name_of = dict(zip(expected, found, strict=True)) if is_only else {name: name for name in expected}
    remedy = "Convert the model again."
    if set(name_of.values()) != set(found):
        expectation = f"the artifact's outputs must be called {sorted(expected)}"
        raise ValueError(error_message(expectation, sorted(found), remedy))
    for name, output in expected.items():
        shape = found[name_of[name]].shape
        if output.shape[:1] != shape[:1]:
            expectation = f"the reference's {name!r} must have {shape[0]} rows, one for every input"
            raise ValueError(error_message(expectation, f"shape {output.shape}"))
        if output.shape != shape:
            raise ValueError(error_message(f"the output {name!r} must have shape {output.shape}", shape, remedy))
    return expected, name_of


def _told(sentences: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The sentences about all outputs, with their names where there are several."""
    is_only = len(sentences) == 1
    return [each if is_only else f"{name}: {each}" for name, told in sentences.items() for each in told]


def _by_output(subject: str, values: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        if values is not None and len(names) != 1:
            expected = f"{subject} must be a dictionary with keys among {sorted(names)}"
            raise ValueError(error_message(expected, type(values).__name__))
        return {names[0]: values}
    if unknown := sorted(set(values) - set(names)):
        raise ValueError(error_message(f"{subject} must be of outputs among {sorted(names)}", unknown))
    return dict(values)


def _as_json(value: Tensor) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
