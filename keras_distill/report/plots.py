"""The figures of our reports, as SVG text that a page can hold inline. How they are drawn is in `drawing.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from keras_distill._checks import error_message
from keras_distill.report.drawing import (
    COLOURS,
    GREY,
    INK,
    MARKERS,
    keep_percent,
    label_points,
    named,
    new_figure,
    svg_of,
    with_titles,
    write_plain_numbers,
)
from keras_distill.report.metrics import Reliability, softmax

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Bins with fewer examples say little of a model.
_FEW = 10


@dataclass(frozen=True)
class TradeOffPoint:
    """A model in the plot of size, latency and error.

    Attributes:
        label: the model's name.
        num_bytes: size on disk, in bytes.
        latency_ms: median latency of one example, in ms.
        error_percent: test errors, in per cent.
        group: points of one group share a colour.
    """

    label: str
    num_bytes: int
    latency_ms: float
    error_percent: float
    group: str = ""


@dataclass(frozen=True)
class AccuracyPoint:
    """A model in the plot of accuracy and latency.

    Attributes:
        label: the model's name.
        latency_us: median latency of one example, in µs.
        accuracy_percent: share of the test examples answered rightly, in per cent; the mean over seeds.
        deviation: the standard deviation over seeds, in points; 0 for one seed.
    """

    label: str
    latency_us: float
    accuracy_percent: float
    deviation: float


@dataclass(frozen=True)
class Candidate:
    """A candidate of a search.

    Attributes:
        x: what it costs.
        error_percent: errors on validation data, in per cent.
        group: candidates of one group share a colour.
        is_finished: whether it was trained to its end; one that was given up is hollow.
        title: what a reader sees who points at it.
    """

    x: float
    error_percent: float
    group: str
    is_finished: bool
    title: str


def temperature_picture(
    images: np.ndarray,
    teacher_logits: np.ndarray,
    labels: Sequence[int],
    class_names: Sequence[str],
    temperatures: Sequence[float] = (1.0, 2.0, 5.0, 20.0),
) -> str:
    """What temperature uncovers: examples, and the teacher's probabilities for them at each temperature.

    Args:
        images: `(num_examples, height, width, channels)` in [0, 1], one row of the figure each. Inputs of
            another kind are drawn as a heat map where they have two axes, else left out.
        teacher_logits: `(num_examples, num_classes)`, or an ensemble's `(num_examples, members,
            num_classes)`, whose softened target is the mean of the members' at that temperature.
        labels: the right class of each example, highlighted.
        class_names: at most the first 12 classes by the teacher's probability are drawn.
        temperatures: one column each.

    Returns:
        SVG text.

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2.
    """
    if not len(images) == len(teacher_logits) == len(labels):
        received = f"{len(images)} images, {len(teacher_logits)} rows of logits, {len(labels)} labels"
        raise ValueError(error_message("a temperature picture needs as many images as logits and labels", received))
    figure = new_figure(9.0, 0.45 + 1.45 * len(images))
    grid = figure.subplots(
        len(images), 1 + len(temperatures), squeeze=False, width_ratios=[0.8] + [1.0] * len(temperatures)
    )
    for row, (image, logits, label) in enumerate(zip(images, teacher_logits, labels, strict=True)):
        _draw_input(grid[row, 0], image)
        grid[row, 0].set_title(f"label: {class_names[label]}", fontsize=9)
        targets = [_target(logits, temperature) for temperature in temperatures]
        shown = np.sort(np.argsort(-targets[-1], kind="stable")[:12])
        for column, (temperature, target) in enumerate(zip(temperatures, targets, strict=True), start=1):
            axes = grid[row, column]
            colours = [COLOURS[0] if index == label else COLOURS[1] for index in shown]
            axes.bar(range(len(shown)), target[shown], color=colours, width=0.8)
            axes.set_xticks(range(len(shown)), [_short(class_names[index]) for index in shown], fontsize=7)
            axes.set_ylim(0.0, 1.0)
            axes.set_yticks([0.0, 0.5, 1.0], ["0", "½", "1"] if column == 1 else [], fontsize=7)
            if row == 0:
                axes.set_title(f"T = {temperature:g}", fontsize=10)
    return svg_of(figure)


def reliability_diagrams(reliabilities: Mapping[str, Reliability]) -> str:
    """Confidence against accuracy, one small diagram a model; on the diagonal a model is as sure as it is right.

    Args:
        reliabilities: model's name → what `metrics.reliability` gave. Dots grow with the items in their bin; bins of
            fewer than ten are grey, and the line leaves them out.

    Returns:
        SVG text.

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, 2017, figure 1.
    """
    figure = new_figure(3.0 * len(reliabilities), 3.5)
    grid = figure.subplots(1, len(reliabilities), squeeze=False, sharey=True)[0]
    titles = {}
    for index, (axes, (name, bins)) in enumerate(zip(grid, reliabilities.items(), strict=True)):
        many = bins.counts >= _FEW
        colour = COLOURS[index % len(COLOURS)]
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        axes.plot(bins.confidences[many], bins.accuracies[many], color=colour, linewidth=1.2)
        for place in np.flatnonzero(bins.counts):
            count, confidence, accuracy = bins.counts[place], bins.confidences[place], bins.accuracies[place]
            (dot,) = axes.plot(
                [confidence],
                [accuracy],
                "o",
                color=colour if many[place] else GREY,
                markersize=np.sqrt(12.0 + 140.0 * count / bins.counts.sum()),
                alpha=0.8 if many[place] else 0.5,
                # A dot at the edge is whole, and the axes end at 0 and 1 all the same.
                clip_on=False,
            )
            titles[named(dot, f"bin-{index}-{place}")] = (
                f"{name}: {count:,} example{'' if count == 1 else 's'}, confidence {confidence:.3f}, "
                f"accuracy {accuracy:.3f}"
            )
        axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0), aspect="equal", xlabel="confidence")
        axes.set_title(name, fontsize=10)
    grid[0].set_ylabel("accuracy")
    return with_titles(svg_of(figure), titles)


def trade_off(points: Sequence[TradeOffPoint]) -> str:
    """Errors against latency and against size, both on a log scale: down and to the left is better.

    Args:
        points: the models.

    Returns:
        SVG text; each point has a `<title>`, which browsers show under the pointer.
    """
    figure = new_figure(9.0, 3.8)
    left, right = figure.subplots(1, 2, sharey=True)
    titles = {}
    groups = list(dict.fromkeys(point.group for point in points))
    for axes, attribute, scale in ((left, "latency_ms", 1.0), (right, "num_bytes", 1e-3)):
        for place, point in enumerate(points):
            style = groups.index(point.group)
            (mark,) = axes.plot(
                [getattr(point, attribute) * scale],
                [point.error_percent],
                linestyle="none",
                color=COLOURS[style % len(COLOURS)],
                marker=MARKERS[style % len(MARKERS)],
                markersize=7,
                clip_on=False,
            )
            titles[named(mark, f"model-{attribute}-{place}")] = " ".join(
                [
                    f"{point.label or point.group}: {point.error_percent:.2f} % errors,",
                    f"{point.latency_ms:.4g} ms, {point.num_bytes:,} bytes",
                ]
            )
        axes.set_xscale("log")
        axes.margins(x=0.22, y=0.25)
        write_plain_numbers(axes.xaxis)
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    keep_percent(left)
    left.set(xlabel="latency of one example, p50 (ms)", ylabel="test errors (%)")
    right.set(xlabel="size (kB)")
    if any(groups):
        for style, group in enumerate(groups):
            colour, marker = COLOURS[style % len(COLOURS)], MARKERS[style % len(MARKERS)]
            left.plot([], [], linestyle="none", color=colour, marker=marker, label=group)
        left.legend(frameon=False, fontsize=8)
    # Where points come to lie is known once the figure has its layout.
    figure.draw_without_rendering()
    for axes, attribute, scale in ((left, "latency_ms", 1.0), (right, "num_bytes", 1e-3)):
        positions = [(getattr(point, attribute) * scale, point.error_percent) for point in points]
        label_points(axes, positions, [point.label for point in points])
    return with_titles(svg_of(figure), titles)


def lift(points: Sequence[AccuracyPoint]) -> str:
    """Accuracy against latency of a teacher and of one student taught twice: the picture of what distilling brought.

    Args:
        points: the teacher, the student on labels, the same student distilled.

    Returns:
        SVG text; each point has a `<title>`, which browsers show under the pointer.
    """
    figure = new_figure(7.2, 3.5)
    axes = figure.subplots()
    teacher, labels, distilled = points
    titles = {}
    for place, (point, colour, marker) in enumerate(
        zip(points, (GREY, COLOURS[0], COLOURS[2]), ("s", "o", "D"), strict=True)
    ):
        (mark,) = axes.plot([point.latency_us], [point.accuracy_percent], marker, color=colour, markersize=11)
        axes.errorbar(
            [point.latency_us], [point.accuracy_percent], [point.deviation], color=colour, capsize=4, linewidth=1.4
        )
        titles[named(mark, f"point-{place}")] = (
            f"{point.label}: {point.accuracy_percent:.2f} ± {point.deviation:.2f} % right, {point.latency_us:.1f} µs"
        )
        is_teacher = point is teacher
        axes.annotate(
            f"{point.label}\n{point.accuracy_percent:.1f} %, {point.latency_us:.0f} µs",
            (point.latency_us, point.accuracy_percent),
            xytext=(-14, -18) if is_teacher else (14, 0),
            textcoords="offset points",
            ha="right" if is_teacher else "left",
            va="center",
            fontsize=10,
        )
    axes.axhline(teacher.accuracy_percent, color=GREY, linestyle=":", linewidth=1, zorder=0)
    axes.annotate(
        "",
        (distilled.latency_us, distilled.accuracy_percent),
        (labels.latency_us, labels.accuracy_percent),
        arrowprops={"arrowstyle": "-|>", "color": GREY, "shrinkA": 10, "shrinkB": 10},
    )
    axes.set_xscale("log")
    axes.margins(x=0.18, y=0.2)
    write_plain_numbers(axes.xaxis)
    keep_percent(axes)
    axes.set(xlabel="latency of one example, one thread (µs): less is better", ylabel="test accuracy (%)")
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    return with_titles(svg_of(figure), titles)


def front(
    candidates: Sequence[Candidate], x_label: str, *, chosen: int, limit: float | None, teacher_percent: float
) -> str:
    """What a search tried: errors against cost, a line through those that no other beats, titles to point at.

    Args:
        candidates: what was tried.
        x_label: what it costs, with its unit.
        chosen: the place of the one that was chosen.
        limit: the budget; `None` where there is none of this kind.
        teacher_percent: the teacher's errors.

    Returns:
        SVG text; each point has a `<title>`, which browsers show under the pointer.
    """
    figure = new_figure(8.0, 4.4)
    axes = figure.subplots()
    groups = list(dict.fromkeys(candidate.group for candidate in candidates))
    titles: dict[str, str] = {}
    for number, candidate in enumerate(candidates):
        style = groups.index(candidate.group)
        colour = COLOURS[style % len(COLOURS)]
        (point,) = axes.plot(
            [candidate.x],
            [candidate.error_percent],
            linestyle="none",
            color=colour,
            markerfacecolor=colour if candidate.is_finished else "none",
            marker=MARKERS[style % len(MARKERS)],
            markersize=11 if number == chosen else 7,
            clip_on=False,
        )
        titles[named(point, f"candidate-{number}")] = candidate.title
    for style, group in enumerate(groups):
        colour, marker = COLOURS[style % len(COLOURS)], MARKERS[style % len(MARKERS)]
        axes.plot([], [], linestyle="none", color=colour, marker=marker, label=group)
    best: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda candidate: (candidate.x, candidate.error_percent)):
        if not best or candidate.error_percent < best[-1].error_percent:
            best.append(candidate)
    axes.step([c.x for c in best], [c.error_percent for c in best], where="post", color=GREY, linewidth=1)
    axes.axhline(teacher_percent, color=GREY, linestyle="--", linewidth=1, label="teacher")
    if limit is not None:
        axes.axvline(limit, color=INK, linestyle=":", linewidth=1, label="budget")
    axes.set_xscale("log")
    write_plain_numbers(axes.xaxis)
    # Those that were given up early have many times the errors of the best, which are what matters.
    if min([teacher_percent, *(candidate.error_percent for candidate in candidates)]) > 0.0:
        axes.set_yscale("log")
        write_plain_numbers(axes.yaxis)
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(0.06, 0.1)
    keep_percent(axes)
    axes.set(xlabel=x_label, ylabel="errors on validation data (%)")
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    # Above the axes, where no candidate is.
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, borderaxespad=0.2)
    return with_titles(svg_of(figure), titles)


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> str:
    """Plain lines over one axis: training curves, sweeps.

    Args:
        lines: name → its x and its y values.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.

    Returns:
        SVG text.
    """
    figure = new_figure(7.0, 3.4)
    axes = figure.subplots()
    for index, (name, (x, y)) in enumerate(lines.items()):
        axes.plot(x, y, color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)], label=name)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    return svg_of(figure)


def figures_beside(rows: Mapping[str, tuple[float, float]], x_label: str) -> str:
    """One dot a line with its bar of ± a standard deviation: what several models reached, to compare at a glance.

    Args:
        rows: name → mean and standard deviation, 0 where there is none; the first stands at the top.
        x_label: what is compared, with its unit.

    Returns:
        SVG text; each dot has a `<title>`, which browsers show under the pointer.
    """
    figure = new_figure(7.0, 0.7 + 0.36 * len(rows))
    axes = figure.subplots()
    titles = {}
    for place, (name, (mean, deviation)) in enumerate(rows.items()):
        colour = COLOURS[place % len(COLOURS)]
        axes.plot([mean - deviation, mean + deviation], [place, place], color=colour, linewidth=2, alpha=0.6)
        (dot,) = axes.plot([mean], [place], "o", color=colour, markersize=8)
        titles[named(dot, f"row-{place}")] = f"{name}: {mean:.4g}" + (f" ± {deviation:.2g}" if deviation else "")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.set(xlabel=x_label)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    return with_titles(svg_of(figure), titles)


def most_ambiguous(teacher_logits: np.ndarray, labels: np.ndarray, num_examples: int = 3) -> np.ndarray:
    """Positions of the examples whose picture teaches most: the teacher is right, with the least margin.

    Examples are of different classes where there are enough of them.

    Args:
        teacher_logits: `(num_items, num_classes)`.
        labels: `(num_items,)`.
        num_examples: how many to choose.

    Returns:
        Integers, at most `(num_examples,)`.
    """
    probabilities = np.sort(softmax(teacher_logits), axis=-1)
    margins = probabilities[:, -1] - probabilities[:, -2]
    is_right = teacher_logits.argmax(axis=-1) == labels
    order = np.argsort(np.where(is_right, margins, margins + 2.0), kind="stable")
    chosen: list[int] = []
    seen: set[int] = set()
    for position in order:
        if int(labels[position]) not in seen:
            chosen.append(int(position))
            seen.add(int(labels[position]))
        if len(chosen) == num_examples:
            break
    return np.array(chosen, dtype=int)


def _target(logits: np.ndarray, temperature: float) -> np.ndarray:
    probabilities = softmax(logits, temperature)
    return probabilities.mean(axis=0) if probabilities.ndim == 2 else probabilities


def _draw_input(axes: "Axes", image: np.ndarray) -> None:
    axes.set_axis_off()
    if image.ndim == 3 and image.shape[-1] in (1, 3):
        picture = image[..., 0] if image.shape[-1] == 1 else np.clip(image, 0.0, 1.0)
        axes.imshow(picture, cmap="gray", interpolation="nearest")
    elif image.ndim == 2:
        axes.imshow(image.T, cmap="gray", origin="lower", aspect="auto")


def _short(name: str) -> str:
    return name if len(name) <= 4 else f"{name[:3]}…"
