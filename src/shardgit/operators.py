"""A client for operators: what ``shardgit shard`` and ``shardgit backup`` do, over one gRPC channel.

Long calls report progress to a callback and return their result. Errors are those of shardgit.errors.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import msgspec

from shardgit.aio import MESSAGE_MAX_BYTES, error_of
from shardgit.backup.create import BackupMade
from shardgit.backup.cut import CutFacts
from shardgit.backup.prune import BackupsPruned
from shardgit.backup.repository import RepositoryRestored
from shardgit.backup.verify import BackupsVerified, Problem
from shardgit.operate.compact import Compacted
from shardgit.operate.damage import Damage
from shardgit.operate.findings import Finding, FindingKind
from shardgit.operate.gc import GcOptions, GcResult
from shardgit.operate.holding import ShardMode
from shardgit.operate.membership import ShardChanged
from shardgit.operate.planning import Flow, RingChange, RingPlan, ShardChange
from shardgit.operate.rebalance import Rebalance
from shardgit.operate.receipt import Receipt, ReceiptCheck, decode_receipt
from shardgit.operate.repair import Action, Repair
from shardgit.operate.shrinking import ShardCompacted, ShardsCompacted
from shardgit.operate.undeleting import DeletedRepository, Undeleted
from shardgit.operate.verify import RepositoryFinding, VerifyReport
from shardgit.operate.verifying import Verification
from shardgit.progress import Progress, Report, silent
from shardgit.service.mirrors import Mirror, MirrorPlan
from shardgit.service.modes import StoreMode
from shardgit.service.quotas import OwnerQuota
from shardgit.v1 import shard_pb2, shard_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

T = TypeVar("T")
PIECE_BYTES = 512 << 10


class Operators:
    """The verbs of operators, seen through one server."""

    def __init__(self, target: str, token: str | None = None) -> None:
        self._channel = grpc.insecure_channel(
            target, options=[("grpc.max_receive_message_length", MESSAGE_MAX_BYTES)]
        )
        self._stub = shard_pb2_grpc.ShardServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def __enter__(self) -> Operators:
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def call(self, method: str, request: Any) -> Any:
        """Make one call with one answer."""
        try:
            return getattr(self._stub, method)(request, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(error) from error

    def stream(self, method: str, request: Any, report: Report = silent) -> Iterator[Any]:
        """Make one call that answers with progress, which is reported, and results, which are given.

        Leaving the iterator early stops the operation.
        """
        answers = getattr(self._stub, method)(request, metadata=self._metadata)
        try:
            for answer in answers:
                if answer.WhichOneof("part") == "progress":
                    report(_progress(answer.progress))
                else:
                    yield answer
        except grpc.RpcError as error:
            raise error_of(error) from error
        finally:
            answers.cancel()

    def plan(
        self,
        change: RingChange | None = None,
        *,
        pace: shard_pb2.Pace | None = None,
        report: Report = silent,
    ) -> RingPlan:
        """Return what the ring's weights, and ``change`` on top, would move."""
        change = change or RingChange()
        request = shard_pb2.PlanRingRequest(
            pace=pace, add_weights=change.add, weights=change.weights
        )
        (answer,) = self.stream("PlanRing", request, report)
        return _plan(answer.result)

    def add_shard(
        self, path: str = "", *, weight: float = 1.0, zone: int | None = None
    ) -> ShardChanged:
        """Make a folder of the server's machine a shard."""
        request = shard_pb2.AddShardRequest(path=path, weight=weight, zone=zone)
        return _changed(self.call("AddShard", request).shard)

    def set_weight(self, shard: int, weight: float) -> ShardChanged:
        """Give a shard another weight, 0 to drain it."""
        request = shard_pb2.SetShardWeightRequest(id=shard, weight=weight)
        return _changed(self.call("SetShardWeight", request).shard)

    def remove_shard(self, shard: int) -> ShardChanged:
        """Take a drained and empty shard out of the store."""
        return _changed(self.call("RemoveShard", shard_pb2.RemoveShardRequest(id=shard)).shard)

    def rebalance(
        self,
        *,
        abort: bool = False,
        keep_s: float | None = None,
        pace: shard_pb2.Pace | None = None,
        report: Report = silent,
    ) -> Receipt:
        """Move blocks to where the weights want them, or undo that; returns the receipt."""
        request = shard_pb2.RebalanceRequest(pace=pace, abort=abort, keep_s=keep_s)
        pieces = [answer.receipt for answer in self.stream("Rebalance", request, report)]
        return decode_receipt(b"".join(pieces))

    def rebalance_status(self) -> tuple[Rebalance | None, bool]:
        """Return the last rebalance as it stands, and whether some process is at it."""
        answer = self.call("GetRebalance", shard_pb2.GetRebalanceRequest())
        if not answer.rebalance:
            return None, answer.running
        return msgspec.json.decode(answer.rebalance, type=Rebalance), answer.running

    def compact_shards(
        self,
        shards: Sequence[int] = (),
        *,
        force: bool = False,
        pace: shard_pb2.Pace | None = None,
        report: Report = silent,
    ) -> ShardsCompacted:
        """Copy live blocks of shards (all without ``shards``) into fresh files."""
        request = shard_pb2.CompactShardsRequest(pace=pace, ids=shards, force=force)
        (answer,) = self.stream("CompactShards", request, report)
        return ShardsCompacted(tuple(_made(ShardCompacted, one) for one in answer.result.shards))

    def check_receipt(
        self, receipt: bytes, *, pace: shard_pb2.Pace | None = None, report: Report = silent
    ) -> ReceiptCheck:
        """Hold a receipt's file against the store as it is."""
        pieces = [receipt[at : at + PIECE_BYTES] for at in range(0, len(receipt), PIECE_BYTES)]
        requests = (
            shard_pb2.CheckReceiptRequest(pace=pace, receipt=piece) for piece in pieces or [b""]
        )
        (answer,) = self.stream("CheckReceipt", requests, report)
        one = answer.result
        return ReceiptCheck(
            operation=one.operation,
            ok=one.ok,
            partitions=one.partitions,
            unchanged=one.unchanged,
            blocks=one.blocks,
            bytes=one.bytes,
            gone=one.gone,
            problems=one.problems,
            bad=tuple(one.bad),
        )

    def compact_repository(
        self,
        repository: str,
        *,
        full: bool = False,
        pace: shard_pb2.Pace | None = None,
        report: Report = silent,
    ) -> Compacted:
        """Write the pool of a repository anew."""
        request = shard_pb2.CompactRepositoryRequest(pace=pace, repository=repository, full=full)
        (answer,) = self.stream("CompactRepository", request, report)
        return _made(Compacted, answer.result)

    # ---- backups; targets are folders of the server's machine, or URLs ----

    def create_backup(
        self, target: str, *, pace: shard_pb2.Pace | None = None, report: Report = silent
    ) -> BackupMade:
        """Take a backup of the store."""
        request = shard_pb2.CreateBackupRequest(pace=pace, target=target)
        (answer,) = self.stream("CreateBackup", request, report)
        return _made(BackupMade, answer.result)

    def list_backups(self, target: str) -> list[CutFacts]:
        """Return the backups of a target, oldest first."""
        found = self.call("ListBackups", shard_pb2.ListBackupsRequest(target=target))
        return [_made(CutFacts, one) for one in found.backups]

    def verify_backups(
        self,
        target: str,
        *,
        backup: str | None = None,
        deep: bool = False,
        drop_damaged: bool = False,
        pace: shard_pb2.Pace | None = None,
        report: Report = silent,
    ) -> BackupsVerified:
        """Verify one backup, or all."""
        request = shard_pb2.VerifyBackupsRequest(
            pace=pace, target=target, backup=backup or "", deep=deep, drop_damaged=drop_damaged
        )
        (answer,) = self.stream("VerifyBackups", request, report)
        found = _made(BackupsVerified, answer.result)
        return replace(found, problems=tuple(_made(Problem, one) for one in answer.result.problems))

    def prune_backups(
        self,
        target: str,
        *,
        keep: int | None = None,
        older_ms: int | None = None,
        waste: float | None = None,
        pace: shard_pb2.Pace | None = None,
        report: Report = silent,
    ) -> BackupsPruned:
        """Let old backups go."""
        request = shard_pb2.PruneBackupsRequest(
            pace=pace, target=target, keep=keep, older_ms=older_ms, waste=waste
        )
        (answer,) = self.stream("PruneBackups", request, report)
        found = _made(BackupsPruned, answer.result)
        return replace(found, kept=tuple(found.kept), pruned=tuple(found.pruned))

    def restore_repository(
        self,
        target: str | None,
        repository: str,
        *,
        new_name: str | None = None,
        backup: str | None = None,
        at_ms: int | None = None,
        pace: shard_pb2.Pace | None = None,
        report: Report = silent,
    ) -> RepositoryRestored:
        """Bring one repository back."""
        request = shard_pb2.RestoreRepositoryRequest(
            pace=pace,
            target=target or "",
            repository=repository,
            new_name=new_name or "",
            backup=backup or "",
            at_ms=at_ms,
        )
        (answer,) = self.stream("RestoreRepository", request, report)
        return _made(RepositoryRestored, answer.result)

    # ---- verify and repair; a source of blocks is a folder of the server's machine, or a URL ----

    def verify_shards(
        self,
        *,
        shard: int | None = None,
        objects: bool = False,
        resume: bool = False,
        pace: shard_pb2.Pace | None = None,
        report: Report = silent,
    ) -> Verification:
        """Verify the store, or one shard."""
        request = shard_pb2.VerifyShardsRequest(
            pace=pace, shard=shard, objects=objects, resume=resume
        )
        *found, last = self.stream("VerifyShards", request, report)
        done = last.result
        return Verification(
            findings=tuple(_finding(one.finding) for one in found),
            counts=dict(done.counts),
            rows=done.rows,
            blocks=done.blocks,
            read_bytes=done.read_bytes,
            unnamed=done.unnamed,
            objects=done.objects,
            resumed=done.resumed,
            seconds=done.seconds,
        )

    def repair_shards(
        self,
        *,
        source: str = "",
        dry_run: bool = False,
        pace: shard_pb2.Pace | None = None,
        report: Report = silent,
    ) -> Repair:
        """Mend what is damaged."""
        request = shard_pb2.RepairShardsRequest(pace=pace, dry_run=dry_run, source=source)
        *told, last = self.stream("RepairShards", request, report)
        parts = {
            name: [getattr(one, name) for one in told if one.WhichOneof("part") == name]
            for name in ("action", "left", "damage")
        }
        return Repair(
            actions=tuple(
                Action(
                    one.what,
                    one.block or None,
                    one.shard if one.HasField("shard") else None,
                    one.pool or None,
                )
                for one in parts["action"]
            ),
            action_count=last.result.action_count,
            left=tuple(_finding(one) for one in parts["left"]),
            left_counts=dict(last.result.left_counts),
            damage=tuple(
                Damage(
                    one.block,
                    one.what,
                    tuple(one.repositories),
                    tuple(one.objects),
                    one.object_count,
                    tuple(one.refs),
                )
                for one in parts["damage"]
            ),
            dry_run=last.result.dry_run,
            seconds=last.result.seconds,
        )

    def verify_repository(
        self, name: str, *, pace: shard_pb2.Pace | None = None, report: Report = silent
    ) -> VerifyReport:
        """Check one repository as git fsck does."""
        request = shard_pb2.VerifyRepositoryRequest(pace=pace, repository=name)
        *found, last = self.stream("VerifyRepository", request, report)
        done = last.result
        return VerifyReport(
            repository=name,
            objects=done.objects,
            segments=done.segments,
            refs=done.refs,
            log_entries=done.log_entries,
            findings=tuple(
                RepositoryFinding(
                    one.finding.severity, one.finding.kind, one.finding.line, one.finding.object
                )
                for one in found
            ),
            counts=dict(done.counts),
            seconds=done.seconds,
        )

    # ---- deleted repositories ----

    def deleted_repositories(self) -> list[DeletedRepository]:
        """Return the deleted repositories that can be brought back, the one that was deleted first first."""
        found = self.call("ListDeletedRepositories", shard_pb2.ListDeletedRepositoriesRequest())
        return [_made(DeletedRepository, one) for one in found.repositories]

    def undelete(self, name: str, *, number: int = 0, new_name: str = "") -> Undeleted:
        """Bring a deleted repository back, by the name that it had or by its id."""
        request = shard_pb2.UndeleteRepositoryRequest(name=name, id=number, new_name=new_name)
        found = self.call("UndeleteRepository", request)
        return Undeleted(_made(DeletedRepository, found.repository), found.name)

    # ---- what is taken, from whom ----

    def mode(self) -> StoreMode:
        """Return whether the store takes changes."""
        return _made(StoreMode, self.call("GetMode", shard_pb2.GetModeRequest()).mode)

    def set_mode(self, *, read_only: bool, why: str = "") -> StoreMode:
        """Make the store read-only, or let it take changes again."""
        request = shard_pb2.SetModeRequest(read_only=read_only, why=why)
        return _made(StoreMode, self.call("SetMode", request).mode)

    def set_shard_mode(
        self,
        shard: int,
        *,
        read_only: bool,
        why: str = "",
        pace: shard_pb2.Pace | None = None,
        report: Report = silent,
    ) -> ShardMode:
        """Make a shard read-only, or let it take changes again; behind the answer nothing is written to it."""
        request = shard_pb2.SetShardModeRequest(pace=pace, id=shard, read_only=read_only, why=why)
        (answer,) = self.stream("SetShardMode", request, report)
        return _made(ShardMode, answer.result)

    def quotas(self, owner: str = "") -> list[OwnerQuota]:
        """Return all quotas, or that of one owner."""
        found = self.call("ListQuotas", shard_pb2.ListQuotasRequest(owner=owner))
        return [_quota(one) for one in found.quotas]

    def set_quota(self, owner: str, **bounds: int | None) -> OwnerQuota:
        """Set bounds of an owner: ``bytes``, ``objects``, ``repositories``, 0 for none; None leaves one as it is."""
        request = shard_pb2.SetQuotaRequest(owner=owner, **bounds)
        return _quota(self.call("SetQuota", request).quota)

    def remove_quota(self, owner: str) -> None:
        """Take an owner's quota away."""
        self.call("RemoveQuota", shard_pb2.RemoveQuotaRequest(owner=owner))

    # ---- mirrors ----

    def add_mirror(self, name: str, plan: MirrorPlan) -> Mirror:
        """Have a repository follow a URL."""
        request = shard_pb2.AddMirrorRequest(
            repository=name,
            url=plan.url,
            interval_s=plan.interval_s,
            refs=plan.refs,
            credential=plan.credential,
            overwrite=plan.overwrite,
            object_format=plan.hash_kind.git_name,
        )
        return _mirror(self.call("AddMirror", request).mirror)

    def mirrors(self, name: str = "") -> list[Mirror]:
        """Return all mirrors, or one."""
        found = self.call("ListMirrors", shard_pb2.ListMirrorsRequest(repository=name))
        return [_mirror(one) for one in found.mirrors]

    def sync_mirror(self, name: str) -> Mirror:
        """Have a mirror brought in step soon; returns how it is before."""
        request = shard_pb2.SyncMirrorRequest(repository=name)
        return _mirror(self.call("SyncMirror", request).mirror)

    def remove_mirror(self, name: str) -> None:
        """Have a repository follow nobody."""
        self.call("RemoveMirror", shard_pb2.RemoveMirrorRequest(repository=name))

    # ---- gc ----

    def collect_garbage(
        self,
        options: GcOptions | None = None,
        *,
        pace: shard_pb2.Pace | None = None,
        report: Report = silent,
    ) -> GcResult:
        """Drop what nothing needs any more."""
        options = options or GcOptions()
        request = shard_pb2.CollectGarbageRequest(
            pace=pace,
            grace_s=options.grace_s,
            log_retention_s=options.log_retention_s,
            orphan_age_s=options.orphan_age_s,
            wait_s=options.wait_s,
            garbage_min=options.garbage_min,
            repository=options.repository or "",
            dry_run=options.dry_run,
        )
        (answer,) = self.stream("CollectGarbage", request, report)
        found = _made(GcResult, answer.result)
        return replace(
            found, waiting_for=tuple(found.waiting_for), damaged=dict(answer.result.damaged)
        )


def _finding(one: shard_pb2.Finding) -> Finding:
    return Finding(
        kind=FindingKind(one.kind),
        what=one.what,
        mend=one.mend,
        shard=one.shard if one.HasField("shard") else None,
        block=one.block or None,
        page=one.page if one.HasField("page") else None,
        row=one.row or None,
        pool=one.pool or None,
        object=one.object or None,
        repositories=tuple(one.repositories),
    )


def _changed(one: shard_pb2.ShardChanged) -> ShardChanged:
    return ShardChanged(one.id, one.path, one.zone, one.weight, one.epoch)


def _made(shape: type[T], message: Any) -> T:
    """Return the dataclass whose fields a message has."""
    return shape(**{field.name: getattr(message, field.name) for field in fields(shape)})  # type: ignore[arg-type]


def _mirror(one: shard_pb2.Mirror) -> Mirror:
    return replace(_made(Mirror, one), refs=tuple(one.refs))


def _quota(one: shard_pb2.Quota) -> OwnerQuota:
    return replace(_made(OwnerQuota, one), uncounted=tuple(one.uncounted))


def _progress(step: shard_pb2.OperationProgress) -> Progress:
    total = step.total if step.HasField("total") else None
    return Progress(step.stage, step.done, total, step.unit)  # type: ignore[arg-type]


def _plan(one: shard_pb2.RingPlan) -> RingPlan:
    return RingPlan(
        epoch=one.epoch,
        replicas=one.replicas,
        bytes=one.bytes,
        moved_bytes=one.moved_bytes,
        moved_share=one.moved_share,
        moved_partitions=one.moved_partitions,
        shards=tuple(
            ShardChange(
                id=shard.id,
                zone=shard.zone,
                weight=shard.weight,
                partitions_before=shard.partitions_before,
                partitions_after=shard.partitions_after,
                bytes_before=shard.bytes_before,
                bytes_after=shard.bytes_after,
                share_after=shard.share_after,
                share_wanted=shard.share_wanted,
            )
            for shard in one.shards
        ),
        flows=tuple(
            Flow(flow.source, flow.target, flow.partitions, flow.bytes) for flow in one.flows
        ),
    )
