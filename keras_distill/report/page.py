"""One self-contained HTML page: sections of text, tables, figures and verdicts.

The page needs no network and no script, reads well on a phone, and follows the reader's choice of light
or dark. Everything but our own SVG is escaped. What the page says is the caller's affair.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Paragraph:
    """Running text.

    Attributes:
        text: one paragraph, plain text.
    """

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Verdict:
    """A sentence that says whether something holds; also a cell of a table.

    Attributes:
        text: the sentence.
        holds: `True` is shown as good, `False` as bad, `None` as a remark.
        warns: whether a remark is one to look at.
    """

    kind: ClassVar[str] = "verdict"
    text: str
    holds: bool | None = None
    warns: bool = False

    @property
    def state(self) -> str:
        """The style of the verdict."""
        return {True: "good", False: "bad", None: "warning" if self.warns else "remark"}[self.holds]


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first column names the row and is set to the left, the others to the right.

    Attributes:
        header: names of the columns, with units.
        rows: cells of each row: text, numbers as the caller wants them printed, or `Verdict`.
        caption: what the table shows.
        strong_row: position of the row to set off from the others, or `None`.
        main: names of the columns that matter, which are shown beside the first; the whole table is folded under
            them. Empty: all are shown.

    Raises:
        ValueError: a row that has not as many cells as the header, or a main column that the header has not.
    """

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    strong_row: int | None = None
    main: Sequence[str] = ()

    def __post_init__(self) -> None:
        if missing := [name for name in self.main if name not in self.header]:
            raise ValueError(f"main columns must be of the header; got {', '.join(missing)}.")
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row must have {len(self.header)} cells as the header has; got {len(row)}.")

    @property
    def is_folded(self) -> bool:
        """Whether there are columns beside the main ones."""
        return bool(self.main) and len(self.main) + 1 < len(self.header)

    @property
    def shown(self) -> "Table":
        """The first column and the main ones."""
        places = [0, *(self.header.index(name) for name in self.main)]
        rows = [[row[place] for place in places] for row in self.rows]
        return Table([self.header[place] for place in places], rows, self.caption, self.strong_row)


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption.

    Attributes:
        svg: SVG text as `keras_distill.report.plots` gives it, inserted unescaped: none from an untrusted source.
        caption: what the figure shows.
        description: what somebody who cannot see the figure should know; the caption where empty.
    """

    kind: ClassVar[str] = "figure"
    svg: str
    caption: str = ""
    description: str = ""


@dataclass(frozen=True)
class Code:
    """Commands or a program, in a fixed-width type.

    Attributes:
        text: the lines.
    """

    kind: ClassVar[str] = "code"
    text: str


Part = Paragraph | Verdict | Table | Figure | Code


@dataclass(frozen=True)
class Section:
    """A title and what stands under it.

    Attributes:
        title: the heading.
        parts: paragraphs (a bare string is one), tables, figures, verdicts and code, in order.
    """

    title: str
    parts: Sequence[Part | str] = field(default_factory=tuple)


def page(
    title: str,
    sections: Sequence[Section],
    *,
    verdicts: Sequence[Verdict] = (),
    summary: str = "",
    footer: str = "",
) -> str:
    """Writes the page.

    Args:
        title: of the page.
        sections: what it says.
        verdicts: what a reader came for, before anything else.
        summary: the one or two sentences to read if nothing else is read.
        footer: where, when and with what the figures were measured.

    Returns:
        HTML text, complete in itself.

    Raises:
        ImportError: Jinja2 is not installed.

    Example:
        >>> html = page("A <b> title", [Section("Results", ["Text.", Table(["model", "errors"], [["a", 3]])])])
        >>> "A &lt;b&gt; title" in html, "http" in html
        (True, False)
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("a report needs Jinja2; install it with `pip install jinja2`.") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_distill.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    whole = [
        Section(section.title, [Paragraph(part) if isinstance(part, str) else part for part in section.parts])
        for section in sections
    ]
    return environment.get_template("page.html").render(
        title=title, verdicts=verdicts, sections=whole, summary=summary, footer=footer
    )
