"""git-remote-shardgit: lets git use shardgit://HOST:PORT/NAME, over gRPC's TransportService; shardgits:// with TLS.

The token, if the server wants one, stands in the URL (shardgits://x:TOKEN@HOST/NAME), or in SHARDGIT_TOKEN when
SHARDGIT_SERVER names the same host and port, or without that one when it is port 7420 of this machine.

Git starts it for such URLs and speaks gitremote-helpers with it: it offers ``connect``, upon which git talks its own
protocol through it, all versions of it, as through ssh. (``stateless-connect`` is for transports that cannot do that;
git never asks for it where ``connect`` is there.)

A process a command: only what is needed is imported, and messages are put together by hand, without protobuf.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote

from shardgit.calling import from_environment, is_ours

if TYPE_CHECKING:
    from collections.abc import Iterator

SECURE_SUFFIX = "s"  # shardgits://
PORT = 7420
READ_BYTES = 1 << 20
DIED_EXIT = 128  # as git's own programs
METHODS = {
    "git-upload-pack": "UploadPack",
    "git-receive-pack": "ReceivePack",
    "git-upload-archive": "UploadArchive",
}
# What the server has told git of already, in git's own words.
_SILENT = ("UNAVAILABLE", "UNIMPLEMENTED", "UNKNOWN", "DEADLINE_EXCEEDED", "CANCELLED")


def main() -> None:
    """Serve git's commands from standard input; never returns."""
    code = DIED_EXIT
    try:
        if len(sys.argv) < 3:
            _say(
                "git runs this for shardgit://HOST:PORT/NAME; usage: git-remote-shardgit REMOTE URL"
            )
            code = 2
        else:
            code = _commands(sys.argv[2])
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        pass
    # Not sys.exit: a thread may wait for git's next byte.
    os._exit(code)


def _commands(url: str) -> int:
    while line := _line():
        if line == "capabilities":
            _write(b"connect\n\n")
            continue
        word, _, service = line.partition(" ")
        if word == "connect" and service in METHODS:
            return _connect(url, service)
        _say(f"git asks for what is not served: {line[:100]}")
        return DIED_EXIT
    return 0


def _connect(url: str, service: str) -> int:
    try:
        target, name = parse_url(url)
    except ValueError as error:
        shown = url.partition("://")[2].rpartition("@")[2]  # without a token
        _say(f"{error}: {shown[:200]}")
        return DIED_EXIT
    asked = _asked_version()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc

    version = _version(asked)
    _write(b"\n")
    options = [
        ("grpc.max_receive_message_length", 4 << 20),
        ("grpc.max_send_message_length", 4 << 20),
        ("grpc.enable_retries", 0),
    ]
    try:
        calling = from_environment()
    except OSError as error:
        _say(f"file of credentials cannot be read: {error.filename}")
        return DIED_EXIT
    token, secure = token_in(url), url.partition("://")[0].endswith(SECURE_SUFFIX)
    if token or not is_ours(
        target, secure=secure
    ):  # else a submodule's URL could send for the token
        calling = replace(calling, token=token)
    if secure:
        credentials = grpc.ssl_channel_credentials(
            calling.ca or None, calling.key or None, calling.certificate or None
        )
        channel = grpc.secure_channel(target, credentials, options=options)
    else:
        channel = grpc.insecure_channel(target, options=options)
    call = channel.stream_stream(f"/shardgit.v1.TransportService/{METHODS[service]}")
    answers = call(_requests(name, version), metadata=calling.metadata())
    has_answered = False
    try:
        for answer in answers:
            has_answered = True
            _write(data_of(answer))
    except grpc.RpcError as error:
        code = error.code()
        if code is grpc.StatusCode.UNAVAILABLE:
            told = str(error.details())
            if told.startswith("failed to connect"):
                told = f"no server answers there: {told.rpartition(': ')[2]}"
            _say(f"{target}: {told}")
        elif code.name in _SILENT or not has_answered:
            _say(str(error.details()))
        return DIED_EXIT
    except ValueError as error:
        _say(str(error))
        return DIED_EXIT
    return 0


def _requests(name: str, version: int) -> Iterator[bytes]:
    """Return the header, then git's bytes as they come. Runs in a thread of gRPC's."""
    yield header(name, version)
    with contextlib.suppress(OSError):
        import fcntl

        fcntl.fcntl(0, fcntl.F_SETPIPE_SZ, READ_BYTES)
    while data := os.read(0, READ_BYTES):
        yield _field(2, data)


# ---- messages, as protobuf writes them ----


def header(name: str, version: int) -> bytes:
    """Return a request with a header."""
    body = _field(1, name.encode())
    if version:
        body += bytes([2 << 3, version])
    return _field(1, body)


def _field(number: int, data: bytes) -> bytes:
    out = bytearray([number << 3 | 2])
    size = len(data)
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out) + data


def data_of(message: bytes) -> memoryview:
    """Return field 1 of a response, whose only field it is; ValueError when it is not."""
    if not message:
        return memoryview(b"")
    size, at = 0, 0
    for at, byte in enumerate(message[1:6], 2):
        size |= (byte & 0x7F) << 7 * (at - 2)
        if byte < 0x80:
            break
    if at == 0 or message[0] != 1 << 3 | 2 or message[at - 1] >= 0x80 or at + size != len(message):
        raise ValueError("response is not known; is this git-remote-shardgit too old?")
    return memoryview(message)[at:]


# ---- the rest ----


def token_in(url: str) -> str:
    """Return the password in a URL, or the user beside none; "" without either."""
    place = url.partition("://")[2].partition("/")[0]
    user, _, password = place.rpartition("@")[0].partition(":")
    return unquote(password or (user if user.startswith("sgt_") else ""))


def parse_url(url: str) -> tuple[str, str]:
    """Return (HOST:PORT, NAME) of shardgit://HOST[:PORT]/NAME[.git]; ValueError otherwise."""
    rest = url.partition("://")[2] if "://" in url else url
    place, slash, path = rest.partition("/")
    place = place.rpartition("@")[2]
    if not slash or not place or not path.strip("/"):
        raise ValueError("not a URL; write shardgit://HOST:PORT/NAME")
    host, colon, port = place.rpartition(":")
    if not colon or place.endswith("]"):
        host, port = place, str(PORT)
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError("not a URL; write shardgit://HOST:PORT/NAME")
    if ":" in host and not host.startswith("["):
        raise ValueError("an IPv6 address stands in brackets")
    if any("\ud800" <= letter <= "\udfff" for letter in url):  # bytes that are no UTF-8
        raise ValueError("the URL is not UTF-8")
    return f"{host}:{port}", path


def _asked_version() -> subprocess.Popen[bytes] | str:
    """Begin to ask git for protocol.version: it tells its helpers no other way."""
    if told := os.environ.get("GIT_TEST_PROTOCOL_VERSION"):
        return told
    words = ["git", "config", "--get", "protocol.version"]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def _version(asked: subprocess.Popen[bytes] | str) -> int:
    text = asked if isinstance(asked, str) else asked.communicate()[0].decode("ascii", "replace")
    known = {"0": 0, "1": 1, "2": 2}
    return known.get(text.strip(), 2)


def _line() -> str:
    """Return git's next command, byte by byte: what follows it may not be ours."""
    out = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        out += byte
    return out.decode("utf-8", "replace")


def _write(data: bytes | memoryview) -> None:
    while data:
        data = data[os.write(1, data) :]


def _say(text: str) -> None:
    sys.stderr.write(f"git-remote-shardgit: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
