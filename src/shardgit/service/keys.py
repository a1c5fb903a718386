"""The public keys that may log in over SSH: in the store, and as lines of OpenSSH's files."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints
from shardgit.errors import AlreadyExists, InvalidArgument, KeyMissing, LimitExceeded
from shardgit.journal.interface import Compare, Delete, Put, end_of
from shardgit.journal.keys import KEYS, KeyRecord, Scope, key_key
from shardgit.service.access import ALL_REPOSITORIES, Holder, Rights, check_globs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.journal.interface import Journal

BLOB_MAX_BYTES = 16_384  # RSA of 16,384 bits takes 2 KiB
NAME_MAX_BYTES = 200
LINE_MAX_BYTES = 32_768
_TYPE = re.compile(r"(?:sk-)?(?:ssh|ecdsa)-[a-z0-9-]+(?:@openssh\.com)?")
# What these forbid, nobody may here; any other option narrows what a key may do, so its line must not be taken without.
_HARMLESS = {
    "restrict",
    "no-pty",
    "no-port-forwarding",
    "no-x11-forwarding",
    "no-agent-forwarding",
    "no-user-rc",
}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key: its type, the bytes that SSH sends, and the comment behind it."""

    type: str
    blob: bytes
    comment: str = ""

    @property
    def fingerprint(self) -> bytes:
        """The SHA-256 of the blob."""
        return hashlib.sha256(self.blob).digest()


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key of the store, as it is shown."""

    fingerprint: str
    name: str
    type: str
    created_ms: int
    rights: Rights


def shown(fingerprint: bytes) -> str:
    """Return a fingerprint as ``ssh-keygen -l`` prints it."""
    return "SHA256:" + base64.b64encode(fingerprint).decode().rstrip("=")


def parse_public_key(line: str) -> PublicKey:
    """Return the key in a line of a .pub file or an authorized_keys file; InvalidArgument otherwise.

    Options that allow nothing more than SSH allows here are passed over; a line with another one is
    refused, for it would allow less.
    """
    if len(line) > LINE_MAX_BYTES:
        raise InvalidArgument("public key is too long", bytes=len(line))
    words = line.split(None, 1)
    if words and not _TYPE.fullmatch(words[0]):
        others = [each for each in words[0].split(",") if each.lower() not in _HARMLESS]
        if others or len(words) == 1:
            raise InvalidArgument("not a public key, or options that are not known", line=line[:60])
        words = words[1].split(None, 1)
    if len(words) < 2 or not _TYPE.fullmatch(words[0]):
        raise InvalidArgument("not a public key; it begins with its type", line=line[:60])
    text, _, comment = words[1].partition(" ")
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as cause:
        raise InvalidArgument("public key is not base64", line=line[:60]) from cause
    kind = words[0].encode()
    if not blob.startswith(len(kind).to_bytes(4, "big") + kind) or len(blob) > BLOB_MAX_BYTES:
        raise InvalidArgument("public key is damaged or of another type", type=words[0])
    return PublicKey(words[0], blob, comment.strip())


def keys_in(text: str) -> Iterator[PublicKey | InvalidArgument]:
    """Return the keys of an authorized_keys file, and what is wrong with lines that hold none."""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            try:
                yield parse_public_key(stripped)
            except InvalidArgument as error:
                yield error


class Keys:
    """The store's keys. Methods run in the calling thread, a worker's."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def add(self, key: PublicKey, name: str = "", *, rights: Rights = ALL_REPOSITORIES) -> KnownKey:
        """Let a key in under a name, its comment unless one is given; AlreadyExists when it is there."""
        known = name or key.comment
        if not known or not known.isprintable():
            raise InvalidArgument("key has no name; give one", name=known[:80])
        if len(known.encode()) > NAME_MAX_BYTES:
            raise LimitExceeded("key name is too long", limit=NAME_MAX_BYTES)
        row = key_key(key.fingerprint)
        scope = Scope(check_globs(rights.read), check_globs(rights.write), rights.admin)
        record = KeyRecord(known, key.blob, clock.now_ms(), scope)
        with self._journal.snapshot() as snapshot:
            there = snapshot.get(row)
        if there is not None:
            held = KeyRecord.decode(there.value)
            raise AlreadyExists("key is there already", name=held.name)
        # commit point: before it the key is not known, after it it lets in.
        faultpoints.reach("key.before_add")
        self._journal.commit_sync([Compare(row, 0)], [Put(row, record.encode())])
        faultpoints.reach("key.after_add")
        return _known(key.fingerprint, record)

    def all(self) -> list[KnownKey]:
        """Return all keys by name."""
        with self._journal.snapshot() as snapshot:
            rows = [
                _known(row.key[1:], KeyRecord.decode(row.value))
                for row in snapshot.range(KEYS, end_of(KEYS))
            ]
        return sorted(rows, key=lambda one: (one.name, one.fingerprint))

    def remove(self, word: str) -> list[KnownKey]:
        """Shut out the key with a fingerprint, or all keys of a name; KeyMissing when there is none."""
        found = [one for one in self.all() if word in (one.fingerprint, one.name)]
        if not found:
            raise KeyMissing("no such key", key=word[:200])
        for one in found:
            digits = one.fingerprint.removeprefix("SHA256:") + "="
            # commit point, one for each key: before it the key lets in, after it no more.
            faultpoints.reach("key.before_remove")
            self._journal.commit_sync([], [Delete(key_key(base64.b64decode(digits)))])
            faultpoints.reach("key.after_remove")
        return found

    def holder_of(self, fingerprint: bytes) -> Holder | None:
        """Return whom a key stands for and what it allows, None for a key that is not let in."""
        with self._journal.snapshot() as snapshot:
            row = snapshot.get(key_key(fingerprint))
        if row is None:
            return None
        record = KeyRecord.decode(row.value)
        return Holder(record.name, _rights(record))

    def any(self) -> bool:
        """Return whether the store has any key."""
        with self._journal.snapshot() as snapshot:
            return next(snapshot.range(KEYS, end_of(KEYS), limit=1), None) is not None


def _known(fingerprint: bytes, record: KeyRecord) -> KnownKey:
    length = int.from_bytes(record.blob[:4], "big")
    kind = record.blob[4 : 4 + length].decode("ascii", "replace")
    return KnownKey(shown(fingerprint), record.name, kind, record.created_ms, _rights(record))


def _rights(record: KeyRecord) -> Rights:
    scope = record.scope
    return Rights(scope.read, scope.write, scope.admin)
