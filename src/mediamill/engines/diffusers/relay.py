"""A generator over what another thread says while it works."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def relay(work: Callable[[Callable[[T], None]], None], *, stop: Callable[[], None]) -> Iterator[T]:
    """Run `work(say)` in a thread and yield what it says, as it says it; raise what it raises.

    Closing the generator early calls `stop`, which must make `work` return soon, and waits for it.
    """
    said: queue.SimpleQueue[tuple[T] | None] = queue.SimpleQueue()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work(lambda item: said.put((item,)))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            failed.append(error)
        finally:
            said.put(None)

    thread = threading.Thread(target=run, name="diffusers", daemon=True)
    thread.start()
    try:
        while (item := said.get()) is not None:
            yield item[0]
    finally:
        if thread.is_alive():
            stop()
        thread.join()
    if failed:
        raise failed.pop()
