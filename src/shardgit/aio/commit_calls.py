"""Paths and commits of a repository, read and made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.aio.answers import (
    as_bytes,
    commit_of,
)
from shardgit.aio.values import (
    Commit,
    File,
    NewCommit,
    TreeRow,
)
from shardgit.oid import ObjectId
from shardgit.v1 import (
    commit_pb2,
    commit_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from shardgit.aio.client import Client


PIECE_BYTES = 1_000_000  # of a file in one message


class CommitCalls:
    """The methods of a Repo for paths and commits."""

    client: Client
    name: str

    async def commit(  # noqa: PLR0913 - the plan of a commit, spelt out
        self,
        branch: str,
        *,
        message: str | bytes,
        author: str | bytes,
        files: Mapping[str | bytes, bytes | File | None],
        expected: bytes | None = None,
        committer: str | bytes = b"",
        author_seconds: int = 0,
        author_zone: str = "",
        base: str = "",
        allow_empty: bool = False,
        options: Sequence[str] = (),
    ) -> NewCommit:
        """Make a commit of changed files and move a branch to it, in one call and one commit of the store.

        ``files`` are new bytes by path; None deletes a file, or a whole folder. ``expected`` is the id that the branch
        must have, zeros for none: else Conflict. A new branch starts from ``base``, or with a root commit. Refused when
        the repository's policy or a hook says no.
        """

        async def requests() -> AsyncIterator[commit_pb2.CreateCommitRequest]:
            request = commit_pb2.CreateCommitRequest
            header = request.Header(
                repository=self.name,
                branch=branch,
                message=as_bytes(message),
                author=as_bytes(author),
                committer=as_bytes(committer),
                author_seconds=author_seconds,
                author_zone=author_zone.encode(),
                expected=expected or b"",
                base=base,
                allow_empty=allow_empty,
                options=options,
            )
            yield request(header=header)
            for path, value in files.items():
                one = value if isinstance(value, File) else File(value or b"")
                yield request(
                    file=request.File(
                        path=as_bytes(path), mode=one.mode, deleted=value is None, id=one.id or b""
                    )
                )
                for at in range(0, len(one.data), PIECE_BYTES):
                    yield request(data=one.data[at : at + PIECE_BYTES])

        answer = await self.client.call(
            commit_pb2_grpc.CommitServiceStub, "CreateCommit", requests()
        )
        old = ObjectId(answer.old) if answer.old else None
        return NewCommit(ObjectId(answer.id), ObjectId(answer.tree), old)

    async def read(self, revision: str, path: str | bytes) -> bytes:
        """Return the bytes of a file at a revision."""
        raw = as_bytes(path)
        request = commit_pb2.ReadPathRequest(repository=self.name, revision=revision, path=raw)
        out = bytearray()
        async for answer in self.client.stream(
            commit_pb2_grpc.CommitServiceStub, "ReadPath", request
        ):
            out += answer.data
        return bytes(out)

    async def commit_info(self, revision: str) -> Commit:
        """Return one commit."""
        request = commit_pb2.GetCommitRequest(repository=self.name, revision=revision)
        answer = await self.client.call(commit_pb2_grpc.CommitServiceStub, "GetCommit", request)
        return commit_of(answer.commit)

    async def log(self, *revisions: str, limit: int = 0) -> AsyncIterator[Commit]:
        """Return history by falling date; ^REV leaves out what REV reaches; ``limit`` 0 is none."""
        request = commit_pb2.ListCommitsRequest(
            repository=self.name, revisions=revisions, limit=limit
        )
        async for answer in self.client.stream(
            commit_pb2_grpc.CommitServiceStub, "ListCommits", request
        ):
            for one in answer.commits:
                yield commit_of(one)

    async def tree(self, revision: str, *, recursive: bool = False) -> AsyncIterator[TreeRow]:
        """Return the entries of a tree (REV or REV:PATH)."""
        request = commit_pb2.GetTreeRequest(
            repository=self.name, revision=revision, recursive=recursive
        )
        async for answer in self.client.stream(
            commit_pb2_grpc.CommitServiceStub, "GetTree", request
        ):
            for one in answer.entries:
                yield TreeRow(one.mode, one.path, ObjectId(one.id))

    async def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        """Return whether ``descendant`` is or reaches ``ancestor``."""
        request = commit_pb2.IsAncestorRequest(
            repository=self.name, ancestor=ancestor, descendant=descendant
        )
        answer = await self.client.call(commit_pb2_grpc.CommitServiceStub, "IsAncestor", request)
        return bool(answer.is_ancestor)

    async def merge_base(self, a: str, b: str) -> list[ObjectId]:
        """Return the best common ancestors."""
        request = commit_pb2.MergeBaseRequest(repository=self.name, a=a, b=b)
        answer = await self.client.call(commit_pb2_grpc.CommitServiceStub, "MergeBase", request)
        return [ObjectId(oid) for oid in answer.ids]
