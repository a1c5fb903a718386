"""TLS for the served ports: certificates in PEM files, taken anew when these change."""

from __future__ import annotations

import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardgit import telemetry
from shardgit.errors import Refused

LOOK_S = 1.0  # between two looks at the files
FILE_MAX_BYTES = 1 << 20
HANDSHAKE_S = 10.0


@dataclass(frozen=True, slots=True)
class Pems:
    """A certificate with its chain, its key, and the authority of clients' certificates (empty: none are asked for)."""

    certificate: bytes
    key: bytes
    client_ca: bytes = b""


@dataclass(frozen=True, slots=True)
class Taken:
    """Files as they were taken over, held against each other; ``generation`` counts up with every change."""

    generation: int
    pems: Pems
    context: ssl.SSLContext


class TlsFiles:
    """The certificate of a server. What connects from a change on is shown the new one; nothing is cut.

    Files that do not fit together, as while they are being replaced, leave what was there before. Usable from many
    threads. Errors, of the first look only: Refused.
    """

    def __init__(self, certificate: str, key: str, client_ca: str = "") -> None:
        self._paths = (certificate, key, *((client_ca,) if client_ca else ()))
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._seen = self._told = self._stamps()
        pems = self._read()
        self._taken = Taken(1, pems, self._made(pems))

    def context(self) -> ssl.SSLContext:
        """Return the context for a connection that begins now: TLS 1.2 or newer, HTTP/1.1."""
        return self.now().context

    def now(self) -> Taken:
        """Return the files as of now."""
        self._look()
        return self._taken

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        with self._lock:
            if now - self._looked < LOOK_S:
                return
            self._looked = now
            stamps = self._stamps()
            if stamps == self._seen:
                return
            try:
                pems = self._read()
                self._taken = Taken(self._taken.generation + 1, pems, self._made(pems))
            except Refused as error:  # looked at again in a second: files may still be on their way
                if self._told != stamps:
                    self._told = stamps
                    telemetry.log().error("tls_files_not_taken", error=str(error))
                return
            self._seen = self._told = stamps
            telemetry.log().info("tls_files_taken", generation=self._taken.generation)

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        found = []
        for path in self._paths:
            try:
                stat = Path(path).stat()
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(found)

    def _read(self) -> Pems:
        return Pems(*(_bytes_of(path) for path in self._paths))

    def _made(self, pems: Pems) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._paths[0], self._paths[1], password=_no_password)
            if len(self._paths) > 2:
                context.load_verify_locations(cadata=pems.client_ca.decode("ascii"))
                context.verify_mode = ssl.CERT_OPTIONAL  # tokens come in without one
        except (ssl.SSLError, OSError, ValueError) as cause:
            raise Refused(
                "certificate, key or authority do not fit", path=self._paths[0], cause=str(cause)
            ) from cause
        return context


def common_name(certificate: dict[str, Any]) -> str:
    """Return the common name in a certificate as ``ssl`` shows it, "" without one."""
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""


def _bytes_of(path: str) -> bytes:
    try:
        with Path(path).open("rb") as opened:
            data = opened.read(FILE_MAX_BYTES + 1)
    except OSError as cause:
        raise Refused("TLS file cannot be read", path=path, cause=cause.strerror) from cause
    if len(data) > FILE_MAX_BYTES:
        raise Refused("TLS file is too large", path=path, limit=FILE_MAX_BYTES)
    return data


def _no_password() -> str:
    """Answer OpenSSL, which would ask on the terminal."""
    raise ValueError("key is encrypted; give one without a password")
