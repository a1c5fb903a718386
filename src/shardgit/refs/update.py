"""What is to become of a ref."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shardgit.errors import Conflict, InvalidArgument, Refused
from shardgit.refs.name import check_ref_name
from shardgit.refs.ref import Ref

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.oid import HashKind, ObjectId


class Old(enum.Enum):
    """Stands for an old value that is not compared."""

    ANY = 0


ANY: Final = Old.ANY


@dataclass(frozen=True, slots=True)
class RefUpdate:
    """One ref's change: from ``old`` (None: must be missing) to ``new`` or ``symbolic``.

    Neither deletes it. ``peeled`` is what a tag at ``new`` peels to. ``old`` is compared with the
    ref itself: a symbolic ref has no object, so only ANY fits it. ``old_symbolic`` is compared with
    what a symbolic ref points to, then ``old`` is ANY.
    """

    name: bytes
    old: ObjectId | Old | None
    new: ObjectId | None
    peeled: ObjectId | None = None
    symbolic: bytes | None = None
    old_symbolic: bytes | None = None

    @property
    def stands(self) -> bool:
        """False for a deletion."""
        return self.new is not None or self.symbolic is not None

    @property
    def ref(self) -> Ref:
        """The ref as it shall be; one that does not stand is a deletion."""
        return Ref(self.name, self.new, self.symbolic, self.peeled)


def check_ref(ref: Ref, hash_kind: HashKind) -> None:
    """Raise InvalidRefName or InvalidArgument for a ref that no such repository may hold."""
    check_ref_name(ref.name)
    if ref.symbolic is not None:
        check_ref_name(ref.symbolic)
        if ref.target is not None:
            raise InvalidArgument("ref has a target and a symbolic target", ref=_shown(ref.name))
    for oid in (ref.target, ref.peeled):
        if oid is not None and (len(oid) != hash_kind.size or oid == hash_kind.null):
            raise InvalidArgument("ref has an impossible object id", ref=_shown(ref.name))
    if ref.peeled is not None and ref.target is None:
        raise InvalidArgument("ref peels without a target", ref=_shown(ref.name))


def check_old(update: RefUpdate, now: Ref | None) -> None:
    """Raise Conflict unless the ref is as the update expects it."""
    if update.old_symbolic is not None and (now is None or now.symbolic != update.old_symbolic):
        raise Conflict(
            "symbolic ref does not point where it should",
            ref=_shown(update.name),
            expected=_shown(update.old_symbolic),
            actual=_shown(now.symbolic) if now is not None and now.symbolic is not None else None,
        )
    if isinstance(update.old, Old):
        return
    symbolic = now is not None and now.symbolic is not None
    target = now.target if now is not None else None
    if symbolic or target != update.old:
        raise Conflict(
            "ref is not at the expected object",
            ref=_shown(update.name),
            expected=update.old.hex() if update.old else None,
            actual=target.hex() if target else None,
        )


class Folders:
    """Keeps a ref and a folder of refs apart that have one name.

    ``stands`` and ``below`` (a name under that folder) tell of the refs that were there and stay.
    """

    def __init__(
        self, stands: Callable[[bytes], bool], below: Callable[[bytes], bytes | None]
    ) -> None:
        self._stands = stands
        self._below = below
        self._added: set[bytes] = set()
        self._folders: dict[bytes, bytes] = {}  # of added names, with one of them
        self._free: set[bytes] = set()

    def add(self, name: bytes) -> None:
        """Take in a name that was not there.

        Refused when it is a folder of another ref, or has a ref as its folder; nothing is taken in
        then.
        """
        other = self._folders.get(name) or self._below(name + b"/")
        if other is not None:
            raise Refused("ref is a folder of another", ref=_shown(name), other=_shown(other))
        folders = []
        at = name
        while (end := at.rfind(b"/")) > len(b"refs"):
            at = at[:end]
            if at in self._folders:
                break  # and so are those above it
            if at in self._added or (at not in self._free and self._stands(at)):
                raise Refused("ref lies below another", ref=_shown(name), other=_shown(at))
            self._free.add(at)
            folders.append(at)
        self._folders.update((folder, name) for folder in folders)
        self._added.add(name)


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "replace")
