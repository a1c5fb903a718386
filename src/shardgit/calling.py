"""How clients call a server: with or without TLS, with a token. Imports little: a helper of git's starts with it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOOPBACK = re.compile(r"127(\.[0-9]{1,3}){3}")
PORT = "7420"
SECURE, PLAIN = "grpcs://", "grpc://"


@dataclass(frozen=True, slots=True)
class Calling:
    """A token, and for ``grpcs://HOST:PORT`` what servers are trusted (PEM; empty: the system's) and what is shown.

    The token goes along wherever it is said to: in clear, too, when the target is no ``grpcs://``.
    """

    token: str = ""
    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = b""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what goes along with every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def from_environment(environment: Mapping[str, str] = os.environ) -> Calling:
    """Return what SHARDGIT_TOKEN and SHARDGIT_CLIENT_CA, _CERTIFICATE and _KEY (paths) say. Errors: OSError."""

    def read(key: str) -> bytes:
        path = environment.get(f"SHARDGIT_CLIENT_{key}", "")
        return Path(path).read_bytes() if path else b""

    token = environment.get("SHARDGIT_TOKEN", "").strip()
    return Calling(token, read("CA"), read("CERTIFICATE"), read("KEY"))


def is_ours(place: str, *, secure: bool, environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether a token of the environment is for HOST:PORT: that of SHARDGIT_SERVER, else this machine's.

    URLs come from anywhere, submodules among them; a token must not go wherever one points, nor in clear to a server
    that speaks TLS.
    """
    server, wants_tls = split_target(environment.get("SHARDGIT_SERVER", ""))
    if server:
        return place.lower() == _with_port(server.lower()) and secure >= wants_tls
    host, _, port = place.lower().rpartition(":")
    is_here = host in {"localhost", "[::1]"} or _LOOPBACK.fullmatch(host) is not None
    return is_here and port == PORT


def _with_port(server: str) -> str:
    has_port = server.rpartition(":")[2].isdigit() and not server.endswith("]")
    return server if has_port else f"{server}:{PORT}"


def split_target(target: str) -> tuple[str, bool]:
    """Return the target as gRPC takes it, and whether TLS is spoken there."""
    if target.startswith(SECURE):
        return target.removeprefix(SECURE), True
    return target.removeprefix(PLAIN), False
