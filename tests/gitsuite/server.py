"""The server behind the shims: it loads an on-disk repository into a throw-away store and speaks for it.

    python server.py SOCKET REAL_GIT SCRATCH

One process a run; each call of a shim is a thread with an event loop and a store of its own, and shardgit's services
do all the talking. git itself is asked for configuration, and to write what was pushed back to the disk.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent))

from gitsuite.programs import Programs

from shardgit.node import create_store, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.service.store import Store


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a shim. ``files`` are its standard files, ours to close."""

    pid: int
    name: str
    cwd: str
    words: list[str]
    environment: dict[str, str]
    files: tuple[int, int, int]
    peer: socket.socket

    def complain(self, text: str) -> None:
        """Write to the caller's standard error."""
        with suppress(OSError):
            os.write(self.files[2], text.encode("utf-8", "surrogateescape") + b"\n")


class Stores:
    """Throw-away stores: copies of an empty one, since making one takes 250 ms."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        create_store(scratch / "empty")

    @contextmanager
    def fresh(self) -> Iterator[Store]:
        """Open a new empty store; it is gone afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch, prefix="store-"))
        try:
            shutil.copytree(self.scratch / "empty", folder / "store")
            with open_store(folder / "store", threads=2) as store:
                yield store
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def received(peer: socket.socket) -> Call:
    """Read a call from a shim."""
    head, files, _, _ = socket.recv_fds(peer, 4, 3)
    (length,) = struct.unpack("=I", head)
    data = bytearray()
    while len(data) < length:
        piece = peer.recv(length - len(data))
        if not piece:
            raise ConnectionError("shim went away")
        data += piece
    fields = bytes(data).decode("utf-8", "surrogateescape").split("\0")[:-1]
    words, environment = [], {}
    for kind, text in zip(fields[3::2], fields[4::2], strict=True):
        if kind == "a":
            words.append(text)
        else:
            key, _, value = text.partition("=")
            environment[key] = value
    return Call(
        int(fields[0]),
        fields[1],
        fields[2],
        words,
        environment,
        (files[0], files[1], files[2]),
        peer,
    )


def serve(peer: socket.socket, programs: Programs) -> None:
    """Answer one shim."""
    code, call = 128, None
    try:
        call = received(peer)
        code = asyncio.run(programs.run(call))
    except BrokenPipeError:
        code = 141  # as killed by SIGPIPE
    except Exception:
        traceback.print_exc()
        if call is not None:
            call.complain("fatal: internal error of the suite's server")
    finally:
        if call is not None:
            for file in call.files:
                with suppress(OSError):
                    os.close(file)
        with suppress(OSError):
            peer.sendall(bytes([code]))
        peer.close()


def main() -> None:
    """Listen until SIGTERM."""
    path, git, scratch = sys.argv[1:4]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    programs = Programs(Stores(Path(scratch)), git)
    listener = socket.socket(socket.AF_UNIX)
    with suppress(FileNotFoundError):
        Path(path).unlink()
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=serve, args=(peer, programs), daemon=True).start()


if __name__ == "__main__":
    main()
