"""What the demo's figures look like: two tables for the terminal, one page for the browser."""

from typing import TYPE_CHECKING, Any

from keras_distill._inputs import only_array
from keras_distill.data.dataset import Dataset

if TYPE_CHECKING:
    from rich.table import Table

MODEL_NAMES = {
    "teacher": "teacher",
    "student_on_labels": "student, labels",
    "student_distilled": "student, distilled",
}
MODEL_HEADER = ("model", "errors", "errors (%)", "NLL (nats)", "ECE (%)", "agrees (%)")
RUNTIME_HEADER = ("model", "runtime", "parameters", "bytes", "p50 (ms)", "p90 (ms)", "p99 (ms)")


def model_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row a model: mean ± standard deviation over the seeds."""
    rows: list[tuple[str, ...]] = []
    for key, name in MODEL_NAMES.items():
        figures = results["models"][key]
        rows.append(
            (
                name,
                plus_minus(figures["num_errors"], 1),
                plus_minus(figures["error_rate"], 2, 100.0),
                plus_minus(figures["negative_log_likelihood"], 4),
                plus_minus(figures["expected_calibration_error"], 2, 100.0),
                plus_minus(figures["agreement_with_teacher"], 2, 100.0),
            )
        )
    return rows


def runtime_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row a model and runtime: size, and latency of one example on one thread."""
    return [
        (
            row["model"],
            row["runtime"],
            f"{row['num_parameters']:,}",
            f"{row['bytes']:,}",
            *(f"{row[percentile]:.4f}" for percentile in ("p50_ms", "p90_ms", "p99_ms")),
        )
        for row in results["runtimes"]
    ]


def plus_minus(figure: dict[str, Any], decimals: int, scale: float = 1.0) -> str:
    """`mean ± standard deviation`, or the one value where there is one seed.

    Example:
        >>> plus_minus({"mean": 0.0213, "std": 0.0011, "per_seed": [0.02, 0.0226]}, 2, 100.0)
        '2.13 ± 0.11'
    """
    if figure["std"] is None:
        value = figure["per_seed"][0]
        return f"{value}" if isinstance(value, int) and scale == 1.0 else f"{scale * value:.{decimals}f}"
    return f"{scale * figure['mean']:.{decimals}f} ± {scale * figure['std']:.{decimals}f}"


def models_table(results: dict[str, Any]) -> "Table":
    """The models' figures, for the terminal."""
    dataset, num_seeds = results["dataset"], results["recipe"]["num_seeds"]
    title = (
        f"{dataset['name']}: {dataset['num_test']:,} test examples; mean ± standard deviation, {num_seeds} seeds; "
        f"students see {dataset['num_seen_by_students']:,} of {dataset['num_train']:,} training examples"
    )
    return _table(title, MODEL_HEADER, model_rows(results), strong=MODEL_NAMES["student_distilled"])


def runtimes_table(results: dict[str, Any]) -> "Table":
    """The runtimes' figures, for the terminal."""
    title = f"one example a call, one thread, {results['machine']['processor']}"
    return _table(title, RUNTIME_HEADER, runtime_rows(results))


def report(results: dict[str, Any], evidence: dict[str, Any], dataset: Dataset) -> str:
    """The page.

    Args:
        results: what `results.json` holds.
        evidence: logits on the test set, of the teacher (also each member's) and of the shipped seed's students.
        dataset: for the pictures.

    Returns:
        HTML text.
    """
    from keras_distill.report import metrics, plots
    from keras_distill.report.page import Code, Figure, Section, Table, Verdict, page

    test, recipe = dataset.test, results["recipe"]
    seen = f"{results['dataset']['num_seen_by_students']:,} of {results['dataset']['num_train']:,}"
    teacher_logits = evidence["teacher_logits"]
    chosen = plots.most_ambiguous(teacher_logits, test.labels, 4)
    temperatures = plots.temperature_picture(
        only_array(test.take(chosen).inputs, "the demo"),
        evidence["teacher_targets"]["member_logits"][chosen],
        [int(label) for label in test.labels[chosen]],
        dataset.class_names,
    )
    reliabilities = plots.reliability_diagrams(
        {
            name: metrics.reliability(logits, test.labels)
            for name, logits in (
                ("teacher", teacher_logits),
                ("student, labels", evidence["student_on_labels_logits"]),
                ("student, distilled", evidence["student_distilled_logits"]),
            )
        }
    )
    outcome, shipped = results["verdict"], results["shipped_seed"]
    parity_rows = [
        (
            name,
            f"{artifact['bytes']:,}",
            f"{artifact['parity']['max_abs_error']:.1e}",
            f"{100 * artifact['parity']['argmax_agreement']:.2f}",
            f"{100 * artifact['parity']['accuracy']:.2f}",
        )
        for name, artifact in results["artifacts"].items()
    ]
    sections = [
        Section(
            "Accuracy",
            [
                Table(
                    MODEL_HEADER,
                    model_rows(results),
                    f"Mean ± standard deviation over {recipe['num_seeds']} seeds, after the last epoch, on "
                    f"{len(test):,} test examples that nothing was chosen on. Both students start from the same "
                    f"weights and take the same steps on the same {seen} training examples. 'Agrees' is with "
                    "the teacher's answers; NLL is the negative log-likelihood, ECE the expected calibration "
                    "error in 15 bins.",
                    strong_row=2,
                    main=("errors", "errors (%)", "NLL (nats)", "agrees (%)"),
                ),
            ],
        ),
        Section(
            "What the teacher knows beside the label",
            [
                "These are test images that the teacher gets right with the least margin. At T = 1 most of "
                "what it knows of the other classes is too small to teach anybody; a higher temperature shows which "
                f"wrong classes it finds likely. The student learned at T = {recipe['temperature']:g}.",
                Figure(
                    temperatures,
                    "The teacher's probabilities softened by T; the label's own bar is orange. Section 2 of "
                    "Hinton, Vinyals and Dean, arXiv:1503.02531.",
                ),
            ],
        ),
        Section(
            "Calibration",
            [
                Figure(
                    reliabilities,
                    "Test examples in bins by the probability of the predicted class, larger dots for more of them. "
                    "On the diagonal a model is right as often as it believes. Grey: fewer than ten examples. "
                    f"Students of seed {shipped}.",
                )
            ],
        ),
        Section(
            "Size, latency, errors",
            [
                Figure(
                    plots.trade_off(
                        _points(results, metrics.error_rate(evidence["student_distilled_logits"], test.labels))
                    ),
                    "One example a call on one thread, median; bytes of the file. Down and to the left is better.",
                ),
                Table(
                    RUNTIME_HEADER,
                    runtime_rows(results),
                    "Interleaved rounds in one process; 10 calls to warm up.",
                    main=("runtime", "bytes", "p50 (ms)"),
                ),
                Table(
                    ("file", "bytes", "largest logit error", "same answer (%)", "test accuracy (%)"),
                    parity_rows,
                    f"Each file reopened in its runtime and held to the Keras model on all {len(test)} test examples.",
                ),
            ],
        ),
        Section(
            "Use it",
            [
                "student.keras is a plain Keras model that gives logits; student.onnx and student.tflite are the same "
                "network for onnxruntime and LiteRT. With models of your own:",
                Code(
                    "keras-distill distill --teacher teacher.keras --student student.keras --data mydata.npz "
                    f"--temperature {recipe['temperature']:g} --out distilled.keras\n"
                    "keras-distill export distilled.keras --to onnx litert --out artifacts"
                ),
            ],
        ),
    ]
    machine = results["machine"]
    versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
    quick_note = "Made with --quick: the figures prove nothing. " if results["quick"] else ""
    return page(
        f"Distillation on {dataset.name}",
        sections,
        verdicts=[Verdict(outcome["sentence"], outcome["word"] == "BETTER")],
        summary=quick_note + _summary(results),
        footer=f"{machine['processor']}, {machine['num_cores']} cores; Python {machine['python']}, {versions}. "
        f"{results['seconds']['total']:.0f} s in all. Data: {dataset.name}, {dataset.licence}.",
    )


def front(results: dict[str, Any]) -> str:
    """Accuracy against latency in LiteRT: teacher, student on labels, and ours; an SVG file of its own.

    Both students are one network, so they have one latency.

    Args:
        results: what `results.json` holds.
    """
    from keras_distill.report.drawing import on_paper
    from keras_distill.report.plots import AccuracyPoint, lift

    microseconds = {row["key"]: 1000 * row["p50_ms"] for row in results["runtimes"]}
    points = [
        AccuracyPoint(
            label,
            microseconds[f"{key.split('_')[0]} tflite"],
            100 * (1 - results["models"][key]["error_rate"]["mean"]),
            100 * (results["models"][key]["error_rate"]["std"] or 0.0),
        )
        for key, label in (
            ("teacher", "teacher"),
            ("student_on_labels", "student on labels"),
            ("student_distilled", "the same student, distilled"),
        )
    ]
    return on_paper(lift(points))


def _summary(results: dict[str, Any]) -> str:
    """Size and speed of the student beside its teacher, in a sentence."""
    rows = {row["key"]: row for row in results["runtimes"]}
    teacher, student = rows["teacher onnx"], rows["student onnx"]
    return (
        f"The student has {student['num_parameters']:,} weights, its teacher {teacher['num_parameters']:,}. As an ONNX "
        f"file it takes {student['bytes'] / 1000:,.0f} kB, {teacher['bytes'] / student['bytes']:.1f} times less, and "
        f"answers in {1000 * student['p50_ms']:.0f} µs: {teacher['p50_ms'] / student['p50_ms']:.1f} times sooner than "
        f"its teacher does there, {rows['teacher keras']['p50_ms'] / student['p50_ms']:.0f} times sooner than its "
        "teacher in Keras."
    )


def _points(results: dict[str, Any], student_error_rate: float) -> list[Any]:
    from keras_distill.report.plots import TradeOffPoint

    errors = {"teacher": results["models"]["teacher"]["error_rate"]["mean"], "student": student_error_rate}
    return [
        TradeOffPoint(
            # One name for the three points of a model: they lie side by side.
            label=row["model"] if row["runtime"] == "onnxruntime" else "",
            num_bytes=row["bytes"],
            latency_ms=row["p50_ms"],
            error_percent=100.0 * errors[row["model"]],
            group=row["runtime"],
        )
        for row in results["runtimes"]
    ]


def _table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]], strong: str = "") -> "Table":
    from rich.table import Table

    table = Table(title=title)
    for position, name in enumerate(header):
        table.add_column(name, justify="left" if position == 0 or name == "runtime" else "right")
    for row in rows:
        table.add_row(*row, style="bold" if row[0] == strong else None)
    return table
