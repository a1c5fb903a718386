"""Settings: defaults, keys, values, and the record that keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardgit.errors import InvalidArgument, JournalCorrupt, StoreFormatUnknown
from shardgit.journal.records import RepositoryRecord
from shardgit.oid import HashKind, PoolId, RepositoryId
from shardgit.service.setting_keys import (
    all_values,
    changed,
    known_keys,
    parse_value,
    set_keys,
    value_of,
)
from shardgit.service.settings import (
    DEFAULTS,
    Hook,
    ProtectedRef,
    decode_settings,
    encode_settings,
    settings_of,
)

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
HOOK = {"kind": "program", "event": "update", "target": "/hooks/update"}


def test_a_new_repository_has_the_defaults() -> None:
    record = RepositoryRecord(RepositoryId(1), "x", PoolId(bytes(16)), HashKind.SHA1, 0)
    assert settings_of(record) == DEFAULTS
    assert encode_settings(DEFAULTS) == b"{}"
    assert set_keys(DEFAULTS) == []


def test_a_record_keeps_what_differs() -> None:
    changes: dict[str, Any] = {
        "receive.deny_deletes": True,
        "receive.protected_refs": [{"pattern": "refs/heads/*"}],
        "fsck.severities.missingEmail": "warn",
        "hooks": [HOOK],
    }
    settings = changed(DEFAULTS, changes)
    assert encode_settings(settings) == (
        b'{"fsck":{"severities":{"missingEmail":"warn"}},"hooks":[{"event":"update",'
        b'"kind":"program","target":"/hooks/update"}],"receive":{"deny_deletes":true,'
        b'"protected_refs":[{"pattern":"refs/heads/*"}]}}'
    )
    assert decode_settings(encode_settings(settings)) == settings
    assert settings.receive.protected_refs == (ProtectedRef(pattern="refs/heads/*"),)
    assert settings.hooks == (Hook(kind="program", event="update", target="/hooks/update"),)
    assert settings.hooks[0].timeout_s == 30.0
    assert set_keys(settings) == [
        "receive.deny_deletes",
        "receive.protected_refs",
        "fsck.severities",
        "hooks",
    ]
    back = changed(settings, dict.fromkeys(changes))
    assert encode_settings(back) == b"{}"


def test_one_entry_of_a_table_is_a_key() -> None:
    settings = changed(DEFAULTS, {"fsck.severities": {"badDate": "ignore"}})
    settings = changed(settings, {"fsck.severities.missingEmail": "error"})
    assert value_of(settings, "fsck.severities") == {"badDate": "ignore", "missingEmail": "error"}
    assert value_of(settings, "fsck.severities.badDate") == "ignore"
    assert value_of(settings, "fsck.severities.badName") is None
    gone = changed(settings, {"fsck.severities.badDate": None, "fsck.severities.badName": None})
    assert value_of(gone, "fsck.severities") == {"missingEmail": "error"}


def test_every_key_has_a_value_and_stands_in_the_page() -> None:
    rows = [line.split("`")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert set(known_keys()) <= set(rows)
    assert {row for row in rows if "." in row} <= set(known_keys())
    assert set(all_values(DEFAULTS)) == set(known_keys())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("receive.nonsense", True),
        ("receive", {}),
        ("nonsense.x", 1),
        ("hooks.0", HOOK),
        ("receive.deny_deletes.x", True),
        ("receive.deny_deletes", 1),
        ("receive.deny_delete_current", "maybe"),
        ("receive.max_push_bytes", -1),
        ("receive.max_push_bytes", 1 << 63),
        ("receive.max_push_bytes", True),
        ("receive.protected_refs", [{"pattern": ""}]),
        ("receive.protected_refs", [{"pattern": "x", "nonsense": 1}]),
        ("receive.protected_refs", [{"pattern": "x" * 256}]),
        ("receive.protected_refs", [{"pattern": "x", "advice": "a\nb"}]),
        ("receive.hidden_refs", ["x"] * 1_001),
        ("receive.hidden_refs", ["x\0"]),
        ("fsck.severities", {"badDate": "loud"}),
        ("fsck.severities.badDate", "loud"),
        ("fsck.severities.badDates", "warn"),
        ("fsck.severities.nulInHeader", "warn"),
        ("fsck.skip_list", ["abc"]),
        ("signed_push.nonce_slop_s", -1),
        ("signed_push.nonce_seed", "x" * 1_001),
        ("signed_push.ssh_signers", ["a b\nc d"]),
        ("hooks", [{**HOOK, "target": "relative"}]),
        ("hooks", [{**HOOK, "kind": "http"}]),
        ("hooks", [{**HOOK, "event": "nonsense"}]),
        ("hooks", [{**HOOK, "timeout_s": 0}]),
        ("hooks", [{**HOOK, "timeout_s": 3_601}]),
    ],
)
def test_unknown_keys_and_bad_values_are_refused(key: str, value: object) -> None:
    with pytest.raises(InvalidArgument):
        changed(DEFAULTS, {key: value})


def test_a_refusal_names_what_is_known() -> None:
    with pytest.raises(InvalidArgument) as caught:
        changed(DEFAULTS, {"lfs.enable": True})
    assert caught.value.facts["known"] == "lfs.enabled"
    with pytest.raises(InvalidArgument) as caught:
        changed(DEFAULTS, {"receive.advertise": "none"})
    assert caught.value.facts == {
        "key": "receive.advertise",
        "value": "none",
        "known": "auto|all|heads",
    }


def test_settings_are_bounded_in_all() -> None:
    key = "x" * 90_000
    settings = changed(DEFAULTS, {"signed_push.gpg_keys": [key, key, key]})
    with pytest.raises(InvalidArgument, match="too large"):
        encode_settings(settings)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("receive.deny_deletes", "Yes", True),
        ("receive.deny_deletes", "off", False),
        ("receive.max_push_bytes", "500m", 500 << 20),
        ("receive.max_push_bytes", "2GiB", 2 << 30),
        ("receive.max_push_bytes", "17", 17),
        ("receive.advertise", "heads", "heads"),
        ("signed_push.nonce_seed", "1", "1"),
        ("transfer.hidden_refs", "refs/a,!refs/a/b", ["refs/a", "!refs/a/b"]),
        ("transfer.hidden_refs", '["refs/a"]', ["refs/a"]),
        ("transfer.hidden_refs", "", []),
        ("signed_push.gpg_keys", "-----BEGIN\na,b\n", ["-----BEGIN\na,b\n"]),
        ("fsck.severities.badDate", "warn", "warn"),
        ("hooks", "[]", []),
    ],
)
def test_words_of_a_user_become_values(key: str, text: str, value: object) -> None:
    found = parse_value(key, text)
    assert found == value
    assert type(found) is type(value)
    changed(DEFAULTS, {key: found})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("receive.deny_deletes", "maybe"),
        ("receive.max_push_bytes", "much"),
        ("receive.max_push_bytes", "-1"),
        ("hooks", "nope"),
        ("transfer.hidden_refs", "[1"),
    ],
)
def test_words_that_are_off_are_refused(key: str, text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_value(key, text)


@pytest.mark.parametrize("data", [b'{"later":1}', b'{"receive":{"deny_deletes":3}}', b"[]"])
def test_a_newer_record_is_not_guessed_at(data: bytes) -> None:
    with pytest.raises(StoreFormatUnknown):
        decode_settings(data)


def test_a_damaged_record_says_so() -> None:
    with pytest.raises(JournalCorrupt):
        decode_settings(b"{")
