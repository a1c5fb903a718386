"""One error tree for the whole project; the edges map it to wire codes once.

    ShardgitError                 code
    +-- InvalidArgument           INVALID_ARGUMENT     the caller's words are off; do not retry
    |   +-- MalformedInput        INVALID_ARGUMENT     bytes from outside that break their format
    |   |   +-- MalformedPack         a pack, an entry or a delta
    |   |   +-- MalformedObject       a commit, tree, tag or loose object
    |   |   +-- FsckRefused           an object that fsck does not let pass
    |   |   +-- CollisionAttack       an object made to have the SHA-1 of another one
    |   |   +-- MalformedPacket       a pkt-line or a protocol request
    |   +-- InvalidRefName
    |   +-- InvalidRepositoryName
    |   +-- LfsObjectRefused          bytes that do not match the id or size they came under
    +-- NotFound                  NOT_FOUND
    |   +-- RepositoryMissing
    |   +-- RefMissing
    |   +-- ObjectMissing
    |   +-- PathMissing
    |   +-- ShardMissing
    |   +-- NodeMissing
    |   +-- KeyMissing                  a public key
    |   +-- TokenMissing
    |   +-- QuotaMissing
    |   +-- MirrorMissing             a repository that follows no other
    |   +-- LfsObjectMissing
    |   +-- LfsOff                    the repository's settings turn Git LFS off
    |   +-- LockMissing
    |   +-- BackupMissing
    +-- AlreadyExists             ALREADY_EXISTS
    |   +-- RepositoryExists
    |   +-- ObjectCollision           an id that exists with other bytes
    |   +-- LockExists                a Git LFS lock on that path
    +-- Refused                   FAILED_PRECONDITION  the state forbids it; do not retry unchanged
    |   +-- StoreFormatUnknown        a store written by a newer shardgit
    |   +-- StoreBusy                 another process holds what is needed
    |   +-- NotAStore
    |   +-- HookRefused               a hook of the repository does not let a push pass
    |   +-- LogPositionUnknown        a place in a ref log that is gone or not yet there
    |   +-- ReadOnly                  the store or the repository takes no changes; ``why`` says why
    +-- Unauthenticated           UNAUTHENTICATED      who asks has not shown who it is, or not rightly
    +-- PermissionRefused         PERMISSION_DENIED
    +-- Conflict                  ABORTED              a compare-and-set lost; read again, then retry
    |   +-- BasesGone                 what a pack builds on was dropped while it was taken; send it again
    |   +-- RingStale                 the caller goes by an older ring of nodes; take the new one, then retry
    +-- Stopped                   ABORTED              an operation that was told to stop; it can go on
    +-- LimitExceeded             RESOURCE_EXHAUSTED   a bound of limits.py
    |   +-- StorageFull               no space on the disk or in the map; nothing was written
    |   +-- QuotaExceeded             a repository or an owner would have more than it may
    |   +-- RateLimited               too much at once or in a short time; ``retry_after_s`` says when to come again
    |       +-- Overloaded                whoever asks: the server is busy
    +-- Unavailable               UNAVAILABLE          retry the same call
    |   +-- HookFailed                a hook could not be asked, or gave no answer
    |   +-- OutcomeUnknown            no answer came: it may have been done, or be done later; look before going on
    |   +-- HistoryGone               that revision of etcd was compacted away
    +-- DataLoss                  DATA_LOSS            stored bytes are missing or damaged
    |   +-- BlockCorrupt
    |   +-- JournalCorrupt
    |   +-- BackupCorrupt               an object of a backup is missing or damaged
    +-- Internal                  INTERNAL             a mistake of ours

Messages are static, lower case and factual; the facts stand beside them as keyword arguments:

    raise ObjectMissing("object is not in the repository", oid=hex_of(oid), repository=name)
"""

from __future__ import annotations

from typing import ClassVar


class ShardgitError(Exception):
    """The root of every error that shardgit raises on purpose.

    ``message`` is static text; ``facts`` are the values that go with it, JSON-friendly.
    ``reason`` is the stable UPPER_SNAKE name used in google.rpc.ErrorInfo and in ``--json``.
    """

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, /, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    @property
    def reason(self) -> str:
        """The error's stable name: the class name in UPPER_SNAKE form."""
        name = type(self).__name__
        return "".join("_" + c if c.isupper() and i else c for i, c in enumerate(name)).upper()

    def __str__(self) -> str:
        """Message and facts on one line."""
        if not self.facts:
            return self.message
        return f"{self.message} ({', '.join(f'{k}={v}' for k, v in self.facts.items())})"


class InvalidArgument(ShardgitError):
    """The caller's words are off."""

    code = "INVALID_ARGUMENT"


class MalformedInput(InvalidArgument):
    """Bytes from outside break the format they claim."""


class MalformedPack(MalformedInput):
    """A pack, one of its entries or a delta is broken."""


class MalformedObject(MalformedInput):
    """A Git object does not parse as its type."""


class FsckRefused(MalformedInput):
    """Objects that fsck does not let pass; ``lines`` says which, in git's words."""


class CollisionAttack(MalformedInput):
    """An object was made to have the SHA-1 of another one; ``oid`` says which."""


class MalformedPacket(MalformedInput):
    """A pkt-line or a protocol request is broken."""


class InvalidRefName(InvalidArgument):
    """A ref name that ``git check-ref-format`` refuses, or that is too long."""


class InvalidRepositoryName(InvalidArgument):
    """A repository name outside the allowed form."""


class LfsObjectRefused(InvalidArgument):
    """The bytes of a Git LFS object do not match its id or size."""


class NotFound(ShardgitError):
    """What was asked for is not there."""

    code = "NOT_FOUND"


class RepositoryMissing(NotFound):
    """No repository has that name."""


class RefMissing(NotFound):
    """The repository has no such ref."""


class ObjectMissing(NotFound):
    """The repository cannot reach such an object."""


class PathMissing(NotFound):
    """The tree has no such path."""


class ShardMissing(NotFound):
    """The store has no such shard."""


class NodeMissing(NotFound):
    """The cluster has no such node."""


class KeyMissing(NotFound):
    """The store has no such public key."""


class TokenMissing(NotFound):
    """The store has no such token."""


class QuotaMissing(NotFound):
    """The owner has no quota."""


class MirrorMissing(NotFound):
    """The repository follows no other."""


class LfsObjectMissing(NotFound):
    """The repository sees no such Git LFS object."""


class LfsOff(NotFound):
    """Git LFS is off for the repository."""


class LockMissing(NotFound):
    """The repository has no such Git LFS lock."""


class BackupMissing(NotFound):
    """There is no such backup, or no backup of that moment."""


class AlreadyExists(ShardgitError):
    """What was to be made is there already."""

    code = "ALREADY_EXISTS"


class RepositoryExists(AlreadyExists):
    """A repository has that name already."""


class ObjectCollision(AlreadyExists):
    """An object id exists already with other bytes."""


class LockExists(AlreadyExists):
    """The path has a Git LFS lock already."""


class Refused(ShardgitError):
    """The state of the store forbids the operation."""

    code = "FAILED_PRECONDITION"


class StoreFormatUnknown(Refused):
    """The store was written in a format that this version does not know."""


class StoreBusy(Refused):
    """Another process holds what the operation needs."""


class NotAStore(Refused):
    """The folder holds no shardgit store."""


class LogPositionUnknown(Refused):
    """A place in a ref log that was deleted, or that no log row has reached."""


class ReadOnly(Refused):
    """The store or the repository takes no changes; ``why`` says why."""


class HookRefused(Refused):
    """A hook of the repository does not let the push pass."""


class Unauthenticated(ShardgitError):
    """Who asks has not shown who it is, or not rightly."""

    code = "UNAUTHENTICATED"


class PermissionRefused(ShardgitError):
    """The principal may not do that."""

    code = "PERMISSION_DENIED"


class Conflict(ShardgitError):
    """A compare-and-set lost against another writer."""

    code = "ABORTED"


class BasesGone(Conflict):
    """What a pack builds on was dropped by gc while the pack was being taken; sending it again works."""


class RingStale(Conflict):
    """The caller goes by an older ring of nodes than the one it asks; ``epoch`` says by which that one goes."""


class Stopped(ShardgitError):
    """A long operation was told to stop; what it has done stands, and it goes on when begun again."""

    code = "ABORTED"


class LimitExceeded(ShardgitError):
    """A bound of limits.py was passed; nothing was changed."""

    code = "RESOURCE_EXHAUSTED"


class StorageFull(LimitExceeded):
    """The disk or the map is full; nothing was written."""


class QuotaExceeded(LimitExceeded):
    """A repository or an owner would have more than its quota; ``used``, ``more`` and ``allowed`` say how much."""


class RateLimited(LimitExceeded):
    """Too much at once, or in a short time; ``retry_after_s`` says when to come again."""


class Overloaded(RateLimited):
    """The server has more to do than it can; ``retry_after_s`` says when to come again."""


class Unavailable(ShardgitError):
    """A passing fault; the same call may go through later."""

    code = "UNAVAILABLE"


class HookFailed(Unavailable):
    """A hook could not be asked, or gave no answer."""


class OutcomeUnknown(Unavailable):
    """No answer came: what was asked for may have been done, or be done later."""


class HistoryGone(Unavailable):
    """A revision of etcd that is asked for was compacted away."""


class DataLoss(ShardgitError):
    """Stored bytes are missing or damaged."""

    code = "DATA_LOSS"


class BlockCorrupt(DataLoss):
    """A block's bytes do not match its id or its format."""


class JournalCorrupt(DataLoss):
    """A journal row does not match its checksum or its format."""


class BackupCorrupt(DataLoss):
    """An object of a backup is missing or damaged."""


class Internal(ShardgitError):
    """A mistake of ours."""


def of_reason(reason: str, message: str, **facts: object) -> ShardgitError:
    """Return the error whose ``reason`` this is, a plain ShardgitError when none has it."""
    kind = globals().get("".join(part.capitalize() for part in reason.split("_")))
    if not (isinstance(kind, type) and issubclass(kind, ShardgitError)):
        kind = ShardgitError
    return kind(message, **facts)
