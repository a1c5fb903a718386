"""Protocol v2: requests read, answers written."""

from __future__ import annotations

import pytest

from shardgit.errors import InvalidArgument, LimitExceeded, MalformedPacket
from shardgit.limits import Limits
from shardgit.oid import HashKind, ObjectId
from shardgit.protocol.deepening import Deepening
from shardgit.protocol.filter_spec import Filter, FilterKind
from shardgit.protocol.pktline import Mark, Packet, decode, encode
from shardgit.protocol.upload_pack import AdvertisedRef, Fetch, LsRefs, Offer
from shardgit.protocol.upload_pack_v2 import (
    RequestV2,
    acknowledgments,
    advertise_v2,
    ls_refs_lines,
    parse_v2,
    shallow_info,
    wanted_refs,
)

SHA1 = HashKind.SHA1
A, B = ObjectId(b"\xaa" * 20), ObjectId(b"\xbb" * 20)
HEX_A, HEX_B = A.hex().encode(), B.hex().encode()
FORMAT = b"object-format=sha1"


def request(command: bytes, *arguments: bytes, capabilities: tuple[bytes, ...] = ()) -> bytes:
    head: list[Packet] = [b"command=" + command + b"\n", *capabilities]
    return encode([*head, Mark.DELIM, *arguments, Mark.FLUSH])


def test_the_advertisement_offers_what_is_served() -> None:
    assert decode(advertise_v2(HashKind.SHA256, "1.2")) == [
        b"version 2\n",
        b"agent=shardgit/1.2\n",
        b"ls-refs=unborn\n",
        b"fetch=shallow wait-for-done filter ref-in-want sideband-all\n",
        b"server-option\n",
        b"object-format=sha256\n",
        b"object-info=size\n",
        Mark.FLUSH,
    ]


def test_ls_refs_with_all_its_arguments() -> None:
    data = request(
        b"ls-refs",
        b"peel\n",
        b"symrefs\n",
        b"unborn\n",
        b"ref-prefix HEAD\n",
        b"ref-prefix refs/heads/\n",
        capabilities=(b"agent=git/2.39\n", FORMAT, b"server-option=a=b", b"server-option=c"),
    )
    want = LsRefs(True, True, True, (b"HEAD", b"refs/heads/"))
    assert parse_v2(data, SHA1) == want
    assert want.wants_head
    assert not LsRefs(prefixes=(b"refs/",)).wants_head
    assert LsRefs(prefixes=(b"HE",)).wants_head


def test_a_request_without_arguments_needs_no_delimiter() -> None:
    assert parse_v2(encode([b"command=ls-refs", Mark.FLUSH]), SHA1) == LsRefs()


def test_fetch_with_all_its_arguments() -> None:
    flags = (b"thin-pack", b"ofs-delta", b"include-tag", b"no-progress", b"wait-for-done")
    data = request(
        b"fetch",
        *flags,
        b"sideband-all",
        b"want " + HEX_A + b"\n",
        b"want " + HEX_A,
        b"have " + HEX_B,
        b"done\n",
    )
    assert parse_v2(data, SHA1) == Fetch(
        2,
        (A,),
        (B,),
        done=True,
        thin_pack=True,
        ofs_delta=True,
        include_tag=True,
        no_progress=True,
        wait_for_done=True,
        sideband_all=True,
        sideband=2,
    )


def test_fetch_with_a_boundary_a_filter_and_refs() -> None:
    data = request(
        b"fetch",
        b"want-ref refs/heads/main\n",
        b"want-ref HEAD",
        b"shallow " + HEX_B,
        b"deepen 3",
        b"deepen-relative",
        b"filter combine:tree:2+blob:limit=1k",
        capabilities=(b"session-id=s",),
    )
    assert parse_v2(data, SHA1) == Fetch(
        2,
        want_refs=(b"refs/heads/main", b"HEAD"),
        sideband=2,
        deepening=Deepening((B,), depth=3, relative=True),
        filters=(Filter(FilterKind.TREE_DEPTH, 2), Filter(FilterKind.BLOB_LIMIT, 1024)),
        session_id=b"s",
    )


def test_what_a_repository_does_not_offer_is_neither_shown_nor_taken() -> None:
    offer = Offer(filters=False, ref_in_want=False, sideband_all=False, unborn="ignore")
    assert decode(advertise_v2(SHA1, "1", offer))[2] == b"ls-refs\n"
    silent = RequestV2(SHA1, offer=offer)
    silent.receive(request(b"ls-refs", b"unborn"))
    assert silent.finish() == LsRefs()
    assert decode(advertise_v2(SHA1, "1", offer))[3] == b"fetch=shallow wait-for-done\n"
    for text in (b"filter blob:none", b"want-ref refs/heads/main", b"sideband-all"):
        reader = RequestV2(SHA1, offer=offer)
        with pytest.raises(InvalidArgument, match=f"unexpected line: '{text.decode()}'"):
            reader.receive(request(b"fetch", text))
    shown = decode(advertise_v2(SHA1, "1", Offer(session_id=b"s", promisors=b"name=a,url=b")))
    assert b"session-id=s\n" in shown
    assert b"promisor-remote=name=a,url=b\n" in shown
    reader = RequestV2(SHA1, offer=Offer(promisors=b"name=a,url=b"))
    reader.receive(request(b"fetch", capabilities=(b"promisor-remote=a",)))
    assert reader.finish() == Fetch(2, sideband=2)


def test_sections_before_the_pack() -> None:
    assert decode(shallow_info([A], [B], sideband_all=False)) == [
        b"shallow-info\n",
        b"shallow " + HEX_A,
        b"unshallow " + HEX_B,
        Mark.DELIM,
    ]
    assert decode(wanted_refs([(b"refs/heads/main", A)], sideband_all=True)) == [
        b"\x01wanted-refs\n",
        b"\x01" + HEX_A + b" refs/heads/main\n",
        Mark.DELIM,
    ]
    assert wanted_refs([], sideband_all=False) == b""


@pytest.mark.parametrize("data", [b"0000", b"", b"00000000"])
def test_an_empty_request_is_a_good_bye(data: bytes) -> None:
    assert parse_v2(data, SHA1) is None


def test_what_follows_the_flush_is_passed_over() -> None:
    assert parse_v2(request(b"ls-refs") + b"garbage", SHA1) == LsRefs()


def test_as_many_prefixes_as_the_limit_are_none() -> None:
    limits = Limits(refs_prefixes_max=3)
    two, three, five = (
        request(b"ls-refs", *[b"ref-prefix a%d" % n for n in range(count)]) for count in (2, 3, 5)
    )
    assert parse_v2(two, SHA1, limits=limits) == LsRefs(prefixes=(b"a0", b"a1"))
    assert parse_v2(three, SHA1, limits=limits) == LsRefs()
    assert parse_v2(five, SHA1, limits=limits) == LsRefs()


@pytest.mark.parametrize(
    "data",
    [
        request(b"push"),
        request(b"fetch=x"),
        request(b""),
        request(b"fetch", b"shallow " + HEX_A[1:]),
        request(b"fetch", b"deepen"),
        request(b"fetch", b"deepen 0"),
        request(b"fetch", b"deepen 5", b"deepen-since 1"),
        request(b"fetch", b"filter blob:all"),
        request(b"fetch", b"filter tree:0", b"filter tree:0"),
        request(b"fetch", b"want-ref refs/heads/main", b"want-ref refs/heads/main"),
        request(b"fetch", b"want " + HEX_A[:-1]),
        request(b"fetch", b"want " + HEX_A + b" "),
        request(b"fetch", b"have " + b"g" * 40),
        request(b"fetch", b"done done"),
        request(b"ls-refs", b"done"),
        request(b"ls-refs", b""),
        request(b"fetch", capabilities=(b"command=ls-refs",)),
        request(b"fetch", capabilities=(b"promisor-remote=x",)),
        request(b"fetch", capabilities=(b"object-format=sha256",)),
        request(b"fetch", capabilities=(b"object-format",)),
        request(b"fetch", capabilities=(b"agents",)),
        encode([b"agent=x", Mark.DELIM, Mark.FLUSH]),
        encode([Mark.DELIM, Mark.FLUSH]),
    ],
)
def test_words_that_are_off_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_v2(data, SHA1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        request(b"fetch")[:-4],
        request(b"fetch")[:-1],
        encode([b"command=fetch", Mark.DELIM, Mark.DELIM, Mark.FLUSH]),
        encode([b"command=fetch", Mark.RESPONSE_END, Mark.FLUSH]),
        b"0003" + request(b"fetch"),
    ],
)
def test_broken_framing_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedPacket):
        parse_v2(data, SHA1)


def test_a_client_that_names_no_format_speaks_sha1() -> None:
    with pytest.raises(InvalidArgument, match="different object formats"):
        parse_v2(request(b"ls-refs"), HashKind.SHA256)
    named = request(b"ls-refs", capabilities=(b"object-format=sha256",))
    assert parse_v2(named, HashKind.SHA256) == LsRefs()


def test_lines_are_bounded() -> None:
    reader = RequestV2(SHA1, limits=Limits(request_lines_max=10))
    with pytest.raises(LimitExceeded):
        reader.receive(request(b"fetch", *[b"have " + HEX_A] * 10))


def test_ls_refs_answers() -> None:
    refs = [
        AdvertisedRef(b"HEAD", A, None, b"refs/heads/main"),
        AdvertisedRef(b"refs/heads/main", A),
        AdvertisedRef(b"refs/tags/v1", B, A),
    ]
    bare = decode(ls_refs_lines(refs, LsRefs()))
    assert bare == [HEX_A + b" HEAD\n", HEX_A + b" refs/heads/main\n", HEX_B + b" refs/tags/v1\n"]
    full = decode(ls_refs_lines(refs, LsRefs(peel=True, symrefs=True)))
    assert full[0] == HEX_A + b" HEAD symref-target:refs/heads/main\n"
    assert full[2] == HEX_B + b" refs/tags/v1 peeled:" + HEX_A + b"\n"


def test_an_unborn_head_is_shown_to_those_who_ask_for_it_with_symrefs() -> None:
    unborn = [AdvertisedRef(b"HEAD", None, None, b"refs/heads/main")]
    shown = ls_refs_lines(unborn, LsRefs(symrefs=True, unborn=True))
    assert decode(shown) == [b"unborn HEAD symref-target:refs/heads/main\n"]
    assert ls_refs_lines(unborn, LsRefs(symrefs=True)) == b""
    assert ls_refs_lines(unborn, LsRefs(unborn=True)) == b""


def test_acknowledgments() -> None:
    none = acknowledgments([], ready=False, sideband_all=False)
    assert decode(none) == [b"acknowledgments\n", b"NAK\n", Mark.FLUSH]
    ready = acknowledgments([A], ready=True, sideband_all=True)
    assert decode(ready) == [
        b"\x01acknowledgments\n",
        b"\x01ACK " + HEX_A + b"\n",
        b"\x01ready\n",
        Mark.DELIM,
    ]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (b"blob:none", "filter 'blob:none' not supported"),
        (b"combine:tree:1+tree:0", "filter 'combine' not supported"),
        (b"tree:3", "tree filter allows max depth 2, but got 3"),
    ],
)
def test_filters_that_settings_deny_are_refused(spec: bytes, words: str) -> None:
    offer = Offer(denied=frozenset({"blob:none", "combine"}), tree_depth_max=2)
    reader = RequestV2(SHA1, offer=offer)
    with pytest.raises(InvalidArgument, match=words):
        reader.receive(request(b"fetch", b"filter " + spec))
    allowed = RequestV2(SHA1, offer=offer)
    allowed.receive(request(b"fetch", b"filter tree:2"))
    assert allowed.finish() == Fetch(2, sideband=2, filters=(Filter(FilterKind.TREE_DEPTH, 2),))
