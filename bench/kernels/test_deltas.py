"""Deltas: making and applying them, beside dulwich (its Rust extension where it is there)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from shardgit import _delta

if TYPE_CHECKING:
    from collections.abc import Callable

    Measure = Callable[[Callable[[], object], int, str], object]
    Pairs = list[tuple[bytes, bytes]]


def _deltas(pairs: Pairs) -> list[bytes]:
    found = [_delta.encode(old, new) for old, new in pairs]
    return [each for each in found if each is not None]


@pytest.mark.benchmark(group="encode deltas")
class TestEncode:
    """Texts of 20 to 400 lines, a few of them changed."""

    def test_shardgit(self, measure: Measure, pairs: Pairs) -> None:
        work = lambda: sum(map(len, _deltas(pairs)))  # noqa: E731
        assert measure(work, sum(len(new) for _, new in pairs), "bytes")

    def test_dulwich(self, measure: Measure, pairs: Pairs) -> None:
        pack = pytest.importorskip("dulwich.pack")

        def work() -> int:
            return sum(sum(map(len, pack.create_delta(old, new))) for old, new in pairs)

        assert measure(work, sum(len(new) for _, new in pairs), "bytes")


@pytest.mark.benchmark(group="apply deltas")
class TestApply:
    """The same the other way round."""

    def test_shardgit(self, measure: Measure, pairs: Pairs) -> None:
        deltas = _deltas(pairs)
        assert len(deltas) == len(pairs)

        def work() -> int:
            made = zip(pairs, deltas, strict=True)
            return sum(len(_delta.apply(old, delta, 1 << 30)) for (old, _), delta in made)

        size = sum(len(new) for _, new in pairs)
        assert measure(work, size, "bytes") == size

    def test_dulwich(self, measure: Measure, pairs: Pairs) -> None:
        pack = pytest.importorskip("dulwich.pack")
        deltas = _deltas(pairs)

        def work() -> int:
            made = zip(pairs, deltas, strict=True)
            return sum(len(b"".join(pack.apply_delta(old, delta))) for (old, _), delta in made)

        size = sum(len(new) for _, new in pairs)
        assert measure(work, size, "bytes") == size
