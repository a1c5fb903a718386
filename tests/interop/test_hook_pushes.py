"""Stock git pushes to a server with hooks: what the user sees, what stays, what survives a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hooking import SHARDGIT, program
from served import Server, clean_environment, git, serving, shardgit, small_repository
from waiting import until

import shardgit as shardgit_client
from shardgit.errors import Refused
from shardgit.node import create_store
from shardgit.oid import ObjectId
from shardgit.refs.update import ANY, RefUpdate

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.interop


class Host:
    """A server with hooks, and a client's repository."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.server = server
        self.work = folder / "work"

    def hook(self, event: str, text: str, *, name: str = "", **more: Any) -> dict[str, Any]:
        target = program(self.folder / "hooks", name or event, text)
        return {"kind": "program", "event": event, "target": target, **more}

    def configure(self, *hooks: dict[str, Any]) -> None:
        words = ["repo", "config", "demo", "hooks", json.dumps(hooks), "--server", self.server.grpc]
        done = shardgit(*words, cwd=self.folder)
        assert done.returncode == 0, done.stderr

    def push(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "-C", str(self.work), "push", self.server.url("demo"), *words],
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def commit(self, name: str, text: str = "x\n") -> str:
        (self.work / name).write_text(text)
        git(self.work, "add", "-A")
        git(self.work, "commit", "-qm", name)
        return git(self.work, "rev-parse", "HEAD")

    def refs(self) -> dict[str, str]:
        lines = git(self.work, "ls-remote", self.server.url("demo"), "refs/*").splitlines()
        return {name: oid for oid, name in (line.split("\t") for line in lines)}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hooked")
    create_store(folder / "data")
    (folder / "config.toml").write_text(f'hooks_dir = "{folder}/hooks"\nworkers = 2\n')
    (folder / "hooks").mkdir()
    with serving(folder / "data", "--config", str(folder / "config.toml")) as server:
        yield server


@pytest.fixture
def host(running: Server) -> Iterator[Host]:
    folder = running.errors.parent
    made = Host(folder, running)
    if not made.work.exists():
        small_repository(made.work)
        done = shardgit("repo", "create", "demo", "--server", running.grpc, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert made.push("main").returncode == 0
    yield made
    made.configure()


def test_hooks_speak_to_the_pusher(host: Host) -> None:
    host.configure(
        host.hook("pre_receive", "sed 's/^/pre: /'"),
        host.hook("update", "echo update: $1"),
        host.hook("post_receive", "sed 's/^/post: /'; echo $GIT_PUSH_OPTION_0 >&2"),
    )
    before = host.refs()["refs/heads/main"]
    after = host.commit("speak")
    done = host.push("-o", "an option", "main")
    assert done.returncode == 0, done.stderr
    shown = [line.strip() for line in done.stderr.splitlines()]
    assert f"remote: pre: {before} {after} refs/heads/main" in shown
    assert "remote: update: refs/heads/main" in shown
    assert f"remote: post: {before} {after} refs/heads/main" in shown
    assert "remote: an option" in shown
    assert host.refs()["refs/heads/main"] == after


def test_a_refusing_hook_leaves_nothing(host: Host) -> None:
    host.configure(host.hook("pre_receive", "echo not on a Friday; exit 1"))
    before = host.refs()
    after = host.commit("refused")
    done = host.push("main", "main:refs/heads/other")
    assert done.returncode == 1
    assert "remote: not on a Friday" in done.stderr
    assert done.stderr.count("(pre-receive hook declined)") == 2
    assert host.refs() == before
    got = shardgit("object", "get", "demo", after, "--server", host.server.grpc, cwd=host.folder)
    assert got.returncode == 1
    host.configure()
    assert host.push("main").returncode == 0
    assert host.refs()["refs/heads/main"] == after


def test_an_update_hook_refuses_one_ref_or_an_atomic_push(host: Host) -> None:
    host.configure(
        host.hook("update", "test $1 != refs/heads/no || { echo no such branch; exit 1; }")
    )
    after = host.commit("two")
    done = host.push("main:refs/heads/yes", "main:refs/heads/no")
    assert done.returncode == 1
    assert "refs/heads/no -> no" not in done.stderr
    assert "(hook declined)" in done.stderr
    assert "remote: no such branch" in done.stderr
    assert host.refs()["refs/heads/yes"] == after
    assert "refs/heads/no" not in host.refs()
    done = host.push("--atomic", "main:refs/heads/yes2", "main:refs/heads/no")
    assert done.returncode == 1
    assert "refs/heads/yes2" not in host.refs()
    host.push(":refs/heads/yes")


def test_a_hook_reads_what_is_pushed_before_anybody_can(host: Host) -> None:
    text = f"""while read old new ref; do
        {SHARDGIT} object get $SHARDGIT_REPOSITORY $new:LICENSE || {{ echo "no LICENSE in $ref"; exit 1; }}
    done"""
    host.configure(host.hook("pre_receive", text))
    host.commit("without")
    done = host.push("main")
    assert done.returncode == 1
    assert "remote: no LICENSE in refs/heads/main" in done.stderr
    host.commit("LICENSE", "free as in beer\n")
    done = host.push("main")
    assert done.returncode == 0, done.stderr
    assert "remote: free as in beer" in done.stderr


def test_hooks_hold_for_whoever_moves_refs(host: Host) -> None:
    out = host.folder / "grpc.out"
    host.configure(
        host.hook("pre_receive", "echo no entry; exit 1"),
        host.hook("post_receive", f"cat >>{out}", name="listening"),
    )
    before = host.refs()["refs/heads/main"]
    with shardgit_client.connect(host.server.grpc) as client:
        repo = client.repo("demo")
        commit: dict[str, Any] = {"message": "m", "author": "A <a@b.c>", "files": {"g": b"1"}}
        with pytest.raises(Refused, match="pre-receive hook declined"):
            repo.commit("main", **commit)
        update = RefUpdate(b"refs/heads/over-grpc", ANY, ObjectId(bytes.fromhex(before)))
        with pytest.raises(Refused, match="pre-receive hook declined"):
            repo.update_refs([update])
        assert "refs/heads/over-grpc" not in host.refs()
        text = f"{SHARDGIT} object get $SHARDGIT_REPOSITORY $3:g >{out}.g"
        host.configure(
            host.hook("update", "test $1 != refs/heads/no || exit 1; " + text),
            host.hook("post_receive", f"cat >>{out}", name="listening"),
        )
        repo.commit("main", **commit)
        assert Path(f"{out}.g").read_bytes() == b"1"
        after = host.refs()["refs/heads/main"]
        moved = ObjectId(bytes.fromhex(after))
        with pytest.raises(Refused, match="hook declined"):
            repo.update_refs(
                [RefUpdate(b"refs/heads/no", ANY, moved), RefUpdate(b"refs/heads/z", ANY, moved)]
            )
        repo.update_refs([RefUpdate(b"refs/heads/over-grpc", ANY, moved)])
    assert set(host.refs()) & {"refs/heads/no", "refs/heads/z", "refs/heads/over-grpc"} == {
        "refs/heads/over-grpc"
    }
    until(lambda: out.exists() and len(out.read_text().splitlines()) == 2)
    zeros = "0" * 40
    assert out.read_text().splitlines() == [
        f"{before} {after} refs/heads/main",
        f"{zeros} {after} refs/heads/over-grpc",
    ]
    git(host.work, "pull", "-q", host.server.url("demo"), "main")


def test_a_hook_that_takes_too_long_refuses(host: Host) -> None:
    host.configure(host.hook("pre_receive", "echo thinking; sleep 300", timeout_s=1.0))
    host.commit("slow")
    begun = time.monotonic()
    done = host.push("main")
    assert time.monotonic() - begun < 30
    assert done.returncode == 1
    assert "remote: thinking" in done.stderr
    assert "pre-receive hook failed: hook did not end in time" in done.stderr


def test_a_worker_killed_between_commit_and_hook_loses_no_event(host: Host) -> None:
    out = host.folder / "killed.out"
    text = f"""read old new ref
        echo "$SHARDGIT_SEQUENCE $new" >>{out}
        test $(wc -l <{out}) -gt 1 || kill -9 $PPID"""
    host.configure(host.hook("post_receive", text))
    after = host.commit("killed")
    host.push("main")  # its worker dies under it
    assert host.refs()["refs/heads/main"] == after
    until(lambda: len(out.read_text().splitlines()) == 2)
    first, second = out.read_text().splitlines()
    assert first == second
    assert first.endswith(after)
    time.sleep(3)
    assert len(out.read_text().splitlines()) == 2


def test_a_server_killed_whole_tells_when_it_is_back(tmp_path: Path) -> None:
    create_store(tmp_path / "data")
    (tmp_path / "config.toml").write_text(f'hooks_dir = "{tmp_path}/hooks"\nworkers = 1\n')
    (tmp_path / "hooks").mkdir()
    small_repository(tmp_path / "work")
    words = ("--config", str(tmp_path / "config.toml"))
    out, block = tmp_path / "out", tmp_path / "block"
    block.touch()
    with serving(tmp_path / "data", *words) as server:
        host = Host(tmp_path, server)
        shardgit("repo", "create", "demo", "--server", server.grpc, cwd=tmp_path)
        text = f"test -e {block} && touch {out}.begun && exec sleep 15; cat >>{out}"
        host.configure(host.hook("post_receive", text))
        pushing = subprocess.Popen(
            ["git", "-C", str(host.work), "push", server.url("demo"), "main"],
            env=clean_environment(),
            stderr=subprocess.DEVNULL,
        )
        until(Path(f"{out}.begun").exists)
        for pid in (server.process.pid, *server.workers()):
            os.kill(pid, signal.SIGKILL)
        pushing.wait(timeout=60)
    block.unlink()
    with serving(tmp_path / "data", *words) as server:
        until(lambda: out.exists() and out.read_text() != "")
        host = Host(tmp_path, server)
        assert host.refs()["refs/heads/main"] == git(host.work, "rev-parse", "main")
    assert out.read_text().endswith(f" {git(host.work, 'rev-parse', 'main')} refs/heads/main\n")
