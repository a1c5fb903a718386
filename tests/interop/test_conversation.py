"""Conversations that keep their state: git as the client, and git's own upload-pack as the judge."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import re
import subprocess
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from daemon import daemon
from reference.gits import ENVIRONMENT, extend_history, git, make_history, reachable

from shardgit.errors import (
    InvalidArgument,
    MalformedPacket,
    ObjectMissing,
    RepositoryMissing,
    ShardgitError,
    Unavailable,
)
from shardgit.node import create_store, open_store
from shardgit.protocol.pktline import decode, line
from shardgit.service.access import trusted
from shardgit.service.conversation import Conversations, GitService, asked_version
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
ALGORITHMS = ["sha1", "sha256"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Repositories of both kinds, each with a clone beside it that went other ways."""
    folder = tmp_path_factory.mktemp("talk")
    found = {}  # dates rise, or git would not look behind the oldest have and say "ready" late
    for algorithm in ALGORITHMS:
        origin = make_history(folder / algorithm, commits=25, algorithm=algorithm)
        git(folder, "clone", "-q", str(origin), f"{algorithm}-ahead")
        ahead = folder / f"{algorithm}-ahead"
        extend_history(ahead, commits=40, rand=random.Random(3), first=16_000)
        extend_history(origin, commits=8, rand=random.Random(4), first=20_000)
        found[algorithm] = origin
    return found


@pytest.fixture(scope="module")
def store(sources: dict[str, Path]) -> Iterator[Store]:
    data = sources["sha1"].parent / "data"
    create_store(data, shards=2)
    with open_store(data) as opened:
        for name, path in sources.items():
            import_repository(opened, name, str(path))
        yield opened


@pytest.fixture
def talks(store: Store) -> Conversations:
    return Conversations(store, version="test")


async def run(folder: Path, *words: str, check: bool = True) -> bytes:
    return await asyncio.to_thread(git, folder, *words, check=check)


# ---- git as the client ----


@pytest.mark.parametrize("piece", [65_536, 7])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("version", ["0", "1", "2"])
async def test_clones_and_fetches_are_whole(
    talks: Conversations,
    sources: dict[str, Path],
    tmp_path: Path,
    version: str,
    algorithm: str,
    piece: int,
) -> None:
    source = sources[algorithm]
    protocol = ("-c", f"protocol.version={version}")
    async with daemon(talks, piece=piece) as edge:
        url = f"git://127.0.0.1:{edge.port}/{algorithm}.git"
        listed = await run(tmp_path, *protocol, "ls-remote", url)
        assert await run(tmp_path, *protocol, "ls-remote", str(source)) == listed
        await run(tmp_path, *protocol, "clone", "-q", "--mirror", url, "mirror.git")
        assert reachable(tmp_path / "mirror.git") == reachable(source)
        git(tmp_path / "mirror.git", "fsck", "--strict")
        ahead = str(source.parent / f"{algorithm}-ahead")
        await run(tmp_path, "clone", "-q", "--mirror", ahead, "own.git")
        words = [*protocol, "-c", "fetch.unpackLimit=1", "fetch", "-q", url]
        own = tmp_path / "own.git"
        await run(own, *words, "+refs/heads/*:refs/remotes/new/*")
        git(own, "fsck", "--strict")
        heads = await run(own, "for-each-ref", "--format=%(objectname)", "refs/remotes/new")
        wanted = await run(source, "for-each-ref", "--format=%(objectname)", "refs/heads")
        assert sorted(heads.split()) == sorted(wanted.split())
        before = await run(own, "count-objects", "-v")
        await run(own, *words, "+refs/heads/*:refs/remotes/new/*")  # nothing is left to do
        assert await run(own, "count-objects", "-v") == before
    assert edge.errors == []
    assert edge.open == 0


@pytest.mark.parametrize("algorithm", ["consecutive", "skipping", "noop"])
@pytest.mark.parametrize("version", ["0", "2"])
async def test_only_what_is_new_is_sent(
    talks: Conversations, sources: dict[str, Path], tmp_path: Path, version: str, algorithm: str
) -> None:
    source = sources["sha1"]
    async with daemon(talks) as edge:
        await run(tmp_path, "clone", "-q", "--mirror", str(source.parent / "sha1-ahead"), "own.git")
        own = tmp_path / "own.git"
        before = reachable(own)
        words = ["-c", f"protocol.version={version}"]
        words += ["-c", f"fetch.negotiationAlgorithm={algorithm}", "fetch", "--progress"]
        url = f"git://127.0.0.1:{edge.port}/sha1"
        shown = await run(own, *words, url, "+refs/heads/*:refs/new/*", check=False)
        told = re.search(rb"Total (\d+)", shown)
        assert told is not None, shown
        total = int(told[1])
        new = len(reachable(source) - before)
        assert total >= new - 3
        if algorithm == "consecutive":
            assert total <= new + 5


async def test_what_is_missing_is_told(
    talks: Conversations, sources: dict[str, Path], tmp_path: Path
) -> None:
    async with daemon(talks) as edge:
        for version in ("0", "1", "2"):
            words = ("-c", f"protocol.version={version}", "ls-remote")
            url = f"git://127.0.0.1:{edge.port}/nobody"
            shown = await run(tmp_path, *words, url, check=False)
            assert b"remote error: repository does not exist" in shown
        assert [type(error) for error in edge.errors] == [RepositoryMissing] * 3
        hidden = git(sources["sha1"].parent / "sha1-ahead", "rev-parse", "HEAD").decode().strip()
        git(tmp_path, "init", "-q", "-b", "main", "w")
        url = f"git://127.0.0.1:{edge.port}/sha1"
        fetch = ("-c", "protocol.version=2", "fetch", url, hidden)
        shown = await run(tmp_path / "w", *fetch, check=False)
        assert b"not our ref " + hidden.encode() in shown


async def test_many_at_once(talks: Conversations, sources: dict[str, Path], tmp_path: Path) -> None:
    wanted = reachable(sources["sha1"])
    async with daemon(talks) as edge:

        async def clone(number: int) -> set[bytes]:
            words = ["-c", f"protocol.version={number % 3}", "clone", "-q", "--mirror"]
            await run(tmp_path, *words, f"git://127.0.0.1:{edge.port}/sha1", f"c{number}")
            return await asyncio.to_thread(reachable, tmp_path / f"c{number}")

        found = await asyncio.gather(*(clone(number) for number in range(12)))
    assert all(one == wanted for one in found)


# ---- git as the judge ----


def judged(source: Path, body: bytes) -> bytes:
    """Return what git's upload-pack says behind its advertisement."""
    done = subprocess.run(
        ["git", "upload-pack", str(source)],
        input=body,
        capture_output=True,
        check=False,
        env={**os.environ, **ENVIRONMENT},
    )
    return done.stdout[done.stdout.index(b"0000") + 4 :] if b"0000" in done.stdout else b""


async def said(talks: Conversations, name: str, pieces: list[bytes], version: int = 0) -> bytes:
    """Return what we say in a whole conversation."""

    async def sent() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    out = b""
    talk = talks.converse(
        GitService.UPLOAD_PACK, name, sent(), principal=trusted("anonymous"), version=version
    )
    async with aclosing(talk) as answers:
        async for answer in answers:
            out += answer
    return out


def before_pack(answer: bytes) -> bytes:
    """Return the lines before the pack."""
    at = answer.find(b"PACK")
    return answer if at < 0 else answer[: at - 5] if answer[at - 1 : at] == b"\1" else answer[:at]


@pytest.mark.parametrize("words", ["", "multi_ack", "multi_ack_detailed", "detailed no-done"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_every_round_is_answered_as_git_does(
    talks: Conversations, sources: dict[str, Path], algorithm: str, words: str
) -> None:
    source = sources[algorithm]
    tips = git(source, "for-each-ref", "--format=%(objectname)", "refs/heads").decode().split()
    ours = git(source, "rev-list", "--all").decode().split()
    ahead = source.parent / f"{algorithm}-ahead"
    theirs = [n for n in git(ahead, "rev-list", "--all").decode().split() if n not in set(ours)]
    rand = random.Random(words + algorithm)
    told = words.replace("detailed", "multi_ack_detailed") if "no-done" in words else words
    if algorithm == "sha256":
        told += " object-format=sha256"
    for number in range(12):
        wants = rand.sample(tips, rand.randint(1, len(tips)))
        first = f"want {wants[0]} {told} no-progress agent=x\n"
        body = line(first.encode())
        body += b"".join(line(f"want {name}\n".encode()) for name in wants[1:]) + b"0000"
        for _ in range(rand.randint(0, 5)):
            share = rand.choice((0, 0, 0.1, 0.5, 1))
            haves = [
                rand.choice(ours if rand.random() < share else theirs)
                for _ in range(rand.randint(0, 20))
            ]
            body += b"".join(line(f"have {name}\n".encode()) for name in haves) + b"0000"
        body += line(b"done\n")
        got = await said(talks, algorithm, [body])
        mine = got[got.index(b"0000") + 4 :]
        assert before_pack(mine) == before_pack(judged(source, body)), (number, body)
        assert b"PACK" in mine


# ---- clients that break the rules ----


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"zzzz", MalformedPacket),
        (b"0010", MalformedPacket),
        (line(b"have " + b"1" * 40 + b"\n"), InvalidArgument),
        (line(b"want nothing\n"), ShardgitError),
        (line(b"want " + b"1" * 40 + b"\n"), MalformedPacket),
        (line(b"want " + b"1" * 40 + b"\n") + b"0000", ObjectMissing),
        (line(b"want " + b"1" * 64 + b"\n") + b"0000", ShardgitError),
    ],
)
async def test_what_breaks_the_rules_is_one_error_and_one_line(
    talks: Conversations, body: bytes, kind: type[Exception]
) -> None:
    out = b""

    async def sent() -> AsyncIterator[bytes]:
        yield body

    talk = talks.converse(GitService.UPLOAD_PACK, "sha1", sent(), principal=trusted("anonymous"))
    with pytest.raises(kind):
        async for piece in talk:
            out += piece
    last = decode(out)[-1]
    assert isinstance(last, bytes)
    assert last.startswith(b"ERR ")


@pytest.mark.parametrize("version", [0, 2])
@pytest.mark.parametrize("service", [GitService.UPLOAD_PACK, GitService.RECEIVE_PACK])
async def test_any_bytes_end_in_an_answer_or_in_one_error(
    talks: Conversations, sources: dict[str, Path], service: GitService, version: int
) -> None:
    """Sound conversations, changed in one place, cut or joined: none hangs, none raises what is not ours."""
    rand = random.Random(version)
    tip = git(sources["sha1"], "rev-parse", "main").strip()
    want = line(b"want " + tip + b" multi_ack_detailed side-band-64k ofs-delta\n") + b"0000"
    haves = line(b"have " + tip + b"\n") + b"0000" + line(b"done\n")
    v2 = line(b"command=fetch\n") + b"0001" + line(b"want " + tip + b"\n") + line(b"done\n")
    refs = line(b"command=ls-refs\n") + b"0001" + line(b"peel\n") + b"0000"
    empty = git(sources["sha1"], "pack-objects", "--stdout", "-q")
    names = tip + b" " + tip + b" refs/heads/x\0report-status side-band-64k object-format=sha1"
    seeds = {
        GitService.UPLOAD_PACK: [want + haves, refs + v2 + b"0000"],
        GitService.RECEIVE_PACK: [line(names) + b"0000" + empty],
    }[service]
    refused = 0
    for _ in range(120):
        data = bytearray(rand.choice(seeds))
        for _ in range(rand.randint(0, 3)):
            at = rand.randrange(len(data))
            action = rand.randrange(4)
            if action == 0:
                data[at] = rand.randrange(256)
            elif action == 1:
                del data[at : at + rand.randint(1, 9)]
            elif action == 2:
                data[at:at] = rand.choice((b"0000", b"0001", b"0004", b"\0", line(b"x")))
            else:
                data[at:] = data[rand.randrange(len(data)) :]
            data = data or bytearray(b"0")

        async def sent(body: bytes = bytes(data)) -> AsyncIterator[bytes]:
            for at in range(0, len(body), 37):
                yield body[at : at + 37]

        talk = talks.converse(
            service, "sha1", sent(), principal=trusted("anonymous"), version=version
        )
        try:
            async with asyncio.timeout(20), aclosing(talk) as answers:
                async for _ in answers:
                    pass
        except ShardgitError:
            refused += 1
    assert 0 < refused < 120


async def test_a_client_that_only_looks_is_no_error(talks: Conversations) -> None:
    for version in (0, 1, 2):
        for body in ([], [b"0000"]):
            assert await said(talks, "sha1", body, version)


async def test_a_client_that_falls_silent_is_left(store: Store) -> None:
    talks = Conversations(store, version="test")
    talks.limits = dataclasses.replace(store.limits, client_pause_max_s=0.05)

    async def silent() -> AsyncIterator[bytes]:
        await asyncio.sleep(60)
        yield b""

    for version in (0, 2):
        talk = talks.converse(
            GitService.UPLOAD_PACK,
            "sha1",
            silent(),
            principal=trusted("anonymous"),
            version=version,
        )
        with pytest.raises(Unavailable, match="nothing for too long"):
            async for _ in talk:
                pass


def test_the_version_asked_for() -> None:
    asked = [
        "",
        "version=2",
        "version=1",
        "version=0",
        "a:version=2:b",
        "version=3",
        "version=1:version=2",
    ]
    assert [asked_version(words) for words in asked] == [0, 2, 1, 0, 2, 0, 2]
