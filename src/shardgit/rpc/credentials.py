"""gRPC's credentials from PEM files, which are taken anew when these change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from shardgit.tls import Pems, TlsFiles


def server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Return what shows the certificate as it is when a client connects; TLS 1.2 or newer, as gRPC has it.

    Where the files name an authority of clients, who shows no certificate of it is not served.
    """
    first = tls.now()
    shown = first.generation

    def made(pems: Pems) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(pems.key, pems.certificate)], pems.client_ca or None
        )

    def fetched() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        taken = tls.now()
        if taken.generation == shown:
            return None
        shown = taken.generation
        return made(taken.pems)

    return grpc.dynamic_ssl_server_credentials(
        made(first.pems), fetched, require_client_authentication=bool(first.pems.client_ca)
    )


class CallingCredentials:
    """How one of many equals calls the others: it shows its certificate, and wants one of the same authority."""

    def __init__(self, tls: TlsFiles) -> None:
        self._tls = tls

    def now(self) -> tuple[int, grpc.ChannelCredentials]:
        """Return the credentials as the files are now, and a number that changes with them."""
        taken = self._tls.now()
        pems = taken.pems
        made = grpc.ssl_channel_credentials(pems.client_ca, pems.key, pems.certificate)
        return taken.generation, made

    @property
    def generation(self) -> int:
        """The number of the credentials as the files are now."""
        return self._tls.now().generation
