"""Leaving without losing a connection, and what is left behind."""

from __future__ import annotations

import asyncio
import select
import socket
from typing import TYPE_CHECKING

import pytest
from prometheus_client.mmap_dict import MmapedDict

from shardgit import leaving
from shardgit.config import ServeConfig, settled_again
from shardgit.counts import bury
from shardgit.leaving import Patience, own_sockets, take_no_more, take_what_waits, waiting

if TYPE_CHECKING:
    from pathlib import Path


def sharing(port: int = 0) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen(100)
    return made


def test_connections_that_wait_stay_and_new_ones_go_to_who_shares_the_port() -> None:
    with sharing() as old, sharing(old.getsockname()[1]) as new:
        where = old.getsockname()
        clients = [socket.create_connection(where) for _ in range(40)]
        before = waiting(old)
        assert before + waiting(new) == 40
        assert before > 0  # of 40, by their ports' hash
        take_no_more(old)
        later = []
        for _ in range(40):
            each = socket.socket()
            each.setblocking(False)
            each.connect_ex(where)
            later.append(each)
        assert waiting(old) == before
        for _ in range(before):
            accepted, _ = old.accept()
            accepted.sendall(b"taken")
            accepted.close()
        old.close()
        for each in later:  # those whose first packet was dropped ask again
            assert select.select([], [each], [], 20)[1]
            assert each.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert each.getpeername() == where
        for each in (*clients, *later):
            each.close()


async def test_a_worker_waits_until_its_queue_is_taken() -> None:
    with sharing() as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            took = asyncio.ensure_future(take_what_waits(port))
            await asyncio.sleep(3 * leaving.HANDSHAKE_S)
            assert not took.done()
            listener.accept()[0].close()
            await took
            # It listens no more, though it is open: who comes now meets another worker, or nobody.
            assert own_sockets(port, listening=True) == []
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))


async def test_patience_becomes_shorter_never_longer() -> None:
    patience = Patience()
    patience.within(3_000)
    assert not await asyncio.wait_for(asyncio.shield(asyncio.sleep(0, False)), 1)
    patience.within(0.05)
    patience.within(3_000)
    async with asyncio.timeout(20):
        assert not await patience.until(asyncio.sleep(3_000))
        assert await patience.until(asyncio.sleep(0.01), more_s=20)
        await patience.hurried()
    assert patience._last is not None
    patience._last.cancel()


def kept(path: Path, values: dict[str, float]) -> None:
    file = MmapedDict(str(path))  # type: ignore[no-untyped-call]
    for key, value in values.items():
        file.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    file.close()  # type: ignore[no-untyped-call]


def values_of(path: Path) -> dict[str, float]:
    rows = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    return {key: value for key, value, _, _ in rows}


def test_the_dead_are_added_up_in_one_file(tmp_path: Path) -> None:
    for process, count in ((7, 1.0), (8, 2.0)):
        kept(tmp_path / f"counter_{process}.db", {"a": count, f"b{process}": 5.0})
        kept(tmp_path / f"gauge_max_{process}.db", {"m": 10.0 - count})
        kept(tmp_path / f"gauge_livesum_{process}.db", {"l": 1.0})
        bury(tmp_path, process)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counter_0.db", "gauge_max_0.db"]
    assert values_of(tmp_path / "counter_0.db") == {"a": 3.0, "b7": 5.0, "b8": 5.0}
    assert values_of(tmp_path / "gauge_max_0.db") == {"m": 9.0}


def test_a_file_of_counts_that_is_cut_off_is_let_go(tmp_path: Path) -> None:
    kept(tmp_path / "counter_7.db", {f"key{number}": 1.0 for number in range(100)})
    whole = (tmp_path / "counter_7.db").read_bytes()
    (tmp_path / "counter_7.db").write_bytes(whole[:1_000])
    bury(tmp_path, 7)
    assert [path.name for path in tmp_path.iterdir()] == ["counter_0.db"]


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (ServeConfig(http="127.0.0.1:0", grpc="127.0.0.1:0"), []),
        (ServeConfig(http="127.0.0.1:9"), ["http"]),
        (ServeConfig(ssh="off", data="/else"), ["data", "ssh"]),
        (ServeConfig(drain_s=7), []),
    ],
)
def test_what_a_running_server_keeps_is_told(wanted: ServeConfig, named: list[str]) -> None:
    now = ServeConfig()
    taken, fixed = settled_again(now, wanted)
    assert fixed == named
    assert (taken.http, taken.grpc, taken.ssh, taken.data) == (
        now.http,
        now.grpc,
        now.ssh,
        now.data,
    )
    assert taken.drain_s == wanted.drain_s
