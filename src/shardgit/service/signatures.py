"""Signatures, judged by the programs that make them: ``gpg`` and ``ssh-keygen``.

Only the keys that are handed in count, each as fully trusted; the user's own keyrings, agents and
key servers have no say. Functions run in the calling thread, which is a worker's.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.protocol.pktline import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM_TIME_MAX_S = 15.0
OUTPUT_SHOWN = 1_000
PRINCIPALS_MAX = 32
NAMESPACE = "git"
_GPG = ("gpg", "--batch", "--no-tty", "--no-options", "--no-autostart", "--quiet")
_ONCE = {  # gpg's words that stand once for each signature
    "GOODSIG": "G",
    "BADSIG": "B",
    "ERRSIG": "E",
    "EXPSIG": "X",
    "EXPKEYSIG": "Y",
    "REVKEYSIG": "R",
}
_SSH_GOOD = re.compile(r'Good "git" signature (?:for (.*) )?with \S+ key (\S+)')


@dataclass(frozen=True, slots=True)
class Signature:
    """What a signature is worth.

    ``status`` is git's letter: G good, B bad, U good by an SSH key that is not among ours, X
    expired, Y good by an expired key, R good by a revoked key, E cannot be checked (an OpenPGP key
    that is not among ours, for one), N none.
    ``output`` is what the program said.
    """

    status: str
    signer: str = ""
    key: str = ""
    fingerprint: str = ""
    output: str = ""


def check_gpg(
    payload: bytes, signature: bytes, keys: Sequence[str], *, time_s: float = PROGRAM_TIME_MAX_S
) -> Signature:
    """Judge an OpenPGP signature against armored public keys."""
    with tempfile.TemporaryDirectory(prefix="shardgit-gpg-") as folder:
        file = Path(folder, "signature")
        file.write_bytes(signature)
        home = (*_GPG, "--homedir", folder)
        if keys:
            armored = "\n".join(keys).encode()
            done = _run((*home, "--import"), armored, folder, time_s)
            if isinstance(done, Signature):
                return done
        verify = ("--trust-model", "always", "--no-auto-key-retrieve", "--status-fd", "1")
        done = _run((*home, *verify, "--verify", str(file), "-"), payload, folder, time_s)
        return done if isinstance(done, Signature) else _gpg_says(done)


def _gpg_says(done: subprocess.CompletedProcess[bytes]) -> Signature:
    status, signer, key, fingerprint = "E", "", "", ""
    seen = 0
    for text in done.stdout.decode("utf-8", "replace").splitlines():
        word, _, rest = text.removeprefix("[GNUPG:] ").partition(" ")
        if not text.startswith("[GNUPG:] "):
            continue
        if word in _ONCE:
            seen += 1
            status = _ONCE[word]
            key, _, signer = rest.partition(" ")
            if status == "E":
                signer = ""
        elif word == "VALIDSIG":
            fingerprint = rest.partition(" ")[0]
    output = _shown(done.stderr)
    if seen != 1:  # none, or several: git trusts neither
        return Signature("E", output=output)
    return Signature(status, signer, key, fingerprint, output)


def check_ssh(
    payload: bytes, signature: bytes, signers: Sequence[str], *, time_s: float = PROGRAM_TIME_MAX_S
) -> Signature:
    """Judge an SSH signature against the lines of an allowed-signers file."""
    with tempfile.TemporaryDirectory(prefix="shardgit-ssh-") as folder:
        file, allowed = Path(folder, "signature"), Path(folder, "signers")
        file.write_bytes(signature)
        allowed.write_text("".join(f"{text}\n" for text in signers))
        keygen, at = ("ssh-keygen", "-Y"), ("-s", str(file))
        done = _run((*keygen, "find-principals", "-f", str(allowed), *at), b"", folder, time_s)
        if isinstance(done, Signature):
            return done
        names = [] if done.returncode else done.stdout.decode("utf-8", "replace").splitlines()
        found = Signature("B", output=_shown(done.stderr))
        for name in [each.strip() for each in names if each.strip()][:PRINCIPALS_MAX]:
            verify = ("verify", "-n", NAMESPACE, "-f", str(allowed), "-I", name, *at)
            done = _run((*keygen, *verify), payload, folder, time_s)
            if isinstance(done, Signature):
                return done
            found = _ssh_says(done)
            if found.status == "G":
                return found
        if not names:
            check = ("check-novalidate", "-n", NAMESPACE, *at)
            done = _run((*keygen, *check), payload, folder, time_s)
            return done if isinstance(done, Signature) else _ssh_says(done)
        return found


def _ssh_says(done: subprocess.CompletedProcess[bytes]) -> Signature:
    said = done.stdout.decode("utf-8", "replace").partition("\n")[0]
    output = _shown(done.stdout + done.stderr)
    good = _SSH_GOOD.fullmatch(said) if done.returncode == 0 else None
    if good is None:
        return Signature("B", output=output)
    signer, key = good[1] or "", good[2]
    return Signature("G" if signer else "U", signer, key, key, output)


def _run(
    words: Sequence[str], given: bytes, folder: str, time_s: float
) -> subprocess.CompletedProcess[bytes] | Signature:
    """Run a program with a time limit; where it gives no answer, that is the signature's worth."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": folder, "LC_ALL": "C"}
    try:
        return subprocess.run(
            words, input=given, env=environment, capture_output=True, timeout=time_s, check=False
        )
    except FileNotFoundError:
        return Signature("E", output=f"{words[0]} is not installed on the server")
    except subprocess.TimeoutExpired:
        return Signature("E", output=f"{words[0]} took longer than {time_s:g} s")


def _shown(text: bytes) -> str:
    return one_line(text.decode("utf-8", "replace")).decode()[:OUTPUT_SHOWN]
