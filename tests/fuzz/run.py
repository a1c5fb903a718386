"""Fuzz the readers of outside bytes: any input gives a value or one typed error, in bounded time.

    python tests/fuzz/run.py TARGET [--seconds 60] [--seed 1] [--seeds FOLDER] [--corpus FOLDER] [--replay FILE]
    python tests/fuzz/run.py --list

Seeds are made, and taken from FOLDER/TARGET (tests/fuzz/corpora.py fills it from other projects' test data), then
mutated. With atheris and kernels that tell which code runs (clang), libFuzzer keeps what reaches new code in the
corpus, for the next time too. Without, inputs are mutated at random: bits, bytes, runs, lengths, splices. Checksums are
mended after half of the mutations, so that the code behind them is reached. An input that crashes, hangs or raises
anything else is written to fuzz-failures/. `make fuzz` runs every target on kernels built with AddressSanitizer and
UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import atheris  # type: ignore[import-untyped]
except ImportError:
    atheris = None

if atheris is None:
    from fuzz.targets import TARGETS
else:
    # The kernels tell by themselves; here what Python does between them.
    with atheris.instrument_imports(include=["shardgit"], enable_loader_override=False):
        from fuzz.targets import TARGETS

from shardgit.errors import ShardgitError

if TYPE_CHECKING:
    from collections.abc import Callable

INPUT_MAX_S = 20
INPUT_MAX_BYTES = 64 << 10
# Of readers written in Python, in which each line counts what it reaches: of 64 KiB it takes a tenth of a second.
SHORT_MAX_BYTES = 3 << 10
SHORT = {"archive", "http", "object", "pktline", "push", "request"}
MEMORY_MAX_MB = 3_000
FAILURES = Path("fuzz-failures")


# ---- guided by coverage


def guided(
    target: str, words: argparse.Namespace, seeds: list[bytes], job: Callable[[bytes], None]
) -> None:
    """Have libFuzzer run a target; it ends the process, with another code than 0 when an input failed."""
    mend = TARGETS[target]()[2]
    corpus = words.corpus / target
    corpus.mkdir(parents=True, exist_ok=True)
    made = corpus.with_name(f"{target}-made")
    made.mkdir(exist_ok=True)
    for seed in seeds:
        (made / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    counts = [0, 0]

    def one(data: bytes) -> None:
        counts[0] += 1
        try:
            job(data)
        except (ShardgitError, MemoryError):
            counts[1] += 1

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        changed: bytes = atheris.Mutate(data, most)
        return mend(changed)[:most] if seed & 1 else changed

    FAILURES.mkdir(exist_ok=True)
    options = [
        f"-max_total_time={int(words.seconds)}",
        f"-seed={words.seed}",
        f"-timeout={INPUT_MAX_S}",
        f"-max_len={SHORT_MAX_BYTES if target in SHORT else INPUT_MAX_BYTES}",
        f"-rss_limit_mb={MEMORY_MAX_MB}",
        f"-artifact_prefix={FAILURES}/{target}-",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    folders = [str(corpus), str(made)]
    if words.seeds and (words.seeds / target).is_dir():
        folders.append(str(words.seeds / target))
    atheris.Setup([sys.argv[0], *options, *folders], one, custom_mutator=mutated)
    atheris.Fuzz()


# ---- at random


def mutate(rand: random.Random, seeds: list[bytes]) -> bytes:
    """Change a seed in one to six places."""
    data = bytearray(rand.choice(seeds))
    for _ in range(rand.randint(1, 6)):
        if not data:
            return bytes(data)
        at = rand.randrange(len(data))
        action = rand.randrange(9)
        if action == 0:
            data[at] ^= 1 << rand.randrange(8)
        elif action == 1:
            data[at] = rand.choice((0, 1, 0x7F, 0x80, 0xFF, rand.randrange(256)))
        elif action == 2:
            del data[at : at + rand.randint(1, 20)]
        elif action == 3:
            data[at:at] = rand.randbytes(rand.randint(1, 20))
        elif action == 4:
            del data[at:]
        elif action == 5:
            value = rand.choice(
                (0, 1, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, len(data))
            )
            data[at : at + 4] = struct.pack(rand.choice("<>") + "I", value)
        elif action == 6:
            other = rand.choice(seeds)
            data[at:] = other[rand.randrange(len(other) + 1) :]
        elif action == 7:
            end = min(len(data), at + rand.randint(1, 40))
            data[at:at] = data[at:end]
        else:
            tail = min(len(data), 60)
            data[len(data) - 1 - rand.randrange(tail)] = rand.randrange(256)
    return bytes(data)


def at_random(target: str, words: argparse.Namespace, seeds: list[bytes]) -> int:
    """Mutate seeds without looking at what they reach; returns 1 when an input failed."""
    _, job, mend = TARGETS[target]()
    last = FAILURES / f"{target}-last"
    last.parent.mkdir(exist_ok=True)
    rand = random.Random(words.seed)
    signal.signal(
        signal.SIGALRM, signal.SIG_DFL
    )  # a hang kills the process; the input is in `last`
    runs = refused = 0
    end = time.monotonic() + words.seconds
    with last.open("wb", buffering=0) as file:
        while time.monotonic() < end:
            data = mutate(rand, seeds)
            if rand.random() < 0.5:
                data = mend(data)
            file.seek(0)
            file.write(struct.pack("<I", len(data)) + data)
            signal.alarm(INPUT_MAX_S)
            runs += 1
            try:
                job(data)
            except (ShardgitError, MemoryError):
                refused += 1
            except Exception:
                failed = last.with_name(f"{target}-{hashlib.sha1(data).hexdigest()[:12]}")
                failed.write_bytes(data)
                sys.stderr.write(f"{target}: an input raised what it must not: {failed}\n")
                raise
    signal.alarm(0)
    last.unlink()
    sys.stdout.write(
        f"fuzz {target}: {runs} inputs, {refused} refused, {runs - refused} accepted, none failed\n"
    )
    return 0


def main() -> int:
    """Fuzz one target; returns 1 when an input failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="?", choices=sorted(TARGETS))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=Path)
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz/corpus"))
    parser.add_argument("--random", action="store_true", help="not guided by coverage")
    parser.add_argument("--replay", type=Path)
    words = parser.parse_args()
    if words.list or not words.target:
        sys.stdout.write(" ".join(sorted(TARGETS)) + "\n")
        return 0
    seeds, job, _ = TARGETS[words.target]()
    if words.replay:
        job(words.replay.read_bytes())
        return 0
    for seed in seeds:
        job(seed)
    if atheris is None or words.random:
        if words.seeds and (words.seeds / words.target).is_dir():
            files = (words.seeds / words.target).iterdir()
            seeds += [file.read_bytes()[:INPUT_MAX_BYTES] for file in files]
        return at_random(words.target, words, seeds)
    guided(words.target, words, seeds, job)
    return 0


if __name__ == "__main__":
    sys.exit(main())
