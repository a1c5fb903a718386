"""Clients of SSH that take little are served, those that take nothing are cut."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import asyncssh
import pytest
from reference.gits import git

from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.protocol.pktline import Mark, encode
from shardgit.service.conversation import Conversations
from shardgit.service.importing import import_repository
from shardgit.ssh.admission import Admission
from shardgit.ssh.hostkey import make_host_key
from shardgit.ssh.server import SshEdge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from shardgit.leaving import Patience
    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
LIMITS = Limits(client_stall_max_s=1.0)
STEP_BYTES, STEP_S = 8 << 10, 0.1  # a slow client's: eighty times the slowest that is served


class Over:
    """Patience that has ended."""

    def is_over(self) -> bool:
        return True


OVER = cast("Patience", Over())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with a repository of 8 MiB that does not compress."""
    folder = tmp_path_factory.mktemp("slow")
    source = folder / "source"
    source.mkdir()
    git(source, "init", "-q", "-b", "main")
    (source / "large").write_bytes(random.Random(1).randbytes(8 << 20))
    git(source, "add", "-A")
    git(source, "commit", "-qm", "large")
    create_store(folder / "data")
    with open_store(folder / "data", limits=LIMITS, threads=2) as made:
        import_repository(made, "demo", str(source))
        yield made


@asynccontextmanager
async def asking(store: Store) -> AsyncIterator[asyncssh.SSHClientProcess[bytes]]:
    """Give a clone's process behind its request, of which nothing was read yet."""
    edge = SshEdge(
        Conversations(store, version="1"),
        Admission(store, file="", host="127.0.0.1"),
        http=":1",
        tls=False,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    await edge.listen([listener], host_key=make_host_key(store.scratch, ""))
    try:
        async with asyncssh.connect(
            "127.0.0.1", port, username="git", known_hosts=None, client_keys=[]
        ) as connection:
            process = await connection.create_process(
                "git-upload-pack 'demo'", encoding=None, window=64 << 10
            )
            refs = await process.stdout.readuntil(b"0000")
            want = refs[4:44]
            process.stdin.write(encode([b"want " + want + b" ofs-delta", Mark.FLUSH, b"done"]))
            yield process
    finally:
        await edge.close(OVER)


async def test_who_takes_little_for_long_gets_on(store: Store) -> None:
    async with asyncio.timeout(60), asking(store) as process:
        begun = asyncio.get_running_loop().time()
        taken = 0
        while asyncio.get_running_loop().time() - begun < 6 * LIMITS.client_stall_max_s:
            taken += len(await process.stdout.readexactly(STEP_BYTES))
            await asyncio.sleep(STEP_S)
        assert taken > 8 * STEP_BYTES


async def test_who_takes_nothing_is_cut(store: Store) -> None:
    async with asyncio.timeout(60), asking(store) as process:
        await asyncio.sleep(5 * LIMITS.client_stall_max_s)
        with pytest.raises(asyncssh.ConnectionLost):
            while await process.stdout.read(1 << 20):
                pass
