"""Rows as etcd keeps them, and the node's cache of what lies in bundles."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from shardgit.errors import InvalidArgument, JournalCorrupt
from shardgit.journal.bundle_cache import BundleCache
from shardgit.journal.bundles import MemoryBundles
from shardgit.journal.etcd_rows import (
    EtcdKeys,
    Reference,
    decode_value,
    encode_reference,
    encode_value,
    is_spilled,
    is_whole,
)
from shardgit.journal.interface import END, KEY_MAX_BYTES

if TYPE_CHECKING:
    from pathlib import Path

KEYS = st.binary(min_size=1, max_size=20)
REFERENCES = st.builds(
    Reference,
    st.binary(min_size=16, max_size=16),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 32) - 1),
    st.binary(min_size=32, max_size=32),
)


@given(KEYS, st.binary(max_size=200))
def test_a_value_comes_back(key: bytes, value: bytes) -> None:
    stored = encode_value(key, value)
    assert is_whole(key, stored)
    assert decode_value(key, stored) == value


@given(KEYS, REFERENCES)
def test_a_reference_comes_back(key: bytes, lies: Reference) -> None:
    stored = encode_reference(key, lies)
    assert is_whole(key, stored)
    assert decode_value(key, stored) == lies


@given(KEYS, st.binary(max_size=40), st.data())
def test_a_changed_bit_or_another_key_is_seen(
    key: bytes, value: bytes, data: st.DataObject
) -> None:
    stored = bytearray(encode_value(key, value))
    at = data.draw(st.integers(0, len(stored) * 8 - 1))
    stored[at // 8] ^= 1 << at % 8
    assert not is_whole(key, bytes(stored))
    assert not is_whole(key + b"x", encode_value(key, value))


@given(st.binary(max_size=80))
def test_any_bytes_are_a_value_or_damaged(stored: bytes) -> None:
    is_whole(b"k", stored)
    with suppress(JournalCorrupt):
        assert isinstance(decode_value(b"k", stored), bytes | Reference)


@given(st.binary(min_size=1, max_size=KEY_MAX_BYTES).filter(lambda key: key[0] != 0xFF))
def test_every_row_lies_between_head_and_slots(key: bytes) -> None:
    keys = EtcdKeys(b"p/")
    low, high = keys.watched
    assert low < keys.row(key) < keys.row(END) < high == keys.slots
    assert keys.is_row(keys.row(key))
    assert keys.key(keys.row(key)) == key
    assert not keys.is_row(keys.head)


@pytest.mark.parametrize("prefix", [b"", b"p" * 129, b"p\xff"])
def test_prefixes_that_cannot_be_are_refused(prefix: bytes) -> None:
    with pytest.raises(InvalidArgument):
        EtcdKeys(prefix)


def test_recents_and_long_log_rows_are_spilled() -> None:
    assert is_spilled(b"S1", b"")
    assert not is_spilled(b"L1", bytes(4_096))
    assert is_spilled(b"L1", bytes(4_097))
    assert not is_spilled(b"R1", bytes(100_000))


def reference(bundle: bytes, data: bytes, offset: int, length: int) -> Reference:
    part = data[offset : offset + length]
    return Reference(bundle, offset, length, blake3(part).digest())


def test_what_was_kept_is_read_without_the_bundles(tmp_path: Path) -> None:
    bundles, bundle, data = MemoryBundles(), os.urandom(16), os.urandom(10_000)
    cache = BundleCache(bundles, tmp_path / "c", memory_bytes=0)
    cache.keep(bundle, data)
    wanted = reference(bundle, data, 3_000, 4_000)
    assert cache.read(wanted, b"k") == data[3_000:7_000]
    bundles.put(bundle, data)
    again = BundleCache(bundles, tmp_path / "c", memory_bytes=0)
    bundles.delete([bundle])
    assert again.read(wanted, b"k") == data[3_000:7_000]


def test_a_damaged_file_is_a_miss_and_goes(tmp_path: Path) -> None:
    bundles, bundle, data = MemoryBundles(), os.urandom(16), os.urandom(10_000)
    bundles.put(bundle, data)
    cache = BundleCache(bundles, tmp_path, memory_bytes=0)
    cache.keep(bundle, data[:5_000] + bytes(5_000))
    wanted = reference(bundle, data, 4_000, 2_000)
    assert cache.read(wanted, b"k") == data[4_000:6_000]
    assert [path.name for path in tmp_path.iterdir()] == [f"{bundle.hex()}-4000"]


def test_a_folder_that_is_away_is_only_misses(tmp_path: Path) -> None:
    bundles, bundle = MemoryBundles(), os.urandom(16)
    bundles.put(bundle, b"value")
    (tmp_path / "file").write_bytes(b"")
    cache = BundleCache(bundles, tmp_path / "file" / "cache")
    cache.keep(bundle, b"value")
    assert cache.read(reference(bundle, b"value", 0, 5), b"k") == b"value"


def test_the_files_keep_to_their_bound(tmp_path: Path) -> None:
    cache = BundleCache(MemoryBundles(), tmp_path, disk_bytes=100_000)
    for _ in range(100):
        cache.keep(os.urandom(16), bytes(5_000))
    # Each sixteenth of the bound the oldest go.
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 100_000 * 17 // 16 + 5_000


def test_values_of_many_rows_come_in_their_order(tmp_path: Path) -> None:
    bundles, bundle, data = MemoryBundles(), os.urandom(16), os.urandom(1_000)
    bundles.put(bundle, data)
    cache = BundleCache(bundles, tmp_path)
    wanted = [(reference(bundle, data, at, 10), b"k") for at in range(0, 900, 90)]
    cache.read(*wanted[3])
    assert cache.read_many(wanted) == [data[at : at + 10] for at in range(0, 900, 90)]
    assert cache.read_many([]) == []
    gone = Reference(os.urandom(16), 0, 1, bytes(32))
    with pytest.raises(JournalCorrupt):
        cache.read_many([*wanted, (gone, b"k"), (gone, b"k")])
    cache.close()
