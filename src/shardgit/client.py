"""The Python client: ``with shardgit.connect("127.0.0.1:7420") as store``. The verbs of shardgit.aio, without async."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from shardgit import aio
from shardgit.aio import (
    Commit,
    File,
    NewCommit,
    Object,
    ObjectFacts,
    Person,
    Ref,
    RefChange,
    RefLogEntry,
    RefResult,
    StoredPack,
    TreeRow,
)
from shardgit.refs.update import ANY, Old, RefUpdate

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Coroutine,
        Generator,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from types import TracebackType

    from shardgit.calling import Calling
    from shardgit.oid import ObjectId
    from shardgit.service.configuring import SettingsView
    from shardgit.service.explained import CloneExplained
    from shardgit.service.repositories import RepositoryInfo, RepositoryStats
    from shardgit.service.shards import ShardInfo

__all__ = [
    "ANY",
    "Client",
    "Commit",
    "File",
    "NewCommit",
    "Object",
    "ObjectFacts",
    "Person",
    "Ref",
    "RefChange",
    "RefLogEntry",
    "RefResult",
    "RefUpdate",
    "Repo",
    "StoredPack",
    "TreeRow",
    "connect",
]
T = TypeVar("T")


def connect(target: str, token: str | None = None, *, calling: Calling | None = None) -> Client:
    """Return a client for the gRPC address ``target``, grpcs://HOST:PORT for TLS; a context manager.

    ``calling`` says what TLS needs beyond the system's authorities. Usable from any number of threads.
    """
    return Client(target, token, calling=calling)


class _Loop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(
            target=self.loop.run_forever, name="shardgit-client", daemon=True
        )
        self.thread.start()

    def run(self, work: Coroutine[object, object, T]) -> T:
        """Run a coroutine to its end."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def iterate(self, source: AsyncIterator[T], *, most: int = 64) -> Generator[T, None, None]:
        """Pull from an async iterator, up to ``most`` items a step."""

        async def some() -> list[T]:
            out: list[T] = []
            async for item in source:
                out.append(item)
                if len(out) == most:
                    break
            return out

        try:
            while items := self.run(some()):
                yield from items
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                self.run(close())

    def stop(self) -> None:
        """End what is under way, then the thread."""

        async def end() -> None:
            await asyncio.get_running_loop().shutdown_asyncgens()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Client:
    """A store, seen through one server. Errors are those of shardgit.errors."""

    def __init__(
        self, target: str, token: str | None = None, *, calling: Calling | None = None
    ) -> None:
        self._loop = _Loop()

        async def make() -> aio.Client:
            return aio.connect(target, token, calling=calling)

        self._client = self._loop.run(make())
        self._open = True

    def __enter__(self) -> Client:
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
        """Close all connections."""
        if self._open:
            self._open = False
            self._loop.run(self._client.close())
            self._loop.stop()

    def repo(self, name: str) -> Repo:
        """Return a repository; nothing is asked before its first use."""
        return Repo(self._loop, self._client.repo(name))

    def create(self, name: str, *, object_format: str = "sha1") -> RepositoryInfo:
        """Make an empty repository."""
        return self._loop.run(self._client.create(name, object_format=object_format))

    def repository(self, name: str) -> RepositoryInfo:
        """Return what is known of a repository."""
        return self._loop.run(self._client.repository(name))

    def repositories(self, prefix: str = "") -> Iterator[RepositoryInfo]:
        """Return all repositories by rising name."""
        return self._loop.iterate(self._client.repositories(prefix))

    def delete(self, name: str) -> None:
        """Delete a repository."""
        self._loop.run(self._client.delete(name))

    def rename(self, name: str, new_name: str) -> RepositoryInfo:
        """Give a repository another name."""
        return self._loop.run(self._client.rename(name, new_name))

    def fork(self, source: str, target: str) -> RepositoryInfo:
        """Make the repository ``target`` with the refs of ``source``; no objects are copied."""
        return self._loop.run(self._client.fork(source, target))

    def shards(self) -> list[ShardInfo]:
        """Return the shards of the store."""
        return self._loop.run(self._client.shards())


class Repo:
    """One repository of a client."""

    def __init__(self, loop: _Loop, repo: aio.Repo) -> None:
        self._loop = loop
        self._repo = repo
        self.name = repo.name

    def objects(self, ids: Iterable[bytes]) -> Iterator[Object | None]:
        """Return objects in the order of ``ids`` (raw), None where the repository has none."""
        return self._loop.iterate(self._repo.objects(ids))

    def put_objects(self, objects: Iterable[tuple[str | int, bytes]]) -> list[ObjectId]:
        """Store objects, (type, bytes) each, in one commit; returns their ids in order.

        Types are commit, tree, blob, tag, or 1 to 4. Until a ref names them the objects count as the repository's own
        for a grace period. Refused when one links to what is neither among them nor in the repository.
        """
        return self._loop.run(self._repo.put_objects(objects))

    def store_pack(self, pack: bytes) -> StoredPack:
        """Store a pack, thin or not, in one commit; its objects count as those of put_objects."""
        return self._loop.run(self._repo.store_pack(pack))

    def fetch_pack(
        self, wants: Sequence[bytes] = (), haves: Sequence[bytes] = (), *, thin: bool = False
    ) -> Iterator[bytes]:
        """Return a pack in pieces: what ``wants`` reach (all refs without any) and ``haves`` do not."""
        return self._loop.iterate(self._repo.fetch_pack(wants, haves, thin=thin))

    def commit(  # noqa: PLR0913 - the plan of a commit, spelt out
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
        return self._loop.run(
            self._repo.commit(
                branch,
                message=message,
                author=author,
                files=files,
                expected=expected,
                committer=committer,
                author_seconds=author_seconds,
                author_zone=author_zone,
                base=base,
                allow_empty=allow_empty,
                options=options,
            )
        )

    def info(self, ids: Sequence[bytes]) -> list[ObjectFacts | None]:
        """Return types and sizes in the order of ``ids`` (raw), None where the repository has no such object."""
        return self._loop.run(self._repo.info(ids))

    def list_objects(self) -> Iterator[ObjectFacts]:
        """Return all objects that the refs reach."""
        return self._loop.iterate(self._repo.list_objects())

    def open(self, revision: str) -> tuple[ObjectFacts, Iterator[bytes]]:
        """Return an object's facts and its bytes in pieces, by id or revision (REV:PATH too)."""
        facts, pieces = self._loop.run(self._repo.open(revision))
        return facts, self._loop.iterate(pieces)

    def read(self, revision: str, path: str | bytes) -> bytes:
        """Return the bytes of a file at a revision."""
        return self._loop.run(self._repo.read(revision, path))

    def commit_info(self, revision: str) -> Commit:
        """Return one commit."""
        return self._loop.run(self._repo.commit_info(revision))

    def log(self, *revisions: str, limit: int = 0) -> Iterator[Commit]:
        """Return history by falling date; ^REV leaves out what REV reaches; ``limit`` 0 is none."""
        return self._loop.iterate(self._repo.log(*revisions, limit=limit))

    def tree(self, revision: str, *, recursive: bool = False) -> Iterator[TreeRow]:
        """Return the entries of a tree (REV or REV:PATH)."""
        return self._loop.iterate(self._repo.tree(revision, recursive=recursive))

    def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        """Return whether ``descendant`` is or reaches ``ancestor``."""
        return self._loop.run(self._repo.is_ancestor(ancestor, descendant))

    def merge_base(self, a: str, b: str) -> list[ObjectId]:
        """Return the best common ancestors."""
        return self._loop.run(self._repo.merge_base(a, b))

    def refs(self, prefix: str | bytes = b"") -> Iterator[Ref]:
        """Return the refs under a prefix by rising name, HEAD left out."""
        return self._loop.iterate(self._repo.refs(prefix))

    def ref(self, name: str | bytes) -> Ref:
        """Return one ref by its full name, or HEAD."""
        return self._loop.run(self._repo.ref(name))

    def update_refs(
        self, updates: Iterable[RefUpdate], *, atomic: bool = True, message: str = ""
    ) -> list[RefResult]:
        """Change refs in one commit: all or none, else each that can be changed. See shardgit.aio."""
        return self._loop.run(self._repo.update_refs(updates, atomic=atomic, message=message))

    def update_ref(
        self,
        name: str | bytes,
        new: bytes | None,
        *,
        old: bytes | Old | None = ANY,
        symbolic: bytes | None = None,
        message: str = "",
    ) -> None:
        """Change one ref; ``new`` and ``symbolic`` None delete it. ``old`` None: it must not exist."""
        work = self._repo.update_ref(name, new, old=old, symbolic=symbolic, message=message)
        self._loop.run(work)

    def ref_log(
        self, ref: str | bytes | None = None, *, limit: int | None = None
    ) -> Iterator[RefLogEntry]:
        """Return committed changes, newest first: of one ref, or of all with up to 100 changes each."""
        return self._loop.iterate(self._repo.ref_log(ref, limit=limit))

    def restore_ref(
        self,
        ref: str | bytes,
        *,
        time_ms: int | None = None,
        back: int = 1,
        message: str = "",
        override: bool = False,
    ) -> RefChange:
        """Make a ref again what it was at a time, or ``back`` moves ago; returns what it is again.

        Protected refs and hooks count as for a push, unless they are overridden.
        """
        work = self._repo.restore_ref(
            ref, time_ms=time_ms, back=back, message=message, override=override
        )
        return self._loop.run(work)

    def watch_refs(
        self, after: int | None = None, *, prefixes: Sequence[bytes] = (), heartbeats: bool = False
    ) -> Generator[RefLogEntry, None, None]:
        """Return committed changes as they happen, until it is closed. See shardgit.aio."""
        watch = self._repo.watch_refs(after, prefixes=prefixes, heartbeats=heartbeats)
        return self._loop.iterate(watch, most=1)

    def stats(self) -> RepositoryStats:
        """Return counts and sizes."""
        return self._loop.run(self._repo.stats())

    def explain_clone(self, *, depth: int = 0, filters: Iterable[str] = ()) -> CloneExplained:
        """Have the server do all the work of a clone, and return what it is made of and where its time went."""
        return self._loop.run(self._repo.explain_clone(depth=depth, filters=filters))

    def settings(self) -> SettingsView:
        """Return every setting with its value."""
        return self._loop.run(self._repo.settings())

    def update_settings(self, changes: Mapping[str, Any], *, expected: int = 0) -> SettingsView:
        """Set keys to plain data, or back to their defaults (None): all of them or none.

        With ``expected``, a revision, only when nobody changed the repository since: else Conflict.
        """
        return self._loop.run(self._repo.update_settings(changes, expected=expected))
