"""Past one machine, on engines that others maintain: processes here, Ray on a cluster, devices through Keras.

The names load on first use: nobody pays for an engine that they do not use.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Backup": "backup",
    "Engine": "engine",
    "Job": "engine",
    "Processes": "processes",
    "distributed": "devices",
    "Ray": "ray",
    "WorkersLostError": "engine",
    "make_models": "models",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
