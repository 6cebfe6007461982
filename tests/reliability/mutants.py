"""Mutation testing: one fault at a time is put into a file of the package, and some test must fail.

    python tests/reliability/mutants.py losses combiner store --sample 200 --out mutants.json

TensorFlow is imported once; each mutant is a fork of that process, in which the faulty file is compiled in place of the
right one before anything imports it. The tests run in the order in which they are given and stop at the first failure.

A mutant is one of: an arithmetic, comparing or boolean operator changed for its neighbour; a number one more; a truth
value turned round; a condition negated; a sign or a `not` left out; a function changed for its neighbour (`maximum` for
`minimum`, `sum` for `mean`, …); a statement that only calls or raises left out. What error messages say, annotations,
docstrings and `__repr__` are left alone: no promise hangs on their operators.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "keras_distill"
LOSSES = ["tests/reliability/test_properties_of_losses.py", "tests/contract/test_every_loss.py"]
# Room: ({file: its own tests}, tests for all of them).
ROOMS = {
    "losses": (
        {
            "losses/features.py": ["tests/losses/test_features.py", "tests/test_distiller_features.py"],
            "losses/logit_loss.py": ["tests/losses/test_logit_variants.py", "tests/losses/test_soft_targets.py"],
            "losses/logit_variants.py": ["tests/losses/test_logit_variants.py"],
            "losses/per_example.py": ["tests/losses/test_soft_targets.py", "tests/losses/test_logit_variants.py"],
            "losses/projector.py": ["tests/losses/test_features.py", "tests/test_distiller_features.py"],
            "losses/reduction.py": ["tests/test_distiller.py", "tests/test_structured_outputs.py"],
            "losses/relations.py": ["tests/losses/test_relations.py"],
            "losses/soft_targets.py": ["tests/losses/test_soft_targets.py", "tests/losses/test_top_k_soft_targets.py"],
        },
        LOSSES,
    ),
    "combiner": (
        {"specialists/combiner.py": ["tests/specialists/test_combiner.py"]},
        ["tests/reliability/test_properties_of_ensembles.py"],
    ),
    "store": (
        {"targets/store.py": ["tests/targets/test_store.py"]},
        ["tests/reliability/test_damaged_files.py", "tests/targets/test_labelling.py"],
    ),
}
# Runs in a process of its own, which reads the right file.
ELSEWHERE = [
    "tests/reliability/test_damaged_files.py::test_a_few_hundred_damaged_stores_and_bundles_are_read_or_refused"
]
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitOr, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or,
    ast.Or: ast.And,
}  # fmt: skip
NEIGHBOURS = {
    "maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max", "sum": "mean", "mean": "sum", "any": "all",
    "all": "any", "zeros_like": "ones_like", "ones_like": "zeros_like", "sqrt": "square", "square": "abs",
    "log_softmax": "softmax", "softmax": "log_softmax", "sigmoid": "log_sigmoid", "log_sigmoid": "sigmoid",
    "logical_and": "logical_or", "logsumexp": "max", "stop_gradient": "negative", "argmax": "argmin", "ceil": "floor",
}  # fmt: skip


class Sites(ast.NodeVisitor):
    """Every place of a file where a fault can be put, as functions that put it there."""

    def __init__(self):
        self.found = []  # (line, what becomes of it, path of fields and places to the node, change)
        self._path = ()

    def visit(self, node):
        if isinstance(node, (ast.JoinedStr, ast.arguments)) and not isinstance(node, ast.arguments):
            return
        if isinstance(node, ast.FunctionDef) and node.name == "__repr__":
            return
        if isinstance(node, ast.Call) and _name(node.func) == "complaint":
            return
        self._offer(node)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST) and not _is_docstring(child):
                    outer, self._path = self._path, (*self._path, (field, place))
                    self.visit(child)
                    self._path = outer

    def _add(self, node, words, change):
        self.found.append((node.lineno, words, self._path, change))

    def _offer(self, node):
        if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in OPERATORS:
            # `"text" + …` and unions of sets of names are no arithmetic, but cost nothing to try.
            new = OPERATORS[type(node.op)]
            self._add(node, f"{type(node.op).__name__} → {new.__name__}", lambda n, new=new: _set(n, "op", new()))
        if isinstance(node, ast.Compare):
            for place, operator in enumerate(node.ops):
                new = OPERATORS[type(operator)]
                change = lambda n, place=place, new=new: _put(n.ops, place, new(), n)  # noqa: E731
                self._add(node, f"{type(operator).__name__} → {new.__name__}", change)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            self._add(node, f"{type(node.op).__name__} left out", lambda n: n.operand)
        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            new = not node.value if isinstance(node.value, bool) else node.value + 1
            self._add(node, f"{node.value} → {new}", lambda n, new=new: _set(n, "value", new))
        if isinstance(node, (ast.If, ast.IfExp, ast.While)):
            change = lambda n: _set(n, "test", ast.UnaryOp(ast.Not(), n.test))  # noqa: E731
            self._add(node, "condition negated", change)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in NEIGHBOURS:
            new = NEIGHBOURS[node.func.attr]
            change = lambda n, new=new: _set(n, "func", _set(n.func, "attr", new))  # noqa: E731
            self._add(node, f"{node.func.attr} → {new}", change)
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            self._add(node, f"«{ast.unparse(node)[:60]}» left out", lambda n: ast.Pass())


def _name(function):
    return getattr(function, "id", getattr(function, "attr", ""))


def _is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _set(node, field, value):
    setattr(node, field, value)
    return node


def _put(values, place, value, node):
    values[place] = value
    return node


def mutants_of(file):
    """`[(line, words, mutated tree)]` of a file of the package."""
    tree = ast.parse((PACKAGE / file).read_text())
    sites = Sites()
    sites.visit(tree)
    found = []
    for line, words, path, change in sites.found:
        mutated = copy.deepcopy(tree)
        parent, node = None, mutated
        for field, place in path:
            parent = node
            node = getattr(node, field) if place is None else getattr(node, field)[place]
        new = change(node)
        if new is not node:
            ast.copy_location(new, node)
            field, place = path[-1]
            setattr(parent, field, new) if place is None else getattr(parent, field).__setitem__(place, new)
        found.append((line, words, ast.fix_missing_locations(mutated)))
    return found


class Instead(importlib.abc.MetaPathFinder):
    """Finds one module of the package as another tree."""

    def __init__(self, file, tree):
        self.name = "keras_distill." + file.removesuffix(".py").replace("/", ".")
        self.path, self.tree = str(PACKAGE / file), tree

    def pytest_sessionstart(self):
        """As a plugin: pytest's own finder, which reads the files of its command line anew, comes second."""
        sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        found = self

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname):
                return compile(found.tree, found.path, "exec", dont_inherit=True)

        return importlib.util.spec_from_file_location(name, self.path, loader=Loader(name, self.path))


def verdict(file, tree, tests, seconds):
    """«killed», «survived» or «ran out of time», by a fork of this process."""
    child = os.fork()
    if child == 0:
        os.setsid()
        # A fault may ask for any amount of memory.
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 10))
        import pytest

        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "-m", "not slow"]
        options += [f"--deselect={test}" for test in ELSEWHERE]
        try:
            os._exit(int(pytest.main([*options, *tests], plugins=[Instead(file, tree)] if tree else [])))
        finally:
            os._exit(99)
    started = time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
                return "ran out of time"
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1
            if code not in (0, 1, 2):
                raise RuntimeError(f"pytest could not run {tests}: exit code {code}")
            return "survived" if code == 0 else "killed"
        # Of the processor's time, since others may want it too; one that only waits takes none.
        if time.monotonic() - started > 10 * seconds:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "ran out of time"
        time.sleep(0.02)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("rooms", nargs="*", choices=[[], *ROOMS], help="default: all")
    parser.add_argument("--sample", type=int, help="so many mutants of each room, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument(
        "--seconds", type=float, default=600, help="of processor time; a mutant that takes longer counts as noticed"
    )
    parser.add_argument("--share", default="0/1", metavar="I/N", help="the I-th of N shares of them, I from 0")
    parser.add_argument("--only", nargs="+", metavar="FILE:LINE", help="these mutants alone")
    parser.add_argument("--out", type=Path, help="write what was found as JSON")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("KERAS_DISTILL_HYPOTHESIS", "few")
    os.environ["TF_CPP_MIN_LOG_LEVEL"], os.environ["PYTHONPATH"] = "3", str(ROOT)
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras  # noqa: F401
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import sklearn.cluster  # noqa: F401
    import tensorflow  # noqa: F401

    results = {}
    for room in arguments.rooms or ROOMS:
        files, common = ROOMS[room]
        todo = []
        for file, own in files.items():
            tests = [f"keras_distill/{file}", *own, *common]
            todo += [(file, line, words, tree, tests) for line, words, tree in mutants_of(file)]
        num_all = len(todo)
        if arguments.only:
            todo = [mutant for mutant in todo if f"{mutant[0]}:{mutant[1]}" in arguments.only]
        if arguments.sample and arguments.sample < len(todo):
            todo = random.Random(arguments.seed).sample(todo, arguments.sample)
        share, num_shares = (int(part) for part in arguments.share.split("/"))
        todo = sorted(todo, key=lambda mutant: mutant[:3])[share::num_shares]
        for file in files if not arguments.only and not share else ():
            tests = next((mutant[4] for mutant in todo if mutant[0] == file), None)
            if tests and verdict(file, None, tests, arguments.seconds) != "survived":
                print(f"the tests of {file} must pass without a fault; they do not", file=sys.stderr)
                return 1
        counts = {"killed": 0, "survived": 0, "ran out of time": 0}
        survivors = []
        for number, (file, line, words, tree, tests) in enumerate(todo, 1):
            started = time.monotonic()
            found = verdict(file, tree, tests, arguments.seconds)
            counts[found] += 1
            if found == "survived":
                survivors.append(f"{file}:{line} {words}")
            print(f"{number}/{len(todo)} {time.monotonic() - started:.1f} s {file}:{line} {words}: {found}", flush=True)
        results[room] = {"mutants": num_all, "tried": len(todo), **counts, "survivors": survivors}
        noticed = 1 - counts["survived"] / max(len(todo), 1)
        print(f"{room}: {noticed:.1%} of {len(todo)} tried ({num_all} in all) are noticed", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
