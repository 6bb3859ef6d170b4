from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.service import eventually
from tools import docs, hygiene, reference, sizes

CONTAINED = Path(__file__).parents[2] / "tools" / "contained.py"


def test_the_reference_pages_are_what_the_code_says() -> None:
    assert reference.stale() == []


def test_a_function_is_measured_without_its_docstring_and_decorators() -> None:
    import ast

    body = "@cache\n@other\ndef f():\n    '''one\n\n    two'''\n" + "    x = 1\n" * 9
    (function,) = [n for n in ast.walk(ast.parse(body)) if isinstance(n, ast.FunctionDef)]
    assert sizes.length(function) == 10


def test_long_functions_and_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("def f():\n" + "    x = 1\n" * 60 + "y = 1\n" * 440)
    (tmp_path / "b.py").write_text("def f():\n" + "    x = 1\n" * 59)
    monkeypatch.setattr(sizes, "ROOT", tmp_path)
    assert list(sizes.too_long(tmp_path / "a.py")) == [
        "a.py: 501 lines, at most 500",
        "a.py:f: 61 lines, at most 60",
    ]
    assert list(sizes.too_long(tmp_path / "b.py")) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[x](missing.md)", "dead link missing.md"),
        ("[x](page.md#nowhere)", "no heading for page.md#nowhere"),
        ("[x](page.md#a-heading-here)", None),
        ("[x](https://example.com/missing)", None),
        ("```\n[x](missing.md)\n```", None),
    ],
)
def test_dead_links_are_named(tmp_path: Path, text: str, complaint: str | None) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A heading: here\n\n{text}\n")
    assert list(docs.dead_links(page, page.read_text())) == ([complaint] if complaint else [])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("`src/mediamill/nothing.py`", "no such file src/mediamill/nothing.py"),
        ("`src/mediamill/config.py`", None),
        ("`make fly`", "no such target: make fly"),
        ("```bash\nmake setup\nmediamill fly\n```", "no such command: mediamill fly"),
        ("```bash\nmediamill jobs list\n```", None),
        ("we make fly traps with mediamill every day", None),
    ],
)
def test_dead_names_are_named(text: str, complaint: str | None) -> None:
    assert list(docs.dead_names(text)) == ([complaint] if complaint else [])


def test_what_must_not_be_committed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hygiene, "ROOT", tmp_path)
    host, key = "pypi" + ".org", "AKIA" + "A" * 16
    (tmp_path / "a.txt").write_text(f"fine\nhttps://{host}/x\n{key}\nfile /roo" + "t/x\n")
    (tmp_path / "b.bin").write_bytes(b"\xff" * 2**21)
    assert list(hygiene.wrong(tmp_path / "a.txt")) == [
        f"a.txt:2: host of a package registry ({host})",
        "a.txt:4: path of one machine (/roo" + "t/)",
        f"a.txt:3: cloud access key ({key})",
    ]
    assert list(hygiene.wrong(tmp_path / "b.bin")) == ["b.bin: 2097152 bytes, at most 1048576"]


def contained(tmp_path: Path, limit_s: float, script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CONTAINED), str(limit_s), str(tmp_path / "log"), "bash", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)


def test_a_contained_command_keeps_its_output_and_status(tmp_path: Path) -> None:
    done = contained(tmp_path, 30, "echo out; echo err >&2; read line || echo no input; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\nerr\nno input\n", "")
    assert (tmp_path / "log").read_text() == done.stdout


def test_whatever_a_contained_command_leaves_is_killed_and_named(tmp_path: Path) -> None:
    """Even a daemon in a session of its own that ignores signals and holds the output open."""
    daemon = "trap '' TERM HUP; echo $$ > pid; while :; do sleep 1; done"
    done = contained(tmp_path, 30, f'(setsid bash -c "{daemon.replace("$$", chr(92) + "$$")}" &) ; sleep 1; echo done')
    assert done.returncode == 0
    assert done.stdout.startswith("done\nleft behind, killed: ")
    pid = int((tmp_path / "pid").read_text())
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_contained_command_is_ended_at_its_limit(tmp_path: Path) -> None:
    done = contained(tmp_path, 1, "echo begun; sleep 600")
    assert done.returncode == 124
    assert done.stdout.startswith("begun\n\nnot finished after 1 s: bash -c")
