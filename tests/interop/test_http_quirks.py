"""What real clients and old proxies do to HTTP: versions, methods, slashes, escapes, expectations."""

from __future__ import annotations

import base64
import gzip
import random
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
from served import clean_environment, git, serving, shardgit, small_repository

from shardgit import connect
from shardgit.protocol.pktline import FLUSH_BYTES, Mark, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from served import Server

pytestmark = pytest.mark.interop
LS_REFS = encode([b"command=ls-refs", Mark.FLUSH])
POST = (
    "POST /team/demo.git/git-upload-pack {}\r\nHost: x\r\nGit-Protocol: version=2\r\n"
    "Content-Type: application/x-git-upload-pack-request\r\n"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_repository(tmp_path_factory.mktemp("quirks") / "origin")


@pytest.fixture(scope="module")
def server(source: Path) -> Iterator[Server]:
    here = source.parent
    for words in (
        ("init", "data"),
        ("repo", "import", "team/demo", "origin", "--data", "data"),
    ):
        assert shardgit(*words, cwd=here).returncode == 0
    with serving(here / "data", "--workers", "1") as running:
        yield running


def raw(server: Server, *pieces: bytes, wait_for: bytes = b"", until: bytes = b"") -> bytes:
    """Send pieces, each after the first once ``wait_for`` came; returns all until the end, or until ``until``."""
    host, port = server.http.split(":")
    got = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
            while wait_for and wait_for not in got:
                some = connection.recv(1 << 16)
                if not some:
                    return got
                got += some
        while not (until and until in got) and (some := connection.recv(1 << 16)):
            got += some
    return got


def test_an_answer_to_http_1_0_is_not_chunked_and_ends_with_its_connection(server: Server) -> None:
    head = POST.format("HTTP/1.0") + f"Content-Length: {len(LS_REFS)}\r\n\r\n"
    head_of, _, body = raw(server, head.encode() + LS_REFS).partition(b"\r\n\r\n")
    assert b" 200 " in head_of.splitlines()[0]
    assert b"chunked" not in head_of.lower()
    assert body.endswith(FLUSH_BYTES)
    assert b"refs/heads/main" in body


def test_a_clone_through_an_http_1_0_client_is_a_whole_pack(server: Server, source: Path) -> None:
    tip = git(source, "rev-parse", "main").encode()
    many = [
        b"have %040x" % number for number in range(600)
    ]  # such an answer is not kept: no length
    data = encode([b"command=fetch", Mark.DELIM, b"want " + tip, *many, b"done", Mark.FLUSH])
    head = POST.format("HTTP/1.0") + f"Content-Length: {len(data)}\r\n\r\n"
    head_of, _, body = raw(server, head.encode() + data).partition(b"\r\n\r\n")
    assert b"chunked" not in head_of.lower()
    assert b"content-length" not in head_of.lower()
    assert b"connection: close" in head_of.lower()
    assert body.startswith(b"000dpackfile\n")
    assert body.endswith(FLUSH_BYTES)


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_a_post_without_length_or_chunks_is_an_empty_request(server: Server, version: str) -> None:
    answer = raw(server, (POST.format(version) + "Connection: close\r\n\r\n").encode())
    head_of, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head_of.splitlines()[0]
    assert body == b""


def test_a_probe_of_a_flush_gets_an_empty_answer(server: Server) -> None:
    """git sends it before a body that it will not be able to send again."""
    head = POST.format("HTTP/1.1") + "Content-Length: 4\r\nConnection: close\r\n\r\n"
    head_of, _, body = raw(server, head.encode() + FLUSH_BYTES).partition(b"\r\n\r\n")
    assert b" 200 " in head_of.splitlines()[0]
    assert body == b""


def test_who_expects_is_told_to_go_on_before_the_body(server: Server) -> None:
    head = POST.format("HTTP/1.1") + (
        f"Content-Length: {len(LS_REFS)}\r\nExpect: 100-Continue\r\nConnection: close\r\n\r\n"
    )
    answer = raw(server, head.encode(), LS_REFS, wait_for=b"HTTP/1.1 100 Continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert b"refs/heads/main" in answer


def test_who_expects_to_send_too_much_is_refused_before_the_body(server: Server) -> None:
    head = POST.format("HTTP/1.1") + "Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
    want = b"request body is too large; the limit is"
    answer = raw(server, head.encode(), until=want)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert want in answer


@pytest.mark.parametrize(
    "path",
    [
        "/team/demo.git",
        "/team/demo",
        "//team/demo.git",
        "/team//demo.git",
        "/team/demo.git/",
        "/team///demo/",
        "/team%2Fdemo.git",
        "/te%61m/d%65mo%2Egit",
    ],
)
def test_paths_that_mean_a_repository_reach_it(server: Server, tmp_path: Path, path: str) -> None:
    git(tmp_path, "clone", "-q", f"http://{server.http}{path}", "clone")
    assert (tmp_path / "clone" / "README.md").exists()


@pytest.mark.parametrize("path", ["/", "//", "/.git", "/team", "/team/demo.git.git"])
def test_paths_that_mean_none_are_not_found(server: Server, path: str) -> None:
    words = ["git", "ls-remote", f"http://{server.http}{path}"]
    done = subprocess.run(words, env=clean_environment(), capture_output=True, check=False)
    assert done.returncode == 128
    assert b"not found" in done.stderr


@pytest.mark.parametrize("version", [0, 1, 2])
def test_head_answers_as_get_without_the_body(server: Server, version: int) -> None:
    path = "/team/demo.git/info/refs?service=git-upload-pack"
    rest = f"Host: x\r\nGit-Protocol: version={version}\r\nConnection: close\r\n\r\n"
    got = {
        method: raw(server, f"{method} {path} HTTP/1.1\r\n{rest}".encode())
        for method in ("GET", "HEAD")
    }
    heads = {
        method: {
            line.lower()
            for line in answer.partition(b"\r\n\r\n")[0].splitlines()
            if not line.lower().startswith((b"x-request-id", b"date"))
        }
        for method, answer in got.items()
    }
    assert heads["GET"] == heads["HEAD"]
    assert got["HEAD"].partition(b"\r\n\r\n")[2] == b""


def test_a_fetch_over_the_post_buffer_is_probed_and_sent_in_chunks(
    server: Server, source: Path, tmp_path: Path
) -> None:
    """Enough haves that the body does not fit. In v0: git's v2 has no room for such a buffer."""
    git(tmp_path, "init", "-q", "clone")
    clone = tmp_path / "clone"
    base = git(source, "rev-parse", "main~2")
    git(clone, "fetch", "-q", f"{source}", f"{base}:refs/heads/base")
    lines, parent = [], git(clone, "rev-parse", "base")
    for number in range(400):
        lines.append(
            f"commit refs/heads/mine\ncommitter A <a@b.c> {1700001000 + number} +0000\n"
            f"data 3\nx{number % 10}\n" + (f"from {parent}\n" if not number else "")
        )
    subprocess.run(
        ["git", "fast-import", "--quiet"],
        cwd=clone,
        input="\n".join(lines).encode(),
        env=clean_environment(),
        check=True,
    )
    trace = tmp_path / "trace"
    words = ("-c", "protocol.version=0", "-c", "http.postBuffer=1000", "fetch", "-q")
    done = subprocess.run(
        ["git", *words, server.url("team/demo"), "main:got"],
        cwd=clone,
        env={**clean_environment(), "GIT_TRACE_CURL": str(trace), "GIT_TRACE_CURL_NO_DATA": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert git(clone, "rev-parse", "got") == git(source, "rev-parse", "main")
    sent = trace.read_text().lower()
    assert "content-length: 4" in sent
    assert "transfer-encoding: chunked" in sent


def test_a_gzip_body_that_says_expect_and_comes_in_chunks_is_read(server: Server) -> None:
    body = gzip.compress(LS_REFS)
    head = POST.format("HTTP/1.1") + (
        "Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\nExpect: 100-continue\r\n"
        "Connection: close\r\n\r\n"
    )
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body) + b"0\r\n\r\n"
    answer = raw(server, head.encode(), chunks, wait_for=b"100 Continue\r\n\r\n")
    assert b"refs/heads/main" in answer


# ---- pushes ----


def push_head(path: str, version: str, *lines: str) -> bytes:
    head = [
        f"POST /{path}.git/git-receive-pack {version}",
        "Host: x",
        "Content-Type: application/x-git-receive-pack-request",
        *lines,
    ]
    return "\r\n".join([*head, "", ""]).encode()


def pushed(source: Path, branch: str) -> bytes:
    """Return the body of a push of main to a branch that is not there."""
    tip = git(source, "rev-parse", "main")
    done = subprocess.run(
        ["git", "pack-objects", "--revs", "--stdout", "-q"],
        cwd=source,
        input=f"{tip}\n".encode(),
        env=clean_environment(),
        capture_output=True,
        check=True,
    )
    words = f"{'0' * 40} {tip} refs/heads/{branch}\0report-status object-format=sha1".encode()
    return encode([words, Mark.FLUSH]) + done.stdout


def listed(server: Server, source: Path) -> dict[str, str]:
    rows = git(source, "ls-remote", server.url("team/demo")).splitlines()
    return {row.split("\t")[1]: row.split("\t")[0] for row in rows}


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_a_probe_before_a_push_gets_an_empty_answer(server: Server, version: str) -> None:
    head = push_head("team/demo", version, "Content-Length: 4", "Connection: close")
    head_of, _, body = raw(server, head + FLUSH_BYTES).partition(b"\r\n\r\n")
    assert b" 200 " in head_of.splitlines()[0]
    assert body == b""


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_push_comes_plain_or_gzipped_at_once_or_in_chunks(
    server: Server, source: Path, version: str, packed: bool, chunked: bool
) -> None:
    if chunked and version == "HTTP/1.0":
        return  # it has no chunks
    branch = f"b-{version[-1]}-{packed}-{chunked}"
    body = pushed(source, branch)
    lines = ["Connection: close"]
    if packed:
        body = gzip.compress(body)
        lines.append("Content-Encoding: gzip")
    lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
    if chunked:
        cut = [body[at : at + 100] for at in range(0, len(body), 100)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in cut) + b"0\r\n\r\n"
    answer = raw(server, push_head("team/demo", version, *lines) + body)
    assert b"unpack ok" in answer, answer
    assert f"ok refs/heads/{branch}".encode() in answer
    assert listed(server, source)[f"refs/heads/{branch}"] == git(source, "rev-parse", "main")


def test_a_push_that_expects_is_told_to_go_on(server: Server, source: Path) -> None:
    body = pushed(source, "expecting")
    lines = (f"Content-Length: {len(body)}", "Expect: 100-continue", "Connection: close")
    head = push_head("team/demo", "HTTP/1.1", *lines)
    answer = raw(server, head, body, wait_for=b"HTTP/1.1 100 Continue\r\n\r\n")
    assert b"ok refs/heads/expecting" in answer


def test_a_push_announced_too_large_is_refused_before_its_body(server: Server) -> None:
    lines = ("Content-Length: 99999999999999", "Expect: 100-continue")
    answer = raw(server, push_head("team/demo", "HTTP/1.1", *lines), until=b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_git_pushes_more_than_its_post_buffer_in_chunks(
    server: Server, source: Path, tmp_path: Path
) -> None:
    git(tmp_path, "clone", "-q", server.url("team/demo"), "c")
    clone, trace = tmp_path / "c", tmp_path / "trace"
    (clone / "bulk").write_bytes(random.Random(3).randbytes(300_000))
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "bulk")
    done = subprocess.run(
        ["git", "-c", "http.postBuffer=65536", "push", "-q", "origin", "HEAD:refs/heads/bulk"],
        cwd=clone,
        env={**clean_environment(), "GIT_TRACE_CURL": str(trace), "GIT_TRACE_CURL_NO_DATA": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sent = trace.read_text().lower()
    assert "content-length: 4" in sent  # the probe
    assert "transfer-encoding: chunked" in sent
    assert listed(server, source)["refs/heads/bulk"] == git(clone, "rev-parse", "HEAD")


def test_the_user_and_address_of_a_push_stand_in_the_log(server: Server, source: Path) -> None:
    """By hand: git sends a name only to who asks for one."""
    body = pushed(source, "named")
    told = base64.b64encode(b"ada:word").decode()
    lines = (f"Content-Length: {len(body)}", f"Authorization: Basic {told}", "Connection: close")
    assert b"ok refs/heads/named" in raw(server, push_head("team/demo", "HTTP/1.1", *lines) + body)
    with connect(server.grpc) as client:
        entries = list(client.repo("team/demo").ref_log("refs/heads/named"))
    assert [(entry.actor, entry.address) for entry in entries] == [("ada", "127.0.0.1")]


def test_a_push_over_the_repositorys_limit_is_refused_in_words_that_git_shows(
    server: Server, source: Path, tmp_path: Path
) -> None:
    git(tmp_path, "clone", "-q", server.url("team/demo"), "c")
    clone = tmp_path / "c"
    (clone / "more").write_bytes(random.Random(4).randbytes(100_000))
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "more")
    with connect(server.grpc) as client:
        client.repo("team/demo").update_settings({"receive.max_push_bytes": 50_000})
        for buffer in ("1m", "65536"):
            words = ("-c", f"http.postBuffer={buffer}", "push", "origin", "HEAD:refs/heads/more")
            done = subprocess.run(
                ["git", *words],
                cwd=clone,
                env=clean_environment(),
                capture_output=True,
                check=False,
            )
            assert done.returncode == 1
            assert b"50000" in done.stderr
            assert b"remote rejected" in done.stderr
        client.repo("team/demo").update_settings({"receive.max_push_bytes": None})
    git(clone, "push", "-q", "origin", "HEAD:refs/heads/more")


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",  # a gRPC client at the wrong port
        b"GET / HTTP/1.1\r\nHost: x\r\nno header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 300,
    ],
)
def test_what_is_no_http_is_a_line_of_the_log_at_most(server: Server, sent: bytes) -> None:
    before = len(server.events())
    assert raw(server, sent).startswith(b"HTTP/1.0 400 ")
    said = server.events()[before:]  # each line is JSON
    assert said in ([], ["library_said"])
