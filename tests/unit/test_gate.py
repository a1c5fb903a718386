"""How many requests are let in, and when none is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgit.errors import Overloaded, RateLimited
from shardgit.service import gate as gates
from shardgit.service.access import (
    ALL_REPOSITORIES,
    EVERYTHING,
    Action,
    Principal,
    authorize,
    begin_call,
    trusted,
)
from shardgit.service.gate import Caps, Gate, Rates, memory_free

if TYPE_CHECKING:
    from pathlib import Path

ADA = Principal("ada", "192.0.2.1", ALL_REPOSITORIES, proved=True)
BOB = Principal("bob", "192.0.2.2", ALL_REPOSITORIES, proved=True)
NOBODY = Principal("anonymous", "192.0.2.1", EVERYTHING)


class World:
    """A gate whose load a test sets."""

    def __init__(self, caps: Caps) -> None:
        self.waited, self.free = 0.0, 1.0
        self.gate = Gate(caps, lambda: self.waited, lambda: self.free)


def test_so_many_at_once_and_no_more() -> None:
    gate = World(Caps(actor_requests=2, address_requests=3)).gate
    first = begin_call(ADA, gate)
    begin_call(ADA, gate)
    with pytest.raises(RateLimited, match="that actor") as refused:
        begin_call(ADA, gate)
    assert refused.value.facts["retry_after_s"] == gates.FULL_RETRY_S
    begin_call(NOBODY, gate)  # from the same address, and no actor
    with pytest.raises(RateLimited, match="that address"):
        begin_call(NOBODY, gate)
    begin_call(BOB, gate)
    first.end()
    first.end()  # counts once
    begin_call(ADA, gate)
    with pytest.raises(RateLimited):
        begin_call(ADA, gate)


def test_a_repository_takes_so_many_whoever_asks() -> None:
    gate = World(Caps(repository_requests=2)).gate
    calls = []
    for who in (ADA, BOB):
        calls.append(begin_call(who, gate))
        authorize(who, Action.READ, "hot")
        authorize(who, Action.READ, "hot")  # the same request, twice
    third = begin_call(ADA, gate)
    with pytest.raises(RateLimited, match="that repository"):
        authorize(ADA, Action.READ, "hot")
    authorize(ADA, Action.READ, "other")
    third.end()
    calls[0].end()
    begin_call(ADA, gate)
    authorize(ADA, Action.READ, "hot")


def test_what_has_ended_is_forgotten() -> None:
    world = World(Caps(repository_requests=5, actor_requests=5, address_requests=5))
    for number in range(100):
        call = begin_call(ADA, world.gate)
        authorize(ADA, Action.WRITE, f"r{number}")
        call.end()
    gate = world.gate
    assert not gate._actors
    assert not gate._addresses
    assert not gate._repositories


def test_under_load_nobody_new_is_let_in_but_admins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "LOOK_S", 0.0)
    world = World(Caps(wait_s=10, memory_free=0.05))
    begin_call(ADA, world.gate)
    for waited, free, why in ((11.0, 1.0, "cpu"), (0.0, 0.04, "memory")):
        world.waited, world.free = waited, free
        for who in (ADA, NOBODY):
            with pytest.raises(Overloaded) as refused:
                begin_call(who, world.gate)
            assert refused.value.facts == {"why": why, "retry_after_s": gates.OVERLOAD_RETRY_S}
        begin_call(trusted("boss"), world.gate)
    world.waited, world.free = 0.0, 1.0
    begin_call(ADA, world.gate)


def test_load_is_not_looked_at_for_every_request() -> None:
    looks = 0

    def waited() -> float:
        nonlocal looks
        looks += 1
        return 0.0

    gate = Gate(Caps(wait_s=1), waited, lambda: 1.0)
    for _ in range(1_000):
        begin_call(ADA, gate).end()
    assert looks < 10


@given(
    a_minute=st.integers(4, 600),
    gaps=st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=60),
)
def test_rates_let_through_what_they_say(a_minute: int, gaps: list[float]) -> None:
    now, taken = 1_000.0, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        rates = Rates(a_minute)
        for gap in gaps:
            now += gap
            wait = rates.take("ada")
            taken += not wait
            if wait:
                now += wait + 1e-6
                assert rates.take("ada") == 0
                taken += 1
    assert taken <= a_minute / 4 + (now - 1_000.0) * a_minute / 60 + 1


def test_who_comes_too_often_is_told_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    gate = World(Caps(actor_rate=60)).gate
    for _ in range(15):
        begin_call(ADA, gate).end()
    with pytest.raises(RateLimited) as refused:
        begin_call(ADA, gate)
    assert refused.value.facts["retry_after_s"] == 1 + int(1.0)
    begin_call(BOB, gate).end()
    begin_call(NOBODY, gate).end()
    now += 1.001
    begin_call(ADA, gate).end()


def test_of_many_who_come_few_are_kept_in_memory() -> None:
    rates = Rates(60)
    for number in range(gates.KNOWN_MAX + 10):
        rates.take(str(number))
    assert len(rates._seen) == gates.KNOWN_MAX


def test_memory_is_read_of_the_machine_and_the_group(tmp_path: Path) -> None:
    assert memory_free(tmp_path) == 1.0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(
        "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  400 kB\n"
    )
    assert memory_free(tmp_path) == 0.4
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("900\n")
    (group / "memory.stat").write_text("anon 1\nfile 300\nshmem 100\n")
    assert memory_free(tmp_path) == 0.4
    (group / "memory.max").write_text("1000\n")
    assert memory_free(tmp_path) == pytest.approx(0.3)  # 200 of it are files, which can go
    (tmp_path / "proc" / "self").mkdir()
    (tmp_path / "proc" / "self" / "cgroup").write_text(
        "1:x:/y\n0::/system.slice/shardgit.service\n"
    )
    own = group / "system.slice" / "shardgit.service"
    own.mkdir(parents=True)
    (own / "memory.max").write_text("100\n")
    (own / "memory.current").write_text("90\n")
    (own / "memory.stat").write_text("file 0\n")
    assert memory_free(tmp_path) == pytest.approx(0.1)
    assert 0 < memory_free() <= 1
