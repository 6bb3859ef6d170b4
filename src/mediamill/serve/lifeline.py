"""A process of the service never outlives its supervisor."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_LOOK_S = 1.0


def die_with(supervisor_pid: int) -> None:
    """Be killed as soon as the supervisor is dead, however it died; at once when it is dead already.

    Linux does it by itself, so that even a stopped process dies; elsewhere a thread looks once a second.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(supervisor_pid,), daemon=True).start()
    _kill_orphan(supervisor_pid)


def _watch(supervisor_pid: int) -> None:
    while True:
        time.sleep(_LOOK_S)
        _kill_orphan(supervisor_pid)


def _kill_orphan(supervisor_pid: int) -> None:
    if os.getppid() != supervisor_pid:
        os.kill(os.getpid(), signal.SIGKILL)
