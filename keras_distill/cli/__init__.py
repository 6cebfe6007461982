"""The command line: `keras-distill COMMAND …`. One file a command; no other room imports it.

A command file has `SUMMARY`, `add_arguments(parser)` and `run(arguments) -> exit code`. It imports
TensorFlow and the rest of the house inside `run` alone, so that `--help` answers at once.
"""

import argparse
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from keras_distill._native_log import quiet_start
from keras_distill.cli.config_file import with_config
from keras_distill.cli.parser import Parser

COMMANDS = ("demo", "new", "compress", "prune", "label", "store", "distill", "export", "ship", "specialists")


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception: what was begun is swept, as it is after Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code: 0 done, 1 a gate said no, 2 bad input, 130 interrupted, 143 terminated."""
    parser = build_parser()
    try:
        arguments = parser.parse_args(with_config(sys.argv[1:] if argv is None else argv, parser))
    except (ValueError, OSError) as error:
        print(f"keras-distill: error: {error}{_remedy(error)}", file=sys.stderr)
        return 2
    try:
        with _signals_as_exceptions():
            _start(getattr(arguments, "quiet", False))
            return arguments.run(arguments)
    except KeyboardInterrupt as stopped:
        word, code = ("terminated", 143) if isinstance(stopped, Terminated) else ("interrupted", 130)
        print(f"\n{word}: nothing half-written was left. Run the same command again.", file=sys.stderr)
        return code
    except Exception as error:
        if arguments.traceback or not _is_user_or_system_error(error):
            raise
        text = by_option(str(error), _options_of(parser, arguments.command))
        print(f"keras-distill {arguments.command}: error: {text}{_remedy(error)}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    from keras_distill import __version__

    description = "Teach a small, fast Keras model what a big one knows, and ship it."
    parser = Parser(prog="keras-distill", description=description)
    parser.add_argument("--version", action="version", version=f"keras-distill {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        command = import_module(f"{__name__}.{name}")
        subparser = commands.add_parser(name, help=command.SUMMARY, description=command.__doc__)
        subparser.add_argument("--traceback", action="store_true", help="show where an error came from")
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


# What may hold the name of an argument and is not ours to translate (calls, quotations, attributes and file names,
# paths, options), and then the name, with a value or without.
_NAMES_IN_ERRORS = re.compile(
    r"""
    [\w.]+\((?:[^()]|\([^()]*\))*\) | (?<!\w)'[^']*' | (?<![\w=])"[^"]*" | [\w.~-]*/\S* | \w+(?:\.\w+)+ | --?\w[\w-]*
    | \b(?P<name>[a-z]\w*)(?P<value>=(?:"[^"]*"|'[^']*'|[^\s;,()"']*[^\s;,:.()"'])?)?(?P<must>[ ]must[ ])?
    """,
    re.VERBOSE,
)


def by_option(text: str, options: Mapping[str, str]) -> str:
    """An error of a Python function in the words of the command line: its arguments by the options that gave them.

    Translated are `argument=value` and names with an underscore wherever they stand, and whatever begins an error and
    "must" be something: anything else may be a word.

    Args:
        text: the error's message.
        options: the command's options by the names of what they give.

    Example:
        >>> options = {"trials": "--trials", "top_k": "--top-k", "members": "--members"}
        >>> by_option("num_trials must be >= 1; got 0.", options)
        '--trials must be >= 1; got 0.'
        >>> by_option("sample must be given alone; got top_k=3.", options)
        'sample must be given alone; got --top-k 3.'
        >>> by_option("members=True needs a teacher whose members differ, label(…, top_k=3).", options)
        '--members needs a teacher whose members differ, label(…, top_k=3).'
    """

    def translated(found: re.Match[str]) -> str:
        name, value, must = found["name"], found["value"], found["must"] or ""
        if name is None:
            return found[0]
        option = options.get(name) or options.get(re.sub(r"^num_|_ms$", "", name))
        is_sure = value is not None or "_" in name or (must and found.start() == 0)
        # `None` and `False` are what an option gives that was left out.
        if option is None or not is_sure or value in ("=None", "=False"):
            return found[0]
        given = "" if value in (None, "=", "=True") else " " + value[1:].strip("\"'")
        return f"{option}{given}{must}"

    return _NAMES_IN_ERRORS.sub(translated, text)


def _options_of(parser: argparse.ArgumentParser, command: str) -> dict[str, str]:
    """A command's options by the names under which argparse keeps what they give."""
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    options = {}
    for action in commands.choices[command]._actions:
        long = [option for option in action.option_strings if option.startswith("--")]
        if long:
            options[action.dest] = long[0]
    return options


def _start(is_quiet: bool) -> None:
    """Imports what every command needs, which takes seconds: with a word at once, and none of the native code's."""
    from keras_distill._progress import spinner

    # Keras and TensorFlow read this once, when they are imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet_start() as stderr, spinner("starting Keras", None if is_quiet else stderr):
        import keras

        if keras.config.backend() == "tensorflow":
            import tensorflow as tf

            # Looking for GPUs is what native code talks about.
            tf.config.list_physical_devices()


def _is_user_or_system_error(error: Exception) -> bool:
    """Whether an error is of what was given or of the machine, and not a fault of ours."""
    tensorflow = sys.modules.get("tensorflow")
    kinds = (ValueError, TypeError, OSError, ImportError, MemoryError)
    return isinstance(error, kinds) or (tensorflow is not None and isinstance(error, tensorflow.errors.OpError))


def _remedy(error: Exception) -> str:
    """What to do about a disk that is full or closed; nothing half-written is on it."""
    number, text = getattr(error, "errno", None), str(error)
    # NumPy counts what it could not write, and TensorFlow has errors of its own: neither has a number.
    is_full = any(words in text for words in ("requested and", "No space left on device", "File too large"))
    if is_full or number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return ". The disk is full: free some room, or name a folder on another one, and run the same command again."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ". Name a folder that you may write to, and run the same command again."
    return ""


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGINT raise, so that what was begun is swept; and again each second, until it is.

    By itself SIGTERM ends a process on the spot, with its half-written files. One exception is not enough: while it
    traces a step, TensorFlow swallows whatever is raised, or makes an error of its own of it. Python swallows it where
    a callback of its garbage collector is interrupted, and prints a traceback, which would look like a fault.
    """
    # Only the main thread may say what a signal does.
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    received: list[int] = []

    def stopped() -> KeyboardInterrupt:
        return Terminated() if received[0] == signal.SIGTERM else KeyboardInterrupt()

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        if not _is_sweeping(frame):
            raise stopped()

    hooks = sys.unraisablehook, sys.excepthook
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = {number: signal.signal(number, stop) for number in numbers}
    sys.unraisablehook = lambda unraisable: None if received else hooks[0](unraisable)
    sys.excepthook = lambda *raised: None if received else hooks[1](*raised)
    try:
        yield
    except Exception as error:
        if received:
            raise stopped() from error
        raise
    finally:
        sys.unraisablehook, sys.excepthook = hooks
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_sweeping(frame: Any) -> bool:
    """Whether a file or folder is being put into its place or removed: to interrupt that would leave a half.

    So would interrupting the wait for threads that clean up: Python 3.11 would consider them finished.
    """
    while frame is not None:
        name, function = os.path.basename(frame.f_code.co_filename), frame.f_code.co_name
        if name in ("_files.py", "tempfile.py", "shutil.py") or (name, function) == ("thread.py", "shutdown"):
            return True
        frame = frame.f_back
    return False
