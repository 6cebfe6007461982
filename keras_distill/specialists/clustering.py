"""Confusable classes, found in the generalist's own predictions: no labels, no confusion matrix."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans

from keras_distill._checks import check_choice, check_count, check_finite, check_positive, error_message

if TYPE_CHECKING:
    from rich.table import Table

METHODS = ("correlation", "covariance")
# Beyond so many classes k-means sees them in batches; below, the exact algorithm costs less than a second.
_MINI_BATCH_FROM = 2000


@dataclass(frozen=True)
class Clusters:
    """Groups of confusable classes.

    Attributes:
        class_sets: for each group its classes, the most typical first.
        uncovered: classes that are in no group, ascending.
        similarity: float64 `(num_classes, num_classes)`, correlation in [−1, 1] or covariance; its diagonal is 0.
    """

    class_sets: list[list[int]]
    uncovered: list[int]
    similarity: np.ndarray

    @property
    def coverage(self) -> np.ndarray:
        """How many groups each class is in, int `(num_classes,)`."""
        return np.bincount(np.concatenate([[], *self.class_sets]).astype(int), minlength=len(self.similarity))


def cluster_classes(
    predictions: Iterable[np.ndarray],
    num_clusters: int,
    *,
    size: int | None = None,
    temperature: float = 2.0,
    method: str = "correlation",
    seed: int = 0,
) -> Clusters:
    """Groups the classes that the generalist often predicts together.

    The covariance matrix of the softened predictions is summed up batch by batch; its columns, the diagonal removed,
    are clustered by k-means, as in the paper. Covariance follows the frequent, uncertain classes (85 of CIFAR-100's
    fell into one group), so by default the columns are those of the *correlation* matrix.

    Args:
        predictions: batches of the generalist's logits, float `(batch, num_classes)`; one array is one batch. Items
            need no labels. Kept in memory is `(num_classes, num_classes)`, never all the predictions.
        num_clusters: how many groups.
        size: how many classes a group has: the nearest to its centre, so that groups may overlap and classes may be
            in none. `None`: each class is in exactly one group, and groups are as large as they come.
        temperature: softens the predictions first; 1 leaves a good generalist next to nothing but its first choice.
        method: `"correlation"` or `"covariance"`.
        seed: of k-means.

    Raises:
        ValueError: fewer than two items, NaN or infinite logits, batches of different class counts, more clusters
            than classes, groups that would hold every class.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> pairs = np.repeat(generator.normal(size=(500, 3)), 2, axis=1)  # classes 0 and 1 rise and fall together, …
        >>> cluster_classes([pairs + generator.normal(size=(500, 6)) / 4], num_clusters=3).class_sets
        [[0, 1], [2, 3], [4, 5]]

    Reference: Hinton et al., arXiv:1503.02531, section 5.3.
    """
    check_count("num_clusters", num_clusters)
    check_positive("temperature", temperature, "The paper's tables use 1; 2 shows more of the confusions.")
    check_choice("method", method, METHODS)
    covariance = _covariance([predictions] if isinstance(predictions, np.ndarray) else predictions, temperature)
    num_classes = len(covariance)
    if num_clusters > num_classes:
        raise ValueError(error_message(f"num_clusters must be <= {num_classes}, the number of classes", num_clusters))
    if size is not None and not 1 <= check_count("size", size) < num_classes:
        raise ValueError(error_message(f"size must be < {num_classes}, the number of classes", size))
    if size is None and num_clusters == 1:
        raise ValueError(
            error_message("num_clusters must be >= 2 where no size is given", 1, "One group would hold every class.")
        )
    similarity = covariance
    if method == "correlation":
        deviation = np.sqrt(np.diag(covariance))
        # A class that is never predicted, or always, correlates with nothing.
        scale = np.where(deviation > 0.0, 1.0 / np.maximum(deviation, 1e-300), 0.0)
        similarity = np.clip(covariance * scale * scale[:, None], -1.0, 1.0)
    np.fill_diagonal(similarity, 0.0)

    columns = similarity.T
    if num_classes < _MINI_BATCH_FROM:
        fitted = KMeans(num_clusters, n_init=10, random_state=seed).fit(columns)
    else:
        fitted = MiniBatchKMeans(num_clusters, n_init=3, batch_size=1024, random_state=seed).fit(columns)
    distances = fitted.transform(columns)
    class_sets = []
    for cluster in range(num_clusters):
        nearest = np.argsort(distances[:, cluster], kind="stable")
        members = nearest[:size] if size is not None else nearest[fitted.labels_[nearest] == cluster]
        if len(members):
            class_sets.append(members.tolist() if size is not None else sorted(members.tolist()))
    class_sets.sort(key=lambda class_set: min(class_set))
    covered = set().union(*class_sets)
    return Clusters(class_sets, sorted(set(range(num_classes)) - covered), similarity)


def table(clusters: Clusters, class_names: Sequence[str]) -> "Table":
    """The groups by class name, for the terminal, as a `rich` table."""
    from rich.table import Table

    found = Table(title=f"{len(clusters.class_sets)} groups of confusable classes")
    found.add_column("group", justify="right")
    found.add_column("classes", justify="right")
    found.add_column("their names", overflow="fold")
    for position, class_set in enumerate(clusters.class_sets):
        names = ", ".join(class_names[label] for label in class_set)
        found.add_row(str(position), str(len(class_set)), names)
    if clusters.uncovered:
        names = ", ".join(class_names[label] for label in clusters.uncovered)
        found.add_row("none", str(len(clusters.uncovered)), names)
    return found


def heat_map(clusters: Clusters, class_names: Sequence[str], path: str | os.PathLike) -> None:
    """Draws the similarity of the classes, group after group, into an image file.

    Args:
        clusters: what `cluster_classes` found.
        class_names: one a class.
        path: the image; its ending says the format.
    """
    from matplotlib.figure import Figure

    order = list(dict.fromkeys([label for class_set in clusters.class_sets for label in class_set]))
    order += clusters.uncovered
    bound = max(float(np.abs(clusters.similarity).max()), 1e-12)
    side = min(4.0 + 0.12 * len(order), 24.0)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes: Any = figure.subplots()
    image = axes.imshow(clusters.similarity[np.ix_(order, order)], cmap="RdBu_r", vmin=-bound, vmax=bound)
    if len(order) <= 150:
        axes.set_xticks(range(len(order)), [class_names[label] for label in order], rotation=90, fontsize=6)
        axes.set_yticks(range(len(order)), [class_names[label] for label in order], fontsize=6)
    figure.colorbar(image, shrink=0.7, label="similarity of the predictions")
    figure.savefig(path, dpi=120)


def _covariance(batches: Iterable[np.ndarray], temperature: float) -> np.ndarray:
    """Covariance of the softened predictions, float64 `(num_classes, num_classes)`, one batch in memory at a time."""
    num_items = 0
    centre = total = products = None
    for batch in batches:
        logits = check_finite("predictions", batch, "Look at the generalist.").astype("float64") / temperature
        if logits.ndim != 2 or (centre is not None and logits.shape[1] != len(centre)):
            expected = "be batches of shape (batch, num_classes), num_classes always the same"
            raise ValueError(error_message(f"predictions must {expected}", f"shape {logits.shape}"))
        if not len(logits):
            continue
        if centre is None:
            _check_memory(logits.shape[1])
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        if centre is None:
            # Sums of squares about a point near the mean: about zero they would cancel.
            centre = probabilities.mean(axis=0)
            total, products = np.zeros_like(centre), np.zeros((len(centre), len(centre)))
        probabilities -= centre
        num_items += len(probabilities)
        total += probabilities.sum(axis=0)
        products += probabilities.T @ probabilities
    if total is None or products is None or num_items < 2:
        raise ValueError(error_message("predictions must be those of at least 2 items", num_items))
    mean = total / num_items
    return products / num_items - np.outer(mean, mean)


def _check_memory(num_classes: int) -> None:
    """Raises `ValueError` where one matrix of classes by classes would take more than the machine's memory."""
    num_bytes = 8 * num_classes**2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63
    if num_bytes > memory:
        expected = f"be so small that a matrix of them fits into the {memory / 1e9:,.0f} GB of this machine's memory"
        received = f"{num_classes}, whose matrix takes {num_bytes / 1e9:,.0f} GB"
        remedy = "Cluster superclasses, or the most frequent classes alone."
        raise ValueError(error_message(f"num_classes must {expected}", received, remedy))
