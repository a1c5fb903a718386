"""Commands and keys of the SSH edge, without a network."""

from __future__ import annotations

import base64
import contextlib
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgit.addresses import is_loopback
from shardgit.errors import (
    AlreadyExists,
    InvalidArgument,
    JournalCorrupt,
    KeyMissing,
    LimitExceeded,
    ShardgitError,
    StoreFormatUnknown,
)
from shardgit.journal.keys import KeyRecord
from shardgit.journal.memory import MemoryJournal
from shardgit.service.access import ALL_REPOSITORIES, Holder, Rights
from shardgit.service.conversation import GitService
from shardgit.service.keys import Keys, PublicKey, keys_in, parse_public_key
from shardgit.service.names import name_in_path
from shardgit.ssh.command import parse_command

if TYPE_CHECKING:
    from collections.abc import Callable

ED = "ssh-ed25519"


def blob(kind: str = ED, secret: bytes = b"") -> bytes:
    secret = secret or os.urandom(32)
    return len(kind).to_bytes(4, "big") + kind.encode() + (32).to_bytes(4, "big") + secret


def text(kind: str = ED, comment: str = "ada@home") -> str:
    return f"{kind} {base64.b64encode(blob(kind)).decode()} {comment}".strip()


# ---- commands ----


@pytest.mark.parametrize(
    ("words", "service", "name"),
    [
        ("git-upload-pack '/demo.git'", "git-upload-pack", "demo"),
        ("git upload-pack '/demo.git'", "git-upload-pack", "demo"),
        ("git-receive-pack demo", "git-receive-pack", "demo"),
        ("git-upload-archive 'a/b.git/'", "git-upload-archive", "a/b"),
        ("git-upload-pack '~/demo'", "git-upload-pack", "demo"),
        ("git-upload-pack '/~/demo.git'", "git-upload-pack", "demo"),
        ("git-upload-pack '//a//b'", "git-upload-pack", "a/b"),
        (r"git-upload-pack 'it'\''s'", "git-upload-pack", "it's"),
        (r"git-upload-pack 'no'\!''", "git-upload-pack", "no!"),
        ('git-upload-pack "/demo"', "git-upload-pack", "demo"),
    ],
)
def test_commands_are_read_as_git_and_others_write_them(
    words: str, service: str, name: str
) -> None:
    command = parse_command(words)
    assert (command.service, command.name) == (GitService(service), name)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "git",
        "sh",
        "git-upload-pack",
        "git-upload-pack a b",
        "git-upload-pack --strict a",
        "git-upload-pack 'a",
        "git-upload-pack a; rm x",
        "git gc",
        "git-shell -c x",
        "git-upload-pack " + "a" * 9_000,
    ],
)
def test_all_else_is_refused(words: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_command(words)


@given(st.text(max_size=200))
def test_any_command_is_a_value_or_one_error(words: str) -> None:
    try:
        parse_command(words)
        parse_public_key(words)
    except ShardgitError:
        pass


def test_names_in_paths() -> None:
    found = ["/a.git", "a.git/", "~/a", "/~/a", "///a", "a", "/a/b.git", "", "/", "a.git.git"]
    want = ["a", "a", "a", "a", "a", "a", "a/b", "", "", "a.git"]
    assert [name_in_path(path) for path in found] == want


# ---- keys ----


def test_lines_of_keys() -> None:
    for kind in (ED, "ssh-rsa", "ecdsa-sha2-nistp256", "sk-ssh-ed25519@openssh.com"):
        assert parse_public_key(text(kind, "a b c")).comment == "a b c"
    assert parse_public_key(text(comment="")).comment == ""
    assert parse_public_key("restrict,no-pty " + text()).comment == "ada@home"
    assert parse_public_key("no-X11-forwarding\t" + text()).type == ED


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 !!!",
        "ssh-ed25519 AAAA",
        "ssh-rsa " + text().split()[1],
        "hello world again",
        'command="ls" ' + text(),
        'restrict,from="10.0.0.1" ' + text(),
        "cert-authority " + text(),
        "expiry-time=20200101 " + text(),
        "ssh-ed25519 " + "A" * 40_000,
    ],
)
def test_lines_that_hold_no_key_or_would_allow_less_are_refused(line: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_public_key(line)


def test_a_file_of_keys_tells_each_bad_line() -> None:
    found = list(keys_in(f"# people\n\n{text()}\nfrom=x {text()}\n  {text(comment='b')}\n"))
    assert [type(each) for each in found] == [PublicKey, InvalidArgument, PublicKey]


def test_keys_come_and_go() -> None:
    keys = Keys(MemoryJournal())
    assert not keys.any()
    first, second = parse_public_key(text()), parse_public_key(text(comment="ada@work"))
    known = keys.add(first, "ada")
    assert keys.any()
    assert known.fingerprint.startswith("SHA256:")
    with pytest.raises(AlreadyExists):
        keys.add(first, "other")
    keys.add(second)
    assert [one.name for one in keys.all()] == ["ada", "ada@work"]
    assert keys.holder_of(first.fingerprint) == Holder("ada", ALL_REPOSITORIES)
    assert keys.holder_of(bytes(32)) is None
    assert [one.name for one in keys.remove(known.fingerprint)] == ["ada"]
    assert keys.holder_of(first.fingerprint) is None
    with pytest.raises(KeyMissing):
        keys.remove("ada")
    keys.remove("ada@work")
    assert keys.all() == []


@pytest.mark.parametrize(
    ("add", "error"),
    [
        (lambda keys: keys.add(parse_public_key(text(comment=""))), InvalidArgument),
        (lambda keys: keys.add(parse_public_key(text()), "a\nb"), InvalidArgument),
        (lambda keys: keys.add(parse_public_key(text()), "a" * 300), LimitExceeded),
    ],
)
def test_names_are_bounded(add: Callable[[Keys], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        add(Keys(MemoryJournal()))


@given(st.text(max_size=40), st.binary(max_size=80), st.integers(0, 1 << 60), st.data())
def test_key_records(name: str, key: bytes, created: int, data: st.DataObject) -> None:
    record = KeyRecord(name, key, created)
    row = record.encode()
    assert KeyRecord.decode(row) == record
    for wrong in (row[:-1], row + b"x", b"\x09" + row[1:], b""):
        with pytest.raises((JournalCorrupt, StoreFormatUnknown)):
            KeyRecord.decode(wrong)
    at = data.draw(st.integers(0, len(row) - 1))
    with contextlib.suppress(JournalCorrupt, StoreFormatUnknown):
        KeyRecord.decode(row[:at] + bytes([row[at] ^ 0x80]) + row[at + 1 :])


def test_loopback() -> None:
    hosts = ["127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "host"]
    assert [is_loopback(host) for host in hosts] == [True] * 4 + [False] * 4


def test_what_a_key_may_do_stands_in_its_row_and_old_rows_may_everything() -> None:
    journal = MemoryJournal()
    keys, key = Keys(journal), parse_public_key(text())
    rights = Rights(read=("team/**",), write=("team/app",))
    assert keys.add(key, "ada", rights=rights).rights == rights
    assert keys.holder_of(key.fingerprint) == Holder("ada", rights)
    with pytest.raises(InvalidArgument):
        keys.add(parse_public_key(text()), "bob", rights=Rights(read=("",)))
    name = b"old"
    row = struct.pack("<BxHIQ", 1, len(name), len(key.blob), 7) + name + key.blob
    assert KeyRecord.decode(row) == KeyRecord("old", key.blob, 7)
    for wrong in (row + b"{}", row[:-1], b"\3" + row[1:], KeyRecord("n", b"", 0).encode()[:-1]):
        with pytest.raises((JournalCorrupt, StoreFormatUnknown)):
            KeyRecord.decode(wrong)
