"""Mutation testing: one fault at a time is put into a file of the package, and some test must fail.

    python tests/reliability/mutants.py losses combiner store --sample 60 --seed 1 --out mutants.json

pytest collects a room's tests once. Each mutant is a fork of that process, in which the code of one function, one
default or one constant is replaced before any test has run. A first fork runs all tests without a fault, while
coverage.py notes which lines each of them runs and how long it takes. A mutant then meets the tests that run its
statement, the quickest first, up to the first failure: the others cannot notice it. A fault in an argument's default
meets every test that runs its function, one outside of functions every test that runs any line of the file.

A mutant is one of: an arithmetic, comparing or boolean operator changed for its neighbour; a number one more, and from
10 on twice as large, since a bound that is one more is the same bound; a truth value turned round; a condition negated;
a sign or a `not` left out; a function changed for its neighbour (`maximum` for `minimum`, `sum` for `mean`, …); a
statement that only calls or raises left out.

Left alone is what changes nothing that is promised: the operators of error messages, annotations, docstrings,
`__repr__`, and the `strict` of a `zip`, which asserts what was checked before. Two changes are made in another way,
because as above they would make an equal program: a comparison with a fraction is turned round (nothing is ever equal
to it), and of a negative index or axis the size is changed and not the sign (in a matrix −1 and 1 are one axis).
"""

import argparse
import ast
import copy
import hashlib
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "keras_distill"
# Room: (its folders and files, the tests that may notice a fault in them; the files' own examples do besides).
ROOMS = {
    "losses": (
        ["losses"],
        [
            "tests/losses",
            "tests/contract/test_every_loss.py",
            "tests/reliability/test_properties_of_losses.py",
        ],
    ),
    "distillation": (
        [f"distillation/{name}.py" for name in ("batch", "distiller", "first_batch", "guards", "objective")],
        [
            "tests/test_distiller.py",
            "tests/test_distiller_features.py",
            "tests/test_item_weights.py",
            "tests/test_structured_outputs.py",
        ],
    ),
    "heads": (
        ["models/forward_pass.py", "models/heads.py"],
        [
            "tests/test_logits.py",
            "tests/test_distiller.py",
            "tests/test_distiller_features.py",
            "tests/test_structured_outputs.py",
        ],
    ),
    "combiner": (
        [
            "specialists/cells.py",
            "specialists/combiner.py",
            "specialists/ensemble.py",
            "specialists/interior_point.py",
            "specialists/merge.py",
        ],
        [
            "tests/specialists/test_combiner.py",
            "tests/specialists/test_certified_merge.py",
            "tests/reliability/test_properties_of_ensembles.py",
        ],
    ),
    "store": (
        ["targets/store.py"],
        ["tests/targets/test_store.py", "tests/reliability/test_damaged_files.py"],
    ),
}
# Not tried: what runs in a process of its own, which reads the right file, and what takes long and is seldom the first.
LEFT_OUT = [
    "tests/reliability/test_damaged_files.py::test_a_few_hundred_damaged_stores_and_bundles_are_read_or_refused",
    "tests/contract/test_every_loss.py::test_compiled_for_any_batch_size_it_is_the_same",
    "tests/contract/test_every_loss.py::test_in_our_distiller_items_of_weight_zero_are_as_if_absent",
    "tests/contract/test_every_loss.py::test_keras_own_distiller_takes_it",
    "tests/contract/test_every_loss.py::test_our_distiller_reports_it_and_trains_by_it",
    "tests/specialists/test_combiner.py::test_ensemble_predicts_and_evaluates",
    "tests/specialists/test_combiner.py::test_layer_runs_in_a_model_of_unknown_batch_size_and_under_xla",
    "tests/specialists/test_combiner.py::test_specialist_sees_only_the_examples_that_ask_it[True]",
]
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitOr, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or,
    ast.Or: ast.And,
}  # fmt: skip
TURNED = {ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Lt: ast.Gt, ast.Gt: ast.Lt}
NEIGHBOURS = {
    "maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max", "sum": "mean", "mean": "sum", "any": "all",
    "all": "any", "zeros_like": "ones_like", "ones_like": "zeros_like", "sqrt": "square", "square": "abs",
    "log_softmax": "softmax", "softmax": "log_softmax", "sigmoid": "log_sigmoid", "log_sigmoid": "sigmoid",
    "logical_and": "logical_or", "logsumexp": "max", "stop_gradient": "negative", "argmax": "argmin", "ceil": "floor",
}  # fmt: skip


class Sites(ast.NodeVisitor):
    """Every place of a file where a fault can be put, as functions that put it there."""

    def __init__(self):
        # (line, what becomes of it, lines that run it or None, path of fields and places to the node, change)
        self.found = []
        self._path = ()
        self._lines = None

    def visit(self, node):
        if isinstance(node, ast.JoinedStr):
            return
        if isinstance(node, ast.FunctionDef) and node.name == "__repr__":
            return
        if isinstance(node, ast.Call) and _name(node.func) == "error_message":
            return
        if isinstance(node, ast.keyword) and node.arg == "strict":
            return
        outer_lines = self._lines
        if isinstance(node, ast.FunctionDef):
            self._lines = range(node.body[0].lineno, node.end_lineno + 1)
        elif isinstance(node, ast.stmt) and self._lines is not None:
            # Of an `if` or a loop what stands before its body.
            inner = [child.lineno for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node]
            self._lines = range(node.lineno, max(min(inner, default=node.end_lineno + 1), node.lineno + 1))
        self._offer(node)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST) and not _is_docstring(child):
                    outer, self._path = self._path, (*self._path, (field, place))
                    self.visit(child)
                    self._path = outer
        self._lines = outer_lines

    def _add(self, node, words, change):
        self.found.append((node.lineno, words, self._lines, self._path, change))

    def _offer(self, node):
        if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in OPERATORS:
            # `"text" + …` and unions of sets of names are no arithmetic, but cost nothing to try.
            new = OPERATORS[type(node.op)]
            self._add(node, f"{type(node.op).__name__} → {new.__name__}", lambda n, new=new: _set(n, "op", new()))
        if isinstance(node, ast.Compare):
            for place, operator in enumerate(node.ops):
                new = OPERATORS[type(operator)]
                if new in TURNED and any(_is_fraction(side) for side in (node.left, *node.comparators)):
                    new = TURNED[new]
                change = lambda n, place=place, new=new: _put(n.ops, place, new(), n)  # noqa: E731
                self._add(node, f"{type(operator).__name__} → {new.__name__}", change)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)) and not _is_place(node):
            self._add(node, f"{type(node.op).__name__} left out", lambda n: n.operand)
        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            more = node.value + 1 if node.value < 10 else 2 * node.value
            new = not node.value if isinstance(node.value, bool) else more
            self._add(node, f"{node.value} → {new}", lambda n, new=new: _set(n, "value", new))
        if isinstance(node, (ast.If, ast.IfExp, ast.While)):
            change = lambda n: _set(n, "test", ast.UnaryOp(ast.Not(), n.test))  # noqa: E731
            self._add(node, "condition negated", change)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in NEIGHBOURS:
            new = NEIGHBOURS[node.func.attr]
            change = lambda n, new=new: _set(n, "func", _set(n.func, "attr", new))  # noqa: E731
            self._add(node, f"{node.func.attr} → {new}", change)
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            self._add(node, f"'{ast.unparse(node)[:60]}' left out", lambda n: ast.Pass())


def _name(function):
    return getattr(function, "id", getattr(function, "attr", ""))


def _is_fraction(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, float) and node.value % 1 != 0


def _is_place(node):
    return isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant) and type(node.operand.value) is int


def _is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _set(node, field, value):
    setattr(node, field, value)
    return node


def _put(values, place, value, node):
    values[place] = value
    return node


def files_of(room):
    """A room's files, by their paths in the package."""
    found = []
    for place in ROOMS[room][0]:
        files = sorted((PACKAGE / place).glob("*.py")) if (PACKAGE / place).is_dir() else [PACKAGE / place]
        found += [file.relative_to(PACKAGE).as_posix() for file in files if file.name != "__init__.py"]
    return found


def mutants_of(file):
    """`[(line, words, lines that run it, scope, mutated statement)]` of a file.

    The scope names the classes around the statement: a function, or what stands outside of one. Lines are `None` for
    what is outside.
    """
    tree = ast.parse((PACKAGE / file).read_text())
    sites = Sites()
    sites.visit(tree)
    found = []
    for line, words, lines, path, change in sites.found:
        # A copy of the one statement that changes: whole trees take a minute over all files.
        mutated = ast.Module(list(tree.body), tree.type_ignores)
        place = path[0][1]
        mutated.body[place] = copy.deepcopy(tree.body[place])
        scope, statement, parent, node = [], None, None, mutated
        for field, place in path:
            parent = node
            if isinstance(node, ast.ClassDef):
                scope.append(node.name)
            node = getattr(node, field) if place is None else getattr(node, field)[place]
            if isinstance(parent, (ast.Module, ast.ClassDef)):
                statement = node
        new = change(node)
        if new is not node:
            ast.copy_location(new, node)
            field, place = path[-1]
            setattr(parent, field, new) if place is None else getattr(parent, field).__setitem__(place, new)
            statement = new if statement is node else statement
        found.append((line, words, lines, tuple(scope), ast.fix_missing_locations(statement)))
    return found


def put_in(file, scope, statement):
    """Replaces a function's code and defaults, or runs a statement of a module or class anew."""
    module = importlib.import_module("keras_distill." + file.removesuffix(".py").replace("/", "."))
    holder = module
    for name in scope:
        holder = getattr(holder, name)
    if not isinstance(statement, ast.FunctionDef):
        run_anew(module, holder, statement)
        return
    function = function_of(holder, statement.name)
    # Within classes of the same names: `super()` needs its cell, and private names are mangled.
    body = copy.deepcopy(statement)
    if "__class__" in function.__code__.co_freevars:
        # Also where the fault is that `super()` is left out.
        body.body += ast.parse("if False: __class__").body
    for name in reversed(scope):
        body = ast.ClassDef(name, [], [], [body], [])
    body = ast.fix_missing_locations(ast.copy_location(body, statement))
    whole = compile(ast.Module([body], []), module.__file__, "exec", dont_inherit=True)
    qualified = ".".join([*scope, statement.name])
    function.__code__ = next(code for code in codes_in(whole) if code.co_qualname == qualified)

    set_defaults(module, function, statement)


def function_of(holder, name):
    found = vars(holder)[name]
    while not hasattr(found, "__code__"):
        found = found.fget if isinstance(found, property) else found.__func__
    return found


def set_defaults(module, function, definition):
    def value_of(node):
        return eval(compile(ast.Expression(node), module.__file__, "eval"), vars(module))

    of_names = zip(definition.args.kwonlyargs, definition.args.kw_defaults, strict=True)
    function.__defaults__ = tuple(map(value_of, definition.args.defaults)) or None
    function.__kwdefaults__ = {name.arg: value_of(node) for name, node in of_names if node is not None} or None


def run_anew(module, holder, statement):
    """Runs a statement of a module or class, and then the constants and defaults that may come of it."""
    names = {}
    exec(compile(ast.Module([statement], []), module.__file__, "exec"), vars(module), names)
    for name, value in names.items():
        setattr(holder, name, value)
    for later in ast.parse(Path(module.__file__).read_text()).body:
        if isinstance(later, ast.Assign) and later.lineno > statement.lineno:
            exec(compile(ast.Module([later], []), module.__file__, "exec"), vars(module))
        if isinstance(later, ast.FunctionDef):
            set_defaults(module, function_of(module, later.name), later)
        for own in later.body if isinstance(later, ast.ClassDef) else []:
            if isinstance(own, ast.FunctionDef):
                set_defaults(module, function_of(getattr(module, later.name), own.name), own)


def codes_in(code):
    """The code objects inside of one, at any depth."""
    for constant in code.co_consts:
        if hasattr(constant, "co_qualname"):
            yield constant
            yield from codes_in(constant)


class Survey:
    """What each test takes of the processor, and which lines of some files it runs.

    What a fixture that several tests share runs counts for all of them.
    """

    def __init__(self, files):
        import coverage

        self.files = files
        self.coverage = coverage.Coverage(data_file=None, config_file=False, include=[str(PACKAGE / f) for f in files])
        self.running = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        """A plugin's hook."""
        if not self.running or fixturedef.scope == "function":
            return (yield)
        self.coverage.switch_context(f"{fixturedef.baseid} {fixturedef.argname}")
        try:
            return (yield)
        finally:
            self.coverage.switch_context(self.running)

    def of(self, items, run):
        """`{test: {"seconds": of the processor, "lines": {file: those that it runs}}}`."""
        seconds = {}
        self.coverage.start()
        for item in items:
            self.running = item.nodeid
            self.coverage.switch_context(self.running)
            started = time.process_time()
            run(item)
            seconds[item.nodeid] = time.process_time() - started
        self.coverage.stop()
        ran = defaultdict(lambda: defaultdict(set))
        for file in self.files:
            for line, contexts in self.coverage.get_data().contexts_by_lineno(str(PACKAGE / file)).items():
                for context in contexts:
                    ran[context][file].add(line)
        surveyed = {}
        for item in items:
            fixtures = [each for several in item._fixtureinfo.name2fixturedefs.values() for each in several]
            parts = [item.nodeid, *(f"{fixture.baseid} {fixture.argname}" for fixture in fixtures)]
            lines = {file: sorted(set().union(*(ran[part][file] for part in parts))) for file in self.files}
            surveyed[item.nodeid] = {"seconds": seconds[item.nodeid], "lines": lines}
        return surveyed


class Mutants:
    """As a plugin of pytest: in place of one run of the tests, one fork for the survey and one for each mutant."""

    def __init__(self, room, arguments):
        self.room, self.arguments = room, arguments
        self.files = files_of(room)
        self.survey = Survey(self.files)
        self.result = None

    def pytest_configure(self, config):
        """A plugin's hook."""
        config.pluginmanager.register(self.survey)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        """A plugin's hook."""
        from tensorflow.python.eager import context

        if session.testsfailed:
            raise pytest.UsageError(f"{session.testsfailed} files of tests cannot be imported")
        if context.context()._context_handle is not None:
            raise pytest.UsageError("no test may run TensorFlow while it is imported: its threads survive no fork")
        self.session, self.items = session, {item.nodeid: item for item in session.items}
        surveyed = self.surveyed()
        todo = [(file, *mutant) for file in self.files for mutant in mutants_of(file)]
        num_all = len(todo)
        arguments = self.arguments
        if arguments.only:
            todo = [mutant for mutant in todo if f"{mutant[0]}:{mutant[1]}" in arguments.only]
        if arguments.sample or arguments.minutes:
            # All of them in an order drawn at random, so that a smaller sample is the beginning of a larger one.
            todo = random.Random(arguments.seed).sample(todo, len(todo))[: arguments.sample]
        share, num_shares = (int(part) for part in arguments.share.split("/"))
        todo = todo[share::num_shares]
        counts, survivors = {"killed": 0, "survived": 0, "ran out of time": 0}, []
        began = time.monotonic()
        for number, (file, line, words, lines, scope, statement) in enumerate(todo, 1):
            tests = tests_that_run(surveyed, file, lines)
            cost = sum(surveyed[test]["seconds"] for test in tests)
            said = f"{number}/{len(todo)} {file}:{line} {words}: {len(tests)} tests of {cost:.1f} s"
            if arguments.list:
                say(said)
                continue
            if arguments.minutes and time.monotonic() - began > 60 * arguments.minutes:
                break
            started = os.times()
            limit = min(self.arguments.seconds, 20 + 5 * cost)
            found = self.verdict((file, scope, statement), tests, limit)
            took = sum(os.times()[2:4]) - sum(started[2:4])
            counts[found] += 1
            if found == "survived":
                survivors.append(f"{file}:{line} {words}")
            say(f"{said}: {found} in {took:.1f} s")
        num_tried = sum(counts.values())
        self.result = {"mutants": num_all, "tried": num_tried, **counts, "survivors": sorted(survivors)}
        if num_tried < num_all:
            self.result["seed"] = arguments.seed
        noticed = 1 - counts["survived"] / max(num_tried, 1)
        say(f"{self.room}: {noticed:.1%} of {num_tried} tried ({num_all} in all) are noticed")
        return True

    def surveyed(self):
        """The survey, out of a fork or of the folder where it is kept."""
        folder = self.arguments.surveys or Path(tempfile.mkdtemp(prefix="keras-distill-mutants-"))
        folder.mkdir(parents=True, exist_ok=True)
        out, log = (folder.resolve() / f"{self.room}{suffix}" for suffix in (".json", ".log"))
        kept = json.loads(out.read_text()) if out.exists() else {}
        digest = hashlib.sha256(b"".join((PACKAGE / file).read_bytes() for file in self.files)).hexdigest()
        surveyed = kept.get("tests", {}) if kept.get("files") == digest else {}
        new = [item for name, item in self.items.items() if name not in surveyed]
        if new:
            started = time.monotonic()
            survey = lambda: out.write_text(json.dumps(self.survey.of(new, self.run)))  # noqa: E731
            if in_fork(survey, 10 * self.arguments.seconds, log, self.session) != 0:
                out.unlink(missing_ok=True)
                raise pytest.UsageError(f"the tests of {self.room} must pass without a fault; they do not, see {log}")
            surveyed |= json.loads(out.read_text())
            out.write_text(json.dumps({"files": digest, "tests": surveyed}))
            say(f"{self.room}: {len(new)} tests pass without a fault, in {time.monotonic() - started:.0f} s")
        surveyed = {name: surveyed[name] for name in self.items}
        # And those that most mutants meet in the order in which they meet them.
        quickest = sorted_by_seconds(surveyed)
        if self.verdict(None, quickest[: len(quickest) // 4], log=log) != "survived":
            raise pytest.UsageError(f"the quickest tests of {self.room} must pass first; they do not, see {log}")
        return surveyed

    def pytest_runtest_logreport(self, report):
        """A plugin's hook: the log says why a test failed."""
        if report.failed:
            print(f"\n{report.nodeid} ({report.when})\n{report.longreprtext}", flush=True)

    def run(self, item):
        """Runs one test, and ends all of its fixtures."""
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)

    def verdict(self, fault, tests, seconds=None, log=os.devnull):
        """ "killed", "survived" or "ran out of time": what becomes of a fault, or of none."""

        def meet():
            if fault is not None:
                put_in(*fault)
            for test in tests:
                self.run(self.items[test])
                if self.session.testsfailed:
                    return

        code = in_fork(meet, seconds or self.arguments.seconds, log, self.session)
        return {0: "survived", 1: "killed", None: "ran out of time"}[code]


def in_fork(work, seconds, log, session):
    """1 where a test failed or the process was ended, else 0; `None` where it ran out of time."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setsid()
            # A fault may ask for any amount of memory.
            resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
            # Of the processor's time, since others may want it too; one that only waits takes none.
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 10))
            signal.alarm(int(100 * seconds))
            said = os.open(log, os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 1)
            os.dup2(said, 2)
            work()
            code = min(session.testsfailed, 1)
        except BaseException:
            os.write(ERRORS, traceback.format_exc().encode())
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL, signal.SIGALRM):
        return None
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 3:
        raise RuntimeError("a mutant could not be tried, see standard error")
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1


def tests_that_run(surveyed, file, lines):
    """The tests that run one of some lines of a file, or any where `lines` is `None`; the quickest first."""
    return sorted_by_seconds(
        {
            test: found
            for test, found in surveyed.items()
            if found["lines"][file] and (lines is None or not set(lines).isdisjoint(found["lines"][file]))
        }
    )


def sorted_by_seconds(surveyed):
    return sorted(surveyed, key=lambda test: surveyed[test]["seconds"])


def say(words):
    os.write(SAID, f"{words}\n".encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("rooms", nargs="*", choices=[[], *ROOMS], help="default: all")
    parser.add_argument("--sample", type=int, help="so many mutants of each room, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument(
        "--seconds",
        type=float,
        default=300,
        help="of processor time; a mutant that takes longer, or five times as long as its tests, counts as noticed",
    )
    parser.add_argument("--minutes", type=float, help="of a room's mutants, as many as are tried in so many minutes")
    parser.add_argument("--share", default="0/1", metavar="I/N", help="the I-th of N shares of them, I from 0")
    parser.add_argument("--surveys", type=Path, metavar="FOLDER", help="where surveys are kept, to be used again")
    parser.add_argument("--list", action="store_true", help="only tell which mutants there are, and their tests")
    parser.add_argument("--only", nargs="+", metavar="FILE:LINE", help="these mutants alone")
    parser.add_argument("--out", type=Path, help="write what was found as JSON")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    results = {}
    for room in arguments.rooms or ROOMS:
        # One process a room: what one leaves behind is no matter for the next.
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os._exit(try_room(room, arguments, writing))
        os.close(writing)
        with os.fdopen(reading) as stream:
            found = stream.read()
        os.waitpid(child, 0)
        if not found:
            return 1
        results[room] = json.loads(found)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return 0


def try_room(room, arguments, writing):
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("KERAS_DISTILL_HYPOTHESIS", "few")
    os.environ["TF_CPP_MIN_LOG_LEVEL"], os.environ["PYTHONPATH"] = "3", str(ROOT)
    os.environ["KERAS_BACKEND"] = "tensorflow"
    files, tests = files_of(room), ROOMS[room][1]
    mutants = Mutants(room, arguments)
    with tempfile.TemporaryDirectory(prefix="keras-distill-mutants-") as folder:
        options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
        options += ["--basetemp", f"{folder}/tests", *(f"--deselect={test}" for test in LEFT_OUT)]
        pytest.main([*options, *(f"keras_distill/{file}" for file in files), *tests], plugins=[mutants])
    if mutants.result is None:
        return 1
    os.write(writing, json.dumps(mutants.result).encode())
    return 0


if __name__ == "__main__":
    SAID, ERRORS = os.dup(1), os.dup(2)
    raise SystemExit(main())
