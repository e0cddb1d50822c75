"""Plant faults into the package, one at a time, and see which the tests catch.

    KERAS_BACKEND=torch python tools/mutate.py --faults 50 tests/test_properties.py ...

Each fault is planted into a scratch copy, never into the working tree. `--tests` takes
the tests from another checkout: the same seed plants the same faults, and so two
versions of the tests can be compared. Without files all tests of Keras 3 are run, the
files of the fewest lines first, until one fails. A test that fails without any fault is
an error. Some faults change nothing that can be seen: a survivor is a line to read.
"""

import argparse
import ast
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = "keras_logits"
BACKENDS = ("tensorflow", "jax", "torch")
CHECKED_OUT = shutil.ignore_patterns(".*", "__pycache__", "site", "demo-output")
COMPARISONS = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
OPERATORS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}
TWINS = {"maximum": "minimum", "minimum": "maximum", "max": "min", "any": "all"}


class Fault(NamedTuple):
    """Text of a file, from one offset to another, and what stands there instead."""

    file: str
    start: int
    end: int
    text: str
    line: int
    kind: str


class Source:
    """A file, and where each node of it lies."""

    def __init__(self, path: Path) -> None:
        self.file = str(path.relative_to(ROOT))
        self.text = path.read_bytes()  # nodes count bytes
        lengths = [len(line) for line in self.text.splitlines(keepends=True)]
        self.starts = [sum(lengths[:i]) for i in range(len(lengths))]

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def of(self, node: ast.expr) -> str:
        start, end = self.span(node)
        return self.text[start:end].decode()

    def instead(self, node: ast.expr | ast.stmt, text: str, kind: str) -> Fault:
        return Fault(self.file, *self.span(node), text, node.lineno, kind)

    def between(self, left: ast.expr, right: ast.expr, text: str, kind: str) -> Fault:
        """Instead of the operator between two operands. Brackets around them stay."""
        start, end = self.span(left)[1], self.span(right)[0]
        found = self.text[start:end].decode()
        closing, opening = found.count(")"), found.count("(")
        text = f"{')' * closing} {text} {'(' * opening}"
        return Fault(self.file, start, end, text, left.lineno, kind)


def faults_of(source: Source) -> Iterator[Fault]:
    for node in code_of(ast.parse(source.text)):
        if isinstance(node, ast.expr):
            yield from faults_of_expression(source, node)
        elif isinstance(node, ast.If):
            yield source.instead(node.test, f"not ({source.of(node.test)})", "if not")
        elif isinstance(node, ast.AugAssign | ast.Raise | ast.Expr) and is_action(node):
            yield source.instead(node, "pass", "line removed")


def faults_of_expression(source: Source, node: ast.expr) -> Iterator[Fault]:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            yield source.between(left, right, COMPARISONS[type(op)], "comparison")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            yield source.between(left, right, OPERATORS[type(op)], "operator")
        case ast.BoolOp(op=op, values=[left, right]):
            other = "or" if isinstance(op, ast.And) else "and"
            yield source.between(left, right, other, "and/or")
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield source.instead(node, f"({source.of(operand)})", "sign or not dropped")
        case ast.Constant(value=bool(value)):
            yield source.instead(node, repr(not value), "constant")
        case ast.Constant(value=int(value)):
            yield source.instead(node, repr(value + 1), "off by one")
        case ast.Constant(value=float(value)):
            yield source.instead(node, repr(2 * value + 0.5), "constant")
        case ast.Call(func=ast.Attribute(attr="where"), args=[_, one, other]):
            yield source.instead(node, f"({source.of(one)})", "where dropped")
            yield source.instead(node, f"({source.of(other)})", "where dropped")
        case ast.Attribute(value=value, attr=name) if name in TWINS:
            yield source.instead(node, f"{source.of(value)}.{TWINS[name]}", "twin")


def code_of(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those of annotations and of decorators."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from code_of(child)


def is_action(node: ast.stmt) -> bool:
    """Not a docstring."""
    return not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call)


def planted(text: bytes, fault: Fault) -> bytes:
    return text[: fault.start] + fault.text.encode() + text[fault.end :]


def compiles(fault: Fault) -> bool:
    try:
        compile(planted((ROOT / fault.file).read_bytes(), fault), fault.file, "exec")
    except SyntaxError:
        return False
    return True


def drawn(count: int, seed: int, backend: str) -> list[Fault]:
    """Some of all faults of the files that the backend runs."""
    foreign = {"tf_keras", "_version", *BACKENDS} - {backend}
    files = sorted(p for p in (ROOT / PACKAGE).rglob("*.py") if p.stem not in foreign)
    every = [fault for path in files for fault in faults_of(Source(path))]
    random.Random(seed).shuffle(every)
    return [fault for fault in every if compiles(fault)][:count]


# Running the tests


def run(scratch: Path, files: list[str], seconds: float) -> tuple[str, float]:
    """Run tests in a fork of this process, which has imported the frameworks."""
    log = scratch / "log"
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        sys.dont_write_bytecode = True  # which would outlive a fault of the same size
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(scratch)
        sys.path.insert(0, str(scratch))
        import pytest

        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files]))
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - began > seconds:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timed out", seconds
        time.sleep(0.1)
    passed = os.waitstatus_to_exitcode(ended[1]) == 0
    return "survived" if passed else "caught", time.monotonic() - began


def first_failure(scratch: Path) -> str:
    lines = (scratch / "log").read_text(errors="replace").splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return failures[0].split(" - ")[0] if failures else ""


def files_of(tests: Path) -> list[str]:
    files = sorted((tests / "tests").glob("test_*.py"), key=lambda p: p.stat().st_size)
    return [str(path.relative_to(tests)) for path in files]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", type=Path, default=ROOT, help="another checkout")
    parser.add_argument("--timeout", type=float, default=300.0, help="for each fault")
    given = parser.parse_args()
    backend = os.environ.setdefault("KERAS_BACKEND", "torch")
    if backend == "torch":
        import torch  # noqa: F401  (before TensorFlow, or the two crash)
    import keras  # noqa: F401  (before the forks, which share it)

    files = given.files or files_of(given.tests)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "scratch"
        shutil.copytree(given.tests, scratch, ignore=CHECKED_OUT)
        shutil.rmtree(scratch / PACKAGE)
        shutil.copytree(ROOT / PACKAGE, scratch / PACKAGE, ignore=CHECKED_OUT)
        verdict, took = run(scratch, files, 10 * given.timeout)
        print(f"without a fault: {verdict}, {took:.0f} s", flush=True)
        if verdict != "survived":
            print((scratch / "log").read_text(errors="replace")[-3000:])
            return 1
        print(counted(scratch, files, given, backend))
    return 0


def counted(
    scratch: Path, files: list[str], given: argparse.Namespace, backend: str
) -> str:
    verdicts: Counter[str] = Counter()
    for fault in drawn(given.faults, given.seed, backend):
        path = scratch / fault.file
        text = path.read_bytes()
        path.write_bytes(planted(text, fault))
        verdict, took = run(scratch, files, given.timeout)
        path.write_bytes(text)
        verdicts[verdict] += 1
        by = first_failure(scratch) if verdict == "caught" else repr(fault.text)
        where = f"{fault.file}:{fault.line} {fault.kind}"
        print(f"{verdict:9} {took:4.0f} s  {where}  {by}", flush=True)
    return ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())


RAW = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    sys.exit(main())
