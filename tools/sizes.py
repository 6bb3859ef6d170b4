"""Sizes: a function has at most 60 lines without its docstring, a file 500. Reports what is aimed at, not gated."""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "tests", "tools", "benchmarks", "examples")
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 500
EXCEPTIONS = {"src/mediamill/config.py": "one list of all settings; it grows by a field at a time"}
"""`path` or `path:function` -> why it may be longer."""
PATCH = re.compile(r"monkeypatch\.setattr|mock\.patch|\bpatch\(|patch\.object")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def length(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        doc = function.body[0]
        lines -= (doc.end_lineno or doc.lineno) - doc.lineno + 1
    return lines


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, Function):
            yield node.name, length(node)


def code_lines(path: Path) -> int:
    return sum(1 for line in path.read_text().splitlines() if line.strip() and not line.strip().startswith("#"))


def too_long(path: Path) -> Iterator[str]:
    name = path.relative_to(ROOT).as_posix()
    lines = len(path.read_text().splitlines())
    if lines > MAX_FILE_LINES and name not in EXCEPTIONS:
        yield f"{name}: {lines} lines, at most {MAX_FILE_LINES}"
    for function, count in functions(path):
        if count > MAX_FUNCTION_LINES and f"{name}:{function}" not in EXCEPTIONS:
            yield f"{name}:{function}: {count} lines, at most {MAX_FUNCTION_LINES}"


def report(files: list[Path]) -> str:
    source = [p for p in files if p.is_relative_to(ROOT / "src")]
    tests = [p for p in files if p.is_relative_to(ROOT / "tests")]
    median = statistics.median([n for p in source for _, n in functions(p)] or [0])
    source_lines, test_lines = (sum(map(code_lines, group)) for group in (source, tests))
    patches = sum(len(PATCH.findall(p.read_text())) for p in tests)
    return (
        f"src {source_lines} lines, median function {median:.0f} (aim 10); "
        f"tests {test_lines} lines, {test_lines / max(source_lines, 1):.2f} of src (aim 1.1-1.6), "
        f"{1000 * patches / max(test_lines, 1):.1f} patches per 1,000 lines (aim 5)"
    )


def main() -> int:
    files = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
    wrong = [line for path in files for line in too_long(path)]
    print("\n".join([*wrong, report(files)]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
