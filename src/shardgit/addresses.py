"""Addresses to listen on and to call: HOST:PORT."""

from __future__ import annotations

import ipaddress

from shardgit.errors import InvalidArgument


def is_loopback(host: str) -> bool:
    """Say whether what listens on a host is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_address(text: str, key: str = "address") -> tuple[str, int]:
    """Return host and port of HOST:PORT or [HOST]:PORT; InvalidArgument otherwise."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise InvalidArgument("not an address; write HOST:PORT", key=key, value=text[:200])
    return host, int(port)
