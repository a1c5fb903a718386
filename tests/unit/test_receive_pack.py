"""receive-pack: refs shown, commands read, results reported."""

from __future__ import annotations

import pytest

from shardgit.errors import InvalidArgument, LimitExceeded, MalformedPacket
from shardgit.limits import Limits
from shardgit.oid import HashKind, ObjectId
from shardgit.protocol.pktline import Mark, Packet, decode, encode
from shardgit.protocol.push_certificate import parse_certificate
from shardgit.protocol.receive_pack import (
    Command,
    CommandResult,
    PushAdvertisement,
    PushCapabilities,
    PushReader,
    PushRequest,
    ReportOption,
    end_of_answer,
    parse_push,
    report,
)
from shardgit.protocol.upload_pack import AdvertisedRef

SHA1 = HashKind.SHA1
A, B = ObjectId(b"\xaa" * 20), ObjectId(b"\xbb" * 20)
HEX_A, HEX_B, ZERO = A.hex().encode(), B.hex().encode(), b"0" * 40
MAKE = Command(b"refs/heads/x", None, A)
MAKE_LINE = ZERO + b" " + HEX_A + b" refs/heads/x"
CERTIFICATE = (
    b"certificate version 0.1\npusher A <a@b.c> 1 +0000\npushee http://x\nnonce 12-ab\n"
    b"push-option one\n\n" + MAKE_LINE + b"\n"
)
SIGNATURE = b"-----BEGIN PGP SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----\n"


def commands(words: bytes = b"", *after: Packet) -> bytes:
    return encode([MAKE_LINE + b"\0" + words, *after, Mark.FLUSH])


def signed(text: bytes, *after: Packet) -> bytes:
    lines = [each + b"\n" for each in text.removesuffix(b"\n").split(b"\n")]
    return encode([b"push-cert\0 report-status\n", *lines, b"push-cert-end\n", *after, Mark.FLUSH])


def test_the_first_line_carries_what_is_offered() -> None:
    offered = PushCapabilities(nonce=b"12-ab", session_id=b"s1")
    writer = PushAdvertisement(SHA1, "1.2", offered)
    refs = [
        AdvertisedRef(b"HEAD", A, None, b"refs/heads/main"),
        AdvertisedRef(b"refs/heads/main", A),
        AdvertisedRef(b"refs/heads/unborn", None),
        AdvertisedRef(b"refs/tags/v1", B, A),
    ]
    assert decode(writer.add(refs) + writer.end()) == [
        HEX_A + b" refs/heads/main\0report-status report-status-v2 delete-refs side-band-64k quiet"
        b" atomic ofs-delta push-cert=12-ab push-options session-id=s1 object-format=sha1"
        b" agent=shardgit/1.2\n",
        HEX_B + b" refs/tags/v1\n",
        Mark.FLUSH,
    ]


def test_without_refs_the_capabilities_have_a_line_of_their_own() -> None:
    writer = PushAdvertisement(
        HashKind.SHA256, "1.2", PushCapabilities(atomic=False, push_options=False)
    )
    text, flush = decode(writer.add([]) + writer.end())
    assert text == (
        b"0" * 64 + b" capabilities^{}\0report-status report-status-v2 delete-refs side-band-64k"
        b" quiet ofs-delta object-format=sha256 agent=shardgit/1.2\n"
    )
    assert flush is Mark.FLUSH


def test_words_of_a_request() -> None:
    words = b" report-status-v2 side-band-64k quiet atomic agent=git/2 session-id=7 nonsense"
    request, pack = parse_push(commands(words) + b"PACKrest", SHA1)
    assert request == PushRequest(
        (MAKE,), 2, 2, atomic=True, quiet=True, agent=b"git/2", session_id=b"7"
    )
    assert pack == b"PACKrest"
    assert parse_push(commands(b"report-status"), SHA1) == (PushRequest((MAKE,), 1), b"")
    assert parse_push(commands(b""), SHA1) == (PushRequest((MAKE,)), b"")


def test_words_stand_on_any_line() -> None:
    data = encode([MAKE_LINE, HEX_A + b" " + ZERO + b" refs/heads/y\0report-status\n", Mark.FLUSH])
    request, _ = parse_push(data, SHA1)
    assert request == PushRequest((MAKE, Command(b"refs/heads/y", A, None)), 1)


def test_push_options_follow_the_commands_where_offered() -> None:
    data = commands(b"push-options") + encode([b"one\n", b"two", Mark.FLUSH]) + b"PACK"
    request, pack = parse_push(data, SHA1)
    assert request is not None
    assert (request.options, pack) == ((b"one", b"two"), b"PACK")
    reader = PushReader(SHA1, offered=PushCapabilities(push_options=False, atomic=False))
    rest = reader.receive(commands(b"push-options atomic") + b"PACK")
    assert (rest, reader.request) == (b"PACK", PushRequest((MAKE,)))


def test_what_follows_the_request_is_handed_on() -> None:
    reader = PushReader(SHA1)
    assert reader.receive(commands()[:-1]) is None
    assert reader.receive(b"0") == b""
    assert reader.receive(b"PACK") == b"PACK"


def test_shallow_lines_stand_among_the_commands() -> None:
    data = encode([b"shallow " + HEX_A + b"\n", MAKE_LINE, b"shallow " + HEX_B, Mark.FLUSH])
    request, _ = parse_push(data, SHA1)
    assert request == PushRequest((MAKE,), shallow=(A, B))


@pytest.mark.parametrize("data", [b"", b"0000", encode([b"shallow " + HEX_A, Mark.FLUSH])])
def test_a_client_that_commands_nothing_gets_nothing(data: bytes) -> None:
    assert parse_push(data, SHA1)[0] is None


def test_commands_of_a_certificate_count() -> None:
    request, _ = parse_push(signed(CERTIFICATE + SIGNATURE), SHA1)
    assert request == PushRequest((MAKE,), 1, certificate=CERTIFICATE + SIGNATURE)
    found = parse_certificate(request.certificate)
    assert (found.payload, found.signature) == (CERTIFICATE, SIGNATURE)
    assert (found.nonce, found.options, found.pusher) == (
        b"12-ab",
        (b"one",),
        b"A <a@b.c> 1 +0000",
    )
    assert not found.is_ssh


def test_a_flush_may_end_a_certificate() -> None:
    lines = [each + b"\n" for each in CERTIFICATE.removesuffix(b"\n").split(b"\n")]
    request, _ = parse_push(encode([b"push-cert", *lines, Mark.FLUSH]), SHA1)
    assert request == PushRequest((MAKE,), certificate=CERTIFICATE)


@pytest.mark.parametrize(
    "data",
    [
        b"nope",
        b"0003",
        commands()[:-2],
        encode([MAKE_LINE]),
        encode([MAKE_LINE, Mark.DELIM]),
        encode([MAKE_LINE, Mark.RESPONSE_END]),
        encode([b"", Mark.FLUSH]),
        encode([HEX_A + b" " + HEX_B, Mark.FLUSH]),
        encode([HEX_A[1:] + b" " + HEX_B + b" refs/heads/x", Mark.FLUSH]),
        encode([b"z" * 40 + b" " + HEX_B + b" refs/heads/x", Mark.FLUSH]),
        encode([HEX_A + b"  " + HEX_B + b" refs/heads/x", Mark.FLUSH]),
        encode([b"shallow " + HEX_A[1:], Mark.FLUSH]),
        encode([b"ERR went away", Mark.FLUSH]),
        commands(b"push-options") + encode([b"a", Mark.DELIM]),
        encode([b"push-cert", b"x\n", Mark.DELIM]),
        signed(b"certificate version 0.1\nnonce 1"),
        signed(CERTIFICATE, MAKE_LINE),
        signed(CERTIFICATE + b"\n" + SIGNATURE),
    ],
)
def test_broken_requests_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedPacket):
        parse_push(data, SHA1)


@pytest.mark.parametrize("words", [b"object-format=sha256", b"object-format=x"])
def test_another_object_format_is_refused(words: bytes) -> None:
    with pytest.raises(InvalidArgument, match="different object formats"):
        parse_push(commands(words), SHA1)
    silent = encode([b"0" * 64 + b" " + b"a" * 64 + b" refs/heads/x\0report-status", Mark.FLUSH])
    with pytest.raises(InvalidArgument, match="different object formats"):
        parse_push(silent, HashKind.SHA256)


@pytest.mark.parametrize(
    ("limits", "data"),
    [
        (Limits(push_commands_max=2), encode([MAKE_LINE] * 3)),
        (Limits(push_commands_max=2), signed(CERTIFICATE + (MAKE_LINE + b"\n") * 2)),
        (Limits(push_ref_name_max_bytes=11), encode([MAKE_LINE])),
        (Limits(push_head_max_bytes=200), encode([MAKE_LINE] * 3)),
        (Limits(push_options_max=2), commands(b"push-options") + encode([b"x"] * 3)),
        (Limits(push_options_max_bytes=9), commands(b"push-options") + encode([b"12345"] * 2)),
        (Limits(request_lines_max=2), encode([b"shallow " + HEX_A] * 3)),
    ],
)
def test_requests_are_bounded(limits: Limits, data: bytes) -> None:
    reader = PushReader(SHA1, limits=limits)
    with pytest.raises(LimitExceeded):
        reader.receive(data)


RESULTS = [
    CommandResult(MAKE),
    CommandResult(Command(b"refs/heads/y", A, B), "non-fast-forward"),
    CommandResult(
        Command(b"refs/for/z", A, B),
        options=(
            ReportOption(b"refs/changes/1", A, B, forced_update=True),
            ReportOption(b"refs/changes/2"),
        ),
    ),
]


def test_reports() -> None:
    first = PushRequest((MAKE,), 1)
    assert decode(report(first, None, RESULTS)) == [
        b"unpack ok\n",
        b"ok refs/heads/x\n",
        b"ng refs/heads/y non-fast-forward\n",
        b"ok refs/for/z\n",
        Mark.FLUSH,
    ]
    assert decode(report(PushRequest((MAKE,), 2), None, RESULTS)) == [
        b"unpack ok\n",
        b"ok refs/heads/x\n",
        b"ng refs/heads/y non-fast-forward\n",
        b"ok refs/for/z\n",
        b"option refname refs/changes/1\n",
        b"option old-oid " + HEX_A + b"\n",
        b"option new-oid " + HEX_B + b"\n",
        b"option forced-update\n",
        b"ok refs/for/z\n",
        b"option refname refs/changes/2\n",
        Mark.FLUSH,
    ]
    told = report(first, "index-pack\nabnormal exit", [CommandResult(MAKE, "unpacker error")])
    assert decode(told) == [
        b"unpack index-pack abnormal exit\n",
        b"ng refs/heads/x unpacker error\n",
        Mark.FLUSH,
    ]


def test_a_report_travels_on_band_1_where_the_client_knows_bands() -> None:
    told = report(PushRequest((MAKE,), 1), None, RESULTS[:1])
    assert end_of_answer(PushRequest((MAKE,), 1), told) == told
    assert decode(end_of_answer(PushRequest((MAKE,), 1, 2), told)) == [b"\x01" + told, Mark.FLUSH]
    assert report(PushRequest((MAKE,)), None, RESULTS) == b""
    assert end_of_answer(PushRequest((MAKE,), 0, 2), b"") == b"0000"


def test_a_long_reason_and_a_long_name_fit_one_line() -> None:
    name = b"refs/heads/" + b"x" * 4_085
    told = report(PushRequest((MAKE,), 2), None, [CommandResult(Command(name, A, B), "é" * 9_000)])
    lines = decode(told)
    assert isinstance(lines[1], bytes)
    assert lines[1].startswith(b"ng " + name + b" ")
