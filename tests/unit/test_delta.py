"""The delta encoder: what it makes is what our reader and C git make of it."""

from __future__ import annotations

import random
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.packs import PackMaker, object_id

from shardgit import _delta
from shardgit.errors import LimitExceeded, MalformedPack

if TYPE_CHECKING:
    from pathlib import Path

pieces = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.tuples(st.integers(0, 400), st.integers(0, 300)),
    ),
    max_size=12,
)


@given(st.binary(max_size=600), pieces)
@settings(max_examples=300, deadline=None)
def test_a_delta_makes_its_target(source: bytes, parts: list[bytes | tuple[int, int]]) -> None:
    target = b"".join(
        part if isinstance(part, bytes) else source[part[0] : part[0] + part[1]] for part in parts
    )
    delta = _delta.encode(source, target)
    assert delta is not None
    assert _delta.apply(source, delta, len(target)) == target
    for most in (0, 10, len(delta) - 1, len(delta)):
        short = _delta.encode(source, target, most)
        assert short is None or (
            len(short) <= most and _delta.apply(source, short, 1 << 20) == target
        )


def test_what_is_alike_is_copied() -> None:
    rand = random.Random(1)
    source = rand.randbytes(200_000)
    for target in (
        source,
        source[:70_000] + b"new" + source[70_000:],
        source[100_000:] + source[:100_000],
        source[:90_000] + source[90_020:],
        bytes([*source[:5_000], source[5_000] ^ 1, *source[5_001:]]),
    ):
        delta = _delta.encode(source, target)
        assert delta is not None
        assert len(delta) < 120
        assert _delta.apply(source, delta, len(target)) == target


def test_a_delta_over_its_budget_is_given_up() -> None:
    rand = random.Random(2)
    assert _delta.encode(rand.randbytes(5_000), rand.randbytes(5_000), 2_500) is None


def test_long_stretches_of_one_byte_take_no_time_and_little_room() -> None:
    source = bytes(3 << 20)
    target = bytes(1 << 20) + b"x" + bytes(2 << 20)
    delta = _delta.encode(source, target)
    assert delta is not None
    assert len(delta) < 1_000
    assert _delta.apply(source, delta, len(target)) == target


def test_a_damaged_delta_is_refused() -> None:
    source = b"some source that is long enough\n" * 4
    delta = _delta.encode(source, source[10:] + b"more")
    assert delta is not None
    for damaged in (b"", delta[:-1], b"\x01" + delta[1:], delta + b"\x00", delta + b"\xff"):
        with pytest.raises(MalformedPack):
            _delta.apply(source, damaged, 1 << 20)
    with pytest.raises(LimitExceeded):
        _delta.apply(source, delta, 10)


@pytest.mark.interop
def test_git_makes_of_our_deltas_what_we_do(tmp_path: Path) -> None:
    rand = random.Random(3)
    repository = tmp_path / "r.git"
    subprocess.run(["git", "init", "-q", "--bare", str(repository)], check=True)
    maker = PackMaker()
    wanted: dict[str, bytes] = {}
    for number in range(40):
        size = rand.choice([0, 20, 300, 70_000, 200_000])
        source = b"%d\n" % number + b"".join(
            rand.choice([b"a line of text\n", b"another\n", rand.randbytes(9)])
            for _ in range(size // 12)
        )
        cut = sorted(rand.randrange(len(source) + 1) for _ in range(4))
        target = (
            source[cut[2] :]
            + rand.randbytes(rand.randrange(200))
            + source[: cut[1]]
            + source[cut[0] : cut[3]]
        )
        target += b"%d" % number
        delta = _delta.encode(source, target)
        assert delta is not None
        maker.add(3, source)
        maker.ref(object_id(3, source), delta)
        wanted[object_id(3, source).hex()] = source
        wanted[object_id(3, target).hex()] = target
    subprocess.run(
        ["git", "-C", str(repository), "index-pack", "--stdin", "--strict"],
        input=maker.pack(),
        check=True,
        capture_output=True,
    )
    out = subprocess.run(
        ["git", "-C", str(repository), "cat-file", "--batch"],
        input="\n".join(wanted).encode(),
        check=True,
        capture_output=True,
    ).stdout
    for oid, data in wanted.items():
        assert b"%s blob %d\n%s\n" % (oid.encode(), len(data), data) in out
