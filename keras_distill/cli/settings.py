"""A command's options as a small dataclass, so that nothing but the command itself knows of argparse."""

import argparse
from dataclasses import fields
from typing import TypeVar

Settings = TypeVar("Settings")


def settings_of(kind: type[Settings], arguments: argparse.Namespace) -> Settings:
    """A dataclass of the options that have the names of its fields.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Training:
        ...     epochs: int
        >>> settings_of(Training, argparse.Namespace(epochs=3, out="runs"))
        Training(epochs=3)
    """
    return kind(**{field.name: getattr(arguments, field.name) for field in fields(kind)})  # type: ignore[arg-type]
