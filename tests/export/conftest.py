"""The bundle that the kit's tests take apart, and what its web page runs on."""

import pytest
from chromium import find_chromium
from hand_made import write_bundle

from keras_distill.deploy.web_runtime import web_runtime


@pytest.fixture
def bundle(tmp_path):
    """The folder, its golden inputs and its golden logits."""
    return write_bundle(tmp_path / "bundle")


@pytest.fixture(scope="module")
def runtime():
    """The folder of onnxruntime-web; tests of the page need it, and a browser."""
    if find_chromium() is None:
        pytest.skip("no Chromium is installed; CI installs one")
    try:
        return web_runtime()
    except ValueError as error:
        pytest.skip(f"no onnxruntime-web here: {error}")
