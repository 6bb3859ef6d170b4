"""Where user URLs and webhooks may go: the address of every connection is judged just before it is opened."""

from __future__ import annotations

import contextvars
import ipaddress
import re
import socket
from collections.abc import Sequence

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.client_middlewares import ClientHandlerType
from yarl import URL

from mediamill.errors import Misconfigured

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PUBLIC_PORTS = frozenset({80, 443})
"""The only ports of public addresses; a listed host may use any."""

_NOT_PUBLIC = "its address is not public"
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_REFUSED: tuple[Network, ...] = (
    ipaddress.IPv4Network("100.64.0.0/10"),  # carrier NAT; Python before 3.12.4 wavers
    ipaddress.IPv6Network("64:ff9b:1::/48"),  # local-use NAT64
)
_NUMERIC_HOST = re.compile(r"[0-9a-fx.]+", re.IGNORECASE)

_by_name: contextvars.ContextVar[bool] = contextvars.ContextVar("host_is_listed", default=False)
"""Whether the request under way goes to a host that is listed by name."""


class AddressRefused(OSError):
    """The guard does not let this connection be opened. `host`: the one that was asked for, where it is known."""

    def __init__(self, reason: str, *, host: str | None = None) -> None:
        """`reason`: what speaks against it."""
        super().__init__(reason)
        self.host = host


class UrlGuard:
    """Decides about hosts, addresses and ports; makes HTTP sessions that obey it, redirects included."""

    def __init__(self, allow: Sequence[str], *, resolver: AbstractResolver | None = None) -> None:
        """Nothing is opened yet.

        Args:
            allow: CIDRs, addresses or host names that may be reached besides public addresses, on any port.
            resolver: Instead of the system's; its answers are judged like any other.

        Raises:
            Misconfigured: an item is none of these.
        """
        self._networks, self._hosts = _parsed(allow)
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    async def session(self) -> aiohttp.ClientSession:
        """The shared session of this guard. Must be used in one event loop; `close` closes it."""
        if self._session is None or self._session.closed:
            # named, since aiohttp takes another one where a package for it happens to be installed
            resolver = self._resolver or aiohttp.ThreadedResolver()
            connector = aiohttp.TCPConnector(
                socket_factory=self._socket, resolver=resolver, use_dns_cache=False, limit=64
            )
            self._session = aiohttp.ClientSession(
                connector=connector, trust_env=False, middlewares=(self._judged,), cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    async def close(self) -> None:
        """Close the session's connections."""
        if self._session is not None:
            await self._session.close()

    def objection(self, url: URL) -> str | None:
        """What speaks against a URL as written, before any name is resolved; None when nothing does."""
        host = url.host
        if url.scheme not in {"http", "https"} or not host:
            return "it is not an http(s) URL"
        if self.lists(host):
            return None
        objections = [self._address_objection(address, url.port or 0) for address in _literals(host)]
        return objections[0] if objections and all(objections) else None

    def lists(self, host: str) -> bool:
        """Whether the host is on the allow-list by name."""
        return host.lower().rstrip(".") in self._hosts

    async def _judged(self, request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
        """Runs before each request of a session, redirects included."""
        reason = self.objection(request.url)
        if reason:
            raise AddressRefused(reason, host=request.url.host)
        token = _by_name.set(self.lists(request.url.host or ""))
        try:
            return await handler(request)
        finally:
            _by_name.reset(token)

    def _socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Called with the address about to be connected to: what a name means now is decided here, not earlier."""
        family, kind, protocol, _, target = info
        if not _by_name.get():
            reason = self._address_objection(ipaddress.ip_address(str(target[0]).partition("%")[0]), int(target[1]))
            if reason:
                raise AddressRefused(reason)
        return socket.socket(family=family, type=kind, proto=protocol)

    def _address_objection(self, address: Address, port: int) -> str | None:
        plain = _unwrapped(address)
        if any(a in network for a in (address, plain) for network in self._networks):
            return None
        if not _is_public(plain) or any(plain in network for network in _REFUSED):
            return _NOT_PUBLIC
        if port not in PUBLIC_PORTS:
            return f"port {port} is not open to it; accepted are 80 and 443"
        return None


def _parsed(allow: Sequence[str]) -> tuple[tuple[Network, ...], frozenset[str]]:
    networks: list[Network] = []
    hosts: set[str] = set()
    for item in allow:
        try:
            networks.append(ipaddress.ip_network(item, strict=False))
        except ValueError as error:
            if not re.fullmatch(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", item, re.IGNORECASE):
                raise Misconfigured(
                    f"MEDIAMILL_FETCH_ALLOW has {item!r}; accepted are CIDRs (10.0.0.0/8), addresses and host names."
                ) from error
            hosts.add(item.lower())
    return tuple(networks), frozenset(hosts)


def _literals(host: str) -> Sequence[Address]:
    """The addresses a host spells out, also in the forms that C libraries take (`127.1`, `0x7f.1`, `2130706433`)."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
    try:
        return (ipaddress.ip_address(host.partition("%")[0]),)
    except ValueError:
        pass
    if not _NUMERIC_HOST.fullmatch(host):
        return ()
    try:
        return (ipaddress.IPv4Address(socket.inet_aton(host)),)
    except OSError:
        return ()


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for: mapped, 6to4, NAT64; else itself."""
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)
