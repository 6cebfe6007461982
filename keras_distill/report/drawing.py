"""What our figures have in common: SVG text in the ink of the page around it, titles to point at, plain axes.

No figure touches pyplot or its global state. Lines and letters are drawn in the colour of the text
around the figure (`currentColor`), so a figure is readable on a light and on a dark page.
"""

from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Matplotlib cannot say `currentColor`; this stands for it until the SVG is text.
INK = "#010203"
GREY = "#8b93a1"
# Distinguishable with every common colour blindness, on white and on near-black (after Okabe and Ito).
COLOURS = ("#e69f00", "#0f8fd0", "#12a876", "#cc79a7", "#d55e00", "#7a86e8")
MARKERS = ("o", "s", "^", "D", "v", "P")


def on_paper(svg: str) -> str:
    """A figure as a file of its own: dark ink on white, whatever is around it."""
    return svg.replace("<svg ", '<svg style="color: #1d2430; background: #ffffff" ', 1)


def named(mark: "Line2D", name: str) -> str:
    """Gives a mark of the figure an id in the SVG, and returns it."""
    mark.set_gid(name)
    return name


def with_titles(svg: str, titles: Mapping[str, str]) -> str:
    """The SVG whose marks of these ids have titles, which browsers show under the pointer."""
    for name, title in titles.items():
        start = f'<g id="{name}">'
        svg = svg.replace(start, f"{start}<title>{escape(title)}</title>", 1)
    return svg


def keep_percent(axes: "Axes") -> None:
    """Ends an axis of per cent where per cent end: the margin beyond the outermost point may go no further."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, 100.0))


def write_plain_numbers(axis: "Axis") -> None:
    """Few numbers along a logarithmic axis, without powers: at 1, 2, 5, 10, 20, …, in a shorter range evenly."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0)) if high > 5.0 * low else MaxNLocator(6, steps=[1, 2, 5, 10])
    )
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def label_points(axes: "Axes", positions: Sequence[tuple[float, float]], labels: Sequence[str]) -> None:
    """Writes each label over its point or under it, in the nearest line where it covers no other label and no point."""
    height, letter = 10.0, 4.7  # of a line and, on average, of a letter at 8 points, in points of 1/72 inch
    places = axes.transData.transform(positions) * 72.0 / axes.figure.dpi
    taken = [(x - 4.0, x + 4.0, y - 4.0, y + 4.0) for x, y in places]
    for (x, y), position, label in zip(places, positions, labels, strict=True):
        half = letter * len(label) / 2
        candidates = [offset for line in range(12) for offset in (6.0 + height * line, -14.0 - height * line)]

        def is_free(offset: float, x: float = x, y: float = y, half: float = half) -> bool:
            low, high = y + offset, y + offset + height
            return all(x + half <= a or x - half >= b or high <= c or low >= d for a, b, c, d in taken)

        offset = next((each for each in candidates if is_free(each)), candidates[0])
        taken.append((x - half, x + half, y + offset, y + offset + height))
        axes.annotate(
            label, position, xytext=(0, offset), textcoords="offset points", fontsize=8, ha="center", in_layout=False
        )


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of `width` × `height` inches, outside of pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg_of(figure: "Figure") -> str:
    """The figure as SVG text, its letters as text and its ink as the page's own."""
    import matplotlib

    for axes in figure.axes:
        _ink(axes)
    content = BytesIO()
    # Letters as text: sharp, searchable and a tenth of the bytes of outlines. A fixed salt and no date:
    # the same figure gives the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "keras_distill"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = content.getvalue().decode("utf-8")
    # From `<svg` on: an XML declaration has no place inside HTML.
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _ink(axes: "Axes") -> None:
    axes.tick_params(which="both", colors=INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(GREY)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.get_legend()
    texts = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts, *(legend.get_texts() if legend else [])]
    for text in [*texts, *axes.get_xticklabels(), *axes.get_yticklabels()]:
        text.set_color(INK)
        # A class called "$x_1$" is a name, not mathematics.
        text.set_parse_math(False)
