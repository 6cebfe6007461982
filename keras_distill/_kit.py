"""The one door to `export/`, the kit that travels with every bundle.

The kit runs where there is no Keras, so it may import nothing of ours; we, however, prepare raw rows, open artifacts,
compare logits and take times with its code, so that the device repeats exactly what was trained on and what the gate
did.
"""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

from keras_distill._checks import error_message


def kit_folder() -> Path:
    """The kit's folder: `keras_distill/kit` in an installed wheel, `export/` in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "kit", package.parent / "export"):
        if (folder / "benchmark.py").is_file():
            return folder
    remedy = "Install keras-distill again, or run it from a whole checkout."
    raise ImportError(error_message(f"the kit must be in {package / 'kit'}", "no such folder", remedy))


@cache
def kit_module(name: str = "benchmark") -> ModuleType:
    """The kit's file `name`.py as a module."""
    specification = importlib.util.spec_from_file_location(f"keras_distill_kit_{name}", kit_folder() / f"{name}.py")
    assert specification is not None  # a .py file always has a specification and a loader
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
