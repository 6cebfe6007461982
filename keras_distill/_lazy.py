"""Public names that load on first use (PEP 562), so that `import keras_distill` costs milliseconds.

A package that has such names lists them twice: under `TYPE_CHECKING`, where type checkers read what each is,
and with the module that holds it. `tests/test_types.py` compares the two.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`.

    Args:
        package: the package's `__name__`.
        homes: the module of each name, relative to the package; `""` for a module that is itself the name.

    Example:
        >>> get = lazy_names("keras_distill", {"data": "", "Budgets": "deploy"})
        >>> get("data").__name__, get("Budgets").__name__
        ('keras_distill.data', 'Budgets')
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        return getattr(import_module(f"{package}.{home}"), name) if home else import_module(f"{package}.{name}")

    return get
