"""A mirror of a repository elsewhere, made by git on a short leash."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, replace
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


def clone_mirror(
    remote: RemoteUrl,
    target: Path,
    *,
    limits: Limits,
    authorization: str = "",
    progress: Report = silent,
) -> None:
    """Mirror a repository into ``target``, which is made.

    git takes its user's configuration (credentials, proxies, authorities), and nothing of the source's: no hooks, no
    other protocol, no redirect, no advice to get something elsewhere. ``authorization`` is shown over HTTP; what
    ``progress`` raises ends git. It ends after ``limits.mirror_time_max_s``, and
    with more than ``limits.mirror_max_bytes`` on disk.

    Errors: Refused without git, NotFound when it cannot read the source, LimitExceeded, Unavailable.
    """
    errand = _Errand(
        remote, target.with_name(f"{target.name}.said"), limits, authorization, progress
    )
    words = ["clone", "--quiet", "--mirror", "--template=", "--no-recurse-submodules", "--"]
    errand.run(*words, remote.url, str(target))
    if not (target / "packed-refs").exists():
        errand.check_empty()


def fetch_mirror(
    remote: RemoteUrl,
    folder: Path,
    *,
    limits: Limits,
    authorization: str = "",
    progress: Report = silent,
) -> None:
    """Bring a copy that ``clone_mirror`` made in step: refs are those of the source, what is new is one pack.

    Errors: as ``clone_mirror``.
    """
    errand = _Errand(remote, folder / "fetch.said", limits, authorization, progress)
    words = ["--git-dir", str(folder), "fetch", "--quiet", "--prune", "--force", "--no-tags"]
    words += ["--no-write-fetch-head", "--", remote.url, "+refs/*:refs/*"]
    errand.run(*words)
    if not ask_git(folder, "for-each-ref", "--count=1").stdout:
        errand.check_empty()


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


def list_refs(
    remote: RemoteUrl,
    folder: Path,
    *,
    limits: Limits,
    authorization: str = "",
    progress: Report = silent,
) -> dict[bytes, bytes]:
    """Return what a repository elsewhere shows: ids in hex by the names of refs; of HEAD "ref: NAME" where it is one.

    ``folder`` is empty; what git says comes there. Errors: as ``clone_mirror``; LimitExceeded also for more than
    ``limits.mirror_refs_max``, or more bytes of them than ``limits.mirror_listing_max_bytes``.
    """
    limits = replace(limits, mirror_max_bytes=limits.mirror_listing_max_bytes)
    errand = _Errand(remote, folder / "refs.said", limits, authorization, progress)
    listed = folder / "refs.listed"
    errand.run("ls-remote", "--quiet", "--symref", "--", remote.url, listed=listed)
    if listed.stat().st_size > limits.mirror_listing_max_bytes:  # since it was looked at last
        raise LimitExceeded("source is too large", limit=limits.mirror_listing_max_bytes)
    found: dict[bytes, bytes] = {}
    with listed.open("rb") as file:
        for line in file:
            value, _, name = line.rstrip(b"\n").partition(b"\t")
            if not name.endswith(b"^{}"):
                found.setdefault(name, value)
            if len(found) > limits.mirror_refs_max:
                raise LimitExceeded("source has too many refs", limit=limits.mirror_refs_max)
    if not found:
        errand.check_empty()
    return found


@dataclass(frozen=True, slots=True)
class _Errand:
    """git sent to one source; ``said`` keeps what it says."""

    remote: RemoteUrl
    said: Path
    limits: Limits
    authorization: str
    progress: Report

    def run(self, *words: str, listed: Path | None = None) -> None:
        """Run git to its end; what it lists comes into a file. Errors: see ``clone_mirror``."""
        code = self._code(words, listed=listed)
        if code:
            self._fail()

    def check_empty(self) -> None:
        """Raise Refused when a source that has shown no refs shows some to who asks in protocol 2.

        To who speaks that unasked over HTTP git listens as if there were none. A list fetches nothing.
        """
        if self.remote.protocol not in PORTS:
            return
        words = ["ls-remote", "--quiet", "--exit-code", "--", self.remote.url]
        code = self._code(words, version="2")
        if code == 0:
            raise Refused(
                "source speaks version 2 of the protocol alone",
                source=without_secret(self.remote.url),
            )
        if code != NO_REFS:
            self._fail()

    def _code(self, words: Sequence[str], *, version: str = "0", listed: Path | None = None) -> int:
        settings = {**_SETTINGS, "protocol.version": version}
        if self.remote.pinned:
            settings["http.curloptResolve"] = self.remote.pinned
        command = [*_git(settings), *words]
        if words[0] == "ls-remote":
            command = [*_bounded(self.limits.mirror_listing_memory_bytes), *command]
        return _run(
            command,
            remote=self.remote,
            said=self.said,
            limits=self.limits,
            authorization=self.authorization,
            progress=self.progress,
            listed=listed,
        )

    def _fail(self) -> NoReturn:
        last = _last_line(self.said)
        moved = "The requested URL returned error: 3" in last
        raise NotFound(
            "source sends elsewhere; name the URL that it leads to"
            if moved
            else "git could not read the source",
            source=without_secret(self.remote.url),
            git=without_secret(last),
        )


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


def _run(
    command: Sequence[str],
    *,
    remote: RemoteUrl,
    said: Path,
    limits: Limits,
    authorization: str,
    progress: Report,
    listed: Path | None = None,
) -> int:
    """Run git to its end within the bounds; returns its exit code. Errors: see ``clone_mirror``."""
    with said.open("wb") as file, Path(listed or os.devnull).open("wb") as out:
        try:
            process = subprocess.Popen(
                command,
                env={**git_environment((remote.protocol,)), **_shown(remote, authorization)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=file,
                start_new_session=True,  # what git starts ends with it
            )
        except FileNotFoundError as cause:
            raise Refused("the git program is needed to import from a URL") from cause
    end = time.monotonic() + limits.mirror_time_max_s
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_S)
            size = _size(said.parent)
            progress(Progress("copying the source", size, None, "bytes"))
            if size > limits.mirror_max_bytes:
                raise LimitExceeded("source is too large", limit=limits.mirror_max_bytes)
            if time.monotonic() >= end:
                raise Unavailable("source took too long", seconds=limits.mirror_time_max_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode


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
