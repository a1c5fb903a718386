"""Nonces of signed pushes: a time and its HMAC, so that no server needs to remember them.

Source: git-config, receive.certNonceSeed and receive.certNonceSlop.
"""

from __future__ import annotations

import enum
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.oid import HashKind

if TYPE_CHECKING:
    from shardgit.oid import RepositoryId

_NONCE = re.compile(rb"([1-9][0-9]{0,17})-[0-9a-f]+")


class NonceStatus(enum.Enum):
    """What a certificate's nonce is, in git's words."""

    OK = "OK"
    SLOP = "SLOP"  # ours, but older or younger than is taken
    BAD = "BAD"  # not ours
    MISSING = "MISSING"
    UNSOLICITED = "UNSOLICITED"  # none was given out


@dataclass(frozen=True, slots=True)
class NonceCheck:
    """A nonce's status, and by how many seconds it is stale where it is ours."""

    status: NonceStatus
    slop_s: int = 0


@dataclass(frozen=True, slots=True)
class NonceMaker:
    """Gives out and knows again the nonces of one repository."""

    seed: str
    repository: RepositoryId
    kind: HashKind

    def make(self, now_s: int) -> bytes:
        """Return the nonce of a second."""
        digest = "sha1" if self.kind is HashKind.SHA1 else "sha256"
        text = b"%d:%d" % (self.repository, now_s)
        return b"%d-%s" % (now_s, hmac.new(self.seed.encode(), text, digest).hexdigest().encode())

    def check(self, nonce: bytes, *, now_s: int, slop_max_s: int) -> NonceCheck:
        """Judge a nonce that comes back in a later request, maybe to another server."""
        found = _NONCE.fullmatch(nonce)
        if found is None or not hmac.compare_digest(self.make(int(found[1])), nonce):
            return NonceCheck(NonceStatus.BAD)
        slop_s = now_s - int(found[1])
        return NonceCheck(NonceStatus.OK if abs(slop_s) <= slop_max_s else NonceStatus.SLOP, slop_s)
