"""The sections of a configuration that make a node one of a cluster: ``[cluster]`` and ``[blocks]``."""

from __future__ import annotations

import re
import socket
from urllib.parse import urlsplit

import msgspec

from shardgit.errors import InvalidArgument

NAME_MAX = 128
WEIGHT_MAX = 1_000.0
LEASE_S = (2.0, 60.0)
SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "file", "memory")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ENDPOINT = re.compile(r"https?://(\[[0-9A-Fa-f:]+\]|[^\s/:@?#]+):[0-9]{1,5}")


class ClusterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the cluster's etcd is, and what this node is called in it.

    ``node`` must be another one on each node, and the same after a restart; "" is the host's name.
    """

    etcd: tuple[str, ...] = ()  # http:// or https://HOST:PORT of its members; none: no cluster
    name: str = "shardgit"  # of the cluster: the prefix of its keys in etcd
    node: str = ""
    listen: str = "127.0.0.1:7424"  # HOST:PORT for other nodes, and for nobody else
    advertise: str = ""  # HOST:PORT as other nodes reach it; "": as it listens
    zone: str = ""  # replicas and owners are spread over zones
    weight: float = 1.0  # share of the blocks that the node is given
    lease_s: float = 6.0  # a node that is not heard of for so long is gone
    user: str = ""  # of etcd's
    password_file: str = ""
    ca: str = ""  # PEM files; "": what the system trusts
    certificate: str = ""
    key: str = ""
    # Of nodes among each other: each shows its certificate, and asks for one by that authority. PEM files.
    peer_ca: str = ""
    peer_certificate: str = ""
    peer_key: str = ""

    def __post_init__(self) -> None:
        """Check what the types do not."""
        for url in self.etcd:
            if not _ENDPOINT.fullmatch(url):
                raise InvalidArgument("etcd is no http:// or https://HOST:PORT", url=url[:200])
        if len({urlsplit(url).scheme for url in self.etcd}) > 1:
            raise InvalidArgument("etcd has members with TLS and others without")
        for key in ("name", "node_name") if self.etcd else ():
            text = getattr(self, key)
            if len(text) > NAME_MAX or not _NAME.fullmatch(text):
                raise InvalidArgument(
                    "not a name; letters, digits, dot, dash and underscore",
                    key=key,
                    value=text[:200],
                )
        if not 0 < self.weight <= WEIGHT_MAX:
            raise InvalidArgument("weight is out of range", weight=self.weight, most=WEIGHT_MAX)
        if not LEASE_S[0] <= self.lease_s <= LEASE_S[1]:
            raise InvalidArgument(
                "lease_s is out of range", lease_s=self.lease_s, range=str(LEASE_S)
            )
        if bool(self.user) != bool(self.password_file):
            raise InvalidArgument("user and password_file of etcd belong together")
        if bool(self.certificate) != bool(self.key):
            raise InvalidArgument("certificate and key of etcd's client belong together")
        if len({bool(self.peer_ca), bool(self.peer_certificate), bool(self.peer_key)}) > 1:
            raise InvalidArgument("peer_ca, peer_certificate and peer_key belong together")

    @property
    def node_name(self) -> str:
        """What this node is called."""
        return self.node or socket.gethostname()


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many requests a server lets in; 0 is no bound. Each of its workers has its share of them.

    Rates are requests a minute, of which a quarter may come at once. ``actor`` is who has shown who it is.
    """

    repository_requests: int = 2_000  # at once, at one repository
    actor_requests: int = 1_000
    address_requests: int = 2_000
    actor_rate: int = 0
    address_rate: int = 0
    wait_s: float = 10.0  # that work waits for a thread, until no more is let in
    memory_free: float = 0.03  # share of the memory, below which no more is let in

    def __post_init__(self) -> None:
        """Check what the types do not."""
        for key in self.__struct_fields__:
            if getattr(self, key) < 0:
                raise InvalidArgument("limit is negative", key=key)
        if self.memory_free >= 1:
            raise InvalidArgument("memory_free is a share, less than 1", value=self.memory_free)


class BlocksConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a cluster's blocks are kept, and how much of them a node keeps beside.

    Credentials and endpoints come from the environment, as for the clouds' own tools.
    """

    url: str = ""  # s3://BUCKET/PREFIX, gs://, az://, file:///PATH; "": on the node's own shards
    tier_paths: tuple[str, ...] = ()  # folders of the node's own copies; none: under ``data``
    tier_bytes: int = 64 << 30  # of them, all folders together

    def __post_init__(self) -> None:
        """Check what the types do not."""
        parts = urlsplit(self.url)
        if self.url and parts.scheme not in SCHEMES:
            raise InvalidArgument(
                "blocks are kept at s3://, gs://, az:// or file://", scheme=parts.scheme[:50]
            )
        if parts.username or parts.password or parts.query:
            raise InvalidArgument("credentials belong into the environment, not into a URL")
        if self.tier_bytes < 64 << 20:
            raise InvalidArgument("tier_bytes is under 64 MiB", tier_bytes=self.tier_bytes)
