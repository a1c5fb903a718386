"""One hostile client, from an address of its own: attack after attack until it is killed; counts what it was told.

python bench/soak/hostile.py HTTP SSH GRPC TOKEN A_SECOND      HOST:PORT each; prints JSON when it gets SIGTERM
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time
import zlib
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ADDRESS = "127.0.0.66"
ANSWER_MAX_S = 5.0
SLOW_MAX = 150  # connections that it keeps half open
HAVES = 20_000
BOMB_BYTES = 64 << 20


class Hostile:
    """Attacks; each returns in a few seconds whatever the server does."""

    def __init__(self, http: str, ssh: str, grpc: str, token: str) -> None:
        self.http, self.ssh, self.grpc = http, ssh, grpc
        self.basic = "Basic " + base64.b64encode(f"x:{token}".encode()).decode()
        self.told: dict[str, Counter[str]] = {}
        self.slow: list[socket.socket] = []
        self.bomb = gzip.compress(bytes(BOMB_BYTES), 9)
        self.attacks: list[Callable[[], str]] = [
            *(self.slowloris, self.slow_body, self.half_open, self.guess, self.bad_pack),
            *(self.pack_bomb, self.gzip_bomb, self.negotiation, self.deaf_clone, self.garbage),
            *(self.smuggle, self.traverse, self.many_headers),
        ]

    def once(self) -> None:
        """Do one attack, whichever."""
        attack = random.choice(self.attacks)
        try:
            said = attack()
        except OSError as error:
            said = type(error).__name__
        self.told.setdefault(attack.__name__, Counter())[said] += 1

    # ---- ways to send ----

    def _to(self, place: str) -> socket.socket:
        host, _, port = place.rpartition(":")
        return socket.create_connection(
            (host, int(port)), timeout=ANSWER_MAX_S, source_address=(ADDRESS, 0)
        )

    def _status(self, made: socket.socket) -> str:
        try:
            line = made.recv(4_096).split(b"\r\n", 1)[0]
        except TimeoutError:
            return "silence"
        return line[9:12].decode("latin-1") if line.startswith(b"HTTP/") else "closed"

    def _ask(self, head: str, body: bytes = b"") -> str:
        with self._to(self.http) as made:
            with contextlib.suppress(
                BrokenPipeError, ConnectionResetError
            ):  # it has said no meanwhile
                made.sendall(f"{head}\r\nHost: x\r\n".encode() + b"\r\n" + body)
            return self._status(made)

    def _post(self, service: str, body: bytes, more: str = "", name: str = "mallory/x") -> str:
        head = f"POST /{name}.git/git-{service} HTTP/1.1\r\nAuthorization: {self.basic}\r\n"
        head += f"Content-Type: application/x-git-{service}-request\r\n{more}Content-Length: {len(body)}"
        return self._ask(head, body)

    def _keep(self, made: socket.socket) -> None:
        made.setblocking(False)
        self.slow.append(made)
        if len(self.slow) > SLOW_MAX:
            self.slow.pop(0).close()

    def drip(self) -> None:
        """Send a byte more on what is kept half open."""
        for each in list(self.slow):
            try:
                each.send(b"x")
            except OSError:
                self.slow.remove(each)
                each.close()

    # ---- attacks ----

    def slowloris(self) -> str:
        """Begin a request's head, and go on with a byte a second."""
        made = self._to(self.http)
        made.sendall(b"GET /team/app.git/info/refs HTTP/1.1\r\nX-Slow: ")
        self._keep(made)
        return "kept"

    def slow_body(self) -> str:
        """The same with a body of which little comes."""
        made = self._to(self.http)
        head = f"POST /mallory/x.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nAuthorization: {self.basic}\r\n"
        head += "Content-Type: application/x-git-receive-pack-request\r\nContent-Length: 1000000\r\n\r\n"
        made.sendall(head.encode())
        self._keep(made)
        return "kept"

    def half_open(self) -> str:
        """Connect to SSH and gRPC and say nothing."""
        self._keep(self._to(random.choice((self.ssh, self.grpc))))
        return "kept"

    def guess(self) -> str:
        """Show a token that nobody has."""
        wrong = base64.b64encode(f"x:sgt_{random.randbytes(24).hex()}".encode()).decode()
        head = "GET /team/app.git/info/refs?service=git-upload-pack HTTP/1.1"
        return self._ask(f"{head}\r\nAuthorization: Basic {wrong}")

    def _push(self, pack: bytes) -> str:
        new = hashlib.sha1(random.randbytes(8)).hexdigest()
        command = f"{'0' * 40} {new} refs/heads/m\0report-status".encode()
        line = b"%04x%s0000" % (len(command) + 4, command)
        return self._post("receive-pack", line + pack)

    def bad_pack(self) -> str:
        """Push what is no pack, or is cut, or claims more objects than it has."""
        count = random.choice((1, 5, 0xFFFFFFFF))
        body = (
            b"PACK" + struct.pack(">II", 2, count) + random.randbytes(random.choice((0, 40, 4_000)))
        )
        return self._push(body + hashlib.sha1(body).digest())

    def pack_bomb(self) -> str:
        """Push a pack of an object that inflates to a thousand times its bytes."""
        size = BOMB_BYTES
        first, rest = 0x30 | (size & 15), size >> 4
        head = bytearray()
        while rest:
            head.append(first | 0x80)
            first, rest = rest & 127, rest >> 7
        head.append(first)
        body = b"PACK" + struct.pack(">II", 2, 1) + bytes(head) + self._zeros()
        return self._push(body + hashlib.sha1(body).digest())

    def _zeros(self) -> bytes:
        if not hasattr(self, "_deflated"):
            self._deflated = zlib.compress(bytes(BOMB_BYTES), 9)
        return self._deflated

    def gzip_bomb(self) -> str:
        """Send a body that inflates to a thousand times its bytes."""
        return self._post("upload-pack", self.bomb, "Content-Encoding: gzip\r\n")

    def negotiation(self) -> str:
        """Ask with many haves that nobody has, for what is there or is not."""
        want = random.choice((WANT, hashlib.sha1(b"m").hexdigest().encode()))
        lines = [b"0032want %s\n" % want, b"0000"]
        lines += [b"0032have %s\n" % random.randbytes(20).hex().encode() for _ in range(HAVES)]
        return self._post("upload-pack", b"".join([*lines, b"0009done\n"]))

    def deaf_clone(self) -> str:
        """Ask for a large clone and take none of it."""
        made = self._to(self.http)
        body = b"0011command=fetch0001000fno-progress"
        body += b"0032want %s\n0009done\n0000" % WANT
        head = f"POST /mallory/x.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nAuthorization: {self.basic}\r\n"
        head += "Git-Protocol: version=2\r\nContent-Type: application/x-git-upload-pack-request\r\n"
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        made.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self._keep(made)
        return "kept"

    def garbage(self) -> str:
        """Send what is of no protocol to each port."""
        with self._to(random.choice((self.http, self.ssh, self.grpc))) as made:
            made.sendall(random.randbytes(2_000))
            select.select([made], [], [], 1.0)
            return "sent"

    def smuggle(self) -> str:
        """Say two lengths."""
        body = b"0\r\n\r\nGET /team/app.git/info/refs HTTP/1.1\r\nHost: x\r\n\r\n"
        head = "POST /mallory/x.git/git-upload-pack HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
        return self._ask(f"{head}Content-Length: {len(body)}", body)

    def traverse(self) -> str:
        """Ask for files that are no repository, and for others' repositories."""
        path = random.choice(
            ("/../../etc/passwd", "/%2e%2e/journal.git/HEAD", "/team/app.git/HEAD")
        )
        return self._ask(f"GET {path} HTTP/1.1\r\nAuthorization: {self.basic}")

    def many_headers(self) -> str:
        """Send a head without end."""
        more = "\r\n".join(f"X-{number}: {'y' * 200}" for number in range(2_000))
        return self._ask(f"GET / HTTP/1.1\r\n{more}")


WANT = os.environ.get("SOAK_WANT", "0" * 40).encode()


def main() -> None:
    """Attack until SIGTERM."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    hostile = Hostile(*sys.argv[1:5])
    a_second = float(sys.argv[5])
    dripped = time.monotonic()
    while not stopped:
        hostile.once()
        time.sleep(random.expovariate(a_second))
        if time.monotonic() - dripped >= 1:
            dripped = time.monotonic()
            hostile.drip()
    print(json.dumps({name: dict(counts) for name, counts in hostile.told.items()}))


if __name__ == "__main__":
    main()
