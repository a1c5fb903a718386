"""What a real git sends when it pushes is read right, and what we report is understood."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from pushing import push
from served import git, small_repository

from shardgit.oid import ObjectId
from shardgit.protocol.push_certificate import parse_certificate
from shardgit.protocol.receive_pack import Command, PushCapabilities

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_repository(tmp_path / "source")


def oid(folder: Path, revision: str) -> ObjectId:
    return ObjectId(bytes.fromhex(git(folder, "rev-parse", revision)))


def test_a_first_push_creates_and_carries_a_pack(source: Path) -> None:
    heard = push(source, "main", "v1", refs={})
    assert heard.code == 0, heard.text
    assert heard.request is not None
    assert heard.request.commands == (
        Command(b"refs/heads/main", None, oid(source, "main")),
        Command(b"refs/tags/v1", None, oid(source, "v1")),
    )
    assert (heard.request.report, heard.request.sideband) == (2, 2)
    assert heard.request.agent.startswith(b"git/")
    assert heard.request.object_format == b"sha1"
    assert heard.pack.startswith(b"PACK")
    listed = subprocess.run(
        ["git", "index-pack", "--stdin"],
        cwd=source,
        input=heard.pack,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert listed.returncode == 0, listed.stderr


def test_a_deletion_alone_brings_no_pack(source: Path) -> None:
    old = git(source, "rev-parse", "main~1")
    heard = push(source, ":old", refs={b"refs/heads/old": old})
    assert heard.code == 0, heard.text
    assert heard.request is not None
    assert heard.request.commands == (Command(b"refs/heads/old", oid(source, "main~1"), None),)
    assert not heard.request.has_pack
    assert heard.pack == b""


def test_atomic_options_quiet_and_force(source: Path) -> None:
    git(source, "branch", "other", "main~1")
    refs = {b"refs/heads/main": git(source, "rev-parse", "main~2")}
    options = ("--atomic", "--quiet", "--push-option=ci.skip", "--push-option=x=y z")
    heard = push(source, *options, "main", "+other", refs=refs)
    assert heard.code == 0, heard.text
    assert heard.request is not None
    assert heard.request.atomic
    assert heard.request.quiet
    assert heard.request.options == (b"ci.skip", b"x=y z")
    assert {each.name: each.old for each in heard.request.commands} == {
        b"refs/heads/main": oid(source, "main~2"),
        b"refs/heads/other": None,
    }


def test_what_is_not_offered_is_not_used(source: Path) -> None:
    none = PushCapabilities(atomic=False, push_options=False)
    heard = push(source, "--atomic", "main", refs={}, offered=none)
    assert heard.code != 0
    assert "does not support --atomic" in heard.text
    heard = push(source, "--push-option=x", "main", refs={}, offered=none)
    assert heard.code != 0
    assert "does not support push options" in heard.text


def test_nothing_to_push_is_no_request(source: Path) -> None:
    heard = push(source, "main", refs={b"refs/heads/main": git(source, "rev-parse", "main")})
    assert heard.code == 0, heard.text
    assert heard.request is None


def test_git_shows_our_refusals(source: Path) -> None:
    git(source, "branch", "other", "main~1")
    refuse = "refs/heads/other protected: ask an owner\n"
    heard = push(source, "main", "other", refs={}, refuse=refuse)
    assert heard.code == 1
    assert "*\trefs/heads/main:refs/heads/main\t[new branch]" in heard.text
    assert "[remote rejected] (protected: ask an owner)" in heard.text


def test_a_shallow_clone_says_where_it_ends(source: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth=1", source.as_uri(), "shallow")
    shallow = tmp_path / "shallow"
    (shallow / "new").write_text("new")
    git(shallow, "add", ".")
    git(shallow, "commit", "-q", "-m", "new")
    heard = push(shallow, "main", refs={b"refs/heads/main": git(source, "rev-parse", "main")})
    assert heard.code == 0, heard.text
    assert heard.request is not None
    assert heard.request.shallow == (oid(source, "main"),)
    assert heard.request.commands[0].new == oid(shallow, "main")


def test_sha256(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    git(source, "init", "-q", "--initial-branch=main", "--object-format=sha256")
    git(source, "commit", "-q", "--allow-empty", "-m", "one")
    heard = push(source, "main", refs={})
    assert heard.code == 0, heard.text
    assert heard.request is not None
    assert heard.request.object_format == b"sha256"
    assert heard.request.commands == (Command(b"refs/heads/main", None, oid(source, "main")),)


def test_a_signed_push_carries_its_commands_in_the_certificate(
    source: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=60
    )
    heard = push(
        source,
        "--signed",
        "--push-option=a",
        "main",
        refs={},
        offered=PushCapabilities(nonce=b"1700000000-abc"),
        config=("-c", "gpg.format=ssh", "-c", f"user.signingKey={key}"),
    )
    assert heard.code == 0, heard.text
    assert heard.request is not None
    assert heard.request.commands == (Command(b"refs/heads/main", None, oid(source, "main")),)
    assert heard.request.options == (b"a",)
    certificate = parse_certificate(heard.request.certificate)
    assert certificate.version == b"0.1"
    assert certificate.nonce == b"1700000000-abc"
    assert certificate.options == (b"a",)
    assert certificate.is_ssh
    assert certificate.pushee.endswith(b"far.git")
    assert certificate.payload + certificate.signature == heard.request.certificate
