"""What turned raw rows, a table's columns or texts, into the arrays of a data set; it ships with the student.

Here is only what the package knows of every kind. What a preparation does is in the kit's `prepare.py`, which the
device runs too; how one is fitted to data is beside the reader of that data, in `table.py` for tables.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras_distill._checks import error_message
from keras_distill._inputs import only_array
from keras_distill._kit import kit_module
from keras_distill._types import Inputs


@dataclass(frozen=True)
class Preparation:
    """From raw rows to the inputs of a model, fitted on the training split alone.

    Attributes:
        specification: plain JSON: `format_version`, `kind` (one that the kit's `prepare.py` knows), `description` (a
            few words for people), `notes` (sentences about what was left out, or nothing), and what the kind needs.

    Raises:
        ValueError: a specification that is no JSON (NaN among it), or lacks one of these.

    Example:
        >>> from keras_distill.data.table import from_table
        >>> preparation = from_table({"colour": ["red", "blue"] * 20, "kind": ["a", "b"] * 20}, "kind").preparation
        >>> preparation.kind, preparation([{"colour": "blue"}, {"colour": "green"}]).tolist()
        ('table', [[1.0, 0.0], [0.0, 0.0]])
    """

    specification: Mapping[str, Any]

    def __post_init__(self) -> None:
        missing = [name for name in ("format_version", "kind", "description") if name not in self.specification]
        if missing:
            raise ValueError(error_message("a preparation must have a version, a kind and a description", missing[0]))
        try:
            text = json.dumps(self.specification, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(error_message("a preparation must be plain JSON", str(error))) from None
        object.__setattr__(self, "specification", json.loads(text))

    @property
    def kind(self) -> str:
        """What it prepares, `"table"` for one."""
        return str(self.specification["kind"])

    @property
    def description(self) -> str:
        """A few words for people: "5 numbers and 7 categories, 92 features"."""
        return str(self.specification["description"])

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what was left out of the inputs, and why."""
        return tuple(self.specification.get("notes", ()))

    def __call__(self, rows: Any) -> Inputs:
        """The inputs of raw rows: an only array as it is, several by name.

        Args:
            rows: what the kit's `prepare` takes for this kind; for a table a dict of columns or a list of dicts.

        Raises:
            ValueError: rows that it does not fit.
        """
        inputs: dict[str, Any] = kit_module("prepare").prepare(self.specification, rows)
        return only_array(inputs, self.kind) if len(inputs) == 1 else inputs

    def to_json(self) -> dict[str, Any]:
        """The specification, as `preparation.json` holds it."""
        return json.loads(json.dumps(self.specification))
