"""The process between a worker and its child: when either dies, nothing that the child ever started is left.

Run by path, on the standard library alone, so that it starts in milliseconds and stays small:
`python -IS _guard.py <pid of the worker> <command> <argument>...`

It is the reaper of its descendants (Linux), so even one that left its session comes to it when its parent dies. It
ends everything, by SIGKILL, on SIGTERM, at the worker's death, and when the command itself has ended; then it exits as
the command did (128 + signal). No Python lock of the child's can hold it up. Elsewhere than on Linux it kills the
process group, and the child itself watches for the end of its standard input.
"""

import contextlib
import ctypes
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class _Stop(BaseException):
    """Raised out of whatever the guard waits for."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stop


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _die_with(parent: int, number: int) -> None:
    """Get this signal when `parent` dies; at once when it is dead already."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def _start(command: list[str]) -> int:
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _die_with(guard, signal.SIGKILL)
        os.execv(command[0], command)  # noqa: S606 - becoming the command is the point
    finally:
        os._exit(127)


def _children() -> list[int]:
    me = os.getpid()
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():  # noqa: PTH112, PTH208 - pathlib costs 10 ms of start
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(name)
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:  # noqa: PTH123 - the same
                if int(stat.read().rpartition(")")[2].split()[1]) == me:
                    found.append(pid)
    return found


def _end_all(running: list[int]) -> None:
    """Kill and reap until there is no descendant: orphans of the killed come to this process one generation a round.

    `running`: the command, unless it has ended; all there is to know where there is no /proc.
    """
    while True:
        for pid in _children() or running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            reaped, _ = os.waitpid(-1, 0)
        except ChildProcessError:
            return
        running = [pid for pid in running if pid != reaped]


def _wait(command: int) -> int:
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == command:
            return os.waitstatus_to_exitcode(status)


def main() -> NoReturn:
    """Start the command, wait, and end everything."""
    parent, *command = sys.argv[1:]
    signal.signal(signal.SIGTERM, _stop)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _die_with(int(parent), signal.SIGTERM)
    running = [_start(command)]
    code = -signal.SIGTERM
    try:
        os.close(0)
        os.close(1)
        code = _wait(running[0])
        running = []
    except _Stop:
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_all(running)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
