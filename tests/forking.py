"""Runs commands in processes forked from one that has loaded shardgit: a start costs a tenth of a new Python's CPU."""

from __future__ import annotations

import atexit
import functools
import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import redirect_stdout, suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MESSAGE_MAX = 1 << 17
# What a process has to begin with: these are read when Python itself starts.
AT_START = ("PYTHON", "LD_", "LC_", "LANG", "TZ")


class Mother:
    """The process that forks. It loads what every command loads; the rest each loads itself."""

    def __init__(self) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SHARDGIT_")}
        self._at_start = _at_start(kept)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=kept,
            )
        self._lock = threading.Lock()

    def knows(self, words: tuple[str, ...], environment: Mapping[str, str]) -> bool:
        """Say whether a child is no other than a process that was started: metrics of a server begin at imports."""
        return words[:1] != ("serve",) and _at_start(environment) == self._at_start

    def close(self) -> None:
        self._socket.close()
        self._process.wait()

    def run(
        self,
        words: tuple[str, ...],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        text: str = "",
        timeout_s: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Do what subprocess.run does for ``python -m shardgit``."""
        wish = json.dumps([words, str(cwd), dict(environment)]).encode()
        assert len(wish) < MESSAGE_MAX
        ours, theirs = socket.socketpair()
        with (
            ours,
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as errors,
        ):
            given.write(text.encode())
            given.seek(0)
            with theirs, self._lock:
                files = [theirs.fileno(), given.fileno(), out.fileno(), errors.fileno()]
                socket.send_fds(self._socket, [wish], files)
            ours.settimeout(timeout_s)
            with ours.makefile() as told:
                pid = int(told.readline())
                try:
                    code = int(told.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(words, timeout_s) from None
            out.seek(0)
            errors.seek(0)
            printed = (out.read().decode(), errors.read().decode())
        return subprocess.CompletedProcess(["shardgit", *words], code, *printed)


@functools.cache
def mother() -> Mother:
    """Return the one of this process."""
    made = Mother()
    atexit.register(made.close)
    return made


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key.startswith(AT_START)}


def _serve(wishes: socket.socket) -> None:
    import shardgit.cli.local
    import shardgit.cli.remote
    import shardgit.client
    import shardgit.node
    import shardgit.telemetry  # noqa: F401
    from shardgit.cli.main import main

    sys.argv = ["shardgit", "version"]  # what typer loads only when it runs
    with redirect_stdout(io.StringIO()), suppress(SystemExit):
        main()
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "threads do not live through a fork"
    while True:
        wish, files, _, _ = socket.recv_fds(wishes, MESSAGE_MAX, 4)
        if not wish:
            return
        if os.fork() == 0:
            wishes.close()
            _watch(wish, files)
        for file in files:
            os.close(file)
        while _reaped():
            pass


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _watch(wish: bytes, files: list[int]) -> NoReturn:
    """Fork the command and tell its process id and, in the end, its code."""
    tell, *streams = files
    child = os.fork()
    if child == 0:
        os.close(tell)
        _become(wish, streams)
    for file in streams:
        os.close(file)
    os.write(tell, b"%d\n" % child)
    _, status = os.waitpid(child, 0)
    os.write(tell, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(wish: bytes, streams: list[int]) -> NoReturn:
    """Be the command."""
    words, cwd, environment = json.loads(wish)
    for number, file in enumerate(streams):
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["shardgit", *words]
    from importlib import reload

    from shardgit import faultpoints
    from shardgit.cli.main import main

    reload(faultpoints)  # which looks at the environment
    code: object = 1
    try:
        main()
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        traceback.print_exc()
    sys.exit(code)  # type: ignore[arg-type] # main's own


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
