"""Shallow and partial clones by stock git over HTTP, each beside the same from git's own server."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from reference.gits import git, make_history, reachable
from served import Server, serving

from shardgit.node import create_store, open_store
from shardgit.service.configuring import Configuring
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop
VERSIONS = ["0", "1", "2"]


@pytest.fixture(scope="module", params=["sha1", "sha256"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with sparse specifications and large blobs, that git's server lets filter."""
    folder = make_history(
        tmp_path_factory.mktemp("partial") / "origin", commits=30, algorithm=str(request.param)
    )
    (folder / "spec").write_text("/*\n!/sub/\n/sub/deep/f3\nother/\n")
    (folder / "large").write_bytes(bytes(range(256)) * 40)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "spec", date=1_701_000_000)
    git(
        folder,
        "update-ref",
        "refs/hidden/secret",
        git(folder, "rev-parse", "HEAD").decode().strip(),
    )
    (folder / "hidden").write_text("hidden")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "hidden", date=1_701_000_100)
    git(folder, "update-ref", "refs/hidden/secret", "HEAD")
    git(folder, "reset", "-q", "--hard", "HEAD~1")
    for key in ("allowFilter", "allowAnySHA1InWant"):
        git(folder, "config", f"uploadpack.{key}", "true")
    git(folder, "config", "transfer.hideRefs", "refs/hidden")
    return folder


@pytest.fixture(scope="module")
def server(source: Path) -> Iterator[Server]:
    data = source.parent / "data"
    create_store(data)
    with open_store(data) as store:
        import_repository(store, "demo", str(source))
        Configuring(store).update("demo", {"transfer.hidden_refs": ["refs/hidden"]})
    with serving(data, "--workers", "1") as running:
        yield running


def held(clone: Path) -> set[bytes]:
    """Return the ids of the objects that a clone holds itself."""
    found = git(clone, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)")
    return set(found.split())


def ends(clone: Path) -> set[bytes]:
    path = git(clone, "rev-parse", "--git-path", "shallow").decode().strip()
    return set((clone / path).read_bytes().split()) if (clone / path).exists() else set()


def both(
    server: Server, source: Path, tmp_path: Path, version: str, *words: str
) -> tuple[Path, Path]:
    """Clone from our server and from git's with the same words; return the clones."""
    out = []
    for name, url in (("ours", server.url("demo")), ("gits", f"file://{source}")):
        options = ("-c", f"protocol.version={version}", "clone", "-q", "--bare", *words)
        git(tmp_path, *options, url, name)
        out.append(tmp_path / name)
    return out[0], out[1]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "words",
    [
        ("--depth=1",),
        ("--depth=3", "--no-single-branch"),
        ("--shallow-since=1700001000",),
        ("--shallow-exclude=v1.0", "--no-single-branch"),
        ("--filter=blob:none",),
        ("--filter=blob:limit=1k",),
        ("--filter=tree:0",),
        ("--filter=tree:2", "--no-single-branch"),
        ("--filter=object:type=commit",),
        ("--filter=sparse:oid=main:spec",),
        ("--filter=combine:tree:3+blob:limit=1000",),
        ("--filter=blob:none", "--depth=2"),
        ("--filter=tree:1", "--depth=4", "--no-single-branch"),
    ],
    ids=" ".join,
)
def test_a_clone_holds_what_gits_server_gives(
    server: Server, source: Path, tmp_path: Path, version: str, words: tuple[str, ...]
) -> None:
    ours, gits = both(server, source, tmp_path, version, *words)
    assert held(ours) == held(gits)
    assert ends(ours) == ends(gits)
    git(ours, "fsck", "--connectivity-only")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_shallow_clone_is_deepened_and_made_whole(
    server: Server, source: Path, tmp_path: Path, version: str
) -> None:
    ours, gits = both(server, source, tmp_path, version, "--depth=1", "--no-single-branch")
    steps = [
        ("--depth=3",),
        ("--depth=5",),
        ("--shallow-exclude=v1.0",),
        ("--shallow-since=1700000300",),
        ("--depth=2",),
        ("--unshallow",),
    ]
    for step in steps:
        for clone in (ours, gits):
            words = ("-c", f"protocol.version={version}", "fetch", "-q", *step, "origin")
            git(clone, *words, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        assert ends(ours) == ends(gits), step
        git(ours, "fsck", "--connectivity-only")
    assert ends(ours) == set()
    assert held(ours) >= reachable(ours)
    assert reachable(ours) == reachable(gits)
    git(ours, "fsck", "--strict")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_boundary_is_moved_by_so_many_commits(
    server: Server, source: Path, tmp_path: Path, version: str
) -> None:
    options = ("-c", f"protocol.version={version}")
    git(
        tmp_path,
        *options,
        "clone",
        "-q",
        "--bare",
        "--depth=2",
        "-b",
        "v1.0",
        server.url("demo"),
        "c",
    )
    clone = tmp_path / "c"
    for deeper, commits in ((3, 5), (1, 6)):  # one line of history
        git(clone, *options, "fetch", "-q", f"--deepen={deeper}", "origin", "tag", "v1.0")
        assert len(git(clone, "rev-list", "v1.0").split()) == commits
        assert len(ends(clone)) == 1
        git(clone, "fsck", "--connectivity-only")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("spec", ["blob:none", "tree:0", "blob:limit=100"])
def test_a_partial_clone_fetches_what_a_checkout_needs(
    server: Server, source: Path, tmp_path: Path, version: str, spec: str
) -> None:
    options = ("-c", f"protocol.version={version}", "clone", "-q", f"--filter={spec}")
    git(tmp_path, *options, server.url("demo"), "work")
    work = tmp_path / "work"
    for name in ("spec", "large", "sub/deep", "other"):
        path = work / name
        assert path.is_dir() or path.read_bytes() == (source / name).read_bytes()
    assert git(work, "status", "--porcelain") == b""
    missing = git(work, "rev-list", "--objects", "HEAD", "--missing=print")
    assert any(row.startswith(b"?") for row in missing.splitlines())
    whole = git(work, "log", "-p", "--all", "--format=%H")  # fetches the rest, a few at a time
    assert whole == git(source, "log", "-p", "--format=%H", "--exclude=refs/hidden/*", "--all")
    git(work, "fsck")


def test_thousands_of_missing_blobs_come_in_one_request(
    server: Server, source: Path, tmp_path: Path
) -> None:
    git(tmp_path, "clone", "-q", "--bare", "--filter=blob:none", server.url("demo"), "c.git")
    clone = tmp_path / "c.git"
    rows = git(clone, "rev-list", "--objects", "--all", "--missing=print").splitlines()
    missing = [row[1:] for row in rows if row.startswith(b"?")]
    assert len(missing) > 50
    asked = ("fetch", "-q", "--no-tags", "--no-write-fetch-head", "--filter=blob:none", "origin")
    trace = tmp_path / "trace"
    subprocess.run(
        ["git", "-c", "fetch.negotiationAlgorithm=noop", *asked, "--stdin"],
        cwd=clone,
        input=b"\n".join(missing),
        check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GIT_TRACE_CURL": str(trace)},
    )
    assert set(missing) <= held(clone)
    assert trace.read_text().count("POST /demo.git/git-upload-pack") <= 2


@pytest.mark.parametrize("version", VERSIONS)
def test_a_partial_clone_gets_what_came_later_and_resolves_every_delta(
    server: Server, source: Path, tmp_path: Path, version: str
) -> None:
    options = ("-c", f"protocol.version={version}")
    spec = "--filter=blob:limit=200"
    old = git(source, "rev-parse", "HEAD~9").decode().strip()
    git(
        tmp_path,
        "init",
        "-q",
        "--bare",
        "-b",
        "main",
        f"--object-format={_format(source)}",
        "c.git",
    )
    clone = tmp_path / "c.git"
    git(clone, "remote", "add", "origin", server.url("demo"))
    git(clone, "config", "remote.origin.promisor", "true")
    git(clone, "config", "remote.origin.partialclonefilter", "blob:limit=200")
    git(clone, *options, "fetch", "-q", spec, "origin", f"{old}:refs/heads/main")
    before = held(clone)
    refspec = "refs/heads/main:refs/heads/main"
    git(clone, *options, "-c", "fetch.unpackLimit=1", "fetch", "-q", "origin", refspec)
    assert held(clone) > before
    rows = git(clone, "rev-list", "--objects", "main", "--missing=print").splitlines()
    sizes = git(
        source,
        "cat-file",
        "--batch-check=%(objecttype) %(objectsize)",
        stdin=b"\n".join(row[1:] for row in rows if row.startswith(b"?")),
    )
    for row in sizes.splitlines():
        kind, size = row.split()
        assert kind == b"blob"
        assert int(size) >= 200
    git(clone, "fsck", "--connectivity-only")


def _format(source: Path) -> str:
    return git(source, "rev-parse", "--show-object-format").decode().strip()


@pytest.mark.parametrize("version", VERSIONS)
def test_hidden_refs_are_not_shown_and_open_nothing(
    server: Server, source: Path, tmp_path: Path, version: str
) -> None:
    options = ("-c", f"protocol.version={version}")
    shown = git(tmp_path, *options, "ls-remote", server.url("demo"))
    assert shown == git(tmp_path, *options, "ls-remote", f"file://{source}")
    assert b"hidden" not in shown
    secret = git(source, "rev-parse", "refs/hidden/secret").decode().strip()
    blob = git(source, "rev-parse", f"{secret}:hidden").decode().strip()
    git(tmp_path, "init", "-q", "--bare", f"--object-format={_format(source)}", "c.git")
    for wanted in (secret, blob, "refs/hidden/secret"):
        words = (*options, "fetch", server.url("demo"), wanted)
        refused = git(tmp_path / "c.git", *words, check=False)
        assert b"not our ref" in refused or b"couldn't find remote ref" in refused, refused


@pytest.mark.parametrize("version", VERSIONS)
def test_where_settings_allow_it_a_hidden_ref_is_fetched_by_the_id_it_names(
    server: Server, source: Path, tmp_path: Path, version: str
) -> None:
    data = source.parent / "data"
    options = ("-c", f"protocol.version={version}")
    secret = git(source, "rev-parse", "refs/hidden/secret").decode().strip()
    blob = git(source, "rev-parse", f"{secret}:hidden").decode().strip()
    with open_store(data) as store:
        Configuring(store).update("demo", {"fetch.hidden_wants": True})
    try:
        git(tmp_path, "init", "-q", "--bare", f"--object-format={_format(source)}", "c.git")
        url = server.url("demo")
        refused = git(tmp_path / "c.git", *options, "fetch", url, blob, check=False)
        assert b"not our ref" in refused, refused
        git(tmp_path / "c.git", *options, "fetch", "-q", url, f"{secret}:refs/heads/got")
        git(tmp_path / "c.git", "fsck", "--connectivity-only")
        assert git(tmp_path / "c.git", "rev-parse", "got").decode().strip() == secret
    finally:
        with open_store(data) as store:
            Configuring(store).update("demo", {"fetch.hidden_wants": None})


def test_refs_wanted_by_name(server: Server, source: Path, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", f"--object-format={_format(source)}", "c.git")
    trace = tmp_path / "packets"
    subprocess.run(
        ["git", "fetch", "-q", server.url("demo"), "refs/heads/main:refs/heads/main", "side:side"],
        cwd=tmp_path / "c.git",
        check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GIT_TRACE_PACKET": str(trace)},
    )
    said = trace.read_text()
    assert "want-ref refs/heads/main" in said
    assert "wanted-refs" in said
    for name in ("main", "side"):
        theirs = git(tmp_path / "c.git", "rev-parse", f"refs/heads/{name}")
        assert theirs == git(source, "rev-parse", f"refs/heads/{name}")
