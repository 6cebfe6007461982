"""The page of a bundle in a real headless Chromium: golden answers said aloud, drawing, dropping, a damaged bundle."""

import base64
import contextlib
import functools
import http.server
import io
import json
import threading

import numpy as np
import pytest
from chromium import Browser
from hand_made import write_bundle, write_text_bundle
from pictures import as_stored, exif, png
from PIL import Image, ImageCms, PngImagePlugin

from keras_distill.data.image_file import read_image, resized
from keras_distill.deploy.web_runtime import copy_web_runtime

pytestmark = [pytest.mark.browser, pytest.mark.slow]
STATE = "document.body?.dataset.state != 'loading' && document.body?.dataset.state"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(runtime, tmp_path):
    """(folder, its address, golden images, golden logits)."""
    folder, images, logits = write_bundle(tmp_path / "bundle", web=True)
    with serving(folder, runtime) as address:
        yield folder, address, images, logits


@contextlib.contextmanager
def serving(folder, runtime):
    """The address of a bundle's page."""
    copy_web_runtime(runtime, folder / "web" / "runtime")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/web/"
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


def drop(browser, content, name="image.bin"):
    """Drops a file on the canvas, as a user does."""
    browser.evaluate(
        f"""(() => {{
          const bytes = Uint8Array.from(atob({json.dumps(base64.b64encode(content).decode())}), (c) => c.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], {json.dumps(name)}));
          document.getElementById("probabilities").replaceChildren();
          document.getElementById("source").textContent = "";
          document.getElementById("canvas").dispatchEvent(new DragEvent("drop", {{ dataTransfer: transfer }}));
        }})()"""
    )


def saved(image, kind, **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    ("bits", "invert"),
    [
        (8, False),
        (8, True),
        # Twelve bits of data in sixteen: black by eight bits, and not by sixteen.
        (16, False),
    ],
)
def test_a_dropped_file_is_answered_as_python_answers_it(served, browser, tmp_path, bits, invert):
    import onnxruntime

    folder, address, _, _ = served
    shades = np.random.default_rng(0).integers(0, 256 if bits == 8 else 4096, (8, 8, 1))
    content = png(shades, bits)
    browser.call("Page.navigate", url=address)
    browser.wait_for(STATE)
    if invert:
        browser.evaluate("document.getElementById('invert').click()")
    drop(browser, content)
    browser.wait_for("document.querySelectorAll('#probabilities li').length == 3")
    (tmp_path / "image.png").write_bytes(content)
    pixels = read_image(tmp_path / "image.png")
    pixels = 1 - pixels if invert else pixels
    session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
    logits = np.float64(session.run(["logits"], {"image": pixels[None]})[0][0])
    exponentials = np.exp(logits / 2.0)
    expected = dict(zip(["ant", "bee", "cow"], 100 * exponentials / exponentials.sum(), strict=True))
    for name, percent in shown(browser):
        assert percent == pytest.approx(expected[name], abs=0.06)


def files_of_every_kind():
    """`{name: the bytes of a file}` that Python and the page read."""
    rng = np.random.default_rng(0)
    rgb, alpha = rng.integers(0, 256, (9, 14, 3), dtype=np.uint8), rng.integers(0, 256, (9, 14), dtype=np.uint8)
    deep = rng.integers(0, 65536, (9, 14, 4))
    colours, transparent = Image.fromarray(rgb), Image.fromarray(np.dstack([rgb, alpha]))
    gamma = PngImagePlugin.PngInfo()
    gamma.add(b"gAMA", (100_000).to_bytes(4, "big"))
    # Browsers would change its colours, which training leaves as they are.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")  # red is blue
    files = {
        "grey PNG": saved(colours.convert("L"), "PNG"),
        "PNG of two colours": saved(colours.convert("1"), "PNG"),
        "palette": saved(colours.quantize(32), "PNG"),
        "palette with a transparent colour": saved(colours.quantize(32), "PNG", transparency=3),
        "transparent PNG": saved(transparent, "PNG"),
        "transparent WebP": saved(transparent, "WEBP", lossless=True, exact=True),
        "lossy WebP": saved(colours, "WEBP", quality=70),
        "PNG with a gamma": saved(colours, "PNG", pnginfo=gamma),
        "PNG with a profile": saved(colours, "PNG", icc_profile=profile),
        "JPEG with a profile": saved(colours, "JPEG", icc_profile=profile),
        "BMP": saved(colours, "BMP"),
        "GIF": saved(colours.quantize(32), "GIF"),
        "GIF with a transparent colour": saved(colours.quantize(32), "GIF", transparency=3),
        "JPEG": saved(colours, "JPEG"),
        "grey JPEG": saved(colours.convert("L"), "JPEG"),
        "CMYK JPEG": saved(colours.convert("CMYK"), "JPEG"),
        "deep grey": png(deep[..., :1], 16, filters=range(5)),
        "deep grey with alpha": png(deep[..., :2], 16),
        "deep colours": png(deep[..., :3], 16, filters=range(5)),
        "deep colours, one of them transparent": png(deep[..., :3], 16, transparent=deep[4, 4, :3]),
        "deep colours with alpha": png(deep, 16, filters=(4, 3)),
    }
    for orientation in range(2, 9):
        files[f"turned JPEG {orientation}"] = saved(colours, "JPEG", exif=b"Exif\0\0" + exif(orientation))
        files[f"turned PNG {orientation}"] = png(as_stored(rgb, orientation), 8, orientation=orientation)
        files[f"turned deep PNG {orientation}"] = png(deep[..., :3], 16, orientation=orientation)
    return files


def read_by_page(browser, content, size=None):
    """The page's pixels of a file, `(height, width, 3)`, resized where a size is given; or what it says against it."""
    found = browser.evaluate(
        f"""(async () => {{
          const {{ readImage, resized }} = await import("./image.js");
          const bytes = Uint8Array.from(atob({json.dumps(base64.b64encode(content).decode())}), (c) => c.charCodeAt(0));
          try {{
            const image = await readImage(new Blob([bytes]));
            const {{ height, width, pixels }} = {f"resized(image, {size[0]}, {size[1]})" if size else "image"};
            return [height, width, [...pixels]];
          }} catch (error) {{
            return error.message;
          }}
        }})()"""
    )
    return found if isinstance(found, str) else np.reshape(found[2], (found[0], found[1], 3))


def test_page_and_python_see_the_same_pixels(served, browser, tmp_path):
    browser.call("Page.navigate", url=served[1])
    browser.wait_for(STATE)
    path = tmp_path / "image.bin"
    for name, content in files_of_every_kind().items():
        path.write_bytes(content)
        pixels = read_image(path)
        np.testing.assert_array_equal(
            np.float32(read_by_page(browser, content)), np.broadcast_to(pixels, (*pixels.shape[:2], 3)), err_msg=name
        )
        for size in ((5, 20), (30, 3)):
            np.testing.assert_allclose(
                read_by_page(browser, content, size), resized(pixels, size) + np.zeros(3), atol=1e-6, err_msg=name
            )


def test_what_python_refuses_the_page_refuses_too(served, browser, tmp_path):
    first, second = (Image.fromarray(np.full((9, 14, 3), shade, np.uint8)) for shade in (40, 200))
    logo = np.zeros((9, 14, 4), np.uint8)
    logo[3:6, 3:6, 3] = 255
    jpeg, deep = saved(first, "JPEG"), png(np.arange(9 * 14 * 3).reshape(9, 14, 3), 16)
    animation = "it must hold one image; it is an animation. Save the frame that you mean."
    files = {
        "animated GIF": (saved(first, "GIF", save_all=True, append_images=[second]), animation),
        "animated WebP": (saved(first, "WEBP", save_all=True, append_images=[second]), animation),
        "animated PNG": (saved(first, "PNG", save_all=True, append_images=[second]), animation),
        "black on transparent": (saved(Image.fromarray(logo), "PNG"), "it must be visible before a black background"),
        "cut JPEG": (jpeg[: len(jpeg) // 2], "could not be decoded"),
        "cut deep PNG": (deep[: len(deep) // 2], "its data are damaged"),
    }
    browser.call("Page.navigate", url=served[1])
    browser.wait_for(STATE)
    path = tmp_path / "image.bin"
    for name, (content, message) in files.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"must (hold one|be)"):
            read_image(path)
        assert message in read_by_page(browser, content), name
    # What browsers cannot read, or read in two ways, is refused by the page alone.
    tiff = saved(first, "TIFF")
    assert read_by_page(browser, tiff) == "it must be a PNG, JPEG, WebP, GIF or BMP. Save it as one of these."
    turned = Image.Exif()
    turned[274] = 6
    assert "must be stored upright" in read_by_page(browser, saved(first, "WEBP", exif=turned))


def test_an_example_is_drawn_and_named_with_its_label_and_gives_way_to_the_first_stroke(served, browser):
    _, address, images, logits = served
    browser.call("Page.navigate", url=address)
    browser.wait_for(STATE)
    browser.evaluate("document.querySelectorAll('#examples button')[2].click()")
    label = ["ant", "bee", "cow"][int(logits[2].argmax())]
    browser.wait_for(f"document.getElementById('source').innerText == 'example 2, labelled {label} ✓'")
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
    drop(browser, b"no picture", "a.txt")
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


WRITE = """(() => {{
  const box = document.getElementById("text");
  box.value = {};
  box.dispatchEvent(new Event("input"));
}})()"""


@pytest.mark.parametrize("text", ["Where is my CARD, please?", "", "字 👍 top-up"])
def test_a_text_is_tokenised_and_classified_as_in_python(runtime, browser, tmp_path, text):
    folder, preparation, votes = write_text_bundle(tmp_path / "bundle", web=True)
    with serving(folder, runtime) as address:
        browser.call("Page.navigate", url=address)
        assert browser.wait_for(STATE) == "ready"
        assert browser.evaluate("document.getElementById('canvas').offsetParent === null")
        browser.evaluate(WRITE.format(json.dumps(text)))
        browser.wait_for("document.getElementById('source').innerText == 'your text'")
        found = dict(shown(browser))
    logits = votes[preparation([text])[0]].sum(axis=0).astype("float64")
    for name, share in zip(["card", "fee", "top_up"], np.exp(logits) / np.exp(logits).sum(), strict=True):
        assert found[name] == pytest.approx(100 * share, abs=0.06)
