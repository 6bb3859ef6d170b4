"""What must not be in the repository: hosts of package registries, paths of one machine, secrets, big files."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_FILE_BYTES = 1024**2
FORBIDDEN = {
    "host of a package registry": re.compile(
        r"pypi\.org|pythonhosted\.org|deb\.debian\.org|registry\.npmjs\.org|download\.pytorch\.org|proxy\.golang\.org"
    ),
    "path of one machine": re.compile(r"(?<![\w.])(?:/work/|/root/|/opt/wheels|/opt/pypi|/home/[a-z]+/|/Users/\w+/)"),
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n"),
    "cloud access key": re.compile(r"\bAKIA[0-9A-Z]{16}\b|\brpa_[A-Z0-9]{30,}\b|\bhf_[A-Za-z0-9]{30,}\b"),
}
ALLOWED = {"tools/hygiene.py": "names them", ".gitignore": "patterns"}
"""`path` -> why the patterns do not apply to it."""


def files() -> list[Path]:
    """Everything git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def wrong(path: Path) -> Iterator[str]:
    name = path.relative_to(ROOT).as_posix()
    size_bytes = path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        yield f"{name}: {size_bytes} bytes, at most {MAX_FILE_BYTES}"
        return
    if name in ALLOWED:
        return
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return
    for what, pattern in FORBIDDEN.items():
        for match in pattern.finditer(text):
            yield f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {what} ({match.group().strip()})"


def main() -> int:
    found = [line for path in files() for line in wrong(path)]
    print("\n".join(found) or "nothing that must not be here")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
