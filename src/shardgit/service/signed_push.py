"""Signed pushes: what is known of a push's certificate, and whether it is enough."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.oid import HashKind, ObjectId
from shardgit.protocol.push_certificate import PushCertificate, parse_certificate
from shardgit.service.push_nonce import NonceCheck, NonceMaker, NonceStatus
from shardgit.service.settings import settings_of
from shardgit.service.signatures import Signature, check_gpg, check_ssh

if TYPE_CHECKING:
    from shardgit.journal.records import RepositoryRecord
    from shardgit.protocol.receive_pack import PushRequest
    from shardgit.service.settings import RepositorySettings, SignedPushSettings


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What is known of a certificate, for hooks, the log and policy.

    ``id`` is the id that the certificate has as a blob. ``status`` is a letter of Signature;
    ``slop_s`` says by how much a nonce of ours is stale.
    """

    certificate: bytes
    id: ObjectId
    status: str
    signer: str
    key: str
    fingerprint: str
    nonce: str
    nonce_status: NonceStatus
    slop_s: int
    pusher: str
    pushee: str
    output: str  # what the program that checked it said

    def environment(self) -> dict[str, str]:
        """Return the variables that git gives to hooks."""
        found = {
            "GIT_PUSH_CERT": self.id.hex(),
            "GIT_PUSH_CERT_SIGNER": self.signer,
            "GIT_PUSH_CERT_KEY": self.key,
            "GIT_PUSH_CERT_STATUS": self.status,
        }
        if self.nonce_status is not NonceStatus.UNSOLICITED:
            found["GIT_PUSH_CERT_NONCE"] = self.nonce
            found["GIT_PUSH_CERT_NONCE_STATUS"] = self.nonce_status.value
        if self.nonce_status is NonceStatus.SLOP:
            found["GIT_PUSH_CERT_NONCE_SLOP"] = str(self.slop_s)
        return {key: value.replace("\0", "") for key, value in found.items()}


def nonce_of(record: RepositoryRecord, *, now_s: int | None = None) -> bytes:
    """Return the nonce to advertise; b"" where the repository asks for no signed pushes."""
    maker = _maker(record)
    return maker.make(int(time.time()) if now_s is None else now_s) if maker else b""


def _maker(record: RepositoryRecord) -> NonceMaker | None:
    signed = settings_of(record).signed_push
    if signed.mode == "off" or not signed.nonce_seed:
        return None
    return NonceMaker(signed.nonce_seed, record.id, record.hash_kind)


def certificate_facts(
    record: RepositoryRecord,
    request: PushRequest,
    *,
    given: bytes | None = None,
    now_s: int | None = None,
) -> CertificateFacts | None:
    """Judge a push's certificate; None when it has none. Runs programs: call it from a worker.

    ``given`` is the nonce that this very conversation advertised, and which must come back (SSH);
    without it the nonce may be any of ours, within the time that settings allow (HTTP).
    """
    if not request.certificate:
        return None
    found = parse_certificate(request.certificate)
    signed = settings_of(record).signed_push
    signature = _judged(found, signed)
    now = int(time.time()) if now_s is None else now_s
    nonce = _nonce(record, found, signed, given=given, now_s=now)
    header = b"blob %d\0" % len(request.certificate)
    digest = hashlib.sha1 if record.hash_kind is HashKind.SHA1 else hashlib.sha256
    return CertificateFacts(
        certificate=request.certificate,
        id=ObjectId(digest(header + request.certificate).digest()),
        status=signature.status,
        signer=signature.signer,
        key=signature.key,
        fingerprint=signature.fingerprint,
        nonce=(found.nonce or b"").decode("utf-8", "replace"),
        nonce_status=nonce.status,
        slop_s=nonce.slop_s,
        pusher=found.pusher.decode("utf-8", "replace"),
        pushee=found.pushee.decode("utf-8", "replace"),
        output=signature.output,
    )


def _judged(found: PushCertificate, signed: SignedPushSettings) -> Signature:
    if not found.signature:
        return Signature("N")
    if found.is_ssh:
        return check_ssh(found.payload, found.signature, signed.ssh_signers)
    if found.signature.startswith(b"-----BEGIN SIGNED MESSAGE-----"):
        return Signature("E", output="X.509 signatures cannot be checked")
    return check_gpg(found.payload, found.signature, signed.gpg_keys)


def _nonce(
    record: RepositoryRecord,
    found: PushCertificate,
    signed: SignedPushSettings,
    *,
    given: bytes | None,
    now_s: int,
) -> NonceCheck:
    if not found.nonce:
        return NonceCheck(NonceStatus.MISSING)
    maker = _maker(record)
    if maker is None:
        return NonceCheck(NonceStatus.UNSOLICITED)
    if given is not None:
        return NonceCheck(NonceStatus.OK if found.nonce == given else NonceStatus.BAD)
    return maker.check(found.nonce, now_s=now_s, slop_max_s=signed.nonce_slop_s)


_WORTH = {
    "N": "the push certificate has no signature",
    "B": "the push certificate's signature is bad",
    "U": "the push certificate is signed by a key that is not allowed here",
    "X": "the push certificate's signature has expired",
    "Y": "the push certificate is signed by an expired key",
    "R": "the push certificate is signed by a revoked key",
}
_STALE = {
    NonceStatus.MISSING: "the push certificate has no nonce; push again",
    NonceStatus.BAD: "the push certificate's nonce is not ours; push again",
    NonceStatus.UNSOLICITED: "the push certificate has a nonce that nobody gave out",
}


def unsigned_refusal(settings: RepositorySettings) -> str | None:
    """Return why refs may not be moved without a certificate; None where they may."""
    if settings.signed_push.mode != "required":
        return None
    return "only signed pushes are taken here; use git push --signed"


def certificate_refusal(
    settings: RepositorySettings, request: PushRequest, facts: CertificateFacts | None
) -> str | None:
    """Return why nothing of a push may be done, judged by its certificate.

    Where signed pushes are only allowed, what a signature is worth is for hooks to judge, as with
    git.
    """
    if facts is not None and parse_certificate(facts.certificate).options != request.options:
        return "inconsistent push options"
    if settings.signed_push.mode != "required":
        return None
    if facts is None:
        return unsigned_refusal(settings)
    if facts.status != "G":
        why = _WORTH.get(facts.status, "the push certificate cannot be checked")
        return f"{why}: {facts.output}" if facts.output and facts.status == "E" else why
    if facts.nonce_status is NonceStatus.SLOP:
        return f"the push certificate's nonce is {facts.slop_s} s old; push again"
    return _STALE.get(facts.nonce_status)
