"""The oldest and the newest versions of TensorFlow and Keras that we support, each in an environment of its own.

    python tests/reliability/versions.py oldest newest --folder /tmp/versions

For each pair: a fresh environment, this package in it, `pip check`, then the tests named (default: those of the core)
with warnings as errors. Prints one JSON object; exit code 1 where a pair does not hold. An environment that is
there already is used again. Takes some minutes and 2.5 GB a pair.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The oldest are the lower bounds in pyproject.toml; the newest are whatever the index gives today.
PAIRS = {"oldest": ("tensorflow=={tensorflow}.*", "keras=={keras}.*"), "newest": ("tensorflow", "keras")}
CORE = ["tests/losses", "tests/contract", "tests/test_distiller.py", "tests/test_distiller_features.py",
        "tests/test_item_weights.py", "tests/test_keras_internals.py", "tests/test_logits.py",
        "tests/test_mutual_learning.py", "tests/test_schedules.py",
        "tests/test_structured_outputs.py", "tests/quantize_aware", "tests/specialists", "tests/targets",
        "tests/teachers", "tests/reliability"]  # fmt: skip


def lower_bounds():
    """`{package: version}` of the dependencies that pyproject.toml bounds from below."""
    text = (ROOT / "pyproject.toml").read_text()
    return dict(re.findall(r'^    "([a-z0-9_.-]+)>=([0-9.]+)[",]', text, re.MULTILINE))


def run(command, **options):
    print("$", " ".join(str(part) for part in command), file=sys.stderr, flush=True)
    return subprocess.run([str(part) for part in command], text=True, capture_output=True, **options)


def try_pair(name, folder, tests):
    """What became of one pair: its versions, what pip says, how many tests passed and failed."""
    python = folder / name / "bin/python"
    if not python.exists():
        run([sys.executable, "-m", "venv", folder / name], check=True)
    wanted = [part.format(**lower_bounds()) for part in PAIRS[name]]
    upgrade = ["--upgrade"] if name == "newest" else []
    installed = run([python, "-m", "pip", "install", "--quiet", *upgrade, *wanted, f"{ROOT}[test]"])
    if installed.returncode:
        return {"holds": False, "why": "pip: " + " ".join(installed.stderr.split())[-400:]}
    # The tests are of this tree; the copy just installed brought the dependencies.
    run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "keras-distill"], check=True)
    packages = ("tensorflow", "keras", "numpy", "protobuf")
    code = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {packages}}}))"
    versions = json.loads(run([python, "-c", code], check=True).stdout)
    check = run([python, "-m", "pip", "check"])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
    options = ["-q", "-n", "0", "-m", "not slow", "-p", "no:cacheprovider", "--durations", "0", "--durations-min", "30"]
    tested = run([python, "-m", "pytest", *options, *tests], cwd=ROOT, env=environment)
    words = re.findall(r"(\d+) (passed|failed|skipped|errors?)", tested.stdout)
    counts = {word: int(count) for count, word in words}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", tested.stdout, re.MULTILINE)
    return {
        "versions": versions,
        "pip_check": "clean" if check.returncode == 0 else check.stdout.strip().splitlines(),
        "counts": counts,
        "failed": failed[:40],
        "holds": tested.returncode == 0 and check.returncode == 0,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("pairs", nargs="+", choices=tuple(PAIRS))
    parser.add_argument("--folder", type=Path, default=Path("build/versions"), help="where the environments lie")
    parser.add_argument("--tests", nargs="+", default=CORE)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    found = {name: try_pair(name, arguments.folder.resolve(), arguments.tests) for name in arguments.pairs}
    print(json.dumps(found, indent=1))
    return 0 if all(pair["holds"] for pair in found.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
