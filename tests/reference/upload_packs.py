"""Raw requests to upload-pack: git's own answer beside ours, taken apart."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reference.gits import ENVIRONMENT, git

from shardgit.oid import HashKind
from shardgit.protocol.pktline import DELIM_BYTES, FLUSH_BYTES, Mark, decode, line
from shardgit.protocol.upload_pack_v0 import parse_v0
from shardgit.protocol.upload_pack_v2 import parse_v2
from shardgit.service.fetch import FetchService

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from shardgit.service.store import Store


@dataclass(frozen=True)
class Ask:
    """A request; ids in hex. ``extra`` are lines such as b"deepen 3"."""

    wants: tuple[str, ...]
    haves: tuple[str, ...] = ()
    extra: tuple[bytes, ...] = ()
    words: tuple[bytes, ...] = ()  # v2 arguments, v0 capabilities

    def v2(self, kind: HashKind) -> bytes:
        """Return the request in protocol v2."""
        head = [b"command=fetch\n", b"object-format=" + kind.git_name.encode() + b"\n"]
        body = [b"ofs-delta\n", b"no-progress\n", *(word + b"\n" for word in self.words)]
        body += [b"want " + one.encode() + b"\n" for one in self.wants]
        body += [one + b"\n" for one in self.extra]
        body += [b"have " + one.encode() + b"\n" for one in self.haves]
        body.append(b"done\n")
        return b"".join(map(line, head)) + DELIM_BYTES + b"".join(map(line, body)) + FLUSH_BYTES

    def v0(self) -> bytes:
        """Return the request in protocol v0."""
        words = b" ".join(
            (b"multi_ack_detailed side-band-64k ofs-delta no-progress filter", *self.words)
        )
        body = [b"want " + one.encode() + b"\n" for one in self.wants]
        body[0] = body[0][:-1] + b" " + words + b"\n"
        body += [one + b"\n" for one in self.extra]
        tail = [b"have " + one.encode() + b"\n" for one in self.haves]
        tail.append(b"done\n")
        return b"".join(map(line, body)) + FLUSH_BYTES + b"".join(map(line, tail))


@dataclass(frozen=True)
class Answer:
    """What came back: the moved boundary, the pack, or the error's words."""

    shallow: frozenset[str] = frozenset()
    unshallow: frozenset[str] = frozenset()
    refs: tuple[bytes, ...] = ()
    pack: bytes = b""
    error: str = ""
    sections: tuple[bytes, ...] = field(default=(), compare=False)


def take_apart(data: bytes) -> Answer:
    """Return the parts of an answer of either version."""
    pack = bytearray()
    ends: dict[bytes, set[str]] = {b"shallow": set(), b"unshallow": set()}
    refs: list[bytes] = []
    sections: list[bytes] = []
    for packet in decode(data):
        if isinstance(packet, Mark):
            continue
        if packet.startswith(b"ERR "):
            return Answer(error=packet[4:].decode().strip())
        word, _, rest = packet.rstrip(b"\n").partition(b" ")
        if packet[:1] == b"\x01":
            pack += packet[1:]
        elif packet[:1] == b"\x03":
            return Answer(error=packet[1:].decode().strip())
        elif word in ends:
            ends[word].add(rest.decode())
        elif word in (b"packfile", b"shallow-info", b"wanted-refs", b"acknowledgments"):
            sections.append(word)
        elif rest.startswith(b"refs/") or rest == b"HEAD":
            refs.append(packet.rstrip(b"\n"))
    return Answer(
        frozenset(ends[b"shallow"]),
        frozenset(ends[b"unshallow"]),
        tuple(sorted(refs)),
        bytes(pack),
        sections=tuple(sections),
    )


def judge_version() -> tuple[int, ...]:
    """Return the version of the git that judges: JUDGE_GIT, or the one on the path."""
    shown = subprocess.run(
        [os.environ.get("JUDGE_GIT", "git"), "--version"], capture_output=True, check=True
    ).stdout
    return tuple(map(int, re.findall(rb"\d+", shown)[:2]))


def gits_answer(
    folder: Path, ask: Ask, *, version: int = 2, kind: HashKind = HashKind.SHA1
) -> Answer:
    """Return what git's upload-pack says."""
    body = ask.v2(kind) if version == 2 else ask.v0()
    configured = {
        "uploadpack.allowFilter": "true",
        "uploadpack.allowRefInWant": "true",
        "uploadpack.allowAnySHA1InWant": "true",
        "uploadpack.allowSidebandAll": "true",
    }
    words = [word for key, value in configured.items() for word in ("-c", f"{key}={value}")]
    done = subprocess.run(
        [os.environ.get("JUDGE_GIT", "git"), *words, "upload-pack", "--stateless-rpc", str(folder)],
        input=body,
        capture_output=True,
        check=False,
        env={**ENVIRONMENT, "PATH": "/usr/bin:/bin", "GIT_PROTOCOL": f"version={version}"},
        timeout=60,
    )
    if done.returncode:
        text = done.stderr.decode().strip().splitlines()
        return Answer(error=text[0].removeprefix("fatal: ") if text else "died")
    return take_apart(done.stdout)


async def our_answer(
    store: Store, name: str, ask: Ask, *, version: int = 2, kind: HashKind = HashKind.SHA1
) -> Answer:
    """Return what our engine says; an error as its words."""
    fetches = FetchService(store, version="test")
    try:
        request = parse_v2(ask.v2(kind), kind) if version == 2 else parse_v0(ask.v0(), kind)
        assert request is not None
        out = b"".join([piece async for piece in fetches.answer(name, request)])
    except Exception as error:  # the judge of it is the caller
        return Answer(error=str(error))
    return take_apart(out)


def objects_of(pack: bytes, scratch: Path, kind: HashKind = HashKind.SHA1) -> set[str]:
    """Return the ids in a pack, which must hold the bases of all its deltas."""
    if not (scratch / "objects").exists():
        git(
            scratch.parent, "init", "-q", "--bare", f"--object-format={kind.git_name}", str(scratch)
        )
    path = scratch / f"{hashlib.sha1(pack).hexdigest()}.pack"
    path.write_bytes(pack)
    git(scratch, "index-pack", f"--object-format={kind.git_name}", str(path))
    shown = git(
        scratch,
        "show-index",
        f"--object-format={kind.git_name}",
        stdin=path.with_suffix(".idx").read_bytes(),
    )
    for each in (path, path.with_suffix(".idx"), path.with_suffix(".rev")):
        each.unlink(missing_ok=True)
    return {row.split()[1].decode() for row in shown.splitlines()}


def listed(folder: Path, words: Sequence[str], stdin: Iterable[str] = ()) -> set[str]:
    """Return the ids that ``git rev-list --objects`` prints."""
    out = git(folder, "rev-list", "--objects", *words, stdin="\n".join(stdin).encode())
    return {row.split()[0].decode().lstrip("?~") for row in out.splitlines()}
