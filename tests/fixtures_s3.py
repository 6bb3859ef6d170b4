"""A real S3 server (SeaweedFS) on loopback, one for the session."""

from __future__ import annotations

import http
import json
import secrets
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from mediamill.config import Settings

_READY_WITHIN_S = 120


@dataclass(frozen=True)
class S3Server:
    """Where it listens, and the one key pair it accepts."""

    endpoint: str
    access_key: str
    secret_key: str

    def store(self, bucket: str) -> S3Store:
        """A bare client, to look at what is really there."""
        return S3Store(
            bucket,
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def settings(self, bucket: str, **more: object) -> Settings:
        """Settings for `mediamill.storage.open_storage`."""
        return Settings(
            _env_file=None,
            storage_mode="s3",
            s3_endpoint=self.endpoint,
            s3_bucket=bucket,
            s3_access_key_id=self.access_key,
            s3_secret_access_key=self.secret_key,
            **more,
        )


def _free_ports(count: int) -> list[int]:
    """Free ports whose 10,000th neighbour is free too: SeaweedFS puts gRPC there."""
    found: list[int] = []
    for port in range(20_000 + secrets.randbelow(20_000), 45_000):
        with socket.socket() as plain, socket.socket() as grpc:
            try:
                plain.bind(("127.0.0.1", port))
                grpc.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("seaweedfs")
    master, volume, filer, s3 = _free_ports(4)
    server = S3Server(f"http://127.0.0.1:{s3}", secrets.token_hex(10), secrets.token_hex(20))
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": server.access_key, "secretKey": server.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    (folder / "files").mkdir()
    # Each bucket gets volumes of its own, seven at once by default.
    (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    log = folder / "log"
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    command = [
        *(
            weed,
            "-logtostderr=true",
            "server",
            "-s3",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={folder / 'files'}",
        ),
        *(f"-s3.config={config}", f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}"),
        *(f"-filer.port={filer}", "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=1000"),
        *("-s3.iam=false", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder)
        try:
            _await_ready(server, process, log)
            yield server
        finally:
            process.kill()  # asked politely it takes half a minute
            process.wait()
            for socket_path in Path("/tmp").glob("seaweedfs-*.sock"):  # it puts them nowhere else
                if any(
                    str(p) in socket_path.name for base in (master, volume, filer, s3) for p in (base, base + 10_000)
                ):
                    socket_path.unlink(missing_ok=True)


def _await_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + _READY_WITHIN_S
    while True:
        try:
            create_bucket(server, "ready")
            obstore.put(server.store("ready"), "probe", b"x")
        except (obstore.exceptions.BaseError, OSError):
            if time.monotonic() > give_up_at or process.poll() is not None:
                raise RuntimeError(f"SeaweedFS is not ready:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.1)
        else:
            return


def create_bucket(server: S3Server, bucket: str) -> None:
    """Make a bucket; one that is there already is no error. The client library cannot: a signed PUT of "/" does it."""
    url = obstore.sign(server.store(bucket), "PUT", "", timedelta(minutes=5))
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=30).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.CONFLICT:
            raise


@pytest.fixture
def s3_settings(s3_server: S3Server) -> Settings:
    """Settings of an empty bucket of its own."""
    bucket = f"test-{secrets.token_hex(6)}"
    create_bucket(s3_server, bucket)
    return s3_server.settings(bucket)
