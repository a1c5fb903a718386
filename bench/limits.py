"""What the machine can do at most: the figures that paths are measured against, each taken once a run.

Names, each in bytes or operations a second:

    inflate            bytes made of a pack's entries, a CPU second, by libdeflate (or zlib where it is not there)
    inflate by zlib    the same by zlib
    sha1               one long message, bytes a CPU second (OpenSSL)
    sha1 lanes         many messages at once by shardgit's kernel, bytes a CPU second
    memory copy        bytes a CPU second
    lmdb read          values of 1 MiB copied out of LMDB, bytes a CPU second
    lmdb gets          small values at random keys, a CPU second
    fsync              appends of 4 KiB made durable, a second
    grpc               messages of 1 MiB from a grpc.aio server, bytes a CPU second of the server
    grpc messages      messages of 100 bytes from the same, a CPU second of the server
    loopback           a TCP stream to another process, bytes a CPU second of the sender
    loopback wall      the same, bytes a second

A limit is the best of three tries: what the machine can do, not what it did while it was busy.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bed import pack_of
from measure import cpu_of

if TYPE_CHECKING:
    from bed import Bed

TRIES = 3  # one in the smoke run
PROGRAM = Path(__file__).with_name("limits.c")


@dataclass(frozen=True, slots=True)
class Limit:
    """A figure (bytes or operations a second) and how it was taken."""

    value: float
    unit: str
    how: str


@functools.cache
def program(work: Path) -> Path:
    """Build limits.c, once for what it says; without libdeflate where that is not there."""
    target = work / f"limits-{hashlib.sha256(PROGRAM.read_bytes()).hexdigest()[:12]}"
    if target.exists():
        return target
    base = ["cc", "-O2", str(PROGRAM), "-o", str(target)]
    full = [*base, "-DWITH_LIBDEFLATE", "-ldeflate", "-lz", "-lcrypto"]
    if subprocess.run(full, capture_output=True, check=False).returncode:
        subprocess.run([*base, "-lz", "-lcrypto"], check=True)
    return target


def _ask(bed: Bed, *words: str) -> dict[str, float]:
    done = subprocess.run(
        [str(program(bed.work)), *words], capture_output=True, text=True, check=True
    )
    return {name: float(value) for name, value in map(str.split, done.stdout.splitlines())}


def _best(bed: Bed, amount: str, seconds: str, *words: str) -> float:
    found = (_ask(bed, *words) for _ in range(bed.size(TRIES, 1)))
    return max(one[amount] / one[seconds] for one in found)


# ---- inflate, SHA-1, memory ----


@functools.cache
def _inflating(binary: Path, pack: Path) -> dict[str, float]:
    """Inflate all of a pack, by libdeflate (if it is there) and by zlib; the better of two tries."""
    words = [str(binary), "inflate", str(pack), str(1 << 62)]
    tries = []
    for _ in range(2):
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        tries.append(dict(map(str.split, done.stdout.splitlines())))
    found = {"bytes": float(tries[0]["zlib_bytes"])}
    for name in ("libdeflate", "zlib"):
        if f"{name}_cpu_s" in tries[0]:
            found[name] = found["bytes"] / min(float(one[f"{name}_cpu_s"]) for one in tries)
    return found


def _inflate(bed: Bed, name: str) -> float:
    found = _inflating(program(bed.work), pack_of(bed.repository))
    return found.get(name, found["zlib"])


def inflated(bed: Bed, pack: Path) -> int:
    """Return how many bytes a pack's entries inflate to."""
    return int(_inflating(program(bed.work), pack)["bytes"])


def _sha1_lanes(bed: Bed) -> float:
    from shardgit._fastpack import object_ids

    # Sizes as in a repository: most objects have a few hundred bytes, most bytes are in those of some KiB.
    some = random.Random(1)
    objects = [
        some.randbytes(int(some.lognormvariate(7, 1.5))) for _ in range(bed.size(20_000, 500))
    ]
    types = [3] * len(objects)
    total = sum(map(len, objects))
    rates = []
    for _ in range(bed.size(TRIES, 1)):
        begun = time.process_time()
        object_ids(1, types, objects)
        rates.append(total / (time.process_time() - begun))
    return max(rates)


# ---- LMDB ----


def _lmdb(bed: Bed, *, big: bool) -> float:
    import lmdb

    size, count = (1 << 20, bed.size(256, 16)) if big else (200, bed.size(200_000, 2_000))
    some = random.Random(1)
    keys = [number.to_bytes(8, "big") for number in range(count)]
    folder = bed.fresh("limit-lmdb")
    rates = []
    with lmdb.open(str(folder), map_size=4 << 30, sync=False) as environment:
        value = some.randbytes(size)
        with environment.begin(write=True) as transaction:
            for key in keys:
                transaction.put(key, value, append=True)
        some.shuffle(keys)
        room = bytearray(size)
        for _ in range(bed.size(TRIES, 1)):
            begun = time.process_time()
            with environment.begin(buffers=big) as transaction:
                if big:
                    for key in keys:
                        room[:] = transaction.get(key)
                else:
                    get = transaction.get
                    for key in keys:
                        get(key)
            rates.append(count * (size if big else 1) / (time.process_time() - begun))
    return max(rates)


# ---- gRPC: a process serves, this one reads ----


def _grpc(bed: Bed, *, size: int, count: int) -> float:
    import grpc

    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("grpc_stream.py"))],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        rates = []
        wide = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=wide) as channel:
            stream = channel.unary_stream("/limit/Stream")
            for _ in range(bed.size(TRIES, 1)):
                cpu = cpu_of(process.pid)
                got = sum(1 for _ in stream(b"%d %d" % (size, count)))
                if got != count:
                    raise SystemExit("gRPC stream is cut short")
                rates.append(count * (size if size > 100 else 1) / (cpu_of(process.pid) - cpu))
        return max(rates)
    finally:
        process.terminate()
        process.wait()


# ---- all of them ----


def measure(name: str, bed: Bed) -> float:
    """Measure a limit by its name."""
    match name:
        case "inflate":
            return _inflate(bed, "libdeflate")
        case "inflate by zlib":
            return _inflate(bed, "zlib")
        case "sha1":
            return _best(bed, "bytes", "cpu_s", "sha1")
        case "sha1 lanes":
            return _sha1_lanes(bed)
        case "memory copy":
            return _best(bed, "bytes", "cpu_s", "memcpy")
        case "lmdb read":
            return _lmdb(bed, big=True)
        case "lmdb gets":
            return _lmdb(bed, big=False)
        case "fsync":
            file = str(bed.work / "limit-fsync")
            return _best(bed, "count", "wall_s", "fsync", file, str(bed.size(300, 20)))
        case "grpc":
            return _grpc(bed, size=1 << 20, count=bed.size(1_000, 20))
        case "grpc messages":
            return _grpc(bed, size=100, count=bed.size(20_000, 500))
        case "loopback" | "loopback wall":
            seconds = "cpu_s" if name == "loopback" else "wall_s"
            return _best(bed, "bytes", seconds, "loopback", str(bed.size(4 << 30, 64 << 20)))
    raise KeyError(name)


NAMES = {
    "inflate": "bytes made / CPU s",
    "inflate by zlib": "bytes made / CPU s",
    "sha1": "bytes / CPU s",
    "sha1 lanes": "bytes / CPU s",
    "memory copy": "bytes / CPU s",
    "lmdb read": "bytes / CPU s",
    "lmdb gets": "reads / CPU s",
    "fsync": "fsyncs / s",
    "grpc": "bytes / CPU s of the server",
    "grpc messages": "messages / CPU s of the server",
    "loopback": "bytes / CPU s of the sender",
    "loopback wall": "bytes / s",
}
