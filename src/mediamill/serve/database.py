"""The service's database: the one that is given, or an embedded server that is kept alive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from mediamill.config import Settings
from mediamill.errors import MediamillError
from mediamill.serve.postgres import EmbeddedPostgres

log = logging.getLogger("mediamill.serve")

_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 10.0


@contextlib.asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[str]:
    """The URL of the database, which answers until the end of the block.

    Raises: Conflict, StoreUnavailable: the embedded server cannot be started.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    server = EmbeddedPostgres(settings.data_dir.resolve() / "postgres")
    async with server as url:
        keeper = asyncio.create_task(_keep(server))
        try:
            yield url
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)


async def _keep(server: EmbeddedPostgres) -> None:
    """Start the server again whenever it ends; it comes back under the same URL."""
    delay_s = _FIRST_DELAY_S
    while True:
        status = await server.wait()
        log.warning("the database ended (exit %s); starting it again", status)
        await server.stop()
        try:
            await server.start()
        except MediamillError as error:
            log.error("the database does not start: %s", error)  # noqa: TRY400 - the sentence says it all
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
        else:
            delay_s = _FIRST_DELAY_S
