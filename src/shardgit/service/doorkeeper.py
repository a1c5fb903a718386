"""Who asks: a token, a ticket, a trusted front end's signature or a certificate become a principal."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from shardgit import clock, telemetry
from shardgit.errors import InvalidArgument, RateLimited, Refused, Unauthenticated
from shardgit.service.access import (
    ALL_REPOSITORIES,
    EVERYTHING,
    NOTHING,
    Principal,
    Rights,
    check_globs,
)
from shardgit.service.tokens import PREFIX, Tokens

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from shardgit.journal.interface import Journal
    from shardgit.service.access import Holder

NAME_MAX = 200
CREDENTIALS_MAX = 8 << 10
WINDOW_S = 30  # that the clock of a front end may be off, and how long its signature holds
SECRET_MIN_BYTES = 16
SECRETS_MAX_BYTES = 64 << 10
# Of one address in FAILURES_S, until it is told to wait. What it shows is looked at all the same: nobody guesses 256
# bits, and who is right comes in from behind the same address.
FAILURES_MAX = 20
FAILURES_S = 60.0
ADDRESSES_MAX = 10_000
FRONT_END = "front-end"
_SIGNED = re.compile(r"v2\.([0-9a-f]{64})\.([0-9]{1,12})")


@dataclass(frozen=True, slots=True)
class ClientRule:
    """What the holders of certificates may do whose common name a glob matches."""

    pattern: str
    rights: Rights


def parse_client_rule(text: str) -> ClientRule:
    """Return the rule in ``NAME-GLOB [read=GLOB ...] [write=GLOB ...] [admin]``; InvalidArgument otherwise."""
    pattern, *words = text.split() or [""]
    read = [word.removeprefix("read=") for word in words if word.startswith("read=")]
    write = [word.removeprefix("write=") for word in words if word.startswith("write=")]
    admin = words.count("admin")
    if not pattern or not words or len(read) + len(write) + admin != len(words):
        raise InvalidArgument(
            "rule for certificates is not NAME-GLOB [read=GLOB] [write=GLOB] [admin]",
            rule=text[:200],
        )
    return ClientRule(pattern, Rights(check_globs(read), check_globs(write), bool(admin)))


class Secrets:
    """The secrets in a file, one a line, newest first: read again when the file has changed.

    Errors, at the start only: Refused for a file that cannot be read, or has none, or too short a one.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, int, int] | None = None
        self._found: tuple[bytes, ...] = ()
        self._look()

    def all(self) -> tuple[bytes, ...]:
        """Return them; those that were there before while the file cannot be taken, as while it is being written."""
        try:
            self._look()
        except Refused as error:
            telemetry.log().error("secrets_not_taken", error=str(error))
        return self._found

    def _look(self) -> None:
        try:
            stat = self._file.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen != self._seen:
                with self._file.open("rb") as opened:
                    data = opened.read(SECRETS_MAX_BYTES)
                self._found, self._seen = self._parsed(data), seen
        except OSError as cause:
            raise Refused(
                "file of secrets cannot be read", path=str(self._file), cause=cause.strerror
            ) from cause

    def _parsed(self, data: bytes) -> tuple[bytes, ...]:
        found = tuple(line.strip() for line in data.splitlines() if line.strip())
        if not found or min(map(len, found)) < SECRET_MIN_BYTES:
            raise Refused(
                "file of secrets has none, or one that is too short",
                path=str(self._file),
                least=SECRET_MIN_BYTES,
            )
        return found


class Failures:
    """How often addresses have shown something wrong lately."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def add(self, address: str) -> None:
        """Count a failure. Errors: RateLimited for an address that has failed too often."""
        now = time.monotonic()
        begun, count = self._seen.pop(address, (now, 0))
        if now - begun >= FAILURES_S:
            begun, count = now, 0
        self._seen[address] = (begun, count + 1)
        if len(self._seen) > ADDRESSES_MAX:
            self._seen.popitem(last=False)
        if count >= FAILURES_MAX:
            raise RateLimited(
                "too many wrong credentials", retry_after_s=int(begun + FAILURES_S - now) + 1
            )


@dataclass(frozen=True, slots=True)
class Shown:
    """What a request shows of who sends it.

    ``authorization`` is the header or metadata of that name, ``certificate`` the common name of a verified
    certificate; ``actor`` and ``for_address`` are whom a front end acts for.
    """

    address: str = ""
    authorization: str | None = None
    certificate: str = ""
    actor: str = ""
    for_address: str = ""


class Doorkeeper:
    """Tells who asks. With ``required`` False everybody may do everything, and is named as they say.

    ``secrets`` sign the tokens of trusted front ends: ``v2.<HMAC-SHA256 of the time, in hex>.<unix time>``, which hold
    for 30 s and allow everything, in the name of whom they say. ``clients`` say what holders of certificates may do;
    the first that matches counts, and without any all repositories are theirs.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        required: bool = False,
        secrets: Secrets | None = None,
        clients: Iterable[ClientRule] = (),
    ) -> None:
        self.required = required
        self._journal = journal
        self.tokens = Tokens(journal)
        self._secrets = secrets
        self._clients = tuple(clients) or (ClientRule("*", ALL_REPOSITORIES),)
        self._failures = Failures()

    def principal(self, shown: Shown, *, again: bool = False) -> Principal:
        """Return who asks. Errors: Unauthenticated for credentials that are wrong, RateLimited.

        ``again``: of a call that lasts. It was let in already, so a front end's signature may be old by then, and what
        does not hold any more is no guess.
        """
        user, secret = _credentials(shown.authorization)
        if not self.required:
            name = shown.certificate or _plain(user) or "anonymous"
            return Principal(name, shown.address, EVERYTHING)
        if secret:
            return self._by_secret(shown, secret, again=again)
        if shown.authorization is not None and not shown.certificate:
            raise Unauthenticated("credentials are not Basic or Bearer, or empty")
        if shown.certificate:
            return self._by_certificate(shown)
        return Principal("anonymous", shown.address)

    async def admit(self, shown: Shown) -> Principal:
        """Let a request in; returns who asks. A token that another node has just made counts, too.

        Errors: Unauthenticated for who has not shown who it is where that is required, too.
        """
        if self.required and self._may_be_new(shown):
            await self._journal.fresh(stale_ok=True)
        found = self.principal(shown)
        if self.required and not found.proved:
            raise Unauthenticated("authentication is required")
        return found

    def _may_be_new(self, shown: Shown) -> bool:
        """Say whether a token is shown that is not known here: another node may have made it just now."""
        _, secret = _credentials(shown.authorization)
        return secret.startswith(PREFIX) and not self.tokens.is_known(secret)

    def by_key(self, holder: Holder, address: str) -> Principal:
        """Return who has shown a public key of ours."""
        rights = holder.rights if self.required else EVERYTHING
        return Principal(holder.name, address, rights, proved=True)

    def _by_secret(self, shown: Shown, secret: str, *, again: bool) -> Principal:
        signed = _SIGNED.fullmatch(secret)
        if signed is not None and self._is_front_end(signed[1], signed[2], holds=again):
            name = _plain(shown.actor) or FRONT_END
            address = _plain(shown.for_address) or shown.address
            return Principal(name, address, EVERYTHING, True, delegated=bool(_plain(shown.actor)))
        holder = self.tokens.holder(secret) if signed is None else None
        if holder is None:
            if not again:
                self._failures.add(shown.address)
            telemetry.log().info("credentials_refused", address=shown.address)
            raise Unauthenticated("credentials are wrong, were revoked or have ended")
        return Principal(holder.name, shown.address, holder.rights, True)

    def _is_front_end(self, digest: str, at: str, *, holds: bool) -> bool:
        if self._secrets is None:
            return False
        is_now = holds or abs(clock.now_ms() / 1_000 - int(at)) <= WINDOW_S
        right = [
            hmac.compare_digest(hmac.new(secret, at.encode(), hashlib.sha256).hexdigest(), digest)
            for secret in self._secrets.all()
        ]
        return any(right) and is_now

    def _by_certificate(self, shown: Shown) -> Principal:
        rights = next(
            (rule.rights for rule in self._clients if fnmatchcase(shown.certificate, rule.pattern)),
            NOTHING,
        )
        return Principal(_plain(shown.certificate) or "certificate", shown.address, rights, True)


def _credentials(header: str | None) -> tuple[str, str]:
    """Return the user and the secret of a header: a token is the password, or the user beside an empty one."""
    if not header or len(header) > CREDENTIALS_MAX:
        return "", ""
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return "", rest.strip()
    if scheme.lower() != "basic":
        return "", ""
    try:
        text = base64.b64decode(rest.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return "", ""
    user, _, password = text.partition(":")
    return user, password or user


def _plain(text: str) -> str:
    """Return a name that may stand in logs, "" for another."""
    return text if text and len(text) <= NAME_MAX and text.isprintable() else ""
