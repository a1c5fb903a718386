"""How etcd is reached: members, TLS, name and password."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from shardgit.errors import InvalidArgument

_DEFAULT_PORT = 2379


@dataclass(frozen=True, slots=True)
class Access:
    """The members of one etcd cluster and what they want to see.

    ``endpoints`` are "host:port" or URLs; https ones need TLS, which ``ca`` (PEM; empty: the system's) or ``tls`` turns
    on. ``certificate`` and ``key`` (PEM) are ours, for mTLS. ``server_name`` is what the members' certificates say
    where that is not their address. InvalidArgument for what cannot be meant.
    """

    endpoints: tuple[str, ...]
    user: str = ""
    password: str = ""
    tls: bool = False
    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    server_name: str = ""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise InvalidArgument("no etcd endpoint is named")
        if bool(self.certificate) != bool(self.key):
            raise InvalidArgument("a certificate for etcd needs its key, and the other way round")
        if bool(self.user) != bool(self.password):
            raise InvalidArgument("a user of etcd needs a password, and the other way round")
        schemes = {one.partition("://")[0] for one in self.endpoints if "://" in one}
        if not schemes <= {"http", "https"} or len(schemes) > 1:
            raise InvalidArgument("etcd endpoints are all http or all https", schemes=str(schemes))
        if "http" in schemes and self.is_secure:
            raise InvalidArgument("etcd endpoints are http, but TLS is asked for")

    @property
    def is_secure(self) -> bool:
        """Say whether TLS is spoken."""
        https = any(one.startswith("https://") for one in self.endpoints)
        return bool(self.tls or self.ca or self.certificate or https)

    def targets(self) -> tuple[str, ...]:
        """Return the endpoints as host:port."""
        return tuple(_target(one) for one in self.endpoints)

    def open(self, target: str, options: list[tuple[str, int | str]]) -> grpc.Channel:
        """Return a channel to one member."""
        if not self.is_secure:
            return grpc.insecure_channel(target, options)
        if self.server_name:
            options = [*options, ("grpc.ssl_target_name_override", self.server_name)]
        credentials = grpc.ssl_channel_credentials(
            self.ca or None, self.key or None, self.certificate or None
        )
        return grpc.secure_channel(target, credentials, options)


def _target(endpoint: str) -> str:
    rest = endpoint.rpartition("://")[2].rstrip("/")
    port = rest.rpartition(":")[2]
    if not rest or "/" in rest:
        raise InvalidArgument("etcd endpoint is not host:port", endpoint=endpoint)
    return rest if port.isdigit() and not rest.endswith("]") else f"{rest}:{_DEFAULT_PORT}"
