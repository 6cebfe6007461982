"""Find the best student that holds a budget: teacher, data and a budget in, a checked bundle out.

Candidates are cut from the teacher and made by hand, each as wide as the budget allows when its file is measured in the
runtime that will serve it. They are compared on validation data, all taught from one store; the best is tuned, with
labels alone among its recipes, is judged on the test set and passes the ship gate, or makes way for the next best. OUT
has student.keras, bundle/, report.html, compression.json and study.db. A run that was killed goes on where it stopped.
Ctrl-C finishes the best so far; a second one ends at once. --workers 4 trains four candidates at a time, --engine ray
on a cluster. Exit code 1: the gate held every candidate back.
"""

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from keras_distill.cli import config_file, data_options, engine_options, model_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from keras_distill.search import Compression, Progress

SUMMARY = "find the best student within a budget of latency or size"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("teacher", nargs="+", metavar="TEACHER.keras", help=model_file.TEACHER_HELP)
    data_options.add_data_arguments(parser)
    add("--out", required=True, metavar="OUT", help="folder of what is found; a run that was killed goes on in it")
    add("--max-latency", help="budget: p50 of one example on one thread of this machine: 200us, 2ms, …")
    add("--max-size", help="budget: bytes of the file that ships: 60kB, 1MB, …")
    add("--max-arena", help="budget, with --runtime tflm: the memory that a microcontroller works in: 16kB, 32KiB, …")
    add("--runtime", choices=("litert", "onnx", "tflm"), default="litert",
        type=lambda text: text.replace("tflite", "litert"),
        help="that will serve the student (default: %(default)s)")  # fmt: skip
    add("--precisions", nargs="+", choices=("float32", "int8"), default=["float32", "int8"],
        help="of the files that are tried (default: both)")  # fmt: skip
    add("--max-accuracy-drop", type=float, default=0.005, help="of the file against the Keras student, a fraction "
        "(default: %(default)s)")  # fmt: skip
    add("--min-accuracy", type=float, help="test accuracy of what ships, a fraction")
    add("--max-drop-from-teacher", type=float, help="of test accuracy against the teacher, a fraction")
    add("--trials", type=int, default=16, help="candidates; eight are halved together (default: %(default)s)")
    add("--minutes", type=float, help="begin nothing that would end later, and finish the best so far")
    add("--epochs", type=int, help="of a whole training (default: as many as make 4,000 steps, 20 to 1,000)")
    add("--batch-size", type=int, default=128, help="items a step (default: %(default)s)")
    add("--seeds", type=int, default=1, help="trainings of the chosen student and of its twin on labels alone: the "
        "best on validation data ships, the verdict is over all (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, help="of everything that is drawn (default: %(default)s)")
    add("--any-teacher", action="store_true", help="go on even where the teacher answers no better than chance")
    add("--quiet", action="store_true", help="nothing but errors")
    engine_options.add_engine_arguments(parser)
    config_file.add_config_argument(parser)
    model_file.add_loading_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Searches and ships. Exit code 1 where the gate held every candidate back."""
    import os

    # Read once, when TensorFlow starts: what is timed is timed on one thread.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    from rich.console import Console

    from keras_distill import search
    from keras_distill._files import check_writable
    from keras_distill.cli import evaluation
    from keras_distill.cli.ship import SIZE_UNITS, TIME_UNITS, quantity
    from keras_distill.deploy.budgets import Budgets

    check_writable(arguments.out)
    size, latency, arena = arguments.max_size, arguments.max_latency, arguments.max_arena
    budgets = Budgets(
        arguments.max_accuracy_drop,
        None if size is None else round(quantity("--max-size", size, SIZE_UNITS)),
        None if latency is None else quantity("--max-latency", latency, TIME_UNITS),
        arguments.min_accuracy,
        arguments.max_drop_from_teacher,
        max_arena=None if arena is None else round(quantity("--max-arena", arena, SIZE_UNITS)),
    )
    if size is None and latency is None and arena is None:
        ways = "--max-arena 16kB" if arguments.runtime == "tflm" else "--max-latency 0.1ms"
        raise ValueError(f"there must be a budget; got none. Give {ways}, --max-size 60kB or both.")
    dataset = data_options.load(arguments)
    teachers = []
    for path in arguments.teacher:
        loaded = model_file.load_teacher(path, arguments, dataset)
        evaluation.check_teacher(loaded, path, dataset, insist=arguments.any_teacher)
        teachers.append(loaded)
    console = Console(quiet=arguments.quiet)

    def say_how_to_end() -> None:
        if not arguments.quiet:
            # Past Python's own streams, which may be in the midst of a line: they would write it twice, or refuse.
            os.write(2, b"\nCtrl-C: the best so far will be finished; press it again to end at once.\n")

    with _first_interrupt_stops(say_how_to_end) as is_stopped, console.status("starting") as status:

        def show(progress: "Progress") -> None:
            status.update(progress_text(progress))
            if not console.is_terminal:
                console.print(progress_text(progress), markup=False, highlight=False, soft_wrap=True)

        found = search.compress(
            model_file.as_one_teacher(teachers),
            dataset,
            budgets,
            arguments.out,
            runtime=arguments.runtime,
            precisions=arguments.precisions,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            num_trials=arguments.trials,
            engine=engine_options.engine_from(arguments),
            minutes=arguments.minutes,
            seeds=arguments.seeds,
            seed=arguments.seed,
            pixel_range=arguments.pixel_range,
            any_teacher=True,  # each was asked above, where it has a name
            on_progress=show,
            is_stopped=is_stopped,
        )
    for line in result_lines(found, arguments.out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0 if found.bundle is not None else 1


def progress_text(progress: "Progress") -> str:
    """What the terminal shows while a search runs."""
    parts = [f"{progress.num_ended} of {progress.num_trials} candidates"]
    if progress.best is not None:
        best = progress.best
        parts.append(f"best: {best.family} in {best.precision}, {100 * best.errors[best.epochs]:.2f} % errors")
    if progress.seconds_left is not None:
        parts.append(f"about {max(1, round(progress.seconds_left / 60))} min left")
    return f"{progress.text} ({'; '.join(parts)})"


def result_lines(found: "Compression", out: str) -> list[str]:
    """What the terminal says in the end."""
    trial, cost = found.trial, found.trial.cost
    assert cost is not None
    errors = found.test_errors
    taught = "trained on labels alone" if found.recipe.is_on_labels else "distilled"
    lines = [
        *found.notes,
        f"student: {trial.family} in {trial.precision}, {taught}, {cost.num_parameters:,} weights, "
        f"{cost.num_bytes:,} bytes, "
        + (f"{cost.latency_ms:.4f} ms" if cost.arena_bytes is None else f"an arena of {cost.arena_bytes:,} bytes"),
        "test errors: " + ", ".join(f"{who} {100 * errors[who]:.2f} %" for who in ("teacher", "labels", "distilled"))
        + f"; the student {100 * errors['student']:.2f} %"
        + (f", its file {100 * errors['file']:.2f} %" if "file" in errors else ""),
        f"distilling: {found.verdict}",
        *(f"  {reason}" for reason in found.verdict.reasons),
    ]  # fmt: skip
    for outcome in found.shipment.outcomes:
        lines += [f"{outcome.target} does not hold: {reason}" for reason in outcome.reasons]
    cost_text = f"{len(found.trials)} candidates for {found.cost:.1f} × one training, {found.seconds / 60:.1f} minutes"
    return [*lines, f"{cost_text}. {out}: read report.html."]


@contextmanager
def _first_interrupt_stops(on_press: "Callable[[], None]") -> "Iterator[Callable[[], bool]]":
    """Yields whether Ctrl-C was pressed; the second one ends the command as it ends all others.

    Args:
        on_press: called when it was.
    """
    import threading

    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)
        on_press()

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
