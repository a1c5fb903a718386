"""Pushes of a real git to a program that speaks through our protocol."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from served import clean_environment, git

from shardgit.oid import HashKind, ObjectId
from shardgit.protocol.receive_pack import (
    PushAdvertisement,
    PushCapabilities,
    PushRequest,
    parse_push,
)
from shardgit.protocol.upload_pack import AdvertisedRef

PROGRAM = Path(__file__).parent / "receiving.py"


@dataclass(frozen=True, slots=True)
class Heard:
    """One push of git, as we understood it; what git said and how it ended."""

    request: PushRequest | None
    pack: bytes
    text: str
    code: int


def push(
    source: Path,
    *words: str,
    refs: dict[bytes, str],
    offered: PushCapabilities | None = None,
    refuse: str = "",
    environment: dict[str, str] | None = None,
    config: tuple[str, ...] = (),
) -> Heard:
    """Let git push to a program of ours which says that it has ``refs``."""
    kind = HashKind.from_git_name(git(source, "rev-parse", "--show-object-format"))
    far = source.parent / "far.git"
    if not far.exists():
        subprocess.run(
            ["git", "init", "-q", "--bare", f"--object-format={kind.git_name}", str(far)],
            check=True,
            timeout=60,
        )
    writer = PushAdvertisement(kind, "1", offered or PushCapabilities())
    known = [AdvertisedRef(name, ObjectId(bytes.fromhex(oid))) for name, oid in refs.items()]
    (far / "advertisement").write_bytes(writer.add(known) + writer.end())
    (far / "refuse").write_text(refuse)
    (far / "format").write_text(kind.git_name)
    (far / "request").unlink(missing_ok=True)
    done = subprocess.run(
        [
            *("git", *config, "-C", str(source), "push", "--porcelain"),
            f"--receive-pack={sys.executable} {PROGRAM}",
            *(word for word in words if word.startswith("-")),
            str(far),
            *(word for word in words if not word.startswith("-")),
        ],
        env={**clean_environment(), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    data = (far / "request").read_bytes() if (far / "request").exists() else b"0000"
    request, pack = parse_push(data, kind)
    return Heard(request, pack, done.stdout + done.stderr, done.returncode)
