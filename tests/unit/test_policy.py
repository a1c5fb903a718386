"""What settings forbid, in git's words."""

from __future__ import annotations

import pytest

from shardgit.oid import ObjectId
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.access import trusted
from shardgit.service.hiding import HiddenRefs, hidden_from_fetch, hidden_from_push
from shardgit.service.policy import (
    explained,
    matches,
    push_refusal,
    refusal,
    repeated,
    repeated_reason,
    warning,
)
from shardgit.service.setting_keys import changed
from shardgit.service.settings import DEFAULTS, RepositorySettings

A, B = ObjectId(b"\xaa" * 20), ObjectId(b"\xbb" * 20)


def never() -> bool:
    raise AssertionError("nobody asked for ancestry")


def judged(
    settings: RepositorySettings,
    name: bytes,
    old: ObjectId | None = A,
    new: ObjectId | None = B,
    *,
    ff: bool | None = None,
    current: bytes | None = b"refs/heads/main",
    who: str = "anonymous",
) -> str | None:
    return refusal(
        settings,
        Command(name, old, new),
        principal=trusted(who),
        is_ff=never if ff is None else lambda: ff,
        current=current,
    )


def test_by_default_all_but_deleting_the_current_branch_is_allowed() -> None:
    assert judged(DEFAULTS, b"refs/heads/x") is None
    assert judged(DEFAULTS, b"refs/heads/x", None) is None
    assert judged(DEFAULTS, b"refs/heads/x", A, None) is None
    assert judged(DEFAULTS, b"refs/heads/main") is None
    reason = judged(DEFAULTS, b"refs/heads/main", A, None)
    assert reason == "deletion of the current branch prohibited"
    said = explained(Command(b"refs/heads/main", A, None), reason)
    assert said == "error: refusing to delete the current branch: refs/heads/main"
    assert judged(DEFAULTS, b"refs/heads/main", A, None, current=None) is None


@pytest.mark.parametrize(
    ("value", "warned"), [("warn", "warning: deleting the current branch"), ("ignore", None)]
)
def test_deleting_the_current_branch_may_be_allowed(value: str, warned: str | None) -> None:
    settings = changed(DEFAULTS, {"receive.deny_delete_current": value})
    assert judged(settings, b"refs/heads/main", A, None) is None
    command = Command(b"refs/heads/main", A, None)
    assert warning(settings, command, current=b"refs/heads/main") == warned
    assert warning(settings, command, current=b"refs/heads/other") is None


def test_deleting_nothing_is_a_warning() -> None:
    settings = changed(DEFAULTS, {"receive.deny_deletes": True})
    gone = Command(b"refs/heads/x", None, None)
    assert judged(settings, b"refs/heads/x", None, None) is None
    assert warning(settings, gone) == "warning: deleting a non-existent ref"


@pytest.mark.parametrize(
    "name",
    [
        b"HEAD",
        b"refs/x",
        b"refs/heads/a..b",
        b"refs/heads/x.lock",
        b"refs/heads/",
        b"",
        b"heads/x",
        b"refs/heads/a\nb",
    ],
)
def test_funny_names_are_refused(name: bytes) -> None:
    assert judged(DEFAULTS, name, None) == "funny refname"
    said = explained(Command(name, None, A), "funny refname")
    assert said is not None
    assert "refusing to update funny ref" in said


def test_a_ref_of_one_level_may_be_deleted() -> None:
    assert judged(DEFAULTS, b"refs/x", A, None) is None
    assert judged(DEFAULTS, b"refs/x..y", A, None) == "funny refname"


def test_a_name_that_no_store_takes_is_refused() -> None:
    reason = judged(DEFAULTS, b"refs/heads/" + b"x" * 480, None)
    assert reason == "ref name is longer than 480 bytes"


def test_deletions_of_branches_may_be_denied() -> None:
    settings = changed(DEFAULTS, {"receive.deny_deletes": True})
    reason = judged(settings, b"refs/heads/x", A, None)
    assert reason == "deletion prohibited"
    said = explained(Command(b"refs/heads/x", A, None), reason)
    assert said == "error: denying ref deletion for refs/heads/x"
    assert judged(settings, b"refs/tags/x", A, None) is None


def test_non_fast_forwards_of_branches_may_be_denied() -> None:
    settings = changed(DEFAULTS, {"receive.deny_non_fast_forwards": True})
    assert judged(settings, b"refs/heads/x", ff=True) is None
    assert judged(settings, b"refs/heads/x", None) is None
    assert judged(settings, b"refs/heads/x", A, None) is None
    assert judged(settings, b"refs/tags/x") is None
    reason = judged(settings, b"refs/heads/x", ff=False)
    assert reason == "non-fast-forward"
    said = explained(Command(b"refs/heads/x", A, B), reason)
    assert said == "error: denying non-fast-forward refs/heads/x (you should pull first)"


def guarded(**facts: object) -> RepositorySettings:
    return changed(DEFAULTS, {"receive.protected_refs": [{"pattern": "refs/*/main*", **facts}]})


def test_a_protected_ref_is_neither_forced_nor_deleted() -> None:
    settings = guarded()
    name = b"refs/heads/main-2"
    assert judged(settings, name, ff=True) is None
    assert judged(settings, name, None) is None
    assert judged(settings, name, ff=False) == (
        "protected by refs/*/main*: not a fast-forward; pull first, or push to another branch"
    )
    assert judged(settings, name, A, None) == (
        "protected by refs/*/main*: it may not be deleted; ask an administrator"
    )
    assert judged(settings, b"refs/heads/other", A, None) is None


def test_a_protection_may_forbid_and_allow_more() -> None:
    name = b"refs/heads/main"
    locked = guarded(update=False, create=False, advice="open a change")
    assert judged(locked, name) == "protected by refs/*/main*: it may not be updated; open a change"
    assert judged(locked, name, None) == (
        "protected by refs/*/main*: it may not be created; open a change"
    )
    assert judged(guarded(force=True), name) is None
    assert judged(guarded(delete=True), name, A, None, current=None) is None


def test_of_several_protections_all_count() -> None:
    some = [{"pattern": "*", "force": True}, {"pattern": "refs/heads/*", "delete": True}]
    settings = changed(DEFAULTS, {"receive.protected_refs": some})
    assert judged(settings, b"refs/heads/x", ff=False) == (
        "protected by refs/heads/*: not a fast-forward; pull first, or push to another branch"
    )
    assert judged(settings, b"refs/heads/x", A, None) == (
        "protected by *: it may not be deleted; ask an administrator"
    )
    assert judged(settings, b"refs/tags/x") is None


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("refs/heads/main", b"refs/heads/main", True),
        ("refs/heads/main", b"refs/heads/main2", False),
        ("refs/heads/*", b"refs/heads/a/b", True),
        ("refs/heads/v?", b"refs/heads/v1", True),
        ("refs/heads/v[0-9]", b"refs/heads/vx", False),
        ("refs/heads/\u00e9*", "refs/heads/\u00e9a".encode(), True),
        ("refs/heads/*", b"refs/heads/\xff", True),
        ("refs/Heads/*", b"refs/heads/x", False),
    ],
)
def test_patterns_are_globs_over_the_full_name(pattern: str, name: bytes, *, found: bool) -> None:
    assert matches(pattern, name) is found


def test_hard_patterns_take_no_time() -> None:
    assert not matches("*a" * 100 + "b", b"a" * 480)


def test_hidden_refs_are_neither_updated_nor_deleted() -> None:
    settings = changed(
        DEFAULTS,
        {
            "transfer.hidden_refs": ["refs/internal/"],
            "receive.hidden_refs": ["!refs/internal/open", "refs/pull"],
            "fetch.hidden_refs": ["refs/secret"],
        },
    )
    assert judged(settings, b"refs/internal/a") == "deny updating a hidden ref"
    assert judged(settings, b"refs/internal/a", A, None) == "deny deleting a hidden ref"
    assert judged(settings, b"refs/internal/open/a") is None
    assert judged(settings, b"refs/pull/1") == "deny updating a hidden ref"
    assert judged(settings, b"refs/secret/1") is None
    fetch, push = hidden_from_fetch(settings), hidden_from_push(settings)
    assert [fetch.hides(each) for each in (b"refs/secret/1", b"refs/internal/open/a")] == [
        True,
        True,
    ]
    assert fetch.prefixes() == [b"refs/secret", b"refs/internal"]
    assert push.prefixes() == []


@pytest.mark.parametrize(
    ("patterns", "name", "hidden"),
    [
        (["refs/a"], b"refs/a", True),
        (["refs/a"], b"refs/a/b", True),
        (["refs/a"], b"refs/ab", False),
        (["refs/a///"], b"refs/a/b", True),
        (["^refs/a"], b"refs/a/b", True),
        (["refs/a", "!^refs/a/b"], b"refs/a/b/c", False),
        (["!refs/a/b", "refs/a"], b"refs/a/b", True),
        (["refs/a", "!refs/a/b"], b"refs/a/c", True),
        (["", "!"], b"refs/a", False),
    ],
)
def test_hidden_patterns_are_gits(patterns: list[str], name: bytes, *, hidden: bool) -> None:
    found = HiddenRefs(patterns)
    assert found.hides(name) is hidden
    assert bool(found) or not hidden


def test_names_that_stand_twice() -> None:
    some = [Command(name, None, A) for name in (b"refs/heads/a", b"refs/heads/b", b"refs/heads/a")]
    assert repeated(some) == {b"refs/heads/a"}
    assert repeated(some[:2]) == frozenset()
    assert repeated_reason(b"refs/x") == "multiple updates for ref 'refs/x' not allowed"


def test_a_push_may_name_so_many_refs() -> None:
    request = PushRequest(tuple(Command(b"refs/heads/%d" % n, None, A) for n in range(3)))
    assert push_refusal(DEFAULTS, request) is None
    most = {"receive.max_push_refs": 3}
    assert push_refusal(changed(DEFAULTS, most), request) is None
    assert push_refusal(changed(DEFAULTS, {"receive.max_push_refs": 2}), request) == (
        "a push may name at most 2 refs, not 3; push fewer"
    )


def test_refs_with_writers_are_changed_by_these_alone() -> None:
    entries = [
        {"pattern": "refs/heads/main", "writers": ["ada", "ci-*"]},
        {"pattern": "refs/tags/*", "writers": ["release"], "delete": True, "advice": "ask ada"},
    ]
    settings = changed(DEFAULTS, {"receive.protected_refs": entries})
    for who in ("ada", "ci-7"):
        assert judged(settings, b"refs/heads/main", ff=True, who=who) is None
        assert "not a fast-forward" in str(judged(settings, b"refs/heads/main", ff=False, who=who))
    for who in ("bob", "ci", "Ada", "release"):
        for old, new in ((A, B), (None, B), (A, None)):
            reason = judged(settings, b"refs/heads/main", old, new, who=who)
            assert reason is not None
            if new is not None:
                assert reason.startswith("protected by refs/heads/main: it is changed by others")
    assert judged(settings, b"refs/tags/v1", A, None, who="release") is None
    assert str(judged(settings, b"refs/tags/v1", None, B, who="ada")).endswith("; ask ada")
    assert judged(settings, b"refs/heads/x", who="bob") is None
