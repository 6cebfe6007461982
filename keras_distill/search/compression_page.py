"""`report.html` of a compression: what was asked for, what was found, and everything that was tried."""

from typing import TYPE_CHECKING

from keras_distill.deploy.budgets import Budgets
from keras_distill.report import plots
from keras_distill.report.page import Figure, Paragraph, Part, Section, Table, Verdict, page
from keras_distill.search.compression import Compression
from keras_distill.search.trials import Trial

if TYPE_CHECKING:
    from keras_distill.data import Dataset


def report_page(compression: Compression, budgets: Budgets, dataset: "Dataset", name: str) -> str:
    """The page, complete in itself; pointing at a candidate in the figure names it."""
    chosen, verdict = compression.trial, compression.verdict
    shipped = compression.bundle is not None
    errors = compression.test_errors
    found: list[Part | str] = [
        Verdict(
            f"{_kind(chosen)} holds {_asked(budgets)}." if shipped else "No candidate passed the gate.", holds=shipped
        ),
        *(Paragraph(reason) for outcome in compression.shipment.outcomes for reason in outcome.reasons),
        Table(
            ["model", "test errors"],
            [[who, f"{100 * errors[who]:.2f} %"] for who in ("teacher", "labels", "distilled", "student")],
            f"On {len(dataset.test):,} test examples of {dataset.name}, looked at once",
            strong_row=3,
        ),
        Paragraph(f"Distilled against the same student on labels alone: {verdict}."),
        *(Paragraph(reason) for reason in verdict.reasons),
    ]
    tried = Section(
        "What was tried",
        [
            *_front(compression, budgets),
            Table(
                [
                    "candidate",
                    "bytes",
                    "ms",
                    "weights",
                    "multiply-adds",
                    "epochs",
                    "errors",
                    "NLL",
                    "what became",
                ],
                [_row(trial, trial.number == chosen.number) for trial in compression.trials],
                "Validation errors and negative log-likelihood (nats) at the last epoch of each",
            ),
        ],
    )
    sections = [Section("The student", found), tried]
    if compression.notes:
        sections.append(Section("Notes", list(compression.notes)))
    summary = (
        f"{len(compression.trials)} candidates, {compression.cost:.1f} × one training, {compression.seconds / 60:.1f} "
        f"minutes: {_kind(chosen)}, {100 * errors['student']:.2f} % test errors; the teacher has "
        f"{100 * errors['teacher']:.2f} %."
    )
    return page(f"{name}: a student for {_asked(budgets)}", sections, summary=summary)


def _front(compression: Compression, budgets: Budgets) -> list[Figure]:
    """One figure for each budget: errors against what it limits."""
    trained = [trial for trial in compression.trials if trial.cost is not None and trial.errors]
    numbers = [trial.number for trial in trained]
    figures = []
    for attribute, label, limit in (
        ("latency_ms", "latency of one example, p50 (ms)", budgets.max_latency_ms),
        ("num_bytes", "size (bytes)", budgets.max_size),
    ):
        if limit is None or not trained:
            continue
        candidates = [
            plots.Candidate(
                getattr(trial.cost, attribute),
                100 * trial.errors[trial.epochs],
                trial.family,
                trial.state == "finished",
                f"{trial.number + 1}: {_kind(trial)}, {trial.cost}, {100 * trial.errors[trial.epochs]:.2f} % errors "
                f"after {trial.epochs} epochs",
            )
            for trial in trained
        ]
        svg = plots.front(
            candidates,
            label,
            chosen=numbers.index(compression.trial.number),
            limit=float(limit),
            teacher_percent=100 * compression.teacher_error,
        )
        caption = (
            "Filled: trained to the end; hollow: given up earlier; large: chosen. Point at one to read what it is."
        )
        figures.append(Figure(svg, caption, f"Validation errors of {len(trained)} candidates against {label}."))
    return figures


def _row(trial: Trial, is_chosen: bool) -> list[object]:
    cost = trial.cost
    became = f"failed: {trial.reason}" if trial.state == "failed" else ("chosen" if is_chosen else trial.state)
    return [
        f"{trial.number + 1}: {_kind(trial)}",
        f"{cost.num_bytes:,}" if cost else "–",
        f"{cost.latency_ms:.4f}" if cost else "–",
        f"{cost.num_parameters:,}" if cost else "–",
        f"{cost.multiply_adds:,}" if cost else "–",
        trial.epochs,
        f"{100 * trial.errors[trial.epochs]:.2f} %" if trial.errors else "–",
        f"{trial.score:.4f}" if trial.scores else "–",
        became,
    ]


def _kind(trial: Trial) -> str:
    width = "" if trial.width is None else f", width {trial.width:.3g}"
    return f"{trial.family} in {trial.precision}{width}"


def _asked(budgets: Budgets) -> str:
    limits = [f"{budgets.max_latency_ms:g} ms"] if budgets.max_latency_ms is not None else []
    limits += [f"{budgets.max_size:,} bytes"] if budgets.max_size is not None else []
    return " and ".join(limits)
