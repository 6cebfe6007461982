"""What long work shows on standard error: a bar that says how much is done, how fast, how long it still takes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def spinner(work: str, stderr: TextIO | None) -> Iterator[None]:
    """A sign of life for work that nobody can measure; a line of text where `stderr` is no terminal."""
    if stderr is None:
        yield
        return
    if not stderr.isatty():
        print(f"{work} …", file=stderr, flush=True)
        yield
        return
    from rich.console import Console

    with Console(file=stderr).status(f"{work} …"):
        yield


@contextmanager
def progress_bar(
    work: str, total: int, shown: bool | None, *, num_done: int = 0, unit: str = "", headline: str = ""
) -> Iterator[Callable[[int], None]]:
    """Yields a function that moves the bar on by so many.

    Args:
        work: what is done, in a word.
        total: how many there are in all.
        shown: whether there is a bar; `None` shows it where standard error is a terminal.
        num_done: how many are done at the beginning.
        unit: what is counted, for work whose speed in units a second says something.
        headline: a line above the bar.
    """
    if not (sys.stderr.isatty() if shown is None else shown):
        yield lambda num_more: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if headline:
        console.print(headline)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    if unit:
        columns.insert(3, TextColumn("{task.fields[rate]} " + f"{unit}/s"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(work, total=total, completed=num_done, rate="…")

        def advance(num_more: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=num_more, rate=f"{speed:,.0f}" if speed else "…")

        yield advance
