"""How everything here is timed: interleaved rounds, medians, ratios; and what machine it was.

The machine is shared, so one variant's minute is not another's: each round runs every variant once, the order
turns from round to round, and a ratio is the median of the rounds' own ratios. Where a step is timed, it is the
processor's time on one thread, which other processes disturb least: on two threads of a shared machine the same step
took from one to one and a half times as long by the wall.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version


def use_one_thread() -> None:
    """One thread for whatever is imported after this call: TensorFlow, PyTorch, NumPy's products."""
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = "1"


def interleave(
    variants: dict[str, Callable[[], object]],
    *,
    num_rounds: int,
    num_warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict:
    """Seconds of each round of each variant: `{name: [s, s, …]}`.

    With `time.process_time` for a clock they are the processor's, which other processes hardly touch.
    """
    for _ in range(num_warm_up):
        for run in variants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(num_rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = clock()
            variants[name]()
            seconds[name].append(clock() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], name: str, *references: str) -> list[float]:
    """Each round's time of one variant over the sum of the references'."""
    sums = [sum(times) for times in zip(*(seconds[reference] for reference in references), strict=True)]
    return [time_ / sum_ for time_, sum_ in zip(seconds[name], sums, strict=True)]


def median_ratio(seconds: dict[str, list[float]], name: str, *references: str) -> float:
    """The median over rounds of one variant's time over the sum of the references'."""
    return statistics.median(ratios(seconds, name, *references))


def spread_of_ratio(seconds: dict[str, list[float]], name: str, *references: str) -> float:
    """Half the distance between the quartiles of the rounds' ratios."""
    first, _, third = statistics.quantiles(ratios(seconds, name, *references), n=4, method="inclusive")
    return (third - first) / 2


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    packages = ("tensorflow", "keras", "numpy", "onnxruntime")
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
