"""Mutation testing: changes one place of a module at a time and counts the changes that its tests notice.

`python benchmarks/mutation.py parse|metrics|ledger [--most N] [--out FILE]`. Every mutant runs in a fork of a process
that has imported what the module stands on; the fork imports the changed module and calls the quick tests of it, in
their order, until one fails. pytest is left out: it takes longer than the tests. Which N mutants of all are taken is
decided by a hash, so a rerun takes the same.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib
import importlib.abc
import importlib.util
import inspect
import io
import json
import os
import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PLANS: dict[str, tuple[list[str], list[str]]] = {
    # name -> (modules, their tests)
    "parse": (["judges._parse"], ["tests.test_parse"]),
    "metrics": (["judges.agreement.metrics", "judges.agreement._ranks"], ["tests.test_metrics"]),
    "ledger": (
        ["tenet.ledger.calls", "tenet.ledger.rows", "tenet.ledger._sqlite", "tenet.ledger._file", "tenet.ledger._lock"],
        ["tests.test_ledger_files", "tests.test_ledger", "tests.test_properties_ledger"],
    ),
}
SLOW = re.compile("kill|process|holder|race|same_question|stopped|budget|many_")
"""Names of tests that start processes, or ask about something else than the module."""
LIBRARIES = (
    *("asyncio", "sqlite3", "numpy", "scipy.stats", "sklearn.metrics", "statsmodels.stats.proportion", "pytest"),
    *("hypothesis.stateful", "tests.test_properties", "tenet.settings", "constitution", "judges.agreement.people"),
)
"""Imported before the forks; what of it imports a mutated module is forgotten in the fork."""
COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
COMPUTED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


class Mutant(NamedTuple):
    """One change."""

    module: str
    line: int
    change: str
    source: str

    @property
    def rank(self) -> str:
        """Decides which mutants are taken."""
        return hashlib.blake2b(f"{self.module}:{self.line}:{self.change}".encode(), digest_size=8).hexdigest()


def edits(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], ast.AST]]]:
    """What is changed at a node: words for it, and a function that makes the change in a copy."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if new := COMPARED.get(type(op)):
                yield f"{type(op).__name__} -> {new.__name__}", lambda n, i=i, new=new: _put(n, "ops", new(), i)
    elif isinstance(node, ast.BoolOp):
        new = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__} -> {new.__name__}", lambda n: _put(n, "op", new())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not x -> x", lambda n: n.operand  # type: ignore[attr-defined]
    elif isinstance(node, ast.BinOp) and (new := COMPUTED.get(type(node.op))):
        yield f"{type(node.op).__name__} -> {new.__name__}", lambda n: _put(n, "op", new())
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
        value: Any = not node.value if isinstance(node.value, bool) else None
        if value is None:
            value = "XX" + node.value if isinstance(node.value, str) else node.value + 1
        yield f"{node.value!r:.30} -> {value!r:.30}", lambda n: _put(n, "value", value)
    elif (
        isinstance(node, ast.Return)
        and node.value
        and not (isinstance(node.value, ast.Constant) and not node.value.value)
    ):
        yield "return None", lambda n: _put(n, "value", ast.Constant(None))
    elif isinstance(node, ast.If | ast.IfExp):
        yield "condition negated", lambda n: _put(n, "test", ast.UnaryOp(ast.Not(), n.test))  # type: ignore[attr-defined]
    elif isinstance(node, ast.Raise | ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield "statement removed", lambda n: ast.Pass()


def _put(node: Any, field: str, value: Any, at: int | None = None) -> Any:
    if at is None:
        setattr(node, field, value)
    else:
        getattr(node, field)[at] = value
    return node


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, list[tuple[str, int | None]]]]:
    """Every node that may be changed, and the way to it; annotations, messages and docstrings are left out."""

    def walk(node: ast.AST, way: list[tuple[str, int | None]]) -> Iterator[Any]:
        yield node, way
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "bases", "op", "ops", "ctx"):
                continue
            for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST) and not _left_out(node, child):
                    yield from walk(child, [*way, (field, i)])

    yield from walk(tree, [])


def _left_out(parent: ast.AST, child: ast.AST) -> bool:
    if isinstance(child, ast.Import | ast.ImportFrom | ast.JoinedStr):
        return True
    if isinstance(parent, ast.Raise):
        return True  # which error, and its words, are for the tests of messages
    return isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)


def mutants(module: str) -> Iterator[Mutant]:
    """Every change of a module that Python can compile."""
    path = ROOT / (module.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text())
    for node, way in places(tree):
        for change, make in edits(node):
            changed = copy.deepcopy(tree)
            target: Any = changed
            for field, i in way[:-1]:
                target = getattr(target, field) if i is None else getattr(target, field)[i]
            if way:
                field, i = way[-1]
                old = getattr(target, field) if i is None else getattr(target, field)[i]
                _put(target, field, make(old), i)
            source = ast.unparse(ast.fix_missing_locations(changed))
            yield Mutant(module, getattr(node, "lineno", 0), change, source)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from changed source."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        return importlib.util.spec_from_loader(name, self) if name == self.mutant.module else None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.mutant.source, module.__name__, "exec"), module.__dict__)


def _standing_on(module: str) -> list[str]:
    """The loaded modules that hold something of a module: all of ours but the ground floor, and the tests."""
    root = module.partition(".")[0]
    above = ("judges", "service", "tests") if root == "judges" else ("tenet.ledger", "tenet.engines", "judges", "tests")
    keep = ("tests", "judges.agreement.rules", "judges.agreement.votes", "judges.agreement.people", "judges._table")
    return [n for n in sys.modules if n.startswith(above) and not (root == "judges" and n in keep)]


def call_all(module: Any) -> None:
    """Calls the tests of a module, each with every one of its parameters, and a folder where it asks for one."""
    for name, test in list(vars(module).items()):
        wants = inspect.signature(test).parameters.keys() if name.startswith("test_") and not SLOW.search(name) else ()
        if not name.startswith("test_") or SLOW.search(name) or (hasattr(test, "is_hypothesis_test") and wants):
            continue
        cases: list[dict[str, Any]] = [{}]
        for mark in getattr(test, "pytestmark", ()):
            if mark.name == "parametrize":
                names, values = mark.args
                names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
                given = [dict(zip(names, v if len(names) > 1 else [v], strict=True)) for v in values]
                cases = [{**c, **g} for c in cases for g in given]
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                case |= {"tmp_path": Path(folder)} if "tmp_path" in wants else {}
                if case.keys() == set(wants):
                    test(**case)


def run(mutant: Mutant | None, tests: list[str], seconds: int) -> str:
    """ "killed", "survived" or "timeout", of the tests in a fork."""
    child = os.fork()
    if not child:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            for name in _standing_on(mutant.module) if mutant else ():
                del sys.modules[name]
            if mutant is not None:
                sys.meta_path.insert(0, Finder(mutant))
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                for name in tests:
                    call_all(importlib.import_module(name))
            code = 0
        except BaseException:
            if mutant is None:
                traceback.print_exc()
        finally:
            os._exit(code)
    give_up = time.monotonic() + 4 * seconds  # of a busy machine; a writer that hangs uses no CPU
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > give_up:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return "timeout"
        time.sleep(0.02)
    if os.WIFSIGNALED(status):
        return "timeout"
    return "survived" if os.WEXITSTATUS(status) == 0 else "killed"


def main() -> None:
    """Prints each survivor as it is found, and the score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", choices=PLANS)
    parser.add_argument("--most", type=int, default=10_000, help="take so many mutants at most")
    parser.add_argument("--seconds", type=int, default=60, help="CPU time of one mutant")
    parser.add_argument("--out", type=Path, help="a JSON line for each mutant")
    given = parser.parse_args()
    modules, tests = PLANS[given.plan]
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for name in LIBRARIES:
        importlib.import_module(name)
    found = [m for module in modules for m in mutants(module)]
    taken = sorted(found, key=lambda m: m.rank)[: given.most]
    started = time.monotonic()
    if run(None, tests, given.seconds) != "survived":
        sys.exit("the tests fail without a change")
    print(f"{len(taken)} of {len(found)} mutants; the tests take {time.monotonic() - started:.0f} s", flush=True)
    counts = {"killed": 0, "timeout": 0, "survived": 0}
    for mutant in taken:
        state = run(mutant, tests, given.seconds)
        counts[state] += 1
        if state == "survived":
            print(f"survived: {mutant.module}:{mutant.line}: {mutant.change}", flush=True)
        if given.out:
            with given.out.open("a") as f:
                f.write(json.dumps({**mutant._asdict(), "source": "", "state": state}) + "\n")
    score = 1 - counts["survived"] / len(taken)
    print(f"{counts} score {score:.1%}")


if __name__ == "__main__":
    main()
