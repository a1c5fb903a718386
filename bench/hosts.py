"""Hosts for the nodes of a cluster: network namespaces with addresses of their own, each held to a bandwidth."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BRIDGE, NETWORK = "sgbr0", "10.77.0"
HOST = f"{NETWORK}.1"  # of everything that is no node


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace and its address."""

    name: str
    address: str

    @property
    def inside(self) -> tuple[str, ...]:
        """Return the words that run a command there."""
        return ("ip", "netns", "exec", self.name)


def ip(*words: str) -> None:
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
        with suppress(OSError, subprocess.CalledProcessError):
            ip("netns", "del", "sgprobe")


@contextmanager
def hosts(count: int, *, bytes_per_s: int) -> Iterator[list[Host]]:
    """Make so many hosts on one bridge; each sends at most so much, and receives as much."""
    made: list[str] = []
    bits = f"{8 * bytes_per_s}bit"
    shape = ("root", "tbf", "rate", bits, "burst", "256kb", "latency", "50ms")
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{HOST}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        found = []
        for number in range(count):
            name, outside = f"sgnode{number}", f"sgveth{number}"
            ip("netns", "add", name)
            made.append(name)
            ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", outside, "master", BRIDGE, "up")
            address = f"{NETWORK}.{11 + number}"
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            one = Host(name, address)
            subprocess.run([*one.inside, "tc", "qdisc", "add", "dev", "eth0", *shape], check=True)
            subprocess.run(["tc", "qdisc", "add", "dev", outside, *shape], check=True)
            found.append(one)
        yield found
    finally:
        for name in made:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)
        with suppress(subprocess.CalledProcessError):
            ip("link", "del", BRIDGE)
