"""Certificates that a real git signs with gpg and ssh-keygen are judged as git judges them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from pushing import push
from served import clean_environment, git, serving, shardgit, small_repository

from shardgit.client import connect
from shardgit.journal.records import RepositoryRecord
from shardgit.oid import HashKind, ObjectId, PoolId, RepositoryId
from shardgit.protocol.push_certificate import parse_certificate
from shardgit.protocol.receive_pack import Command, PushCapabilities, PushRequest
from shardgit.service.push_nonce import NonceMaker, NonceStatus
from shardgit.service.setting_keys import changed
from shardgit.service.settings import DEFAULTS, encode_settings, settings_of
from shardgit.service.signatures import check_gpg, check_ssh
from shardgit.service.signed_push import (
    CertificateFacts,
    certificate_facts,
    certificate_refusal,
    nonce_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(
        not (shutil.which("gpg") and shutil.which("ssh-keygen")), reason="needs gpg and ssh-keygen"
    ),
]
NOW = 1_700_000_000
MAKER = NonceMaker("seed", RepositoryId(7), HashKind.SHA1)
NONCE = MAKER.make(NOW)


@dataclass(frozen=True, slots=True)
class Signer:
    """A repository, keys, and a request that git signed with each of them."""

    source: Path
    gpg_key: str
    ssh_key: Path
    ssh_line: str
    gpg: PushRequest
    ssh: PushRequest


def gpg(home: Path, *words: str) -> str:
    done = subprocess.run(
        ["gpg", "--homedir", str(home), "--batch", "--quiet", *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    folder = tmp_path_factory.mktemp("signed")
    source = small_repository(folder / "source")
    home = tmp_path_factory.mktemp("g")  # a socket's path is short
    home.chmod(0o700)
    person = "C O Mitter <committer@example.com>"
    gpg(home, "--passphrase", "", "--quick-generate-key", person, "ed25519", "sign", "never")
    key = folder / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=60
    )
    words = ("--signed", "--push-option=a", "--push-option=b c", "main")
    offered = PushCapabilities(nonce=NONCE)
    environment = {"GNUPGHOME": str(home)}
    by_gpg = push(source, *words, refs={}, offered=offered, environment=environment)
    ssh = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={key}")
    by_ssh = push(source, *words, refs={}, offered=offered, config=ssh)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, timeout=60)
    assert by_gpg.code == 0, by_gpg.text
    assert by_ssh.code == 0, by_ssh.text
    assert by_gpg.request is not None
    assert by_ssh.request is not None
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    yield Signer(
        source,
        gpg(home, "--export", "--armor"),
        key,
        f"committer@example.com {public}",
        by_gpg.request,
        by_ssh.request,
    )
    shutil.rmtree(home)


def record(**settings: Any) -> RepositoryRecord:
    given = {"mode": "required", "nonce_seed": "seed", **settings}
    changes = {f"signed_push.{key}": value for key, value in given.items()}
    data = encode_settings(changed(DEFAULTS, changes))
    return RepositoryRecord(RepositoryId(7), "x", PoolId(bytes(16)), HashKind.SHA1, 0, data)


def facts_of(
    where: RepositoryRecord,
    request: PushRequest,
    *,
    now_s: int = NOW + 2,
    given: bytes | None = None,
) -> CertificateFacts:
    facts = certificate_facts(where, request, now_s=now_s, given=given)
    assert facts is not None
    return facts


def refused(where: RepositoryRecord, request: PushRequest, facts: CertificateFacts | None) -> str:
    return certificate_refusal(settings_of(where), request, facts) or ""


def test_a_good_signature_by_gpg(signer: Signer) -> None:
    where = record(gpg_keys=[signer.gpg_key])
    facts = facts_of(where, signer.gpg)
    assert (facts.status, facts.nonce_status, facts.slop_s) == ("G", NonceStatus.OK, 2)
    assert facts.signer == "C O Mitter <committer@example.com>"
    assert facts.fingerprint.endswith(facts.key)
    assert facts.pusher.startswith("C O Mitter <committer@example.com> ")
    assert facts.pushee.endswith("far.git")
    assert refused(where, signer.gpg, facts) == ""
    head = ObjectId(bytes.fromhex(git(signer.source, "rev-parse", "main")))
    assert signer.gpg.commands == (Command(b"refs/heads/main", None, head),)


def test_a_good_signature_by_ssh(signer: Signer) -> None:
    where = record(ssh_signers=[signer.ssh_line])
    facts = facts_of(where, signer.ssh)
    assert (facts.status, facts.nonce_status) == ("G", NonceStatus.OK)
    assert facts.signer == "committer@example.com"
    assert facts.key.startswith("SHA256:")
    assert refused(where, signer.ssh, facts) == ""


def test_hooks_see_what_git_tells_them(signer: Signer, tmp_path: Path) -> None:
    facts = facts_of(record(gpg_keys=[signer.gpg_key]), signer.gpg)
    blob = tmp_path / "certificate"
    blob.write_bytes(facts.certificate)
    assert facts.environment() == {
        "GIT_PUSH_CERT": git(tmp_path, "hash-object", str(blob)),
        "GIT_PUSH_CERT_SIGNER": "C O Mitter <committer@example.com>",
        "GIT_PUSH_CERT_KEY": facts.key,
        "GIT_PUSH_CERT_STATUS": "G",
        "GIT_PUSH_CERT_NONCE": NONCE.decode(),
        "GIT_PUSH_CERT_NONCE_STATUS": "OK",
    }


def test_a_key_that_is_not_ours_does_not_count(signer: Signer) -> None:
    where = record()
    facts = facts_of(where, signer.gpg)
    assert facts.status == "E"
    assert "cannot be checked: gpg: " in refused(where, signer.gpg, facts)
    facts = facts_of(where, signer.ssh)
    assert (facts.status, facts.signer) == ("U", "")
    assert "key that is not allowed here" in refused(where, signer.ssh, facts)


@pytest.mark.parametrize("how", ["gpg", "ssh"])
def test_changed_commands_make_a_signature_bad(signer: Signer, how: str) -> None:
    where = record(gpg_keys=[signer.gpg_key], ssh_signers=[signer.ssh_line])
    request: PushRequest = getattr(signer, how)
    forged = request.certificate.replace(b"refs/heads/main", b"refs/heads/evil")
    request = replace(request, certificate=forged)
    facts = facts_of(where, request)
    assert facts.status == "B"
    assert refused(where, request, facts) == "the push certificate's signature is bad"


def test_a_certificate_without_signature(signer: Signer) -> None:
    where = record()
    bare = signer.gpg.certificate.partition(b"-----BEGIN")[0]
    request = replace(signer.gpg, certificate=bare)
    facts = facts_of(where, request)
    assert facts.status == "N"
    assert "no signature" in refused(where, request, facts)


@pytest.mark.parametrize(
    "signature",
    [
        b"-----BEGIN PGP SIGNATURE-----\n",
        b"-----BEGIN PGP SIGNATURE-----\n\nxxxx\n-----END PGP SIGNATURE-----\n",
        b"-----BEGIN PGP MESSAGE-----\n\n\0\xff",
        b"-----BEGIN SIGNED MESSAGE-----\n",
        b"-----BEGIN SSH SIGNATURE-----\n",
        b"-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n",
    ],
)
def test_a_broken_signature_is_never_good(signer: Signer, signature: bytes) -> None:
    where = record(gpg_keys=[signer.gpg_key], ssh_signers=[signer.ssh_line])
    bare = signer.gpg.certificate.partition(b"-----BEGIN")[0]
    request = replace(signer.gpg, certificate=bare + signature)
    facts = facts_of(where, request)
    assert facts.status in "BE"
    assert refused(where, request, facts)


def test_a_nonce_is_taken_for_a_while(signer: Signer) -> None:
    where = record(gpg_keys=[signer.gpg_key], nonce_slop_s=10)
    assert nonce_of(where, now_s=NOW) == NONCE
    assert facts_of(where, signer.gpg, now_s=NOW + 10).nonce_status is NonceStatus.OK
    for now_s, slop_s in ((NOW + 11, 11), (NOW - 11, -11)):
        facts = facts_of(where, signer.gpg, now_s=now_s)
        assert (facts.nonce_status, facts.slop_s) == (NonceStatus.SLOP, slop_s)
        assert facts.environment()["GIT_PUSH_CERT_NONCE_SLOP"] == str(slop_s)
        assert refused(where, signer.gpg, facts) == (
            f"the push certificate's nonce is {slop_s} s old; push again"
        )


def test_a_conversation_wants_its_own_nonce_back(signer: Signer) -> None:
    where = record(gpg_keys=[signer.gpg_key])
    assert facts_of(where, signer.gpg, given=NONCE).nonce_status is NonceStatus.OK
    facts = facts_of(where, signer.gpg, given=MAKER.make(NOW + 1))
    assert facts.nonce_status is NonceStatus.BAD
    assert "is not ours" in refused(where, signer.gpg, facts)


def test_nonces_of_others_are_bad(signer: Signer) -> None:
    others = replace(record(gpg_keys=[signer.gpg_key]), id=RepositoryId(8))
    assert facts_of(others, signer.gpg).nonce_status is NonceStatus.BAD
    later = record(gpg_keys=[signer.gpg_key], nonce_seed="another")
    assert facts_of(later, signer.gpg).nonce_status is NonceStatus.BAD


def test_without_signed_pushes_a_nonce_is_unsolicited(signer: Signer) -> None:
    where = record(mode="off", gpg_keys=[signer.gpg_key])
    assert nonce_of(where) == b""
    facts = facts_of(where, signer.gpg)
    assert (facts.status, facts.nonce_status) == ("G", NonceStatus.UNSOLICITED)
    assert "GIT_PUSH_CERT_NONCE" not in facts.environment()
    assert refused(where, signer.gpg, facts) == ""


def test_a_missing_nonce_is_told(signer: Signer) -> None:
    where = record(gpg_keys=[signer.gpg_key])
    text = signer.gpg.certificate.replace(b"nonce " + NONCE + b"\n", b"")
    facts = facts_of(where, replace(signer.gpg, certificate=text))
    assert (facts.status, facts.nonce_status) == ("B", NonceStatus.MISSING)


def test_required_takes_no_unsigned_push(signer: Signer) -> None:
    where = record()
    unsigned = replace(signer.gpg, certificate=b"")
    assert certificate_facts(where, unsigned) is None
    assert refused(where, unsigned, None) == (
        "only signed pushes are taken here; use git push --signed"
    )
    assert refused(record(mode="allowed"), unsigned, None) == ""


def test_options_must_be_those_that_were_signed(signer: Signer) -> None:
    where = record(mode="allowed", gpg_keys=[signer.gpg_key])
    request = replace(signer.gpg, options=(b"a",))
    facts = facts_of(where, request)
    assert refused(where, request, facts) == "inconsistent push options"


def test_a_program_that_is_missing_or_slow_gives_no_verdict(
    signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = signer.gpg.certificate.partition(b"-----BEGIN")
    armor = signature[1] + signature[2]
    monkeypatch.setenv("PATH", str(tmp_path))
    found = check_gpg(signature[0], armor, [])
    assert (found.status, found.output) == ("E", "gpg is not installed on the server")
    program = tmp_path / "ssh-keygen"
    program.write_text(f"#!/bin/sh\nexec {shutil.which('sleep', path=os.defpath)} 60\n")
    program.chmod(0o755)
    found = check_ssh(signature[0], armor, [], time_s=0.2)
    assert (found.status, found.output) == ("E", "ssh-keygen took longer than 0.2 s")


def test_a_signed_push_over_http(signer: Signer, tmp_path: Path) -> None:
    """Stock git signs with gpg and pushes to a server that takes only signed pushes."""
    data = tmp_path / "data"

    def told(*words: str) -> None:
        done = shardgit(*words, "--data", str(data), cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    assert shardgit("init", str(data), cwd=tmp_path).returncode == 0
    told("repo", "create", "demo")
    told("repo", "config", "demo", "signed_push.mode", "required")
    told("repo", "config", "demo", "signed_push.ssh_signers", signer.ssh_line)
    words = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={signer.ssh_key}")

    def pushed(*options: str, refspec: str = "main") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                "git",
                "-C",
                str(signer.source),
                *words,
                "push",
                *options,
                server.url("demo"),
                refspec,
            ],
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    with serving(data, "--workers", "1") as server:
        unsigned = pushed()
        assert unsigned.returncode != 0
        assert "only signed pushes are taken here; use git push --signed" in unsigned.stderr
        signed = pushed("--signed", "--push-option=x")
        assert signed.returncode == 0, signed.stderr
        head = git(signer.source, "rev-parse", "main")
        assert head in git(tmp_path, "ls-remote", server.url("demo"))
        told("repo", "config", "demo", "signed_push.ssh_signers", "")
        git(signer.source, "branch", "-f", "other", "main~1")
        unknown = pushed("--signed", refspec="other")
        assert unknown.returncode != 0
        assert "signed by a key that is not allowed here" in unknown.stderr
        with connect(server.grpc) as client:
            entry, *_ = client.repo("demo").ref_log("refs/heads/main")
            assert entry.change_count == 1
            found = parse_certificate(entry.certificate)
            assert found.options == (b"x",)
            assert found.commands == (b"0" * 40 + f" {head} refs/heads/main".encode(),)
