"""The page of a bundle in a real headless Chromium: golden answers said aloud, drawing, dropping, a damaged bundle."""

import functools
import http.server
import json
import threading

import numpy as np
import pytest
from chromium import Browser, find_chromium
from hand_made import write_bundle

from keras_distill.deploy.web_runtime import copy_web_runtime, web_runtime

pytestmark = [pytest.mark.browser, pytest.mark.slow]
STATE = "document.body?.dataset.state != 'loading' && document.body?.dataset.state"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def runtime():
    if find_chromium() is None:
        pytest.skip("no Chromium is installed; CI installs one")
    try:
        return web_runtime()
    except ValueError as error:
        pytest.skip(f"no onnxruntime-web here: {error}")


@pytest.fixture
def served(runtime, tmp_path):
    """(folder, its address, golden images, golden logits)."""
    folder, images, logits = write_bundle(tmp_path / "bundle", web=True)
    copy_web_runtime(runtime, folder / "web" / "runtime")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}/web/", images, logits
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def browser(runtime, tmp_path):
    with Browser(tmp_path / "profile") as page:
        yield page


def shown(browser):
    """The classes and probabilities on the page, best first."""
    rows = browser.evaluate("[...document.querySelectorAll('#probabilities li')].map((row) => row.innerText)")
    return [(row.split()[0], float(row.split()[1])) for row in rows]


def test_golden_answers_are_confirmed_aloud_and_an_example_is_classified(served, browser):
    _, address, _, logits = served
    browser.call("Page.navigate", url=address + "?example=3")
    assert browser.wait_for(STATE) == "ready"
    assert "16 golden inputs are answered as when the student was shipped" in browser.evaluate(
        "document.querySelector('[role=status]').innerText"
    )
    exponentials = np.exp(np.float64(logits[3]) / 2.0)
    expected = sorted(
        zip(["ant", "bee", "cow"], 100 * exponentials / exponentials.sum(), strict=True), key=lambda e: -e[1]
    )
    for (name, percent), (expected_name, expected_percent) in zip(shown(browser), expected, strict=True):
        assert name == expected_name
        assert percent == pytest.approx(expected_percent, abs=0.06)
    assert " ms an example" in browser.evaluate("document.getElementById('latency').innerText")


def test_nothing_is_fetched_from_elsewhere(served, browser):
    browser.call("Page.navigate", url=served[1])
    browser.wait_for(STATE)
    hosts = browser.evaluate("performance.getEntriesByType('resource').map((entry) => new URL(entry.name).host)")
    assert set(hosts) == {served[1].split("/")[2]}


def test_a_drawing_is_classified(served, browser):
    browser.call("Page.navigate", url=served[1])
    browser.wait_for(STATE)
    before = shown(browser)
    box = browser.evaluate("JSON.parse(JSON.stringify(document.getElementById('canvas').getBoundingClientRect()))")
    left, top = box["x"] + box["width"] / 3, box["y"] + box["height"] / 3
    browser.evaluate("document.getElementById('probabilities').replaceChildren()")
    for kind, offset in (("mousePressed", 0), ("mouseMoved", 60), ("mouseReleased", 60)):
        place = {"x": left + offset, "y": top + offset, "button": "left", "buttons": 1, "clickCount": 1}
        browser.call("Input.dispatchMouseEvent", type=kind, **place)
    browser.wait_for("document.querySelectorAll('#probabilities li').length == 3")
    pixels = "document.getElementById('canvas').getContext('2d').getImageData(0, 0, 280, 280).data"
    assert browser.evaluate(f"{pixels}.some((value, index) => index % 4 == 0 && value > 200)")
    assert shown(browser) != before
    assert sum(percent for _, percent in shown(browser)) == pytest.approx(100.0, abs=0.2)


def test_a_dropped_golden_image_is_answered_as_that_golden_input(served, browser):
    _, address, images, logits = served
    browser.call("Page.navigate", url=address)
    browser.wait_for(STATE)
    pixels = np.round(255 * images[5, ..., 0]).astype(int).tolist()
    # Twenty times as large, so that scaling to the canvas and back loses little.
    browser.evaluate(
        f"""(async () => {{
          const pixels = {pixels};
          const small = new OffscreenCanvas(160, 160);
          const context = small.getContext("2d");
          pixels.forEach((row, y) => row.forEach((value, x) => {{
            context.fillStyle = `rgb(${{value}},${{value}},${{value}})`;
            context.fillRect(20 * x, 20 * y, 20, 20);
          }}));
          const file = new File([await small.convertToBlob()], "image.png", {{ type: "image/png" }});
          const transfer = new DataTransfer();
          transfer.items.add(file);
          document.getElementById("probabilities").replaceChildren();
          document.getElementById("canvas").dispatchEvent(new DragEvent("drop", {{ dataTransfer: transfer }}));
        }})()"""
    )
    browser.wait_for("document.querySelectorAll('#probabilities li').length == 3")
    exponentials = np.exp(np.float64(logits[5]) / 2.0)
    expected = dict(zip(["ant", "bee", "cow"], 100 * exponentials / exponentials.sum(), strict=True))
    for name, percent in shown(browser):
        # Smooth scaling there and back mixes neighbouring pixels of this noise a little.
        assert percent == pytest.approx(expected[name], abs=12.0)


def test_an_example_is_drawn_and_named_with_its_label_and_gives_way_to_the_first_stroke(served, browser):
    _, address, images, logits = served
    browser.call("Page.navigate", url=address)
    browser.wait_for(STATE)
    browser.evaluate("document.querySelectorAll('#examples button')[2].click()")
    label = ["ant", "bee", "cow"][int(logits[2].argmax())]
    browser.wait_for(f"document.getElementById('source').innerText == 'example 2, labelled {label}'")
    # The middles of the 8 × 8 squares of 35 pixels are the image's own pixels.
    pixels = "document.getElementById('canvas').getContext('2d').getImageData(0, 0, 280, 280).data"
    middles = [280 * (35 * row + 17) + 35 * column + 17 for row in range(8) for column in range(8)]
    drawn = browser.evaluate(f"((pixels) => {middles}.map((place) => pixels[4 * place]))({pixels})")
    np.testing.assert_allclose(np.reshape(drawn, (8, 8)), 255 * images[2, ..., 0], atol=1.0)
    browser.evaluate("document.getElementById('clear').click()")
    assert browser.evaluate("document.getElementById('hint').innerText") == "draw here, or drop an image"
    assert shown(browser) == []
    assert not browser.evaluate(f"{pixels}.some((value, index) => index % 4 != 3 && value > 0)")


def test_a_file_that_is_no_picture_is_refused_aloud_and_the_page_goes_on(served, browser):
    browser.call("Page.navigate", url=served[1])
    browser.wait_for(STATE)
    browser.evaluate(
        """(() => {
          const transfer = new DataTransfer();
          transfer.items.add(new File(["no picture"], "a.txt", { type: "text/plain" }));
          document.getElementById("canvas").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer }));
        })()"""
    )
    browser.wait_for("document.getElementById('source').innerText.startsWith('this file is no picture')")
    assert browser.evaluate(STATE) == "ready"


def test_a_changed_artifact_is_refused_aloud(served, browser):
    folder, address, _, _ = served
    content = bytearray((folder / "student.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "student.onnx").write_bytes(content)
    browser.call("Page.navigate", url=address)
    assert browser.wait_for(STATE) == "failed"
    assert "must have the checksum" in browser.evaluate("document.querySelector('[role=status]').innerText")


def test_answers_that_differ_from_the_golden_ones_are_said_aloud(served, browser):
    from keras_distill.deploy import bundle as deploy_bundle

    folder, address, images, logits = served
    deploy_bundle.write_golden(folder, {"image": images}, logits.argmax(-1), {"keras": logits, "onnx": logits + 0.5})
    deploy_bundle.write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    browser.call("Page.navigate", url=address)
    assert browser.wait_for(STATE) == "differs"
    assert "Do not use it" in browser.evaluate("document.querySelector('[role=status]').innerText")
