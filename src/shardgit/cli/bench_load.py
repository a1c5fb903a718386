"""What a bench asks of a server: prepared requests, answers read and thrown away, times taken."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import random
import struct
import threading
import time
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shardgit.errors import InvalidArgument, ObjectMissing, Refused, Unavailable
from shardgit.oid import ObjectId
from shardgit.protocol.pktline import Mark, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardgit.cli.bench_target import Target
    from shardgit.client import Client

ROOM_BYTES = 1 << 20
BATCH_IDS = 2_000  # of one call for objects
SAMPLE_IDS = 100_000
BACK_COMMITS = 10  # that a fetch lacks
TIMEOUT_S = 60
SHARES = (0.5, 0.95, 0.99)


@dataclass(slots=True)
class Measured:
    """What a suite found: times of operations in seconds, items and bytes in all; CPU of the server if it is ours."""

    suite: str
    clients: int
    wall_s: float = 0.0
    cpu_s: float | None = None
    items: int = 0  # operations, or the objects in them
    bytes: int = 0
    times_s: list[float] = field(default_factory=list)

    def quantiles_s(self) -> list[float]:
        """Return p50, p95 and p99."""
        ordered = sorted(self.times_s)
        return [ordered[min(len(ordered) - 1, int(s * len(ordered)))] for s in SHARES]


class Http:
    """One connection that is kept open."""

    def __init__(self, url: str) -> None:
        at = urlsplit(url)
        if at.scheme not in ("http", "https") or not at.hostname:
            raise InvalidArgument("that is no URL of a server", url=url)
        kind = http.client.HTTPSConnection if at.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(at.hostname, at.port, timeout=TIMEOUT_S)
        self._path = at.path
        self._room = memoryview(bytearray(ROOM_BYTES))

    def ask(self, service: str, body: bytes | None) -> tuple[int, bytes]:
        """Send a request of protocol v2; return the answer's length, and how it begins and ends."""
        headers = {"Git-Protocol": "version=2"} if service == "git-upload-pack" else {}
        try:
            if body is None:
                path = f"{self._path}/info/refs?service={service}"
                self._connection.request("GET", path, headers=headers)
            else:
                headers["Content-Type"] = f"application/x-{service}-request"
                self._connection.request("POST", f"{self._path}/{service}", body, headers)
            answer = self._connection.getresponse()
            size, shown, tail = 0, b"", b""
            while got := answer.readinto(self._room):
                if not size:
                    shown = bytes(self._room[: min(got, 2_000)])
                size += got
                tail = bytes(self._room[max(0, got - 8) : got])
        except (OSError, http.client.HTTPException) as cause:
            raise Unavailable("server does not answer", cause=str(cause) or repr(cause)) from cause
        if answer.status != 200:
            text = shown.decode("utf-8", "replace").strip()
            raise Refused("server refused", status=answer.status, said=text[:200])
        return size, shown + tail

    def close(self) -> None:
        """Close."""
        self._connection.close()


def repeat(
    target: Target,
    suite: str,
    seconds: float,
    makers: list[Callable[[], Callable[[], tuple[int, int]]]],
) -> Measured:
    """Let each of some clients do its operation again and again for a time; each does it once at least.

    A maker is called in its client's thread and returns the operation, which returns (items, bytes). What one raises is
    raised when all have ended.
    """
    out = Measured(suite, len(makers))
    lock = threading.Lock()
    errors: list[BaseException] = []
    ready = threading.Barrier(len(makers) + 1)
    end = [0.0]

    def client(make: Callable[[], Callable[[], tuple[int, int]]]) -> None:
        try:
            work = make()
        except BaseException as error:
            errors.append(error)
            ready.abort()
            return
        try:
            ready.wait()
            while not errors:
                begun = time.monotonic()
                items, size = work()
                ended = time.monotonic()
                with lock:
                    out.times_s.append(ended - begun)
                    out.items += items
                    out.bytes += size
                if ended >= end[0]:
                    return
        except threading.BrokenBarrierError:
            return
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(make,), daemon=True) for make in makers]
    for thread in threads:
        thread.start()
    cpu, begun = target.cpu_s(), time.monotonic()
    end[0] = begun + seconds
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait()
    for thread in threads:
        thread.join()
    out.wall_s = time.monotonic() - begun
    if errors:
        raise errors[0]
    if cpu is not None:
        out.cpu_s = (target.cpu_s() or 0.0) - cpu
    return out


# ---- suites ----


def _fetching(
    target: Target, body: bytes, end: bytes
) -> Callable[[], Callable[[], tuple[int, int]]]:
    def make() -> Callable[[], tuple[int, int]]:
        connection = Http(target.url(target.repository))

        def work() -> tuple[int, int]:
            size, shown = connection.ask("git-upload-pack", body)
            if not shown.endswith(end) or b"ERR " in shown[:16]:
                raise Refused("server refused", said=shown[:100].decode("utf-8", "replace"))
            return 1, size

        return work

    return make


def _fetch(wants: Sequence[bytes], haves: Sequence[bytes]) -> bytes:
    lines = [b"thin-pack", b"no-progress", b"ofs-delta"]
    lines += [b"want " + oid.hex().encode() for oid in wants]
    lines += [b"have " + oid.hex().encode() for oid in haves]
    size = len(wants[0])
    kind = [b"object-format=sha256"] if size == 32 else []
    return encode([b"command=fetch", *kind, Mark.DELIM, *lines, b"done", Mark.FLUSH])


def clone(target: Target, client: Client, seconds: float, clients: int) -> Measured:
    """Clone all branches and tags."""
    tips = [
        ref.target
        for ref in client.repo(target.repository).refs()
        if ref.target and ref.name.startswith((b"refs/heads/", b"refs/tags/"))
    ]
    if not tips:
        raise ObjectMissing("repository is empty", repository=target.repository)
    body = _fetch(list(dict.fromkeys(tips)), [])
    return repeat(target, "clone", seconds, [_fetching(target, body, b"0000")] * clients)


def fetch(target: Target, client: Client, seconds: float, clients: int) -> Measured:
    """Fetch what is new in the last ten commits of HEAD."""
    repo = client.repo(target.repository)
    last = [commit.id for commit in repo.log("HEAD", limit=1)]
    back = [commit.id for commit in repo.log(f"HEAD~{BACK_COMMITS}", limit=1)]
    body = _fetch(last, back)
    return repeat(target, "fetch", seconds, [_fetching(target, body, b"0000")] * clients)


def refs(target: Target, client: Client, seconds: float, clients: int) -> Measured:
    """List all refs."""
    found = client.repo(target.repository).ref("HEAD")
    kind = [b"object-format=sha256"] if found.target and len(found.target) == 32 else []
    body = encode([b"command=ls-refs", *kind, Mark.DELIM, b"peel", b"symrefs", Mark.FLUSH])
    return repeat(target, "refs", seconds, [_fetching(target, body, b"0000")] * clients)


def objects(target: Target, client: Client, seconds: float, clients: int) -> Measured:
    """Read objects at random, 2,000 a call."""
    from shardgit.client import connect

    ids: list[ObjectId] = []
    for facts in client.repo(target.repository).list_objects():
        ids.append(facts.id)
        if len(ids) == SAMPLE_IDS:
            break
    if not ids:
        raise ObjectMissing("repository is empty", repository=target.repository)

    def make() -> Callable[[], tuple[int, int]]:
        repo = connect(target.grpc).repo(target.repository)
        chance = random.Random(7)  # noqa: S311

        def work() -> tuple[int, int]:
            some = chance.sample(ids, min(BATCH_IDS, len(ids)))
            sizes = [len(one.data) for one in repo.objects(some) if one is not None]
            if len(sizes) != len(some):
                raise ObjectMissing("objects went away meanwhile", repository=target.repository)
            return len(sizes), sum(sizes)

        return work

    return repeat(target, "objects", seconds, [make] * clients)


def push(target: Target, client: Client, seconds: float, clients: int) -> Measured:
    """Push one commit after another, each client into a repository of its own that is deleted at the end."""
    names = [f"bench-{random.randbytes(6).hex()}" for _ in range(clients)]  # noqa: S311
    made: list[str] = []
    try:
        for name in names:
            client.create(name)
            made.append(name)
        makers = [_pusher(target, name) for name in names]
        return repeat(target, "push", seconds, makers)
    finally:
        for name in made:
            client.delete(name)


def _pusher(target: Target, name: str) -> Callable[[], Callable[[], tuple[int, int]]]:
    def make() -> Callable[[], tuple[int, int]]:
        connection = Http(target.url(name))
        last = [ObjectId(bytes(20))]
        count = [0]

        def work() -> tuple[int, int]:
            count[0] += 1
            new, pack = one_commit(last[0] if count[0] > 1 else None, count[0])
            command = b"%s %s refs/heads/main\0report-status agent=shardgit-bench" % (
                last[0].hex().encode(),
                new.hex().encode(),
            )
            body = encode([command, Mark.FLUSH]) + pack
            connection.ask("git-receive-pack", None)
            _, shown = connection.ask("git-receive-pack", body)
            if b"ok refs/heads/main" not in shown:
                text = shown[:200].decode("utf-8", "replace")
                raise Refused("server refused a push", said=text)
            last[0] = new
            return 1, len(body)

        return work

    return make


def one_commit(parent: ObjectId | None, number: int) -> tuple[ObjectId, bytes]:
    """Return a commit's id, and a pack of it with its tree and one new file."""
    blob = b"change %d\n" % number * 40
    tree = b"100644 file\0" + _id("blob", blob)
    who = b"shardgit bench <bench@localhost> %d +0000" % (1_700_000_000 + number)
    lines = [b"tree " + _id("tree", tree).hex().encode()]
    lines += [b"parent " + parent.hex().encode()] if parent is not None else []
    lines += [b"author " + who, b"committer " + who, b"", b"change %d\n" % number]
    commit = b"\n".join(lines)
    out = b"PACK" + struct.pack(">II", 2, 3)
    for kind, data in ((1, commit), (2, tree), (3, blob)):
        out += _entry(kind, data)
    return ObjectId(_id("commit", commit)), out + hashlib.sha1(out, usedforsecurity=False).digest()


def _id(kind: str, data: bytes) -> bytes:
    text = f"{kind} {len(data)}".encode() + b"\0" + data
    return hashlib.sha1(text, usedforsecurity=False).digest()


def _entry(kind: int, data: bytes) -> bytes:
    size = len(data)
    head = bytearray([kind << 4 | size & 15])
    size >>= 4
    while size:
        head[-1] |= 0x80
        head.append(size & 0x7F)
        size >>= 7
    return bytes(head) + zlib.compress(data)


SUITES: dict[str, Callable[[Target, Client, float, int], Measured]] = {
    "clone": clone,
    "fetch": fetch,
    "push": push,
    "objects": objects,
    "refs": refs,
}
