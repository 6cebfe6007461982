"""What a run says about a student: figures of every model side by side, `model_card.md` and `report.html`.

Everything is computed from logits and the manifest: no phrase that would stand there for any other run too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_distill._inputs import arrays_by_name
from keras_distill._types import Inputs
from keras_distill.deploy.card_metadata import front_matter
from keras_distill.deploy.tflm import LitertParity
from keras_distill.report import metrics
from keras_distill.report.verdict import Verdict

NUM_PAIRS = 12


@dataclass(frozen=True)
class Figures:
    """A model's answers to the test set, and what they cost.

    Attributes:
        name: `"teacher"`, `"student on labels"`, `"student"` or an artifact's.
        logits: `(num_items, num_classes)`.
        labels: `(num_items,)`.
        temperature: the divisor of the logits that was best on the validation set.
        num_parameters: how many numbers the model holds; `None` for a teacher that is no Keras model.
        latency: `p50_ms`, `p90_ms`, `p99_ms`, `process_ms` of one example on one thread; empty if not measured.
        num_bytes: size of the file; `None` for a model in Keras.
        agreement: share of the test set that it answers as the teacher does; `None` without a teacher.
    """

    name: str
    logits: np.ndarray
    labels: np.ndarray
    temperature: float
    num_parameters: int | None
    latency: Mapping[str, float]
    num_bytes: int | None = None
    agreement: float | None = None

    @property
    def predictions(self) -> np.ndarray:
        """The most probable classes, `(num_items,)`."""
        return np.argmax(self.logits, axis=-1)

    @property
    def num_errors(self) -> int:
        """How many of the test set are answered wrongly."""
        return int(np.count_nonzero(self.predictions != self.labels))

    @property
    def scaled_logits(self) -> np.ndarray:
        """The logits after temperature scaling."""
        return self.logits / self.temperature

    @property
    def weight_bytes(self) -> int:
        """Size of the file, or of the weights in float32 for a model in Keras."""
        return self.num_bytes if self.num_bytes is not None else 4 * (self.num_parameters or 0)

    def to_json(self) -> dict[str, Any]:
        """The figures without the logits, as the manifest keeps them."""
        num_items = len(self.labels)
        low, high = metrics.wilson_interval(self.num_errors, num_items)
        return {
            "name": self.name,
            "num_items": num_items,
            "num_errors": self.num_errors,
            "error_rate": self.num_errors / num_items,
            "error_rate_interval": [low, high],
            "negative_log_likelihood": metrics.negative_log_likelihood(self.logits, self.labels),
            "negative_log_likelihood_scaled": metrics.negative_log_likelihood(self.scaled_logits, self.labels),
            "expected_calibration_error": metrics.expected_calibration_error(self.logits, self.labels),
            "expected_calibration_error_scaled": metrics.expected_calibration_error(self.scaled_logits, self.labels),
            "temperature": self.temperature,
            "agreement_with_teacher": self.agreement,
            "num_parameters": self.num_parameters,
            "bytes": self.num_bytes,
            "latency": dict(self.latency),
        }


def errors_by_class(figures: Figures, num_classes: int) -> np.ndarray:
    """How many examples of each class are answered wrongly, `(num_classes,)`."""
    wrong = figures.predictions != figures.labels
    return np.bincount(figures.labels[wrong], minlength=num_classes)


def lost_pairs(before: Figures, after: Figures, num_classes: int) -> list[tuple[int, int, int, int]]:
    """Confusions that `after` makes more often than `before`, the worst first.

    Returns:
        `(label, answer, times before, times after)`.
    """
    tables = []
    for figures in (before, after):
        table = np.zeros((num_classes, num_classes), int)
        np.add.at(table, (figures.labels, figures.predictions), 1)
        np.fill_diagonal(table, 0)
        tables.append(table)
    gain = tables[1] - tables[0]
    order = np.argsort(-gain, axis=None, kind="stable")[:NUM_PAIRS]
    pairs = [divmod(int(position), num_classes) for position in order]
    return [(i, j, int(tables[0][i, j]), int(tables[1][i, j])) for i, j in pairs if gain[i, j] > 0]


HEADER = (
    "model", "errors", "error rate (95 %)", "NLL, nats", "NLL scaled", "ECE", "ECE scaled", "as the teacher",
    "parameters", "bytes", "p50 ms", "p99 ms",
)  # fmt: skip

# The others are folded in the report.
MAIN = ("error rate (95 %)", "as the teacher", "bytes", "p50 ms")


def side_by_side(figures: Sequence[Figures]) -> list[list[str]]:
    """A row of text for each model, under `HEADER`."""
    rows = []
    for model in figures:
        entry = model.to_json()
        low, high = entry["error_rate_interval"]
        rows.append(
            [
                model.name,
                f"{entry['num_errors']} of {entry['num_items']}",
                f"{entry['error_rate']:.2%} ({low:.2%} to {high:.2%})",
                f"{entry['negative_log_likelihood']:.4f}",
                f"{entry['negative_log_likelihood_scaled']:.4f}",
                f"{entry['expected_calibration_error']:.4f}",
                f"{entry['expected_calibration_error_scaled']:.4f}",
                "–" if model.agreement is None else f"{model.agreement:.2%}",
                "–" if model.num_parameters is None else f"{model.num_parameters:,}",
                "–" if model.num_bytes is None else f"{model.num_bytes:,}",
                *(f"{model.latency[key]:.4f}" if key in model.latency else "–" for key in ("p50_ms", "p99_ms")),
            ]
        )
    return rows


def model_card(manifest: Mapping[str, Any], figures: Sequence[Figures]) -> str:
    """Returns `model_card.md`: what the student is, how good, where from, and what it must not be trusted with."""
    provenance, machine = manifest["provenance"], manifest["machine"]
    classes = manifest["class_names"]
    shown = ", ".join(classes[:20]) + (f", … ({len(classes)} in all)" if len(classes) > 20 else "")
    student = next(row for row in figures if row.name == "student").to_json()
    inputs = "; ".join(f"`{entry['name']}`, {entry['dtype']}, {entry['shape']}" for entry in manifest["inputs"])
    lines = [
        front_matter(manifest, 1.0 - student["error_rate"]),
        f"# {manifest['name']}",
        "",
        f"A classifier of {len(classes)} classes ({shown}), made by {provenance['made_by']} on {manifest['created']}.",
        "",
        "## Use",
        "",
        f"- Input: {inputs}. Preprocessing: {manifest['preprocessing']}.",
        f"- Output: `logits`, float32. Divide by {manifest['temperature']:.4g} before the softmax: the",
        "  probabilities are calibrated then.",
        "- `python benchmark.py` checks and times the artifacts on a device; `classify_*.py` are the smallest programs",
        "  that use them.",
        "",
        "## Is it good enough?",
        "",
        *(f"- {sentence}" for sentence in usefulness_told(manifest)),
        "",
        "## Artifacts",
        "",
        "| artifact | file | bytes | precision | accuracy drop | answers as Keras | p50 ms |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    for name, artifact in manifest["artifacts"].items():
        check = artifact["verification"]
        lines.append(
            f"| {name} | `{artifact['file']}` | {artifact['bytes']:,} "
            f"| {artifact['precision']} ({artifact['variant']}) "
            f"| {check['accuracy_drop']:+.2%} | {check['argmax_agreement']:.2%} | {artifact['latency']['p50_ms']:.4f} |"
        )
    for artifact in manifest["artifacts"].values():
        if "micro" in artifact:
            lines += ["", *(f"- {sentence}" for sentence in micro_told(artifact))]
    for name, reason in manifest["left_out"].items():
        lines.append(f"\nLeft out: {name}. {reason}.")
    lines += [
        "",
        f"Latency: one example a call, one thread of {machine['processor']}.",
        "",
        "## Evaluation",
        "",
        f"The test set of {provenance['data']}, {student['num_items']} examples. The ranges of int8 and the",
        "temperature come from the validation set, so nothing that was fitted here has seen the test set.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---" + "|---:" * (len(HEADER) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in side_by_side(figures)),
        "",
        "## Limits",
        "",
        *(f"- {sentence}" for sentence in _limits(manifest, figures)),
        "",
        "## Origin",
        "",
        f"- Source: {provenance['source'] or 'not stated'} (SHA-256 {provenance['source_sha256'] or 'not stated'}).",
        f"- Data: {provenance['data']}; its licence: {provenance['data_licence']}.",
        f"- Licence of the model: {manifest['licence'] or 'not stated: ask its author before you use it'}.",
        f"- Keras {provenance['keras']}, TensorFlow {provenance['tensorflow']}.",
        "",
    ]
    return "\n".join(lines)


def micro_told(artifact: Mapping[str, Any]) -> list[str]:
    """What a microcontroller needs for an artifact, and how its answers compare with LiteRT's, in sentences."""
    facts, parity = artifact["micro"], LitertParity(**artifact["litert_parity"])
    return [
        f"On a microcontroller: {artifact['bytes']:,} bytes of flash for the model, and an arena of "
        f"{facts['arena_bytes']:,} bytes of RAM, the smallest that tflite-micro {facts['version']} ran in; it holds "
        f"{facts['used_bytes']:,} of them once it has begun, {facts['activation_bytes']:,} for activations. What the "
        "interpreter's own code takes is not counted.",
        f"Operations: {', '.join(facts['operations'])}.",
        f"Against LiteRT on the same file: {parity}.",
    ]


def usefulness_told(manifest: Mapping[str, Any]) -> list[str]:
    """Whether the student is worth using, in sentences: its colour and figures, why, and the verdict of its making."""
    found = manifest["usefulness"]
    low, high = found["accuracy_interval"]
    sentences = [
        f"{found['colour'].capitalize()}: the student is right on {found['accuracy']:.2%} of {found['num_items']:,} "
        f"test examples ({low:.2%} to {high:.2%}), where the same answers in random order would be right on "
        f"{found['chance']:.2%}. Of the classes {found['lowest_class']} is recognised least: "
        f"{found['lowest_recall']:.2%}."
    ]
    if found["teacher_accuracy"] is not None:
        less, more = found["drop_interval"]
        sentences.append(
            f"Its teacher is right on {found['teacher_accuracy']:.2%}: the student is "
            f"{-100 * found['drop_from_teacher']:+.2f} points from it ({-100 * more:+.2f} to {-100 * less:+.2f})."
        )
    if manifest["verdict"] is not None:
        verdict = Verdict.from_json(manifest["verdict"])
        sentences.append(
            " ".join([f"Distilled against labels alone, when it was trained: {verdict}.", *verdict.reasons])
        )
    return sentences + found["reasons"]


def _limits(manifest: Mapping[str, Any], figures: Sequence[Figures]) -> list[str]:
    classes = manifest["class_names"]
    student = next(row for row in figures if row.name == "student")
    counts = np.bincount(student.labels, minlength=len(classes))
    rates = errors_by_class(student, len(classes)) / np.maximum(counts, 1)
    worst = [index for index in np.argsort(-rates, kind="stable")[:3] if rates[index] > 0]
    sentences = ["It answers with one of its classes whatever it is shown: it has no answer for 'none of these'."]
    if worst:
        named = ", ".join(f"{classes[index]} ({rates[index]:.1%} of {counts[index]})" for index in worst)
        sentences.append(f"Most errors by class: {named}.")
    unseen = [classes[index] for index in np.flatnonzero(counts == 0)]
    if unseen:
        sentences.append(f"The test set has no example of: {', '.join(unseen[:20])}.")
    sentences.append(f"Measured on {manifest['provenance']['data']} alone; other data may differ from it.")
    return sentences


def report_page(manifest: Mapping[str, Any], figures: Sequence[Figures], inputs: Inputs, labels: np.ndarray) -> str:
    """Returns `report.html`: one file, no network, readable on a phone.

    Args:
        manifest: of the bundle, before its files are listed.
        figures: every model.
        inputs: of the test set, for the pictures; of several the first that may be one.
        labels: of the test set.
    """
    from keras_distill.report.page import Code, Figure, Section, Table, page
    from keras_distill.report.page import Verdict as Box
    from keras_distill.report.plots import (
        TradeOffPoint,
        most_ambiguous,
        reliability_diagrams,
        temperature_picture,
        trade_off,
    )

    by_name = {model.name: model for model in figures}
    student = by_name["student"]
    classes, machine = manifest["class_names"], manifest["machine"]
    in_keras = [by_name[name] for name in ("teacher", "student on labels", "student") if name in by_name]
    rows = side_by_side(figures)

    colour = manifest["usefulness"]["colour"]
    is_green = colour == "green"
    first, *others_told = usefulness_told(manifest)
    verdict = Box(first, {"green": True, "red": False}.get(colour), warns=True)
    # Green is for what is worth using: a file that answers as a useless student does is a fact, not a success.
    verdicts: list[Any] = [Box(_told(name, each), is_green or None) for name, each in manifest["artifacts"].items()]
    verdicts += [line for each in manifest["artifacts"].values() if "micro" in each for line in micro_told(each)]
    verdicts += [Box(f"{name} is left out. {reason}.") for name, reason in manifest["left_out"].items()]
    sections = [
        *([Section("Is it good enough?", others_told)] if others_told else []),
        Section("What ships", verdicts),
        Section(
            "Side by side",
            [
                Table(
                    HEADER,
                    rows,
                    f"The test set of {manifest['provenance']['data']}",
                    [row[0] for row in rows].index("student"),
                    MAIN,
                ),
                "NLL is the negative log-likelihood and ECE the expected calibration error (15 bins); 'scaled' is "
                "after the logits were divided by the temperature that is best on the validation set.",
            ],
        ),
    ]
    points = [
        TradeOffPoint(
            model.name,
            model.weight_bytes,
            model.latency["p50_ms"],
            100 * model.num_errors / len(labels),
            "Keras" if model.num_bytes is None else model.name.split("-")[0],
        )
        for model in figures
        if model.latency
    ]
    caption = f"One example on one thread of {machine['processor']}. Size in Keras: the weights in float32."
    sections.append(Section("Accuracy, latency, size", [Figure(trade_off(points), caption)]))

    source = by_name.get("teacher", student)
    chosen = most_ambiguous(source.logits, labels)
    arrays = [*arrays_by_name(inputs).values()]
    pixels = next((array for array in arrays if array.ndim > 2), arrays[0])
    # Whatever range the student takes, 0 to 255 or −1 to 1: a picture is drawn from black to white.
    low, high = float(np.min(pixels)), float(np.max(pixels))
    images = (pixels[chosen] - low) / ((high - low) or 1.0)
    picture = temperature_picture(images, source.logits[chosen], [int(label) for label in labels[chosen]], classes)
    caption = (
        f"The {source.name}'s probabilities for the examples that it finds most ambiguous, at several temperatures."
    )
    sections.append(Section("What temperature uncovers", [Figure(picture, caption)]))

    before = reliability_diagrams({model.name: metrics.reliability(model.logits, labels) for model in in_keras})
    after = reliability_diagrams({model.name: metrics.reliability(model.scaled_logits, labels) for model in in_keras})
    sections.append(
        Section(
            "Is it as sure as it is right?",
            [
                Figure(
                    before,
                    "As the models answer. On the dashed line confidence is accuracy. Grey: bins of fewer than ten "
                    "examples.",
                ),
                Figure(after, "After temperature scaling, each with its own temperature from the validation set."),
            ],
        )
    )
    compared = by_name.get("student on labels") or by_name.get("teacher")
    if compared is not None:
        sections.append(_by_class(compared, student, classes))
        sections.append(_pairs(compared, student, classes))
    tried = [
        [
            f"{entry['target']}: {entry['variant']}",
            "–" if entry["bytes"] is None else f"{entry['bytes']:,}",
            "–" if entry["p50_ms"] is None else f"{entry['p50_ms']:.4f}",
            "–" if entry["accuracy_drop"] is None else f"{entry['accuracy_drop']:+.2%}",
            "–" if entry["logit_rmse"] is None else f"{entry['logit_rmse']:.2g}",
            Box(entry["verdict"], entry["holds"]),
        ]
        for entry in manifest["tried"]
    ]
    header = ("variant", "bytes", "p50 ms", "accuracy drop", "logit RMSE", "verdict")
    sections.append(
        Section(
            "Everything that was tried",
            [
                Table(
                    header,
                    tried,
                    "Against the float32 Keras model, on the whole test set, in its own runtime",
                    main=("bytes", "p50 ms", "accuracy drop", "verdict"),
                ),
                Code("python benchmark.py          # in the bundle: the same checks and times on your device"),
            ],
        )
    )
    others = [f"its {name} {by_name[name].num_errors}" for name in ("teacher",) if name in by_name]
    others += [f"the {name} {by_name[name].num_errors}" for name in ("student on labels",) if name in by_name]
    compared_with = f"; {', '.join(others)}" if others else ""
    summary = (
        f"The student makes {student.num_errors} errors in {len(labels):,}{compared_with}. "
        f"Its files give the same answers within the limits: {', '.join(manifest['artifacts'])}."
    )
    footer = (
        f"{manifest['provenance']['made_by']}, Keras {manifest['provenance']['keras']}, TensorFlow "
        f"{manifest['provenance']['tensorflow']}; {machine['processor']}, {machine['system']}; {manifest['created']}."
    )
    return page(manifest["name"], sections, verdicts=[verdict], summary=summary, footer=footer)


def _told(name: str, artifact: Mapping[str, Any]) -> str:
    """An artifact in one sentence: file, size, speed, and what its making cost in accuracy."""
    check, latency = artifact["verification"], artifact["latency"]["p50_ms"]
    return (
        f"{name}: {artifact['file']}, {artifact['bytes']:,} bytes, {latency:.4f} ms; accuracy "
        f"{0.0 - check['accuracy_drop']:+.2%}, answers as Keras in {check['argmax_agreement']:.2%}"
    )


def _by_class(compared: Figures, student: Figures, classes: Sequence[str]) -> Any:
    from keras_distill.report.page import Section, Table
    from keras_distill.report.page import Verdict as Box

    counts = np.bincount(student.labels, minlength=len(classes))
    before, after = (errors_by_class(model, len(classes)) for model in (compared, student))
    change = after - before
    order = np.argsort(change, kind="stable")
    shown = [*order[:10], *order[-10:]] if len(order) > 20 else order
    rows = []
    for index in shown:
        holds = None if change[index] == 0 else bool(change[index] < 0)
        rows.append([classes[index], counts[index], before[index], after[index], Box(f"{change[index]:+d}", holds)])
    header = ("class", "examples", f"errors of the {compared.name}", "errors of the student", "change")
    caption = "Sorted from gain to loss" + ("; the ten best and the ten worst" if len(order) > 20 else "")
    return Section(f"Gains and losses by class against the {compared.name}", [Table(header, rows, caption)])


def _pairs(compared: Figures, student: Figures, classes: Sequence[str]) -> Any:
    from keras_distill.report.page import Section, Table

    pairs = lost_pairs(compared, student, len(classes))
    title = f"Confusions that the student makes more often than the {compared.name}"
    if not pairs:
        return Section(title, ["None."])
    rows = [[f"{classes[i]} taken for {classes[j]}", before, after] for i, j, before, after in pairs]
    return Section(title, [Table(("confusion", f"{compared.name}", "student"), rows)])
