"""The page: whole in itself, safe with any name, and the same for every report."""

import re
from html.parser import HTMLParser

import pytest

from keras_distill.report.page import Code, Figure, Section, Table, Verdict, page

NASTY = "<script>alert('&')</script>"


class Outline(HTMLParser):
    """Start tags with their attributes, and the text that a reader sees."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data.strip())


def nasty_page():
    return page(
        NASTY,
        [
            Section(
                NASTY,
                [
                    NASTY,
                    Table([NASTY, "errors"], [[NASTY, 3], ["b", Verdict(NASTY, False)]], NASTY, strong_row=1),
                    Verdict("holds", True),
                    Verdict("by the way"),
                    Figure("<svg></svg>", NASTY, NASTY),
                    Code(NASTY),
                ],
            )
        ],
        summary=NASTY,
        footer=NASTY,
    )


def test_names_are_never_markup():
    outline = Outline(nasty_page())
    assert not [tag for tag, _ in outline.tags if tag == "script"]
    # The title twice, a heading, a paragraph, two cells, a header, two captions, code, summary, footer.
    assert outline.text.count(NASTY) == 12
    assert not outline.open


def test_page_asks_nothing_of_the_network():
    html = nasty_page()
    assert not re.search(r"""(src|href)\s*=|@import|url\(""", html)
    assert {"viewport", "color-scheme"} <= {attributes.get("name") for tag, attributes in Outline(html).tags}
    assert "prefers-color-scheme: dark" in html


def test_verdicts_and_the_strong_row_are_marked():
    classes = [attributes.get("class") for _, attributes in Outline(nasty_page()).tags]
    assert classes.count("verdict bad") == 1
    assert classes.count("verdict good") == 1
    assert classes.count("verdict remark") == 1
    assert classes.count("strong") == 1


def test_figures_are_described_to_those_who_cannot_see_them():
    html = page("t", [Section("s", [Figure("<svg id='x'></svg>", "Only a caption")])])
    assert '<figure role="img" aria-label="Only a caption">' in html
    assert "<svg id='x'></svg>" in html


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells as the header has; got 1"):
        Table(["a", "b"], [["only one"]])
