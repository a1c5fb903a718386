"""The one door that every edge passes: who may do what."""

from __future__ import annotations

import enum
import functools
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import (
    InvalidArgument,
    PermissionRefused,
    RepositoryMissing,
    Unauthenticated,
)
from shardgit.wildmatch import Wildmatch

if TYPE_CHECKING:
    from collections.abc import Iterable

GLOB_MAX_BYTES = 512
GLOBS_MAX = 64


class Action(enum.Enum):
    """What a principal wants to do."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Rights:
    """Which repositories may be read and written, by globs over their names; who may write may read.

    ``*`` stands for anything within a part of a name, ``**`` for parts as well: ``team/*``, ``team/**``, ``**``.
    ``admin``: everything, on the store and on every repository.
    """

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    admin: bool = False

    def allow(self, action: Action, repository: str | None) -> bool:
        """Say whether an action is allowed; with None on the store, where any right allows to look around."""
        if self.admin:
            return True
        if action is Action.ADMIN:
            return False
        if repository is None:
            return action is Action.READ and bool(self.read or self.write)
        if any(_glob(each).matches(repository.encode()) for each in self.write):
            return True
        return action is Action.READ and any(
            _glob(each).matches(repository.encode()) for each in self.read
        )


EVERYTHING = Rights(admin=True)
NOTHING = Rights()
ALL_REPOSITORIES = Rights(read=("**",), write=("**",))


@functools.lru_cache(4_096)
def _glob(pattern: str) -> Wildmatch:
    return Wildmatch(pattern.encode(), path=True)


def check_globs(globs: Iterable[str]) -> tuple[str, ...]:
    """Return globs over repository names; InvalidArgument for what is none."""
    found = tuple(dict.fromkeys(globs))
    if len(found) > GLOBS_MAX:
        raise InvalidArgument("too many globs", limit=GLOBS_MAX)
    for each in found:
        if not each or not each.isprintable() or len(each.encode()) > GLOB_MAX_BYTES:
            raise InvalidArgument("glob is empty, too long or not printable", glob=each[:80])
    return found


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, the address of the peer ("" where there is none), and what that one may do.

    ``proved``: it has shown that it is who it says; others are named for the log alone.
    """

    name: str
    address: str = ""
    rights: Rights = NOTHING
    proved: bool = False


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a token or a key stands for, and what it allows."""

    name: str
    rights: Rights


ANONYMOUS = Principal("anonymous")

_caller: ContextVar[Principal] = ContextVar("caller", default=ANONYMOUS)
_asked: ContextVar[list[tuple[Action, str | None]] | None] = ContextVar("asked", default=None)


def caller() -> Principal:
    """Return who asks for the call under way in this task."""
    return _caller.get()


def calls(principal: Principal) -> None:
    """Say who asks for the call that begins in this task."""
    _caller.set(principal)
    _asked.set([])


def asked() -> list[tuple[Action, str | None]]:
    """Return what the call under way has asked to change so far, allowed or not."""
    return _asked.get() or []


def authorize(
    principal: Principal, action: Action, repository: str | None, *, makes: bool = False
) -> None:
    """Raise unless ``principal`` may do ``action`` (to a repository, or to the store with None).

    A repository that one may not read is not there for that one, unless ``makes``: it is to be made.

    Errors: Unauthenticated for who has not said who it is, RepositoryMissing, PermissionRefused.
    """
    if action is not Action.READ and (noted := _asked.get()) is not None:
        noted.append((action, repository))
    if principal.rights.allow(action, repository):
        return
    if not principal.proved:
        raise Unauthenticated("authentication is required")
    if repository is None:
        raise PermissionRefused("not allowed", action=action.value, actor=principal.name)
    if not makes and not principal.rights.allow(Action.READ, repository):
        raise RepositoryMissing("repository does not exist", repository=repository)
    raise PermissionRefused(
        "not allowed on this repository",
        action=action.value,
        repository=repository,
        actor=principal.name,
    )


def may(action: Action, repository: str | None, *, makes: bool = False) -> None:
    """Raise unless the caller of this task may do ``action``; see ``authorize``."""
    authorize(_caller.get(), action, repository, makes=makes)


def trusted(name: str, address: str = "") -> Principal:
    """Return a principal that may do everything: who has the store's folder, or is ours."""
    return Principal(name, address, EVERYTHING, proved=True)
