"""The shape of our own code: a report to read, not a gate to pass.

    python tools/size.py [folder]

A function is split because it says two things, never to lower a number in here.
"""

import ast
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = 6  # lines that make a repetition worth naming
LONG_FILE = 400
BLOCKS = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.FunctionDef, ast.ClassDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    folder = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "keras_logits"
    texts = {path: path.read_text() for path in sorted(folder.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    sizes = function_sizes(texts, trees)
    lengths = sorted(sizes.values())
    ninety = lengths[int(0.9 * (len(lengths) - 1))]
    deepest = max((nesting(tree), path) for path, tree in trees.items())
    longest_file = max((len(text.splitlines()), path) for path, text in texts.items())
    long_files = sum(len(text.splitlines()) > LONG_FILE for text in texts.values())
    rows = [
        (
            "function, median / 90 %",
            f"{statistics.median(lengths):g} / {ninety}",
            "7 / 24",
        ),
        ("longest function", top(sizes), "50"),
        ("deepest nesting", named(*deepest), "3"),
        ("longest file", named(*longest_file), str(LONG_FILE)),
        (f"files over {LONG_FILE} lines", f"{long_files} of {len(texts)}", "0"),
        ("public, documented", share(map(documented, public(trees))), "100 %"),
        ("public, annotated", share(map(annotated, functions(public(trees)))), "100 %"),
        (f"repeated lines (runs of {RUN})", share(repeated(texts)), "under 3 %"),
        ("ValueErrors with 'Received'", share(map(tells, errors(trees))), "100 %"),
    ]
    for name, value, aim in [("", folder.name, "aim"), *rows]:
        print(f"{name:30} {value:58} {aim}")


def function_sizes(
    texts: dict[Path, str], trees: dict[Path, ast.Module]
) -> dict[str, int]:
    """Lines of code of each body: no docstring, no comment, no blank line."""
    sizes = {}
    for path, tree in trees.items():
        lines = texts[path].splitlines()
        for function in functions(ast.walk(tree)):
            body = function.body[ast.get_docstring(function) is not None :]
            first = body[0].lineno - 1 if body else function.end_lineno
            code = [line.strip() for line in lines[first : function.end_lineno]]
            name = f"{function.name}, {path.name}:{function.lineno}"
            sizes[name] = sum(bool(c) and not c.startswith("#") for c in code)
    return sizes


def nesting(node: ast.AST, depth: int = 0) -> int:
    """How many blocks deep, counted from the innermost function's body."""
    inside = 0 if isinstance(node, Function | ast.ClassDef) else depth
    inside += isinstance(node, BLOCKS) and not isinstance(node, Function | ast.ClassDef)
    return max(
        [inside, *(nesting(child, inside) for child in ast.iter_child_nodes(node))]
    )


def public(trees: dict[Path, ast.Module]) -> list[ast.AST]:
    """What modules without a leading underscore define at their top, likewise."""
    return [
        node
        for path, tree in trees.items()
        for node in tree.body
        if isinstance(node, Function | ast.ClassDef) and node.name[0] != "_"
        if path.name[0] != "_"
    ]


def functions(nodes: Iterable[ast.AST]) -> Iterator[Function]:
    return (node for node in nodes if isinstance(node, Function))


def errors(trees: dict[Path, ast.Module]) -> list[str]:
    """The text of each ValueError that is raised with one."""
    return [
        ast.unparse(node.exc)
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and "ValueError(" in ast.unparse(node)
        if node.exc is not None
    ]


def repeated(texts: dict[Path, str]) -> list[bool]:
    """Of each line of code, whether it stands in a run of lines that stands twice."""
    lines = [
        line.strip()
        for text in texts.values()
        for line in text.splitlines()
        if line.strip() and not line.strip().startswith(("#", "import ", "from "))
    ]
    runs = [tuple(lines[i : i + RUN]) for i in range(len(lines) - RUN + 1)]
    often = Counter(runs)
    inside = [False] * len(lines)
    for start, run in enumerate(runs):
        if often[run] > 1:
            inside[start : start + RUN] = [True] * RUN
    return inside


def documented(node: ast.AST) -> bool:
    return bool(ast.get_docstring(node))  # type: ignore[arg-type]


def annotated(function: Function) -> bool:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    return function.returns is not None and all(a.annotation for a in arguments)


def tells(error: str) -> bool:
    return "Received" in error or "_unmarked" in error


def share(held: Iterable[bool]) -> str:
    values = list(held)
    return f"{100 * sum(values) / max(len(values), 1):.0f} % of {len(values)}"


def top(sizes: dict[str, int]) -> str:
    name = max(sizes, key=lambda name: sizes[name])
    return f"{sizes[name]} ({name})"


def named(value: int, path: Path) -> str:
    return f"{value} ({path.name})"


if __name__ == "__main__":
    main()
