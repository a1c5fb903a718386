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
from shardgit.workers import tenant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shardgit.service.gate import Gate

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

    def beginnings(self, action: Action) -> tuple[str, ...]:
        """Return with what names begin for which an action may be allowed, sorted, none of them within another."""
        if self.admin:
            return ("",)
        globs = self.write if action is Action.WRITE else (*self.read, *self.write)
        firsts = sorted(
            {each.encode()[: _glob(each).fixed].decode("utf-8", "ignore") for each in globs}
        )
        kept: list[str] = []
        for first in firsts:
            if not kept or not first.startswith(kept[-1]):
                kept.append(first)
        return tuple(kept)


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

    ``proved``: it has shown that it is who it says; others are named for the log alone. ``delegated``: a front end
    asks for that one, and may do everything itself.
    """

    name: str
    address: str = ""
    rights: Rights = NOTHING
    proved: bool = False
    delegated: bool = False


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a token or a key stands for, and what it allows."""

    name: str
    rights: Rights


ANONYMOUS = Principal("anonymous")


class Call:
    """A call under way: who asks, what it has asked to change, and which repositories it is at."""

    __slots__ = ("again", "asked", "gate", "inside", "principal")

    def __init__(
        self,
        principal: Principal,
        gate: Gate | None = None,
        again: Callable[[], Principal] | None = None,
    ) -> None:
        self.principal = principal
        self.gate = gate
        self.again = again
        self.asked: dict[tuple[Action, str | None], None] = {}
        self.inside: set[str] = set()

    def at(self, repository: str) -> None:
        """Take note that it is at a repository, for whose owner its jobs are. Errors: RateLimited."""
        if repository in self.inside:
            return
        if self.gate is not None:
            self.gate.enter_repository(repository)
        self.inside.add(repository)
        tenant.set(repository.partition("/")[0])

    def check_still(self, repository: str) -> None:
        """Look again who asks and whether that one may read: of a call that lasts. Usable from any thread.

        Errors: as of ``authorize``, and Unauthenticated for a token that was revoked or has ended.
        """
        principal = self.principal if self.again is None else self.again()
        authorize(principal, Action.READ, repository)

    def end(self) -> None:
        """Leave; once."""
        gate, self.gate = self.gate, None
        if gate is None:
            return
        gate.leave(self.principal)
        for repository in self.inside:
            gate.leave_repository(repository)


_call: ContextVar[Call | None] = ContextVar("call", default=None)


def caller() -> Principal:
    """Return who asks for the call under way in this task."""
    call = _call.get()
    return ANONYMOUS if call is None else call.principal


def current_call() -> Call | None:
    """Return the call under way in this task."""
    return _call.get()


def begin_call(
    principal: Principal,
    gate: Gate | None = None,
    again: Callable[[], Principal] | None = None,
) -> Call:
    """Say who asks for the call that begins in this task; its ``end`` is due. Errors: as of Gate.enter.

    ``again`` finds out anew who asks, for calls that last.
    """
    tenant.set("")
    if gate is not None:
        gate.enter(principal)
    call = Call(principal, gate, again)
    _call.set(call)
    return call


def authorize(
    principal: Principal, action: Action, repository: str | None, *, makes: bool = False
) -> None:
    """Raise unless ``principal`` may do ``action`` (to a repository, or to the store with None).

    A repository that one may not read is not there for that one, unless ``makes``: it is to be made.

    Errors: Unauthenticated for who has not said who it is, RepositoryMissing, PermissionRefused.
    """
    call = _call.get()
    if call is not None and action is not Action.READ:
        call.asked[action, repository] = None
    if principal.rights.allow(action, repository):
        if call is not None and repository is not None:
            call.at(repository)
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
    authorize(caller(), action, repository, makes=makes)


def trusted(name: str, address: str = "") -> Principal:
    """Return a principal that may do everything: who has the store's folder, or is ours."""
    return Principal(name, address, EVERYTHING, proved=True)
