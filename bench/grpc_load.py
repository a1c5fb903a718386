"""gRPC clients that cost next to nothing: prepared requests, answers counted by their bytes and thrown away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Sequence

IDS_PER_MESSAGE = 40_000  # under 1 MiB
# A connection of its own for each channel: else all of a process share one, and so one worker.
OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.use_local_subchannel_pool", 1)]


def varint(value: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    """Return a field of bytes as protobuf writes it."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def object_requests(name: str, ids: Sequence[bytes], *, per_message: int) -> list[bytes]:
    """Return the messages of a GetObjects for raw ids, in any order."""
    out = [field(1, field(1, name.encode()) + b"\x10\x01")]
    for at in range(0, len(ids), per_message):
        some = b"".join(field(1, oid) for oid in ids[at : at + per_message])
        out.append(field(2, some))
    return out


def get_objects(
    address: str, name: str, ids: Sequence[bytes], *, per_message: int = IDS_PER_MESSAGE
) -> int:
    """Read objects and throw them away; returns the bytes of the answers."""
    return asyncio.run(ask_objects(address, name, ids, per_message=per_message))


async def ask_objects(
    address: str, name: str, ids: Sequence[bytes], *, per_message: int = IDS_PER_MESSAGE
) -> int:
    """Read objects over a connection of its own; returns the bytes of the answers."""
    requests = object_requests(name, ids, per_message=per_message)
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        call = channel.stream_stream("/shardgit.v1.ObjectService/GetObjects")
        size = 0
        async for message in call(iter(requests)):
            size += len(message)
        return size
