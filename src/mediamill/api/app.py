"""The application: routers found by file name, the edge around them, and the server that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse, Response

from mediamill import __version__, catalog, plugins
from mediamill.api import openapi
from mediamill.api.auth import Gate, check_exposure
from mediamill.api.deps import Deps
from mediamill.api.edge import RequestEdge
from mediamill.api.errors import ContractRouter, ErrorShapes
from mediamill.api.presence import announced
from mediamill.config import Settings
from mediamill.errors import MediamillError, Misconfigured, StoreUnavailable
from mediamill.jobs.files import opened_files
from mediamill.jobs.store import JobStore, Rules

_CORS_HEADERS = ["Authorization", "X-API-Key", "Idempotency-Key", "Content-Type", "Prefer", "Last-Event-ID"]
_EXPOSED = ["Location", "Retry-After", "ETag", "X-Request-ID", "Idempotency-Replayed", "Content-Range"]
_DATABASE_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
_CLOSE_AFTER_S = 10
"""Running requests get this long at shutdown; waiting calls end at once."""


def create_app(deps: Deps) -> FastAPI:
    """The whole HTTP side over open parts. Whoever made `deps` closes them."""
    catalog.load()
    routers = _routers()
    shapes = ErrorShapes(routers)
    app = FastAPI(
        title="mediamill",
        version=__version__,
        description="One durable job core for media generation and processing.",
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.deps = deps
    for router in routers:
        app.include_router(router)
    app.add_route("/", _to_docs, include_in_schema=False)
    for kind in (MediamillError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_with(shapes))
    app.add_middleware(RequestEdge, gate=Gate(deps.settings), shapes=shapes)
    if deps.settings.cors_allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(deps.settings.cors_allow_origins),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=_CORS_HEADERS,
            expose_headers=_EXPOSED,
        )
    openapi.install(app, shapes)
    return app


async def _to_docs(_request: Request) -> Response:
    """Who opens the bare address finds what can be asked here."""
    return RedirectResponse("/docs")


def _routers() -> list[ContractRouter]:
    routers = [module.router for module in plugins.load_all("api.routes").values()]
    wrong = [router for router in routers if not isinstance(router, ContractRouter)]
    if wrong:
        raise TypeError(f"Each api/routes/ module needs a ContractRouter named `router` (got {wrong!r}).")
    return routers


def _answer_with(shapes: ErrorShapes) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, exc: Exception) -> Response:
        request_id: str = request.scope["mediamill.request_id"]
        return shapes.response(request.url.path, exc, request_id=request_id)

    return answer


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: whoever runs us owns the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_api(
    settings: Settings,
    stop: asyncio.Event,
    *,
    sock: socket.socket | None = None,
    started: Callable[[str], None] | None = None,
) -> None:
    """Open the parts, serve until `stop` is set, close the parts.

    Args:
        settings: What is in force.
        stop: Set by whoever owns the signals.
        sock: A listening socket to use in place of host and port; closed at the end.
        started: Called with the base URL once requests are answered.

    Raises: Misconfigured (open address without a key, address in use, no database); SchemaMismatch; StorageError.
    """
    check_exposure(settings)
    sock = sock or _listening(settings)
    with contextlib.closing(sock):
        base_url = _base_url(sock)
        async with opened(settings, public_url=settings.public_url or base_url) as deps, announced(deps):
            await serve_app(create_app(deps), sock, stop, started=started and (lambda: started(base_url)))


@contextlib.asynccontextmanager
async def opened(settings: Settings, *, public_url: str) -> AsyncIterator[Deps]:
    """The parts, open. Waits for a database that is not up yet."""
    if settings.database_url is None:
        raise Misconfigured("DATABASE_URL is not set: `mediamill serve` starts a database, `mediamill api` needs one.")
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(await _opened_store(settings.database_url.get_secret_value(), settings))
        files = await stack.enter_async_context(opened_files(settings, store, public_url=public_url))
        yield Deps(settings=settings, store=store, storage=files.storage, inputs=files.inputs, guard=files.guard)


async def _opened_store(dsn: str, settings: Settings) -> JobStore:
    for pause_s in (*_DATABASE_PAUSES_S, None):
        try:
            return await JobStore.open(dsn, Rules.of(settings), application="mediamill api")
        except StoreUnavailable:
            if pause_s is None:
                raise
            await asyncio.sleep(pause_s)
    raise AssertionError  # not reached


async def serve_app(
    app: FastAPI, sock: socket.socket, stop: asyncio.Event, *, started: Callable[[], None] | None = None
) -> None:
    """Answer requests on a listening socket until `stop` is set; then end waiting calls and close."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_CLOSE_AFTER_S,
        lifespan="off",
    )
    server = _Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[sock]))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        while not (server.started or serving.done()):  # noqa: ASYNC110 - uvicorn has a flag, no event
            await asyncio.sleep(0.005)
        if started is not None and server.started:
            started()
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        app.state.deps.stopping.set()
        server.should_exit = True
        await serving


def _listening(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=512)
    except OSError as error:
        raise Misconfigured(f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}.") from error


def _base_url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what callers here can use instead
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
