"""Tokens: made once, kept as hashes, looked up at every request, revoked at once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from shardgit import clock, faultpoints
from shardgit.errors import Conflict, InvalidArgument, LimitExceeded, TokenMissing
from shardgit.journal.interface import Compare, Delete, Put, end_of
from shardgit.journal.token_records import (
    TICKET_SECRET_KEY,
    TOKEN_ID_BYTES,
    TOKENS,
    TokenRecord,
    token_key,
)
from shardgit.service.access import Holder, Rights, check_globs

if TYPE_CHECKING:
    from shardgit.journal.interface import Journal

PREFIX = "sgt_"  # by which scanners for leaked secrets know one
TICKET = "sgk_"
NAME_MAX_BYTES = 200
SECRET_BYTES = 32
TICKET_S = 900
_TOKEN = re.compile(r"sgt_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_TICKET = re.compile(r"sgk_([A-Za-z0-9_-]{1,2048})\.([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class KnownToken:
    """A token as it is shown: all but its secret. ``expires_ms`` is 0 for one that does not end."""

    id: str
    name: str
    read: tuple[str, ...]
    write: tuple[str, ...]
    admin: bool
    created_ms: int
    expires_ms: int
    by: str


class _Ticket(msgspec.Struct, frozen=True, array_like=True):
    name: str
    repository: str
    writes: bool
    ends_ms: int


class Tokens:
    """The tokens of a store. Methods run in the calling thread; a look costs some microseconds."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def create(
        self, name: str, rights: Rights, *, expires_s: float | None = None, by: str = ""
    ) -> tuple[KnownToken, str]:
        """Make a token; returns what is known of it, and its text, which nobody can be told again.

        Errors: InvalidArgument, LimitExceeded.
        """
        if not name or not name.isprintable():
            raise InvalidArgument("token has no name, or one that is not printable", name=name[:80])
        if len(name.encode()) > NAME_MAX_BYTES:
            raise LimitExceeded("token name is too long", limit=NAME_MAX_BYTES)
        if expires_s is not None and expires_s <= 0:
            raise InvalidArgument("token would have ended already", expires_s=expires_s)
        if not (rights.admin or rights.read or rights.write):
            raise InvalidArgument("token allows nothing; give --read, --write or --admin")
        token, secret = os.urandom(TOKEN_ID_BYTES), _text(os.urandom(SECRET_BYTES))
        now = clock.now_ms()
        record = TokenRecord(
            _digest(secret),
            now,
            now + round(expires_s * 1_000) if expires_s is not None else 0,
            name,
            check_globs(rights.read),
            check_globs(rights.write),
            rights.admin,
            by,
        )
        # commit point: before it the token is not known, after it it lets in.
        faultpoints.reach("token.before_create")
        self._journal.commit_sync(
            [Compare(token_key(token), 0)], [Put(token_key(token), record.encode())]
        )
        faultpoints.reach("token.after_create")
        return _known(token, record), f"{PREFIX}{token.hex()}_{secret}"

    def all(self) -> list[KnownToken]:
        """Return all tokens by name, those that have ended among them."""
        with self._journal.snapshot() as snapshot:
            found = [
                _known(row.key[1:], TokenRecord.decode(row.value))
                for row in snapshot.range(TOKENS, end_of(TOKENS))
                if len(row.key) == 1 + TOKEN_ID_BYTES
            ]
        return sorted(found, key=lambda one: (one.name, one.id))

    def revoke(self, word: str) -> list[KnownToken]:
        """Revoke the token with an id (or a whole token), or all of a name; TokenMissing when there is none."""
        given = _TOKEN.fullmatch(word)
        word = given[1] if given else word
        found = [one for one in self.all() if word in (one.id, one.name)]
        if not found:
            raise TokenMissing("no such token", token=word[:80])
        for one in found:
            # commit point, one for each token: before it the token lets in, after it no more.
            faultpoints.reach("token.before_revoke")
            self._journal.commit_sync([], [Delete(token_key(bytes.fromhex(one.id)))])
            faultpoints.reach("token.after_revoke")
        return found

    def holder(self, text: str) -> Holder | None:
        """Return whom a token or ticket stands for; None for one that is wrong, revoked or has ended.

        It takes the same time whichever of these it is.
        """
        if text.startswith(TICKET):
            return self._ticket_holder(text)
        given = _TOKEN.fullmatch(text)
        if given is None:
            return None
        with self._journal.snapshot() as snapshot:
            row = snapshot.get(token_key(bytes.fromhex(given[1])))
        record = TokenRecord.decode(row.value) if row is not None else None
        is_right = hmac.compare_digest(
            _digest(given[2]), record.digest if record is not None else bytes(32)
        )
        if record is None or not is_right:
            return None
        if record.expires_ms and record.expires_ms <= clock.now_ms():
            return None
        return Holder(record.name, Rights(record.read, record.write, record.admin))

    def is_known(self, text: str) -> bool:
        """Say whether there is a token of that id, whatever its secret."""
        given = _TOKEN.fullmatch(text)
        if given is None:
            return True  # no token at all, which no other node knows either
        with self._journal.snapshot() as snapshot:
            return snapshot.get(token_key(bytes.fromhex(given[1]))) is not None

    # -- tickets

    def ticket(self, name: str, repository: str, *, writes: bool, lasts_s: int = TICKET_S) -> str:
        """Return what stands for a principal on one repository for a while; nothing is kept of it.

        For those who have come in by another way than HTTP and have to go on there.
        """
        ends = clock.now_ms() + lasts_s * 1_000
        said = _text(msgspec.json.encode(_Ticket(name, repository, writes, ends)))
        return f"{TICKET}{said}.{_text(self._mac(said, self._ticket_secret(make=True)))}"

    def _ticket_holder(self, text: str) -> Holder | None:
        given = _TICKET.fullmatch(text)
        secret = self._ticket_secret(make=False)
        if given is None or not secret:
            return None
        if not hmac.compare_digest(_text(self._mac(given[1], secret)), given[2]):
            return None
        try:
            ticket = msgspec.json.decode(_bytes(given[1]), type=_Ticket)
        except (msgspec.MsgspecError, ValueError):
            return None
        if ticket.ends_ms <= clock.now_ms():
            return None
        # Names of repositories have no character that means something in a glob.
        only = (ticket.repository,)
        return Holder(ticket.name, Rights(write=only) if ticket.writes else Rights(read=only))

    def _mac(self, said: str, secret: bytes) -> bytes:
        return hmac.digest(secret, said.encode(), "sha256")

    def _ticket_secret(self, *, make: bool) -> bytes:
        with self._journal.snapshot() as snapshot:
            row = snapshot.get(TICKET_SECRET_KEY)
        if row is not None or not make:
            return row.value if row is not None else b""
        # commit point: before it no ticket can have been made; of two that make the secret one does.
        faultpoints.reach("token.before_ticket_secret")
        made = Put(TICKET_SECRET_KEY, os.urandom(SECRET_BYTES))
        with suppress(Conflict):
            self._journal.commit_sync([Compare(TICKET_SECRET_KEY, 0)], [made])
        faultpoints.reach("token.after_ticket_secret")
        with self._journal.snapshot() as snapshot:
            row = snapshot.get(TICKET_SECRET_KEY)
        assert row is not None
        return row.value


def _digest(secret: str) -> bytes:
    # Not a slow hash: the secret has 256 random bits, and none of them can be guessed.
    return hashlib.sha256(secret.encode()).digest()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _known(token: bytes, record: TokenRecord) -> KnownToken:
    return KnownToken(
        token.hex(),
        record.name,
        record.read,
        record.write,
        record.admin,
        record.created_ms,
        record.expires_ms,
        record.by,
    )
