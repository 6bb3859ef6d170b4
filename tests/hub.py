"""A model hub on loopback: one repo, served as huggingface_hub asks for it."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class Hub:
    """`asked`: paths of files that were fetched, in order."""

    url: str = ""
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def hub(folder: Path, repo: str, *, extra: dict[str, bytes] | None = None, token: str | None = None) -> Iterator[Hub]:
    """Serve a pipeline folder, and further files that a pipeline does not need; with `token` only to its bearer."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files |= extra or {}
    running = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                self._send(401, b"{}", {"X-Error-Code": "GatedRepo"})
                return
            path = unquote(urlsplit(self.path).path)
            if path.startswith(f"/api/models/{repo}/tree/"):
                self._send(200, json.dumps(_tree(files)).encode(), {"Content-Type": "application/json"})
                return
            if path.startswith(f"/api/models/{repo}"):
                self._send(200, json.dumps(_info(repo, files)).encode(), {"Content-Type": "application/json"})
                return
            name = path.removeprefix(f"/{repo}/resolve/").partition("/")[2]
            if not path.startswith(f"/{repo}/") or name not in files:
                missing = "EntryNotFound" if path.startswith(f"/{repo}/") else "RepoNotFound"
                self._send(404, b"{}", {"X-Error-Code": missing})
                return
            if body:
                running.asked.append(name)
            etag = hashlib.sha256(files[name]).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            self._send(200, files[name], headers, body=body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool = True) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    running.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _info(repo: str, files: dict[str, bytes]) -> dict[str, object]:
    siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
    return {"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}


def _tree(files: dict[str, bytes]) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for name, content in files.items()
    ]
