"""Bundles over HTTP: what git takes, ranges and tags, and that they hold what refs reach and no more."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from reference.gits import git, make_history, reachable
from served import clean_environment, serving, shardgit

from shardgit.errors import LimitExceeded
from shardgit.http.bundles import BundleRoutes
from shardgit.http.edge import Edge
from shardgit.journal.interface import Compare, Put
from shardgit.journal.records import repository_key
from shardgit.limits import DEFAULT
from shardgit.node import create_store, open_store
from shardgit.protocol.bundle_uri import bundle_list
from shardgit.protocol.pktline import Mark, decode, encode, line
from shardgit.service import bundles as module
from shardgit.service.bundles import CLONED, Bundles
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from served import Server

    from shardgit.service.bundles import Bundle
    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
ALGORITHMS = ("sha1", "sha256")


def configure(store: Store, name: str, settings: bytes) -> None:
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        row = snapshot.get(repository_key(record.id))
    assert row is not None
    key = repository_key(record.id)
    changed = replace(record, settings=settings).encode()
    store.journal.commit_sync([Compare(key, row.revision)], [Put(key, changed)])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    assert shardgit("init", "data", cwd=folder).returncode == 0
    for algorithm in ALGORITHMS:
        make_history(folder / algorithm, commits=12, algorithm=algorithm)
        words = ("repo", "import", f"team/{algorithm}", algorithm, "--data", "data")
        assert shardgit(*words, cwd=folder).returncode == 0
    assert shardgit("repo", "create", "empty", "--data", "data", cwd=folder).returncode == 0
    with open_store(folder / "data") as store:
        configure(store, "team/sha1", b'{"fetch": {"bundle_uri": "on"}}')
        configure(store, "empty", b'{"fetch": {"bundle_uri": "off"}}')
    return folder


@pytest.fixture(scope="module")
def server(here: Path) -> Iterator[Server]:
    with serving(here / "data", "--workers", "2") as running:
        yield running


def ask(
    server: Server, path: str, method: str = "GET", data: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    method = "POST" if data is not None else method
    url = f"http://{server.http}{path}"
    request = urllib.request.Request(url, data, headers=named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, dict(refused.headers), refused.read()


def shown(folder: Path) -> set[bytes]:
    return set(git(folder, "show-ref", "--head").splitlines())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_git_clones_with_a_bundle_and_fetches_the_rest(
    here: Path, server: Server, tmp_path: Path, algorithm: str
) -> None:
    url = server.url(f"team/{algorithm}")
    words = ["git", "clone", "-q", f"--bundle-uri={url}/clone.bundle", url, "clone"]
    trace = tmp_path / "trace"
    done = subprocess.run(
        words,
        cwd=tmp_path,
        # git makes the clone's repository before it hears of the server's hash
        env={
            **clean_environment(),
            "GIT_TRACE_PACKET": str(trace),
            "GIT_DEFAULT_HASH": algorithm,
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == b""
    clone = tmp_path / "clone"
    git(clone, "fsck", "--strict")
    assert git(clone, "rev-parse", "HEAD") == git(here / algorithm, "rev-parse", "HEAD")
    tip = git(here / algorithm, "rev-parse", "main").strip()
    # git 2.39 takes only the branches of a bundle, and then fetches tags; a newer one lacks nothing
    talk = trace.read_bytes()
    assert b"clone> have " + tip in talk or b"clone> want " not in talk
    assert b"clone> want " + tip not in talk


def test_git_asks_for_the_bundle_when_it_is_offered(
    here: Path, server: Server, tmp_path: Path
) -> None:
    version = [int(word) for word in git(tmp_path, "version").split()[2].split(b".")[:2]]
    if version < [2, 40]:
        pytest.skip("transfer.bundleURI came with git 2.40")
    trace = tmp_path / "trace"
    for name in ("sha1", "sha256"):
        words = ["-c", "transfer.bundleURI=true", "clone", "-q", server.url(f"team/{name}"), name]
        done = subprocess.run(
            ["git", *words],
            cwd=tmp_path,
            env={**clean_environment(), "GIT_TRACE_CURL": str(trace)},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        git(tmp_path / name, "fsck", "--strict")
    assert b"/team/sha1.git/clone.bundle" in trace.read_bytes()
    assert b"/team/sha256.git/clone.bundle" not in trace.read_bytes()  # small, so not by itself


def test_the_list_names_the_bundle_by_a_relative_uri(server: Server) -> None:
    told = ["bundle.version=1", "bundle.mode=all", "bundle.clone.uri=clone.bundle"]
    for name, algorithm, lines in (
        ("team/sha1", "sha1", told),
        ("team/sha256", "sha256", []),
        ("empty", "sha1", []),
    ):
        path = f"/{name}.git/info/refs?service=git-upload-pack"
        capabilities = ask(server, path, Git_Protocol="version=2")[2]
        assert (b"bundle-uri\n" in capabilities) == bool(lines)
        head = [b"command=bundle-uri", f"object-format={algorithm}".encode()]
        for arguments, answer in (
            ([], encode([*[text.encode() for text in lines], Mark.FLUSH])),
            ([b"x"], encode([b"ERR bundle-uri: unexpected argument: 'x'\n"])),
        ):
            status, _, body = ask(
                server,
                f"/{name}.git/git-upload-pack",
                data=encode([*head, Mark.DELIM, *arguments, Mark.FLUSH]),
                Git_Protocol="version=2",
                Content_Type="application/x-git-upload-pack-request",
            )
            assert (status, body) == (200, answer)


def test_bundles_that_settings_list_are_listed_instead(
    here: Path, server: Server, tmp_path: Path
) -> None:
    listed = [
        {"id": "all", "uri": "https://cdn.example/all.bundle", "creation_token": 7},
        {"id": "new", "uri": "https://cdn.example/new.bundle", "filter": "blob:none"},
    ]
    key, words = "fetch.listed_bundles", ("--data", str(here / "data"))
    done = shardgit("repo", "config", "empty", key, json.dumps(listed), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = ask(server, "/empty.git/info/refs?service=git-upload-pack", Git_Protocol="version=2")[2]
    assert b"bundle-uri\n" in shown
    body = line(b"command=bundle-uri\n") + b"0000"
    answer = ask(
        server,
        "/empty.git/git-upload-pack",
        data=body,
        Content_Type="application/x-git-upload-pack-request",
        Git_Protocol="version=2",
    )[2]
    assert [packet for packet in decode(answer) if isinstance(packet, bytes)] == [
        b"bundle.version=1",
        b"bundle.mode=all",
        b"bundle.heuristic=creationToken",
        b"bundle.all.uri=https://cdn.example/all.bundle",
        b"bundle.all.creationtoken=7",
        b"bundle.new.uri=https://cdn.example/new.bundle",
        b"bundle.new.filter=blob:none",
    ]
    wrong = json.dumps([{"id": "a b", "uri": "https://x"}])
    refused = shardgit("repo", "config", "empty", key, wrong, *words, cwd=tmp_path)
    assert refused.returncode == 1
    assert "listed bundle needs an id" in refused.stderr
    done = shardgit("repo", "config", "empty", key, "--unset", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_git_verifies_it_and_it_holds_what_the_refs_reach_and_no_more(
    here: Path, server: Server, tmp_path: Path, algorithm: str
) -> None:
    source = here / algorithm
    status, headers, body = ask(server, f"/team/{algorithm}.git/clone.bundle")
    assert status == 200
    assert headers["Content-Type"] == "application/x-git-bundle"
    path = tmp_path / "b"
    path.write_bytes(body)
    git(source, "bundle", "verify", str(path))
    assert set(git(source, "bundle", "list-heads", str(path)).splitlines()) == shown(source)
    git(tmp_path, "init", "-q", "--bare", f"--object-format={algorithm}", "held")
    git(tmp_path / "held", "bundle", "unbundle", str(path))
    names = git(tmp_path / "held", "cat-file", "--batch-all-objects", "--batch-check")
    assert {row.split()[0] for row in names.splitlines()} == reachable(source)


def test_ranges_give_parts_of_one_file(server: Server) -> None:
    path = "/team/sha1.git/clone.bundle"
    _, headers, whole = ask(server, path)
    tag, size = headers["ETag"], len(whole)
    assert headers["Accept-Ranges"] == "bytes"
    assert int(headers["Content-Length"]) == size
    for asked, status, part in (
        ("bytes=0-9", 206, whole[:10]),
        ("bytes=10-", 206, whole[10:]),
        ("bytes=-7", 206, whole[-7:]),
        (f"bytes=5-{size * 2}", 206, whole[5:]),
        (f"bytes=-{size * 2}", 206, whole),
        ("bytes=3-2", 200, whole),
        ("bytes=-", 200, whole),
        ("bytes=0-1,4-5", 200, whole),
        ("lines=0-1", 200, whole),
        (f"bytes={size}-", 416, b""),
        ("bytes=-0", 416, b""),
    ):
        got, told, body = ask(server, path, Range=asked)
        assert (got, body) == (status, part), asked
        if got == 206:
            start = whole.find(part)
            assert told["Content-Range"] == f"bytes {start}-{start + len(part) - 1}/{size}"
            assert int(told["Content-Length"]) == len(part)
        elif got == 416:
            assert told["Content-Range"] == f"bytes */{size}"
    assert ask(server, path, Range="bytes=1-3", If_Range=tag)[0] == 206
    for other in ('"x"', f"W/{tag}", "Fri, 01 Jan 2100 00:00:00 GMT"):
        assert ask(server, path, Range="bytes=1-3", If_Range=other)[::2] == (200, whole)


def test_tags_spare_who_has_it_and_head_tells_its_size(server: Server) -> None:
    path = "/team/sha1.git/clone.bundle"
    _, headers, whole = ask(server, path)
    tag = headers["ETag"]
    for given in (tag, f'"x", W/{tag}', "*"):
        status, told, body = ask(server, path, If_None_Match=given)
        assert (status, body, told["ETag"]) == (304, b"", tag)
    assert ask(server, path, If_None_Match='"x"')[0] == 200
    assert ask(server, path, If_Match='"x"')[0] == 412
    assert ask(server, path, If_Match=tag)[0] == 200
    status, told, body = ask(server, path, "HEAD")
    assert (status, body, int(told["Content-Length"])) == (200, b"", len(whole))
    assert told["ETag"] == tag


def test_what_has_no_bundle_says_so(server: Server) -> None:
    for path, words in (
        ("/empty.git/clone.bundle", b"bundles of this repository are not served"),
        ("/nobody.git/clone.bundle", b"repository does not exist"),
    ):
        status, _, body = ask(server, path)
        assert status == 404
        assert words in body


# ---- in this process ----


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_history(tmp_path / "origin", commits=12)


@pytest.fixture
def store(source: Path) -> Iterator[Store]:
    create_store(source.parent / "data", shards=2)
    with open_store(source.parent / "data") as opened:
        import_repository(opened, "demo", str(source))
        yield opened


async def bundle(bundles: Bundles, **words: Any) -> Bundle:
    found = await bundles.latest("demo", **words)
    assert found is not None
    found.file.close()
    return found


async def test_a_ref_that_is_gone_or_hidden_takes_its_objects_out(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXACT_MAX_BYTES", 0)
    bundles = Bundles(store)
    first = await bundle(bundles)
    git(source, "checkout", "-q", "-b", "secret")
    (source / "password").write_text("hush")
    git(source, "add", "-A")
    git(source, "commit", "-qm", "secret")
    git(source, "checkout", "-q", "main")
    import_repository(store, "demo", str(source))
    assert (await bundle(bundles)).tag == first.tag  # it may lag behind by a commit
    bundles.spool.folder.joinpath(first.file.key).unlink()
    told = await bundle(bundles)
    assert told.objects == len(reachable(source))
    configure(store, "demo", b'{"fetch": {"hidden_refs": ["refs/heads/secret"]}}')
    hidden = await bundle(bundles)
    assert hidden.objects == first.objects
    assert await bundles.kept("demo", told.file.key) is None
    configure(store, "demo", b"{}")
    git(source, "branch", "-qD", "secret")
    import_repository(store, "demo", str(source))
    assert (await bundle(bundles)).objects == first.objects
    assert await bundles.kept("demo", told.file.key) is None
    kept = await bundles.kept("demo", first.file.key)
    assert kept is None or kept.objects == first.objects


async def test_a_small_one_is_of_just_these_refs_a_large_one_until_an_eighth_more(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = Bundles(store)
    first = await bundle(bundles)
    git(source, "commit", "-qm", "one more", "--allow-empty")
    import_repository(store, "demo", str(source))
    second = await bundle(bundles)
    assert second.objects == first.objects + 1
    monkeypatch.setattr(module, "EXACT_MAX_BYTES", 0)
    for number in range(second.objects // module.LAG_PARTS + 1):
        assert (await bundle(bundles)).tag == second.tag
        git(source, "commit", "-qm", f"more {number}", "--allow-empty")
        import_repository(store, "demo", str(source))
    assert (await bundle(bundles)).objects == len(reachable(source))


async def test_what_a_clone_takes_is_a_bundle_of_its_own_where_there_are_other_refs(
    store: Store, source: Path, tmp_path: Path
) -> None:
    bundles = Bundles(store)
    everything, cloned = await bundle(bundles), await bundle(bundles, prefixes=CLONED)
    assert everything.file.key != cloned.file.key  # there is refs/notes/commits
    git(source, "update-ref", "-d", "refs/notes/commits")
    import_repository(store, "demo", str(source))
    assert (await bundle(bundles)).tag == (await bundle(bundles, prefixes=CLONED)).tag


async def test_a_damaged_file_is_no_bundle(store: Store, source: Path) -> None:
    bundles = Bundles(store)
    first = await bundle(bundles)
    (bundles.spool.folder / first.file.key).write_bytes(b"# v2 git bundle\n")
    again = await bundle(bundles)
    assert (again.tag, again.file.size) == (first.tag, first.file.size)


async def test_what_the_spool_cannot_hold_is_not_listed_nor_made_again(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(source.parent / "small")
    limits = replace(DEFAULT, spool_max_bytes=1_000)
    made: list[str] = []
    pieces = Bundles._pieces

    def counted(self: Bundles, state: module.BundleState) -> AsyncGenerator[bytes, None]:
        made.append(state.key)
        return pieces(self, state)

    monkeypatch.setattr(Bundles, "_pieces", counted)
    with open_store(source.parent / "small", limits=limits) as store:
        import_repository(store, "demo", str(source))
        configure(store, "demo", b'{"fetch": {"bundle_uri": "on"}}')
        routes = BundleRoutes(Edge(limits), Bundles(store))
        for _ in range(2):
            with pytest.raises(LimitExceeded):
                await routes.bundles.latest("demo")
            assert [piece async for piece in routes.listed("demo")] == [bundle_list([])]
        assert len(made) == 1
        assert list(routes.bundles.spool.folder.iterdir()) == []
