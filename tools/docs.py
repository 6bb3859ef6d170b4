"""Docs that are not dead: local links and anchors resolve, named paths, make targets and commands exist."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^(?:```|~~~).*?^(?:```|~~~) *$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"(?:src|tests|tools|docs|benchmarks|examples|deploy)/[\w./-]*\w/?|\.ci/run")
MAKE = re.compile(r"(?:^|[\s`])make ((?:-k )?[a-z][a-z-]*)", re.MULTILINE)
COMMAND = re.compile(r"(?:^|[\s`/])mediamill ([a-z][a-z0-9-]+)", re.MULTILINE)


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@cache
def anchors(path: Path) -> frozenset[str]:
    """Anchors as the usual Markdown renderers make them from headings."""
    text = BLOCK.sub("", path.read_text())
    return frozenset(re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in HEADING.findall(text))


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def commands() -> frozenset[str]:
    from mediamill.cli import command_names  # noqa: PLC0415 - only where a page names a command

    return frozenset(command_names())


def dead_links(page: Path, text: str) -> Iterator[str]:
    for match in LINK.finditer(BLOCK.sub("", text)):
        target = match.group(1) or match.group(2)
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"dead link {target}"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            yield f"no heading for {target}"


def orphans() -> Iterator[str]:
    """Pages under docs/ that no other page leads to, by a link to the page or to its folder."""
    linked = {
        (page.parent / (match.group(1) or match.group(2)).partition("#")[0]).resolve()
        for page in pages()
        for match in LINK.finditer(page.read_text())
    }
    for page in pages():
        if page.is_relative_to(ROOT / "docs") and not {page, page.parent} & linked:
            yield f"{page.relative_to(ROOT)}: no page leads here; link it in docs/index.md"


def dead_names(text: str) -> Iterator[str]:
    prose = BLOCK.sub("", text)
    for code in CODE.findall(prose):
        if PATH.fullmatch(code) and not (ROOT / code).exists() and not (ROOT / "src/mediamill" / code).exists():
            yield f"no such file {code}"
    shell = "\n".join([*CODE.findall(prose), *(b for b in BLOCK.findall(text) if b.startswith(("```bash", "```sh")))])
    for target in MAKE.findall(shell):
        if target.removeprefix("-k ") not in make_targets():
            yield f"no such target: make {target}"
    for command in COMMAND.findall(shell):
        if command not in commands():
            yield f"no such command: mediamill {command}"


def main() -> int:
    found = [
        f"{page.relative_to(ROOT)}: {line}"
        for page in pages()
        for line in (*dead_links(page, page.read_text()), *dead_names(page.read_text()))
    ]
    found.extend(orphans())
    print("\n".join(found) or f"{len(pages())} pages, no dead link, path or command")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
