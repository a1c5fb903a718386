"""Backups of a store that serves: under pushes, through a server, in a folder and in S3."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import threading
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from served import clean_environment, git, serving, shardgit, small_repository
from typer.testing import CliRunner

from shardgit import faultpoints
from shardgit.backup import sending
from shardgit.backup.choosing import choose_cut
from shardgit.backup.create import create_backup
from shardgit.backup.cut import cut_name
from shardgit.backup.pack import pack_name
from shardgit.backup.prune import prune_backups
from shardgit.backup.target import Target
from shardgit.backup.verify import verify_backups
from shardgit.cli.main import app
from shardgit.errors import AlreadyExists, BackupCorrupt, BackupMissing, Refused, StoreBusy
from shardgit.journal.interface import END, Put
from shardgit.journal.pins import fresh_pins
from shardgit.limits import Limits
from shardgit.node import create_store, open_store, restore_store
from shardgit.operate.operation import silent_control
from shardgit.operate.settle import settle
from shardgit.operate.verify import verify_repository
from shardgit.operate.verifying import verify_store
from shardgit.service.configuring import Configuring
from shardgit.service.exporting import export_repository
from shardgit.service.importing import import_repository
from shardgit.service.repositories import Repositories

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop


def refs_of(folder: Path) -> dict[str, str]:
    lines = git(folder, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    return dict(line.split() for line in lines)


def stored_refs(store: Store, name: str) -> dict[str, str]:
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        refs = store.refs.list(snapshot, record)
        return {ref.name.decode(): ref.target.hex() for ref in refs if ref.target}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_repository(tmp_path / "source", commits=6)


class Pusher(threading.Thread):
    """Pushes commit after commit to a branch of its own; ``acknowledged`` has (before, after, id)."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__()
        self.folder = folder
        self.url = url
        self.acknowledged: list[tuple[float, float, str]] = []
        self.stopping = threading.Event()
        self.failed = ""

    def run(self) -> None:
        try:
            number = 0
            while not self.stopping.is_set():
                number += 1
                (self.folder / f"{self.name}.txt").write_text(f"{number}\n" * number)
                git(self.folder, "add", ".")
                git(self.folder, "commit", "--quiet", "-m", f"{self.name} {number}")
                begun = time.time()
                git(self.folder, "push", "--quiet", self.url, f"HEAD:refs/heads/{self.name}")
                self.acknowledged.append(
                    (begun, time.time(), git(self.folder, "rev-parse", "HEAD"))
                )
        except AssertionError as error:
            self.failed = str(error)


@pytest.mark.slow
def test_all_that_was_acknowledged_before_the_cut_is_in_it(tmp_path: Path, source: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "backups"
    create_store(data, shards=2)
    with open_store(data) as store:
        import_repository(store, "demo", str(source))
    with serving(data, "--workers", "2") as server:
        pushers = []
        for number in range(2):
            copy = tmp_path / f"clone{number}"
            git(tmp_path, "clone", "--quiet", server.url("demo"), str(copy))
            pushers.append(Pusher(copy, server.url("demo")))
        for pusher in pushers:
            pusher.start()
        made = []
        for _ in range(2):
            time.sleep(1)
            begun = time.time()
            done = shardgit(
                "backup", "create", str(target), "--server", server.grpc, "--json", cwd=tmp_path
            )
            assert done.returncode == 0, done.stderr
            made.append((begun, json.loads(done.stdout)))
        for pusher in pushers:
            pusher.stopping.set()
        for pusher in pushers:
            pusher.join(60)
            assert not pusher.failed
            assert len(pusher.acknowledged) > 3
    opened = Target.open(str(target))
    checked = verify_backups(opened, deep=True, control=silent_control())
    assert (checked.backups, checked.problems) == (2, ())
    for number, (begun, facts) in enumerate(made):
        fresh = tmp_path / f"restored{number}"
        restored = restore_store(
            Target.open(str(target)),
            fresh,
            shards=3,
            backup=facts["backup"],
            control=silent_control(),
        )
        assert restored.backup == facts["backup"]
        with open_store(fresh) as store:
            assert verify_repository(store, "demo").bad == ()
            refs = stored_refs(store, "demo")
            export_repository(store, "demo", tmp_path / f"out{number}.git")
        git(tmp_path / f"out{number}.git", "fsck", "--strict")
        for pusher in pushers:
            ids = [oid for _, _, oid in pusher.acknowledged]
            least = sum(after < begun for _, after, _ in pusher.acknowledged)
            got = refs.get(f"refs/heads/{pusher.name}")
            at = ids.index(got) + 1 if got in ids else 0
            assert at >= least, "a push that was acknowledged before the cut is missing"
    # What was sent first is not sent again.
    assert made[1][1]["sent_bytes"] < made[0][1]["sent_bytes"] / 2 + 200_000


def test_a_restored_store_is_the_same_and_goes_on(tmp_path: Path, source: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "backups"
    create_store(data, shards=3)
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet", "--object-format=sha256", "--initial-branch=main")
    (other / "a").write_text("a")
    git(other, "add", ".")
    git(other, "commit", "--quiet", "-m", "one")
    with open_store(data) as store:
        import_repository(store, "demo", str(source))
        import_repository(store, "wide", str(other))
        Repositories(store).fork("demo", "fork/of")
        Configuring(store).update("demo", {"receive.deny_deletes": True})
        create_backup(store, str(target), control=silent_control())
        revision = store.journal.revision()
    done = restore_store(
        Target.open(str(target)),
        tmp_path / "new",
        shard_paths=[tmp_path / "disk1", tmp_path / "disk2"],
        control=silent_control(),
    )
    assert done.repositories == 3
    with open_store(tmp_path / "new") as store:
        for name, origin in (("demo", source), ("wide", other), ("fork/of", source)):
            assert stored_refs(store, name) == refs_of(origin)
            assert verify_repository(store, name).bad == ()
        assert Repositories(store).get("fork/of").forked_from == Repositories(store).get("demo").id
        assert Configuring(store).get("demo").settings.receive.deny_deletes
        # Revisions go on above those of the backup, or conditions of commits would not hold.
        assert store.journal.revision() >= revision - 2
        Repositories(store).fork("demo", "another")
        assert stored_refs(store, "another") == refs_of(source)
        with store.journal.snapshot() as snapshot:
            pool = store.repository(snapshot, "demo").pool
        settle(store, pool)
        again = create_backup(store, str(target), control=silent_control())
        assert again.sent_bytes < 100_000
    with pytest.raises(AlreadyExists):
        restore_store(Target.open(str(target)), tmp_path / "new", control=silent_control())


def test_flipped_bits_of_a_backup_are_found_and_never_restored(
    tmp_path: Path, source: Path
) -> None:
    data, target = tmp_path / "data", tmp_path / "backups"
    create_store(data)
    rand = random.Random(3)
    with open_store(data) as store:
        import_repository(store, "demo", str(source))
        create_backup(store, str(target), control=silent_control())
        files = sorted(path for path in target.rglob("*") if path.is_file() and path.stat().st_size)
        damaged = 0
        for path in files:
            whole = path.read_bytes()
            for _ in range(8):
                at = rand.randrange(len(whole))
                wrong = bytearray(whole)
                wrong[at] ^= 1 << rand.randrange(8)
                path.write_bytes(bytes(wrong))
                damaged += 1
                found = _judged(target)
                fresh = tmp_path / f"new{damaged}"
                try:
                    restore_store(Target.open(str(target)), fresh, control=silent_control())
                except (BackupCorrupt, Refused, BackupMissing):
                    restored = False
                else:
                    restored = True
                    with open_store(fresh) as copy:
                        assert stored_refs(copy, "demo") == refs_of(source)
                        assert verify_repository(copy, "demo").bad == ()
                # The lease file says nothing; all else is a fault that verify finds, or one that does no harm.
                assert found or restored
            path.write_bytes(whole)
        assert not _judged(target)
        (pack,) = [path for path in files if path.parent.parent.name == "packs"]
        wrong = bytearray(pack.read_bytes())
        wrong[40] ^= 8
        pack.write_bytes(bytes(wrong))
        done = verify_backups(
            Target.open(str(target)), deep=True, drop_damaged=True, control=silent_control()
        )
        assert done.problem_count
        assert done.dropped == 1
        create_backup(store, str(target), control=silent_control())
    assert not _judged(target)
    restore_store(Target.open(str(target)), tmp_path / "healed", control=silent_control())


def _judged(target: Path) -> bool:
    """Say whether verify finds anything wrong."""
    try:
        opened = Target.open(str(target))
        return bool(verify_backups(opened, deep=True, control=silent_control()).problem_count)
    except (BackupCorrupt, Refused):
        return True


def test_stores_that_share_a_target_are_told_apart(tmp_path: Path) -> None:
    target = str(tmp_path / "backups")
    made: list[str] = []
    for number in (0, 1, 0):
        folder = tmp_path / f"s{number}"
        if not folder.exists():
            create_store(folder)
        with open_store(folder) as store:
            store.create_repository(f"r{len(made)}")
            made.append(create_backup(store, target, control=silent_control()).backup)
    with pytest.raises(Refused, match="several stores"):
        restore_store(Target.open(target), tmp_path / "new", control=silent_control())
    restore_store(Target.open(target), tmp_path / "new", backup=made[1], control=silent_control())
    with open_store(tmp_path / "new") as store:
        found = verify_store(tmp_path / "new", control=silent_control(), journal=store.journal)
        assert found.findings == ()
        assert [one.name for one in Repositories(store).list()] == ["r1"]
    opened = Target.open(target)
    own = opened.cut(made[1]).facts.store
    assert choose_cut(opened, store=own).facts.id == made[1]


def test_prune_lets_go_of_what_only_old_backups_need(tmp_path: Path, source: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "backups"
    create_store(data)
    with open_store(data) as store:
        store.create_repository("keep")
        for number in range(4):
            (source / "noise").write_bytes(random.Random(number).randbytes(2 << 20))
            git(source, "add", ".")
            git(source, "commit", "--quiet", "-m", f"noise {number}")
            import_repository(store, f"r{number}", str(source))
            if number:
                Repositories(store).delete(f"r{number - 1}")
            create_backup(store, str(target), control=silent_control())
            with store.journal.snapshot() as snapshot:
                rows = [row.key for row in snapshot.range(b"\0", b"\xff")]
            # As gc would, once the grace period of what was deleted is over.
            gone = [key for key in rows if key[:1] == b"D"]
            for key in gone:
                number_key = key[1:]
                from shardgit.journal.interface import Delete
                from shardgit.journal.records import RepositoryRecord

                with store.journal.snapshot() as snapshot:
                    row = snapshot.get(key)
                    assert row is not None
                    pool = RepositoryRecord.decode(row.value[16:]).pool
                    own = [
                        one.key
                        for one in snapshot.range(b"\0", b"\xff")
                        if one.key[1:9] == number_key or one.key[1:17] == pool
                    ]
                store.journal.commit_sync([], [Delete(one) for one in own])

    def size() -> int:
        return sum(path.stat().st_size for path in (target / "packs").rglob("*") if path.is_file())

    before = size()
    opened = Target.open(str(target))
    done = prune_backups(opened, keep=1, control=silent_control())
    assert len(done.pruned) == 3
    assert size() < before * 0.8
    assert before - size() >= done.freed_bytes > 0
    checked = verify_backups(Target.open(str(target)), deep=True, control=silent_control())
    assert (checked.backups, checked.problems) == (1, ())
    again = prune_backups(Target.open(str(target)), keep=1, older_ms=0, control=silent_control())
    assert (again.pruned, again.freed_bytes) == ((), 0)
    restore_store(Target.open(str(target)), tmp_path / "new", control=silent_control())
    with open_store(tmp_path / "new") as store:
        assert verify_repository(store, "r3").bad == ()


def test_a_restore_goes_on_beside_a_prune(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, where = tmp_path / "data", str(tmp_path / "backups")
    create_store(data)
    with open_store(data) as store:
        import_repository(store, "one", str(source))
        first = create_backup(store, where, control=silent_control())
        Configuring(store).update("one", {"receive.atomic": False})
        second = create_backup(store, where, control=silent_control())
    reading = {cut: Target.open(where) for cut in (first.backup, second.backup)}
    load = Target.load

    def loaded(target: Target) -> None:
        """Read the catalog; then all of it is written anew before anything is read."""
        load(target)
        if target in reading.values():
            monkeypatch.setattr(Target, "load", load)
            prune_backups(Target.open(where), keep=1, waste=-1.0, control=silent_control())

    monkeypatch.setattr(Target, "load", loaded)
    restore_store(
        reading[second.backup], tmp_path / "new", backup=second.backup, control=silent_control()
    )
    with open_store(tmp_path / "new") as store:
        assert verify_repository(store, "one").bad == ()

    opened = Target.open(where)
    opened.load()
    cut = opened.cut(second.backup)
    opened.bucket.delete([cut_name(second.backup), *(pack_name(one) for one in opened.packs)])
    with pytest.raises(BackupMissing, match="pruned"), opened.reading(second.backup):
        opened.read(opened.spans(cut.blobs)[0])


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the URL of an empty bucket of an S3 server on loopback."""
    moto = pytest.importorskip("moto.server", reason="no S3 server: moto is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server: Any = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    for key, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    made = urllib.request.Request(f"{endpoint}/backups", method="PUT")
    with urllib.request.urlopen(made, timeout=10) as answer:
        assert answer.status == 200
    yield "s3://backups/of/git"
    server.stop()


def test_a_backup_goes_to_s3_and_comes_back(tmp_path: Path, source: Path, bucket: str) -> None:
    data = tmp_path / "data"
    create_store(data)
    with pytest.raises(BackupMissing):
        Target.open(bucket)
    with open_store(data) as store:
        import_repository(store, "demo", str(source))
        first = create_backup(store, bucket, control=silent_control())
        assert first.sent_blobs > 0
        assert create_backup(store, bucket, control=silent_control()).sent_blobs == 0
    done = shardgit("backup", "list", bucket, "--json", cwd=tmp_path, environment=dict(os.environ))
    assert json.loads(done.stdout)["backups"][0]["id"] == first.backup
    assert not verify_backups(Target.open(bucket), deep=True, control=silent_control()).problems
    restore_store(Target.open(bucket), tmp_path / "new", control=silent_control())
    with open_store(tmp_path / "new") as store:
        assert stored_refs(store, "demo") == refs_of(source)
    pruned = prune_backups(Target.open(bucket), keep=1, control=silent_control())
    assert pruned.pruned == (first.backup,)
    opened = Target.open(bucket)
    holder = json.dumps(
        {
            "host": "elsewhere",
            "boot": "x",
            "pid": 1,
            "started": "1",
            "renewed_ms": int(time.time() * 1000),
        }
    )
    opened.bucket.put("lease", holder.encode())
    with open_store(data) as store:
        with pytest.raises(StoreBusy):
            create_backup(store, bucket, control=silent_control())
        opened.bucket.put("lease", holder.replace(str(int(time.time()))[:6], "100000").encode())
        create_backup(store, bucket, control=silent_control())
    assert opened.bucket.get("lease") is None


def test_commands_back_up_list_verify_restore_and_prune(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == code, done
        return done.stdout if code == 0 else done.stdout + done.stderr

    run("init", "data")
    run("repo", "import", "demo", "source", "--data", "data")
    said = run("backup", "create", "bk", "--data", "data")
    assert "1 repositories" in said
    made = json.loads(
        run("backup", "create", "bk", "--data", "data", "--throttle", "50MiB/s", "--json")
    )
    (_, one) = json.loads(run("backup", "list", "bk", "--json"))["backups"]
    assert one["id"] == made["backup"]
    assert made["backup"] in run("backup", "list", "bk")
    assert "2 backups are whole" in run("backup", "verify", "bk", "--deep")
    assert "restored 1 repositories" in run(
        "backup", "restore", "bk", "--data", "new", "--shards", "2"
    )
    git(tmp_path, "init", "--quiet", "--bare", "judge.git")
    run("repo", "export", "demo", "out.git", "--data", "new")
    assert refs_of(tmp_path / "out.git") == refs_of(source)
    assert "pruned 1 backups, kept 1" in run("backup", "prune", "bk", "--keep", "1")
    assert "no backup was taken since" in run(
        "backup", "restore", "bk", "--data", "late", "--at", "now", code=1
    )
    run("backup", "prune", "bk", code=2)
    run("backup", "restore", "bk", code=2)
    run("backup", "list", "nowhere", code=1)
    pack = next(path for path in (tmp_path / "bk" / "packs").rglob("*") if path.is_file())
    pack.write_bytes(pack.read_bytes()[:-1])
    assert "damaged" in run("backup", "verify", "bk", code=1)
    with serving(tmp_path / "data", "--workers", "1") as server:
        healed = json.loads(
            run("backup", "create", str(tmp_path / "bk"), "--server", server.grpc, "--json")
        )
        assert healed["sent_blobs"] > 0
        checked = json.loads(
            run(
                "backup",
                "verify",
                str(tmp_path / "bk"),
                "--deep",
                "--server",
                server.grpc,
                "--json",
            )
        )
        assert checked["problem_count"] == 0
        listed = json.loads(
            run("backup", "list", str(tmp_path / "bk"), "--server", server.grpc, "--json")
        )
        assert len(listed["backups"]) == 2
        gone = json.loads(
            run(
                "backup",
                "prune",
                str(tmp_path / "bk"),
                "--keep",
                "1",
                "--server",
                server.grpc,
                "--json",
            )
        )
        assert len(gone["pruned"]) == 1
    assert (
        subprocess.run(
            ["git", "-C", str(tmp_path / "out.git"), "fsck"], env=clean_environment(), check=False
        ).returncode
        == 0
    )


class _Died(Exception):
    pass


@pytest.mark.parametrize(
    "point", ["prune.before_cuts", "prune.before_index", "prune.after_index", "prune.before_packs"]
)
def test_a_prune_that_died_is_begun_again_and_loses_nothing(
    tmp_path: Path, source: Path, point: str
) -> None:
    target = tmp_path / "backups"
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(source))
        create_backup(store, str(target), control=silent_control())
        Repositories(store).create("other")
        create_backup(store, str(target), control=silent_control())

    def die(name: str) -> None:
        if name == point:
            raise _Died

    # The second prune writes the very pack that the first one left without an index.
    for _ in range(2):
        with faultpoints.listening(die), pytest.raises(_Died):
            prune_backups(Target.open(str(target)), keep=1, waste=0.0, control=silent_control())
    done = prune_backups(Target.open(str(target)), keep=1, waste=0.0, control=silent_control())
    assert len(done.kept) == 1
    found = verify_backups(Target.open(str(target)), deep=True, control=silent_control())
    assert (found.backups, found.problems) == (1, ())
    assert len(list((target / "indexes").iterdir())) == 1
    restore_store(Target.open(str(target)), tmp_path / "new", control=silent_control())


def test_a_journal_of_many_blobs_comes_back_row_by_row(tmp_path: Path, source: Path) -> None:
    target = str(tmp_path / "backups")
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(source))
        rand = random.Random(1)
        # Public keys: rows that are easily made, and many.
        for _ in range(30):
            rows = [Put(b"K" + rand.randbytes(32), rand.randbytes(300)) for _ in range(100)]
            store.journal.commit_sync([], rows)
        with store.journal.snapshot() as snapshot:
            before = {row.key: row for row in snapshot.range(b"\0", END)}
        create_backup(store, target, control=silent_control())
        assert len(Target.open(target).cut(Target.open(target).cut_ids()[0]).chunks) > 3
        store.journal.commit_sync([], [Put(b"K" + rand.randbytes(32), b"one more")])
        again = create_backup(store, target, control=silent_control())
        assert 0 < again.sent_bytes < 600_000
    opened = Target.open(target)
    first = opened.cut_ids()[0]
    assert not verify_backups(opened, deep=True, control=silent_control()).problems
    restore_store(Target.open(target), tmp_path / "new", backup=first, control=silent_control())
    with open_store(tmp_path / "new") as store, store.journal.snapshot() as snapshot:
        after = {row.key: row for row in snapshot.range(b"\0", END)}
    own = {key for key in before | after if key[:1] in {b"M", b"G"}}
    assert {key: row for key, row in before.items() if key not in own} == {
        key: row for key, row in after.items() if key not in own
    }


@pytest.mark.parametrize("times", [1, 3])
def test_what_a_killed_backup_sent_is_not_sent_again(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(sending, "PACK_BYTES", 300_000)
    for number in range(6):
        (source / f"noise{number}").write_bytes(random.Random(number).randbytes(200_000))
    git(source, "add", ".")
    git(source, "commit", "--quiet", "-m", "noise")
    target = str(tmp_path / "backups")
    create_store(tmp_path / "data")
    seen: list[str] = []

    def die(name: str) -> None:
        if name == "backup.after_snapshot":
            with store.journal.snapshot() as snapshot:
                assert len(fresh_pins(snapshot, time.time_ns() // 1_000_000)) == 1
        seen.append(name)
        if name == "backup.after_pack" and seen.count(name) == times:
            raise _Died

    with open_store(tmp_path / "data", limits=Limits(block_target_bytes=100_000)) as store:
        import_repository(store, "demo", str(source))
        with faultpoints.listening(die), pytest.raises(_Died):
            create_backup(store, target, control=silent_control())
        assert Target.open(target).cut_ids() == []
        left = Target.open(target)
        left.load()
        assert len(left.unindexed) >= times
        there = sum(pack.size for pack in left.unindexed)
        made = create_backup(store, target, control=silent_control())
        assert made.sent_bytes <= made.block_bytes + made.row_bytes - there * 0.9
        with store.journal.snapshot() as snapshot:
            assert not fresh_pins(snapshot, 0)
    assert not verify_backups(Target.open(target), deep=True, control=silent_control()).problems
