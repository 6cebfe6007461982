"""A bar for what many workers do together."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(what: str, total: int, num_there: int, progress: bool | None) -> Iterator[Callable[[int], None]]:
    """Yields a function that moves the bar on; nothing is shown where `progress` (`None`: no terminal) says so."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda num_done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=num_there)
        yield lambda num_done: bar.update(task, advance=num_done)
