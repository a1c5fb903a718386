"""One watch of etcd: whole revisions in order, or the reason why there are no more."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from shardgit.etcdpb import etcd_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardgit.etcd.client import Member

HELD_MAX = 64  # answers that wait to be taken; then the stream waits, and etcd behind it


@dataclass(frozen=True, slots=True)
class Changes:
    """Whole revisions, in order: all events from one revision up to another. Empty: a sign of life."""

    events: tuple[pb.Event, ...]


@dataclass(frozen=True, slots=True)
class WatchEnded:
    """No more comes. ``compacted``: from where it was to go on there is no history any more."""

    cause: str
    compacted: bool = False


class Watching:
    """A watch that is under way. One thread takes what comes; any may end it."""

    def __init__(
        self,
        open_stream: Callable[[Iterator[pb.WatchRequest]], Any],
        request: pb.WatchCreateRequest,
        member: Member,
    ) -> None:
        self.member = member
        self._asks: queue.SimpleQueue[pb.WatchRequest | None] = queue.SimpleQueue()
        self._asks.put(pb.WatchRequest(create_request=request))
        self._come: queue.Queue[Changes | WatchEnded] = queue.Queue(HELD_MAX)
        self._ended = threading.Event()
        self._call = open_stream(self._requests())
        self._reader = threading.Thread(target=self._read, name="etcd-watch", daemon=True)
        self._reader.start()

    def _requests(self) -> Iterator[pb.WatchRequest]:
        while (ask := self._asks.get()) is not None:
            yield ask

    def ask_progress(self) -> None:
        """Ask for a sign of life; it comes as empty Changes.

        What revision it names is not taken for anything: before 3.4.25 and 3.5.8 it may run ahead of events.
        """
        self._asks.put(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))

    def take(self, timeout_s: float) -> Changes | WatchEnded | None:
        """Return what came next, None when nothing did in time."""
        try:
            return self._come.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def end(self) -> None:
        """End the watch; who takes hears so."""
        self._ended.set()
        self._call.cancel()
        self._asks.put(None)
        with suppress(queue.Full):
            self._come.put_nowait(WatchEnded("ended here"))

    def _put(self, what: Changes | WatchEnded) -> None:
        while not self._ended.is_set():
            try:
                self._come.put(what, timeout=0.2)
            except queue.Full:
                continue
            return

    def _read(self) -> None:
        held: list[pb.Event] = []  # of an answer whose rest is still to come
        try:
            for response in self._call:
                if response.compact_revision:
                    self._put(WatchEnded("compacted", compacted=True))
                    return
                if response.canceled:
                    self._put(WatchEnded(response.cancel_reason or "cancelled"))
                    return
                held.extend(response.events)
                if response.fragment:
                    whole = _whole_of(held)
                    some, held = held[:whole], held[whole:]
                    if not some:
                        continue
                else:
                    some, held = held, []
                self._put(Changes(tuple(some)))
            self._put(WatchEnded("stream ended"))
        except grpc.RpcError as error:
            self._put(WatchEnded(f"{error.code().name}: {error.details()}"))
        finally:
            self._asks.put(None)


def _whole_of(events: list[pb.Event]) -> int:
    """Return how many events stand before those of the last revision, which may be cut."""
    last = events[-1].kv.mod_revision if events else 0
    whole = len(events)
    while whole and events[whole - 1].kv.mod_revision == last:
        whole -= 1
    return whole
