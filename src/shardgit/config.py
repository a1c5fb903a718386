"""Configuration: a TOML file, then SHARDGIT_* variables, then flags. Unknown keys are errors."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, get_origin

import msgspec

from shardgit.addresses import is_loopback, split_address
from shardgit.errors import InvalidArgument
from shardgit.extras import has_extra
from shardgit.sections import BlocksConfig, ClusterConfig, LimitsConfig
from shardgit.service.doorkeeper import parse_client_rule
from shardgit.service.mirror_credentials import Credentials
from shardgit.tracing import TRACES

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "SHARDGIT_"
# SHARDGIT_CLUSTER_ETCD is etcd in [cluster].
SECTIONS: dict[str, type[ClusterConfig | BlocksConfig | LimitsConfig]] = {
    "cluster": ClusterConfig,
    "blocks": BlocksConfig,
    "limits": LimitsConfig,
}
DETECTIONS = ("push", "always", "never")
AUTHS = ("off", "required")
LOG_LEVELS = ("debug", "info", "warning", "error")
ANY_HOST = ("0.0.0.0", "::")  # noqa: S104 - listens everywhere
WORKERS_MAX = 256
DRAIN_MAX_S = 3_600.0
RETIRE_MAX_S = 86_400.0
INTERVAL_MAX_S = 366 * 86_400.0
# Variables that others read: the CLI, the build, the benches and faultpoints. Kubernetes sets SHARDGIT_PORT and
# SHARDGIT_SERVICE_* in every pod beside a service called shardgit.
_NOT_OURS = re.compile(
    r"SERVER|TOKEN|CLIENT_.*|DEBUG|ASAN|ZLIB|FAULT|(BENCH|FUZZ|TEST|SERVICE|PORT)(_.*)?"
)

_URL = re.compile(r"https?://[^\s/?#@\"'<>]+(/[^\s?#@\"'<>]*)?")


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``shardgit serve`` needs. Addresses are HOST:PORT; port 0 takes a free one."""

    data: str = "./data"
    workers: int = 0  # 0: one a core
    grpc: str = "127.0.0.1:7420"
    http: str = "127.0.0.1:7421"
    ssh: str = "127.0.0.1:7422"  # "" or "off": no SSH; the default without the extra ssh
    grpc_connection_s: float = (
        60.0  # that a gRPC connection lasts; its client opens another then; 0: for ever
    )
    http_url: str = ""  # of the HTTP port as clients reach it, in addresses that they are told; "": as each calls us
    ssh_authorized_keys: str = ""  # a file as sshd's; "": the store's keys alone
    admin: str = "127.0.0.1:7423"
    log_level: str = "info"
    slow_request_s: float = (
        10.0  # from when on a request is told in the log with what its time went into; 0: none is
    )
    traces: str = "off"  # or otlp: requests as spans, to where OTEL_EXPORTER_OTLP_ENDPOINT says
    detect_collisions: str = (
        "push"  # SHA-1 attacks in what is pushed; "always": in imports and verifications, too
    )
    drain_s: float = 30.0  # how long a stopping worker waits for its requests
    retire_s: float = 3_600.0  # the same of one that another has replaced
    leave_s: float = 0.0  # that /readyz says "draining" before a server stops taking connections
    maintenance: str = "on"  # "off": no worker settles, compacts or collects by itself
    maintenance_interval_s: float = 60.0  # between two looks at what is due
    maintenance_bytes_per_s: int = 32 << 20  # of what it reads and writes; 0: as load allows
    gc_interval_s: float = 86_400.0  # between two collections of garbage
    scrub_interval_s: float = 7 * 86_400.0  # between two verifications of every byte
    ssh_host_key: str = (
        ""  # its file; "": one in ``data``. Nodes behind one name must have the same
    )
    auth: str = ""  # off, or required; "": off while all addresses are loopback
    audit_log: str = (
        ""  # a file for who changed what, a JSON object a line; "": the server's own log
    )
    auth_secret_file: str = ""  # secrets that trusted front ends sign with, one a line
    # Secrets that /metrics of the admin port takes as bearer tokens, one a line; they open nothing else.
    metrics_secret_file: str = ""
    # PEM files of the HTTP and gRPC ports, and of an admin port beyond loopback, taken anew when they change;
    # ``tls_client_ca``: whose certificates clients may show over HTTP, and must over gRPC. ``tls_clients``: NAME-GLOB
    # [read=GLOB] [write=GLOB] [admin], first match.
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    tls_clients: tuple[str, ...] = ()
    mirror_credentials: tuple[str, ...] = ()  # NAME=/file or NAME=$VARIABLE, for sources of mirrors
    hooks_dir: str = ""  # folder under which hook programs lie; "": no programs are run
    hook_targets: tuple[str, ...] = ()  # URLs, and grpc://HOST:PORT, that hooks may be sent to
    cluster: ClusterConfig = ClusterConfig()
    blocks: BlocksConfig = BlocksConfig()
    limits: LimitsConfig = LimitsConfig()

    def __post_init__(self) -> None:
        """Check what the types do not."""
        addresses = {name: getattr(self, name) for name in self.listens}
        for name, text in addresses.items():
            split_address(text, name)
        taken = [text for text in addresses.values() if not text.endswith(":0")]
        if len(set(taken)) < len(taken):
            raise InvalidArgument("two addresses are the same", addresses=", ".join(taken))
        if not self.data:
            raise InvalidArgument("data is empty")
        if not 0 <= self.workers <= WORKERS_MAX:
            raise InvalidArgument("workers is out of range", workers=self.workers, most=WORKERS_MAX)
        if self.log_level not in LOG_LEVELS:
            raise InvalidArgument(
                "log_level is not known", log_level=self.log_level, known="|".join(LOG_LEVELS)
            )
        check_detection(self.detect_collisions)
        if self.http_url and not _URL.fullmatch(self.http_url):
            raise InvalidArgument("http_url is no http:// or https:// URL", url=self.http_url[:200])
        if self.hooks_dir and not self.hooks_dir.startswith("/"):
            raise InvalidArgument("hooks_dir is no absolute path", hooks_dir=self.hooks_dir[:200])
        Credentials.of(self.mirror_credentials)
        for target in self.hook_targets:
            if not target.startswith(("http://", "https://", "grpc://")):
                raise InvalidArgument(
                    "hook target is no http://, https:// or grpc:// URL", target=target[:200]
                )
        if self.maintenance not in ("on", "off"):
            raise InvalidArgument("maintenance is on or off", maintenance=self.maintenance[:50])
        self._check_access()
        self._check_ranges()

    def _check_access(self) -> None:
        if self.auth not in ("", *AUTHS):
            raise InvalidArgument("auth is off or required", auth=self.auth[:50])
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise InvalidArgument("tls_certificate and tls_key belong together")
        if self.tls_client_ca and not self.tls_certificate:
            raise InvalidArgument("tls_client_ca needs tls_certificate and tls_key")
        if self.tls_clients and not self.tls_client_ca:
            raise InvalidArgument("tls_clients needs tls_client_ca")
        for rule in self.tls_clients:
            parse_client_rule(rule)

    def _check_ranges(self) -> None:
        intervals = {"maintenance_interval_s": 1, "gc_interval_s": 60, "scrub_interval_s": 60}
        for name, least in intervals.items():
            if not least <= getattr(self, name) <= INTERVAL_MAX_S:
                raise InvalidArgument(
                    "interval is out of range", key=name, value=getattr(self, name)
                )
        if not 0 <= self.slow_request_s <= INTERVAL_MAX_S:
            raise InvalidArgument("slow_request_s is out of range", value=self.slow_request_s)
        if self.traces not in TRACES:
            raise InvalidArgument("traces are off or otlp", traces=self.traces[:50])
        if self.maintenance_bytes_per_s < 0:
            raise InvalidArgument("maintenance_bytes_per_s is negative")
        if not 0 <= self.drain_s <= DRAIN_MAX_S:
            raise InvalidArgument("drain_s is out of range", drain_s=self.drain_s, most=DRAIN_MAX_S)
        if not (self.grpc_connection_s == 0 or 1 <= self.grpc_connection_s <= INTERVAL_MAX_S / 366):
            raise InvalidArgument(
                "grpc_connection_s is out of range", grpc_connection_s=self.grpc_connection_s
            )
        if not self.drain_s <= self.retire_s <= RETIRE_MAX_S:
            raise InvalidArgument(
                "retire_s is out of range", retire_s=self.retire_s, least=self.drain_s
            )
        if not 0 <= self.leave_s <= DRAIN_MAX_S:
            raise InvalidArgument("leave_s is out of range", leave_s=self.leave_s, most=DRAIN_MAX_S)
        if bool(self.cluster.etcd) != bool(self.blocks.url):
            raise InvalidArgument("a cluster needs both etcd in [cluster] and url in [blocks]")
        if self.in_cluster:
            self._check_peers()

    def _check_peers(self) -> None:
        """Check how other nodes reach this one: it gives them any block."""
        if self.blocks.url.startswith("memory:"):
            raise InvalidArgument("blocks in memory are no cluster's", url=self.blocks.url[:200])
        host, _ = split_address(self.cluster.listen, "cluster.listen")
        if not is_loopback(host) and not self.cluster.peer_ca:
            raise InvalidArgument(
                "nodes talk beyond loopback only with peer_ca, peer_certificate and peer_key",
                listen=self.cluster.listen,
            )
        if host in ANY_HOST and not self.cluster.advertise:
            raise InvalidArgument(
                "where other nodes reach this one is not known; say advertise in [cluster]",
                listen=self.cluster.listen,
            )
        if self.cluster.advertise:
            split_address(self.cluster.advertise, "cluster.advertise")

    @property
    def needs_auth(self) -> bool:
        """Whether nobody does anything without having shown who it is."""
        return self.auth == "required" if self.auth else not self.on_loopback

    @property
    def on_loopback(self) -> bool:
        """Whether this machine alone reaches repositories; the admin port has none."""
        keys = [key for key in self.listens if key != "admin"]
        return all(is_loopback(split_address(getattr(self, key), key)[0]) for key in keys)

    @property
    def admin_on_loopback(self) -> bool:
        """Whether this machine alone reaches the admin port."""
        return is_loopback(split_address(self.admin, "admin")[0])

    @property
    def admin_asks(self) -> bool:
        """Whether visitors of the admin port must show who they are: beyond loopback, unless ``auth`` is off."""
        return self.auth != "off" and not self.admin_on_loopback

    @property
    def in_cluster(self) -> bool:
        """Whether this is a node of a cluster."""
        return bool(self.cluster.etcd)

    @property
    def listens(self) -> tuple[str, ...]:
        """The keys of the addresses that are served."""
        ssh = () if self.ssh in ("", "off") else ("ssh",)
        return ("grpc", "http", *ssh, "admin")

    @property
    def peer_address(self) -> str:
        """Where other nodes of the cluster reach this one."""
        return self.cluster.advertise or self.cluster.listen

    @property
    def folder(self) -> Path:
        """The store's folder."""
        return Path(self.data)


# What a server keeps until it is started anew: sockets, and what its folder and its cluster are.
FIXED = ("data", "grpc", "http", "ssh", "admin")
FIXED_INSIDE = {
    "cluster": ("name", "node", "listen", "advertise"),
    "blocks": ("url",),
}


def settled_again(now: ServeConfig, wanted: ServeConfig) -> tuple[ServeConfig, list[str]]:
    """Return what a server that goes by ``now`` can take over from another configuration, and the keys it cannot."""
    kept: dict[str, object] = {key: getattr(now, key) for key in FIXED}
    fixed = [key for key in FIXED if not _same_place(key, now, wanted)]
    for section, keys in FIXED_INSIDE.items():
        ours, theirs = getattr(now, section), getattr(wanted, section)
        listen = ours.listen if section == "cluster" else ""
        for key in keys:
            same = getattr(ours, key) == getattr(theirs, key)
            if not same and not (key == "listen" and _is_free_port(theirs.listen, listen)):
                fixed.append(f"{section}.{key}")
        kept[section] = msgspec.structs.replace(theirs, **{key: getattr(ours, key) for key in keys})
    if wanted.in_cluster != now.in_cluster:
        fixed.append("cluster.etcd")
        kept["cluster"] = now.cluster
    return msgspec.structs.replace(wanted, **kept), fixed


def changed(before: ServeConfig, after: ServeConfig) -> list[str]:
    """Return the keys whose values differ."""
    keys = before.__struct_fields__
    return [key for key in keys if getattr(before, key) != getattr(after, key)]


def _same_place(key: str, now: ServeConfig, wanted: ServeConfig) -> bool:
    here, there = getattr(now, key), getattr(wanted, key)
    if key == "data":
        return bool(Path(here).resolve() == Path(there).resolve())
    off = ("", "off")
    return bool(here == there or (here in off and there in off) or _is_free_port(there, here))


def _is_free_port(wanted: str, taken: str) -> bool:
    """Say whether an address was asked for with port 0, and one of that host was taken."""
    return wanted.endswith(":0") and wanted.rpartition(":")[0] == taken.rpartition(":")[0]


def check_detection(text: str) -> str:
    """Return a value of ``detect_collisions``; InvalidArgument when it is none."""
    if text not in DETECTIONS:
        raise InvalidArgument(
            "detect_collisions is not known",
            detect_collisions=text[:50],
            known="|".join(DETECTIONS),
        )
    return text


def load_config(
    file: Path | None,
    *,
    environment: Mapping[str, str] = os.environ,
    flags: Mapping[str, object] | None = None,
) -> ServeConfig:
    """Return the configuration; InvalidArgument names the key that is off and where it stands.

    ``flags`` are values by key; None stands for a flag that was not given.
    """
    known = {field.name: field.type for field in msgspec.structs.fields(ServeConfig)}
    deep = {
        f"{section}_{field.name}": (section, field.name, field.type)
        for section, shape in SECTIONS.items()
        for field in msgspec.structs.fields(shape)
    }
    merged: dict[str, object] = {}
    if file is not None:
        for key, value in _read(file).items():
            if key not in known:
                raise InvalidArgument("unknown configuration key", key=key[:200], path=str(file))
            merged[key] = _typed(value, known[key], key, str(file), strict=True)
    inside: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
    for name, text in environment.items():
        if not name.startswith(PREFIX) or _NOT_OURS.fullmatch(name.removeprefix(PREFIX)):
            continue
        key = name.removeprefix(PREFIX).lower()
        if key in deep and name == name.upper():
            section, inner, kind = deep[key]
            inside[section][inner] = _typed(text, kind, key, name, strict=False)
            continue
        if key not in known or key in SECTIONS or name != name.upper():
            raise InvalidArgument("unknown configuration variable", variable=name[:200])
        merged[key] = _typed(text, known[key], key, name, strict=False)
    for section, values in inside.items():
        if values:  # at once: some belong together
            before = merged.get(section, SECTIONS[section]())
            assert isinstance(before, ClusterConfig | BlocksConfig | LimitsConfig)
            merged[section] = msgspec.structs.replace(before, **values)
    merged |= {key: value for key, value in (flags or {}).items() if value is not None}
    if "ssh" not in merged and not has_extra("ssh"):
        merged["ssh"] = ""
    return ServeConfig(**merged)  # type: ignore[arg-type]


def _read(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as cause:
        raise InvalidArgument(
            "configuration file cannot be read", path=str(file), cause=cause.strerror
        ) from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise InvalidArgument(
            "configuration file is not TOML", path=str(file), cause=str(cause)
        ) from cause


def _typed(value: object, kind: object, key: str, source: str, *, strict: bool) -> object:
    """Return the value as its key's type; text from the environment is read as a number or a list."""
    if not strict and isinstance(value, str) and get_origin(kind) is tuple:
        value = [word for part in value.split(",") if (word := part.strip())]
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as cause:
        raise InvalidArgument(
            "configuration value has the wrong type", key=key, source=source, cause=str(cause)
        ) from cause
