"""What only a fork reaches is not served through its siblings: one test per way in.

The pool of the network holds the fork's own commit; the source and another fork must behave as if
it did not exist, and the fork itself must serve it.
"""

from __future__ import annotations

import hashlib
import struct
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from reference.gits import git, make_history
from served import Server, serving

import shardgit
from shardgit.errors import NotFound, ObjectMissing, RefMissing
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.service.forks import fork
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.client import Client

pytestmark = pytest.mark.interop
SIBLINGS = ("base", "sister")


@dataclass(frozen=True, slots=True)
class Network:
    server: Server
    work: Path
    base: str  # commit that all reach
    commit: str  # that only the fork reaches, and its tree, file and tag
    tree: str
    blob: str
    tag: str

    @property
    def secrets(self) -> list[str]:
        return [self.commit, self.tree, self.blob, self.tag]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("leaks")
    work = make_history(folder / "work", commits=12)
    base = git(work, "rev-parse", "HEAD").decode().strip()
    create_store(folder / "data")
    with open_store(folder / "data") as store:
        import_repository(store, "base", str(work))
        fork(store, "base", "fork")
        fork(store, "base", "sister")
        (work / "secret.txt").write_text("only in the fork\n")
        git(work, "add", "-A")
        git(work, "commit", "-qm", "secret")
        git(work, "tag", "-a", "-m", "secret", "secret-tag")
        import_repository(store, "fork", str(work), overwrite=True)
    names = [
        git(work, "rev-parse", word).decode().strip()
        for word in ("HEAD", "HEAD^{tree}", "HEAD:secret.txt", "secret-tag")
    ]
    with serving(folder / "data", "--workers", "1") as running:
        yield Network(running, work, base, *names)


@pytest.fixture
def client(network: Network) -> Iterator[Client]:
    with shardgit.connect(network.server.grpc) as opened:
        yield opened


def raw(oid: str) -> ObjectId:
    return ObjectId(bytes.fromhex(oid))


def post(server: Server, name: str, lines: list[str], *, version: int) -> bytes:
    """Send lines to upload-pack, "" for a delimiter (v2); a flush ends v2, wants and done v0."""
    if version != 2:
        lines = [*lines[:-1], "0000", lines[-1]]
    body = b"".join(
        b"0001"
        if not line
        else b"0000"
        if line == "0000"
        else b"%04x%s\n" % (len(line) + 5, line.encode())
        for line in lines
    )
    request = urllib.request.Request(
        server.url(name) + "/git-upload-pack",
        data=body + (b"0000" if version == 2 else b""),
        headers={
            "Content-Type": "application/x-git-upload-pack-request",
            **({"Git-Protocol": "version=2"} if version == 2 else {}),
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as got:
            return bytes(got.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return bytes(refused.read())


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_a_want_by_id_is_refused_as_if_the_object_did_not_exist(
    network: Network, tmp_path: Path, version: str
) -> None:
    def fetch(name: str, oid: str) -> bytes:
        folder = tmp_path / name / oid
        git(tmp_path, "init", "-q", "--bare", str(folder))
        words = ("-c", f"protocol.version={version}", "fetch", network.server.url(name), oid)
        return git(folder, *words, check=False)

    absent = "1" * 40
    for oid in network.secrets:
        for sibling in SIBLINGS:
            answer = fetch(sibling, oid)
            assert b"not our ref" in answer or b"unadvertised object" in answer, answer
            assert answer.replace(oid.encode(), b"") == fetch(sibling, absent).replace(
                absent.encode(), b""
            )
    assert b"FETCH_HEAD" in fetch("fork", network.commit)


@pytest.mark.parametrize("version", [0, 2])
def test_a_raw_want_is_refused_as_if_the_object_did_not_exist(
    network: Network, version: int
) -> None:
    def answer(name: str, want: str) -> bytes:
        head = ["command=fetch", "object-format=sha1", ""] if version == 2 else []
        return post(network.server, name, [*head, f"want {want}", "done"], version=version)

    for oid in network.secrets:
        for sibling in SIBLINGS:
            refused = answer(sibling, oid)
            assert b"ERR upload-pack: not our ref" in refused
            assert refused.replace(oid.encode(), b"1" * 40) == answer(sibling, "1" * 40)
    assert b"PACK" in answer("fork", network.commit)


def test_a_clone_has_nothing_of_it(network: Network, tmp_path: Path) -> None:
    for name in (*SIBLINGS, "fork"):
        git(tmp_path, "clone", "-q", "--mirror", network.server.url(name), name)
        shown = git(tmp_path / name, "cat-file", "--batch-all-objects", "--batch-check").decode()
        for oid in network.secrets:
            assert (oid in shown) == (name == "fork")


def test_what_a_client_says_it_has_is_not_acknowledged(network: Network) -> None:
    def answer(name: str, have: str) -> bytes:
        lines = ["command=fetch", "object-format=sha1", "", f"want {network.base}", f"have {have}"]
        return post(network.server, name, lines, version=2)

    for sibling in SIBLINGS:
        for oid in network.secrets:
            assert answer(sibling, oid) == answer(sibling, "1" * 40)
    assert f"ACK {network.commit}".encode() in answer("fork", network.commit)


def test_reads_by_id_find_nothing(network: Network, client: Client) -> None:
    ids = [raw(oid) for oid in network.secrets]
    for sibling in SIBLINGS:
        repo = client.repo(sibling)
        assert list(repo.objects(ids)) == [None] * len(ids)
        assert repo.info(ids) == [None] * len(ids)
        assert not {facts.id for facts in repo.list_objects()} & set(ids)
        for oid in network.secrets:
            with pytest.raises(ObjectMissing):
                repo.open(oid)
    repo = client.repo("fork")
    assert [one.id for one in repo.objects(ids) if one] == ids
    assert {facts.id for facts in repo.list_objects()} >= set(ids)


def test_revisions_and_paths_lead_to_nothing(network: Network, client: Client) -> None:
    for sibling in SIBLINGS:
        repo = client.repo(sibling)
        for job in (
            lambda repo: repo.read(network.commit, "secret.txt"),
            lambda repo: repo.read(network.tree, "secret.txt"),
            lambda repo: repo.open(f"{network.commit}:secret.txt"),
            lambda repo: repo.open(f"{network.tag}^{{}}"),
            lambda repo: repo.open(f"{network.commit}~1"),
            lambda repo: repo.commit_info(network.commit),
            lambda repo: list(repo.log(network.commit)),
            lambda repo: list(repo.log("HEAD", f"^{network.commit}")),
            lambda repo: list(repo.tree(network.tree)),
            lambda repo: repo.is_ancestor(network.base, network.commit),
            lambda repo: repo.merge_base(network.base, network.commit),
            lambda repo: repo.ref("refs/tags/secret-tag"),
        ):
            with pytest.raises(NotFound):
                job(repo)
    assert client.repo("fork").read(network.commit, "secret.txt") == b"only in the fork\n"


def test_short_ids_are_not_found_and_never_ambiguous_with_it(
    network: Network, client: Client
) -> None:
    for oid in network.secrets:
        for digits in (4, 12, 39):
            for sibling in SIBLINGS:
                try:
                    facts, _ = client.repo(sibling).open(oid[:digits])
                    assert facts.id.hex() != oid  # another object that starts so
                except (ObjectMissing, RefMissing):
                    pass
        assert client.repo("fork").open(oid[:39])[0].id.hex() == oid
    # A start that one object of the source has alone stays unique although the fork's has it too.
    shared = git(network.work, "rev-list", "--objects", network.base).decode().split()
    shared = [word for word in shared if len(word) == 40]
    for oid in shared:
        for secret in network.secrets:
            same = next(n for n in range(40) if oid[n] != secret[n])
            if same >= 4 and sum(one.startswith(oid[:same]) for one in shared) == 1:
                assert client.repo("base").open(oid[:same])[0].id.hex() == oid


def test_counts_tell_nothing_of_the_fork(network: Network, client: Client) -> None:
    counts = {name: client.repo(name).stats() for name in (*SIBLINGS, "fork")}
    assert counts["base"].reachable_objects == counts["sister"].reachable_objects
    assert counts["fork"].reachable_objects == counts["base"].reachable_objects + 4


def push(server: Server, name: str, commands: list[tuple[str, str, str]], pack: bytes) -> bytes:
    """Send commands and a pack to receive-pack; return its report."""
    caps = "\0report-status object-format=sha1"
    lines = [f"{old} {new} {ref}" for old, new, ref in commands]
    lines[0] += caps
    body = b"".join(b"%04x%s" % (len(line) + 4, line.encode()) for line in lines) + b"0000" + pack
    request = urllib.request.Request(
        server.url(name) + "/git-receive-pack",
        data=body,
        headers={"Content-Type": "application/x-git-receive-pack-request"},
    )
    with urllib.request.urlopen(request, timeout=30) as got:
        return bytes(got.read())


def pack_of(*entries: bytes) -> bytes:
    body = b"PACK" + struct.pack(">II", 2, len(entries)) + b"".join(entries)
    return body + hashlib.sha1(body).digest()


def whole(kind: int, data: bytes) -> bytes:
    assert len(data) < 2_048
    return bytes([0x80 | kind << 4 | len(data) & 15, len(data) >> 4]) + zlib.compress(data)


def commit_on(tree: str, parent: str) -> tuple[str, bytes]:
    who = "A <a@b.c> 1700000000 +0000"
    text = f"tree {tree}\nparent {parent}\nauthor {who}\ncommitter {who}\n\nx\n".encode()
    return hashlib.sha1(b"commit %d\0" % len(text) + text).hexdigest(), whole(1, text)


def test_a_push_cannot_name_what_it_does_not_bring(network: Network) -> None:
    base_tree = git(network.work, "rev-parse", f"{network.base}^{{tree}}").decode().strip()

    def attempts(name: str, commit: str, tree: str, ref: str) -> list[bytes]:
        on_parent, parent_entry = commit_on(base_tree, commit)
        on_tree, tree_entry = commit_on(tree, network.base)
        tries = [
            (commit, pack_of()),
            (on_parent, pack_of(parent_entry)),
            (on_tree, pack_of(tree_entry)),
        ]
        told = []
        for new, pack in tries:
            answer = push(network.server, name, [("0" * 40, new, ref)], pack)
            told.append(answer.replace(new.encode(), b""))
        return told

    for sibling in SIBLINGS:
        ours = attempts(sibling, network.commit, network.tree, "refs/heads/x")
        assert ours == attempts(sibling, "1" * 40, "2" * 40, "refs/heads/x")
        assert all(b"ng refs/heads/x missing necessary objects" in told for told in ours)
    for number, told in enumerate(attempts("fork", network.commit, network.tree, "refs/heads/x")):
        assert b"ok refs/heads/x" in told or number, told


def test_a_thin_pack_cannot_build_on_it(network: Network) -> None:
    size = len("only in the fork\n")
    copy = bytes([size, size, 0x80 | 0x10, size])  # a delta that copies the whole base

    def attempt(name: str, base: str) -> bytes:
        entry = bytes([7 << 4 | len(copy)]) + bytes.fromhex(base) + zlib.compress(copy)
        target = network.base
        return push(
            network.server, name, [("0" * 40, target, "refs/heads/thin")], pack_of(entry)
        ).replace(base.encode(), b"")

    for sibling in SIBLINGS:
        told = attempt(sibling, network.blob)
        assert told == attempt(sibling, "1" * 40)
        assert b"unpack ok" not in told
    assert b"unpack ok" in attempt("fork", network.blob)


def test_the_log_of_a_sibling_tells_nothing_and_restores_nothing(
    network: Network, client: Client
) -> None:
    for sibling in SIBLINGS:
        named = {
            oid
            for entry in client.repo(sibling).ref_log()
            for change in entry.changes
            for oid in (change.old, change.new, change.new_peeled)
        }
        assert not named & {raw(oid) for oid in network.secrets}
        with pytest.raises(RefMissing):
            client.repo(sibling).restore_ref("refs/tags/secret-tag", back=0)
