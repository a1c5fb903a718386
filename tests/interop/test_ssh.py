"""Git over the real ssh: clones and fetches, keys, what is refused, slow and lost clients."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from reference.gits import ENVIRONMENT, extend_history, make_history, reachable
from served import FREE, Server, serving, shardgit
from waiting import until

from shardgit.node import create_store, open_store
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(shutil.which("ssh") is None, reason="needs openssh-client"),
]
ALGORITHMS = ["sha1", "sha256"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sources, keys and a store."""
    folder = tmp_path_factory.mktemp("ssh")
    create_store(folder / "data", shards=2)
    with open_store(folder / "data") as store:
        for algorithm in ALGORITHMS:
            source = make_history(folder / algorithm, commits=12, algorithm=algorithm)
            if algorithm == "sha1":
                (source / "big").write_bytes(os.urandom(12 << 20))
                git(folder, "-C", str(source), "add", "-A")
                git(folder, "-C", str(source), "commit", "-qm", "big")
            import_repository(store, algorithm, str(source))
    for name in ("ada", "bob"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{name} <{name}@x>", "-f"]
        subprocess.run([*keygen, str(folder / name)], check=True)
    return folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with serving(home / "data", "--workers", "2") as running:
        yield running


def ssh_words(home: Path, key: str = "") -> list[str]:
    """Return ssh with a configuration of its own."""
    words = ["ssh", "-F", os.devnull, "-o", "StrictHostKeyChecking=accept-new"]
    words += ["-o", f"UserKnownHostsFile={home}/known_hosts", "-o", "BatchMode=yes"]
    words += ["-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "LogLevel=ERROR"]
    return [*words, "-i", str(home / key)] if key else [*words, "-o", "IdentityFile=none"]


def environment(home: Path, key: str = "") -> dict[str, str]:
    command = " ".join(ssh_words(home, key))
    return {**os.environ, **ENVIRONMENT, "GIT_SSH_COMMAND": command, "GIT_SSH_VARIANT": "ssh"}


def git(
    folder: Path, *words: str, home: Path | None = None, key: str = "", check: bool = True
) -> str:
    """Run git with our ssh; return what it prints on both streams."""
    done = subprocess.run(
        ["git", *words],
        cwd=folder,
        env=environment(home or folder, key),
        capture_output=True,
        check=False,
        timeout=120,
    )
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert not check or done.returncode == 0, text
    return text


def url(server: Server, name: str) -> str:
    return f"ssh://git@{server.ssh}/{name}.git"


def ssh(
    home: Path, server: Server, *words: str, key: str = "", stdin: bytes = b""
) -> tuple[int, str, str]:
    """Run a command over ssh."""
    host, port = server.ssh.split(":")
    done = subprocess.run(
        [*ssh_words(home, key), "-p", port, f"git@{host}", *words],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("utf-8", "replace")


# ---- what git does ----


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_clones_and_fetches_are_whole(
    home: Path, server: Server, tmp_path: Path, version: str, algorithm: str
) -> None:
    source = home / algorithm
    protocol = ("-c", f"protocol.version={version}")
    remote = url(server, algorithm)
    listed = git(tmp_path, *protocol, "ls-remote", remote, home=home)
    assert listed == git(tmp_path, *protocol, "ls-remote", str(source), home=home)
    git(tmp_path, *protocol, "clone", "-q", "--mirror", remote, "whole.git", home=home)
    assert reachable(tmp_path / "whole.git") == reachable(source)
    git(tmp_path / "whole.git", "fsck", "--strict")
    git(tmp_path, "clone", "-q", "--bare", "--single-branch", "-b", "side", str(source), "part.git")
    part = tmp_path / "part.git"
    git(part, *protocol, "fetch", "-q", remote, "+refs/*:refs/*", home=home)
    assert reachable(part) == reachable(source)
    assert "request_failed" not in server.events()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_archives_are_gits(home: Path, server: Server, tmp_path: Path, algorithm: str) -> None:
    remote = f"--remote={url(server, algorithm)}"
    git(tmp_path, "archive", remote, "-o", "ours.tar", "--prefix=x/", "main", home=home)
    git(home / algorithm, "archive", "-o", str(tmp_path / "gits.tar"), "--prefix=x/", "main")
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "gits.tar").read_bytes()
    assert git(tmp_path, "archive", remote, "--list", home=home).split() == [
        *("tar", "tgz", "tar.gz", "zip")
    ]
    shown = git(tmp_path, "archive", remote, "main~1", home=home, check=False)
    assert "remote: fatal: no such ref: main~1" in shown
    gone = f"--remote={url(server, 'nobody')}"
    assert "repository does not exist" in git(
        tmp_path, "archive", gone, "main", home=home, check=False
    )


def test_the_version_reaches_the_server(home: Path, server: Server, tmp_path: Path) -> None:
    for version, first in (("0", "HEAD\0"), ("1", "version 1"), ("2", "version 2")):
        done = subprocess.run(
            ["git", "-c", f"protocol.version={version}", "ls-remote", url(server, "sha1")],
            cwd=tmp_path,
            env={**environment(home), "GIT_TRACE_PACKET": "1"},
            capture_output=True,
            check=True,
            timeout=60,
        )
        heard = [line for line in done.stderr.decode().splitlines() if "ls-remote< " in line]
        assert first.replace("\0", "\\0") in heard[0]


def test_paths_are_taken_as_git_writes_them(home: Path, server: Server, tmp_path: Path) -> None:
    host, port = server.ssh.split(":")
    want = git(tmp_path, "ls-remote", str(home / "sha1"), home=home)
    for remote in (
        f"ssh://git@{server.ssh}/sha1",
        f"ssh://git@{server.ssh}/sha1.git/",
        f"ssh://git@{server.ssh}//sha1.git",
        f"ssh://git@{server.ssh}/~/sha1.git",
        f"ssh://anybody@{server.ssh}/sha1.git",
        f"[git@{host}:{port}]:sha1.git",
        f"[git@{host}:{port}]:/sha1",
    ):
        assert git(tmp_path, "ls-remote", remote, home=home) == want, remote


def test_many_sessions_at_once(home: Path, server: Server, tmp_path: Path) -> None:
    wanted = reachable(home / "sha256")
    found: list[set[bytes]] = []

    def clone(number: int) -> None:
        git(tmp_path, "clone", "-q", "--mirror", url(server, "sha256"), f"c{number}", home=home)
        found.append(reachable(tmp_path / f"c{number}"))

    threads = [threading.Thread(target=clone, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 12


def test_sessions_share_a_connection(home: Path, server: Server, tmp_path: Path) -> None:
    host, port = server.ssh.split(":")
    control = tmp_path / "c"
    master = [*ssh_words(home), "-M", "-N", "-f", "-S", str(control), "-p", port, f"git@{host}"]
    subprocess.run(master, check=True, timeout=60)
    try:
        for _ in range(3):
            text = f"{' '.join(ssh_words(home))} -S {control}"
            done = subprocess.run(
                ["git", "ls-remote", url(server, "sha1")],
                cwd=tmp_path,
                env={**environment(home), "GIT_SSH_COMMAND": text},
                capture_output=True,
                check=True,
                timeout=60,
            )
            assert b"refs/heads/main" in done.stdout
    finally:
        stop = [*ssh_words(home), "-S", str(control), "-O", "exit", f"git@{host}"]
        subprocess.run(stop, check=True, timeout=60, capture_output=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_pushes_arrive(
    home: Path, server: Server, tmp_path: Path, version: str, algorithm: str
) -> None:
    name = f"push-{algorithm}-{version}"
    create = ("repo", "create", name, "--object-format", algorithm, "--server", server.grpc)
    done = shardgit(*create, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    protocol = ("-c", f"protocol.version={version}")
    remote = url(server, name)
    git(tmp_path, "clone", "-q", "--mirror", str(home / algorithm), "own.git")
    own = tmp_path / "own.git"
    git(own, *protocol, "push", "-q", remote, "+refs/*:refs/*", home=home)
    git(tmp_path, *protocol, "clone", "-q", "--mirror", remote, "back.git", home=home)
    assert reachable(tmp_path / "back.git") == reachable(own)
    shown = git(own, *protocol, "push", remote, "+refs/*:refs/*", home=home)
    assert "Everything up-to-date" in shown
    git(tmp_path, "clone", "-q", str(own), "w")
    (tmp_path / "w" / "new").write_text("new")
    git(tmp_path / "w", "add", "-A")
    git(tmp_path / "w", "commit", "-qm", "new")
    git(tmp_path / "w", *protocol, "push", "-q", remote, "HEAD:main", ":side", home=home)
    listed = git(tmp_path, "ls-remote", remote, home=home)
    assert git(tmp_path / "w", "rev-parse", "HEAD").strip() + "\trefs/heads/main" in listed
    assert "refs/heads/side" not in listed
    git(tmp_path / "w", "reset", "-q", "--hard", "HEAD~2")
    shown = git(tmp_path / "w", *protocol, "push", remote, "HEAD:main", home=home, check=False)
    assert "rejected" in shown
    git(tmp_path / "w", *protocol, "push", "-q", "--atomic", "-f", remote, "HEAD:main", home=home)
    assert "request_failed" not in server.events()


def test_pushes_that_are_killed_leave_nothing_behind(
    home: Path, server: Server, tmp_path: Path
) -> None:
    create = ("repo", "create", "killed", "--server", server.grpc)
    assert shardgit(*create, cwd=tmp_path).returncode == 0
    for number in range(3):
        process = subprocess.Popen(
            ["git", "push", "-q", url(server, "killed"), "main"],
            cwd=home / "sha1",
            env=environment(home),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(0.2 + 0.2 * number)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    active = 'shardgit_requests_active{edge="ssh"} 0.0'
    until(lambda: active in server.ask("/metrics")[1])
    git(home / "sha1", "push", "-q", url(server, "killed"), "main", home=home)
    listed = git(tmp_path, "ls-remote", url(server, "killed"), home=home)
    assert git(home / "sha1", "rev-parse", "main").strip() in listed


def test_a_signed_push_bears_the_nonce_of_its_conversation(
    home: Path, server: Server, tmp_path: Path
) -> None:
    assert shardgit("repo", "create", "signed", "--server", server.grpc, cwd=home).returncode == 0
    public = " ".join((home / "ada.pub").read_text().split()[:2])
    for key, value in (
        ("signed_push.mode", "required"),
        ("signed_push.ssh_signers", f"committer@example.com {public}"),
    ):
        done = shardgit("repo", "config", "signed", key, value, "--server", server.grpc, cwd=home)
        assert done.returncode == 0, done.stderr
    source, remote = tmp_path / "w", url(server, "signed")
    git(tmp_path, "init", "-q", "-b", "main", str(source))
    git(source, "commit", "-q", "--allow-empty", "-m", "first")
    shown = git(source, "push", remote, "main", home=home, check=False)
    assert "rejected" in shown
    signer = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={home / 'ada'}")
    who = ("-c", "user.name=C", "-c", "user.email=committer@example.com")
    git(source, *signer, *who, "push", "--signed", "-q", remote, "main", home=home)
    assert "refs/heads/main" in git(source, "ls-remote", remote, home=home)


def test_what_a_push_lacks_is_told(home: Path, server: Server, tmp_path: Path) -> None:
    shown = git(home / "sha1", "push", url(server, "nobody"), "main", home=home, check=False)
    assert "repository does not exist" in shown


def test_shallow_and_partial_clones(home: Path, server: Server, tmp_path: Path) -> None:
    for version in ("0", "2"):
        protocol = ("-c", f"protocol.version={version}")
        words = [
            *protocol,
            "clone",
            "-q",
            "--bare",
            "--depth=2",
            url(server, "sha256"),
            f"s{version}",
        ]
        git(tmp_path, *words, home=home)
        shallow = tmp_path / f"s{version}"
        assert (shallow / "shallow").exists()
        git(shallow, *protocol, "fetch", "-q", "--unshallow", home=home)
        assert not (shallow / "shallow").exists()
        git(shallow, "fsck", "--strict")
    words = ["clone", "-q", "--bare", "--filter=blob:none", url(server, "sha256"), "partial"]
    git(tmp_path, *words, home=home)
    missing = git(tmp_path / "partial", "rev-list", "--objects", "--all", "--missing=print")
    assert "?" in missing


# ---- what is refused ----


def test_there_is_no_shell_and_nothing_but_git(home: Path, server: Server, tmp_path: Path) -> None:
    code, out, errors = ssh(home, server)
    assert (code, out) == (1, "")
    assert "gives no shell" in errors
    for words in (
        ["ls"],
        ["git-upload-pack"],
        ["git-upload-pack --strict '/sha1.git'"],
        ["git-upload-pack '/sha1.git"],
        ["git gc"],
        ["scp -t x"],
        ["x" * 9_000],
    ):
        code, out, errors = ssh(home, server, *words)
        assert (code, out) == (1, ""), words
        assert errors.startswith("shardgit: ")
        assert errors.count("\n") == 1
    host, port = server.ssh.split(":")
    sftp = ["-s", "-p", port, f"git@{host}", "sftp"]
    done = subprocess.run([*ssh_words(home), *sftp], capture_output=True, check=False, timeout=60)
    assert done.returncode != 0


def test_no_port_is_forwarded(home: Path, server: Server) -> None:
    host, port = server.ssh.split(":")
    words = [*ssh_words(home), "-o", "ExitOnForwardFailure=yes", "-p", port]
    done = subprocess.run(
        [*words, "-N", "-R", "0:127.0.0.1:1", f"git@{host}"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 255
    done = subprocess.run(
        [*words, "-W", server.http, f"git@{host}"], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 255
    assert b"forwarding failed" in done.stderr


def test_what_is_missing_is_told(home: Path, server: Server, tmp_path: Path) -> None:
    for version in ("0", "1", "2"):
        words = ("-c", f"protocol.version={version}", "ls-remote", url(server, "nobody"))
        shown = git(tmp_path, *words, home=home, check=False)
        assert "remote error: repository does not exist" in shown
    code, out, _ = ssh(home, server, "git-upload-pack '/nobody.git'")
    assert code == 128
    assert "ERR repository does not exist" in out


def test_clients_that_are_killed_leave_nothing_behind(
    home: Path, server: Server, tmp_path: Path
) -> None:
    for number in range(3):
        process = subprocess.Popen(
            ["git", "clone", "-q", "--mirror", url(server, "sha1"), f"k{number}"],
            cwd=tmp_path,
            env=environment(home),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(0.3 + 0.3 * number)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    active = 'shardgit_requests_active{edge="ssh"} 0.0'
    until(lambda: active in server.ask("/metrics")[1])
    git(tmp_path, "clone", "-q", "--mirror", url(server, "sha1"), "after", home=home)
    assert "request_failed" not in server.events()


def test_a_client_that_does_not_speak_ssh_is_left(server: Server) -> None:
    host, port = server.ssh.split(":")
    for said in (b"GET / HTTP/1.0\r\n\r\n", b"\0" * 100_000, b"SSH-2.0-x\r\n" + b"\xff" * 1_000):
        with socket.create_connection((host, int(port)), timeout=20) as client:
            try:
                client.sendall(said)
                while client.recv(65_536):
                    pass
            except ConnectionError:
                pass
    assert server.ask("/readyz")[0] == 200


def test_a_slow_client_stops_the_producer(home: Path, server: Server, tmp_path: Path) -> None:
    """12 MiB that are not taken: the server holds a window of them, not all."""

    def held() -> int:
        return sum(
            int(line.split()[1])
            for pid in server.workers()
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("RssAnon")
        )

    git(tmp_path, "clone", "-q", "--mirror", url(server, "sha1"), "warm", home=home)
    before = held()
    host, port = server.ssh.split(":")
    tip = git(home / "sha1", "rev-parse", "main").strip()
    request = f"003ewant {tip} ofs-delta\n".encode()
    request = b"%04x" % (4 + len(request[4:])) + request[4:] + b"00000009done\n"
    processes = []
    for _ in range(4):
        process = subprocess.Popen(
            [*ssh_words(home), "-p", port, f"git@{host}", "git-upload-pack '/sha1'"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(request)
        process.stdin.flush()
        processes.append(process)
    try:
        time.sleep(3)
        assert 'shardgit_requests_active{edge="ssh"} 4.0' in server.ask("/metrics")[1]
        assert held() - before < 4 * 8 * 1_024  # kB
    finally:
        for process in processes:
            process.kill()
            process.communicate()


# ---- keys ----


def test_a_key_in_the_store_shuts_everybody_else_out(home: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    create_store(data)
    with open_store(data) as store:
        import_repository(store, "sha256", str(home / "sha256"))
    words = ("--data", str(data))
    with serving(data, "--workers", "1") as server:
        assert "refs/heads/main" in git(home, "ls-remote", url(server, "sha256"))
        pub = str(home / "ada.pub")
        done = shardgit("key", "add", pub, *words, cwd=home)
        assert done.returncode == 0, done.stderr
        assert "may come in as ada <ada@x>" in done.stdout
        again = shardgit("key", "add", pub, *words, cwd=home)
        assert (again.returncode, again.stdout) == (1, "")
        assert "key is there already" in again.stderr
        for key in ("", "bob"):
            shown = git(home, "ls-remote", url(server, "sha256"), key=key, check=False)
            assert "Permission denied (publickey)" in shown
        assert "refs/heads/main" in git(home, "ls-remote", url(server, "sha256"), key="ada")
        assert "Hi ada <ada@x>!" in ssh(home, server, key="ada")[2]
        listed = shardgit("key", "list", "--json", *words, cwd=home)
        digest = subprocess.run(
            ["ssh-keygen", "-lf", pub], capture_output=True, check=True, text=True
        ).stdout.split()[1]
        assert digest in listed.stdout
        assert shardgit("key", "add", str(home / "bob.pub"), *words, cwd=home).returncode == 0
        assert shardgit("key", "remove", digest, *words, cwd=home).returncode == 0
        shown = git(home, "ls-remote", url(server, "sha256"), key="ada", check=False)
        assert "Permission denied" in shown
        assert "refs/heads/main" in git(home, "ls-remote", url(server, "sha256"), key="bob")
        assert shardgit("key", "remove", "nobody", *words, cwd=home).returncode == 1
        assert shardgit("key", "remove", "bob <bob@x>", *words, cwd=home).returncode == 0
        assert "ssh_key_unknown" in server.events()


def test_a_file_of_keys_is_read_again_when_it_changes(home: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    create_store(data)
    with open_store(data) as store:
        import_repository(store, "sha256", str(home / "sha256"))
    file = tmp_path / "authorized_keys"
    bob = (home / "bob.pub").read_text()
    file.write_text(f"# people\n\nrestrict,no-pty {(home / 'ada.pub').read_text()}command=x {bob}")
    config = tmp_path / "shardgit.toml"
    config.write_text(f'ssh_authorized_keys = "{file}"\n')
    with serving(data, "--workers", "1", "--config", str(config)) as server:
        assert "refs/heads/main" in git(home, "ls-remote", url(server, "sha256"), key="ada")
        for key in ("", "bob"):
            shown = git(home, "ls-remote", url(server, "sha256"), key=key, check=False)
            assert "Permission denied" in shown
        assert "ssh_key_line_ignored" in server.events()
        file.write_text(bob)
        assert "refs/heads/main" in git(home, "ls-remote", url(server, "sha256"), key="bob")
        shown = git(home, "ls-remote", url(server, "sha256"), key="ada", check=False)
        assert "Permission denied" in shown
        file.unlink()
        shown = git(home, "ls-remote", url(server, "sha256"), key="bob", check=False)
        assert "Permission denied" in shown
    done = shardgit("serve", *FREE, "--data", str(data), "--config", str(config), cwd=tmp_path)
    assert done.returncode == 1
    assert "authorized keys file cannot be read" in done.stderr


def test_without_keys_a_port_beyond_loopback_lets_nobody_in(home: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    create_store(data)
    with serving(data, "--workers", "1", "--ssh", "0.0.0.0:0") as server:
        server.ssh = server.ssh.replace("0.0.0.0", "127.0.0.1")
        shown = git(home, "ls-remote", url(server, "sha1"), key="ada", check=False)
        assert "Permission denied" in shown
        assert "ssh_lets_nobody_in" in server.events()


# ---- the server's life ----


def test_the_host_key_is_made_once_and_private(home: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    create_store(data)
    with serving(data, "--workers", "2"):
        key = data / "ssh_host_ed25519_key"
        first = key.read_bytes()
        assert key.stat().st_mode & 0o777 == 0o600
    with serving(data, "--workers", "1"):
        assert key.read_bytes() == first
    assert [path.name for path in data.glob("ssh_host*")] == [key.name]
    key.chmod(0o644)
    done = shardgit("serve", *FREE, "--data", str(data), cwd=tmp_path)
    assert done.returncode == 1
    assert "may be read by others" in done.stderr


def test_a_clone_that_runs_ends_before_the_worker_does(home: Path, tmp_path: Path) -> None:
    with serving(home / "data", "--workers", "1") as server:
        host, port = server.ssh.split(":")
        tip = git(home / "sha1", "rev-parse", "main").strip()
        process = subprocess.Popen(
            [*ssh_words(home), "-p", port, f"git@{host}", "git-upload-pack '/sha1'"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        wants = f"want {tip} ofs-delta\n".encode()
        process.stdin.write(b"%04x" % (len(wants) + 4) + wants + b"00000009done\n")
        process.stdin.flush()
        until(lambda: 'shardgit_requests_active{edge="ssh"} 1.0' in server.ask("/metrics")[1])
        server.process.terminate()
        until(lambda: "worker_draining" in server.events())
        refused = git(tmp_path, "ls-remote", url(server, "sha1"), home=home, check=False)
        assert "fatal" in refused
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert server.process.wait(timeout=60) == 0
    pack = out[out.index(b"PACK") :]
    assert len(pack) > 12 << 20
    git(tmp_path, "init", "-q", "got")
    (tmp_path / "got" / "p.pack").write_bytes(pack)
    git(tmp_path / "got", "index-pack", "p.pack")


def test_with_a_broken_asyncssh_it_is_said_what_to_do(home: Path, tmp_path: Path) -> None:
    (tmp_path / "asyncssh.py").write_text("raise ImportError")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    words = ("serve", *FREE, "--data", str(home / "data"))
    done = shardgit(*words, cwd=tmp_path, environment={"PYTHONPATH": paths})
    assert done.returncode == 1
    assert "pip install 'shardgit[ssh]', or serve with --ssh off" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ssh_can_be_off(home: Path) -> None:
    with serving(home / "data", "--workers", "1", "--ssh", "off") as server:
        assert server.ssh == "off"
        assert server.ask("/readyz")[0] == 200


def test_history_grows_between_fetches(home: Path, tmp_path: Path) -> None:
    """A second import into the same store is not possible, so two names stand for two states."""
    import random

    source = make_history(tmp_path / "origin", commits=10)
    data = tmp_path / "data"
    create_store(data)
    with open_store(data) as store:
        import_repository(store, "old", str(source))
        extend_history(source, commits=30, rand=random.Random(5), first=20_000)
        import_repository(store, "new", str(source))
    with serving(data, "--workers", "1") as server:
        git(tmp_path, "clone", "-q", "--mirror", url(server, "old"), "c", home=home)
        for version in ("0", "2"):
            git(tmp_path, "clone", "-q", "--mirror", "c", f"c{version}")
            shown = git(
                tmp_path / f"c{version}",
                *("-c", f"protocol.version={version}", "fetch", "--progress"),
                *(url(server, "new"), "+refs/*:refs/*"),
                home=home,
            )
            assert reachable(tmp_path / f"c{version}") == reachable(source)
            total = re.search(r"Total (\d+)", shown)
            assert total is not None, shown
            assert int(total[1]) == len(reachable(source) - reachable(tmp_path / "c"))


# ---- git-lfs ----


def test_git_lfs_is_told_where_its_objects_are(home: Path, server: Server) -> None:
    code, out, _ = ssh(home, server, "git-lfs-authenticate", "/sha1.git", "upload")
    assert code == 0
    answer = json.loads(out)
    assert answer["href"] == f"http://{server.http}/sha1.git/info/lfs"
    assert set(answer["header"]) == {"Authorization"}
    for words, shown in (
        (("git-lfs-authenticate", "sha1", "steal"), "takes a repository"),
        (("git-lfs-authenticate", "sha1"), "takes a repository"),
        (("git-lfs-transfer", "sha1", "upload"), "only git-upload-pack"),
    ):
        code, _, err = ssh(home, server, *words)
        assert (code, shown in err) == (1, True), err
    code, _, err = ssh(home, server, "git-lfs-authenticate", "nobody", "download")
    assert code == 128
    assert "shardgit: repository does not exist (repository=nobody)" in err


@pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not there")
def test_lfs_objects_of_an_ssh_remote(home: Path, server: Server, tmp_path: Path) -> None:
    done = shardgit("repo", "create", "large", "--server", server.grpc, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    work = tmp_path / "work"
    git(tmp_path, "init", "-q", "-b", "main", str(work))
    filters = (
        *("-c", "filter.lfs.process=git-lfs filter-process"),
        *("-c", "filter.lfs.required=true", "-c", "filter.lfs.clean=git-lfs clean -- %f"),
    )
    git(work, "lfs", "install", "--local", home=home)
    git(work, "lfs", "track", "*.bin", home=home)
    data = os.urandom(1 << 20)
    (work / "f.bin").write_bytes(data)
    git(work, *filters, "add", "-A", home=home)
    git(work, "commit", "-qm", "large", home=home)
    git(work, "push", "-q", url(server, "large"), "main", home=home)
    git(tmp_path, *filters, "clone", "-q", url(server, "large"), "clone", home=home)
    assert (tmp_path / "clone" / "f.bin").read_bytes() == data
