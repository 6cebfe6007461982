"""The switches that say who does the work: this process, several, or a Ray cluster."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_distill.scale import Engine


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the switches that `engine_from` reads."""
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="who works: processes here, or the Ray cluster that RAY_ADDRESS names or that runs here (default: local)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="how many (default: local, this process; ray, as many as have room)"
    )


def engine_from(arguments: argparse.Namespace) -> "Engine | None":
    """The engine that was asked for; `None` is this process.

    Raises:
        ValueError: less than one worker.
        ImportError: Ray is not installed.
    """
    from keras_distill._checks import check_count

    if arguments.workers is not None:
        check_count("--workers", arguments.workers)
    if arguments.engine == "local" and arguments.workers in (None, 1):
        return None
    from keras_distill import scale

    make = scale.Processes if arguments.engine == "local" else scale.Ray
    return make(arguments.workers, modules=arguments.modules)


def share_of(text: str) -> tuple[int, int]:
    """What `--process I/N` says: which of how many processes this one is.

    Example:
        >>> share_of("0/4")
        (0, 4)
    """
    process, slash, num_processes = text.partition("/")
    if not (slash and process.isdigit() and num_processes.isdigit() and int(process) < int(num_processes)):
        raise ValueError(f"--process must be I/N with 0 <= I < N; got {text}. For one of four processes: 0/4.")
    return int(process), int(num_processes)
