"""A mirror of a repository elsewhere, made by git on a short leash."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from shardgit.errors import LimitExceeded, NotFound, Refused, Unavailable
from shardgit.progress import Progress, silent
from shardgit.service.remote_url import PORTS, without_secret

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardgit.limits import Limits
    from shardgit.progress import Report
    from shardgit.service.remote_url import RemoteUrl

LOOK_S = 0.2  # between two looks at how large a mirror has grown
NO_REFS = 2  # exit code of git ls-remote --exit-code
SAID_MAX_BYTES = 64 << 10  # of what git says, read from its end
# Slower than this for so long is no progress. For HTTP alone: of the others the whole time counts.
SLOW_BYTES_S, SLOW_S = 1_000, 60
# Whatever the operator's own configuration says. git follows packfile-uris that nobody asked for, wherever they lead:
# over HTTP not in protocol 0, elsewhere not when HTTP is no protocol that it may use.
_SETTINGS = {
    "protocol.version": "0",
    "transfer.bundleURI": "false",
    "fetch.uriProtocols": "",
    "http.followRedirects": "false",
    "http.lowSpeedLimit": str(SLOW_BYTES_S),
    "http.lowSpeedTime": str(SLOW_S),
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "maintenance.auto": "false",
    "fetch.unpackLimit": "1",  # a pack each time
    "transfer.unpackLimit": "1",
}
# What says for git in which repository it is; git rev-parse --local-env-vars.
_LOCAL = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NAMESPACE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_TEMPLATE_DIR",
    "GIT_WORK_TREE",
)


@dataclass(frozen=True, slots=True)
class Errand:
    """git sent to one source.

    git takes its user's configuration (credentials, proxies, authorities), and nothing of the source's: no hooks, no
    other protocol, no redirect, no advice to get something elsewhere. ``authorization`` is shown over HTTP; what
    ``progress`` raises ends git. It ends after ``limits.mirror_time_max_s``, and with more than
    ``limits.mirror_max_bytes`` on disk.

    Errors of all: Refused without git, NotFound when it cannot read the source, LimitExceeded, Unavailable.
    """

    remote: RemoteUrl
    limits: Limits
    authorization: str = ""
    progress: Report = silent

    def clone(self, target: Path) -> None:
        """Mirror the source into ``target``, which is made."""
        said = target.with_name(f"{target.name}.said")
        words = ["clone", "--quiet", "--mirror", "--template=", "--no-recurse-submodules", "--"]
        self._go([*words, self.remote.url, str(target)], said)
        if not (target / "packed-refs").exists():
            self._check_empty(said)

    def fetch(self, folder: Path) -> None:
        """Bring what ``clone`` made in step: refs are those of the source, what is new is one pack."""
        said = folder / "fetch.said"
        words = ["--git-dir", str(folder), "fetch", "--quiet", "--prune", "--force", "--no-tags"]
        words += ["--no-write-fetch-head", "--", self.remote.url, "+refs/*:refs/*"]
        self._go(words, said)
        if not ask_git(folder, "for-each-ref", "--count=1").stdout:
            self._check_empty(said)

    def refs(self, folder: Path) -> dict[bytes, bytes]:
        """Return what the source shows: ids in hex by the names of refs; of HEAD "ref: NAME" where it is one.

        ``folder`` is empty; what git says comes there. LimitExceeded also for more than ``limits.mirror_refs_max``, or
        more bytes of them than ``limits.mirror_listing_max_bytes``.
        """
        most_bytes, most = self.limits.mirror_listing_max_bytes, self.limits.mirror_refs_max
        said, listed = folder / "refs.said", folder / "refs.listed"
        words = ["ls-remote", "--quiet", "--symref", "--", self.remote.url]
        self._go(words, said, listed=listed, most_bytes=most_bytes)
        if listed.stat().st_size > most_bytes:  # since it was looked at last
            raise LimitExceeded("source is too large", limit=most_bytes)
        found: dict[bytes, bytes] = {}
        with listed.open("rb") as file:
            for line in file:
                value, _, name = line.rstrip(b"\n").partition(b"\t")
                if not name.endswith(b"^{}"):
                    found.setdefault(name, value)
                if len(found) > most:
                    raise LimitExceeded("source has too many refs", limit=most)
        if not found:
            self._check_empty(said)
        return found

    def _check_empty(self, said: Path) -> None:
        """Raise Refused when a source that has shown no refs shows some to who asks in protocol 2.

        To who speaks that unasked over HTTP git listens as if there were none. A list fetches nothing.
        """
        if self.remote.protocol not in PORTS:
            return
        words = ["ls-remote", "--quiet", "--exit-code", "--", self.remote.url]
        code = self._code(words, said, version="2")
        if code == 0:
            raise Refused(
                "source speaks version 2 of the protocol alone",
                source=without_secret(self.remote.url),
            )
        if code != NO_REFS:
            self._fail(said)

    def _go(
        self,
        words: Sequence[str],
        said: Path,
        *,
        listed: Path | None = None,
        most_bytes: int | None = None,
    ) -> None:
        if self._code(words, said, listed=listed, most_bytes=most_bytes):
            self._fail(said)

    def _code(
        self,
        words: Sequence[str],
        said: Path,
        *,
        version: str = "0",
        listed: Path | None = None,
        most_bytes: int | None = None,
    ) -> int:
        """Run git to its end within the bounds; returns its exit code. What it lists comes into a file."""
        settings = {**_SETTINGS, "protocol.version": version}
        if self.remote.pinned:
            settings["http.curloptResolve"] = self.remote.pinned
        command = [*_git(settings), *words]
        if words[0] == "ls-remote":
            command = [*_bounded(self.limits.mirror_listing_memory_bytes), *command]
        with said.open("wb") as file, Path(listed or os.devnull).open("wb") as out:
            try:
                process = subprocess.Popen(
                    command,
                    env={
                        **git_environment((self.remote.protocol,)),
                        **_shown(self.remote, self.authorization),
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=file,
                    start_new_session=True,  # what git starts ends with it
                )
            except FileNotFoundError as cause:
                raise Refused("the git program is needed to import from a URL") from cause
        try:
            self._watch(process, said.parent, most_bytes or self.limits.mirror_max_bytes)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return process.returncode

    def _watch(self, process: subprocess.Popen[bytes], folder: Path, most_bytes: int) -> None:
        """Wait for a process that fills a folder. Errors: LimitExceeded, Unavailable."""
        end = time.monotonic() + self.limits.mirror_time_max_s
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_S)
            size = _size(folder)
            self.progress(Progress("copying the source", size, None, "bytes"))
            if size > most_bytes:
                raise LimitExceeded("source is too large", limit=most_bytes)
            if time.monotonic() >= end:
                raise Unavailable("source took too long", seconds=self.limits.mirror_time_max_s)

    def _fail(self, said: Path) -> NoReturn:
        last = _last_line(said)
        moved = "The requested URL returned error: 3" in last
        raise NotFound(
            "source sends elsewhere; name the URL that it leads to"
            if moved
            else "git could not read the source",
            source=without_secret(self.remote.url),
            git=without_secret(last),
        )


def ask_git(folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Ask git about a repository whose configuration nobody has looked at: it may fetch nothing, and run nothing.

    Errors: FileNotFoundError without git.
    """
    return subprocess.run(
        [*_git(_SETTINGS), "--git-dir", str(folder), *words],
        env=git_environment(()),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def git_environment(
    protocols: Sequence[str], given: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment for git: in no repository yet, asking nobody, with these protocols alone."""
    kept = {key: value for key, value in given.items() if key not in _LOCAL}
    return {
        **kept,
        "GIT_ALLOW_PROTOCOL": ":".join(protocols),  # set, and so not what the configuration says
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
    }


def _shown(remote: RemoteUrl, authorization: str) -> dict[str, str]:
    """Return the variables by which git shows who we are: where the processes' words are listed they do not stand."""
    if not authorization or remote.protocol not in PORTS:
        return {}
    count = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    return {
        "GIT_CONFIG_COUNT": str(count + 1),
        f"GIT_CONFIG_KEY_{count}": f"http.{remote.url}.extraHeader",
        f"GIT_CONFIG_VALUE_{count}": f"Authorization: {authorization}",
    }


def _git(settings: Mapping[str, str]) -> list[str]:
    return [
        "git",
        *(word for key, value in settings.items() for word in ("-c", f"{key}={value}")),
    ]


def _bounded(memory_bytes: int) -> list[str]:
    """Return the words before a command that bound the memory of each of its processes; a lower bound stands."""
    return ["sh", "-c", 'ulimit -d "$0" 2>&-; exec "$@"', str(memory_bytes >> 10)]


def _size(folder: Path) -> int:
    """Return how many bytes a folder takes on disk."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(at, name)).st_blocks * 512  # noqa: PTH118
    return total


def _last_line(said: Path) -> str:
    """Return the last line that git said."""
    with said.open("rb") as file:
        file.seek(max(0, said.stat().st_size - SAID_MAX_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
    printable = ["".join(c for c in line if c.isprintable()).strip() for line in lines]
    return next((line for line in reversed(printable) if line), "")[:1_000]
