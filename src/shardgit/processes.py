"""Processes of this machine, told apart although their numbers are used again; the memory of this one."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

__all__ = [
    "anonymous_bytes",
    "born",
    "bound_memory",
    "drop_left",
    "own_prefix",
    "pid_space",
    "trim",
]

# From malloc.h. Pieces of what is sent are 1 MiB at most, and stay in heaps: each mmap is a page fault for each 4 KiB.
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 4 << 20
M_ARENA_MAX, ARENAS = -8, 1  # heaps
M_TRIM_THRESHOLD, KEPT_BYTES = -1, 32 << 20


def born(pid: int) -> int:
    """Return when a process was started, in the kernel's ticks; 0 when it is gone.

    One that was killed and that its parent has not waited for yet is gone: it holds nothing any more.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        fields = stat.rpartition(b")")[2].split()  # the name in brackets may hold anything
        state, threads, started = fields[0], int(fields[17]), int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0
    if state in {b"Z", b"X"} and threads <= 1:  # else only its first thread has ended
        return 0
    return started


def own_prefix(what: str) -> str:
    """Return how the name of a folder begins that nobody needs once this process has ended."""
    pid = os.getpid()
    return f"{what}-{pid}-{born(pid)}-"


def pid_space() -> str:
    """Return which processes are told apart by their numbers: those of other containers have the same ones."""
    try:
        return Path("/proc/self/ns/pid").readlink().name.removeprefix("pid:[").removesuffix("]")
    except OSError:
        return "0"


def drop_left(folder: Path, what: str) -> None:
    """Remove the folders with such a name whose processes were killed."""
    for left in folder.glob(f"{what}-*"):
        _, pid, when, *_ = [*left.name.removeprefix(what).split("-"), "", ""]
        if pid.isdigit() and when.isdigit() and born(int(pid)) != int(when):
            shutil.rmtree(left, ignore_errors=True)


def anonymous_bytes() -> int:
    """Return how much memory this process has that is no file's; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)


def bound_memory() -> None:
    """Have the C library keep little of what is free; for a process that serves, before its threads begin.

    glibc takes buffers out of heaps once such a large one was freed, and gives each thread a heap, of which ``trim``
    gives nothing back from the top: behind ten pushes of 12 MiB 206 MiB were held with 21 in use. With one heap for
    all threads a worker starts with 90 MiB instead of 118, and has 106 instead of 167 behind pushes of 16 MiB and
    fetches with 20,000 haves; clones, pushes and reads cost the same CPU.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and needs none
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, MMAP_BYTES)
        set_option(M_TRIM_THRESHOLD, KEPT_BYTES)  # with 8 MiB a clone cost a quarter more CPU
        set_option(M_ARENA_MAX, ARENAS)


def trim() -> None:
    """Give free memory back to the system, where the C library can: glibc keeps it in its heap."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
