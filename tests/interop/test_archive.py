"""Archives byte for byte as git makes them, over trees with everything that attributes can do."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import time
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING

import aiohttp
import pytest
from listening import listening
from reference.gits import ENVIRONMENT, git, make_history
from served import serving

from shardgit.archive.convert import Conversion
from shardgit.errors import (
    InvalidArgument,
    LimitExceeded,
    PathMissing,
    RefMissing,
    RepositoryMissing,
    ShardgitError,
)
from shardgit.http.app import GitHttp
from shardgit.journal.interface import Compare, Put
from shardgit.journal.records import repository_key
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.protocol.pktline import FLUSH_BYTES, Mark, Packet, decode, encode
from shardgit.service import archive_walk as walk_module
from shardgit.service.access import trusted
from shardgit.service.archive import archive, upload_archive
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
LIMITS = Limits(object_memory_max_bytes=2 << 20)


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def make_tree(folder: Path, algorithm: str) -> Path:
    """A history with a tree that holds what archives have rules for."""
    make_history(folder, commits=12, algorithm=algorithm)
    subst = "$Format:%H%n%h %T %t%n%P|%p%n%an <%ae> %al%n%ad|%aD|%ai|%aI|%as|%at%n%cn %ce %cd %cI %ci %cD%n"
    subst += "%s|%f%n%b%B%n%d%n%D%n%x41%%|%z|%n$ $Format:%H$x$ $Format:unclosed\n"
    long = "deep/" + "/".join(["folder-with-a-long-name"] * 8)
    write(
        folder,
        {
            ".gitattributes": "# comment\n*.no export-ignore\nsecret/ export-ignore\n"
            "*.sub export-subst\n*.crlf text eol=crlf\n*.auto text=auto eol=crlf\n"
            '*.id ident\n[attr]quiet export-ignore -text\n*.q quiet\n"with space" export-ignore\n'
            "/top export-ignore\nsub/**/x export-ignore\nempty-when-ignored/** export-ignore\n"
            "*.bin binary\n*.legacy crlf eol=crlf\n",
            "sub/.gitattributes": "keep.no -export-ignore\n*.later export-ignore\n",
            "sub/keep.no": "kept",
            "sub/gone.no": "ignored",
            "sub/a.later": "ignored",
            "a.later": "kept",
            "a.q": "ignored",
            "secret/x": "ignored",
            "deeper/secret/x": "ignored too",
            "secretive": "kept",
            "with space": "ignored",
            "top": "ignored",
            "sub/top": "kept",
            "sub/x": "ignored",
            "sub/1/2/x": "ignored",
            "empty-when-ignored/a": "ignored",
            "v.sub": subst,
            "a.crlf": "one\ntwo\r\nthree\n",
            "a.auto": "one\ntwo\n",
            "b.auto": b"one\n\0two\n",
            "c.auto": "one\r\ntwo\n",
            "d.auto": b"one\n" + bytes(range(1, 9)) * 9,
            "a.legacy": "one\n",
            "a.id": "$Id$ $Id: old$ $Id: other system 1.2 $ $Id: abc $ $Ident$\n$Id: broken\n",
            "a.bin": b"\0\1\2\n",
            "run.sh": "#!/bin/sh\n",
            f"{long}/file-with-a-name-that-goes-on": "deep",
            f"{long}/{'n' * 120}": "deep and long",
            "n" * 101: "long name",
            "n" * 100: "just fits",
            "exactly/" + "m" * 92: "fits without prefix",
            "na\u00efve/\u00fcber": "utf-8",
            "large": bytes(range(256)) * 20_000,
        },
    )
    (folder / "run.sh").chmod(0o755)
    for name, target in (("short", "run.sh"), ("long-link", "t" * 150), ("link100", "u" * 100)):
        (folder / name).symlink_to(target)
    git(folder, "add", "-A", "-f")
    module = git(folder, "rev-parse", "HEAD").decode().strip()
    git(folder, "update-index", "--add", "--cacheinfo", f"160000,{module},a-submodule")
    git(folder, "commit", "-qm", "everything there is\n\nbody line\n\nanother", date=1_700_950_000)
    text = git(folder, "cat-file", "commit", "HEAD")
    for zone in (b"-0330", b"+0545"):  # where gits agree on how an ISO date looks
        text = text.replace(b"+0000", zone, 1)
    made = git(folder, "hash-object", "-t", "commit", "-w", "--stdin", stdin=text)
    git(folder, "update-ref", "refs/heads/main", made.decode().strip())
    text = text.replace(b"1700950000", b"99999999999")  # more than a tar header holds
    future = git(folder, "hash-object", "-t", "commit", "-w", "--stdin", stdin=text)
    git(folder, "update-ref", "refs/heads/future", future.decode().strip())
    git(folder, "tag", "-am", "all", "all")
    git(folder, "branch", "also")
    return folder


@pytest.fixture(scope="module", params=["sha1", "sha256"])
def source(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return make_tree(tmp_path_factory.mktemp("archive") / "origin", request.param)


@pytest.fixture(scope="module")
def store(source: Path) -> Iterator[Store]:
    create_store(source.parent / "data", shards=2)
    with open_store(source.parent / "data", limits=LIMITS) as opened:
        import_repository(opened, "demo", str(source))
        opened.create_repository("empty")
        yield opened


async def ours(store: Store, *words: str) -> bytes:
    pieces = archive(store, "demo", [os.fsencode(word) for word in words])
    return b"".join([piece async for piece in pieces])


def judge(source: Path, *words: str) -> bytes:
    return git(source, "archive", *words)


def assert_same(got: bytes, want: bytes) -> None:
    """Compare without pytest's own words, which are many."""
    if got != want:
        both = zip(got, want, strict=False)
        at = next((i for i, (x, y) in enumerate(both) if x != y), min(len(got), len(want)))
        shown = slice(at - at % 512, at - at % 512 + 1024)
        pytest.fail(f"at {at} of {len(got)}, {len(want)}: {got[shown]!r} {want[shown]!r}")


@pytest.mark.parametrize(
    "words",
    [
        ["main"],
        ["HEAD"],
        ["all"],
        ["refs/heads/side"],
        ["heads/side"],
        ["v1.0"],
        ["nested"],
        ["--prefix=x/", "main"],
        ["--prefix", "x/y//", "main"],
        ["--prefix=odd", "main"],
        ["--prefix=" + "p" * 90 + "/", "main"],
        ["future", "run.sh"],
        ["main", "sub"],
        ["main", "sub/", "run.sh"],
        ["main", "*.no"],
        ["main", "sub/*"],
        ["main", ":(glob)sub/*"],
        ["main", ":(glob)**/f1"],
        ["main", ":!sub"],
        ["main", ":(exclude)sub", "other"],
        ["main", ":(icase)RUN.SH"],
        ["main", ":(literal)run.sh", "a-submodule"],
        ["main", "deep", "empty-when-ignored"],
        ["main", "--", "sub/top"],
        ["--format=tar", "--worktree-attributes", "main", "run.sh"],
    ],
)
async def test_tar_is_gits_byte_for_byte(store: Store, source: Path, words: list[str]) -> None:
    got, want = await ours(store, *words), judge(source, *words)
    assert_same(got, want)


@pytest.mark.parametrize("tree", ["main:sub", "main:", "treetag"])
async def test_a_tree_without_a_commit_has_the_time_of_now(
    store: Store, source: Path, tree: str
) -> None:
    want = judge(source, tree)
    with tarfile.open(fileobj=io.BytesIO(want)) as tar:
        when = int(tar.getmembers()[0].mtime)
    assert_same(await ours(store, f"--mtime=@{when}", tree), want)
    with tarfile.open(fileobj=io.BytesIO(await ours(store, tree))) as tar:
        assert when <= tar.getmembers()[0].mtime <= time.time()


async def test_a_time_may_be_given_in_seconds_or_as_a_date(store: Store) -> None:
    for text, when in (("@86400", 86400), ("86401", 86401), ("2001-02-03T04:05:06Z", 981173106)):
        with tarfile.open(fileobj=io.BytesIO(await ours(store, "--mtime", text, "main"))) as tar:
            assert {member.mtime for member in tar.getmembers()} == {when}
    with pytest.raises(InvalidArgument, match="takes seconds since 1970 or an ISO date"):
        await ours(store, "--mtime=yesterday", "main")


@pytest.mark.parametrize("form", ["tar.gz", "tgz"])
@pytest.mark.parametrize("level", [[], ["-1"], ["-9"]])
async def test_a_compressed_tar_inflates_to_gits(
    store: Store, source: Path, form: str, level: list[str]
) -> None:
    packed = await ours(store, f"--format={form}", *level, "main")
    assert packed[:2] == b"\x1f\x8b"
    done = subprocess.run(["gzip", "-dc"], input=packed, capture_output=True, check=True)
    assert_same(done.stdout, judge(source, "main"))
    assert len(packed) < len(done.stdout) / 2


@pytest.mark.parametrize("level", [[], ["-0"], ["-9"]])
async def test_zip_holds_what_gits_holds(store: Store, source: Path, level: list[str]) -> None:
    words = ["--format=zip", "--prefix=p/", *level, "main"]
    with (
        zipfile.ZipFile(io.BytesIO(await ours(store, *words))) as got,
        zipfile.ZipFile(io.BytesIO(judge(source, *words))) as want,
    ):
        assert got.testzip() is None
        assert got.comment == want.comment
        assert [each.filename for each in got.infolist()] == [
            each.filename for each in want.infolist()
        ]
        for a, b in zip(got.infolist(), want.infolist(), strict=True):
            assert got.read(a) == want.read(b)
            assert (a.external_attr, a.create_system) == (b.external_attr, b.create_system)
            if a.flag_bits & 8 == 0:
                assert (a.compress_type, a.internal_attr) == (b.compress_type, b.internal_attr)
        run = got.getinfo("p/run.sh")
        assert stat.S_IMODE(run.external_attr >> 16) & 0o111
    (source.parent / "a.zip").write_bytes(await ours(store, *words))
    git(source.parent, "init", "-q", "unzip", check=False)
    done = subprocess.run(
        ["python3", "-m", "zipfile", "-t", str(source.parent / "a.zip")], check=False
    )
    assert done.returncode == 0


async def test_the_commit_is_found_in_the_archive(store: Store, source: Path) -> None:
    tip = git(source, "rev-parse", "main")
    assert git(source, "get-tar-commit-id", stdin=await ours(store, "main")) == tip
    assert git(source, "get-tar-commit-id", stdin=await ours(store, "all")) == tip
    with tarfile.open(fileobj=io.BytesIO(await ours(store, "main:sub"))) as tree:
        assert "comment" not in tree.pax_headers


async def test_pieces_come_before_the_whole_is_made(store: Store) -> None:
    pieces = [piece async for piece in archive(store, "demo", [b"main"])]
    assert len(pieces) > 4
    assert max(map(len, pieces)) < 8 << 20


async def test_large_files_are_not_held_and_what_attributes_say_of_them_is_passed_over(
    tmp_path: Path,
) -> None:
    origin = tmp_path / "origin"
    git(tmp_path, "init", "-q", "-b", "main", "origin")
    write(
        origin,
        {".gitattributes": "*.id ident\n", "a.id": b"$Id$\n" * 10, "b.id": b"$Id$" * 1_500_000},
    )
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "x")
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=LIMITS) as store:
        import_repository(store, "demo", str(origin))
        with tarfile.open(fileobj=io.BytesIO(await ours(store, "main"))) as tar:
            small, large = tar.extractfile("a.id"), tar.extractfile("b.id")
            assert small is not None
            assert large is not None
            assert small.read().startswith(b"$Id: ")
            assert large.read() == b"$Id$" * 1_500_000


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        (["nope"], RefMissing, "no such ref: nope"),
        (["main~1"], RefMissing, "no such ref: main~1"),
        (["main^{tree}"], RefMissing, "no such ref: main^{tree}"),
        (["main:nope"], InvalidArgument, "not a valid object name: main:nope"),
        (["main:run.sh"], InvalidArgument, "not a tree object: "),
        (["main", "nope"], PathMissing, "pathspec 'nope' did not match any files"),
        (["main", "sub", "x*z"], PathMissing, "pathspec 'x*z' did not match any files"),
        (["--format=rar", "main"], InvalidArgument, "Unknown archive format 'rar'"),
        (["--format=tar", "-9", "main"], InvalidArgument, "not supported for format 'tar': -9"),
        (["--output=x", "main"], InvalidArgument, "Unexpected option --output"),
        (["--add-file=/etc/passwd", "main"], InvalidArgument, "cannot be used together"),
        (["--list", "main"], InvalidArgument, "extra command line parameter 'main'"),
        (["--frobnicate", "main"], InvalidArgument, "unknown option `frobnicate'"),
        ([], InvalidArgument, "usage: git archive"),
        (["main", "../x"], InvalidArgument, "outside the repository"),
        (["main", ":(attr:x)f0"], InvalidArgument, "magic is not supported"),
        (["main", "*a" * 2_049], InvalidArgument, "pathspec is too long (bytes=4098, limit=4096)"),
    ],
)
async def test_what_is_not_there_is_refused_in_gits_words(
    store: Store, words: list[str], error: type[ShardgitError], told: str
) -> None:
    with pytest.raises(error) as caught:
        await ours(store, *words)
    assert told in str(caught.value)


async def test_ids_and_revisions_are_taken_where_the_settings_say_so(
    store: Store, source: Path
) -> None:
    tip = git(source, "rev-parse", "main~1").decode().strip()
    with pytest.raises(RefMissing, match=f"no such ref: {tip}"):
        await ours(store, tip)
    configure(store, b'{"fetch": {"archive_unreachable": true}}')
    try:
        for name in (tip, "main~1", "v1.0^{commit}"):
            assert_same(await ours(store, name), judge(source, name))
        with pytest.raises(InvalidArgument, match="not a valid object name"):
            await ours(store, "1" * 40)
    finally:
        configure(store, b"{}")


async def test_hidden_refs_are_none(store: Store) -> None:
    configure(store, b'{"fetch": {"hidden_refs": ["refs/heads/side"]}}')
    try:
        with pytest.raises(RefMissing, match="no such ref: side"):
            await ours(store, "side")
    finally:
        configure(store, b"{}")


def configure(store: Store, settings: bytes) -> None:
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, "demo")
        row = snapshot.get(repository_key(record.id))
    assert row is not None
    key = repository_key(record.id)
    changed = replace(record, settings=settings).encode()
    store.journal.commit_sync([Compare(key, row.revision)], [Put(key, changed)])


# ---- the conversation ----


async def sent(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 7):
        yield data[at : at + 7]


async def talk(store: Store, name: str, data: bytes) -> tuple[list[Packet], Exception | None]:
    out, error = b"", None
    try:
        async for piece in upload_archive(store, name, sent(data), trusted("anonymous")):
            out += piece
    except ShardgitError as caught:
        error = caught
    return decode(out), error


def arguments(*words: bytes) -> bytes:
    return encode([*[b"argument " + word + b"\n" for word in words], Mark.FLUSH])


def on_band(packets: list[Packet], number: int) -> bytes:
    return b"".join(p[1:] for p in packets[2:] if isinstance(p, bytes) and p[0] == number)


async def test_a_conversation_gives_the_archive_on_band_1(store: Store, source: Path) -> None:
    packets, error = await talk(store, "demo", arguments(b"-v", b"main", b"sub") + b"junk")
    assert error is None
    assert packets[:2] == [b"ACK\n", Mark.FLUSH]
    assert packets[-1] is Mark.FLUSH
    assert_same(on_band(packets, 1), judge(source, "main", "sub"))
    done = subprocess.run(
        ["git", "archive", "-v", "main", "sub"],
        cwd=source,
        capture_output=True,
        check=True,
        env={**os.environ, **ENVIRONMENT},
    )
    assert on_band(packets, 2) == done.stderr


async def test_a_conversation_lists_formats(store: Store, source: Path) -> None:
    packets, _ = await talk(store, "demo", arguments(b"--list"))
    assert sorted(on_band(packets, 1).split()) == sorted(judge(source, "--list").split())


async def test_a_conversation_ends_in_a_fatal_word(store: Store) -> None:
    for data, told in (
        (arguments(b"nope"), b"fatal: no such ref: nope\n"),
        (encode([b"nonsense", Mark.FLUSH]), b"fatal: 'argument' token or flush expected\n"),
        (arguments(*[b"x"] * 65), b"fatal: Too many options (>63)\n"),
        (encode([b"argument x"]), b"fatal: request ends before its flush\n"),
        (b"zzzz", b"fatal: packet length is not hex"),
    ):
        packets, error = await talk(store, "demo", data)
        assert error is not None
        assert on_band(packets, 2).startswith(told)
        assert on_band(packets, 3) == b"git upload-archive: archiver died with error\n"
        assert packets[-1] is not Mark.FLUSH


async def test_who_says_nothing_gets_nothing(store: Store) -> None:
    assert await talk(store, "demo", b"") == ([b"ACK\n", Mark.FLUSH], None)


async def test_an_empty_or_missing_repository_has_no_archive(store: Store) -> None:
    packets, _ = await talk(store, "empty", arguments(b"HEAD"))
    assert b"fatal: no such ref: HEAD" in on_band(packets, 2)
    with pytest.raises(RepositoryMissing):
        await anext(upload_archive(store, "nobody", sent(b""), trusted("anonymous")))


async def test_a_batch_ends_anywhere(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = judge(source, "main")
    for entries, size in ((1, 1), (3, 100), (7, 6 << 20)):
        monkeypatch.setattr(walk_module, "BATCH_ENTRIES", entries)
        monkeypatch.setattr(walk_module, "BATCH_BYTES", size)
        assert_same(await ours(store, "main", "."), want)
    assert FLUSH_BYTES not in want[:4]


# ---- over HTTP ----


def test_git_archive_remote_over_http(tmp_path: Path, source: Path) -> None:
    version = [int(word) for word in git(tmp_path, "version").split()[2].split(b".")[:2]]
    if version < [2, 44]:
        pytest.skip("git archive --remote over HTTP came with git 2.44")
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(source))
    with serving(tmp_path / "data", "--workers", "1") as server:
        url = server.url("demo")
        got = git(tmp_path, "archive", f"--remote={url}", "--prefix=x/", "main")
        assert_same(got, judge(source, "--prefix=x/", "main"))
        git(tmp_path, "archive", f"--remote={url}", "-o", "a.zip", "main", "sub")
        with zipfile.ZipFile(tmp_path / "a.zip") as made:
            assert made.testzip() is None
            assert "sub/top" in made.namelist()
        shown = git(tmp_path, "archive", f"--remote={url}", "nope", check=False)
        assert b"remote: fatal: no such ref: nope" in shown
        shown = git(tmp_path, "archive", f"--remote={server.url('nobody')}", "main", check=False)
        assert b"not found" in shown


async def test_the_route_answers_who_posts_arguments(store: Store, source: Path) -> None:
    async with listening(GitHttp(store, version="1")) as url:
        path = "git-upload-archive"
        kind = {"Content-Type": f"application/x-{path}-request"}
        async with aiohttp.ClientSession(url) as client:
            data = arguments(b"main", b"sub")
            async with client.post(f"/demo.git/{path}", data=data, headers=kind) as answer:
                assert answer.status == 200
                assert answer.content_type == f"application/x-{path}-result"
                assert_same(on_band(decode(await answer.read()), 1), judge(source, "main", "sub"))
            async with client.post(f"/nobody/{path}", data=data, headers=kind) as answer:
                assert answer.status == 404
            async with client.post(f"/demo/{path}", data=data) as answer:
                assert answer.status == 415
            async with client.post(f"/demo/{path}", data=arguments(b"x"), headers=kind) as answer:
                assert answer.status == 200
                assert b"fatal: no such ref: x" in await answer.read()


@pytest.mark.parametrize("form", ["%B", "$Format:%s$"])
async def test_placeholders_that_make_a_file_huge_are_refused(tmp_path: Path, form: str) -> None:
    work = tmp_path / "bomb"
    git(tmp_path, "init", "-q", "-b", "main", str(work))
    (work / ".gitattributes").write_text("* export-subst\n")
    many = form * 400_000
    (work / "f").write_text(many if form.startswith("$") else f"$Format:{many}$")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-F", "-", stdin=b"s\n\n" + b"text\n" * 4_000)
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(work))
        with pytest.raises(LimitExceeded, match="makes a file too large"):
            async for _ in archive(store, "demo", [b"main"]):
                pass


def test_codecs_of_python_are_no_encodings_of_files() -> None:
    data = "\u00e4".encode() * 20
    for name in ("punycode", "idna", "unicode_escape", "raw_unicode_escape", "zlib"):
        assert Conversion(encoding=name).apply(data, b"", None) == data
    assert Conversion(encoding="latin-1").apply(data, b"", None) == b"\xe4" * 20
