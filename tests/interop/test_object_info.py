"""object-info: sizes byte for byte as git's own server tells them, and nothing of what no ref reaches."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from reference.gits import ENVIRONMENT, git, make_history

from shardgit.errors import InvalidArgument
from shardgit.node import create_store, open_store
from shardgit.protocol.object_info import ObjectInfoRequest
from shardgit.protocol.pktline import Mark, Packet, decode, encode
from shardgit.protocol.upload_pack_v2 import parse_v2
from shardgit.service import object_info as module
from shardgit.service.importing import import_repository
from shardgit.service.object_info import object_info

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop


def body(ids: list[str], *words: str, algorithm: str = "sha1") -> bytes:
    head: list[Packet] = [b"command=object-info", f"object-format={algorithm}".encode(), Mark.DELIM]
    lines = [*words, *[f"oid {name}" for name in ids]]
    return encode([*head, *[text.encode() for text in lines], Mark.FLUSH])


def judge(source: Path, request: bytes) -> bytes:
    words = ["-c", "transfer.advertiseObjectInfo=true", "upload-pack", "--stateless-rpc"]
    done = subprocess.run(
        ["git", *words, str(source)],
        input=request,
        capture_output=True,
        check=False,
        env={**os.environ, **ENVIRONMENT, "GIT_PROTOCOL": "version=2"},
    )
    return done.stdout


async def ours(store: Store, request: bytes) -> bytes:
    with store.journal.snapshot() as snapshot:
        kind = store.repository(snapshot, "demo").hash_kind
    command = parse_v2(request, kind)
    assert isinstance(command, ObjectInfoRequest)
    return b"".join([piece async for piece in object_info(store, "demo", command)])


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
async def test_answers_are_gits(
    tmp_path: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_IDS", 7)
    source = make_history(tmp_path / "origin", commits=12, algorithm=algorithm)
    ids = [line.split()[0].decode() for line in git(source, "rev-list", "--objects", "--all")
           .splitlines()]  # fmt: skip
    absent = "1" * len(ids[0])
    create_store(tmp_path / "data", shards=2)
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(source))
        for some, words in (
            ([*ids, absent, ids[0], absent], ["size"]),
            ([absent], ["size"]),
            ([], ["size"]),
        ):
            request = body(some, *words, algorithm=algorithm)
            assert await ours(store, request) == judge(source, request)
        # Without "size" only whether it is there. (git 2.39 reads an unset variable there.)
        bare = decode(await ours(store, body([ids[0], absent], algorithm=algorithm)))
        assert bare == [ids[0].encode(), absent.encode() + b" ", Mark.FLUSH]


async def test_an_object_that_no_ref_reaches_reads_as_one_that_never_was(tmp_path: Path) -> None:
    source = make_history(tmp_path / "origin", commits=12)
    gone = git(source, "rev-parse", "other").decode().strip()
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(source))
        git(source, "reset", "-q", "--hard", "main~1")
        git(source, "branch", "-qD", "other")
        git(source, "tag", "-d", "light")
        import_repository(store, "demo", str(source))
        tip = git(source, "rev-parse", "main").decode().strip()
        head, told, untold, end = decode(await ours(store, body([tip, gone], "size")))
        assert (head, untold, end) == (b"size", gone.encode() + b" ", Mark.FLUSH)
        size = git(source, "cat-file", "-s", tip).strip()
        assert told == tip.encode() + b" " + size


async def test_an_empty_repository_has_no_objects(tmp_path: Path) -> None:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        store.create_repository("demo")
        answer = decode(await ours(store, body(["1" * 40], "size")))
        assert answer == [b"size", b"1" * 40 + b" ", Mark.FLUSH]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["type"], "object-info: unexpected line: 'type'"),
        (["oid 12"], "object-info: protocol error, expected to get oid, not '12'"),
    ],
)
async def test_what_does_not_parse_is_refused_in_gits_words(
    tmp_path: Path, words: list[str], told: str
) -> None:
    git(tmp_path, "init", "-q", "origin")
    request = body([], *words)
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        store.create_repository("demo")
        with pytest.raises(InvalidArgument) as caught:
            await ours(store, request)
    assert str(caught.value) == told
    assert told.encode() in judge(tmp_path / "origin", request)
