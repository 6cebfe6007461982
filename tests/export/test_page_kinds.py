"""The page by what its student takes: photographs, recordings, texts; and where nobody serves it. In Chromium."""

import base64
import io
import json
import wave

import numpy as np
import pytest
from chromium import Browser
from hand_made import write_bundle, write_text_bundle
from test_page import STATE, serving, shown

from keras_distill.data.spoken_digit import log_mel
from keras_distill.deploy import bundle as deploy_bundle

pytestmark = [pytest.mark.browser, pytest.mark.slow]
# Devices that Chromium makes up: a picture with a clock, a beep a second.
DEVICES = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
USEFULNESS = {
    "colour": "amber",
    "accuracy": 0.9,
    "accuracy_interval": [0.8, 0.95],
    "num_items": 1234,
    "chance": 0.34,
    "reasons": ["The teacher is better."],
}


@pytest.fixture
def browser(runtime, tmp_path):
    with Browser(tmp_path / "profile", switches=DEVICES, width=375) as page:
        yield page


def linear_bundle(folder, shape, **changes):
    """A bundle whose student is one product of an input of this shape: its folder and the kernel."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    size = int(np.prod(shape))
    kernel = generator.normal(size=(size, 3)).astype("float32") / np.float32(np.sqrt(size))
    inputs = generator.uniform(size=(16, *shape)).astype("float32")
    logits = inputs.reshape(16, size) @ kernel
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "kernel"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    entry = {"name": "image", "shape": [None, *shape], "dtype": "float32", "value_range": [0, 1], "pixel_range": [0, 1]}
    write_bundle(folder, web=True, inputs=[entry], **changes)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "student.onnx"
    )
    labels = logits.argmax(-1).astype("int32")
    labels[2] = (labels[2] + 1) % 3
    deploy_bundle.write_golden(folder, {"image": inputs}, labels, {"keras": logits, "onnx": logits})
    manifest = json.loads((folder / "manifest.json").read_text())
    deploy_bundle.write_manifest(folder, manifest)
    return folder, kernel


def probabilities(logits, temperature=2.0):
    exponentials = np.exp((logits - logits.max()) / temperature)
    return sorted(zip(["ant", "bee", "cow"], 100 * exponentials / exponentials.sum(), strict=True), key=lambda e: -e[1])


def is_shown(browser, name):
    return browser.evaluate(f"document.getElementById({name!r}).checkVisibility()")


def test_opened_from_a_disk_it_says_how_to_serve_it(browser, tmp_path):
    folder, _, _ = write_bundle(tmp_path / "bundle", web=True)
    browser.call("Page.navigate", url=(folder / "web" / "index.html").as_uri())
    assert browser.wait_for(STATE) == "unserved"
    said = browser.evaluate("document.querySelector('[role=status]').innerText")
    assert "python -m http.server" in said
    assert "http://localhost:8000/web/" in said
    assert "loading" not in said


def test_the_verdict_and_the_accuracy_are_at_the_top(runtime, browser, tmp_path):
    folder, _, _ = write_bundle(tmp_path / "bundle", web=True, usefulness=USEFULNESS, verdict={"word": "BETTER"})
    with serving(folder, runtime) as address:
        browser.call("Page.navigate", url=address)
        assert browser.wait_for(STATE) == "ready"
        said = browser.evaluate("document.getElementById('verdict').innerText")
    for part in (
        "AMBER: right on 90.00 % of 1,234",
        "80.00 % to 95.00 %",
        "34.00 %",
        "BETTER",
        "The teacher is better.",
    ):
        assert part in said
    top = browser.evaluate("['verdict', 'canvas'].map((id) => document.getElementById(id).getBoundingClientRect().top)")
    assert top[0] < top[1]


def test_examples_are_marked_right_or_wrong(runtime, browser, tmp_path):
    folder, _ = linear_bundle(tmp_path / "bundle", (8, 8, 1))
    with serving(folder, runtime) as address:
        browser.call("Page.navigate", url=address + "?example=2")
        assert browser.wait_for(STATE) == "ready"
        marks = browser.evaluate(
            "[...document.querySelectorAll('#examples button')].map((each) => each.innerText.trim())"
        )
        assert marks == ["✗" if at == 2 else "✓" for at in range(16)]
        assert "✗ answered" in browser.evaluate("document.getElementById('source').innerText")
        # Nothing is wider than the screen of a phone.
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_photograph_is_not_drawn_but_dropped_or_taken_by_the_camera(runtime, browser, tmp_path):
    folder, _ = linear_bundle(tmp_path / "bundle", (12, 12, 3))
    with serving(folder, runtime) as address:
        browser.call("Page.navigate", url=address)
        assert browser.wait_for(STATE) == "ready"
        assert browser.evaluate("document.getElementById('hint').textContent") == "drop an image"
        assert not is_shown(browser, "clear")
        before = shown(browser)
        box = browser.evaluate("JSON.parse(JSON.stringify(document.getElementById('canvas').getBoundingClientRect()))")
        for kind in ("mousePressed", "mouseReleased"):
            place = {"x": box["x"] + 50, "y": box["y"] + 50, "button": "left", "buttons": 1, "clickCount": 1}
            browser.call("Input.dispatchMouseEvent", type=kind, **place)
        assert shown(browser) == before
        assert "example 0" in browser.evaluate("document.getElementById('source').innerText")
        browser.evaluate("document.getElementById('camera').click()")
        browser.wait_for("document.getElementById('camera').innerText == 'Take the picture'")
        assert is_shown(browser, "video")
        browser.evaluate("document.getElementById('camera').click()")
        browser.wait_for("document.getElementById('source').innerText == 'your camera'")
        assert not is_shown(browser, "video")
        assert sum(percent for _, percent in shown(browser)) == pytest.approx(100.0, abs=0.2)
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


def as_wav(samples):
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.astype("<i2").tobytes())
    return content.getvalue()


def test_a_recording_is_answered_as_its_energies_are(runtime, browser, tmp_path):
    folder, kernel = linear_bundle(tmp_path / "bundle", (64, 40, 1), provenance={"data": "spoken_digit"})
    generator = np.random.default_rng(0)
    loudness = np.concatenate([np.full(800, 5.0), np.full(3000, 3000.0), np.full(800, 5.0)])
    samples = (loudness * generator.normal(size=4600)).astype("int16")
    with serving(folder, runtime) as address:
        browser.call("Page.navigate", url=address)
        assert browser.wait_for(STATE) == "ready"
        assert not is_shown(browser, "drawing-buttons")
        content = json.dumps(base64.b64encode(as_wav(samples)).decode())
        browser.evaluate(
            f"""(() => {{
              const bytes = Uint8Array.from(atob({content}), (c) => c.charCodeAt(0));
              const transfer = new DataTransfer();
              transfer.items.add(new File([bytes], "seven.wav"));
              document.getElementById("recording").files = transfer.files;
              document.getElementById("recording").dispatchEvent(new Event("change"));
            }})()"""
        )
        browser.wait_for("document.getElementById('source').innerText == 'seven.wav'")
        expected = probabilities(log_mel(samples).reshape(-1).astype("float64") @ kernel)
        for (name, percent), (expected_name, expected_percent) in zip(shown(browser), expected, strict=True):
            assert name == expected_name
            assert percent == pytest.approx(expected_percent, abs=0.06)
        browser.evaluate("document.getElementById('record').click()")
        browser.wait_for("document.getElementById('source').innerText == 'your recording'")
        assert sum(percent for _, percent in shown(browser)) == pytest.approx(100.0, abs=0.2)


def test_a_student_of_texts_offers_neither_canvas_nor_camera(runtime, browser, tmp_path):
    folder, _, _ = write_text_bundle(tmp_path / "bundle", web=True)
    with serving(folder, runtime) as address:
        browser.call("Page.navigate", url=address)
        assert browser.wait_for(STATE) == "ready"
        assert is_shown(browser, "text")
        assert [is_shown(browser, name) for name in ("canvas", "camera", "record")] == [False] * 3
