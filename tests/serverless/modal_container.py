"""What Modal does in a container, as far as it can be done without an account: the web function over HTTP, or a call."""

from __future__ import annotations

import asyncio
import json
import socket
import sys

import uvicorn

from mediamill.serverless import modal_app


def serve() -> None:
    """Serve what the web function gives; the first line says where."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sys.stdout.write(f"http://127.0.0.1:{listening.getsockname()[1]}\n")
        sys.stdout.flush()
        web = uvicorn.Config(modal_app.generate_video_endpoint.local(), log_level="warning")
        uvicorn.Server(web).run(sockets=[listening])


async def batch() -> None:
    """Call the batch function with the requests on the command line."""
    replies = await modal_app.batch_generate.local(json.loads(sys.argv[2]))
    sys.stdout.write(json.dumps([{**reply, "health": await modal_app.endpoint().health()} for reply in replies]))


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else asyncio.run(batch())
