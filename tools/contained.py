"""Run a command so that it cannot hang its caller: no input, a time limit, and nothing of it left behind.

    python tools/contained.py LIMIT_S LOG COMMAND...

Its output goes to the file LOG and, copied from there, to our output: no process of the command ever holds our pipe.
Whatever it leaves running, in whatever session or group, becomes our child (Linux: subreaper) and is killed by id at the end.
Exits with the command's status, or 124 after the limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 20.0
TIMED_OUT = 124


def adopt_orphans() -> None:
    """Make every orphaned descendant our child. Does nothing but on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[int]:
    """Ids of all our living descendants, children before their children."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = list(children.get(os.getpid(), []))
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120].strip()
    return "?"


def clear() -> int:
    """Kill what is left of the command, by id, until nothing is. Returns how many processes there were."""
    killed: set[int] = set()
    for _ in range(200):
        left = descendants()
        if not left:
            break
        for pid in left:
            if pid not in killed:
                print(f"left behind, killed: {pid} {command_line(pid)}", flush=True)
                killed.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return len(killed)


def follow(process: subprocess.Popen[bytes], log: Path, limit_s: float) -> int:
    """Copy the log to our output until the command ends or its time is over."""
    end = time.monotonic() + limit_s
    with log.open("rb") as reader:
        while True:
            status = process.poll()
            sys.stdout.buffer.write(reader.read())
            sys.stdout.buffer.flush()
            if status is not None:
                return status if status >= 0 else 128 - status
            if time.monotonic() > end:
                return TIMED_OUT
            time.sleep(0.2)


def main() -> int:
    limit_s, log, command = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    adopt_orphans()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    status = follow(process, log, limit_s)
    if status == TIMED_OUT:
        print(f"\nnot finished after {limit_s:.0f} s: {' '.join(command)}", flush=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    clear()
    return status


if __name__ == "__main__":
    sys.exit(main())
