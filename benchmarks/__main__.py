"""Runs benchmarks, one process each so that none warms the next one up, and writes what they found into docs/.

    python -m benchmarks [--all] [step store …]

Without names those that time what is there: every figure of docs/performance.md, the combiner, the store and what
ships, about an hour. With `--all` also those that train first what they compare, which takes hours.
"""

import argparse
import subprocess
import sys

TIMED = ("step", "parts", "roofline", "wide", "ensembles", "startup", "combiner", "store", "sampled", "runtime", "ship")
TRAINED = (
    "methods",
    "arena",
    "calibration",
    "patience",
    "pruning",
    "quantization",
    "scale",
    "specialists",
    "tuning",
    "verdict",
    "microcontroller",
    "out_of_fold",
)


def main() -> int:
    """Returns 1 where one failed or missed a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TIMED + TRAINED))
    parser.add_argument("--all", action="store_true", help="also those that train models first")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(TIMED + TRAINED):
        parser.error(f"NAME must be one of {', '.join(TIMED + TRAINED)}; got {', '.join(sorted(unknown))}")
    failed = []
    for name in arguments.names or (TIMED + TRAINED if arguments.all else TIMED):
        print(f"\n== {name} ==", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--write"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed, or missed a limit: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
