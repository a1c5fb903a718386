"""A Git repository on disk as the source of an import: its packs, loose objects, alternates and refs.

Read by our own code; the ``git`` program is asked only for a URL (``remote_clone``) and for refs that stand in a
reftable.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from shardgit._packstream import index_offsets
from shardgit.errors import (
    InvalidArgument,
    LimitExceeded,
    MalformedInput,
    MalformedObject,
    NotFound,
    Refused,
)
from shardgit.limits import DEFAULT, Limits
from shardgit.oid import HashKind, ObjectId, oid_of
from shardgit.processes import drop_left, own_prefix
from shardgit.progress import silent
from shardgit.service.remote_clone import Errand, ask_git
from shardgit.service.remote_url import checked_url, is_url

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

    from shardgit.progress import Report

TYPES = {b"commit": 1, b"tree": 2, b"blob": 3, b"tag": 4}
ALTERNATES_MAX = 64


@dataclass(frozen=True, slots=True)
class SourceRef:
    """A ref of the source: an object id, or the name of another ref."""

    name: bytes
    target: ObjectId | None
    symbolic: bytes | None


@dataclass(frozen=True, slots=True)
class SourcePack:
    """A mapped pack and, where an .idx says so, the starts of its entries (u64, ascending)."""

    path: Path
    data: mmap.mmap
    offsets: array[int] | None


@contextlib.contextmanager
def opened(
    source: str,
    *,
    scratch: Path,
    limits: Limits = DEFAULT,
    private: bool = True,
    borrows: bool = True,
    skips: frozenset[str] = frozenset(),
    progress: Report = silent,
) -> Iterator[GitSource]:
    """Open a path or a URL; a URL is mirrored into ``scratch`` first and removed afterwards.

    Without ``private`` a source has to be on the internet: see ``checked_url``.
    """
    if not is_url(source):
        if not private:
            raise Refused("source is on this machine", source=source[:200])
        with GitSource(Path(source), scratch=scratch, limits=limits) as opened_source:
            opened_source.borrows, opened_source.skips = borrows, skips
            yield opened_source
        return
    remote = checked_url(source, private=private)
    scratch.mkdir(parents=True, exist_ok=True)
    drop_left(scratch, "mirror")
    with tempfile.TemporaryDirectory(dir=scratch, prefix=own_prefix("mirror")) as folder:
        target = Path(folder) / "mirror.git"
        Errand(remote, limits, progress=progress).clone(target)
        with GitSource(target, scratch=Path(folder), limits=limits) as opened_source:
            yield opened_source


class GitSource:
    """One repository on disk. A context manager: packs stay mapped until it is left.

    Errors: NotFound when there is no repository, MalformedInput and MalformedObject for damaged files.
    """

    def __init__(self, path: Path, *, scratch: Path, limits: Limits = DEFAULT) -> None:
        self.folder = git_folder(path)
        self.limits = limits
        common = self.folder / "commondir"
        self.common = (
            (self.folder / common.read_text().strip()).resolve()
            if common.is_file()
            else self.folder
        )
        config = self.common / "config"
        self._config = config.read_text("utf-8", "replace").lower() if config.is_file() else ""
        sha256 = re.search(r"^\s*objectformat\s*=\s*sha256\s*$", self._config, re.MULTILINE)
        self.hash_kind = HashKind.SHA256 if sha256 else HashKind.SHA1
        self.borrows = True  # objects, by its alternates
        self.skips: frozenset[str] = frozenset()  # names of packs that are not read
        self._scratch = scratch
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> GitSource:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Unmap and close all packs."""
        self._stack.close()

    def shallow(self) -> list[ObjectId]:
        """Return the commits at which its history ends, none of a whole one. Errors: LimitExceeded too."""
        path = self.common / "shallow"
        if not path.is_file():
            return []
        most = self.limits.shallow_lines_max
        if path.stat().st_size > most * (2 * self.hash_kind.size + 1):
            raise LimitExceeded("source is shallow at too many commits", limit=most)
        try:
            return [oid_of(line, self.hash_kind) for line in path.read_bytes().split()]
        except InvalidArgument as cause:
            raise MalformedInput("shallow file does not parse", path=str(path)) from cause

    # ---- objects ----

    def object_folders(self) -> list[Path]:
        """Return the objects folder and those of its alternates, each once."""
        found: list[Path] = []
        waiting = [self.common / "objects"]
        while waiting:
            folder = waiting.pop(0).resolve()
            if folder in found or not folder.is_dir():
                continue
            found.append(folder)
            if len(found) > ALTERNATES_MAX:
                raise MalformedInput(
                    "too many alternates", source=str(self.folder), limit=ALTERNATES_MAX
                )
            alternates = folder / "info" / "alternates"
            if self.borrows and alternates.is_file():
                for line in alternates.read_text("utf-8", "surrogateescape").splitlines():
                    if line.strip() and not line.startswith("#"):
                        waiting.append(folder / line.strip())
        return found

    def packs(self, *, use_index: bool = True) -> Iterator[SourcePack]:
        """Map every pack, the largest first, and last a pack made of the loose objects."""
        paths = [
            path
            for folder in self.object_folders()
            for path in sorted((folder / "pack").glob("*.pack"))
            if path.name not in self.skips
        ]
        for path in sorted(paths, key=lambda p: (-p.stat().st_size, p.name)):
            data = self._map(path)
            index = path.with_suffix(".idx")
            offsets = None
            if use_index and index.is_file():
                offsets = index_offsets(index.read_bytes(), self.hash_kind)
            yield SourcePack(path, data, offsets)
        loose = self._loose_pack()
        if loose is not None:
            yield SourcePack(self.folder / "objects", loose, None)

    def _map(self, path: Path) -> mmap.mmap:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise MalformedInput("pack is empty", path=str(path))
            return self._mapped(file)

    def _mapped(self, file: IO[bytes]) -> mmap.mmap:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._stack.callback(_close_map, data)
        return data

    def loose_paths(self) -> Iterator[Path]:
        """Return the loose objects' files; one that stands in several folders once."""
        name = re.compile(f"[0-9a-f]{{{2 * self.hash_kind.size - 2}}}")
        seen: set[str] = set()
        for folder in self.object_folders():
            for fan in sorted(folder.iterdir()):
                if re.fullmatch("[0-9a-f]{2}", fan.name) and fan.is_dir():
                    for path in sorted(fan.iterdir()):
                        if name.fullmatch(path.name) and fan.name + path.name not in seen:
                            seen.add(fan.name + path.name)
                            yield path

    def _loose_pack(self) -> mmap.mmap | None:
        """Write the loose objects as one pack of whole objects; None when there are none."""
        paths = list(self.loose_paths())
        if not paths:
            return None
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._scratch) as file:  # without a name: gone when we are
            file.write(b"PACK" + struct.pack(">II", 2, len(paths)))
            for path in paths:
                for piece in loose_entry(path, self.limits):
                    file.write(piece)
            file.flush()
            hashed = new_hash(self.hash_kind)
            file.seek(0)
            while piece := file.read(1 << 20):
                hashed.update(piece)
            file.write(hashed.digest())
            file.flush()
            return self._mapped(file)

    # ---- refs ----

    def head(self) -> SourceRef | None:
        """Return HEAD as it stands: symbolic (its target may be unborn), detached, or None when it is broken."""
        if self._in_reftable:
            return self._head_by_git()
        path = self.folder / "HEAD"
        try:
            text = path.read_bytes().strip()
        except OSError:
            return None
        return self._ref(b"HEAD", text)

    def refs(self) -> list[SourceRef]:
        """Return every ref under refs/, sorted by name; loose ones win over packed ones."""
        if self._in_reftable:
            return self._refs_by_git()
        found: dict[bytes, SourceRef] = {}
        packed = self.common / "packed-refs"
        if packed.is_file():
            for line in packed.read_bytes().split(b"\n"):
                if line[:1] in (b"", b"#", b"^"):
                    continue
                text, _, name = line.partition(b" ")
                ref = self._ref(name, text)
                if ref is not None:
                    found[name] = ref
        root = self.common / "refs"
        for folder, _, files in os.walk(os.fsencode(root)):
            for file in files:
                path = os.path.join(folder, file)  # noqa: PTH118  # names are bytes
                name = os.path.relpath(path, os.fsencode(self.common))
                if name.endswith(b".lock"):
                    continue
                with open(path, "rb") as opened_file:  # noqa: PTH123
                    ref = self._ref(name, opened_file.read(4096).strip())
                if ref is not None:
                    found[name] = ref
        return [found[name] for name in sorted(found)]

    def _ref(self, name: bytes, text: bytes) -> SourceRef | None:
        if text.startswith(b"ref:"):
            return SourceRef(name, None, text[4:].strip())
        try:
            return SourceRef(
                name, oid_of(text.split(b" ", 1)[0].split(b"\t", 1)[0], self.hash_kind), None
            )
        except InvalidArgument as cause:
            raise MalformedInput(
                "ref does not parse", ref=name.decode("utf-8", "replace")
            ) from cause

    @property
    def _in_reftable(self) -> bool:
        """Whether refs stand in a reftable; the file HEAD is a stub then."""
        return bool(re.search(r"^\s*refstorage\s*=\s*reftable\s*$", self._config, re.MULTILINE))

    def _head_by_git(self) -> SourceRef | None:
        try:
            done = ask_git(self.folder, "symbolic-ref", "-q", "HEAD")
            if done.returncode == 0:
                return SourceRef(b"HEAD", None, done.stdout.strip())
            done = ask_git(self.folder, "rev-parse", "-q", "--verify", "HEAD")
        except FileNotFoundError as cause:
            raise Refused("the git program is needed to read a reftable") from cause
        return self._ref(b"HEAD", done.stdout.strip()) if done.returncode == 0 else None

    def _refs_by_git(self) -> list[SourceRef]:
        shape = "%(objectname) %(refname) %(symref)"
        try:
            done = ask_git(self.folder, "for-each-ref", f"--format={shape}")
        except FileNotFoundError as cause:
            raise Refused("the git program is needed to read a reftable") from cause
        if done.returncode:
            raise MalformedInput(
                "git could not read the refs", git=done.stderr.decode("utf-8", "replace").strip()
            )
        found = []
        for line in done.stdout.splitlines():
            text, name, symbolic = line.split(b" ", 2)
            ref = SourceRef(name, None, symbolic) if symbolic else self._ref(name, text)
            if ref is not None:
                found.append(ref)
        return sorted(found, key=lambda ref: ref.name)


def git_folder(path: Path) -> Path:
    """Return the Git folder of a bare repository or a work tree; NotFound when there is none."""
    for candidate in (path, path / ".git"):
        if candidate.is_file() and candidate.name == ".git":
            text = candidate.read_text("utf-8", "surrogateescape").strip()
            if text.startswith("gitdir:"):
                return git_folder((candidate.parent / text[7:].strip()).resolve())
        has_objects = (candidate / "objects").is_dir() or (candidate / "commondir").is_file()
        if has_objects and (candidate / "HEAD").exists():
            return candidate.resolve()
    raise NotFound("no Git repository there", source=str(path))


def loose_entry(path: Path, limits: Limits) -> Iterator[bytes]:
    """Turn a loose object into a pack entry: its header, then its body deflated anew, in pieces."""
    inflate = zlib.decompressobj()
    with path.open("rb") as file:
        try:
            piece = inflate.decompress(file.read(4096), 8192)
        except zlib.error as cause:
            raise MalformedObject("loose object is not a zlib stream", path=path.name) from cause
        header, nul, piece = piece.partition(b"\0")
        name, _, digits = header.partition(b" ")
        if not nul or name not in TYPES or not digits.isdigit() or len(digits) > 19:
            raise MalformedObject("loose object has no valid header", path=path.name)
        size = int(digits)
        if size > limits.object_size_max_bytes:
            raise MalformedObject("loose object is over the size limit", path=path.name, size=size)
        yield entry_header(TYPES[name], size)
        deflate = zlib.compressobj()
        done = 0
        while True:
            done += len(piece)
            if done > size:
                break
            yield deflate.compress(piece)
            if inflate.eof:
                break
            source = inflate.unconsumed_tail or file.read(1 << 16)
            try:
                piece = inflate.decompress(source, 1 << 20)
            except zlib.error as cause:
                raise MalformedObject("loose object is damaged", path=path.name) from cause
            if not source and not piece:
                break
        if done != size or not inflate.eof:
            raise MalformedObject(
                "loose object has another size than it claims", path=path.name, size=size
            )
        yield deflate.flush()


def entry_header(kind: int, size: int) -> bytes:
    """Return a pack entry's type-and-size header."""
    out = bytearray()
    byte = kind << 4 | size & 15
    size >>= 4
    while size:
        out.append(byte | 0x80)
        byte = size & 0x7F
        size >>= 7
    out.append(byte)
    return bytes(out)


def new_hash(kind: HashKind) -> hashlib._Hash:
    """Return a hash object of the kind."""
    return hashlib.sha1(usedforsecurity=False) if kind is HashKind.SHA1 else hashlib.sha256()


def _close_map(data: mmap.mmap) -> None:
    # A kernel that still holds the buffer keeps the map alive; the map goes with it.
    with contextlib.suppress(BufferError):
        data.close()
