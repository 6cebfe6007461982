"""What starting costs: CPU seconds of `keras-distill --help`, of `import keras_distill`, and of its first real use.

    python -m benchmarks.startup [--json] [--rounds 9]

CPU time of a child process, medians. Parity: the help names every command and starts no TensorFlow.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys

from benchmarks.rounds import machine

HELP_LIMIT = 0.3
COMMANDS = {
    "help": "from keras_distill.cli import build_parser; print(build_parser().format_help())",
    "import": "import keras_distill",
    "first use": "import keras_distill; keras_distill.Distiller",
}


def cpu_seconds(code: str) -> tuple[float, str]:
    """CPU seconds of a Python process that runs `code`, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, printed


def measure(num_rounds: int) -> dict:
    """Runs the benchmark."""
    from keras_distill.cli import COMMANDS as NAMES

    _, printed = cpu_seconds(COMMANDS["help"] + "; import sys; print('tensorflow' in sys.modules)")
    if not all(name in printed for name in NAMES) or not printed.rstrip().endswith("False"):
        raise SystemExit("parity failed: the help lacks a command, or started TensorFlow")
    seconds = {name: [] for name in COMMANDS}
    for _ in range(num_rounds):
        for name, code in COMMANDS.items():
            seconds[name].append(cpu_seconds(code)[0])
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {"machine": machine(), "rounds": num_rounds, "cpu_seconds": medians, "limits": {"help": HELP_LIMIT}}


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(" ".join(f"{name} {value}" for name, value in result["machine"].items()))
    for name, value in result["cpu_seconds"].items():
        goal = f" (goal: at most {result['limits'][name]})" if name in result["limits"] else ""
        print(f"{name:10s} {value:.3f} CPU s{goal}")


if __name__ == "__main__":
    main()
