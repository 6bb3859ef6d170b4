"""Run a command as another user that dies with us: `python -I launch.py PARENT_PID SIGNAL UID GID COMMAND...`.

A file of its own, run by path, so that nothing has to run between fork and exec in the process that starts it.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Drop to UID and GID (-1: stay), ask for SIGNAL at the parent's death, become COMMAND."""
    parent_pid, signal_number, uid, gid = (int(a) for a in arguments[:4])
    command = arguments[4:]
    if gid >= 0:
        os.setgroups([])
        os.setgid(gid)
    if uid >= 0:
        os.setuid(uid)
    if sys.platform == "linux":  # after setuid, which clears it
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before we could ask
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - becoming the command is the point


if __name__ == "__main__":
    main(sys.argv[1:])
