"""Hosts for the nodes of a cluster: network namespaces with addresses of their own, whose links are shaped and cut."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BRIDGE, NETWORK = "sgbr0", "10.77.0"
HOST = f"{NETWORK}.1"  # of clients
ETCD_HOST, S3_HOST = f"{NETWORK}.2", f"{NETWORK}.3"
FIRST = 11  # the last number of the first host's address
HOSTS_MAX = 16
_NOBODY = "02:00:00:00:00:01"  # a link-layer address that nobody has: what is sent there is gone without a word


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace and its address."""

    name: str
    outside: str  # the end of its link on the bridge
    address: str

    @property
    def inside(self) -> tuple[str, ...]:
        """Return the words that run a command there."""
        return ("ip", "netns", "exec", self.name)

    def cut(self, *addresses: str) -> None:
        """Let what this host sends to addresses be lost in silence, as with a cable that is pulled."""
        for address in addresses:
            words = ("neigh", "replace", address, "lladdr", _NOBODY, "dev", "eth0")
            ip("-n", self.name, *words, "nud", "permanent")

    def heal(self) -> None:
        """Let all of it arrive again."""
        ip("-n", self.name, "neigh", "flush", "dev", "eth0", "nud", "permanent")

    def shape(self, *qdisc: str) -> None:
        """Give both directions of its link a queue as tc knows them, in place of the one that is there."""
        for words in ((*self.inside, "tc", "qdisc"), ("tc", "qdisc")):
            device = "eth0" if len(words) > 2 else self.outside
            subprocess.run([*words, "replace", "dev", device, "root", *qdisc], check=True)

    def hold_to(self, bytes_per_s: int) -> None:
        """Let it send at most so much, and receive as much."""
        self.shape("tbf", "rate", f"{8 * bytes_per_s}bit", "burst", "256kb", "latency", "50ms")


def ip(*words: str) -> None:
    """Run ip."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


def can() -> bool:
    """Say whether namespaces can be made and shaped: it takes root, ip and tc."""
    try:
        ip("netns", "add", "sgprobe")
        words = ["ip", "netns", "exec", "sgprobe", "tc", "qdisc", "show"]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        _gone("netns", "del", "sgprobe")


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Make so many hosts on one bridge, which also has the addresses of clients, etcd and S3."""
    made = [
        Host(f"sgnode{number}", f"sgveth{number}", f"{NETWORK}.{FIRST + number}")
        for number in range(count)
    ]
    _clear(range(HOSTS_MAX))  # of one that was killed
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        for address in (HOST, ETCD_HOST, S3_HOST):
            ip("addr", "add", f"{address}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for one in made:
            ip("netns", "add", one.name)
            ip(
                *("link", "add", one.outside, "type", "veth"),
                *("peer", "name", "eth0", "netns", one.name),
            )
            ip("link", "set", one.outside, "master", BRIDGE, "up")
            ip("-n", one.name, "addr", "add", f"{one.address}/24", "dev", "eth0")
            ip("-n", one.name, "link", "set", "eth0", "up")
            ip("-n", one.name, "link", "set", "lo", "up")
        yield made
    finally:
        _clear(range(count))


def _clear(numbers: Iterable[int]) -> None:
    for number in numbers:
        _gone("link", "del", f"sgveth{number}")  # a namespace takes it along only some time later
        _gone("netns", "del", f"sgnode{number}")
    _gone("link", "del", BRIDGE)


def _gone(*words: str) -> None:
    with suppress(OSError, subprocess.CalledProcessError):
        ip(*words)
