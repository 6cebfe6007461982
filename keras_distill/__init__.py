"""keras_distill: teach a small, fast Keras model what a big one knows, and ship it.

The public names live here and load on first use (PEP 562), so that `import keras_distill` costs
milliseconds and the command line can print its help without starting TensorFlow.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_SUBPACKAGES = (
    "data",
    "deploy",
    "distillation",
    "losses",
    "models",
    "quantize_aware",
    "report",
    "scale",
    "schedules",
    "specialists",
    "targets",
    "teachers",
)
_HOMES = {
    "Backup": "backup",
    "DeepMutualLearning": "distillation",
    "Distiller": "distillation",
    "Ensemble": "teachers",
    "OnnxTeacher": "teachers",
    "load_model": "models.saving",
}

__all__ = sorted([*_HOMES, *_SUBPACKAGES])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
