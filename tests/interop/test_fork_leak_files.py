"""What only a fork reaches leaves by none of its siblings' files: bundles, packs by URI, archives,
nor by object-info.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from reference.gits import git, make_history, reachable

from shardgit.errors import InvalidArgument
from shardgit.journal.interface import Compare, Put
from shardgit.journal.records import repository_key
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.protocol.object_info import ObjectInfoRequest
from shardgit.protocol.upload_pack import Fetch
from shardgit.service import static_packs as static_module
from shardgit.service.archive import archive
from shardgit.service.bundles import Bundles
from shardgit.service.fetch import FetchService
from shardgit.service.forks import fork
from shardgit.service.importing import import_repository
from shardgit.service.object_info import object_info
from shardgit.service.static_packs import StaticPacks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
SIBLINGS = ("base", "sister")
OPEN = b'{"fetch": {"archive_unreachable": true, "packfile_uris": true, "bundle_uri": "on"}}'


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return make_history(tmp_path / "work", commits=12)


@pytest.fixture
def store(work: Path) -> Iterator[Store]:
    """A fork network of which only the fork has the last commit; settings are as open as they go."""
    create_store(work.parent / "data")
    with open_store(work.parent / "data") as opened:
        import_repository(opened, "base", str(work))
        for name in ("fork", "sister"):
            fork(opened, "base", name)
        (work / "secret.txt").write_text("only in the fork\n")
        git(work, "add", "-A")
        git(work, "commit", "-qm", "secret")
        import_repository(opened, "fork", str(work), overwrite=True)
        for name in ("fork", *SIBLINGS):
            with opened.journal.snapshot() as snapshot:
                record = opened.repository(snapshot, name)
                row = snapshot.get(repository_key(record.id))
            assert row is not None
            key = repository_key(record.id)
            put = Put(key, replace(record, settings=OPEN).encode())
            opened.journal.commit_sync([Compare(key, row.revision)], [put])
        yield opened


def secret(work: Path, word: str = "HEAD") -> str:
    return git(work, "rev-parse", word).decode().strip()


def raw(name: str) -> ObjectId:
    return ObjectId(bytes.fromhex(name))


async def all_of(store: Store, name: str, *words: str) -> bytes:
    pieces = archive(store, name, [word.encode() for word in words])
    return b"".join([piece async for piece in pieces])


async def test_object_info_tells_nothing(store: Store, work: Path) -> None:
    ids = [secret(work, word) for word in ("HEAD", "HEAD^{tree}", "HEAD:secret.txt")]
    request = ObjectInfoRequest(tuple(map(raw, ids)), size=True)
    for name in SIBLINGS:
        told = b"".join([piece async for piece in object_info(store, name, request)])
        assert told == b"0008size" + b"".join(b"002d%s " % i.encode() for i in ids) + b"0000"
    told = b"".join([piece async for piece in object_info(store, "fork", request)])
    assert b"%s 17" % ids[2].encode() in told


async def test_archives_hold_nothing_and_name_nothing(store: Store, work: Path) -> None:
    tip = secret(work)
    for name in SIBLINGS:
        assert b"only in the fork" not in await all_of(store, name, "main")
        for word in (tip, tip[:10], f"{tip}:", secret(work, "HEAD^{tree}")):
            with pytest.raises(InvalidArgument, match="not a valid object name"):
                await all_of(store, name, word)
        with pytest.raises(InvalidArgument, match="not a valid object name"):
            await all_of(store, name, "main:secret.txt")
    assert b"only in the fork" in await all_of(store, "fork", tip)


async def test_bundles_hold_nothing_and_are_not_given_by_key(store: Store, work: Path) -> None:
    bundles = Bundles(store)
    theirs = await bundles.latest("fork")
    assert theirs is not None
    theirs.file.close()
    assert theirs.objects == len(reachable(work))
    for name in SIBLINGS:
        ours = await bundles.latest(name)
        assert ours is not None
        ours.file.close()
        assert ours.objects == theirs.objects - 3
        assert await bundles.kept(name, theirs.file.key) is None
    kept = await bundles.kept("fork", theirs.file.key)
    assert kept is not None
    kept.file.close()


async def test_packs_by_uri_are_the_repositorys_own(
    store: Store, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_module, "PACK_MIN_BYTES", 0)
    packs, service = StaticPacks(Bundles(store)), FetchService(store, version="1")
    theirs = None
    for name in ("fork", *SIBLINGS):
        with store.journal.snapshot() as snapshot:
            record = store.repository(snapshot, name)
            refs = [ref.target for ref in store.refs.list(snapshot, record) if ref.target]
        request = Fetch(
            2, tuple(refs), done=True, sideband=2, sideband_all=True, uri_protocols=("http",)
        )
        session = await service.session(name, request)
        found = await packs.offer(session, lambda bundle: bundle.tag)
        assert found is not None
        if theirs is None:
            theirs = found
            continue
        assert found.uri.trailer != theirs.uri.trailer
        assert await packs.bundles.kept(name, theirs.uri.uri.partition("-")[0]) is None
