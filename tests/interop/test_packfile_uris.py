"""Packs by URI: a stock client takes the bulk of a clone as a file, the rest inline, and all is there."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from reference.gits import ENVIRONMENT, git, make_history, reachable
from served import serving

from shardgit.errors import InvalidArgument
from shardgit.journal.interface import Compare, Put
from shardgit.journal.records import repository_key
from shardgit.node import create_store, open_store
from shardgit.oid import HashKind
from shardgit.protocol.packfile_uris import PackUri, packfile_uris, parse_protocols
from shardgit.protocol.pktline import Mark, Packet, encode
from shardgit.protocol.upload_pack import Fetch, Offer
from shardgit.protocol.upload_pack_v2 import RequestV2, advertise_v2
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from served import Server

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
    """Sources of 300 KB with a note, so that a mirror takes more than a clone."""
    folder = tmp_path_factory.mktemp("uris")
    create_store(folder / "data", shards=2)
    with open_store(folder / "data") as store:
        for algorithm in ALGORITHMS:
            source = make_history(folder / algorithm, commits=12, algorithm=algorithm)
            (source / "bulk").write_bytes(random.Random(7).randbytes(300_000))
            git(source, "add", "-A")
            git(source, "commit", "-qm", "bulk")
            git(source, "notes", "add", "-m", "a note", "HEAD")
            import_repository(store, algorithm, str(source))
            configure(store, algorithm, b'{"fetch": {"packfile_uris": true}}')
        import_repository(store, "off", str(folder / "sha1"))
    return folder


@pytest.fixture(scope="module")
def server(here: Path) -> Iterator[Server]:
    with serving(here / "data", "--workers", "2") as running:
        yield running


def clone(folder: Path, *words: str, protocols: str = "http,https") -> tuple[str, str]:
    """Clone into c; returns what git tells, and its packets."""
    trace = folder / "trace"
    done = subprocess.run(
        ["git", "-c", f"fetch.uriProtocols={protocols}", "clone", "--progress", *words, "c"],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "GIT_TRACE_PACKET": str(trace), "GIT_TRACE_REDACT": "0"},
        capture_output=True,
        check=False,
    )
    told = done.stderr.decode()
    assert done.returncode == 0, told
    git(folder / "c", "fsck", "--strict")
    return told, trace.read_text()


def uris(packets: str) -> list[str]:
    return re.findall(r"clone< \\1[0-9a-f]{40,64} (https?://\S+)", packets)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_clone_takes_all_from_the_uri(
    here: Path, server: Server, tmp_path: Path, algorithm: str
) -> None:
    told, packets = clone(tmp_path, "--bare", server.url(algorithm))
    (uri,) = uris(packets)
    assert uri.startswith(f"http://{server.http}/{algorithm}.git/packs/")
    assert "Enumerating objects: 0, done." in told
    heads = ("rev-list", "--objects", "--branches", "--tags")
    assert git(tmp_path / "c", *heads) == git(here / algorithm, *heads)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_the_uri_has_not_comes_inline(
    here: Path, server: Server, tmp_path: Path, algorithm: str
) -> None:
    told, packets = clone(tmp_path, "--mirror", server.url(algorithm))
    assert len(uris(packets)) == 1
    assert "Enumerating objects: 3, done." in told  # the note, its tree, its commit
    assert reachable(tmp_path / "c") == reachable(here / algorithm)


@contextmanager
def files(folder: Path) -> Iterator[str]:
    """Serve a folder's files; gives the URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_object_whose_pack_settings_name_comes_from_there_when_it_is_wanted(
    here: Path, server: Server, tmp_path: Path, algorithm: str
) -> None:
    source = here / algorithm
    blob = git(source, "rev-parse", "HEAD:bulk").decode().strip()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    words = ("pack-objects", "-q", str(elsewhere / "bulk"))
    pack = git(source, *words, stdin=blob.encode()).decode().strip()
    with files(elsewhere) as base:
        listed = {"object": blob, "pack": pack, "uri": f"{base}/bulk-{pack}.pack"}
        with open_store(here / "data") as store:
            name = f"listed-{algorithm}"
            import_repository(store, name, str(source))
            settings = json.dumps({"fetch": {"listed_packs": [listed]}})
            configure(store, name, settings.encode())
        _, packets = clone(tmp_path, "--bare", server.url(name))
        assert uris(packets) == [listed["uri"]]
        heads = ("rev-list", "--objects", "--branches", "--tags")
        assert git(tmp_path / "c", *heads) == git(source, *heads)
        # Not to who has it, wants none of it, or takes no such URI.
        for number, (more, protocols) in enumerate(
            (
                (("--single-branch", "-b", "side"), "http"),
                (("--filter=blob:none", "--bare"), "http"),
                (("--bare",), "https"),
            )
        ):
            (tmp_path / str(number)).mkdir()
            _, packets = clone(tmp_path / str(number), *more, server.url(name), protocols=protocols)
            assert uris(packets) == []


def test_nobody_is_told_of_what_was_not_asked_for(
    here: Path, server: Server, tmp_path: Path
) -> None:
    url = server.url("sha1")
    for number, words in enumerate(
        (
            ("--single-branch", "-b", "side", url),
            ("--depth=1", url),
            ("--filter=blob:none", "--bare", url),
            ("--bare", server.url("off")),
        )
    ):
        (tmp_path / str(number)).mkdir()
        _, packets = clone(tmp_path / str(number), *words)
        assert uris(packets) == [], words
    (tmp_path / "s").mkdir()
    _, packets = clone(tmp_path / "s", "--bare", url, protocols="https")
    assert uris(packets) == []  # we are reached by http


def test_a_fetch_with_haves_comes_inline(here: Path, server: Server, tmp_path: Path) -> None:
    words = ("--bare", "--no-local", "--single-branch", "-b", "side")
    git(tmp_path, "clone", "-q", *words, str(here / "sha1"), "c")
    done = subprocess.run(
        ["git", "-c", "fetch.uriProtocols=http", "fetch", server.url("sha1"), "+refs/*:refs/*"],
        cwd=tmp_path / "c",
        env={**os.environ, **ENVIRONMENT, "GIT_TRACE_PACKET": str(tmp_path / "trace")},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "packfile-uris http" in (tmp_path / "trace").read_text()
    assert "packfile-uris\\n" not in (tmp_path / "trace").read_text()
    assert reachable(tmp_path / "c") == reachable(here / "sha1")


def test_the_pack_is_whole_and_served_in_ranges(here: Path, server: Server, tmp_path: Path) -> None:
    _, packets = clone(tmp_path, "--bare", server.url("sha1"))
    (uri,) = uris(packets)
    with urllib.request.urlopen(uri, timeout=30) as answer:
        pack, tag = answer.read(), answer.headers["ETag"]
        assert answer.headers["Content-Type"] == "application/x-git-packed-objects"
    git(tmp_path, "init", "-q", "--bare", "alone")
    shown = git(tmp_path / "alone", "index-pack", "--stdin", "--strict", stdin=pack)
    assert shown.split()[1].decode() in uri
    for start in (0, 5, len(pack) - 3):
        asked = urllib.request.Request(uri, headers={"Range": f"bytes={start}-", "If-Range": tag})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert (answer.status, answer.read()) == (206, pack[start:])
    for wrong in (
        uri.replace("/sha1.git/", "/off.git/"),
        uri.replace("/sha1.git/", "/sha256.git/"),
        re.sub(r"-[0-9a-f]{40}\.pack", "-" + "1" * 40 + ".pack", uri),
        re.sub(r"packs/[0-9a-f]{48}", "packs/" + "1" * 48, uri),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(wrong, timeout=30)
        with refused.value as error:
            assert error.code == 404


def test_a_proxy_may_say_that_it_speaks_tls(here: Path, server: Server) -> None:
    tip = git(here / "sha1", "rev-parse", "main").strip()
    wants = [b"want " + line.split()[0] for line in git(here / "sha1", "show-ref").splitlines()]
    lines: list[Packet] = [b"command=fetch", Mark.DELIM, b"sideband-all", b"packfile-uris https"]
    body = encode([*lines, *wants, b"want " + tip, b"done", Mark.FLUSH])
    headers = {
        "Git-Protocol": "version=2",
        "Content-Type": "application/x-git-upload-pack-request",
        "X-Forwarded-Proto": "https",
        "Host": "proxy:8080",  # a name with dots would have to be that of http_url
    }
    request = urllib.request.Request(
        f"http://{server.http}/sha1.git/git-upload-pack", body, headers
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert b" https://proxy:8080/sha1.git/packs/" in answer.read()


# ---- the protocol ----


def test_the_section_and_the_argument() -> None:
    trailer = bytes(range(20))
    section = packfile_uris([PackUri(trailer, "http://x/y")], sideband_all=True)
    text = b"\x01" + trailer.hex().encode() + b" http://x/y\n"
    assert section == encode([b"\x01packfile-uris\n", text, Mark.DELIM])
    assert packfile_uris([], sideband_all=True) == b""
    assert parse_protocols(b"https,http") == ("https", "http")
    for empty in (b"", b",", b" "):
        with pytest.raises(InvalidArgument):
            parse_protocols(empty)
    assert b"packfile-uris" not in advertise_v2(HashKind.SHA1, "1")
    assert b" packfile-uris\n" in advertise_v2(HashKind.SHA1, "1", Offer(packfile_uris=True))


@pytest.mark.parametrize(
    ("offer", "lines", "told"),
    [
        (Offer(), [b"packfile-uris http"], "unexpected line"),
        (
            Offer(packfile_uris=True),
            [b"packfile-uris http", b"packfile-uris https"],
            "multiple packfile-uris lines forbidden",
        ),
        (Offer(packfile_uris=True), [b"packfile-uris ,"], "names no protocol"),
    ],
)
def test_arguments_that_are_none(offer: Offer, lines: list[bytes], told: str) -> None:
    reader = RequestV2(HashKind.SHA1, offer=offer)
    with pytest.raises(InvalidArgument, match=told):
        reader.receive(encode([b"command=fetch", Mark.DELIM, *lines, Mark.FLUSH]))
    reader = RequestV2(HashKind.SHA1, offer=Offer(packfile_uris=True))
    reader.receive(encode([b"command=fetch", Mark.DELIM, b"packfile-uris http,https", Mark.FLUSH]))
    command = reader.finish()
    assert isinstance(command, Fetch)
    assert command.uri_protocols == ("http", "https")
