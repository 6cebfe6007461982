"""`--config FILE`: a command's options in TOML, under their long names without the dashes; the command line wins."""

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OPTION = "--config"


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the switch that `with_config` reads."""
    parser.add_argument(
        OPTION, metavar="FILE", help="a TOML file of these options by their long names; the command line wins"
    )


def with_config(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The arguments of `keras-distill`, with those of the command's configuration file before its own.

    Args:
        argv: what stands behind `keras-distill`: a command and its options.
        parser: of all commands.

    Raises:
        ValueError: a file that is no TOML, a name that no option has, or a value that no option can have.
        OSError: no such file.
    """
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices
    if not argv or argv[0] not in commands or OPTION not in commands[argv[0]]._option_string_actions:
        return list(argv)
    command, *own = argv
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument(OPTION)
    try:
        path = finder.parse_known_args(own)[0].config
    except argparse.ArgumentError:
        # `--config` without a file: the command's own parser says so.
        return list(argv)
    return list(argv) if path is None else [command, *_arguments_of(path, own, commands[command]), *own]


def _arguments_of(path: str, own: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """What a file says, as arguments, without those that an option on the command line excludes."""
    from keras_distill._checks import did_you_mean, error_message

    options = {text[2:]: action for text, action in parser._option_string_actions.items() if text.startswith("--")}
    known = sorted(set(options) - {"help", OPTION[2:]})
    given = _given_options(own, options)
    excluded = {
        id(action)
        for group in parser._mutually_exclusive_groups
        if any(id(action) in given for action in group._group_actions)
        for action in group._group_actions
    }
    arguments: list[str] = []
    for name, value in _read(path).items():
        if name not in known:
            remedy = did_you_mean(name, known) or f"Known are {', '.join(known)}."
            raise ValueError(error_message(f"{path} must hold names of options", repr(name), remedy))
        if id(options[name]) not in excluded:
            arguments += _as_arguments(path, name, value, options[name])
    return arguments


def _read(path: str) -> dict[str, Any]:
    from keras_distill._checks import error_message

    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        remedy = 'A line of it is such as epochs = 30 or data = "digits".'
        raise ValueError(error_message(f"{path} must be a TOML file", str(error), remedy)) from error


def _given_options(argv: Sequence[str], options: dict[str, argparse.Action]) -> set[int]:
    """The options that stand on the command line, abbreviated or not."""
    words = [word[2:].partition("=")[0] for word in argv if word.startswith("--") and len(word) > 2]
    return {id(action) for word in words for name, action in options.items() if name == word or name.startswith(word)}


def _as_arguments(path: str, name: str, value: Any, action: argparse.Action) -> list[str]:
    from keras_distill._checks import error_message

    takes_several = action.nargs in ("+", "*")
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(error_message(f"{name} in {path} must be true or false", repr(value)))
        return [f"--{name}"] if value else []
    values = value if isinstance(value, list) else [value]
    if not takes_several and isinstance(value, list):
        raise ValueError(error_message(f"{name} in {path} must be one value", repr(value)))
    for part in values:
        if isinstance(part, bool) or not isinstance(part, str | int | float):
            raise ValueError(error_message(f"{name} in {path} must be text or a number", repr(part)))
    if takes_several:
        return [f"--{name}", *map(str, values)]
    return [f"--{name}={value}"]
