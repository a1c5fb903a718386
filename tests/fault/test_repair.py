"""Stores with lost and damaged blocks: found, mended from what is left, and judged by git."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from moved import Moved
from served import clean_environment, git

from shardgit.backup.create import create_backup
from shardgit.blocks.block import BlockKind, parse_header, partition_of
from shardgit.blocks.layout import initial_ring, open_layout
from shardgit.errors import DataLoss, ShardMissing, Stopped, StoreBusy
from shardgit.journal.interface import Put
from shardgit.journal.records import RING_KEY
from shardgit.lmdbenv import PAGE_BYTES
from shardgit.lmdbpages import PageFile
from shardgit.node import create_store, open_store
from shardgit.operate.block_sources import opened_source
from shardgit.operate.findings import FindingKind
from shardgit.operate.operation import Control, silent_control
from shardgit.operate.repair import remake_shards, repair_store
from shardgit.operate.settle import settle, settling_alone
from shardgit.operate.shrinking import compact_shards
from shardgit.operate.verifying import verify_store
from shardgit.service.exporting import export_repository
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.oid import BlockId
    from shardgit.operate.repair import Repair
    from shardgit.operate.verifying import Verification
    from shardgit.service.store import Store


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of some megabytes that do not deflate, with merges, a tag and deep folders."""
    folder = tmp_path_factory.mktemp("source") / "repo"
    folder.mkdir()
    chance = random.Random(1)
    git(folder, "init", "--quiet", "--initial-branch=main")
    for number in range(24):
        (folder / f"d{number % 5}" / "deep").mkdir(parents=True, exist_ok=True)
        (folder / f"d{number % 5}" / "deep" / f"{number}.bin").write_bytes(
            chance.randbytes(150_000)
        )
        (folder / f"d{number % 3}" / "text").write_text("line\n" * (number + 1))
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", f"commit {number}")
        if number == 12:
            git(folder, "tag", "-a", "-m", "a tag", "v1")
            git(folder, "branch", "other")
    git(folder, "checkout", "--quiet", "other")
    (folder / "more.bin").write_bytes(chance.randbytes(900_000))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "other")
    git(folder, "checkout", "--quiet", "main")
    git(folder, "merge", "--quiet", "-m", "merge", "other")
    git(folder, "gc", "--quiet")
    return folder


@contextmanager
def store_of(folder: Path, source: Path, *, shards: int = 3, replicas: int = 1) -> Iterator[Store]:
    create_store(folder, shards=shards)
    with open_store(folder) as store:
        ring = initial_ring(open_layout(folder), replicas=replicas)
        store.journal.commit_sync([], [Put(RING_KEY, ring.encode())])
    with open_store(folder) as store:
        import_repository(store, "demo", str(source))
        yield store


def verified(store: Store, **options: bool) -> Verification:
    return verify_store(
        store.scratch.parent, control=silent_control(), journal=store.journal, **options
    )


def repaired(store: Store, **options: object) -> Repair:
    return repair_store(store, control=silent_control(), **options)  # type: ignore[arg-type]


def blocks_of(store: Store, kind: BlockKind) -> list[BlockId]:
    found = []
    for block, _ in store.blocks.scan_sync():
        (data,) = store.blocks.get_many_sync([block])
        assert data is not None
        if parse_header(data).kind is kind:
            found.append(block)
    return found


def everything(store: Store) -> dict[tuple[int, BlockId], bytes | None]:
    """Return all copies of all blocks, read from the files."""
    return {
        (number, block): shard.get_many_sync([block])[0]
        for number, shard in store.routed.shards.items()
        for block, _ in shard.scan_sync()
    }


def rot(store: Store, number: int, block: BlockId) -> None:
    """Flip a bit of a block where it lies in its shard's file; a small one may lie in freed pages too."""
    shard = store.routed.shards[number]
    (data,) = shard.get_many_sync([block])
    assert data is not None
    file = shard.folder / "data.mdb"
    whole = file.read_bytes()
    places = [found.start() + 150 for found in re.finditer(re.escape(data[:200]), whole)]
    assert places
    with file.open("r+b") as opened:
        for at in places:
            opened.seek(at)
            opened.write(bytes([whole[at] ^ 4]))
    shard._seen.__init__()  # type: ignore[misc]


def assert_git_is_content(store: Store, target: Path, source: Path) -> None:
    """Export the repository: git finds nothing wrong, and all refs and objects are the source's."""
    export_repository(store, "demo", target)
    done = subprocess.run(
        ["git", "-C", str(target), "fsck", "--strict", "--full"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert git(target, "for-each-ref") == git(source, "for-each-ref")
    assert git(target, "rev-list", "--objects", "--all") == git(
        source, "rev-list", "--objects", "--all"
    )


def test_a_sound_store_has_no_finding(tmp_path: Path, source: Path) -> None:
    with store_of(tmp_path / "s", source, replicas=2) as store:
        found = verified(store, objects=True)
        assert found.findings == ()
        assert found.clean
        objects = int(git(source, "count-objects", "-v").split("in-pack: ")[1].split()[0])
        assert found.objects == objects
        assert found.blocks == sum(stats.blocks for stats in store.routed.stats().values())
        assert found.unnamed == 0
        assert repaired(store).whole
        with pytest.raises(ShardMissing):
            verify_store(store.scratch.parent, control=silent_control(), shard=9)


def test_a_flipped_bit_is_found_and_put_right_from_the_other_replica(
    tmp_path: Path, source: Path
) -> None:
    with store_of(tmp_path / "s", source, replicas=2) as store:
        before = everything(store)
        block = blocks_of(store, BlockKind.SEGMENT)[0]
        home = store.routed.ring.shards_of(partition_of(block))[1]
        rot(store, home, block)
        moved = Moved()
        found = verified(store)
        assert moved("shardgit_scrub_findings_total") == {
            one.kind.value: 1 for one in found.findings
        }
        assert moved("shardgit_scrub_bytes_total") == {"": found.read_bytes}
        (one,) = found.findings
        assert (one.kind, one.shard, one.block) == (FindingKind.BLOCK, home, block.hex())
        assert one.repositories == ("demo",)
        assert one.mend == "shardgit shard repair"
        assert repaired(store, dry_run=True).action_count == 1
        assert moved("shardgit_block_repairs_total") == {"would": 1}
        assert not verified(store).clean
        done = repaired(store)
        assert done.whole
        assert moved("shardgit_block_repairs_total") == {"would": 1, "done": 1}
        assert [(a.block, a.shard) for a in done.actions] == [(block.hex(), home)]
        assert verified(store, objects=True).clean
        assert everything(store) == before
        assert repaired(store).action_count == 0
        assert_git_is_content(store, tmp_path / "out.git", source)


def test_a_shard_that_lost_everything_is_filled_again(tmp_path: Path, source: Path) -> None:
    with store_of(tmp_path / "s", source, replicas=2) as store:
        before = everything(store)
        gone = [block for number, block in before if number == 1]
        store.routed.shards[1].delete_many_sync(gone)
        found = verified(store)
        assert found.counts == {FindingKind.COPY: len(gone)}
        assert repaired(store).whole
        assert everything(store) == before


def test_what_is_named_by_a_manifest_that_was_lost_too_comes_back_in_one_repair(
    tmp_path: Path, source: Path
) -> None:
    with store_of(tmp_path / "s", source) as store:
        create_backup(store, str(tmp_path / "backup"), control=silent_control())
        before = everything(store)
        for number, shard in store.routed.shards.items():
            shard.delete_many_sync([block for home, block in before if home == number])
        with opened_source(str(tmp_path / "backup")) as backup:
            done = repaired(store, sources=[backup])
        assert done.whole
        assert done.action_count == len(before)
        assert everything(store) == before
        assert verified(store, objects=True).clean


def test_lost_blocks_come_back_from_a_folder_of_blocks(tmp_path: Path, source: Path) -> None:
    with store_of(tmp_path / "s", source) as store:
        before = everything(store)
        folder = tmp_path / "blocks"
        folder.mkdir()
        for number, (_, data) in enumerate((key, data) for key, data in before.items()):
            assert data is not None
            (folder / str(number)).write_bytes(data)
        gone = blocks_of(store, BlockKind.SEGMENT)[:2]
        for block in gone:
            store.blocks.delete_many_sync([block])
        found = verified(store)
        assert {(one.kind, one.block) for one in found.findings} == {
            (FindingKind.LOST, block.hex()) for block in gone
        }
        assert found.findings[0].mend == "shardgit shard repair --from BACKUP"
        with opened_source(str(folder)) as copies:
            assert repaired(store, sources=[copies]).whole
        assert everything(store) == before
        assert_git_is_content(store, tmp_path / "out.git", source)


@pytest.mark.parametrize(
    "kinds", [[BlockKind.INDEX], [BlockKind.GRAPH], [BlockKind.INDEX, BlockKind.GRAPH]]
)
def test_index_and_graph_are_made_anew_from_segments(
    tmp_path: Path, source: Path, kinds: list[BlockKind]
) -> None:
    with store_of(tmp_path / "s", source) as store:
        segments = blocks_of(store, BlockKind.SEGMENT)
        for kind in kinds:
            store.blocks.delete_many_sync(blocks_of(store, kind))
        assert verified(store).counts[FindingKind.LOST] >= len(kinds)
        done = repaired(store)
        assert done.left == ()
        assert done.whole
        assert blocks_of(store, BlockKind.SEGMENT) == segments
    with open_store(tmp_path / "s") as store:
        assert verified(store, objects=True).clean
        assert repaired(store).action_count == 0
        assert_git_is_content(store, tmp_path / "out.git", source)


def test_the_index_of_a_recent_is_made_anew_too(tmp_path: Path, source: Path) -> None:
    work = tmp_path / "work"
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(work))
    git(work, "fetch", "--quiet", "--no-tags", str(source), "refs/heads/other:refs/heads/new")
    git(work, "update-ref", "refs/heads/main", "new~2")
    git(work, "update-ref", "-d", "refs/heads/new")
    with store_of(tmp_path / "s", work) as store:
        with store.journal.snapshot() as snapshot:
            pool = store.repository(snapshot, "demo").pool
        with settling_alone(store, pool):  # so that the import does not settle
            import_repository(store, "demo", str(source), overwrite=True)
        with store.journal.snapshot() as snapshot:
            view = store.state(snapshot, "demo").pool.view
        assert len(view.recents) == 1
        run = view.recents[0].record
        lost = [ref.id for _, ref in run.index] + [ref.id for ref in run.graph]
        assert lost
        store.blocks.delete_many_sync(lost)
        assert repaired(store).whole
        assert verified(store, objects=True).clean
    with open_store(tmp_path / "s") as store:
        assert_git_is_content(store, tmp_path / "out.git", source)


def test_what_is_lost_is_listed_and_stays_data_loss(tmp_path: Path, source: Path) -> None:
    with store_of(tmp_path / "s", source) as store:
        # The segment with the large blob of the branch that was merged: main and other reach it.
        blob = git(source, "rev-parse", "other:more.bin")
        with store.journal.snapshot() as snapshot:
            view = store.state(snapshot, "demo").pool.view
        (at,) = view.positions([bytes.fromhex(blob)])  # type: ignore[list-item]
        segment = view.segment_at(at)
        store.blocks.delete_many_sync([segment.entry.ref.id])
        before = everything(store)
        done = repaired(store)
        assert not done.whole
        (damage,) = done.damage
        assert damage.block == segment.entry.ref.id.hex()
        assert any(blob.startswith(one) for one in damage.objects)
        assert len(damage.objects) == damage.object_count
        assert set(damage.refs) == {"demo refs/heads/main", "demo refs/heads/other"} or set(
            damage.refs
        ) == {"demo refs/heads/main", "demo refs/heads/other", "demo refs/tags/v1"}
        assert everything(store) == before
        with pytest.raises(DataLoss):
            view.read([bytes.fromhex(blob)])  # type: ignore[list-item]


def test_damaged_bytes_stay_while_what_names_them_may_come_back(
    tmp_path: Path, source: Path
) -> None:
    with store_of(tmp_path / "s", source) as store:
        with store.journal.snapshot() as snapshot:
            manifest = store.state(snapshot, "demo").pool.record.manifest
        assert manifest is not None
        segment = blocks_of(store, BlockKind.SEGMENT)[0]
        (whole,) = store.blocks.get_many_sync([manifest])
        assert whole is not None
        (home,) = store.routed.ring.shards_of(partition_of(segment))
        store.blocks.delete_many_sync([manifest])
        rot(store, home, segment)
        assert not repaired(store).whole
        assert store.routed.shards[home].has_many_sync([segment]) == [True]
        store.blocks.put_many_sync([(manifest, whole)])
        done = repaired(store)
        assert [one.block for one in done.damage] == [segment.hex()]
        assert store.routed.shards[home].has_many_sync([segment]) == [True]


def test_a_verification_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgit.operate.verifying.STRIDE_BYTES", 1 << 18)
    monkeypatch.setattr("shardgit.operate.verifying.CHECKPOINT_S", 0.0)
    monkeypatch.setattr("shardgit.operate.verifying.CONFIRM_PART", 0)
    with store_of(tmp_path / "s", source, replicas=2) as store:
        total = sum(stats.blocks for stats in store.routed.stats().values())
        block = min(blocks_of(store, BlockKind.SEGMENT))
        rot(store, store.routed.ring.shards_of(partition_of(block))[0], block)

        class Stopping(Control):
            left = 3_000_000

            def pace(self, size_bytes: int) -> None:
                self.left -= size_bytes
                if self.left < 0:
                    self.stop()
                super().pace(size_bytes)

        def once(control: Control, *, resume: bool) -> Verification:
            return verify_store(
                store.scratch.parent, control=control, journal=store.journal, resume=resume
            )

        with pytest.raises(Stopped):
            once(Stopping(), resume=False)
        with pytest.raises(Stopped):
            once(Stopping(), resume=True)
        done = once(silent_control(), resume=True)
        assert done.resumed
        assert done.blocks == total
        assert done.counts == {FindingKind.BLOCK: 1}
        again = once(silent_control(), resume=True)
        assert not again.resumed
        assert again.blocks == total


def test_a_damaged_row_of_the_journal_is_found(tmp_path: Path, source: Path) -> None:
    with store_of(tmp_path / "s", source):
        pass
    file = tmp_path / "s" / "journal" / "data.mdb"
    whole = bytearray(file.read_bytes())
    # The row of the repository's record, in each page that holds a version of it.
    at = -1
    hit = 0
    while (at := whole.find(b"demo{", at + 1)) >= 0:
        whole[at] ^= 1
        hit += 1
    assert hit
    file.write_bytes(whole)
    found = verify_store(tmp_path / "s", control=silent_control())
    (one,) = found.findings
    assert one.kind is FindingKind.ROW
    assert one.row is not None
    assert bytes.fromhex(one.row)[:1] == b"I"


def test_a_shard_whose_file_is_cut_or_gone_is_told_with_what_it_lost(
    tmp_path: Path, source: Path
) -> None:
    with store_of(tmp_path / "s", source, replicas=2) as store:
        copies = len([1 for number, _ in everything(store) if number == 2])
    file = tmp_path / "s" / "shards" / "002" / "data.mdb"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2 // PAGE_BYTES * PAGE_BYTES])
    found = verify_store(tmp_path / "s", control=silent_control())
    assert found.counts[FindingKind.PAGE] > 0
    assert 0 < found.counts[FindingKind.BLOCK] <= copies
    file.unlink()
    found = verify_store(tmp_path / "s", control=silent_control())
    assert found.counts == {FindingKind.FILE: 1, FindingKind.COPY: copies}
    assert found.findings[0].shard == 2


def test_a_block_at_the_wrong_shard_is_told(tmp_path: Path, source: Path) -> None:
    with store_of(tmp_path / "s", source) as store:
        block = blocks_of(store, BlockKind.SEGMENT)[0]
        (data,) = store.blocks.get_many_sync([block])
        assert data is not None
        home = store.routed.ring.shards_of(partition_of(block))[0]
        other = (home + 1) % 3
        store.routed.shards[other].put_many_sync([(block, data)])
        (one,) = verified(store).findings
        assert (one.kind, one.shard, one.block) == (FindingKind.STRAY, other, block.hex())
        # The copy there serves as a source when the right one is lost.
        store.routed.shards[home].delete_many_sync([block])
        done = repaired(store)
        assert [action.shard for action in done.actions] == [home]
        assert store.blocks.get_many_sync([block]) == [data]


def test_a_settled_pool_verifies_clean(tmp_path: Path, source: Path) -> None:
    with store_of(tmp_path / "s", source) as store:
        import_repository(store, "demo", str(source), overwrite=True)
        with store.journal.snapshot() as snapshot:
            pool = store.repository(snapshot, "demo").pool
        settle(store, pool)
        assert verified(store, objects=True).clean


HOLDER = """
import sys
from pathlib import Path
from shardgit.node import open_store
with open_store(Path(sys.argv[1])):
    print("open", flush=True)
    sys.stdin.read()
"""


def page_of_blocks(file: Path) -> int:
    """Return the root of the tree that leads to blocks."""
    with file.open("rb") as opened:
        metas, _ = PageFile(opened.fileno()).metas()
    return metas[0].main.root


def break_a_tree(folder: Path, numbers: list[int]) -> int:
    """Damage the root of the tree of the shard that has most of the blocks; returns its number."""
    broken = max(range(3), key=numbers.count)
    file = folder / "shards" / f"{broken:03}" / "data.mdb"
    page = page_of_blocks(file)
    with file.open("r+b") as opened:
        opened.seek(page * PAGE_BYTES + 14)
        opened.write(b"\xff\xff")
    return broken


def test_a_shard_with_damaged_trees_is_made_anew_from_its_blocks(
    tmp_path: Path, source: Path
) -> None:
    folder = tmp_path / "s"
    with store_of(folder, source) as store:
        before = everything(store)
    numbers = [number for number, _ in before]
    broken = break_a_tree(folder, numbers)
    found = verify_store(folder, control=silent_control())
    assert found.counts[FindingKind.PAGE] > 0
    assert found.counts[FindingKind.LOST] > 0
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"open\n"
    with pytest.raises(StoreBusy):
        remake_shards(folder, control=silent_control())
    holder.communicate()
    assert [one.shard for one in remake_shards(folder, control=silent_control(), dry_run=True)] == [
        broken
    ]
    (one,) = remake_shards(folder, control=silent_control())
    # No tree leads to any of them any more; all lie in the file still.
    assert one.shard == broken
    # Among them may be what was deleted: gc's.
    assert one.blocks + one.salvaged >= numbers.count(broken)
    assert one.kept is not None
    assert Path(one.kept).exists()
    assert remake_shards(folder, control=silent_control()) == ()
    with open_store(folder) as store:
        assert verified(store, objects=True).clean
        assert everything(store).items() >= before.items()
        assert_git_is_content(store, tmp_path / "out.git", source)


def test_what_cannot_be_put_back_is_not_looked_for_again_and_again(
    tmp_path: Path, source: Path
) -> None:
    """A manifest from a backup leads to more blocks only where the shard that lost it takes it."""
    with store_of(tmp_path / "s", source) as store:
        create_backup(store, str(tmp_path / "backup"), control=silent_control())
        root = blocks_of(store, BlockKind.MANIFEST)[0]
        broken = break_a_tree(
            tmp_path / "s", [number for number, block in everything(store) if block == root]
        )
        asked: Counter[BlockId] = Counter()
        with opened_source(str(tmp_path / "backup")) as backup:

            class Counting:
                where = "backup"

                def get_many_sync(self, blocks: Sequence[BlockId]) -> list[bytes | None]:
                    asked.update(blocks)
                    return backup.get_many_sync(blocks)

            done = repaired(store, sources=[Counting()])
        assert not done.whole
        assert {one.shard for one in done.left} == {broken}
        assert set(asked.values()) == {1}


REMAKER = """
import sys
from pathlib import Path
from shardgit.operate.operation import silent_control
from shardgit.operate.repair import remake_shards
remake_shards(Path(sys.argv[1]), control=silent_control())
"""


@pytest.mark.parametrize("point", ["remake.before_replace", "remake.after_replace"])
def test_making_a_shard_anew_is_killed_and_begun_again(
    tmp_path: Path, source: Path, point: str
) -> None:
    folder = tmp_path / "s"
    with store_of(folder, source) as store:
        before = everything(store)
    break_a_tree(folder, [number for number, _ in before])
    killed = subprocess.run(
        [sys.executable, "-c", REMAKER, str(folder)],
        env={**os.environ, "SHARDGIT_FAULT": point},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    left = remake_shards(folder, control=silent_control())
    assert len(left) == (point == "remake.before_replace")
    with open_store(folder) as store:
        assert verified(store, objects=True).clean
        assert everything(store).items() >= before.items()


def test_a_lost_disk_is_filled_again_from_the_other_replicas(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "s"
    with store_of(folder, source, replicas=2) as store:
        before = everything(store)
    (folder / "shards" / "002" / "data.mdb").unlink()
    with pytest.raises(DataLoss), open_store(folder):
        pass
    (one,) = remake_shards(folder, control=silent_control())
    assert (one.shard, one.blocks, one.kept) == (2, 0, None)
    with open_store(folder) as store:
        assert repaired(store).whole
        assert everything(store) == before
        assert verified(store).clean


def test_a_compacted_shard_verifies_clean_and_is_repaired(tmp_path: Path, source: Path) -> None:
    with store_of(tmp_path / "s", source, replicas=2) as store:
        compact_shards(store, force=True, control=silent_control())
        assert verified(store).clean
        block = blocks_of(store, BlockKind.SEGMENT)[0]
        store.routed.shards[store.routed.ring.shards_of(partition_of(block))[0]].delete_many_sync(
            [block]
        )
        assert repaired(store).whole
        assert verified(store).clean
