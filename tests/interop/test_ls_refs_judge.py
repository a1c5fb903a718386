"""Listings of refs are git's, byte for byte: rendered from pages, with loose rows over them."""

from __future__ import annotations

import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest
from reference.gits import git, make_history

from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.protocol.upload_pack import LsRefs
from shardgit.refs.update import ANY, RefUpdate
from shardgit.refs.writer import RefWriter
from shardgit.service.fetch import FetchService
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
MANY = 20_000


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_history(tmp_path_factory.mktemp("ls") / "work", commits=12)
    head = git(made, "rev-parse", "HEAD").decode().strip()
    git(made, "tag", "-a", "-m", "x", "annotated")
    git(made, "tag", "-a", "-m", "x", "twice", "annotated")
    lines = [f"create refs/pull/{n}/head {head}\n" for n in range(MANY)]
    git(made, "update-ref", "--stdin", stdin="".join(lines).encode())
    git(made, "symbolic-ref", "refs/pull/latest", "refs/pull/77/head")
    git(made, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    git(made, "pack-refs", "--all")
    return made


@pytest.fixture(scope="module")
def store(work: Path) -> Iterator[Store]:
    data = work.parent / "data"
    create_store(data)
    with open_store(data) as opened:
        import_repository(opened, "r", str(work))
        _move(opened, work)
        yield opened


def _move(store: Store, work: Path) -> None:
    """Change some refs on both sides, one by one, so that they lie loose."""
    old = git(work, "rev-parse", "main~1").decode().strip()
    chance = random.Random(4)
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, "r")
    names = [f"refs/pull/{n}/head" for n in chance.sample(range(MANY), 60)]
    updates = [RefUpdate(name.encode(), ANY, ObjectId(bytes.fromhex(old))) for name in names[:40]]
    updates += [RefUpdate(name.encode(), ANY, None) for name in names[40:]]
    RefWriter(store.refs, store.journal, store.workers).update_sync(record, updates)
    lines = [f"update {name} {old}\n" for name in names[:40]]
    lines += [f"delete {name}\n" for name in names[40:]]
    git(work, "update-ref", "--stdin", stdin="".join(lines).encode())


def gits(work: Path, words: list[str]) -> bytes:
    head = ["command=ls-refs", "object-format=sha1"]
    body = b"".join(b"%04x%s\n" % (len(line) + 5, line.encode()) for line in head) + b"0001"
    body += b"".join(b"%04x%s\n" % (len(line) + 5, line.encode()) for line in words) + b"0000"
    return subprocess.run(
        ["git", "upload-pack", "--stateless-rpc", str(work)],
        input=body,
        capture_output=True,
        check=True,
        env={**os.environ, "GIT_PROTOCOL": "version=2"},
    ).stdout


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        ([], LsRefs()),
        (["peel", "symrefs", "unborn"], LsRefs(peel=True, symrefs=True, unborn=True)),
        (["peel"], LsRefs(peel=True)),
        (
            ["symrefs", "ref-prefix refs/heads/", "ref-prefix refs/pull/1"],
            LsRefs(symrefs=True, prefixes=(b"refs/heads/", b"refs/pull/1")),
        ),
        (["symrefs", "ref-prefix HEAD"], LsRefs(symrefs=True, prefixes=(b"HEAD",))),
        (["peel", "ref-prefix refs/tags/"], LsRefs(peel=True, prefixes=(b"refs/tags/",))),
        (["ref-prefix refs/none/"], LsRefs(prefixes=(b"refs/none/",))),
    ],
)
async def test_ls_refs_answers_what_git_answers(
    store: Store, work: Path, words: list[str], request_: LsRefs
) -> None:
    service = FetchService(store, version="x")
    ours = [piece async for piece in service.ls_refs("r", request_)]
    assert b"".join(ours) == gits(work, words)
    assert all(len(piece) < 2 << 20 for piece in ours)
    again = [piece async for piece in service.ls_refs("r", request_)]
    assert b"".join(again) == b"".join(ours)


async def test_the_advertisement_is_gits_behind_its_capabilities(store: Store, work: Path) -> None:
    service = FetchService(store, version="x")
    terms = await service.terms("r")
    ours = b"".join([piece async for piece in service.advertisement("r", terms)])
    theirs = subprocess.run(
        ["git", "upload-pack", "--http-backend-info-refs", str(work)],
        capture_output=True,
        check=True,
        env={key: value for key, value in os.environ.items() if key != "GIT_PROTOCOL"},
    ).stdout
    assert ours.split(b"\n", 1)[1] == theirs.split(b"\n", 1)[1]
    assert ours.split(b"\0", 1)[0][4:] == theirs.split(b"\0", 1)[0][4:]
