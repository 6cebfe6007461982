"""A benchmark's plots: `docs/performance/NAME.svg`, which `docs/performance.md` shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keras_distill.report.drawing import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[1] / "docs/performance"


def growth(name: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> None:
    """How a cost grows: a line each, `{what: (x, y)}`, both axes logarithmic."""
    figure, axes = _empty(6.5, 3.4)
    for index, (what, (x, y)) in enumerate(lines.items()):
        axes.plot(x, y, color=COLOURS[index], marker=MARKERS[index], label=what)
    axes.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
    axes.grid(which="both", alpha=0.2)
    axes.legend(frameon=False, fontsize=8)
    _write(figure, name)


def bars(name: str, groups: Mapping[str, Mapping[str, float]], x_label: str, *, stacked: bool = False) -> None:
    """`{group: {what: value}}` as horizontal bars, side by side within a group, or one upon the other."""
    kinds = list(dict.fromkeys(kind for group in groups.values() for kind in group))
    height = 0.7 if stacked else 0.8 / len(kinds)
    figure, axes = _empty(6.5, 0.8 + len(groups) * (0.4 if stacked else 0.17 * len(kinds) + 0.1))
    starts = dict.fromkeys(groups, 0.0)
    for index, kind in enumerate(kinds):
        shift = 0.0 if stacked else (index - (len(kinds) - 1) / 2) * height
        values = [group.get(kind, 0.0) for group in groups.values()]
        places = [place + shift for place in range(len(groups))]
        left = list(starts.values()) if stacked else None
        axes.barh(places, values, height, left=left, color=COLOURS[index % len(COLOURS)], label=kind)
        starts = {group: starts[group] + value for group, value in zip(groups, values, strict=True)}
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    axes.set_xlabel(x_label)
    axes.grid(axis="x", alpha=0.2)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _write(figure, name)


def roofline(name: str, points: Mapping[str, tuple[float, float]], operations: float, traffic: float) -> None:
    """Where each case lies under the roof of a machine.

    Args:
        name: of the plot.
        points: what → (operations a byte, 10⁹ operations a second).
        operations: the machine's 10⁹ operations a second.
        traffic: its 10⁹ bytes a second.
    """
    figure, axes = _empty(6.5, 3.4)
    intensities = [intensity for intensity, _ in points.values()]
    ridge = operations / traffic
    ends = [min(ridge, *intensities) / 4, ridge, max(ridge, *intensities) * 4]
    axes.plot(ends, [min(operations, end * traffic) for end in ends], color="black", linewidth=1)
    for index, (what, point) in enumerate(points.items()):
        axes.plot(*point, MARKERS[index], color=COLOURS[index], label=what)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="10⁹ operations a second")
    axes.grid(which="both", alpha=0.2)
    axes.legend(frameon=False, fontsize=8)
    _write(figure, name)


def _empty(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _write(figure: "Figure", name: str) -> None:
    import matplotlib

    FOLDER.mkdir(exist_ok=True)
    # A fixed salt and no date: the same figures give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None, "Creator": None})
