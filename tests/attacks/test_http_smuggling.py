"""Requests in requests: what one reader of HTTP takes for a body and another for a request is never run."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from attacking import Target, target

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.interop
HIDDEN = b"hidden-request"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with target(tmp_path_factory.mktemp("smuggling")) as made:
        yield made


def basic(token: str) -> bytes:
    return b"Authorization: Basic " + base64.b64encode(f"x:{token}".encode()) + b"\r\n"


def hidden(served: Target) -> bytes:
    """Return a request that would be answered if it were run, and tells so by its id."""
    return (
        b"GET /secret/vault.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n"
        + basic(served.admin)
        + b"X-Request-Id: "
        + HIDDEN
        + b"\r\n\r\n"
    )


def post(served: Target, version: bytes = b"1.1") -> bytes:
    return (
        b"POST /team/app.git/git-upload-pack HTTP/"
        + version
        + b"\r\nHost: x\r\nContent-Type: application/x-git-upload-pack-request\r\n"
        + basic(served.reader)
    )


# Headers and a body, behind which stands the hidden request; % is its length, with five bytes before.
AMBIGUOUS = {
    "length and chunks": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n0\r\n\r\n",
    "encoding twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "unknown encoding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": b"Transfer-Encoding: identity\r\n\r\n",
    "encoded and chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "vertical tab": b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "space before colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "folded length": b"X: y\r\n Content-Length: 4\r\nContent-Length: 0\r\n\r\n",
    "folded encoding": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "bare line feed": b"X: a\nContent-Length: 4\r\nContent-Length: 0\r\n\r\n",
    "bare carriage return": b"X: a\rContent-Length: 0\r\n\r\n0000",
    "list of lengths": b"Content-Length: 4, 4\r\n\r\n0000",
    "length twice": b"Content-Length: 4\r\nContent-Length: 0\r\n\r\n0000",
    "the same length twice": b"Content-Length: 4\r\nContent-Length: 4\r\n\r\n0000",
    "negative length": b"Content-Length: -1\r\n\r\n",
    "signed length": b"Content-Length: +4\r\n\r\n0000",
    "hexadecimal length": b"Content-Length: 0x4\r\n\r\n0000",
    "underlined length": b"Content-Length: 0_4\r\n\r\n0000",
    "length of other digits": "Content-Length: \u0664\r\n\r\n0000".encode(),
    "length over 64 bits": b"Content-Length: 18446744073709551620\r\n\r\n0000",
    "no length": b"Content-Length: \r\n\r\n",
    "chunk size over 64 bits": b"Transfer-Encoding: chunked\r\n\r\n10000000000000004\r\n0000\r\n0\r\n\r\n",
    "chunk size with prefix": b"Transfer-Encoding: chunked\r\n\r\n0x4\r\n0000\r\n0\r\n\r\n",
    "negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-4\r\n0000\r\n0\r\n\r\n",
    "spaced chunk": b"Transfer-Encoding: chunked\r\n\r\n 4\r\n0000\r\n0\r\n\r\n",
    "chunk by line feeds": b"Transfer-Encoding: chunked\r\n\r\n4\n0000\n0\n\n",
    "extension by line feed": b"Transfer-Encoding: chunked\r\n\r\n4;a\nxx\r\n0000\r\n0\r\n\r\n",
    "chunk longer than told": b"Transfer-Encoding: chunked\r\n\r\n4\r\n0000XX0\r\n\r\n",
    "length in a trailer": b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
    "NUL in a name": b"X\0: y\r\nContent-Length: 0\r\n\r\n",
    "NUL in a value": b"X: y\0z\r\nContent-Length: 0\r\n\r\n",
    "no name": b": y\r\nContent-Length: 0\r\n\r\n",
}


@pytest.fixture(scope="module")
def answers(served: Target) -> dict[str, bytes]:
    """Send all of them at once: each is waited for until nothing more has come for a while."""
    secret = hidden(served)

    def asked(head: bytes) -> bytes:
        head = head.replace(b"%d", b"%d" % (len(secret) + 5))
        return served.raw(post(served) + head + secret, quiet_s=2)

    with ThreadPoolExecutor(len(AMBIGUOUS)) as pool:
        return dict(zip(AMBIGUOUS, pool.map(asked, AMBIGUOUS.values()), strict=True))


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_refused_with_its_connection(
    answers: dict[str, bytes], name: str
) -> None:
    # Where the end of the first is clear, its answer may come: what follows is not read.
    rows = answers[name].split(b"\r\n")
    statuses = [row[9:12] for row in rows if row.startswith(b"HTTP/1.")]
    assert statuses[-1:] in ([b"400"], [b"501"]), answers[name]
    assert HIDDEN not in answers[name]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_request_in_a_body_is_a_body(served: Target, version: bytes) -> None:
    inner = hidden(served)
    head = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(inner)
    answer = served.raw(post(served, version) + head + inner)
    assert answer.count(b"HTTP/1.") == 1
    assert HIDDEN not in answer


def test_a_body_that_nobody_asked_for_is_no_request(served: Target) -> None:
    inner = hidden(served)
    get = b"GET /team/app.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n"
    head = get + basic(served.reader) + b"Content-Length: %d\r\n\r\n" % len(inner)
    answer = served.raw(head + inner + head + inner)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert HIDDEN not in answer


@pytest.mark.parametrize(
    "ending", [b"4;a=b\r\n0000\r\n0\r\n\r\n", b"4\r\n0000\r\n0;x\r\nT: y\r\n\r\n"]
)
def test_extensions_and_trailers_end_where_they_end(served: Target, ending: bytes) -> None:
    """Two requests one after another are two, each with the rights of its own token."""
    second = hidden(served).replace(basic(served.admin), b"")
    answer = served.raw(post(served) + b"Transfer-Encoding: chunked\r\n\r\n" + ending + second)
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert answer.count(b"HTTP/1.1 401 ") == 1


def get(
    served: Target, target: bytes, version: bytes = b"1.1", host: bytes = b"Host: x\r\n"
) -> bytes:
    """Return a request that is the last of its connection."""
    head = b"GET " + target + b" HTTP/" + version + b"\r\n" + host + basic(served.reader)
    return head + b"Connection: close\r\n\r\n"


PATH = b"/team/app.git/info/refs?service=git-upload-pack"


@pytest.mark.parametrize("version", [b"0.9", b"2.0", b"1.2", b"9.9"])
def test_other_versions_of_http_are_not_spoken(served: Target, version: bytes) -> None:
    answer = served.raw(get(served, PATH, version) + hidden(served))
    status = answer.split(b" ")[1]
    assert status in (b"400", b"505")
    assert HIDDEN not in answer


def test_a_line_without_a_version_is_no_request(served: Target) -> None:
    assert served.raw(b"GET /\r\n\r\n").split(b" ")[1:2] == [b"505"]


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (b"http://evil.example" + PATH, b"Host: x\r\n"),
        (b"http://x@evil.example" + PATH, b"Host: x\r\n"),
        (b"http://x:81" + PATH, b"Host: x\r\n"),
        (b"http:" + PATH, b"Host: x\r\n"),
        (b"x:443", b"Host: x\r\n"),
        (PATH, b"Host: x\r\nHost: evil.example\r\n"),
        (PATH, b""),
        (PATH, b"Host: x/../y\r\n"),
        (PATH, b"Host: evil.example\\@x\r\n"),
        (PATH, b"Host: x y\r\n"),
    ],
)
def test_a_request_is_for_one_host(served: Target, target: bytes, host: bytes) -> None:
    answer = served.raw(get(served, target, host=host))
    assert answer.split(b" ")[1] == b"400", answer
    assert b"evil" not in answer.replace(target, b"")


def test_the_whole_url_may_stand_in_the_request_line(served: Target) -> None:
    assert b" 200 " in served.raw(get(served, b"http://x" + PATH)).split(b"\r\n")[0]


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.2"])
def test_no_other_protocol_is_upgraded_to(served: Target, upgrade: bytes) -> None:
    head = get(served, PATH).replace(b"close\r\n\r\n", b"Upgrade, HTTP2-Settings\r\nUpgrade: ")
    head += upgrade
    answer = served.raw(head + b"\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b" 101 " not in answer


@pytest.mark.parametrize("header", ["Host", "X-Forwarded-Host", "X-Forwarded-For", "Forwarded"])
def test_no_header_of_one_client_is_told_to_another(served: Target, header: str) -> None:
    """Answers are kept and shared: an address in them would be followed by others."""
    evil = f"{header}: evil.example\r\n"
    host = "" if header == "Host" else "Host: x\r\n"
    head = b"".join(
        (
            b"POST /team/app.git/git-upload-pack HTTP/1.1\r\nGit-Protocol: version=2\r\n",
            b"Content-Type: application/x-git-upload-pack-request\r\n",
            basic(served.reader),
        )
    )
    for body in (b"0014command=ls-refs\n0000", b"0017command=bundle-uri\n0000"):
        length = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        asked = served.raw(head + (host + evil).encode() + length + body)
        again = served.raw(head + b"Host: x\r\n" + length + body)
        assert b"evil" not in asked
        assert b"evil" not in again
    first = served.raw(get(served, PATH, host=(host + evil).encode()))
    assert b"evil" not in first + served.raw(get(served, PATH))
