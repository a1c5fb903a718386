"""What packs end with, as processes of a store share it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from shardgit.pool.trailers import FILE_BYTES, SLOTS, WAYS, Trailers

if TYPE_CHECKING:
    from pathlib import Path


def plan(number: int) -> bytes:
    return blake3(number.to_bytes(8, "little")).digest()


def place(number: int) -> int:
    return int.from_bytes(plan(number)[:4], "little") % (SLOTS // WAYS)


@pytest.mark.parametrize("size", [20, 32])
def test_a_trailer_is_known_to_who_opens_the_file_later(tmp_path: Path, size: int) -> None:
    trailers = Trailers(tmp_path / "trailers")
    assert trailers.get(plan(1)) is None
    trailers.put(plan(1), b"t" * size)
    beside, later = Trailers(tmp_path / "trailers"), Trailers(tmp_path / "trailers")
    assert beside.get(plan(1)) == later.get(plan(1)) == b"t" * size
    assert beside.get(plan(2)) is None
    assert (tmp_path / "trailers").stat().st_size == FILE_BYTES


def test_many_are_kept_and_the_rest_written_over() -> None:
    trailers = Trailers()
    for number in range(3 * SLOTS):
        trailers.put(plan(number), plan(number)[:20])
    found = [trailers.get(plan(number)) for number in range(3 * SLOTS)]
    kept = [number for number, trailer in enumerate(found) if trailer is not None]
    assert all(found[number] == plan(number)[:20] for number in kept)
    assert SLOTS * 3 // 4 < len(kept) <= SLOTS
    assert found[-1] is not None


def test_a_plan_put_again_takes_its_own_slot() -> None:
    trailers = Trailers()
    for turn in range(5):
        trailers.put(plan(1), bytes([turn]) * 20)
    assert trailers.get(plan(1)) == b"\4" * 20
    same = [number for number in range(2, 20_000) if place(number) == place(1)]
    for number in same[: WAYS - 1]:
        trailers.put(plan(number), b"x" * 20)
    assert trailers.get(plan(1)) == b"\4" * 20


def test_a_plan_that_begins_as_another_is_not_it() -> None:
    trailers = Trailers()
    trailers.put(plan(1), b"t" * 20)
    assert trailers.get(plan(1)[:16] + bytes(16)) is None


def test_no_damage_is_taken_for_a_trailer(tmp_path: Path) -> None:
    path = tmp_path / "trailers"
    trailers = Trailers(path)
    trailers.put(plan(1), b"t" * 20)
    whole = path.read_bytes()
    at = whole.index(plan(1)[:16])
    rand = random.Random(1)
    for _ in range(300):
        place = at + rand.randrange(64)
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([whole[place] ^ (1 << rand.randrange(8))]))
        # The zeros beside a trailer are not a part of it.
        assert trailers.get(plan(1)) in (None, b"t" * 20)
        if place - at < 17 or 24 <= place - at < 44 or place - at >= 56:
            assert trailers.get(plan(1)) is None
        path.write_bytes(whole)


def test_rubbish_is_no_trailer(tmp_path: Path) -> None:
    (tmp_path / "trailers").write_bytes(os.urandom(FILE_BYTES))
    trailers = Trailers(tmp_path / "trailers")
    assert all(trailers.get(plan(number)) is None for number in range(2_000))
    trailers.put(plan(1), b"t" * 20)
    assert trailers.get(plan(1)) == b"t" * 20


def test_without_a_file_they_are_kept_in_memory(tmp_path: Path) -> None:
    trailers = Trailers(tmp_path / "missing" / "trailers")
    trailers.put(plan(1), b"t" * 20)
    assert trailers.get(plan(1)) == b"t" * 20


WRITER = """
import sys
from pathlib import Path
from blake3 import blake3
from shardgit.pool.trailers import Trailers
trailers = Trailers(Path(sys.argv[1]))
for turn in range(20_000):
    plan = blake3((turn % 8).to_bytes(8, "little")).digest()
    trailers.put(plan, bytes([turn % 256]) * 20)
"""


def test_who_reads_beside_writers_gets_whole_trailers(tmp_path: Path) -> None:
    path = tmp_path / "trailers"
    trailers = Trailers(path)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) for _ in range(2)]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        for number in range(8):
            trailer = trailers.get(plan(number))
            if trailer is not None:
                assert trailer == trailer[:1] * 20
                seen += 1
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen
