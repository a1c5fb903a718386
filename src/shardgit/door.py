"""What a configuration says of who is let in, and how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.service.doorkeeper import Doorkeeper, Secrets, parse_client_rule
from shardgit.service.gate import Caps, Gate, memory_free
from shardgit.tls import TlsFiles

if TYPE_CHECKING:
    from shardgit.config import ServeConfig
    from shardgit.journal.interface import Journal
    from shardgit.workers import Workers


def doorkeeper_of(
    config: ServeConfig, journal: Journal, *, required: bool | None = None
) -> Doorkeeper:
    """Return who tells callers apart, ``required`` or as configured. Errors: Refused for files that cannot be read."""
    secrets = Secrets(Path(config.auth_secret_file)) if config.auth_secret_file else None
    return Doorkeeper(
        journal,
        required=config.needs_auth if required is None else required,
        secrets=secrets,
        clients=map(parse_client_rule, config.tls_clients),
    )


def gate_of(config: ServeConfig, workers: Workers, *, count: int) -> Gate:
    """Return what bounds the requests of one of ``count`` workers."""
    whole = config.limits

    def share(bound: int) -> int:
        return -(-bound // count)

    caps = Caps(
        repository_requests=share(whole.repository_requests),
        actor_requests=share(whole.actor_requests),
        address_requests=share(whole.address_requests),
        actor_rate=share(whole.actor_rate),
        address_rate=share(whole.address_rate),
        wait_s=whole.wait_s,
        memory_free=whole.memory_free,
    )
    return Gate(caps, workers.waited_s, memory_free)


def tls_files(config: ServeConfig) -> TlsFiles | None:
    """Return the certificate of the served ports, None without one. Errors: Refused."""
    if not config.tls_certificate:
        return None
    return TlsFiles(config.tls_certificate, config.tls_key, config.tls_client_ca)


def check_door(config: ServeConfig) -> None:
    """Look whether the files that a configuration names here can be used. Errors: Refused."""
    tls_files(config)
    for file in (config.auth_secret_file, config.metrics_secret_file):
        if file:
            Secrets(Path(file))
