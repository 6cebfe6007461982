"""The bundle that the kit's tests take apart."""

import pytest
from hand_made import write_bundle


@pytest.fixture
def bundle(tmp_path):
    """The folder, its golden inputs and its golden logits."""
    return write_bundle(tmp_path / "bundle")
