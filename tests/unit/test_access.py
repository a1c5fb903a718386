"""Who may do what: rights, tokens, tickets, signatures of front ends, certificates."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import struct
import threading
import time
from contextvars import Context, copy_context
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgit import clock
from shardgit.clock import replaced
from shardgit.errors import (
    InvalidArgument,
    JournalCorrupt,
    LimitExceeded,
    PermissionRefused,
    RateLimited,
    Refused,
    RepositoryMissing,
    StoreFormatUnknown,
    TokenMissing,
    Unauthenticated,
)
from shardgit.journal.interface import Put
from shardgit.journal.memory import MemoryJournal
from shardgit.journal.token_records import TOKENS, TokenRecord, token_key
from shardgit.service import doorkeeper as door
from shardgit.service.access import (
    ALL_REPOSITORIES,
    EVERYTHING,
    NOTHING,
    Action,
    Holder,
    Principal,
    Rights,
    authorize,
    begin_call,
    caller,
    check_globs,
    may,
    trusted,
)
from shardgit.service.doorkeeper import Doorkeeper, Secrets, Shown, parse_client_rule
from shardgit.service.tokens import TICKET_S, Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = b"a secret of some length"
TEAM = Rights(read=("team/**",), write=("team/app",))


class HandClock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1_000

    def sleep(self, seconds: float) -> None:
        self.ms += round(seconds * 1_000)


@pytest.fixture
def hand() -> Iterator[HandClock]:
    made = HandClock()
    with replaced(made):
        yield made


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


# ---- rights


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [
        ("team/app", "team/app", True),
        ("team/app", "team/application", False),
        ("team/*", "team/app", True),
        ("team/*", "team/app/x", False),
        ("team/*", "team", False),
        ("team/**", "team/app/x", True),
        ("team/**", "teams/app", False),
        ("**", "a", True),
        ("**", "a/b/c", True),
        ("*", "a/b", False),
        ("lib-?", "lib-1", True),
        ("[ab]/x", "b/x", True),
        ("Team/app", "team/app", False),
    ],
)
def test_globs_over_names(glob: str, name: str, matches: bool) -> None:
    assert Rights(read=(glob,)).allow(Action.READ, name) is matches
    assert Rights(write=(glob,)).allow(Action.WRITE, name) is matches
    assert Rights(write=(glob,)).allow(Action.READ, name) is matches
    assert not Rights(read=(glob,)).allow(Action.WRITE, name)
    assert not Rights(read=(glob,), write=(glob,)).allow(Action.ADMIN, name)


def test_the_store_is_looked_around_by_who_may_anything_and_ruled_by_admins() -> None:
    for rights in (TEAM, ALL_REPOSITORIES):
        assert rights.allow(Action.READ, None)
        assert not rights.allow(Action.WRITE, None)
        assert not rights.allow(Action.ADMIN, None)
    assert not NOTHING.allow(Action.READ, None)
    for action in Action:
        for name in (None, "x"):
            assert EVERYTHING.allow(action, name)


def test_what_may_not_be_read_is_not_there() -> None:
    me = Principal("me", rights=TEAM, proved=True)
    authorize(me, Action.WRITE, "team/app")
    authorize(me, Action.READ, "team/lib")
    with pytest.raises(PermissionRefused):
        authorize(me, Action.WRITE, "team/lib")
    for action in (Action.READ, Action.WRITE, Action.ADMIN):
        with pytest.raises(RepositoryMissing):
            authorize(me, action, "other")
    with pytest.raises(PermissionRefused):
        authorize(me, Action.WRITE, "other", makes=True)
    with pytest.raises(PermissionRefused):
        authorize(me, Action.ADMIN, None)
    for name in ("team/app", None):
        with pytest.raises(Unauthenticated):
            authorize(Principal("somebody"), Action.READ, name)


def test_the_caller_is_the_tasks_own() -> None:
    def outside() -> None:
        assert caller().rights == NOTHING  # nobody was let in: nothing is allowed
        with pytest.raises(Unauthenticated):
            may(Action.READ, "x")
        copy_context().run(inside)
        with pytest.raises(Unauthenticated):
            may(Action.READ, "x")

    def inside() -> None:
        begin_call(trusted("me"))
        may(Action.ADMIN, None)

    Context().run(outside)


def test_globs_are_checked() -> None:
    assert check_globs(["a", "b", "a"]) == ("a", "b")
    for wrong in ([""], ["a\nb"], ["x" * 513], [f"r{n}" for n in range(65)]):
        with pytest.raises(InvalidArgument):
            check_globs(wrong)


# ---- tokens


def test_a_token_stands_for_its_holder_until_it_is_revoked(journal: MemoryJournal) -> None:
    tokens = Tokens(journal)
    known, text = tokens.create("ci", TEAM, by="root")
    assert text.startswith("sgt_")
    assert tokens.holder(text) == Holder("ci", TEAM)
    assert tokens.all() == [known]
    other, another = tokens.create("ci", EVERYTHING)
    assert tokens.holder(another) == Holder("ci", EVERYTHING)
    assert tokens.revoke(known.id) == [known]
    assert tokens.holder(text) is None
    assert tokens.holder(another) is not None
    assert tokens.revoke(another) == [other]  # by its whole text
    with pytest.raises(TokenMissing):
        tokens.revoke(another)
    tokens.create("a", TEAM)
    tokens.create("a", TEAM)
    assert len(tokens.revoke("a")) == 2


def test_only_a_hash_is_kept(journal: MemoryJournal) -> None:
    _, text = Tokens(journal).create("ci", TEAM)
    secret = text.split("_", 2)[2]
    with journal.snapshot() as snapshot:
        rows = list(snapshot.range(b"\0", b"\xff"))
    assert rows
    assert all(secret.encode() not in row.key + row.value for row in rows)


def test_a_token_ends(journal: MemoryJournal, hand: HandClock) -> None:
    tokens = Tokens(journal)
    known, text = tokens.create("ci", TEAM, expires_s=60)
    assert known.expires_ms == hand.ms + 60_000
    hand.ms += 59_999
    assert tokens.holder(text) is not None
    hand.ms += 1
    assert tokens.holder(text) is None
    assert tokens.all() == [known]


def test_tokens_that_make_no_sense_are_not_made(journal: MemoryJournal) -> None:
    tokens = Tokens(journal)
    for name, rights in (("", TEAM), ("a\nb", TEAM), ("a", NOTHING), ("a", Rights(read=("",)))):
        with pytest.raises(InvalidArgument):
            tokens.create(name, rights)
    with pytest.raises(LimitExceeded):
        tokens.create("x" * 201, TEAM)
    with pytest.raises(InvalidArgument):
        tokens.create("x", TEAM, expires_s=0)
    assert tokens.all() == []


@given(st.text(max_size=80) | st.from_regex(r"sgt_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", fullmatch=True))
def test_no_other_text_is_a_token(text: str) -> None:
    tokens = Tokens(MemoryJournal())
    tokens.create("x", EVERYTHING)
    tokens.ticket("x", "r", writes=True)
    assert tokens.holder(text) is None


def test_every_part_of_a_token_counts(journal: MemoryJournal) -> None:
    tokens = Tokens(journal)
    _, text = tokens.create("x", EVERYTHING)
    _, other = tokens.create("y", EVERYTHING)
    ticket = tokens.ticket("x", "r", writes=True)
    assert tokens.holder(ticket) is not None
    for right in (text, ticket):
        for at in range(4, len(right)):
            wrong = right[:at] + ("a" if right[at] != "a" else "b") + right[at + 1 :]
            assert tokens.holder(wrong) in (
                None,
                tokens.holder(right) if _padding(right, wrong) else None,
            )
    mixed = text[:21] + other[21:]
    assert tokens.holder(mixed) is None


def _padding(right: str, wrong: str) -> bool:
    """Say whether two texts of base64 mean the same bytes: its last letter has bits to spare."""
    tail = [base64.urlsafe_b64decode(one.rpartition(".")[2][-3:] + "=") for one in (right, wrong)]
    return right[:-1] == wrong[:-1] and tail[0] == tail[1]


def test_tokens_records_are_read_or_refused() -> None:
    record = TokenRecord(os.urandom(32), 5, 0, "n", ("r",), ("w",), True, "by")
    data = record.encode()
    assert TokenRecord.decode(data) == record
    for wrong in (b"", data[:30], b"\2" + data[1:], data[:-1], data + b"x", data[:52] + b"[]"):
        with pytest.raises((JournalCorrupt, StoreFormatUnknown)):
            TokenRecord.decode(wrong)


def test_damaged_rows_let_nobody_in(journal: MemoryJournal) -> None:
    tokens = Tokens(journal)
    known, text = tokens.create("x", EVERYTHING)
    journal.commit_sync([], [Put(token_key(bytes.fromhex(known.id)), b"\1")])
    with pytest.raises(JournalCorrupt):
        tokens.holder(text)


# ---- tickets


def test_a_ticket_is_for_one_repository_and_a_while(
    journal: MemoryJournal, hand: HandClock
) -> None:
    tokens = Tokens(journal)
    assert Tokens(journal).holder("sgk_e30." + "a" * 43) is None  # before there is a secret
    reads = tokens.ticket("ada", "team/app", writes=False)
    writes = tokens.ticket("ada", "team/app", writes=True)
    assert Tokens(journal).holder(reads) == Holder("ada", Rights(read=("team/app",)))
    assert tokens.holder(writes) == Holder("ada", Rights(write=("team/app",)))
    assert tokens.all() == []
    hand.ms += TICKET_S * 1_000
    assert tokens.holder(reads) is None


def test_those_who_make_the_secret_of_tickets_at_once_make_one(journal: MemoryJournal) -> None:
    made: list[str] = []
    gate = threading.Barrier(8)

    def make() -> None:
        gate.wait()
        made.append(Tokens(journal).ticket("a", "r", writes=False))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(Tokens(journal).holder(one) is not None for one in made)
    with journal.snapshot() as snapshot:
        assert len(list(snapshot.range(TOKENS, b"U"))) == 1


# ---- the door


def bearer(text: str) -> str:
    return f"Bearer {text}"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_everybody_may_everything_while_nobody_has_to_show_anything(journal: MemoryJournal) -> None:
    keeper = Doorkeeper(journal)
    assert keeper.principal(Shown("::1")) == Principal("anonymous", "::1", EVERYTHING)
    for shown in ("Basic x", bearer("nonsense"), "Negotiate y", "", basic("a\nb", "x")):
        assert keeper.principal(Shown(authorization=shown)).name == "anonymous"
    assert keeper.principal(Shown(authorization=basic("ada", ""))).name == "ada"


def test_a_token_comes_in_as_bearer_password_or_user(journal: MemoryJournal) -> None:
    keeper = Doorkeeper(journal, required=True)
    _, text = keeper.tokens.create("ci", TEAM)
    for header in (
        bearer(text),
        f"bearer  {text} ",
        basic("x", text),
        basic(text, ""),
        basic("", text),
    ):
        found = keeper.principal(Shown("192.0.2.1", authorization=header))
        assert found == Principal("ci", "192.0.2.1", TEAM, proved=True)
    nobody = keeper.principal(Shown("192.0.2.1"))
    assert (nobody.rights, nobody.proved) == (NOTHING, False)


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Basic",
        "Basic !",
        "Basic " + "A" * 9_000,
        "Digest x",
        basic("", ""),
        bearer("v2."),
    ],
)
def test_what_is_no_credential_is_refused(journal: MemoryJournal, header: str) -> None:
    with pytest.raises(Unauthenticated):
        Doorkeeper(journal, required=True).principal(Shown(authorization=header))


def test_who_guesses_is_told_to_wait_and_who_knows_comes_in(
    journal: MemoryJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    keeper = Doorkeeper(journal, required=True)
    _, text = keeper.tokens.create("ci", TEAM)
    kinds: list[type[Exception]] = []
    last: Exception | None = None
    for _ in range(door.FAILURES_MAX + 5):
        with pytest.raises((Unauthenticated, RateLimited)) as raised:
            keeper.principal(Shown("192.0.2.1", authorization=bearer(f"sgt_{'0' * 16}_{'a' * 43}")))
        last = raised.value
        kinds.append(type(last))
    assert kinds == [Unauthenticated] * door.FAILURES_MAX + [RateLimited] * 5
    assert isinstance(last, RateLimited)
    assert last.facts["retry_after_s"] == 61
    assert keeper.principal(Shown("192.0.2.1", authorization=bearer(text))).proved
    with pytest.raises(Unauthenticated):
        keeper.principal(Shown("192.0.2.2", authorization=bearer("x")))
    now += door.FAILURES_S
    with pytest.raises(Unauthenticated):
        keeper.principal(Shown("192.0.2.1", authorization=bearer("x")))


def test_many_addresses_that_guess_take_little(journal: MemoryJournal) -> None:
    failures = door.Failures()
    for number in range(door.ADDRESSES_MAX + 50):
        failures.add(str(number))
    assert len(failures._seen) == door.ADDRESSES_MAX


def signed(at: int, secret: bytes = SECRET) -> str:
    return f"v2.{hmac.new(secret, str(at).encode(), hashlib.sha256).hexdigest()}.{at}"


def test_front_ends_sign_the_time_and_say_for_whom_they_act(
    journal: MemoryJournal, hand: HandClock, tmp_path: Path
) -> None:
    file = tmp_path / "secrets"
    file.write_bytes(SECRET + b"\n\nan older secret of some length\n")
    keeper = Doorkeeper(journal, required=True, secrets=Secrets(file))
    now = hand.ms // 1_000

    def come(text: str, **words: str) -> Principal:
        return keeper.principal(Shown("192.0.2.1", authorization=bearer(text), **words))

    assert come(signed(now)) == Principal("front-end", "192.0.2.1", EVERYTHING, proved=True)
    found = come(
        signed(now, b"an older secret of some length"), actor="ada", for_address="2001:db8::1"
    )
    assert (found.name, found.address) == ("ada", "2001:db8::1")
    assert come(signed(now), actor="a\nb").name == "front-end"
    for off in (-30, 30):
        assert come(signed(now + off)).proved
    right = signed(now)
    for wrong in (
        signed(now - 31),
        signed(now + 31),
        signed(now, b"another"),
        right[:-1] + "1",
        right.upper(),
        right + "0",
        f"v2.{'0' * 64}.{now}",
        f"v2.{'0' * 64}.{'9' * 12}",
    ):
        with pytest.raises((Unauthenticated, RateLimited)):
            come(wrong)
    file.write_bytes(b"a new secret, also of some length")
    os.utime(file, (1, 1))
    with pytest.raises((Unauthenticated, RateLimited)):
        come(right)
    assert come(signed(now, b"a new secret, also of some length")).proved


def test_without_secrets_no_signature_is_right(journal: MemoryJournal) -> None:
    at = clock.now_ms() // 1_000
    with pytest.raises(Unauthenticated):
        Doorkeeper(journal, required=True).principal(Shown(authorization=bearer(signed(at, b""))))


def test_others_may_not_say_for_whom_they_act(journal: MemoryJournal) -> None:
    keeper = Doorkeeper(journal, required=True)
    _, text = keeper.tokens.create("ci", TEAM)
    found = keeper.principal(
        Shown("192.0.2.1", authorization=bearer(text), actor="root", for_address="::1")
    )
    assert (found.name, found.address) == ("ci", "192.0.2.1")


def test_files_of_secrets_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    with pytest.raises(Refused):
        Secrets(file)
    for wrong in (b"", b"\n\n", b"short\n", SECRET + b"\nshort"):
        file.write_bytes(wrong)
        with pytest.raises(Refused):
            Secrets(file)


def test_certificates_come_in_by_the_first_rule_that_matches(journal: MemoryJournal) -> None:
    rules = [
        parse_client_rule(text) for text in ("ops admin", "ci-* read=** write=ci/**", "x read=x")
    ]
    keeper = Doorkeeper(journal, required=True, clients=rules)
    assert keeper.principal(Shown(certificate="ops")).rights == EVERYTHING
    assert keeper.principal(Shown(certificate="ci-7")) == Principal(
        "ci-7", "", Rights(("**",), ("ci/**",)), proved=True
    )
    stranger = keeper.principal(Shown(certificate="somebody"))
    assert (stranger.rights, stranger.proved) == (NOTHING, True)
    with pytest.raises(PermissionRefused):
        authorize(stranger, Action.READ, None)
    assert (
        Doorkeeper(journal, required=True).principal(Shown(certificate="a")).rights
        == ALL_REPOSITORIES
    )
    _, text = keeper.tokens.create("ci", TEAM)  # which is the narrower word
    assert keeper.principal(Shown(certificate="ops", authorization=bearer(text))).rights == TEAM


@pytest.mark.parametrize(
    "text", ["", "name", "name all", "name read", "name admin admin2", "n read="]
)
def test_rules_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_client_rule(text)


def test_rows_of_tokens_are_as_documented(journal: MemoryJournal) -> None:
    record = TokenRecord(bytes(range(32)), 5, 9, "n")
    assert record.encode()[:52] == struct.pack("<BxxxQQ32s", 1, 5, 9, bytes(range(32)))


def test_a_call_that_lasts_outlives_its_signature_and_not_its_secret(
    journal: MemoryJournal, hand: HandClock, tmp_path: Path
) -> None:
    file = tmp_path / "secrets"
    file.write_bytes(SECRET)
    keeper = Doorkeeper(journal, required=True, secrets=Secrets(file))
    shown = Shown("192.0.2.1", authorization=bearer(signed(hand.ms // 1_000)))
    assert keeper.principal(shown).proved
    hand.ms += 3_600_000
    for _ in range(100):
        assert keeper.principal(shown, again=True).proved
    with pytest.raises(Unauthenticated):
        keeper.principal(shown)
    file.write_bytes(b"another secret of some length")
    os.utime(file, (2, 2))
    for _ in range(100):  # which is no guess
        with pytest.raises(Unauthenticated):
            keeper.principal(shown, again=True)


async def test_a_token_that_another_node_has_just_made_counts(journal: MemoryJournal) -> None:
    class Behind(MemoryJournal):
        """Shows what the other has once it is asked to be fresh."""

        asked = 0

        async def fresh(self, *, stale_ok: bool = False) -> None:
            self.asked += 1
            with journal.snapshot() as snapshot:
                rows = list(snapshot.range(TOKENS, b"U"))
            self.commit_sync([], [Put(row.key, row.value) for row in rows])

    here = Behind()
    keeper = Doorkeeper(here, required=True)
    _, text = Tokens(journal).create("ci", TEAM)
    assert (await keeper.admit(Shown(authorization=bearer(text)))).name == "ci"
    assert here.asked == 1
    await keeper.admit(Shown(authorization=bearer(text)))
    with pytest.raises(Unauthenticated):
        await keeper.admit(
            Shown(authorization=bearer(text[:-1] + ("a" if text[-1] != "a" else "b")))
        )
    with pytest.raises(Unauthenticated):
        await keeper.admit(Shown())
    assert here.asked == 1  # who guesses secrets asks nobody else


def test_rights_know_how_names_begin() -> None:
    rights = Rights(read=("team/**", "team/app", "x*", "a\\*b"), write=("other/lib",))
    assert rights.beginnings(Action.READ) == ("a", "other/lib", "team/", "x")
    assert rights.beginnings(Action.WRITE) == ("other/lib",)
    assert Rights(read=("**",)).beginnings(Action.READ) == ("",)
    assert EVERYTHING.beginnings(Action.READ) == ("",)
    assert NOTHING.beginnings(Action.READ) == ()
