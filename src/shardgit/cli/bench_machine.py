"""What the machine that a bench runs on can do at most, each looked at for a moment."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

EACH_S = 0.2
PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes or operations a second."""

    cores: int
    sha1_bytes: float
    copy_bytes: float
    loopback_bytes: float
    fsyncs: float  # in the folder for temporary files


def limits() -> Limits:
    """Measure all."""
    piece = bytes(PIECE_BYTES)
    room = bytearray(PIECE_BYTES)

    def copy() -> int:
        room[:] = piece
        return PIECE_BYTES

    def sha1() -> int:
        hashlib.sha1(piece, usedforsecurity=False).digest()
        return PIECE_BYTES

    with tempfile.TemporaryFile() as file:

        def fsync() -> int:
            file.write(piece[:4096])
            file.flush()
            os.fsync(file.fileno())
            return 1

        fsyncs = rate(fsync)
    return Limits(len(os.sched_getaffinity(0)), rate(sha1), rate(copy), loopback(piece), fsyncs)


def rate(work: Callable[[], int], seconds: float = EACH_S) -> float:
    """Return how much is done in a second by what returns how much it did."""
    done, begun = work(), time.monotonic()
    done = 0
    while (spent := time.monotonic() - begun) < seconds or not done:
        done += work()
    return done / spent


def loopback(piece: bytes) -> float:
    """Return the bytes a second of one TCP stream over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        other, _ = server.accept()

    def drain() -> None:
        room = bytearray(PIECE_BYTES)
        while client.recv_into(room):
            pass

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    with other, client:

        def send() -> int:
            other.sendall(piece)
            return len(piece)

        found = rate(send)
        other.shutdown(socket.SHUT_WR)
        thread.join()
    return found
