"""git over shardgit:// URLs: git-remote-shardgit, and TransportService under it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import grpc
import pytest
from reference.gits import ENVIRONMENT, make_history, reachable
from served import Server, serving, shardgit
from waiting import until

from shardgit.calling import is_ours
from shardgit.node import create_store, open_store
from shardgit.protocol.pktline import decode, line
from shardgit.remote_helper import data_of, header, parse_url, token_in
from shardgit.service.importing import import_repository
from shardgit.v1 import transport_pb2, transport_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop
ALGORITHMS = ["sha1", "sha256"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sources, a store, and the helper as a program in bin."""
    folder = tmp_path_factory.mktemp("helper")
    create_store(folder / "data", shards=2)
    with open_store(folder / "data") as store:
        for algorithm in ALGORITHMS:
            source = make_history(folder / algorithm, commits=12, algorithm=algorithm)
            if algorithm == "sha1":
                (source / "big").write_bytes(os.urandom(9 << 20))
                git(folder, "-C", str(source), "add", "-A")
                git(folder, "-C", str(source), "commit", "-qm", "big")
            import_repository(store, algorithm, str(source))
    program = folder / "bin" / "git-remote-shardgit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m shardgit.remote_helper "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with serving(home / "data", "--workers", "2") as running:
        yield running


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT, "PATH": f"{home}/bin:{os.environ['PATH']}"}


def git(folder: Path, *words: str, home: Path | None = None, check: bool = True) -> str:
    """Run git with the helper on its path; return what it prints on both streams."""
    done = subprocess.run(
        ["git", *words],
        cwd=folder,
        env=environment(home or folder),
        capture_output=True,
        check=False,
        timeout=120,
    )
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert not check or done.returncode == 0, text
    return text


def url(server: Server, name: str) -> str:
    return f"shardgit://{server.grpc}/{name}"


# ---- git as the client ----


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_clones_fetches_and_pushes(
    home: Path, server: Server, tmp_path: Path, version: str, algorithm: str
) -> None:
    source = home / algorithm
    protocol = ("-c", f"protocol.version={version}")
    remote = url(server, algorithm)
    listed = git(tmp_path, *protocol, "ls-remote", remote, home=home)
    assert listed == git(tmp_path, *protocol, "ls-remote", str(source), home=home)
    git(tmp_path, *protocol, "clone", "-q", "--mirror", remote, "whole.git", home=home)
    whole = tmp_path / "whole.git"
    assert reachable(whole) == reachable(source)
    git(tmp_path, "clone", "-q", "--bare", "--single-branch", "-b", "side", str(source), "part.git")
    git(tmp_path / "part.git", *protocol, "fetch", "-q", remote, "+refs/*:refs/*", home=home)
    assert reachable(tmp_path / "part.git") == reachable(source)
    name = f"push-{algorithm}-{version}"
    create = ("repo", "create", name, "--object-format", algorithm, "--server", server.grpc)
    assert shardgit(*create, cwd=tmp_path).returncode == 0
    target = url(server, name)
    git(whole, *protocol, "push", "-q", target, "+refs/*:refs/*", home=home)
    git(tmp_path, *protocol, "clone", "-q", "--mirror", target, "back.git", home=home)
    assert reachable(tmp_path / "back.git") == reachable(source)
    assert "up-to-date" in git(whole, *protocol, "push", target, "+refs/*:refs/*", home=home)
    git(whole, *protocol, "push", "-q", "--atomic", target, ":side", "+main~1:main", home=home)
    listed = git(tmp_path, "ls-remote", target, home=home)
    assert git(whole, "rev-parse", "main~1").strip() + "\trefs/heads/main" in listed
    assert "refs/heads/side" not in listed
    shown = git(whole, *protocol, "push", target, "main~3:main", home=home, check=False)
    assert "rejected" in shown
    assert "request_failed" not in server.events()


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_the_version_reaches_the_server(
    home: Path, server: Server, tmp_path: Path, version: str
) -> None:
    done = subprocess.run(
        ["git", "-c", f"protocol.version={version}", "ls-remote", url(server, "sha1")],
        cwd=tmp_path,
        env={**environment(home), "GIT_TRACE_PACKET": "1"},
        capture_output=True,
        check=True,
        timeout=60,
    )
    heard = [each for each in done.stderr.decode().splitlines() if "ls-remote< " in each]
    assert {"0": "HEAD\\0", "1": "version 1", "2": "version 2"}[version] in heard[0]


def test_archives(home: Path, server: Server, tmp_path: Path) -> None:
    words = ("archive", "--format=tar", "main", "sub")
    git(
        tmp_path,
        *words[:2],
        f"--remote={url(server, 'sha1')}",
        "-o",
        "a.tar",
        *words[2:],
        home=home,
    )
    git(home / "sha1", *words[:2], "-o", str(tmp_path / "b.tar"), *words[2:])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_shallow_clones(home: Path, server: Server, tmp_path: Path) -> None:
    for version in ("0", "2"):
        protocol = ("-c", f"protocol.version={version}")
        words = [*protocol, "clone", "-q", "--bare", "--depth=2", url(server, "sha256")]
        git(tmp_path, *words, f"s{version}", home=home)
        shallow = tmp_path / f"s{version}"
        assert (shallow / "shallow").exists()
        git(shallow, *protocol, "fetch", "-q", "--unshallow", home=home)
        assert not (shallow / "shallow").exists()


def test_what_is_wrong_is_told(home: Path, server: Server, tmp_path: Path) -> None:
    for version in ("0", "2"):
        words = ("-c", f"protocol.version={version}", "ls-remote", url(server, "nobody"))
        shown = git(tmp_path, *words, home=home, check=False)
        assert "remote error: repository does not exist" in shown
        assert "git-remote-shardgit:" not in shown  # once is enough
    shown = git(tmp_path, "ls-remote", "shardgit://127.0.0.1:1/x", home=home, check=False)
    assert "git-remote-shardgit: 127.0.0.1:1: " in shown
    assert "Traceback" not in shown
    shown = git(tmp_path, "ls-remote", "shardgit://127.0.0.1", home=home, check=False)
    assert "write shardgit://HOST:PORT/NAME" in shown


def test_a_clone_that_is_killed_ends_its_call(home: Path, server: Server, tmp_path: Path) -> None:
    for number in range(3):
        process = subprocess.Popen(
            ["git", "clone", "-q", "--mirror", url(server, "sha1"), f"k{number}"],
            cwd=tmp_path,
            env=environment(home),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(0.4 + 0.3 * number)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    active = 'shardgit_requests_active{edge="grpc"} 0.0'
    until(lambda: active in server.ask("/metrics")[1])


def test_many_at_once(home: Path, server: Server, tmp_path: Path) -> None:
    wanted = reachable(home / "sha256")
    found: list[set[bytes]] = []

    def clone(number: int) -> None:
        git(tmp_path, "clone", "-q", "--mirror", url(server, "sha256"), f"c{number}", home=home)
        found.append(reachable(tmp_path / f"c{number}"))

    threads = [threading.Thread(target=clone, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 8


# ---- the service itself ----


@pytest.fixture
def stub(server: Server) -> Iterator[transport_pb2_grpc.TransportServiceStub]:
    options = [("grpc.http2.bdp_probe", 0)]  # else a client may take 16 MiB ahead, all of an answer
    with grpc.insecure_channel(server.grpc, options) as channel:
        yield transport_pb2_grpc.TransportServiceStub(channel)  # type: ignore[no-untyped-call]


def part(data: bytes) -> transport_pb2.UploadPackRequest:
    return transport_pb2.UploadPackRequest(data=data)


def opening(name: str, version: int = 0) -> transport_pb2.UploadPackRequest:
    words = transport_pb2.TransportHeader(repository=name, protocol_version=version)
    return transport_pb2.UploadPackRequest(header=words)


@pytest.mark.parametrize(
    ("requests", "code"),
    [
        ([], "INVALID_ARGUMENT"),
        ([part(b"0000")], "INVALID_ARGUMENT"),
        ([opening("sha1"), opening("sha1")], "INVALID_ARGUMENT"),
        ([opening("sha1"), part(bytes((1 << 20) + 1))], "RESOURCE_EXHAUSTED"),
        ([opening("sha1"), part(b"zzzz")], "INVALID_ARGUMENT"),
        ([opening("nobody")], "NOT_FOUND"),
        ([opening("sha1"), part(line(b"want " + b"1" * 40) + b"0000")], "NOT_FOUND"),
    ],
)
def test_what_breaks_the_rules_has_a_code(
    stub: transport_pb2_grpc.TransportServiceStub,
    requests: list[transport_pb2.UploadPackRequest],
    code: str,
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.UploadPack(iter(requests), timeout=30))
    assert refused.value.code().name == code


def test_messages_are_bounded(home: Path, stub: transport_pb2_grpc.TransportServiceStub) -> None:
    tip = git(home / "sha1", "rev-parse", "main").strip().encode()
    body = line(b"want " + tip + b" ofs-delta\n") + b"0000" + line(b"done\n")
    sizes = []
    whole = b""
    for answer in stub.UploadPack(iter([opening("sha1"), part(body)]), timeout=60):
        sizes.append(len(answer.data))
        whole += answer.data
    assert max(sizes) <= 1 << 20
    pack = whole[whole.index(b"PACK") :]
    assert len(pack) > 9 << 20
    refs = decode(whole[: whole.index(b"0000") + 4])
    assert len(refs) > 5


def test_a_cancelled_call_ends(
    server: Server, home: Path, stub: transport_pb2_grpc.TransportServiceStub
) -> None:
    tip = git(home / "sha1", "rev-parse", "main").strip().encode()
    body = line(b"want " + tip + b" ofs-delta\n") + b"0000" + line(b"done\n")
    call = stub.UploadPack(iter([opening("sha1"), part(body)]))
    for answer in call:
        if b"PACK" in answer.data:
            break
    before = cancelled(server)
    call.cancel()
    active = 'shardgit_requests_active{edge="grpc"} 0.0'
    until(lambda: active in server.ask("/metrics")[1])
    until(lambda: cancelled(server) == before + 1)


def cancelled(server: Server) -> float:
    """Return how many calls were cancelled so far."""
    name = 'shardgit_requests_total{code="CANCELLED",edge="grpc",'
    lines = [each for each in server.ask("/metrics")[1].splitlines() if each.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


# ---- the helper's own parts ----


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("shardgit://h/n", ("h:7420", "n")),
        ("shardgit://h:1/a/b.git", ("h:1", "a/b.git")),
        ("shardgit://u@h:1/a", ("h:1", "a")),
        ("shardgit://[::1]:5/a", ("[::1]:5", "a")),
        ("shardgit://[::1]/a", ("[::1]:7420", "a")),
        ("h:1/a", ("h:1", "a")),
        *(
            (bad, None)
            for bad in ("shardgit://h", "shardgit:///a", "shardgit://h:x/a", "h:70000/a")
        ),
        ("shardgit://::1:5/a", None),
        ("shardgit://host/na\udcffme", None),
    ],
)
def test_urls(text: str, place: tuple[str, str] | None) -> None:
    if place is None:
        with pytest.raises(ValueError, match=r"URL|brackets"):
            parse_url(text)
    else:
        assert parse_url(text) == place


def test_messages_by_hand_are_protobufs() -> None:
    for name, version in (("a", 0), ("b" * 300, 2)):
        made = transport_pb2.UploadPackRequest.FromString(header(name, version))
        assert made == opening(name, version)
    for size in (0, 1, 127, 128, 70_000, 1 << 20):
        data = b"x" * size
        message = transport_pb2.UploadPackResponse(data=data).SerializeToString()
        assert data_of(message) == data
    for wrong in (b"\x12\x01x", b"\x0a\x02x", b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff"):
        with pytest.raises(ValueError, match="not known"):
            data_of(wrong)


def test_the_helper_imports_little() -> None:
    script = "import sys, shardgit.remote_helper as h, grpc; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    loaded = set(done.stdout.decode().split())
    assert {each for each in loaded if each.startswith("shardgit")} == {
        "shardgit",
        "shardgit.calling",
        "shardgit.remote_helper",
    }
    assert not {"google.protobuf", "msgspec", "typer", "lmdb", "uvloop"} & loaded


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("shardgit://h/n", ""),
        ("shardgit://x:t%2Fk@h/n", "t/k"),
        ("shardgits://sgt_abc@h:1/a", "sgt_abc"),
        ("shardgit://u@h:1/a", ""),
        ("shardgit://h/a:b@c", ""),
    ],
)
def test_tokens_in_urls(url: str, token: str) -> None:
    assert token_in(url) == token


@pytest.mark.parametrize(
    ("place", "secure", "server", "ours"),
    [
        ("127.0.0.1:7420", False, "", True),
        ("localhost:7420", True, "", True),
        ("[::1]:7420", False, "", True),
        ("127.0.0.1:6666", False, "", False),
        ("127.0.0.1:6666", False, "127.0.0.1:6666", True),
        ("127.0.0.1:7420", False, "git.example:7420", False),
        ("127.evil.example:7420", False, "", False),
        ("127.0.0.1.evil.example:7420", False, "", False),
        ("git.example:7420", True, "", False),
        ("git.example:7420", False, "git.example:7420", True),
        ("git.example:7420", False, "git.example", True),
        ("git.example:7420", True, "grpcs://Git.Example:7420", True),
        ("git.example:7420", False, "grpcs://git.example:7420", False),
        ("git.example:9999", True, "grpcs://git.example:7420", False),
        ("[2001:db8::1]:7420", True, "grpcs://[2001:db8::1]", True),
        ("evil.example:7420", True, "git.example:7420", False),
    ],
)
def test_a_token_of_the_environment_goes_to_its_server_only(
    place: str, secure: bool, server: str, ours: bool
) -> None:
    assert is_ours(place, secure=secure, environment={"SHARDGIT_SERVER": server}) is ours
