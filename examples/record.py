"""What an experiment leaves behind: `results.json`, of one form for all of them, and what it prints.

`examples/results.py` makes the tables of these files.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("keras", "tensorflow", "numpy")


def row(
    label: str,
    values: Sequence[float],
    unit: str,
    *,
    paper: str | None = None,
    goal: str | None = None,
    reaches: Callable[[dict[str, Any]], bool] | None = None,
    note: str | None = None,
) -> dict[str, Any]:
    """One line of the table.

    Args:
        label: what was measured.
        values: one a seed (and fold), of the last epoch.
        unit: of the values.
        paper: the paper's figure, as text.
        goal: what was aimed at, as text.
        reaches: whether the summary of the values (see `spread`) is at the goal.
        note: what a reader should know.
    """
    ours = spread(values)
    met = None if reaches is None else bool(reaches(ours))
    return {"row": label, "paper": paper, "ours": ours, "unit": unit, "goal": goal, "goal_met": met, "note": note}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (`None` for one value), median, and the values themselves.

    Example:
        >>> spread([1, 3, 5])
        {'mean': 3, 'std': 2.0, 'median': 3, 'per_seed': [1, 3, 5]}
    """
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {
        "mean": statistics.mean(values),
        "std": deviation,
        "median": statistics.median(values),
        "per_seed": values,
    }


def machine() -> dict[str, Any]:
    """The processor, its cores, the system, and the packages that matter."""
    return {
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def parser(doc: str, out: str) -> argparse.ArgumentParser:
    """The options that all experiments have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(out), help="where everything goes; a killed run goes on there")
    parser.add_argument("--quick", action="store_true", help="a minute's run that tries the machinery, proves nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="0 1 2")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread side by side; 1 uses all threads")
    parser.add_argument("--only", nargs="*", metavar="PREFIX", help="only the jobs whose names begin so")
    return parser


def write(
    folder: Path,
    experiment: str,
    command: str,
    jobs: dict[str, dict[str, Any]],
    rows: list[dict[str, Any]],
    *,
    arguments: argparse.Namespace,
    **more: Any,
) -> None:
    """Writes `folder/results.json` and prints the rows.

    Args:
        folder: where.
        experiment: its name.
        command: what a reader types to get the same.
        jobs: all jobs of the experiment as `run_jobs` gave them; their seconds are the experiment's.
        rows: see `row`.
        arguments: of the command line.
        **more: further keys.
    """
    minutes = sum(job["seconds"] for job in jobs.values()) / 60 / arguments.jobs
    results = {
        "experiment": experiment,
        "command": command,
        "machine": machine(),
        "minutes": round(minutes, 2),
        "cpu_minutes": round(sum(job["cpu_seconds"] for job in jobs.values()) / 60, 2),
        "num_jobs_side_by_side": arguments.jobs,
        "finished": time.strftime("%Y-%m-%d"),
        "quick": arguments.quick,
        "seeds": arguments.seeds,
        "rows": rows,
        **more,
        "jobs": {name: {"seconds": job["seconds"], "cpu_seconds": job["cpu_seconds"]} for name, job in jobs.items()},
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    for line in rows:
        aim = "" if line["goal"] is None else f"   goal {line['goal']}: {'met' if line['goal_met'] else 'NOT met'}"
        paper = "" if line["paper"] is None else f"   paper {line['paper']}"
        print(f"{line['row']}: {text_of(line)}{paper}{aim}")
    print(f"{results['minutes']:.1f} minutes, {results['cpu_minutes']:.1f} of one core; {folder / 'results.json'}")


def text_of(line: dict[str, Any]) -> str:
    """A row's mean ± standard deviation with its unit, with as many digits as the values have use for."""
    ours = line["ours"]
    digits = 1 if abs(ours["mean"]) >= 10 or float(ours["mean"]).is_integer() else 2
    text = f"{ours['mean']:.{digits}f}"
    if ours["std"] is not None:
        text += f" ± {ours['std']:.{digits}f}"
    text = f"{text} {line['unit']}".strip()
    # Where a goal is of the median, it is to be seen.
    return f"{text}, median {ours['median']:g}" if (line.get("goal") or "").startswith("median") else text


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
