"""Soft targets computed once: label a dataset with a teacher, then train from the store as fast as on labels.

The names load on first use: reading a store needs NumPy alone.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Augmentation": "augmentation",
    "Crop": "augmentation",
    "Flip": "augmentation",
    "Mixup": "augmentation",
    "Rotation": "augmentation",
    "Shift": "augmentation",
    "SoftTargetStore": "store",
    "StoredBatches": "batches",
    "attach": "dataset",
    "fingerprint": "labelling",
    "label": "labelling",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "attach":
        import keras

        # The one is a pipeline of TensorFlow's, the other NumPy's for every other backend.
        home = "dataset" if keras.config.backend() == "tensorflow" else "batches"
        return import_module(f"{__name__}.{home}").attach
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
