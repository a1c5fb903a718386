"""What git and other clients hear of a quota that is used up, and of what is read-only, by every way in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from served import clean_environment, git, serving, shardgit, small_repository

from shardgit.client import connect
from shardgit.errors import QuotaExceeded, ReadOnly
from shardgit.node import create_store, open_store
from shardgit.objects import ObjectType
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from served import Server

pytestmark = pytest.mark.interop
WHY = "moving to the new disks"
NAMES = ("team/a", "team/b", "team/c")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of three repositories, and a clone of each."""
    folder = tmp_path_factory.mktemp("refused")
    source = small_repository(folder / "source")
    create_store(folder / "data")
    with open_store(folder / "data") as store:
        for name in NAMES:
            import_repository(store, name, str(source))
    for name in NAMES:
        git(folder, "clone", "-q", str(source), name.partition("/")[2])
    return folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with serving(home / "data", "--workers", "2") as running:
        yield running


def operator(home: Path, server: Server, *words: str) -> dict[str, object]:
    done = shardgit(*words, "--server", server.grpc, "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def commit(home: Path, name: str, size: int) -> None:
    work = home / name
    (work / "large").write_bytes(os.urandom(size))
    git(work, "add", "large")
    git(work, "commit", "-q", "-m", f"{size} bytes")


def pushing(home: Path, name: str, url: str, *words: str, ssh: str = "") -> subprocess.Popen[str]:
    variables = {**clean_environment(), **({"GIT_SSH_COMMAND": ssh} if ssh else {})}
    command = ["git", "-C", str(home / name), "push", url, *(words or ("HEAD:refs/heads/main",))]
    return subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)


def heard(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, text = process.communicate(timeout=120)
    return process.returncode, text


def test_git_says_how_much_of_a_quota_is_used(home: Path, server: Server) -> None:
    operator(home, server, "quota", "set", "team", "--bytes", "300KiB", "--repositories", "3")
    commit(home, "a", 400_000)
    code, text = heard(pushing(home, "a", server.url("team/a")))
    assert code == 1
    assert "remote: error: quota of owner team: " in text
    assert "of 300.0 KiB used, 391." in text
    assert "! [remote rejected] HEAD -> main (quota is used up: bytes)" in text
    with connect(server.grpc) as client:
        with pytest.raises(QuotaExceeded) as caught:
            client.create("team/d")
        assert caught.value.facts["allowed"] == 3
        with pytest.raises(QuotaExceeded):
            client.repo("team/a").put_objects([(ObjectType.BLOB, os.urandom(400_000))])
    operator(home, server, "quota", "set", "team", "--bytes", "700KiB")
    assert heard(pushing(home, "a", server.url("team/a")))[0] == 0
    shown = operator(home, server, "quota", "show", "team")
    assert isinstance(shown["used_bytes"], int)
    assert 400_000 < shown["used_bytes"] < 450_000
    text = shardgit("repo", "show", "team/a", "--server", server.grpc, cwd=home).stdout
    assert "quota       39" in text
    assert " of 700.0 KiB" in shardgit("quota", "list", "--data", "data", cwd=home).stdout


def test_of_two_pushes_at_once_to_an_owner_one_has_the_last_room(
    home: Path, server: Server
) -> None:
    used = operator(home, server, "quota", "set", "team", "--bytes", "0")["used_bytes"]
    assert isinstance(used, int)
    operator(home, server, "quota", "set", "team", "--bytes", str(used + 300_000))
    for name in ("b", "c"):
        commit(home, name, 200_000)
    both = [pushing(home, name, server.url(f"team/{name}")) for name in ("b", "c")]
    ended = [heard(one) for one in both]
    assert sorted(code for code, _ in ended) == [0, 1], ended
    operator(home, server, "quota", "remove", "team")
    again = [pushing(home, name, server.url(f"team/{name}")) for name in ("b", "c")]
    assert [heard(one)[0] for one in again] == [0, 0]


def lfs_upload(server: Server, name: str) -> tuple[int, str]:
    data = b"large file"
    url = f"{server.url(name)}/info/lfs/objects/{sha256(data).hexdigest()}/{len(data)}"
    request = urllib.request.Request(url, data=data, method="PUT")
    request.add_header("Content-Type", "application/octet-stream")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


@pytest.mark.parametrize("what", ["store", "repository"])
def test_what_is_read_only_takes_nothing_by_any_way_and_says_why(
    home: Path, server: Server, what: str, tmp_path: Path
) -> None:
    commit(home, "a", 1_000)
    if what == "store":
        operator(home, server, "store", "read-only", "on", "--reason", WHY)
    else:
        operator(home, server, "repo", "config", "team/a", "read_only_why", WHY)
        operator(home, server, "repo", "config", "team/a", "read_only", "true")
    said = f"({what} is read-only: {WHY})"
    code, text = heard(pushing(home, "a", server.url("team/a")))
    assert (code, said in text) == (1, True), text
    code, text = heard(pushing(home, "a", server.url("team/a"), ":refs/tags/v1"))
    assert (code, said in text) == (1, True), text
    if shutil.which("ssh") is not None:
        key = tmp_path / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        assert (
            shardgit(
                "key", "add", f"{key}.pub", "--name", f"ada-{what}", "--data", "data", cwd=home
            ).returncode
            == 0
        )
        ssh = (
            f"ssh -F {os.devnull} -o StrictHostKeyChecking=no -o UserKnownHostsFile={os.devnull}"
            f" -o BatchMode=yes -o IdentitiesOnly=yes -o IdentityAgent=none -i {key}"
        )
        url = f"ssh://git@{server.ssh}/team/a.git"
        code, text = heard(pushing(home, "a", url, ssh=ssh))
        assert (code, said in text) == (1, True), text
    with connect(server.grpc) as client:
        with pytest.raises(ReadOnly) as caught:
            client.repo("team/a").put_objects([(ObjectType.BLOB, b"text")])
        assert caught.value.facts["why"] == WHY
        with pytest.raises(ReadOnly):
            client.rename("team/a", "team/z")
        with pytest.raises(ReadOnly):
            client.repo("team/a").commit("main", message="x", author="A <a@b.c>", files={"f": b"x"})
    status, text = lfs_upload(server, "team/a")
    assert (status, WHY in text) == (409, True), text
    done = shardgit("ref", "update", "team/a", "refs/heads/x", "main", "--data", "data", cwd=home)
    assert (done.returncode, WHY in done.stderr) == (1, True)
    git(tmp_path, "clone", "-q", server.url("team/a"), "clone")
    if what == "store":
        operator(home, server, "store", "read-only", "off")
    else:
        text = shardgit("repo", "show", "team/a", "--server", server.grpc, cwd=home).stdout
        assert f"repository is read-only: {WHY}" in text
        operator(home, server, "repo", "config", "team/a", "read_only", "--unset")
    assert heard(pushing(home, "a", server.url("team/a")))[0] == 0
    assert lfs_upload(server, "team/a")[0] == 200
