"""What starting costs: CPU seconds of `keras-distill --help`, of `import keras_distill`, of its first use and step.

    python -m benchmarks.startup [--json] [--write] [--rounds 9]

CPU time of a child process, medians. Parity: the help names every command and starts no TensorFlow.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys

from benchmarks.page import table, write_part
from benchmarks.rounds import machine

HELP_LIMIT = 0.3
# The teacher is made in both, so that the difference is what distilling adds.
FIRST_STEP = """
import keras, keras_distill, numpy
from keras_distill.data.networks import mlp
teacher, student = (mlp((28, 28, 1), 10, (width, width)) for width in (1200, 800))
model = {model}
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(numpy.zeros((128, 28, 28, 1), "float32"), numpy.zeros(128, "int32"), batch_size=128, verbose=0)
"""
COMMANDS = {
    "help": "from keras_distill.cli import build_parser; print(build_parser().format_help())",
    "import": "import keras_distill",
    "first use": "import keras_distill; keras_distill.Distiller",
    "first step, Keras": FIRST_STEP.format(model="student"),
    "first step, ours": FIRST_STEP.format(model="keras_distill.Distiller(teacher, student)"),
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


def page_part(result: dict) -> str:
    """The table in docs/performance.md."""
    rows = [
        [name, f"{value:.2f}", f"≤ {result['limits'][name]}" if name in result["limits"] else ""]
        for name, value in result["cpu_seconds"].items()
    ]
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return f"{table(['start', 'CPU seconds', 'goal'], rows)}\n{result['rounds']} rounds, medians. {where}.\n"


def main() -> None:
    """Prints the figures, and writes them into docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    print(json.dumps(result, indent=2) if arguments.json else page_part(result))
    if arguments.write:
        write_part("performance.md", "startup", page_part(result))


if __name__ == "__main__":
    main()
