"""One commit as a transaction of etcd, and what its answer says."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardgit.etcdpb import etcd_pb2 as pb
from shardgit.journal.etcd_rows import LEASED, encode_reference, encode_value, is_spilled
from shardgit.journal.interface import Compare, CompareRange, Delete, DeleteRange, Put

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardgit.journal.etcd_rows import EtcdKeys, Reference
    from shardgit.journal.interface import Condition, Operation
    from shardgit.journal.slots import Slot

REQUEST_ID_BYTES = 16


@dataclass(slots=True)
class Commit:
    """A commit that waits. ``references`` says where its large values lie, by their keys."""

    conditions: Sequence[Condition]
    operations: Sequence[Operation]
    answer: Callable[[int | BaseException], None]
    deadline: float  # by clock.monotonic
    id: bytes = field(default_factory=lambda: os.urandom(REQUEST_ID_BYTES))
    references: dict[bytes, Reference] = field(default_factory=dict)
    asked_s: float = field(default_factory=time.monotonic)

    def large(self) -> list[Put]:
        """Return the puts whose values go into a bundle."""
        return [
            one
            for one in self.operations
            if isinstance(one, Put) and is_spilled(one.key, one.value)
        ]

    def fences(self) -> list[Compare]:
        """Return the conditions that a session is there still."""
        return [
            one
            for one in self.conditions
            if isinstance(one, Compare) and one.revision and one.key.startswith(LEASED)
        ]

    @property
    def only_deletes(self) -> bool:
        """Say whether it may change nothing although it has operations."""
        return not any(isinstance(one, Put) for one in self.operations)


@dataclass(frozen=True, slots=True)
class Answer:
    """What etcd said to a commit.

    ``revision`` is the commit's when it ``won``, else the journal's. ``slot_revision`` is the slot's now: 0 when it is
    gone, so that the commit lost without a word on its own conditions. ``is_fenced``: it lost since a session is gone.
    """

    won: bool
    revision: int
    slot_revision: int
    is_fenced: bool = False


def _get(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))


def condition_of(condition: Condition, keys: EtcdKeys) -> pb.Compare:
    """Return a condition as etcd has it."""
    match condition:
        case Compare(key, revision):
            return pb.Compare(target=pb.Compare.MOD, key=keys.row(key), mod_revision=revision)
        case CompareRange(low, high, revision):
            return pb.Compare(
                result=pb.Compare.LESS,
                target=pb.Compare.MOD,
                key=keys.row(low),
                range_end=keys.row(high),
                mod_revision=revision + 1,
            )


def _operation_of(operation: Operation, commit: Commit, keys: EtcdKeys) -> pb.RequestOp:
    match operation:
        case Put(key, value):
            lies = commit.references.get(key)
            stored = encode_value(key, value) if lies is None else encode_reference(key, lies)
            return pb.RequestOp(request_put=pb.PutRequest(key=keys.row(key), value=stored))
        case Delete(key):
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=keys.row(key)))
        case DeleteRange(low, high):
            request = pb.DeleteRangeRequest(key=keys.row(low), range_end=keys.row(high))
            return pb.RequestOp(request_delete_range=request)


def _absent(operation: Operation, keys: EtcdKeys) -> pb.Compare:
    """Return the condition that a deletion deletes nothing."""
    absent = pb.Compare(target=pb.Compare.CREATE, create_revision=0)
    match operation:
        case DeleteRange(low, high):
            absent.key, absent.range_end = keys.row(low), keys.row(high)
        case Put(key) | Delete(key):
            absent.key = keys.row(key)
    return absent


def transaction_of(commit: Commit, keys: EtcdKeys, slot: Slot) -> pb.TxnRequest:
    """Return the transaction of a commit with operations.

    The head and the slot are two of the 128 operations that etcd takes. When nothing is put, a transaction inside sees
    whether anything is there to delete, and else leaves both alone.
    """
    done = [
        *(_operation_of(one, commit, keys) for one in commit.operations),
        slot.put(commit.id),
        pb.RequestOp(request_put=pb.PutRequest(key=keys.head)),
    ]
    if commit.only_deletes:
        absent = [_absent(one, keys) for one in commit.operations]
        inner = pb.TxnRequest(compare=absent, success=[_get(keys.head)], failure=done)
        done = [pb.RequestOp(request_txn=inner)]
    return pb.TxnRequest(
        compare=[*(condition_of(one, keys) for one in commit.conditions), slot.compare()],
        success=done,
        failure=[slot.get(), _get(keys.head), *_get_fences(commit, keys)],
    )


def _get_fences(commit: Commit, keys: EtcdKeys) -> list[pb.RequestOp]:
    return [_get(keys.row(one.key)) for one in commit.fences()]


def question_of(commit: Commit, keys: EtcdKeys) -> pb.TxnRequest:
    """Return the transaction of a commit without operations: it changes nothing, so it may be asked twice."""
    head = [_get(keys.head)]
    compare = [condition_of(one, keys) for one in commit.conditions]
    failure = [*head, *_get_fences(commit, keys)]
    return pb.TxnRequest(compare=compare, success=head, failure=failure)


def answer_of(response: pb.TxnResponse, slot: Slot | None, commit: Commit) -> Answer:
    """Return what etcd said to ``transaction_of``, or without a slot to ``question_of``."""
    if slot is None:
        head, *fences = response.responses
        is_fenced = not response.succeeded and _is_fenced(fences, commit)
        return Answer(response.succeeded, _revision_in(head), 0, is_fenced)
    if not response.succeeded:
        seen, head, *fences = response.responses
        return Answer(False, _revision_in(head), _revision_in(seen), _is_fenced(fences, commit))
    first = response.responses[0]
    if first.HasField("response_txn") and first.response_txn.succeeded:  # nothing to delete
        return Answer(True, _revision_in(first.response_txn.responses[0]), slot.revision)
    return Answer(True, response.header.revision, response.header.revision)


def _is_fenced(found: Sequence[pb.ResponseOp], commit: Commit) -> bool:
    return any(
        _revision_in(row) != fence.revision
        for row, fence in zip(found, commit.fences(), strict=True)
    )


def _revision_in(found: pb.ResponseOp) -> int:
    rows = found.response_range.kvs
    return rows[0].mod_revision if rows else 0
