"""The parser of the command line: argparse, which suggests what was meant."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors name the nearest option or choice."""

    def parse_known_args(  # type: ignore[override]  # there it is three overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse's, which says what is missing before it says that its name was misspelt."""
        args = sys.argv[1:] if args is None else args
        for text in args:
            # What follows a command is for that command's parser.
            if text == "--" or (self._subparsers is not None and not text.startswith("-")):
                break
            name = text.partition("=")[0]
            options = self._option_string_actions
            # argparse takes the beginning of an option for the option.
            if name.startswith("--") and not any(option.startswith(name) for option in options):
                from keras_distill._checks import did_you_mean

                self.error(f"there is no option {name}. {did_you_mean(name, options)}".rstrip())
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if action.choices is not None and isinstance(value, str):
                from keras_distill._checks import did_you_mean

                error.message = f"{error.message}. {did_you_mean(value, map(str, action.choices))}".rstrip()
            raise
