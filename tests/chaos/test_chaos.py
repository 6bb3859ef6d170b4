"""Whatever is killed or frozen, at whatever point: every accepted job ends once, whole, and its webhook comes."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.siege import FAULTS, comes_back, siege

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

SOURCE = Path(__file__).parents[2] / "src"
_FENCE = {
    "WHERE id = $1 AND attempt = $2 AND status = 'running' RETURNING cancel_requested": (
        "WHERE id = $1 AND $2::int IS NOT NULL AND status = 'running' RETURNING cancel_requested"
    ),
    "WHERE j.id = $1 AND j.attempt = $2 AND j.status = ANY($3::text[])": (
        "WHERE j.id = $1 AND $2::int IS NOT NULL AND j.status = ANY($3::text[])"
    ),
}
"""The fence in queries.sql, and the same statement without it."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the database's user can enter, unlike pytest's own."""
    made = Path(tempfile.mkdtemp(prefix="mediamill-chaos-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def chosen_faults() -> tuple[list[str], int]:
    """As many as asked for by MEDIAMILL_CHAOS_FAULTS, each kind as often as the others, in a seeded order."""
    seed = int(os.environ.get("MEDIAMILL_CHAOS_SEED") or 1)
    count = int(os.environ.get("MEDIAMILL_CHAOS_FAULTS") or len(FAULTS))
    rng = random.Random(seed)
    rounds = [rng.sample(FAULTS, len(FAULTS)) for _ in range(-(-count // len(FAULTS)))]
    return [fault for each in rounds for fault in each][:count], seed


async def test_nothing_is_lost_whatever_is_killed(folder: Path) -> None:
    faults, seed = chosen_faults()
    report = await siege(folder, source=SOURCE, faults=faults, seed=seed)
    print(f"\nseed {seed}\n{report.table()}")  # noqa: T201 - the figures of `make chaos`
    assert report.accepted >= 2 * len(faults)
    assert report.webhooks == report.accepted
    assert not report.violations, report.table()


async def test_a_worker_that_comes_back_changes_nothing(folder: Path) -> None:
    report = await comes_back(folder, source=SOURCE)
    assert not report.violations, report.violations


async def test_without_the_fence_it_changes_the_job(folder: Path) -> None:
    """With a copy of the code without the fence the same must go wrong, or the test above proves nothing."""
    report = await comes_back(folder, source=without_the_fence(folder / "src"))
    assert any("has the result of attempt 1, and is at attempt 2" in v for v in report.violations), report.violations


def without_the_fence(copy: Path) -> Path:
    """The product's code but for the fence."""
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    queries = copy / "mediamill" / "jobs" / "queries.sql"
    text = queries.read_text()
    for statement, mutant in _FENCE.items():
        assert text.count(statement) == 1, f"the fence has moved: {statement}"
        text = text.replace(statement, mutant)
    queries.write_text(text)
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755)
    return copy
