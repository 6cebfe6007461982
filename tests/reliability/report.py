"""Runs what `docs/reliability.md` promises, at full length, and writes the figures into its marked part.

    make reliability                                        # all of it: some hours on two cores
    python tests/reliability/report.py fuzz load            # some of it; the other figures stay as they are
    python tests/reliability/report.py --render             # only writes the page anew, out of the kept figures

What was found is kept in `docs/results/reliability.json`. Exit code 1 where a promise was broken.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests/reliability"
PAGE, KEPT = ROOT / "docs/reliability.md", ROOT / "docs/results/reliability.json"
BEGIN, END = "<!-- figures: make reliability -->", "<!-- end of figures -->"
CHEAP = ("manifests", "shards", "bundles", "archives")
HEAVY = ("keras", "onnx", "tflite", "arguments")


def output_of(*command, **environment):
    """A Python command that has ended, with what it printed; its progress goes to standard error."""
    print("$ python", *command, file=sys.stderr, flush=True)
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"} | environment
    command = [sys.executable, *map(str, command)]
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if run.returncode:
        # Which tests failed, and why.
        print(run.stdout, file=sys.stderr)
    return run


def json_of(*command, **environment):
    run = output_of(*command, **environment)
    if run.returncode:
        raise RuntimeError(f"{command} ended with exit code {run.returncode}")
    return json.loads(run.stdout[run.stdout.index("{") :])


def faults(arguments):
    with tempfile.TemporaryDirectory(prefix="keras-distill-faults-") as folder:
        Path(folder).chmod(0o755)
        trainings = json_of(HERE / "faults.py", "training", folder, "--kills", arguments.kills)
    tests = ["tests/reliability/test_faults.py", "tests/targets/test_labelling.py"]
    run = output_of("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests)
    return {"trainings": trainings, "tests": counts_of(run.stdout), "holds": run.returncode == 0 and all(
        training["bit_for_bit"] and not training["left"] for training in trainings.values()
    )}  # fmt: skip


def counts_of(text):
    """What the last line of pytest's output says; other lines may be a test's own words, of "15.9 errors"."""
    last = text.rstrip().rpartition("\n")[2]
    return {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}


def fuzz(arguments):
    found = json_of(HERE / "fuzzing.py", *CHEAP, "--cases", arguments.cases, "--seed", 11)
    found |= json_of(HERE / "fuzzing.py", *HEAVY, "--cases", max(arguments.cases // 20, 1), "--seed", 11)
    broken = [end for ends in found.values() for end in ends if end.startswith("FAILED")]
    return {"ends": found, "broken": broken, "holds": not broken}


def properties(arguments):
    tests = ["tests/reliability/test_properties_of_losses.py", "tests/reliability/test_properties_of_ensembles.py"]
    run = output_of(
        "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-show-statistics", *tests,
        KERAS_DISTILL_HYPOTHESIS=arguments.examples,
    )  # fmt: skip
    examples = sum(int(count) for count in re.findall(r"(\d+) passing", run.stdout))
    return {"tests": counts_of(run.stdout), "passing_examples": examples, "holds": run.returncode == 0}


def load(arguments):
    soaked = json_of(HERE / "load.py", "soak", "--epochs", arguments.epochs)
    stored = json_of(HERE / "load.py", "store", "--items", arguments.items)
    holds = not soaked["traces_after_the_first_epoch"] and soaked["bytes_grown_over_the_last_four_fifths"] < 16 << 20
    return {"soak": soaked, "store": stored, "holds": holds}


def mutants(arguments):
    if arguments.shares:
        rooms = merged([json.loads(path.read_text()) for path in arguments.shares])
        return {"rooms": rooms, "holds": all(noticed(room) >= 0.9 for room in rooms.values())}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "mutants.json"
        sample = ["--sample", arguments.sample, "--seed", arguments.seed] if arguments.sample else []
        run = output_of(HERE / "mutants.py", *sample, "--out", out)
        rooms = json.loads(out.read_text())
    holds = run.returncode == 0 and all(noticed(room) >= 0.9 for room in rooms.values())
    return {"rooms": rooms, "holds": holds}


def merged(shares):
    """What `mutants.py` found in several processes, of rooms or of shares, as if one had done it all."""
    rooms = {}
    for share in shares:
        for name, room in share.items():
            counts = dict.fromkeys(("tried", "killed", "survived", "ran out of time"), 0)
            kept = rooms.setdefault(name, {**room, **counts, "survivors": []})
            for key in ("tried", "killed", "survived", "ran out of time"):
                kept[key] += room[key]
            kept["survivors"] = sorted(kept["survivors"] + room["survivors"])
    return rooms


def noticed(room):
    return 1 - room["survived"] / max(room["tried"], 1)


def versions(arguments):
    if arguments.found:
        pairs = json.loads(arguments.found.read_text())
        return {"pairs": pairs, "holds": all(pair["holds"] for pair in pairs.values())}
    tests = ["--tests", *arguments.tests] if arguments.tests else []
    run = output_of(HERE / "versions.py", "oldest", "newest", *tests)
    return {"pairs": json.loads(run.stdout), "holds": run.returncode == 0}


def coverage(arguments):
    """The share of the package's lines that the whole suite runs, in all of its processes."""
    file = ROOT / "build/coverage/lines.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    tests = arguments.tests or []
    output_of("-m", "coverage", "erase")
    run = output_of("-m", "coverage", "run", "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *tests)
    for command in (["combine", "--quiet"], ["json", "--quiet", "-o", file]):
        output_of("-m", "coverage", *command)
    found = json.loads(file.read_text())
    files = {name: of_file["summary"] for name, of_file in found["files"].items()}
    return {
        "tests": counts_of(run.stdout),
        "lines": found["totals"]["num_statements"],
        "percent": round(found["totals"]["percent_covered"], 2),
        # Where most is missing; of all files, their lines are in `build/coverage/lines.json`.
        "least": {
            name: round(summary["percent_covered"], 1)
            for name, summary in sorted(files.items(), key=lambda item: item[1]["percent_covered"])[:10]
        },
        "holds": run.returncode == 0 and found["totals"]["percent_covered"] >= 95.0,
    }


STEPS = {
    "faults": faults,
    "fuzz": fuzz,
    "properties": properties,
    "load": load,
    "mutants": mutants,
    "versions": versions,
    "coverage": coverage,
}


def rendered(kept):
    """The marked part of the page: what was found, step by step; a step that was not run says so."""
    lines = []
    if "machine" in kept:
        lines += [f"Found on {kept['machine']}.", ""]
    if found := kept.get("faults"):
        lines += [
            "**Faults survived**",
            "",
            "| training under | SIGKILLs | resumed runs | against the undisturbed run |",
        ]
        lines += ["| --- | ---: | ---: | --- |"]
        for backup, training in found["trainings"].items():
            name = "`keras.callbacks.BackupAndRestore`" if backup == "keras" else "`keras_distill.Backup`"
            same = "bit for bit" if training["bit_for_bit"] else f"up to {training['largest_difference']:.1e}"
            lines.append(f"| {name} | {training['kills']} | {training['rounds']} | {same} |")
        lines += ["", f"Tests of faults (commands, stores, backups): {words(found['tests'])}.", ""]
    if found := kept.get("fuzz"):
        lines += ["**Inputs tried**", "", "| kind | cases | read | refused with a message | neither |"]
        lines += ["| --- | ---: | ---: | ---: | ---: |"]
        for kind, ends in found["ends"].items():
            total = sum(ends.values())
            read, refused = ends.get("read", 0), ends.get("refused", 0)
            if kind == "arguments":
                # A command line that is refused as it should be is a case that went well.
                read, refused = 0, read
            lines.append(f"| {kind} | {total:,} | {read:,} | {refused:,} | {total - read - refused:,} |")
        total = sum(sum(ends.values()) for ends in found["ends"].values())
        lines += ["", f"{total:,} cases in all.", ""]
    if found := kept.get("properties"):
        drawn = f", over {found['passing_examples']:,} drawn examples" if found["passing_examples"] else ""
        lines += [f"**Properties**: {words(found['tests'])}{drawn}.", ""]
    if found := kept.get("load"):
        soaked, stored = found["soak"], found["store"]
        grown, traced = soaked["bytes_grown_over_the_last_four_fifths"] / 1e6, soaked["traces_after_the_first_epoch"]
        labelled, in_order, shuffled = (stored[key] for key in ("labelling", "reading_in_order", "a_shuffled_epoch"))
        lines += [
            f"**Load**: {soaked['epochs']:,} epochs traced the step {traced} times after the first and grew by "
            f"{grown:.1f} MB over the last four fifths. A store of {stored['items']:,} items "
            f"({stored['megabytes_on_disk']:,.0f} MB): the process grew by {labelled['megabytes_grown']} MB while it "
            f"labelled, {in_order['megabytes_grown']} MB while it read all of it in order, "
            f"{shuffled['megabytes_grown']} MB over a shuffled epoch.",
            "",
        ]
    if found := kept.get("mutants"):
        lines += [
            "**Mutants**",
            "",
            "| room | mutants | tried | noticed | survived |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for name, room in found["rooms"].items():
            row = f"| {name} | {room['mutants']} | {room['tried']} | {noticed(room):.1%} | {room['survived']} |"
            lines.append(row)
        samples = [
            f"`mutants.py {name} --sample {room['tried']} --seed {room['seed']}`"
            for name, room in found["rooms"].items()
            if room["tried"] < room["mutants"]
        ]
        if samples:
            lines += ["", f"Where not all are tried, they are a sample drawn at random: {', '.join(samples)}."]
        lines += ["", "Survivors:", ""]
        lines += [f"- `{survivor}`" for room in found["rooms"].values() for survivor in room["survivors"]] + [""]
    if found := kept.get("versions"):
        lines += [
            "**Versions**",
            "",
            "| pair | TensorFlow | Keras | `pip check` | tests |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, pair in found["pairs"].items():
            if "versions" not in pair:
                lines.append(f"| {name} | | | {pair['why']} | |")
                continue
            clean = pair["pip_check"] if isinstance(pair["pip_check"], str) else "; ".join(pair["pip_check"])
            packages = pair["versions"]
            row = f"| {name} | {packages['tensorflow']} | {packages['keras']} | {clean} | {words(pair['counts'])} |"
            lines.append(row)
        lines.append("")
    if found := kept.get("coverage"):
        least = ", ".join(f"`{name}` {percent} %" for name, percent in list(found["least"].items())[:5])
        lines += [
            f"**Coverage**: {found['percent']} % of {found['lines']:,} lines, over {words(found['tests'])}. "
            f"Least covered: {least}.",
            "",
        ]
    missing = [name for name in STEPS if name not in kept]
    if missing:
        lines += [f"Not run yet: {', '.join(missing)}.", ""]
    return "\n".join(lines)


def words(counts):
    return ", ".join(f"{count:,} {word}" for word, count in counts.items()) or "none"


def write_page(kept):
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{rendered(kept)}\n{END}{after}")


def kept_figures():
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def machine():
    packages = ", ".join(f"{package} {version(package)}" for package in ("tensorflow", "keras", "numpy"))
    cores = f"{os.cpu_count()} cores"
    return f"{cores}, {platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("steps", nargs="*", choices=[[], *STEPS], help="default: all")
    parser.add_argument("--render", action="store_true", help="only write the page anew")
    parser.add_argument("--kills", type=int, default=12, help="SIGKILLs to a training, with each backup")
    parser.add_argument(
        "--cases", type=int, default=5000, help="of each cheap kind of file; a twentieth of each heavy one"
    )
    parser.add_argument("--examples", default="long", help="the profile of hypothesis: few, ci, more or long")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--sample", type=int, default=0, help="so many mutants of each room; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample of mutants")
    parser.add_argument("--tests", nargs="+", help="what `coverage` (default: the whole suite) and `versions` run")
    parser.add_argument("--shares", nargs="+", type=Path, help="what `mutants.py --out` wrote, in place of running it")
    parser.add_argument("--found", type=Path, help="what `versions.py` printed, in place of running it")
    arguments = parser.parse_args()
    holds = True
    for name in () if arguments.render else arguments.steps or STEPS:
        found = STEPS[name](arguments)
        holds &= found["holds"]
        print(f"{name}: {'holds' if found['holds'] else 'BROKEN'}", file=sys.stderr, flush=True)
        # Read anew each time: another step may have ended meanwhile, in another process.
        kept = kept_figures() | {name: found, "machine": machine()}
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    write_page(kept_figures())
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
