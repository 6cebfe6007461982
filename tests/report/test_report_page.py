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
    assert '<div role="img" aria-label="Only a caption">' in html
    assert "<svg id='x'></svg>" in html


def test_verdicts_come_before_everything_else():
    html = page("t", [Section("s", ["text"])], verdicts=[Verdict("it holds", True)], summary="in short")
    outline = Outline(html)
    assert [text for text in outline.text if text] == ["t", "t", "it holds", "in short", "s", "text"]


def test_columns_that_matter_stand_open_and_the_whole_table_is_folded():
    table = Table(["model", "a", "b", "c"], [["x", 1, 2, 3], ["y", 4, 5, 6]], strong_row=1, main=("c", "a"))
    outline = Outline(page("t", [Section("s", [table])]))
    names = [name for name, _ in outline.tags]
    assert names.count("table") == 2
    assert "open" not in dict(outline.tags)["details"]
    # One table before the fold, one in it.
    assert names.index("table") < names.index("details") < len(names) - 1 - names[::-1].index("table")
    text = [each for each in outline.text if each]
    shown, whole = text[3 : text.index("All 4 columns")], text[text.index("All 4 columns") + 1 :]
    assert shown == ["model", "c", "a", "x", "3", "1", "y", "6", "4"]
    assert whole == ["model", "a", "b", "c", "x", "1", "2", "3", "y", "4", "5", "6"]
    assert sum(attributes.get("class") == "strong" for _, attributes in outline.tags) == 2


def test_a_table_of_main_columns_alone_is_not_folded():
    html = page("t", [Section("s", [Table(["model", "a"], [["x", 1]], main=("a",))])])
    assert "<details>" not in html


def test_a_main_column_that_the_header_has_not_is_refused():
    with pytest.raises(ValueError, match="of the header; got speed"):
        Table(["model", "errors"], [], main=("errors", "speed"))


def test_every_box_that_scrolls_is_reached_by_the_keyboard_and_named():
    boxes = [attributes for _, attributes in Outline(nasty_page()).tags if attributes.get("class") == "scroll"]
    assert len(boxes) == 2
    assert all(box["tabindex"] == "0" and box["role"] == "region" and box["aria-label"] for box in boxes)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells as the header has; got 1"):
        Table(["a", "b"], [["only one"]])
