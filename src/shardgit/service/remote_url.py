"""URLs of repositories elsewhere: which of them git may be sent to, and to which addresses."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shardgit.errors import InvalidArgument, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PROTOCOLS = ("http", "https", "ssh", "git", "file", "shardgit", "shardgits")
URL_MAX_BYTES = 4_096
PORTS = {"http": 80, "https": 443}  # of those whose client connects where it is told to
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]*:(?://|:)|[^/]+@[^/:]+:)", re.IGNORECASE)
_CREDENTIALS = re.compile(r"://[^/\s]*@")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9._])?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
# Metadata services of clouds that are not link-local.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200")))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY")


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """A URL that git may be given. ``host`` is "" for a file.

    ``addresses`` are those that the host has: all were looked at, and whoever connects is to take one of them. None
    of a host that only a proxy or the configuration of ssh knows.
    """

    url: str
    protocol: str
    host: str = ""
    port: int = 0  # 0: the protocol's own
    addresses: tuple[str, ...] = ()

    @property
    def pinned(self) -> str:
        """HOST:PORT:ADDRESS,... as curl takes it; "" where nothing has to be held fast."""
        port = self.port or PORTS.get(self.protocol, 0)
        if self.protocol not in PORTS or not self.addresses or _literal(self.host) is not None:
            return ""
        places = (f"[{each}]" if ":" in each else each for each in self.addresses)
        return f"{self.host}:{port}:{','.join(places)}"


def is_url(source: str) -> bool:
    """Return whether a source is meant as a URL, allowed or not, and not as a path."""
    return bool(_URL.match(source))


def without_secret(text: str) -> str:
    """Return text without the user and password of URLs in it, for errors and logs."""
    return _CREDENTIALS.sub("://", text)


def checked_url(source: str, *, private: bool = True) -> RemoteUrl:
    """Return a URL that git may be given; its host is looked up, all its addresses count.

    Link-local addresses and metadata services are refused always, others that are not the internet's without
    ``private``: files, this machine, networks of one's own. Errors: InvalidArgument for what is no URL of
    ``PROTOCOLS``, Refused for where it leads. Runs in the calling thread, which waits for names to be resolved.
    """
    remote = _parsed(source)
    if remote.protocol == "file":
        if not private:
            raise Refused("source is on this machine", source=without_secret(source))
        return remote
    addresses = _resolved(remote, needed=not private)
    for each in addresses:
        _check_address(each, source, private=private)
    found = tuple(dict.fromkeys(map(str, addresses)))
    return RemoteUrl(remote.url, remote.protocol, remote.host, remote.port, found)


def _parsed(source: str) -> RemoteUrl:
    """Take a URL apart as far as what it is checked for. Errors: InvalidArgument."""
    if len(source.encode("utf-8", "surrogatepass")) > URL_MAX_BYTES:
        raise InvalidArgument("source URL is too long", limit=URL_MAX_BYTES)
    if not source.isascii() or not source.isprintable() or " " in source or "\\" in source:
        raise InvalidArgument("source URL has characters that no URL has")
    if "://" not in source.partition("@")[0] and "::" not in source.partition("@")[0]:
        return _scp_like(source)
    protocol, colons, rest = source.partition("://")
    protocol = protocol.lower()
    if not colons or protocol not in PROTOCOLS:
        raise InvalidArgument(
            "source URL is of no protocol that is imported from",
            source=without_secret(source),
            allowed=" ".join(PROTOCOLS),
        )
    try:
        parts = urlsplit(f"{protocol}://{rest}")
        host, port = parts.hostname or "", parts.port or 0
    except ValueError:
        raise _no_url(source) from None
    user = parts.username
    if protocol == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise _no_url(source)
        return RemoteUrl(f"file://{rest}", protocol)
    if protocol == "ssh" and user is not None and not _USER.fullmatch(user):
        raise _no_url(source)
    if _literal(host) is None and ("[" in parts.netloc or not _HOST.fullmatch(host)):
        raise _no_url(source)
    return RemoteUrl(f"{protocol}://{rest}", protocol, host, port)


def _scp_like(source: str) -> RemoteUrl:
    """Read USER@HOST:PATH, which goes by ssh."""
    user, _, rest = source.partition("@")
    host, _, path = rest.partition(":")
    if not (_USER.fullmatch(user) and _HOST.fullmatch(host) and path) or path.startswith("-"):
        raise _no_url(source)
    return RemoteUrl(source, "ssh", host)


def _no_url(source: str) -> InvalidArgument:
    return InvalidArgument("source URL is not PROTOCOL://HOST/PATH", source=without_secret(source))


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _resolved(remote: RemoteUrl, *, needed: bool) -> list[Address]:
    """Return the addresses of a host, none of one that another has to look up. Errors: Refused."""
    try:
        rows = socket.getaddrinfo(remote.host, remote.port or None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as cause:
        by_others = remote.protocol == "ssh" or any(os.environ.get(key) for key in _PROXIES)
        if by_others and not needed:
            return []
        raise Refused(
            "host of the source has no address", source=without_secret(remote.url)
        ) from cause
    return [ipaddress.ip_address(str(row[4][0]).partition("%")[0]) for row in rows]


def _check_address(address: Address, source: str, *, private: bool) -> None:
    """Raise Refused for an address that nobody, or without ``private`` no stranger, may have us ask."""
    told = {"source": without_secret(source), "address": str(address)}
    for each in _meant(address):
        nobodys: tuple[Callable[[Address], bool], ...] = (
            lambda one: one.is_link_local,
            lambda one: one.is_multicast,
            lambda one: one.is_unspecified,
            lambda one: one in _METADATA,
        )
        if any(bad(each) for bad in nobodys):
            raise Refused("source is at a link-local address, or at nobody's", **told)
        if not private and not each.is_global:
            raise Refused("source is at a private address", **told)


def _meant(address: Address) -> list[Address]:
    """Return an address and those of IPv4 that lie in it: mapped, 6to4, NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    inner = [address.ipv4_mapped, address.sixtofour]
    if address in _NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    found: list[Address] = [each for each in inner if each is not None]
    return found or [address]
