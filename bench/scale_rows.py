"""What a journal's row costs in etcd and in LMDB: measures the figures that scale_sim.py is given.

.venv/bin/python bench/scale_rows.py --rows 200000        one etcd from .ci/cluster-setup, in a scratch folder
"""

from __future__ import annotations

import argparse
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb

from shardgit import clock
from shardgit.errors import Unavailable
from shardgit.etcd.access import Access
from shardgit.etcd.client import Etcd
from shardgit.etcdpb import etcd_pb2 as pb
from shardgit.journal.records import (
    NameRecord,
    PoolRecord,
    RefsHead,
    RepositoryRecord,
    name_key,
    pool_key,
    ref_key,
    refs_head_key,
    repository_key,
)
from shardgit.oid import BlockId, HashKind, PoolId, RepositoryId

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
BATCH = 128  # operations that etcd takes at once
LOOSE = 5  # refs of a repository, beside HEAD
HEAD_BODY = b"\1\1\3\x0f\0refs/heads/main"
FRAME = bytes(16)  # revision and checksum of a row in LMDB


def rows(dice: random.Random) -> Iterator[tuple[bytes, bytes]]:
    """Return keys and values of repository after repository."""
    sha1 = HashKind.SHA1
    number = 0
    while True:
        number += 1
        own, pool = RepositoryId(number), PoolId(dice.randbytes(16))
        name = f"org-{dice.randrange(10**6)}/project-{number}"
        root = BlockId(dice.randbytes(32))
        yield (
            repository_key(own),
            RepositoryRecord(own, name, pool, sha1, 1_700_000_000_000).encode(),
        )
        yield name_key(name), NameRecord(own).encode()
        yield pool_key(pool), PoolRecord(pool, sha1, BlockId(dice.randbytes(32)), 1, 1).encode()
        yield refs_head_key(own), RefsHead(root, 9, 1, sha1, 7).encode()
        yield ref_key(own, b"HEAD"), HEAD_BODY
        for at in range(LOOSE):
            yield ref_key(own, b"refs/pull/%d/head" % at), b"\1\1\1" + dice.randbytes(20)


def main() -> None:
    """Measure and print bytes a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    words = parser.parse_args()
    program = shutil.which("etcd", path=f"{ROOT / '.venv/cluster/etcd'}:/usr/bin")
    if program is None:
        sys.exit("no etcd: run .ci/cluster-setup")
    dice = random.Random(1)
    some = list(islice(rows(dice), words.rows))
    raw = sum(len(key) + len(value) for key, value in some) / len(some)
    with tempfile.TemporaryDirectory() as folder:
        file, heap, version = in_etcd(program, Path(folder), some)
        dice.shuffle(some)
        pages = in_lmdb(Path(folder) / "lmdb", some)
    print(f"etcd {version}, {len(some):,} rows; bytes a row: key and value {raw:.0f},", end=" ")
    print(f"etcd file {file:.0f}, etcd heap {heap:.0f}, LMDB {pages:.0f}")


def in_etcd(
    program: str, folder: Path, some: list[tuple[bytes, bytes]]
) -> tuple[float, float, str]:
    """Return bytes a row of etcd's file and of its anonymous memory, and its version."""
    client, peer = (f"http://127.0.0.1:{port}" for port in free_ports())
    flags = ["--data-dir", str(folder / "etcd"), "--name", "e", "--initial-cluster", f"e={peer}"]
    flags += ["--listen-client-urls", client, "--advertise-client-urls", client]
    flags += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    process = subprocess.Popen(
        [program, *flags, "--unsafe-no-fsync"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    etcd = Etcd(Access((client,)))
    try:
        await_leader(etcd)
        for at in range(0, len(some), BATCH):
            puts = [
                pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))
                for key, value in some[at : at + BATCH]
            ]
            etcd.txn(pb.TxnRequest(success=puts))
        status = etcd.status(client.removeprefix("http://"))
        memory = Path(f"/proc/{process.pid}/status").read_text()
        anonymous = int(memory.partition("RssAnon:")[2].split()[0]) * 1_024
        return status.dbSize / len(some), anonymous / len(some), status.version
    finally:
        etcd.close()
        process.kill()
        process.wait()


def await_leader(etcd: Etcd) -> None:
    """Wait until it answers."""
    until = clock.monotonic() + 60
    while True:
        try:
            etcd.range(pb.RangeRequest(key=b"-"))
        except Unavailable:
            if clock.monotonic() > until:
                raise
            clock.sleep(0.1)
        else:
            return


def in_lmdb(folder: Path, some: list[tuple[bytes, bytes]]) -> float:
    """Return bytes a row of LMDB's pages, rows put as they stand."""
    env = lmdb.open(str(folder), map_size=1 << 34, sync=False)
    for at in range(0, len(some), BATCH):
        with env.begin(write=True) as transaction:
            for key, value in some[at : at + BATCH]:
                transaction.put(key, FRAME + value)
    stat = env.stat()
    env.close()
    pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return float(pages * stat["psize"] / len(some))


def free_ports() -> list[int]:
    """Return two ports of loopback that nobody has now."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        return [one.getsockname()[1], two.getsockname()[1]]


if __name__ == "__main__":
    main()
