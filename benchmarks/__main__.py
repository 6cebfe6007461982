"""Runs every benchmark, or those that are named, and writes what they found into docs/.

python -m benchmarks [step store …]
"""

import subprocess
import sys
from pathlib import Path

SHARED = {"__init__", "__main__", "page", "pairs", "plot", "rounds"}


def main() -> int:
    """Each benchmark in a process of its own, so that none warms the next one up."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in SHARED)
    names = sys.argv[1:] or known
    for name in names:
        if name not in known:
            print(f"benchmark must be one of {', '.join(known)}; got {name}.", file=sys.stderr)
            return 2
    failed = []
    for name in names:
        print(f"\n== {name} ==", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--write"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
