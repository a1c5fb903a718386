"""What a configuration says of who is let in, and how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.service.doorkeeper import Doorkeeper, Secrets, parse_client_rule
from shardgit.tls import TlsFiles

if TYPE_CHECKING:
    from shardgit.config import ServeConfig
    from shardgit.journal.interface import Journal


def doorkeeper_of(config: ServeConfig, journal: Journal) -> Doorkeeper:
    """Return who tells callers apart. Errors: Refused for files that cannot be read."""
    secrets = Secrets(Path(config.auth_secret_file)) if config.auth_secret_file else None
    return Doorkeeper(
        journal,
        required=config.needs_auth,
        secrets=secrets,
        clients=map(parse_client_rule, config.tls_clients),
    )


def tls_files(config: ServeConfig) -> TlsFiles | None:
    """Return the certificate of the served ports, None without one. Errors: Refused."""
    if not config.tls_certificate:
        return None
    return TlsFiles(config.tls_certificate, config.tls_key, config.tls_client_ca)


def check_door(config: ServeConfig) -> None:
    """Look whether the files that a configuration names here can be used. Errors: Refused."""
    tls_files(config)
    if config.auth_secret_file:
        Secrets(Path(config.auth_secret_file))
