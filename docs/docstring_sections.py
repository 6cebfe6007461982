"""Docstrings as the site reads them: our `Example:` is the section that griffe calls `Examples:`."""

import re
from typing import Any

import griffe


class DocstringSections(griffe.Extension):
    """Renames the section before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with each module, class and function once its docstring is read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
