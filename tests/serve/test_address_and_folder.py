from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mediamill.config import Settings
from mediamill.errors import Misconfigured
from mediamill.serve import address, folder, pools


def test_port_0_takes_a_free_port_and_the_url_names_it() -> None:
    with address.listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        assert port > 0
        assert address.base_url(sock) == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_port_in_use_is_said_plainly_with_what_to_do() -> None:
    with address.listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(Misconfigured, match=rf"Port {port} on 127.0.0.1 is in use .*--port {port + 1}"):
            address.listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused_by_name() -> None:
    with pytest.raises(Misconfigured, match=r"Cannot listen on 203\.0\.113\.1, port 0: Cannot assign"):
        address.listen("203.0.113.1", 0)


def test_a_socket_on_every_address_is_reached_by_loopback_here_and_by_a_real_address_elsewhere() -> None:
    with address.listen("0.0.0.0", 0) as sock:
        assert address.base_url(sock).startswith("http://127.0.0.1:")
        assert "0.0.0.0" not in address.base_url_for_callers(sock)


def test_a_data_folder_has_one_owner_at_a_time_and_a_killed_one_leaves_it_free(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from mediamill.serve.folder import owned\n"
    script += "with owned(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(tmp_path / "data")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        taken = rf"{tmp_path}/data' is in use .*\(process {other.pid}\).*--data-dir"
        with pytest.raises(Misconfigured, match=taken), folder.owned(tmp_path / "data"):
            pass
        other.kill()
    with folder.owned(tmp_path / "data"):
        pass


def test_a_data_folder_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(Misconfigured, match="data' cannot be written: File exists"), folder.owned(tmp_path / "data"):
        pass


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["cpu"], [("cpu", 3)]),
        (["gpu:1", "remote"], [("gpu:1", 1), ("remote", 100)]),
    ],
)
def test_pools_are_those_asked_for(asked: list[str], expected: list[tuple[str, int]]) -> None:
    assert [(p.name, p.slots) for p in pools.chosen(Settings(cpu_slots=3), asked)] == expected


def test_without_a_wish_every_kind_of_job_that_runs_here_has_a_worker() -> None:
    kinds = {pool.name.partition(":")[0] for pool in pools.chosen(Settings())}
    assert kinds == {"cpu", "gpu"}


@pytest.mark.parametrize("name", ["tpu", "cpu:1", "gpu:x", ""])
def test_an_unknown_pool_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(Misconfigured, match="accepted are cpu, gpu, gpu:N and remote"):
        pools.slots(Settings(), name)
