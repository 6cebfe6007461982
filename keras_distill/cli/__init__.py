"""The command line: `keras-distill COMMAND …`. One file a command; imported by nobody.

A command file has `SUMMARY`, `add_arguments(parser)` and `run(arguments) -> exit code`. It imports
TensorFlow and the rest of the house inside `run` alone, so that `--help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = ("demo", "label", "distill", "export", "ship", "specialists")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 a gate said no, 2 bad input, 130 interrupted."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    # Keras and TensorFlow read these once, when they are imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("\ninterrupted: nothing half-written was left. Run the same command again.", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        if arguments.traceback:
            raise
        print(f"keras-distill {arguments.command}: error: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(
        prog="keras-distill", description="Teach a small, fast Keras model what a big one knows, and ship it."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        command = import_module(f"{__name__}.{name}")
        subparser = commands.add_parser(name, help=command.SUMMARY, description=command.__doc__)
        subparser.add_argument("--traceback", action="store_true", help="show where an error came from")
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
