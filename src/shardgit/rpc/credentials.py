"""gRPC's credentials from PEM files, which are taken anew when these change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from shardgit.tls import TlsFiles


def server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Return what shows the certificate as it is when a client connects; TLS 1.2 or newer, as gRPC has it.

    Where the files name an authority of clients, who shows no certificate of it is not served.
    """
    shown = 0

    def made() -> grpc.ServerCertificateConfiguration:
        pems = tls.pems()
        return grpc.ssl_server_certificate_configuration(
            [(pems.key, pems.certificate)], pems.client_ca or None
        )

    def fetched() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        tls.pems()
        if tls.generation == shown:
            return None
        shown = tls.generation
        return made()

    first = made()
    shown = tls.generation
    return grpc.dynamic_ssl_server_credentials(
        first, fetched, require_client_authentication=bool(tls.pems().client_ca)
    )


class CallingCredentials:
    """How one of many equals calls the others: it shows its certificate, and wants one of the same authority."""

    def __init__(self, tls: TlsFiles) -> None:
        self._tls = tls

    def now(self) -> tuple[int, grpc.ChannelCredentials]:
        """Return the credentials as the files are now, and a number that changes with them."""
        pems = self._tls.pems()
        made = grpc.ssl_channel_credentials(pems.client_ca, pems.key, pems.certificate)
        return self._tls.generation, made

    @property
    def generation(self) -> int:
        """The number of the credentials as the files are now."""
        self._tls.pems()
        return self._tls.generation
