"""Negotiation, byte for byte as git's own upload-pack answers it, and packs with the same objects."""

from __future__ import annotations

import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest
from reference.gits import ENVIRONMENT, extend_history, git, make_history

from shardgit.errors import ObjectMissing
from shardgit.node import create_store, open_store
from shardgit.protocol.pktline import Mark, Packet, encode
from shardgit.protocol.upload_pack import Fetch
from shardgit.protocol.upload_pack_v0 import parse_v0
from shardgit.protocol.upload_pack_v2 import parse_v2
from shardgit.service.fetch import FetchService
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
CAPABILITIES_V0 = ("multi_ack", "multi_ack_detailed", "no-done", "side-band-64k", "side-band")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository, and clones of it that went other ways, as names of commits."""
    folder = make_history(tmp_path_factory.mktemp("judge") / "origin", commits=25)
    clone = folder.parent / "ahead"
    git(folder.parent, "clone", "-q", str(folder), "ahead")
    extend_history(clone, commits=6, rand=random.Random(3), first=500)
    return folder


@pytest.fixture(scope="module")
def commits(source: Path) -> tuple[list[str], list[str]]:
    """Return the source's commits, and commits that only a client has."""
    ours = git(source, "rev-list", "--all").decode().split()
    theirs = git(source.parent / "ahead", "rev-list", "--all").decode().split()
    return ours, [name for name in theirs if name not in set(ours)]


@pytest.fixture(scope="module")
def store(source: Path) -> Iterator[Store]:
    create_store(source.parent / "data", shards=2)
    with open_store(source.parent / "data") as opened:
        import_repository(opened, "demo", str(source))
        yield opened


def acks(answer: bytes) -> set[str]:
    return {line[8:] for line in shown(answer) if line[4:8] == "ACK "}


def rest(answer: bytes) -> list[str]:
    return [line for line in shown(answer) if line[4:8] != "ACK "]


def judge(source: Path, body: bytes, *, version: int) -> bytes:
    """Return what git answers."""
    done = subprocess.run(
        ["git", "upload-pack", "--stateless-rpc", str(source)],
        input=body,
        capture_output=True,
        check=False,
        env={**os.environ, **ENVIRONMENT, "GIT_PROTOCOL": f"version={version}"},
    )
    return done.stdout


async def ours(store: Store, body: bytes, *, version: int) -> bytes:
    parse = parse_v2 if version == 2 else parse_v0
    with store.journal.snapshot() as snapshot:
        kind = store.repository(snapshot, "demo").hash_kind
    command = parse(body, kind)
    if command is None:
        return b""
    assert isinstance(command, Fetch)
    service = FetchService(store, version="1")
    return b"".join([piece async for piece in service.fetch("demo", command)])


def before_pack(answer: bytes) -> bytes:
    """Return an answer's acknowledgements: what stands before the first progress or pack bytes."""
    at = 0
    while at < len(answer) and answer[at : at + 4] != b"PACK":
        length = int(answer[at : at + 4], 16)
        if length >= 4 and answer[at + 4] < 4:
            break
        at += max(length, 4)
    return answer[:at]


def rounds(rand: random.Random, ours: list[str], theirs: list[str]) -> list[str]:
    """Return haves as a client might send them: runs of history, some that the server lacks."""
    out: list[str] = []
    for _ in range(rand.randint(0, 4)):
        some = theirs if rand.random() < 0.4 else ours
        at = rand.randrange(len(some))
        out += some[at : at + rand.randint(1, 6)]
    return out


@pytest.mark.parametrize("seed", range(30))
async def test_v0_rounds_are_gits(
    store: Store, source: Path, commits: tuple[list[str], list[str]], seed: int
) -> None:
    rand = random.Random(seed)
    words = " ".join(word for word in CAPABILITIES_V0 if rand.random() < 0.5)
    tips = git(source, "for-each-ref", "--format=%(objectname)").decode().split()
    wants = rand.sample(tips, rand.randint(1, 3))
    lines: list[Packet] = [f"want {wants[0]} {words} no-progress\n".encode()]
    lines += [f"want {name}\n".encode() for name in wants[1:]]
    lines.append(Mark.FLUSH)
    lines += [f"have {name}\n".encode() for name in rounds(rand, *commits)]
    lines.append(b"done\n" if rand.random() < 0.4 else Mark.FLUSH)
    body = encode(lines)
    want = judge(source, body, version=0)
    got = await ours(store, body, version=0)
    assert shown(got) == shown(want), body.decode()
    assert bool(got[len(before_pack(got)) :]) == bool(want[len(before_pack(want)) :])


@pytest.mark.parametrize("seed", range(30))
async def test_v2_acknowledgments_are_gits(
    store: Store, source: Path, commits: tuple[list[str], list[str]], seed: int
) -> None:
    rand = random.Random(seed)
    tips = git(source, "for-each-ref", "--format=%(objectname)").decode().split()
    lines: list[Packet] = [b"command=fetch", b"object-format=sha1", Mark.DELIM, b"no-progress"]
    lines += [f"want {name}\n".encode() for name in rand.sample(tips, rand.randint(0, 3))]
    lines += [f"have {name}\n".encode() for name in rounds(rand, *commits)]
    lines += [word for word in (b"done", b"wait-for-done") if rand.random() < 0.3]
    body = encode([*lines, Mark.FLUSH])
    want = judge(source, body, version=2)
    got = await ours(store, body, version=2)
    # gits differ in whether a have that another one implies is acknowledged, too
    if rest(got) != rest(want):
        # git looks at no commit older than the oldest have, and may see late that it is ready
        assert [line[4:] for line in rest(want)] == ["acknowledgments", ""], body.decode()
        assert [line[4:] for line in rest(got)] == ["acknowledgments", "ready", "000dpackfile"]
        return
    assert acks(want) <= acks(got) <= set(commits[0])
    assert bool(acks(want)) == bool(acks(got))
    assert len(acks(got)) == sum("ACK " in line for line in shown(got))
    assert bool(got[len(before_pack(got)) :]) == bool(want[len(before_pack(want)) :])


@pytest.mark.parametrize("version", [0, 2])
@pytest.mark.parametrize("seed", range(6))
async def test_a_pack_completes_a_client_that_has_what_it_says(
    store: Store,
    source: Path,
    commits: tuple[list[str], list[str]],
    tmp_path: Path,
    version: int,
    seed: int,
) -> None:
    """With random flags: thin or not, OFS_DELTA or not, tags or not, side-bands or none."""
    rand = random.Random(seed)
    base = rand.choice(commits[0])
    tip = git(source, "rev-parse", "main").decode().strip()
    git(tmp_path, "init", "-q", "--bare", "c.git")
    clone = tmp_path / "c.git"
    git(clone, "fetch", "-q", "--no-tags", str(source), f"{base}:refs/heads/base")
    flags = [
        f for f in ("thin-pack", "ofs-delta", "include-tag", "no-progress") if rand.random() < 0.5
    ]
    lines: list[Packet]
    if version == 2:
        words = [*flags, f"want {tip}", f"have {base}", "done"]
        lines = [b"command=fetch", Mark.DELIM, *[word.encode() for word in words], Mark.FLUSH]
    else:
        bands = rand.choice(["", "side-band", "side-band-64k"])
        first = f"want {tip} multi_ack_detailed {bands} {' '.join(flags)}"
        lines = [first.encode(), Mark.FLUSH, f"have {base}".encode(), b"done"]
    answer = await ours(store, encode(lines), version=version)
    tail = answer[len(before_pack(answer)) :]
    pack = tail if tail[:4] == b"PACK" else band_one(tail)
    git(clone, "index-pack", "--fix-thin", "--strict", "--stdin", stdin=pack)
    git(clone, "update-ref", "refs/heads/main", tip)
    git(clone, "fsck", "--strict", "--connectivity-only")
    if "thin-pack" not in flags:
        git(tmp_path, "init", "-q", "alone")
        git(tmp_path / "alone", "index-pack", "--stdin", stdin=pack)
    if "include-tag" in flags:
        for tag in ("v1.0", "nested"):
            name = git(source, "rev-parse", tag).decode().strip()
            older = subprocess.run(
                ["git", "merge-base", "--is-ancestor", f"{tag}^{{}}", base], cwd=source, check=False
            ).returncode
            if older:  # its commit is not with the client, so it was sent
                git(clone, "cat-file", "tag", name)


async def test_what_no_ref_reaches_any_more_is_neither_given_nor_acknowledged(
    tmp_path: Path,
) -> None:
    """The pool still holds it; a want of it reads as one of an object that never was."""
    origin = make_history(tmp_path / "origin", commits=12)
    gone = git(origin, "rev-parse", "other").decode().strip()
    tip = git(origin, "rev-parse", "main~1").decode().strip()
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(origin))
        git(origin, "reset", "-q", "--hard", "main~1")  # before the merge of side and other
        git(origin, "branch", "-qD", "other")
        git(origin, "tag", "-d", "light")
        import_repository(store, "demo", str(origin))
        for version in (0, 2):
            wanted: list[Packet] = [f"want {gone}".encode(), Mark.FLUSH, b"done"]
            if version == 2:
                wanted = [b"command=fetch", Mark.DELIM, wanted[0], b"done", Mark.FLUSH]
            with pytest.raises(ObjectMissing, match=f"upload-pack: not our ref {gone}"):
                await ours(store, encode(wanted), version=version)
        haves: list[Packet] = [b"command=fetch", Mark.DELIM, f"want {tip}".encode()]
        haves += [f"have {gone}".encode(), Mark.FLUSH]
        assert b"NAK" in await ours(store, encode(haves), version=2)


def band_one(data: bytes) -> bytes:
    """Return what travels on band 1; everything else must be progress, and the end a flush."""
    out, at = [], 0
    while at < len(data):
        length = int(data[at : at + 4], 16)
        if length == 0:
            assert at + 4 == len(data)
            break
        band = data[at + 4]
        assert band in (1, 2), data[at : at + length]
        if band == 1:
            out.append(data[at + 5 : at + length])
        at += length
    else:
        raise AssertionError("no flush at the end")
    return b"".join(out)


def shown(answer: bytes) -> list[str]:
    """Return an answer's acknowledgements as lines."""
    return before_pack(answer).decode().splitlines()
