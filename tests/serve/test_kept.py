from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mediamill.errors import Misconfigured
from mediamill.serve.kept import EARLY_DEATHS, Kept, Output

TALKATIVE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("goodbye", flush=True), sys.exit(0)))
print("hello", os.getpid(), flush=True)
time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(15, 1); print('hello', flush=True); time.sleep(60)"


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Output]:
    made = Output(tmp_path / "logs" / "child.log")
    yield made
    made.close()


def kept(output: Output, script: str) -> Kept:
    return Kept("child", [sys.executable, "-c", script], dict(os.environ), output)


async def says(output: Output, word: str, *, times: int = 1) -> list[str]:
    async with asyncio.timeout(20):
        while len(found := [line for line in output.tail if word in line]) < times:
            await asyncio.sleep(0.01)
    return found


async def test_a_process_that_dies_is_started_again_and_one_asked_to_end_is_not(output: Output, tmp_path: Path) -> None:
    child = kept(output, TALKATIVE)
    task = asyncio.create_task(child.run())
    (first,) = await says(output, "hello")
    assert child.pid is not None
    os.kill(child.pid, 9)
    first_again, second = await says(output, "hello", times=2)
    assert first == first_again != second
    child.terminate()
    await task
    assert child.pid is None
    lines = (tmp_path / "logs" / "child.log").read_text().splitlines()
    assert lines == [first, second, "goodbye"]


async def test_a_process_that_ignores_the_request_is_killed(output: Output) -> None:
    child = kept(output, STUBBORN)
    task = asyncio.create_task(child.run())
    await says(output, "hello")
    child.terminate()
    child.kill()
    await task
    assert child.pid is None


async def test_wrong_settings_end_the_service_with_the_process_own_sentence(output: Output) -> None:
    child = kept(output, "import sys; print('error: PORT is wrong'); sys.exit(2)")
    with pytest.raises(Misconfigured, match=r"^PORT is wrong$"):
        await child.run()


async def test_a_process_that_never_gets_ready_is_given_up(output: Output) -> None:
    child = kept(output, "print('no such library'); raise SystemExit(1)")
    with pytest.raises(Misconfigured, match=r"child does not start \(exit 1\): no such library"):
        await child.run()
    assert len(output.tail) == EARLY_DEATHS


async def test_a_line_without_end_is_relayed_in_pieces(output: Output, tmp_path: Path) -> None:
    child = kept(output, "import sys; sys.stdout.write('x' * 300_000 + '\\n%s {}\\xff\\n'); sys.exit(2)")
    with pytest.raises(Misconfigured, match="%s"):
        await child.run()
    text = (tmp_path / "logs" / "child.log").read_text()
    assert text.count("x") == 300_000
    assert text.endswith("%s {}ÿ\n")
