"""The client of etcd against real members."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from etcds import Etcds, binary, free_ports, running, turn_on_passwords

from shardgit.errors import (
    HistoryGone,
    InvalidArgument,
    LimitExceeded,
    OutcomeUnknown,
    PermissionRefused,
    Unavailable,
)
from shardgit.etcd.access import Access
from shardgit.etcd.client import Etcd
from shardgit.etcd.watching import Changes, WatchEnded
from shardgit.etcdpb import etcd_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.cluster


def put(key: bytes, value: bytes = b"", lease: int = 0) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))


def fresh() -> bytes:
    return b"test/" + os.urandom(8).hex().encode() + b"/"


def test_a_transaction_decides_by_revisions(etcd: Etcd) -> None:
    key = fresh()
    absent = pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=0)
    request = pb.TxnRequest(compare=[absent], success=[put(key, b"1")])
    assert etcd.txn(request).succeeded
    assert not etcd.txn(request).succeeded
    found = etcd.range(pb.RangeRequest(key=key))
    assert [row.value for row in found.kvs] == [b"1"]
    assert found.kvs[0].mod_revision <= found.header.revision


def test_what_etcd_does_not_take_is_typed_and_not_done(etcd: Etcd) -> None:
    key = fresh()
    with pytest.raises(LimitExceeded):
        etcd.txn(pb.TxnRequest(success=[put(key + b"%d" % n) for n in range(129)]))
    with pytest.raises(LimitExceeded):
        etcd.txn(pb.TxnRequest(success=[put(key, bytes(2 << 20))]))
    with pytest.raises(InvalidArgument):
        etcd.txn(pb.TxnRequest(success=[put(key), put(key)]))
    assert not etcd.range(pb.RangeRequest(key=key, range_end=key + b"\xff")).kvs


def test_a_lease_takes_its_keys_along(etcd: Etcd) -> None:
    key, lease = fresh(), etcd.lease_grant(60)
    etcd.txn(pb.TxnRequest(success=[put(key, b"", lease)]))
    assert etcd.lease_keep_alive(lease) > 0
    etcd.lease_revoke(lease)
    assert not etcd.range(pb.RangeRequest(key=key)).kvs
    assert etcd.lease_keep_alive(lease) == 0


def test_a_watch_tells_every_revision_once_in_order(etcd: Etcd) -> None:
    prefix = fresh()
    begun = etcd.range(pb.RangeRequest(key=prefix)).header.revision
    for n in range(5):
        etcd.txn(pb.TxnRequest(success=[put(prefix + b"a", b"%d" % n), put(prefix + b"b")]))
    watching = etcd.watch(prefix, prefix + b"\xff", begun + 1)
    events: list[pb.Event] = []
    try:
        while len(events) < 10:
            found = watching.take(10)
            assert isinstance(found, Changes)
            events.extend(found.events)
    finally:
        watching.end()
    revisions = [event.kv.mod_revision for event in events]
    assert revisions == sorted(revisions)
    assert [event.kv.value for event in events if event.kv.key == prefix + b"a"] == [
        b"%d" % n for n in range(5)
    ]


def test_large_answers_of_a_watch_come_in_whole_revisions(etcd: Etcd) -> None:
    prefix = fresh()
    begun = etcd.range(pb.RangeRequest(key=prefix)).header.revision
    for _ in range(8):
        etcd.txn(pb.TxnRequest(success=[put(prefix + b"%d" % n, bytes(100_000)) for n in range(9)]))
    watching = etcd.watch(prefix, prefix + b"\xff", begun + 1)
    count = 0
    try:
        while count < 72:
            found = watching.take(10)
            assert isinstance(found, Changes)
            by_revision: dict[int, int] = {}
            for event in found.events:
                at = event.kv.mod_revision
                by_revision[at] = by_revision.get(at, 0) + 1
            assert set(by_revision.values()) <= {9}
            count += len(found.events)
    finally:
        watching.end()


def test_a_watch_shows_that_it_lives(etcd: Etcd) -> None:
    prefix = fresh()
    watching = etcd.watch(prefix, prefix + b"\xff", 0)
    assert watching.take(10) == Changes(())
    watching.ask_progress()
    assert watching.take(10) == Changes(())
    watching.end()


def test_history_that_was_compacted_is_said_to_be_gone(etcd: Etcd) -> None:
    key = fresh()
    first = etcd.txn(pb.TxnRequest(success=[put(key)])).header.revision
    last = etcd.txn(pb.TxnRequest(success=[put(key)])).header.revision
    etcd.compact(last)
    with pytest.raises(HistoryGone):
        etcd.range(pb.RangeRequest(key=key, revision=first))
    watching = etcd.watch(key, key + b"\xff", first)
    found = watching.take(10)
    while isinstance(found, Changes):
        found = watching.take(10)
    assert isinstance(found, WatchEnded)
    assert found.compacted
    watching.end()


def test_reads_go_round_a_member_that_stands_and_one_that_is_gone(tmp_path: Path) -> None:
    if binary() is None:
        pytest.skip("etcd is not there")
    with running(tmp_path) as etcds:
        etcd = Etcd(etcds.access())
        try:
            etcds.members[0].signal(signal.SIGSTOP)
            assert etcd.range(pb.RangeRequest(key=b"a"), timeout_s=30).header.revision
            etcds.members[0].signal(signal.SIGCONT)
            etcds.members[1].signal(signal.SIGKILL)
            assert etcd.range(pb.RangeRequest(key=b"a"), timeout_s=30).header.revision
            etcds.stop()
            with pytest.raises(Unavailable):
                etcd.range(pb.RangeRequest(key=b"a"), timeout_s=0.3)
            with pytest.raises(OutcomeUnknown):
                etcd.txn(pb.TxnRequest(success=[put(b"a")]), timeout_s=0.3)
        finally:
            etcd.close()


def test_a_name_and_its_password_are_asked_for_once(tmp_path: Path) -> None:
    if binary("etcdctl") is None:
        pytest.skip("etcdctl is not there")
    with running(tmp_path, count=1) as etcds:
        known = Etcd(turn_on_passwords(etcds))
        unknown = Etcd(Access(etcds.endpoints, user="root", password="wrong"))
        nobody = Etcd(etcds.access())
        try:
            assert known.txn(pb.TxnRequest(success=[put(b"a", b"1")])).succeeded
            known.member().token = "gone"  # as after a while
            assert known.range(pb.RangeRequest(key=b"a")).kvs[0].value == b"1"
            with pytest.raises(PermissionRefused):
                unknown.range(pb.RangeRequest(key=b"a"))
            with pytest.raises((PermissionRefused, InvalidArgument)):
                nobody.range(pb.RangeRequest(key=b"a"))
        finally:
            for each in (known, unknown, nobody):
                each.close()


@pytest.fixture
def certificates(tmp_path: Path) -> Iterator[Path]:
    """A CA, a server's and a client's certificate."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=tmp_path)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    (tmp_path / "names").write_text("subjectAltName=DNS:etcd.test\n")
    for name in ("server", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=x")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-out", f"{name}.pem", "-extfile", "names"),
        )
    yield tmp_path


def test_tls_both_ways(certificates: Path) -> None:
    if binary() is None:
        pytest.skip("etcd is not there")
    files = [
        *("--cert-file", str(certificates / "server.pem")),
        *("--key-file", str(certificates / "server.key")),
        *("--trusted-ca-file", str(certificates / "ca.pem"), "--client-cert-auth"),
    ]
    ca = (certificates / "ca.pem").read_bytes()
    ours = ((certificates / "client.pem").read_bytes(), (certificates / "client.key").read_bytes())
    with running(certificates, count=1, scheme="https", extra=files) as etcds:
        known = Etcd(
            Access(
                etcds.endpoints, ca=ca, certificate=ours[0], key=ours[1], server_name="etcd.test"
            )
        )
        unknown = Etcd(Access(etcds.endpoints, ca=ca, server_name="etcd.test"))
        try:
            assert known.range(pb.RangeRequest(key=b"a"), timeout_s=60).header.revision == 1
            with pytest.raises(Unavailable):
                unknown.range(pb.RangeRequest(key=b"a"), timeout_s=1)
        finally:
            known.close()
            unknown.close()


def test_a_closed_client_is_unavailable(etcds: Etcds) -> None:
    etcd = Etcd(etcds.access())
    etcd.range(pb.RangeRequest(key=b"a"))
    etcd.close()
    with pytest.raises(Unavailable):
        etcd.range(pb.RangeRequest(key=b"a"))


def test_nobody_at_the_port_is_unavailable_in_time() -> None:
    etcd = Etcd(Access((f"127.0.0.1:{free_ports(1)[0]}",)))
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        etcd.range(pb.RangeRequest(key=b"a"), timeout_s=0.2)
    assert time.monotonic() - begun < 30
    etcd.close()


@pytest.mark.parametrize(
    "words",
    [
        {"endpoints": ()},
        {"endpoints": ("http://a", "https://b")},
        {"endpoints": ("ftp://a",)},
        {"endpoints": ("http://a",), "tls": True},
        {"endpoints": ("a",), "user": "root"},
        {"endpoints": ("a",), "certificate": b"x"},
    ],
)
def test_what_cannot_be_meant_is_refused(words: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        Access(**words)  # type: ignore[arg-type]


def test_endpoints_are_urls_or_addresses() -> None:
    access = Access(("https://a:1", "https://b/", "https://[::1]", "https://[::1]:5"))
    assert access.targets() == ("a:1", "b:2379", "[::1]:2379", "[::1]:5")
    assert access.is_secure
