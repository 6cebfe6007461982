"""A report in a headless Chromium, as wide as a phone and as a desk: nothing leaves the page, all is reached."""

import numpy as np
import pytest
from chromium import Browser, find_chromium

from keras_distill.report import metrics, plots
from keras_distill.report.page import Code, Figure, Section, Table, Verdict, page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
HEADER = ["model", *(f"column {number}" for number in range(12))]


def wide_page():
    bins = metrics.reliability(4 * np.eye(3)[np.arange(60) % 3], np.arange(60) % 3)
    points = [plots.TradeOffPoint(name, 10 ** (5 + place), 0.1, 1.0, "a") for place, name in enumerate("ab")]
    rows = [[f"model {row}", *(f"{1000 * number:,}" for number in range(12))] for row in range(3)]
    return page(
        "A student",
        [
            Section("Side by side", [Table(HEADER, rows, "All models", main=HEADER[1:5])]),
            Section(
                "Figures", [Figure(plots.reliability_diagrams({"student": bins, "teacher": bins}), "Sure or right")]
            ),
            Section("Costs", [Figure(plots.trade_off(points), "Errors"), Code("python benchmark.py " + "x" * 200)]),
        ],
        verdicts=[Verdict("It holds", True)],
    )


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_leaves_the_page_and_every_box_is_reached_by_the_keyboard(width, tmp_path):
    report = tmp_path / "report.html"
    report.write_text(wide_page(), encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        browser.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        browser.call("Page.navigate", url=report.as_uri())
        browser.wait_for("document.readyState == 'complete' && document.querySelectorAll('h1').length")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        # What is folded is as wide, once it is opened.
        browser.evaluate("document.querySelector('details').open = true")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        boxes = "[...document.querySelectorAll('.scroll, pre')]"
        assert browser.evaluate(
            f"{boxes}.every((box) => box.tabIndex == 0 && box.getBoundingClientRect().right <= {width})"
        )
        # A figure is cropped by nothing but its own box, which scrolls.
        inside = "(box) => [...box.querySelectorAll('svg text')].every((text) => text.getBoundingClientRect().right"
        assert browser.evaluate(f"{boxes}.every({inside} <= box.getBoundingClientRect().left + box.scrollWidth + 1))")
        if width == 1280:
            assert browser.evaluate(
                "[...document.querySelectorAll('figure .scroll')].every((b) => b.scrollWidth <= b.clientWidth)"
            )
        order = "[...document.querySelectorAll('h1, .verdict, h2')].slice(0, 3).map((each) => each.innerText)"
        assert browser.evaluate(order) == ["A student", "It holds", "Side by side"]
