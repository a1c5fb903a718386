"""Sources of imports that would have git ask, run or reveal what nobody meant."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from served import clean_environment, git, serving, shardgit, small_repository
from waiting import until

from shardgit.errors import InvalidArgument, LimitExceeded, NotFound, Refused, Unavailable
from shardgit.limits import Limits
from shardgit.service.remote_clone import git_environment
from shardgit.service.remote_url import checked_url, is_url
from shardgit.service.source import opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop


# ---- URLs


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% /tmp/x",
        "ext::sh",
        "EXT::x@y:z",
        "fd::3",
        "fd::3@host:x",
        "http::http://host/x",
        "ftp://host/x",
        "gopher://host/x",
        "ssh+git://host/x",
        "http://",
        "http:///x",
        "http://-oProxyCommand=x/y",
        "ssh://-oProxyCommand=touch%20x/y",
        "ssh://%2doProxyCommand=x/y",
        "ssh://-l@host/x",
        "-oProxyCommand=x@host:y",
        "git@-oProxyCommand:y",
        "git@host:--upload-pack=x",
        "--upload-pack=x://host/y",
        "http://host:port/x",
        "http://host:99999/x",
        "http://ho st/x",
        "http://host/x\ny",
        "http://host\\@169.254.169.254/x",
        "http://hоst/x",  # a Cyrillic o # noqa: RUF001
        "http://[::1/x",
        "http://[v1.x]/x",
        "file://host/x",
        "file://x",
        "http://host/" + "x" * 5_000,
    ],
)
def test_what_is_no_url_of_a_known_protocol_is_refused(url: str, tmp_path: Path) -> None:
    if url.startswith("-"):  # for the command an option
        with pytest.raises(InvalidArgument):
            checked_url(url)
        return
    assert is_url(url)
    with pytest.raises(InvalidArgument), opened(url, scratch=tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "0xa9fea9fe",
        "2852039166",
        "0251.0376.0251.0376",
        "169.254.43518",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "0.0.0.0",
        "[::]",
        "224.0.0.1",
    ],
)
@pytest.mark.parametrize("url", ["http://{}/x", "https://u:hush@{}:8080/x", "git://{}/x"])
def test_metadata_services_are_refused_however_they_are_written(url: str, host: str) -> None:
    with pytest.raises(Refused) as refused:
        checked_url(url.format(host))
    assert "hush" not in str(refused.value)


def test_a_name_that_leads_to_one_is_refused_whatever_its_other_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (each, 80)) for each in ("192.0.2.1", "169.254.169.254")]

    monkeypatch.setattr("socket.getaddrinfo", found)
    with pytest.raises(Refused):
        checked_url("http://sly.example/x")


def test_git_is_held_to_the_addresses_that_were_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a name could lead elsewhere when git looks it up."""

    def found(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (each, 80)) for each in ("198.51.100.7", "2001:db8::7")]

    monkeypatch.setattr("socket.getaddrinfo", found)
    remote = checked_url("https://sly.example/x")
    assert remote.pinned == "sly.example:443:198.51.100.7,[2001:db8::7]"
    assert checked_url("http://sly.example:81/x").pinned.startswith("sly.example:81:")


@pytest.mark.parametrize(
    "source",
    [
        "http://127.0.0.1/x",
        "http://localhost/x",
        "ssh://git@10.0.0.1/x",
        "git@192.168.0.1:x",
        "http://[fd00::1]/x",
        "git://172.16.0.1/x",
        "file:///etc",
        "/etc",
    ],
)
def test_private_places_are_refused_where_others_name_the_source(
    source: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused), opened(source, scratch=tmp_path, private=False):
        pass
    if is_url(source):
        assert checked_url(source).url == source


def test_the_command_has_an_option_for_it(tmp_path: Path) -> None:
    assert shardgit("init", "data", cwd=tmp_path).returncode == 0
    words = ("repo", "import", "x", "http://127.0.0.1:1/x", "--public-only", "--data", "data")
    done = shardgit(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert "private address" in done.stderr


# ---- what git is let do


class Web(http.server.ThreadingHTTPServer):
    """Answers as it is told and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str | None]] = []
        self.sends_to = ""
        self.body = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(302 if self.server.sends_to else 200 if self.server.body else 404)
        if self.server.sends_to:
            self.send_header("Location", self.server.sends_to + self.path)
        self.send_header("Content-Type", "application/x-git-upload-pack-advertisement")
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def web() -> Iterator[Web]:
    with Web() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        try:
            yield server
        finally:
            server.shutdown()


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with web() as inner, web() as outer:
        outer.sends_to = inner.url
        source = f"http://user:hush@127.0.0.1:{outer.server_port}/x.git"
        with (
            pytest.raises(NotFound, match="sends elsewhere") as refused,
            opened(source, scratch=tmp_path),
        ):
            pass
        assert outer.asked
        assert inner.asked == []
    assert "hush" not in str(refused.value)


def line(data: bytes) -> bytes:
    return b"%04x" % (len(data) + 4) + data


CAPABLE = b"".join(
    line(word)
    for word in (
        b"version 2\n",
        b"ls-refs=unborn\n",
        b"fetch=shallow packfile-uris\n",
        b"bundle-uri\n",
        b"object-format=sha1\n",
    )
)
EMPTY = b"PACK\0\0\0\2\0\0\0\0"


def answer_daemon(listener: socket.socket, elsewhere: str) -> None:
    """Speak git:// in protocol 2, whatever was asked, and send the client to another server."""
    client, _ = listener.accept()
    with client, client.makefile("rwb") as file:
        file.read(int(file.read(4), 16) - 4)
        file.write(CAPABLE + b"0000")
        file.flush()
        while True:
            words = []
            while (size := int(file.read(4) or b"0", 16)) != 0:
                words.append(file.read(size - 4) if size > 4 else b"")
            if not words:
                return
            oid = b"a" * 40
            if b"ls-refs" in words[0]:
                file.write(line(oid + b" refs/heads/main\n") + b"0000")
            elif b"bundle-uri" in words[0]:
                file.write(line(b"bundle.version=1\n") + line(b"bundle.mode=all\n"))
                file.write(line(b"bundle.x.uri=" + elsewhere.encode() + b"/b\n") + b"0000")
            else:
                pack = EMPTY + hashlib.sha1(EMPTY).digest()
                advice = b"b" * 40 + b" " + elsewhere.encode() + b"/secret\n"
                file.write(line(b"packfile-uris\n") + line(advice) + b"0001")
                file.write(line(b"packfile\n") + line(b"\1" + pack) + b"0000")
            file.flush()


@contextlib.contextmanager
def daemon(elsewhere: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        job = threading.Thread(target=answer_daemon, args=(listener, elsewhere), daemon=True)
        job.start()
        yield f"git://127.0.0.1:{listener.getsockname()[1]}/x"
        job.join(20)
        assert not job.is_alive()


def test_a_source_sends_git_nowhere_else_although_git_would_go(tmp_path: Path) -> None:
    with web() as inner:
        with daemon(inner.url) as url:
            words = ["git", "clone", "-q", "--mirror", url, str(tmp_path / "plain")]
            environment = clean_environment()
            subprocess.run(words, env=environment, capture_output=True, check=False, timeout=30)
        assert [path for path, _ in inner.asked] == ["/secret"]  # it is an attack
        inner.asked.clear()
        with (
            daemon(inner.url) as url,
            pytest.raises(NotFound),
            opened(url, scratch=tmp_path / "scratch"),
        ):
            pass
        assert inner.asked == []


def test_over_http_such_a_source_is_not_spoken_to(tmp_path: Path) -> None:
    with web() as source:
        source.body = line(b"# service=git-upload-pack\n") + b"0000" + CAPABLE + b"0000"
        with pytest.raises(NotFound), opened(f"{source.url}/x", scratch=tmp_path):
            pass
        asked = [path.partition("?")[0] for path, _ in source.asked]
        assert asked == ["/x/info/refs", "/x/info/refs", "/x/git-upload-pack"]  # ls-refs, no fetch


def test_an_empty_repository_is_still_imported_from_a_url(tmp_path: Path) -> None:
    assert shardgit("init", "data", cwd=tmp_path).returncode == 0
    assert shardgit("repo", "create", "empty", "--data", "data", cwd=tmp_path).returncode == 0
    with (
        serving(tmp_path / "data", "--workers", "1") as server,
        opened(server.url("empty"), scratch=tmp_path / "scratch") as found,
    ):
        assert found.refs() == []


def test_the_configuration_of_a_source_runs_nothing(tmp_path: Path) -> None:
    source = small_repository(tmp_path / "source")
    ran = tmp_path / "ran"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {ran}\ncat\n")
    hook.chmod(0o755)
    for key in ("uploadpack.packObjectsHook", "core.fsmonitor", "core.sshCommand"):
        git(source, "config", key, str(hook))
    git(source, "config", "core.hooksPath", str(tmp_path))
    for name in ("post-checkout", "reference-transaction"):
        (tmp_path / name).symlink_to(hook)
    for given in (str(source), f"file://{source}"):
        with opened(given, scratch=tmp_path / "scratch") as found:
            assert len(found.refs()) == 2
    assert not ran.exists()


def test_a_source_that_never_ends_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"git://127.0.0.1:{listener.getsockname()[1]}/x"
        limits = Limits(mirror_time_max_s=0.5)
        with (
            pytest.raises(Unavailable, match="too long"),
            opened(url, scratch=tmp_path, limits=limits),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_end_does_not_fill_the_disk(tmp_path: Path) -> None:
    """git keeps what it says, so words without end do it as well as a pack."""
    limits = Limits(mirror_max_bytes=1 << 20)
    stopped = threading.Event()

    def flood(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client, contextlib.suppress(OSError):
            client.recv(1_000)
            oid = b"a" * 40
            client.sendall(line(oid + b" HEAD\0side-band-64k\n") + b"0000")
            client.recv(1_000)
            client.sendall(line(b"NAK\n"))
            words = line(b"\2" + b"no end\n" * 9_000)
            while not stopped.is_set():
                client.sendall(words)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        job = threading.Thread(target=flood, args=(listener,))
        job.start()
        url = f"git://127.0.0.1:{listener.getsockname()[1]}/x"
        try:
            with pytest.raises(LimitExceeded), opened(url, scratch=tmp_path, limits=limits):
                pass
        finally:
            stopped.set()
            job.join(20)
    until(lambda: not list(tmp_path.iterdir()))  # git's children may die a moment later


def test_git_is_in_no_repository_and_asks_nobody() -> None:
    given = {
        "GIT_DIR": "/x",
        "GIT_OBJECT_DIRECTORY": "/y",
        "GIT_ALLOW_PROTOCOL": "ext",
        "PATH": "p",
    }
    made = git_environment(("https",), given)
    assert made["PATH"] == "p"
    assert made["GIT_ALLOW_PROTOCOL"] == "https"
    assert made["GIT_TERMINAL_PROMPT"] == "0"
    assert not {"GIT_DIR", "GIT_OBJECT_DIRECTORY"} & made.keys()
