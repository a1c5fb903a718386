"""The wire's messages as values, and back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, TypeVar

from shardgit.aio.values import (
    Commit,
    ObjectFacts,
    Person,
    Ref,
    RefChange,
    RefLogEntry,
)
from shardgit.oid import HashKind, ObjectId
from shardgit.refs.update import Old, RefUpdate
from shardgit.service.configuring import SettingsView
from shardgit.service.repositories import RepositoryInfo
from shardgit.v1 import (
    commit_pb2,
    common_pb2,
    ref_pb2,
    repository_pb2,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable


T = TypeVar("T")


async def each(source: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Yield from either kind of iterable."""
    if isinstance(source, AsyncIterable):
        async for one in source:
            yield one
    else:
        for one in source:
            yield one


def as_bytes(text: str | bytes) -> bytes:
    """Return text as UTF-8, bytes as they are."""
    return text.encode() if isinstance(text, str) else text


def settings_of(answer: Any) -> SettingsView:
    """Return an answer's settings."""
    return SettingsView(
        {one.key: json.loads(one.value) for one in answer.settings},
        tuple(one.key for one in answer.settings if not one.is_default),
        answer.revision,
    )


def hash_kind_name(kind: HashKind) -> str:
    """Return a hash kind's name on the wire."""
    return str(common_pb2.HashKind.Name(int(kind)))


def facts_of(answer: Any) -> list[ObjectFacts]:
    """Return an answer's columns as rows."""
    size = len(answer.ids) // len(answer.types) if answer.types else 1
    names = [ObjectId(answer.ids[at : at + size]) for at in range(0, len(answer.ids), size)]
    return [ObjectFacts(*row) for row in zip(names, answer.types, answer.sizes, strict=True)]


def repository_of(one: repository_pb2.Repository) -> RepositoryInfo:
    """Return a repository."""
    return RepositoryInfo(
        one.id, one.name, HashKind(one.hash_kind), one.created_ms, one.head, one.forked_from
    )


def ref_of(one: ref_pb2.Ref) -> Ref:
    """Return a ref."""
    return Ref(
        one.name,
        ObjectId(one.target) if one.target else None,
        ObjectId(one.peeled) if one.peeled else None,
        one.symbolic or None,
    )


def update_message(one: RefUpdate) -> ref_pb2.RefUpdate:
    """Return an update as a message."""
    made = ref_pb2.RefUpdate(name=one.name, new=one.new or b"", symbolic=one.symbolic or b"")
    if one.old_symbolic is not None:
        made.old_symbolic = one.old_symbolic
    elif not isinstance(one.old, Old):
        made.old = one.old or b""
    return made


def ref_change_of(change: Any) -> RefChange:
    """Return a change of a ref."""
    return RefChange(
        change.name,
        ObjectId(change.old) if change.old else None,
        ObjectId(change.new) if change.new else None,
        change.old_symbolic or None,
        change.new_symbolic or None,
        ObjectId(change.new_peeled) if change.new_peeled else None,
    )


def log_entry_of(one: Any, *, more: bool = False, token: int = 0) -> RefLogEntry:
    """Return an entry of a ref log."""
    changes = tuple(ref_change_of(change) for change in one.changes)
    return RefLogEntry(
        one.sequence,
        one.time_ms,
        one.actor,
        one.message,
        one.address,
        changes,
        one.change_count,
        one.certificate,
        more,
        token,
    )


def person_of(one: commit_pb2.Signature) -> Person:
    """Return a person."""
    return Person(one.name, one.email, one.seconds, one.zone)


def commit_of(one: commit_pb2.Commit) -> Commit:
    """Return a commit."""
    parents = tuple(ObjectId(oid) for oid in one.parents)
    author, committer = person_of(one.author), person_of(one.committer)
    return Commit(ObjectId(one.id), ObjectId(one.tree), parents, author, committer, one.message)
