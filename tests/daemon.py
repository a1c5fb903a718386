"""The smallest edge: git's own git:// protocol over a store, for tests of conversations."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from shardgit.errors import ShardgitError
from shardgit.service.access import trusted
from shardgit.service.conversation import GitService, asked_version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shardgit.service.conversation import Conversations


class Daemon:
    """Serves conversations on a port of 127.0.0.1; ``errors`` are what they ended with."""

    def __init__(self, conversations: Conversations, *, piece: int = 65_536) -> None:
        self.conversations = conversations
        self.piece = piece
        self.errors: list[Exception] = []
        self.port = 0
        self.open = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold one conversation."""
        self.open += 1
        try:
            length = int(await reader.readexactly(4), 16)
            words = (await reader.readexactly(length - 4)).decode().split("\0")
            service, _, path = words[0].partition(" ")
            talk = self.conversations.converse(
                GitService(service),
                path.strip("/").removesuffix(".git"),
                self._pieces(reader),
                principal=trusted("tester", "127.0.0.1"),
                version=max((asked_version(word) for word in words[1:]), default=0),
            )
            async with aclosing(talk) as out:
                async for answer in out:
                    writer.write(answer)
                    await writer.drain()
        except (ShardgitError, OSError) as error:
            self.errors.append(error)
        finally:
            writer.close()
            self.open -= 1

    async def _pieces(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        while data := await reader.read(self.piece):
            yield data


@asynccontextmanager
async def daemon(conversations: Conversations, *, piece: int = 65_536) -> AsyncIterator[Daemon]:
    """Serve until the block is left."""
    held = Daemon(conversations, piece=piece)
    server = await asyncio.start_server(held.handle, "127.0.0.1", 0)
    held.port = server.sockets[0].getsockname()[1]
    try:
        yield held
    finally:
        server.close()
        await server.wait_closed()
