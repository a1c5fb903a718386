"""The servers that are compared, and a client that asks for a pack and throws it away."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

if TYPE_CHECKING:
    from collections.abc import Iterator

BINARY = shutil.which("lighttpd", path=f"{os.environ['PATH']}:/usr/sbin")
BACKEND = "git http-backend" if BINARY else "git http-backend, no lighttpd"
LIGHTTPD = """
server.document-root = "{root}"
server.bind = "127.0.0.1"
server.port = {port}
server.modules = ("mod_setenv", "mod_alias", "mod_cgi")
server.stream-response-body = 2
server.pid-file = "{folder}/pid"
server.errorlog = "{folder}/errors"
setenv.set-environment = ("GIT_PROJECT_ROOT" => "{root}", "GIT_HTTP_EXPORT_ALL" => "1",
  "GIT_CONFIG_COUNT" => "1", "GIT_CONFIG_KEY_0" => "safe.directory", "GIT_CONFIG_VALUE_0" => "*")
alias.url = ("/" => "{backend}/")
cgi.assign = ("" => "")
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: the root of its processes, the URL of the repository, and where it speaks gRPC."""

    name: str
    pid: int
    url: str
    grpc: str = ""


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, *, says: bytes = b"") -> None:
    for _ in range(400):
        with contextlib.suppress(OSError), urlopen(url) as answer:
            if says in answer.read():
                return
        time.sleep(0.05)
    raise SystemExit(f"server does not answer: {url}")


@contextlib.contextmanager
def shardgit(store: Path, *, name: str = "bench", workers: int = 1) -> Iterator[Server]:
    """Serve a store."""
    ports = [free_port() for _ in range(3)]
    words = [
        f"--{flag}=127.0.0.1:{port}"
        for flag, port in zip(("http", "grpc", "admin"), ports, strict=True)
    ]
    words.append("--ssh=off")
    command = [
        sys.executable,
        "-m",
        "shardgit",
        "serve",
        "--data",
        str(store),
        f"--workers={workers}",
        *words,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{ports[0]}/{name}.git"
        _wait(f"http://127.0.0.1:{ports[2]}/readyz", says=b"%d of" % workers)
        yield Server("shardgit", process.pid, url, f"127.0.0.1:{ports[1]}")
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def http_backend(repository: Path, folder: Path) -> Iterator[Server]:
    """Serve a bare repository by git http-backend behind lighttpd; without lighttpd by a server that says so."""
    done = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True)
    backend = done.stdout.strip()
    port = free_port()
    root = repository.parent.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if BINARY is not None:
        config = folder / "lighttpd.conf"
        text = LIGHTTPD.format(root=root, port=port, folder=folder.resolve(), backend=backend)
        config.write_text(
            text.replace('("/" => ', '("/git/" => ').replace(
                f'"{backend}/")', f'"{backend}/git-http-backend/")'
            )
        )
        command = [BINARY, "-D", "-f", str(config)]
    else:
        script = str(Path(__file__).with_name("cgi_server.py"))
        command = [sys.executable, script, str(port), str(root), f"{backend}/git-http-backend"]
    process = subprocess.Popen(command, env={**os.environ, "HOME": str(folder)})
    try:
        url = f"http://127.0.0.1:{port}/git/{repository.name}"
        _wait(f"{url}/info/refs?service=git-upload-pack")
        yield Server(BACKEND, process.pid, url)
    finally:
        process.terminate()
        process.wait()


def line(text: bytes) -> bytes:
    """Return a pkt-line."""
    return b"%04x" % (len(text) + 4) + text


def post(url: str, body: bytes) -> Request:
    """Return a protocol v2 request."""
    headers = {
        "Content-Type": "application/x-git-upload-pack-request",
        "Accept": "application/x-git-upload-pack-result",
        "Git-Protocol": "version=2",
    }
    return Request(f"{url}/git-upload-pack", data=body, headers=headers)


def head(url: str) -> bytes:
    """Return the id that HEAD names, in hex."""
    return _listed(url, line(b"ref-prefix HEAD\n"))[0]


def tips(url: str) -> list[bytes]:
    """Return the ids of all heads and tags, in hex."""
    return _listed(url, line(b"ref-prefix refs/heads/\n") + line(b"ref-prefix refs/tags/\n"))


def _listed(url: str, prefixes: bytes) -> list[bytes]:
    body = line(b"command=ls-refs\n") + b"0001" + prefixes
    with urlopen(post(url, body + b"0000")) as answer:
        data = answer.read()
    found: dict[bytes, None] = {}
    at = 0
    while at + 4 <= len(data):
        length = int(data[at : at + 4], 16)
        if length > 4:
            found[data[at + 4 : at + length].split(b" ", 1)[0]] = None
        at += max(length, 4)
    return list(found)


def clone_body(
    wants: list[bytes],
    haves: list[bytes] = [],  # noqa: B006
    extra: bytes = b"",
) -> bytes:
    """Return the request of a clone (or of a fetch on top of ``haves``); ``extra`` is one argument more."""
    rows = [b"thin-pack\n", b"no-progress\n", b"ofs-delta\n"]
    rows += [extra + b"\n"] if extra else []
    rows += (
        [b"want " + oid + b"\n" for oid in wants]
        + [b"have " + oid + b"\n" for oid in haves]
        + [b"done\n"]
    )
    return line(b"command=fetch\n") + b"0001" + b"".join(map(line, rows)) + b"0000"


def discard(url: str, body: bytes) -> int:
    """Send a request and throw the answer away; returns its length."""
    count = 0
    with urlopen(post(url, body)) as answer:
        while piece := answer.read(1 << 20):
            count += len(piece)
            tail = piece[-4:]
    if tail != b"0000":
        raise SystemExit("server's answer is cut short")
    return count
