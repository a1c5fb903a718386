"""Push certificates without I/O: what a signed push says, and where its signature starts.

Source: gitprotocol-pack, "Push Certificate". The text is headers, an empty line, one command a
line, and a signature.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shardgit.errors import MalformedPacket

_SIGNATURE = re.compile(
    rb"^-----BEGIN (?:PGP SIGNATURE|PGP MESSAGE|SIGNED MESSAGE|SSH SIGNATURE)-----", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class PushCertificate:
    """A certificate, cut into its parts. A header that stands twice counts once, as in git."""

    payload: bytes  # what is signed: headers and commands
    signature: bytes  # b"" when there is none
    version: bytes
    pusher: bytes
    pushee: bytes
    nonce: bytes | None  # None: the header is missing
    options: tuple[bytes, ...]
    commands: tuple[bytes, ...]  # lines "old new name"

    @property
    def is_ssh(self) -> bool:
        """Whether ``ssh-keygen`` made the signature."""
        return self.signature.startswith(b"-----BEGIN SSH SIGNATURE-----")


def signature_start(text: bytes) -> int:
    """Return where the last signature block starts; the length of the text when none does."""
    at = len(text)
    for found in _SIGNATURE.finditer(text):
        at = found.start()
    return at


def parse_certificate(text: bytes) -> PushCertificate:
    """Return the parts of a certificate. Errors: MalformedPacket."""
    head, gap, _ = text.partition(b"\n\n")
    end = signature_start(text)
    if not gap:
        raise MalformedPacket("push certificate has no empty line behind its headers")
    first: dict[bytes, bytes] = {}
    options = []
    for each in head.split(b"\n"):
        key, _, value = each.partition(b" ")
        if key == b"push-option":
            options.append(value)
        first.setdefault(key, value)
    body = text[len(head) + 2 : end]
    commands = body.removesuffix(b"\n").split(b"\n") if body else []
    return PushCertificate(
        payload=text[:end],
        signature=text[end:],
        version=first.get(b"certificate", b"").removeprefix(b"version "),
        pusher=first.get(b"pusher", b""),
        pushee=first.get(b"pushee", b""),
        nonce=first.get(b"nonce"),
        options=tuple(options),
        commands=tuple(commands),
    )
