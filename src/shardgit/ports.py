"""The ports of a server: held by the supervisor from the probe on, so that two servers never share one in silence."""

from __future__ import annotations

import contextlib
import errno
import socket

from shardgit.accepting import BACKLOG
from shardgit.addresses import split_address
from shardgit.errors import Refused

NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class Address:
    """A listening address that is ours until ``close``; port 0 has become a free port.

    The probe is made without SO_REUSEPORT: with it, two servers would share a port in silence. Then a socket keeps the
    port for the workers: one that never listens, where each opens its own, or one that ``listens`` for all of them.
    """

    def __init__(self, text: str, key: str, *, listens: bool = False) -> None:
        host, port = split_address(text, key)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as cause:
            raise Refused("host does not resolve", key=key, address=text) from cause
        self.sockets: list[socket.socket] = []
        places = dict.fromkeys((family, where) for family, _, _, _, where in found)
        lacking: OSError | None = None
        try:
            for family, (address, _, *rest) in places if listens else list(places)[:1]:
                try:
                    port = self._open(family, (address, port, *rest), listens=listens)
                except (
                    OSError
                ) as cause:  # a name may have an IPv6 address on a machine without IPv6
                    if cause.errno not in NOT_HERE:
                        raise
                    lacking = cause
            if lacking is not None and not self.sockets:
                raise lacking
        except OSError as cause:
            self.close()
            if cause.errno == errno.EADDRINUSE:
                raise Refused(
                    "address is in use; is another server running?", key=key, address=text
                ) from cause
            raise Refused(
                "address cannot be bound", key=key, address=text, cause=cause.strerror
            ) from cause
        self.text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _open(self, family: int, where: tuple[object, ...], *, listens: bool) -> int:
        """Take one of the host's addresses; returns the port."""
        with _socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
            where = probe.getsockname()
        held = _socket(family)
        try:
            shared = socket.SO_REUSEADDR if listens else socket.SO_REUSEPORT
            held.setsockopt(socket.SOL_SOCKET, shared, 1)
            held.bind(where)
            if listens:
                held.listen(BACKLOG)
        except OSError:
            held.close()
            raise
        self.sockets.append(held)
        return int(held.getsockname()[1])

    def close(self) -> None:
        """Give the port back."""
        for each in self.sockets:
            each.close()

    def end(self) -> None:
        """Listen no more, in whatever process: the next connection is refused."""
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:  # as of a server that listens to [::] beside another on 0.0.0.0
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made
