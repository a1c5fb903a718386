"""Files that workers count into, on disks that are full."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from prometheus_client import multiprocess, values
from prometheus_client.mmap_dict import MmapedDict

from shardgit import countfile, counts, telemetry
from shardgit.countfile import FIRST_BYTES, CountFile
from shardgit.counts import bury, count_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Have no file grow past a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def told(path: Path) -> dict[str, float]:
    """Return what prometheus_client reads of a file."""
    rows = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    return {key: value for key, value, _, _ in rows}


def fill(file: CountFile, most: int = 2_000) -> dict[str, float]:
    values = {
        f"key {number} of some length, as they are: é": number * 1.0 for number in range(most)
    }
    for key, value in values.items():
        file.write_value(key, value, 0.0)
    return values


def test_a_file_of_counts_has_no_holes_also_when_it_has_grown(tmp_path: Path) -> None:
    path = tmp_path / "counter_7.db"
    file = CountFile(str(path))
    assert path.stat().st_blocks * 512 >= path.stat().st_size == FIRST_BYTES
    values = fill(file)
    assert path.stat().st_blocks * 512 >= path.stat().st_size > FIRST_BYTES
    assert told(path) == values
    file.close()
    again = CountFile(str(path))
    assert again.read_value("key 7 of some length, as they are: é")[0] == 7  # type: ignore[no-untyped-call]
    again.close()
    assert told(path) == values


def test_counts_without_room_stay_in_memory_and_reach_the_file_once_there_is_some(
    tmp_path: Path,
) -> None:
    path = tmp_path / "counter_7.db"
    with files_of_at_most(FIRST_BYTES // 2):
        file = CountFile(str(path))
        values = fill(file)
        assert list(tmp_path.iterdir()) == []  # a file of no bytes would be none that can be read
        assert countfile.astray == {str(path): file}
        file.go_home()
        assert countfile.astray == {str(path): file}
    file.write_value("one more", 5.0, 0.0)
    file.go_home()
    assert countfile.astray == {}
    assert told(path) == {**values, "one more": 5.0}
    file.close()


def test_a_file_that_cannot_grow_stays_as_it_was(
    tmp_path: Path,
) -> None:
    path = tmp_path / "counter_7.db"
    with files_of_at_most(FIRST_BYTES):
        file = CountFile(str(path))
        file.write_value("first", 1.0, 0.0)
        values = fill(file)
        assert path.stat().st_size == FIRST_BYTES
        assert told(path)["first"] == 1.0
        assert 0 < len(told(path)) < len(values)
    file.write_value("first", 2.0, 0.0)
    file.go_home()
    assert told(path) == {**values, "first": 2.0}
    file.close()
    assert countfile.astray == {}


def test_what_the_dead_counted_is_neither_lost_nor_counted_twice_while_there_is_no_room(
    tmp_path: Path,
) -> None:
    filled = {}
    for process, count in ((7, 300), (8, 2_000)):
        file = CountFile(str(tmp_path / f"counter_{process}.db"))
        filled[process] = fill(file, count)
        file.close()
    bury(tmp_path, 7)
    with (
        files_of_at_most((tmp_path / "counter_0.db").stat().st_size),
        pytest.raises(OSError, match="too large"),
    ):
        bury(tmp_path, 8)
    assert told(tmp_path / "counter_0.db") == filled[7]
    assert told(tmp_path / "counter_8.db") == filled[8]
    bury(tmp_path, 8)
    both = {key: value + filled[7].get(key, 0) for key, value in filled[8].items()}
    assert told(tmp_path / "counter_0.db") == both
    assert not (tmp_path / "counter_8.db").exists()


def test_metrics_count_into_such_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert telemetry.REGISTRY is not None  # whose module has seen to it
    assert values.MmapedDict is CountFile  # type: ignore[attr-defined]
    made = values.MultiProcessValue(lambda: 7)  # type: ignore[no-untyped-call]
    counter = made("counter", "some", "some_total", (), (), "Some.")
    with files_of_at_most(0):
        other = made("histogram", "other", "other_sum", (), (), "Other.")
        other.inc(3)
        counter.inc(2)
    assert other.get() == 3
    files = [str(path) for path in tmp_path.glob("*.db")]
    merged = multiprocess.MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
    assert [sample.value for metric in merged for sample in metric.samples] == [2]
    made.close_all_files()
    assert countfile.astray == {}


def test_the_folder_of_counts_lies_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    disk.mkdir()
    with count_folder((memory, disk)) as made:
        assert made.parent == disk
    memory.mkdir()
    with count_folder((memory, disk)) as made:
        assert made.parent == memory
    assert list(memory.iterdir()) == []
    monkeypatch.setattr(counts, "ROOM_BYTES", 1 << 80)
    with count_folder((memory, disk)) as made:
        assert made.parent == disk
