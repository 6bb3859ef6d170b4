"""A small connection pool whose failures speak our language, and the loader of named SQL.

Every connection is told to give up by itself: a process that freezes inside a transaction loses its session, and with
it every row lock, after `idle_in_transaction_s`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeAlias, TypeVar

import asyncpg

from mediamill.errors import StoreError, StoreUnavailable

Connection: TypeAlias = Any
"""An asyncpg connection, or the pool's proxy of one (the library is not typed)."""
Record: TypeAlias = Any
"""A row of asyncpg: a mapping by column name."""
T = TypeVar("T")

UniqueViolation = asyncpg.UniqueViolationError

_TRANSIENT_CLASSES = ("08", "40", "53", "57", "58")
"""SQLSTATE classes: connection, rolled back, resources (also disk full), operator intervention, system error."""
_UNREACHED_STATES = ("08", "57P")
"""SQLSTATEs of a server that is not there, or going or coming."""
_REFUSED_CLASSES = ("28", "3D")
"""SQLSTATE classes: wrong user or password, no such database."""
_TRANSIENT_STATES = frozenset({"25006", "25P03", "25P04", "55P03", "XX001", "XX002"})
"""Read-only, idle in transaction for too long, transaction time-out, lock time-out, damaged page."""
_TRIES = 4
"""Of a transaction that the database rolled back because of others."""


@dataclass(frozen=True)
class Limits:
    """What one process asks of the database; times in seconds."""

    connections: int = 8
    connect_s: float = 10.0
    statement_s: float = 30.0
    lock_s: float = 10.0
    idle_in_transaction_s: float = 10.0


class Database:
    """A pool that opens connections when they are needed. Whoever opens it closes it."""

    def __init__(self, dsn: str, *, limits: Limits | None = None, application: str = "mediamill") -> None:
        """`application`: shown in pg_stat_activity."""
        self._dsn = dsn
        self.limits = limits or Limits()
        self._application = application
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()
        self._last_outage_at: float | None = None

    @property
    def since_outage_s(self) -> float:
        """Seconds since this process last failed to reach the database; infinity when it never did."""
        return float("inf") if self._last_outage_at is None else time.monotonic() - self._last_outage_at

    async def connect(self) -> Connection:
        """A connection of the caller's own, outside the pool. The caller closes it."""
        with self.translated():
            return await asyncpg.connect(self._dsn, **self._connect_options())

    async def close(self) -> None:
        """Close every connection; those still in use are broken off after a moment."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await asyncio.wait_for(pool.close(), timeout=5.0)
        except TimeoutError:
            pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection of the pool; each statement commits by itself. Raises StoreUnavailable."""
        with self.translated():
            pool = await self._open_pool()
            async with pool.acquire(timeout=self.limits.connect_s) as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection inside one transaction. Raises StoreUnavailable; then nothing was done, or its answer was lost."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def retried(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work` in one transaction, again when the database rolled it back because of another one."""

        async def whole(connection: Connection) -> T:
            async with connection.transaction():
                return await work(connection)

        return await self._until_it_stays(whole)

    async def fetchrow(self, statement: str, *values: object) -> Record | None:
        """The first row of one statement, a transaction of its own, which is retried like one."""
        return await self._until_it_stays(lambda connection: connection.fetchrow(statement, *values))

    async def _until_it_stays(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        for attempt in range(_TRIES):
            try:
                async with self.connection() as connection:
                    return await _or_rolled_back(work(connection))
            except _RolledBack as error:
                if attempt == _TRIES - 1:
                    raise StoreUnavailable("The job database is too contended.") from error.__cause__
                await asyncio.sleep(0.01 * 4**attempt)
        raise AssertionError  # not reached

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what passes by itself (outage, restart, full disk, read-only) into StoreUnavailable."""
        try:
            yield
        except (OSError, TimeoutError, asyncpg.InternalClientError) as error:
            # The third: the server closed an idle connection of the pool, and its last word came as we spoke.
            raise self._unavailable(error) from error
        except asyncpg.ClientConfigurationError as error:
            raise StoreError(f"DATABASE_URL cannot be used: {error}") from error
        except asyncpg.InterfaceError as error:
            if "clos" not in str(error):
                raise
            raise self._unavailable(error) from error
        except asyncpg.PostgresError as error:
            if is_transient(error):
                raise self._unavailable(error) from error
            if str(error.sqlstate)[:2] in _REFUSED_CLASSES:
                raise StoreError(f"The job database refused the connection: {error}") from error
            raise

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        state = getattr(error, "sqlstate", None)
        if state is None or state.startswith(_UNREACHED_STATES):  # else it answered: a lock, a full disk, a limit
            self._last_outage_at = time.monotonic()
        said = str(error).split("\n", 1)[0][:200]
        return StoreUnavailable(f"The job database does not answer ({type(error).__name__}: {said}).")

    async def _open_pool(self) -> asyncpg.Pool:
        if self._pool is None:
            async with self._opening:
                if self._pool is None:
                    self._pool = await asyncpg.create_pool(
                        self._dsn,
                        min_size=0,  # with more, each failed reconnect is logged with a traceback
                        max_size=self.limits.connections,
                        max_inactive_connection_lifetime=60.0,
                        reset=_left_as_it_is,
                        **self._connect_options(),
                    )
        return self._pool

    def _connect_options(self) -> dict[str, Any]:
        limits = self.limits
        return {
            "timeout": limits.connect_s,
            "command_timeout": limits.statement_s + 5.0,
            "server_settings": {
                "application_name": self._application,
                "statement_timeout": _ms(limits.statement_s),
                "lock_timeout": _ms(limits.lock_s),
                "idle_in_transaction_session_timeout": _ms(limits.idle_in_transaction_s),
                "enable_seqscan": "off",  # plans that were made while the tables were empty are kept;
                "enable_sort": "off",  # so that they are right later: by an index, and in its order
                "tcp_keepalives_idle": "15",
                "tcp_keepalives_interval": "5",
                "tcp_keepalives_count": "3",
                "TimeZone": "UTC",
            },
        }


async def _left_as_it_is(_connection: Connection) -> None:
    """What a connection of the pool is reset with: nothing here changes a session's state.

    The pool's own statement for that is a quarter of all round trips. An open transaction is still rolled back.
    """


class _RolledBack(Exception):
    """Carries its cause to the retry; never leaves this module."""


async def _or_rolled_back(work: Awaitable[T]) -> T:
    try:
        return await work
    except (
        asyncpg.DeadlockDetectedError,
        asyncpg.SerializationError,
        asyncpg.InvalidCachedStatementError,  # a migration changed a table under a prepared statement
    ) as error:
        raise _RolledBack from error


def is_transient(error: BaseException) -> bool:
    """Whether the database may accept the same statement later."""
    state = str(getattr(error, "sqlstate", None) or "")
    return state[:2] in _TRANSIENT_CLASSES or state in _TRANSIENT_STATES


def _ms(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


_INCLUDE = re.compile(r"\{(\w+)\}")


def load_queries(name: str) -> Mapping[str, str]:
    """The statements of `jobs/<name>`, by the names in their `-- name: xyz` lines; `{abc}` includes block abc."""
    text = resources.files("mediamill.jobs").joinpath(name).read_text(encoding="utf-8")
    queries: dict[str, str] = {}
    for block in text.split("-- name: ")[1:]:
        title, _, statement = block.partition("\n")
        if title.strip() in queries:
            raise ValueError(f"Two statements of {name} are named {title.strip()!r}.")
        lines = [line for line in statement.splitlines() if not line.startswith("--")]
        queries[title.strip()] = _INCLUDE.sub(lambda m: queries[m[1]], "\n".join(lines).strip().rstrip(";"))
    return queries
