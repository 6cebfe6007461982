"""What `keras-distill specialists` measures on the test set, and its tables."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from keras_distill.cli.specialists_run import predict
from keras_distill.report import metrics

if TYPE_CHECKING:
    import keras

    from keras_distill.data import Dataset, Split
    from keras_distill.specialists import Clusters


def measure(models: Mapping[str, "keras.Model"], clusters: "Clusters", split: "Split") -> dict[str, Any]:
    """Errors of every model, and where specialists changed them.

    Args:
        models: at least "generalist", "control" and "merged", a `SpecialistEnsemble`.
        clusters: the groups of classes.
        split: what is measured on.
    """
    measured = {name: predict(model, split) for name, model in models.items()}
    rows = {name: _row(logits, split.labels) for name, logits in measured.items()}
    for name, share in _within_groups(clusters, models["merged"].specialists, measured, split).items():
        rows.setdefault(name, {})["within_group"] = share
    return {"models": rows, "by_coverage": _by_coverage(clusters, measured, split.labels)}


def tables(results: Mapping[str, Any], dataset: "Dataset") -> tuple[Table, Table]:
    """What `measure` found, for people."""
    return _models_table(results["models"], dataset), _coverage_table(results["by_coverage"])


def _row(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    errors = round(metrics.error_rate(logits, labels) * len(labels))
    low, high = metrics.wilson_interval(errors, len(labels))
    likelihood = metrics.negative_log_likelihood(logits, labels)
    return {"errors": errors, "low": low, "high": high, "nll": likelihood}


def _by_coverage(clusters: "Clusters", measured: Mapping[str, np.ndarray], labels: np.ndarray) -> list[dict[str, int]]:
    """The paper's table 4: what changes, by how many specialists cover the true class."""
    coverage = clusters.coverage
    rows = []
    for count in sorted(set(coverage.tolist())):
        here = coverage[labels] == count
        row = {"specialists": count, "classes": int((coverage == count).sum()), "items": int(here.sum())}
        for name in ("generalist", "control", "merged"):
            row[name] = int((np.argmax(measured[name][here], axis=-1) == labels[here]).sum())
        rows.append(row)
    return rows


def _within_groups(
    clusters: "Clusters", experts: Sequence["keras.Model"], measured: Mapping[str, np.ndarray], split: "Split"
) -> dict[str, float]:
    """Accuracy on the items of a group among that group's classes alone, mean over the items of all groups.

    The paper's "conditional" accuracy, but within one group: what specialists gain here and the merged model does not
    show was lost in choosing the group.
    """
    right, num_items = dict.fromkeys(["specialists", *measured], 0), 0
    for class_set, expert in zip(clusters.class_sets, experts, strict=True):
        here = np.isin(split.labels, class_set)
        if not here.any():
            continue
        labels = split.labels[here]
        num_items += len(labels)
        own = predict(expert, split.take(np.flatnonzero(here)))[:, :-1]
        for name, logits in [("specialists", own)] + [
            (name, logits[here][:, class_set]) for name, logits in measured.items()
        ]:
            right[name] += int((np.asarray(class_set)[np.argmax(logits, axis=-1)] == labels).sum())
    return {name: count / max(num_items, 1) for name, count in right.items()}


def _models_table(rows: Mapping[str, Any], dataset: "Dataset") -> Table:
    num_items = len(dataset.test)
    table = Table(title=f"{dataset.name}, {num_items} test items")
    for column in ("model", "errors", "error rate", "95 % interval", "NLL (nats)", "right within its group"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, row in rows.items():
        within = f"{100 * row['within_group']:.2f} %"
        if "errors" not in row:
            table.add_row(name, "–", "–", "–", "–", within)
            continue
        interval = f"{100 * row['low']:.2f}–{100 * row['high']:.2f} %"
        rate = f"{100 * row['errors'] / num_items:.2f} %"
        table.add_row(name, str(row["errors"]), rate, interval, f"{row['nll']:.4f}", within)
    return table


def _coverage_table(rows: Sequence[Mapping[str, int]]) -> Table:
    table = Table(title="by how many specialists cover the true class: items classified rightly")
    columns = ("specialists", "classes", "test items", "generalist", "control", "merged", "change", "relative")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        change = row["merged"] - row["generalist"]
        relative = f"{100 * change / row['generalist']:+.1f} %" if row["generalist"] else "–"
        counts = [str(row[name]) for name in ("specialists", "classes", "items", "generalist", "control", "merged")]
        table.add_row(*counts, f"{change:+d}", relative)
    return table
