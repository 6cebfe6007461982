"""`report.html` of a compression: what was asked for, what was found, and everything that was tried."""

from typing import TYPE_CHECKING

from keras_distill.deploy.budgets import Budgets
from keras_distill.report import plots
from keras_distill.report.page import Figure, Paragraph, Part, Section, Table, Verdict, page
from keras_distill.search.compression import Compression
from keras_distill.search.trials import Trial

if TYPE_CHECKING:
    from keras_distill.data import Dataset


_NAMES = {
    "teacher": "teacher",
    "labels": "the student's twin on labels alone",
    "distilled": "the student, distilled",
    "student": "the student: the better of the two on validation data",
    "file": "the student's file, in its runtime",
}

_IS_GOOD = {"BETTER": True, "WORSE": False}

_AWARE = (
    "Rounded to int8 after training it was worse on validation data, so it was trained on with its rounding: the file "
    "is that of student-int8.keras."
)

_HELD_BACK = (
    "{} candidates were judged on the test set, one after another, since the gate held back those before this one: its "
    "test errors are of the last look."
)


def report_page(compression: Compression, budgets: Budgets, dataset: "Dataset", name: str) -> str:
    """The page, complete in itself; pointing at a candidate in the figure names it."""
    chosen, verdict = compression.trial, compression.verdict
    shipped = compression.bundle is not None
    errors, recipe = compression.test_errors, compression.recipe
    recipe_text = f"learning rate {recipe.learning_rate:.2g}"
    if not recipe.is_on_labels:
        recipe_text += f", temperature {recipe.temperature:.2g}, labels at a weight of {recipe.student_loss_weight:.2g}"
    held = Verdict(
        f"Holds {_asked(budgets)}: {_kind(chosen)}, whose file takes {_taken(compression)}."
        if shipped
        else "No candidate passed the gate.",
        holds=shipped,
    )
    helped = Verdict(f"Distilled against the same student on labels alone: {verdict}.", _IS_GOOD.get(verdict.word))
    found: list[Part | str] = [
        *(Paragraph(reason) for outcome in compression.shipment.outcomes for reason in outcome.reasons),
        Table(
            ["model", "test errors"],
            [[name, f"{100 * errors[who]:.2f} %"] for who, name in _NAMES.items() if who in errors],
            f"On {len(dataset.test):,} test examples of {dataset.name}",
            strong_row=3,
        ),
        Paragraph(f"Trained {'on labels alone' if recipe.is_on_labels else 'from soft targets'}: {recipe_text}."),
        *([Paragraph(_AWARE)] if compression.quantized is not None else []),
        *(Paragraph(reason) for reason in verdict.reasons),
        *([Paragraph(_HELD_BACK.format(compression.num_judged))] if compression.num_judged > 1 else []),
    ]
    tried = Section(
        "What was tried",
        [
            *_front(compression, budgets),
            Table(
                ["candidate", "bytes", "ms", "weights", "multiply-adds", "epochs", "errors", "NLL", "outcome"],
                [_row(trial, trial.number == chosen.number) for trial in compression.trials],
                "Validation errors and negative log-likelihood (nats) at the last epoch of each",
                main=("bytes", "ms", "errors", "outcome"),
            ),
            *(
                Paragraph(f"Candidate {trial.number + 1} failed: {trial.reason}")
                for trial in compression.trials
                if trial.state == "failed"
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
    return page(f"{name}: the best within {_asked(budgets)}", sections, verdicts=[held, helped], summary=summary)


def _front(compression: Compression, budgets: Budgets) -> list[Figure]:
    """One figure for each budget: errors against what it limits."""
    trained = [trial for trial in compression.trials if trial.cost is not None and trial.errors]
    numbers = [trial.number for trial in trained]
    figures = []
    for attribute, label, limit in (
        ("latency_ms", "latency of one example, p50 (ms)", budgets.max_latency_ms),
        ("num_bytes", "size (bytes)", budgets.max_size),
        ("arena_bytes", "arena (bytes)", budgets.max_arena),
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
    return [
        f"{trial.number + 1}: {_kind(trial)}",
        f"{cost.num_bytes:,}" if cost else "–",
        f"{cost.latency_ms:.4f}" if cost else "–",
        f"{cost.num_parameters:,}" if cost else "–",
        f"{cost.multiply_adds:,}" if cost else "–",
        trial.epochs,
        f"{100 * trial.errors[trial.epochs]:.2f} %" if trial.errors else "–",
        f"{trial.score:.4f}" if trial.scores else "–",
        "chosen" if is_chosen else trial.state,
    ]


def _kind(trial: Trial) -> str:
    width = "" if trial.width is None else f", width {trial.width:.3g}"
    return f"{trial.family} in {trial.precision}{width}"


def _taken(compression: Compression) -> str:
    """What the file that ships takes, as the gate measured it."""
    variants = [outcome.variant for outcome in compression.shipment.outcomes if outcome.variant is not None]
    arenas = [f" and an arena of {each.micro.arena_bytes:,} bytes" for each in variants if each.micro is not None]
    taken = " and ".join(f"{variant.num_bytes:,} bytes and {variant.latency['p50_ms']:.4f} ms" for variant in variants)
    return taken + "".join(arenas)


def _asked(budgets: Budgets) -> str:
    limits = [f"{budgets.max_latency_ms:g} ms"] if budgets.max_latency_ms is not None else []
    limits += [f"{budgets.max_size:,} bytes"] if budgets.max_size is not None else []
    limits += [f"an arena of {budgets.max_arena:,} bytes"] if budgets.max_arena is not None else []
    return " and ".join(limits)
