"""A shard that becomes read-only under a server: pushes pass all the while, and its file stays as it is."""

from __future__ import annotations

import hashlib
import random
import threading
from typing import TYPE_CHECKING

from served import git, serving, shardgit, small_repository
from waiting import until

if TYPE_CHECKING:
    from pathlib import Path


def digest(shard: Path) -> bytes:
    return hashlib.sha256((shard / "data.mdb").read_bytes()).digest()


def test_a_shard_is_held_under_pushes(tmp_path: Path) -> None:
    data, shard = tmp_path / "data", tmp_path / "data" / "shards" / "001"
    source = small_repository(tmp_path / "source", 3)
    git(source, "config", "core.compression", "0")
    assert shardgit("init", str(data), "--shards", "3", cwd=tmp_path).returncode == 0
    done = shardgit("repo", "import", "demo", str(source), "--data", str(data), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    over, wrong, pushed = threading.Event(), list[str](), list[str]()
    with serving(data, "--workers", "2") as server:
        operate = ("--server", server.grpc)

        def push() -> None:
            number = 0
            while not over.is_set():
                number += 1
                (source / "file").write_bytes(
                    random.randbytes(1_200_000)
                )  # no row of the journal holds it
                git(source, "add", "-A")
                git(source, "commit", "-q", "-m", f"{number}")
                try:
                    git(source, "push", "-q", server.url("demo"), f"HEAD:refs/heads/p{number}")
                except AssertionError as error:
                    wrong.append(str(error))
                pushed.append(f"p{number}")

        def pushes(count: int, changed: bytes = b"") -> None:
            """Waits for so many pushes, and for more of them while the shard is as in changed."""
            enough = len(pushed) + count
            until(lambda: len(pushed) >= enough and digest(shard) != changed)

        before = digest(shard)
        pusher = threading.Thread(target=push)
        pusher.start()
        try:
            pushes(4, changed=before)
            held = shardgit(
                "shard", "read-only", "1", "on", "--reason", "copied", *operate, cwd=tmp_path
            )
            assert held.returncode == 0, held.stderr
            assert held.stdout.endswith(": copied\n")
            frozen = digest(shard)
            pushes(16)
            assert digest(shard) == frozen
            listed = shardgit("shard", "list", *operate, cwd=tmp_path).stdout
            assert listed.count("read-only") == 1
            told = "warning: shard 1: it is read-only: copied\n"
            until(lambda: told in server.ask("/readyz")[1])  # each worker looks from time to time
            free = shardgit("shard", "read-only", "1", "off", *operate, cwd=tmp_path)
            assert free.returncode == 0, free.stderr
            pushes(4, changed=frozen)
        finally:
            over.set()
            pusher.join(60)
        assert wrong == []
        git(tmp_path, "clone", "-q", "--mirror", server.url("demo"), "clone")
        refs = git(tmp_path / "clone", "for-each-ref", "--format=%(refname:lstrip=2)").split()
        assert set(pushed) <= set(refs)
        git(tmp_path / "clone", "fsck", "--strict")
    checked = shardgit("shard", "verify", "--data", str(data), cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
