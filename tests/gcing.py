"""Small histories made by hand, pushed and collected: what tests of gc share."""

from __future__ import annotations

import itertools
import random
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reference.packs import PackMaker, delta

from shardgit.graph.closure import bit
from shardgit.journal.interface import END
from shardgit.objects import ObjectType, object_id
from shardgit.oid import HashKind, ObjectId
from shardgit.operate.gc import GcOptions, gc
from shardgit.operate.named import named_blocks
from shardgit.operate.naming import Following
from shardgit.operate.operation import silent_control
from shardgit.pack.builder import PackBuilder
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.access import trusted
from shardgit.service.look import Look
from shardgit.service.push import Push

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.oid import BlockId
    from shardgit.operate.gc import GcResult
    from shardgit.service.push import Pushed
    from shardgit.service.store import Store

ME = trusted("tester")
MAIN = b"refs/heads/main"
AT_ONCE = GcOptions(grace_s=0, orphan_age_s=0, wait_s=5, garbage_min=0)
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Made:
    """A commit with a tree and blobs of its own."""

    id: ObjectId
    objects: tuple[tuple[int, bytes], ...]  # type and bytes
    ids: frozenset[ObjectId]  # of these
    kind: HashKind = HashKind.SHA1

    @property
    def pack(self) -> bytes:
        """A pack of the commit's own objects."""
        builder = PackBuilder(self.kind)
        for type_, data in self.objects:
            builder.add(type_, data)
        return builder.finish()


def commit(
    *parents: Made, text: bytes | None = None, kind: HashKind = HashKind.SHA1, size: int = 300
) -> Made:
    """Return a new commit on parents; a file of its own is in it, of some bytes that do not deflate."""
    number = next(_numbers)
    said = text if text is not None else b"%d " % number
    data = said + random.Random(number).randbytes(size)
    blob = object_id(ObjectType.BLOB, [data], len(data), kind)
    tree = b"100644 file\0" + blob
    tree_id = object_id(ObjectType.TREE, [tree], len(tree), kind)
    lines = [b"tree " + tree_id.hex().encode()]
    lines += [b"parent " + parent.id.hex().encode() for parent in parents]
    lines += [
        b"%s me <me@x> %d +0000" % (who, 1_700_000_000 + number)
        for who in (b"author", b"committer")
    ]
    body = b"\n".join(lines) + b"\n\n%d\n" % number
    oid = object_id(ObjectType.COMMIT, [body], len(body), kind)
    objects = ((ObjectType.BLOB, data), (ObjectType.TREE, tree), (ObjectType.COMMIT, body))
    return Made(oid, objects, frozenset({blob, tree_id, oid}), kind)


def start(
    store: Store, name: str, ref: bytes, old: Made | None, new: Made | None, *packs: Made
) -> Push:
    """Return a push that was taken and checked, and waits for its commit."""
    command = Command(ref, old.id if old else None, new.id if new else None)
    made = Push(store, name, PushRequest((command,)), principal=ME)
    if packs:
        builder = PackBuilder(packs[0].kind)
        for one in packs:
            for type_, data in one.objects:
                builder.add(type_, data)
        made.take(builder.finish())
    made.check()
    return made


def push(
    store: Store, name: str, ref: bytes, old: Made | None, new: Made | None, *packs: Made
) -> Pushed:
    """Push one command; it must be accepted."""
    done = start(store, name, ref, old, new, *packs).commit()
    assert done.results[0].error is None, done.results
    return done


def push_delta(store: Store, old: Made, base: Made) -> Made:
    """Push a commit to main whose file is a REF_DELTA on that of ``base``; returns it."""
    (_, was), *_ = base.objects
    data = was[:9_000] + b"changed" + was[9_000:]
    blob = object_id(ObjectType.BLOB, [data], len(data), HashKind.SHA1)
    tree = b"100644 file\0" + blob
    tree_id = object_id(ObjectType.TREE, [tree], len(tree), HashKind.SHA1)
    who = b"me <me@x> 1800000000 +0000"
    body = b"tree %s\nparent %s\nauthor %s\ncommitter %s\n\nnear\n" % (
        tree_id.hex().encode(),
        old.id.hex().encode(),
        who,
        who,
    )
    oid = object_id(ObjectType.COMMIT, [body], len(body), HashKind.SHA1)
    pack = PackMaker()
    pack.add(ObjectType.COMMIT, body)
    pack.add(ObjectType.TREE, tree)
    pack.ref(object_id(ObjectType.BLOB, [was], len(was), HashKind.SHA1), delta(was, data))
    made = Push(store, "demo", PushRequest((Command(MAIN, old.id, oid),)), principal=ME)
    made.take(pack.pack())
    made.check()
    assert made.commit().results[0].error is None
    objects = ((ObjectType.BLOB, data), (ObjectType.TREE, tree), (ObjectType.COMMIT, body))
    return Made(oid, objects, frozenset({blob, tree_id, oid}))


def collected(store: Store, options: GcOptions = AT_ONCE) -> GcResult:
    """Run gc; what nothing names is gone afterwards, and all that is named is there."""
    done = gc(store, options, control=silent_control())
    assert not done.damaged
    return done


def assert_no_leak(store: Store) -> None:
    """The blocks that are there are those that the journal names, exactly; gc and verify agree on which these are.

    But for those that a settle that was killed has put out of a root that stands still.
    """
    named = named_blocks(store, control=silent_control())
    assert {block for _, block in followed(store)} == named.blocks
    there = {block for block, _ in store.blocks.scan_sync()}
    assert named.blocks <= there <= named.blocks | named.embedded


def followed(store: Store) -> set[tuple[bytes, BlockId]]:
    """Return the blocks that rows lead to as verify and backups follow them, each with the table of its row."""
    following = Following(store.blocks)
    with store.journal.snapshot() as snapshot:
        rows = list(snapshot.range(b"\0", END))
    return {(row.key[:1], block) for row in rows for block in following.of(row)}


def assert_whole(store: Store, name: str, *ids: ObjectId) -> None:
    """The repository reaches exactly what its refs say, and each object is what its id says."""
    look = Look(store, name)
    reachable = [
        at for at in range(look.view.objects if look.view else 0) if bit(look.reachable, at)
    ]
    found = look.view.read_positions(reachable) if look.view else []
    for one in found:
        assert object_id(one.type, [one.data], len(one.data), look.record.hash_kind) == one.id
    assert set(ids) <= {one.id for one in found}


def in_pool(store: Store, name: str, *ids: ObjectId) -> list[bool]:
    """Say which objects the repository's pool has, whoever reaches them."""
    return [at >= 0 for at in Look(store, name).positions_in_pool(list(ids))]


def without_grace(**more: object) -> GcOptions:
    """Return options as AT_ONCE with some others."""
    return replace(AT_ONCE, **more)  # type: ignore[arg-type]


def clone_and_fsck(url: str, folder: Path) -> None:
    """Have git clone all of a repository and check it."""
    for words in (
        ["clone", "-q", "--mirror", url, str(folder)],
        ["-C", str(folder), "fsck", "--strict", "--full"],
    ):
        subprocess.run(["git", *words], check=True, timeout=120, capture_output=True)
