"""A target of backups, opened: its format, its backups, and where each blob lies."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit.backup.bucket import is_empty, open_bucket
from shardgit.backup.cut import (
    FACTS_READ_BYTES,
    NAME,
    Cut,
    CutFacts,
    cut_name,
    decode_cut,
    decode_facts,
)
from shardgit.backup.pack import (
    TRAILER_BYTES,
    Pack,
    decode_footer,
    decode_index,
    footer_bytes,
    pack_name,
)
from shardgit.errors import BackupCorrupt, BackupMissing, Refused
from shardgit.formats import check_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shardgit.buckets.bucket import Bucket

FORMAT = "format"
MAGIC = "shardgit backup"
VERSION = 1
FOOTER_GUESS_BYTES = 64 << 10
GAP_MAX_BYTES = 256 << 10  # unwanted bytes that are read so as not to ask twice
READ_MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring blobs of a pack that are read at once: (id, start, length) each."""

    pack: bytes
    start: int
    end: int
    blobs: tuple[tuple[bytes, int, int], ...]


class Target:
    """A target and its catalog. Methods run in the calling thread; reads may run in many."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.packs: dict[bytes, Pack] = {}
        self.indexes: list[str] = []
        self.unindexed: list[Pack] = []
        self._places: dict[bytes, tuple[int, int, int]] = {}  # pack's number, start, length
        self._numbers: list[bytes] = []
        self._lock = Lock()
        self._newer: Target | None = None  # the catalog as it was when packs were found gone

    @classmethod
    def open(cls, target: str, *, make: bool = False) -> Target:
        """Open a target; ``make`` begins one in an empty place.

        Errors: BackupMissing, StoreFormatUnknown, Refused for a place that holds something else.
        """
        bucket = open_bucket(target, make=make)
        found = bucket.get(FORMAT)
        if found is None:
            if not make:
                raise BackupMissing("no backups there", target=bucket.where)
            if not is_empty(bucket):
                raise Refused("target holds something else than backups", target=bucket.where)
            bucket.create(FORMAT, f"{MAGIC} {VERSION}\n".encode())
            found = bucket.get(FORMAT) or b""
        text = found[:100].decode("utf-8", "replace")
        if text != f"{MAGIC} {VERSION}\n":
            magic, _, version = text.strip().rpartition(" ")
            if magic == MAGIC and version.isascii() and version.isdecimal() and len(version) < 10:
                check_version("backups", int(version), VERSION)
            raise Refused("target holds no backups", target=bucket.where)
        return cls(bucket)

    # ---- backups ----

    def cut_ids(self) -> list[str]:
        """Return the ids of all backups, oldest first."""
        names = (one.name.rpartition("/")[2] for one in self.bucket.list("cuts"))
        return sorted(name for name in names if NAME.fullmatch(name))

    def cut(self, cut: str) -> Cut:
        """Return a backup. Errors: BackupMissing, BackupCorrupt."""
        data = self.bucket.get(cut_name(cut))
        if data is None:
            raise BackupMissing("no such backup", backup=cut, target=self.bucket.where)
        found = decode_cut(data)
        if found.facts.id != cut:
            raise BackupCorrupt("backup has another id than its name", backup=cut)
        return found

    def facts(self, cut: str) -> CutFacts:
        """Return what a backup tells about itself, without reading it whole. Errors: BackupCorrupt."""
        found = decode_facts(self._range(cut_name(cut), 0, FACTS_READ_BYTES))
        if found.id != cut:
            raise BackupCorrupt("backup has another id than its name", backup=cut)
        return found

    @contextmanager
    def reading(self, cut: str) -> Iterator[None]:
        """Read a backup; should a prune take it away meanwhile, that is told as what it is.

        Errors: BackupMissing, in the place of BackupCorrupt, when the backup is there no more.
        """
        try:
            yield
        except BackupCorrupt as error:
            if self.bucket.get(cut_name(cut)) is not None:
                raise
            raise BackupMissing(
                "backup was pruned while it was read", backup=cut, target=self.bucket.where
            ) from error

    def _range(self, name: str, start: int, end: int) -> bytes:
        """Return some bytes of an object, fewer at its end. Errors: BackupCorrupt when it is missing."""
        found = self.bucket.get_range(name, start, end)
        if found is None:
            raise BackupCorrupt(
                "object of the backup is missing", target=self.bucket.where, object=name
            )
        return found

    # ---- blobs ----

    def load(self) -> None:
        """Read where every blob lies: the indexes, and the footers of packs that none of them has.

        A pack that is missing, cut short or whose footer is off is left out: what lay in it counts as missing.
        """
        # Indexes first: a prune that runs meanwhile writes new packs before it deletes old ones, so what an old index
        # names and is gone is found in packs that are listed later.
        named: list[Pack] = []
        for name in [one.name for one in self.bucket.list("indexes")]:
            data = self.bucket.get(name)
            if data is not None:
                self.indexes.append(name)
                named += decode_index(data)
        sizes = {one.name.rpartition("/")[2]: one.size for one in self.bucket.list("packs")}
        for pack in named:
            if sizes.get(pack.id.hex()) == pack.size:
                self.take(pack)
        for name, size in sizes.items():
            pack_id = _pack_id(name)
            if pack_id is None or pack_id in self.packs:
                continue
            try:
                pack = self._footer(pack_id, size)
            except BackupCorrupt:
                continue
            self.take(pack)
            self.unindexed.append(pack)

    def take(self, pack: Pack) -> None:
        """Note where a pack's blobs lie."""
        if pack.id in self.packs:
            return
        self.packs[pack.id] = pack
        number = len(self._numbers)
        self._numbers.append(pack.id)
        for entry, start in zip(pack.entries, pack.offsets(), strict=True):
            self._places.setdefault(entry.id, (number, start, entry.length))

    def forget(self, pack: Pack) -> None:
        """Count a pack's blobs as missing."""
        del self.packs[pack.id]
        for entry in pack.entries:
            place = self._places.get(entry.id)
            if place is not None and self._numbers[place[0]] == pack.id:
                del self._places[entry.id]

    def lies_in(self, blob: bytes, pack: Pack) -> bool:
        """Return whether it is this pack that a blob would be read from."""
        place = self._places.get(blob)
        return place is not None and self._numbers[place[0]] == pack.id

    def _footer(self, pack_id: bytes, size: int) -> Pack:
        name = pack_name(pack_id)
        tail = self._range(name, max(0, size - FOOTER_GUESS_BYTES), size)
        length = footer_bytes(tail[-TRAILER_BYTES:])
        if length > size:
            raise BackupCorrupt("footer of a pack is cut short", pack=pack_id.hex())
        if length > len(tail):
            tail = self._range(name, size - length, size)
        found = decode_footer(tail[-length:])
        if found.id != pack_id or found.size != size:
            raise BackupCorrupt("pack has another footer than its name says", pack=pack_id.hex())
        return found

    def __contains__(self, blob: bytes) -> bool:
        return blob in self._places

    def length(self, blob: bytes) -> int:
        """Return a blob's length; 0 when it is missing."""
        return self._places.get(blob, (0, 0, 0))[2]

    def spans(self, blobs: Iterable[bytes]) -> list[Span]:
        """Return how to read blobs with few requests, pack by pack. BackupCorrupt when one is missing."""
        wanted: dict[int, list[tuple[int, int, bytes]]] = {}
        for blob in blobs:
            place = self._places.get(blob)
            if place is None:
                raise BackupCorrupt(
                    "backup lacks a blob", blob=blob.hex(), target=self.bucket.where
                )
            number, start, length = place
            wanted.setdefault(number, []).append((start, length, blob))
        out: list[Span] = []
        for number in sorted(wanted):
            group: list[tuple[int, int, bytes]] = []
            for one in sorted(wanted[number]):
                if group and (
                    one[0] - group[-1][0] - group[-1][1] > GAP_MAX_BYTES
                    or one[0] + one[1] - group[0][0] > READ_MAX_BYTES
                ):
                    out.append(self._span(number, group))
                    group = []
                group.append(one)
            out.append(self._span(number, group))
        return out

    def _span(self, number: int, group: Sequence[tuple[int, int, bytes]]) -> Span:
        start, end = group[0][0], group[-1][0] + group[-1][1]
        blobs = tuple((blob, at, length) for at, length, blob in group)
        return Span(self._numbers[number], start, end, blobs)

    def read(self, span: Span) -> list[tuple[bytes, bytes]]:
        """Return (id, bytes) of a span's blobs, each checked.

        A prune may have written the pack's blobs into another since the catalog was read: that is where they are read
        then. Errors: BackupCorrupt.
        """
        try:
            data = self._range(pack_name(span.pack), span.start, span.end)
        except BackupCorrupt as error:
            newer = self._without(span.pack)
            if newer is None:
                raise
            try:
                spans = newer.spans(blob for blob, _, _ in span.blobs)
            except BackupCorrupt:
                raise error from None
            return [one for other in spans for one in newer.read(other)]
        out = []
        for blob, start, length in span.blobs:
            piece = data[start - span.start : start - span.start + length]
            if len(piece) != length or blake3(piece).digest() != blob:
                raise BackupCorrupt(
                    "blob of the backup does not match its id",
                    blob=blob.hex(),
                    pack=span.pack.hex(),
                    target=self.bucket.where,
                )
            out.append((blob, piece))
        return out

    def _without(self, pack: bytes) -> Target | None:
        """Return the target as it is now, if that lacks a pack which this catalog has."""
        with self._lock:
            if self._newer is None or pack in self._newer.packs:
                self._newer = Target(self.bucket)
                self._newer.load()
            return None if pack in self._newer.packs else self._newer

    def get(self, blob: bytes) -> bytes:
        """Return one blob, checked. Errors: BackupCorrupt."""
        (span,) = self.spans([blob])
        return self.read(span)[0][1]


def _pack_id(name: str) -> bytes | None:
    try:
        found = bytes.fromhex(name)
    except ValueError:
        return None
    return found if len(found) == 32 else None
