"""The listening socket: bound once by the supervisor, so that a new API process loses no connection."""

from __future__ import annotations

import errno
import ipaddress
import socket

from mediamill.errors import Misconfigured

BACKLOG = 512
_TEST_NET = ("192.0.2.1", 9)


def listen(host: str, port: int) -> socket.socket:
    """A bound, listening, inheritable socket; port 0 takes a free one.

    Raises: Misconfigured when the address cannot be had, saying why and what to do.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise Misconfigured(f"Cannot listen on {host!r}: {error.strerror or error}.") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Misconfigured(_why(error, host, port)) from error
    sock.set_inheritable(True)
    return sock


def base_url(sock: socket.socket) -> str:
    """`http://host:port` of the socket as this machine reaches it."""
    host, port = sock.getsockname()[:2]
    address = ipaddress.ip_address(str(host).partition("%")[0])
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"  # noqa: PLR2004 - the IP version
    return f"http://[{host}]:{port}" if ":" in str(host) else f"http://{host}:{port}"


def base_url_for_callers(sock: socket.socket) -> str:
    """The same as other hosts reach it: for a socket on every address, this machine's outgoing one."""
    host, port = sock.getsockname()[:2]
    if not ipaddress.ip_address(str(host).partition("%")[0]).is_unspecified:
        return base_url(sock)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_TEST_NET)  # chooses a route, sends nothing
        except OSError:
            return base_url(sock)
        return f"http://{probe.getsockname()[0]}:{port}"


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use by another program; stop it, or take another port: --port {port + 1}."
    if error.errno == errno.EACCES:
        return f"Port {port} may only be used by root; take one above 1023: --port 8000."
    return f"Cannot listen on {host}, port {port}: {error.strerror}."
