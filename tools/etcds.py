"""Real etcd members on loopback, started, stopped and killed by whoever needs them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.errors import ShardgitError
from shardgit.etcd.access import Access
from shardgit.etcd.client import Etcd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
START_S = 60


def binary(name: str = "etcd") -> str | None:
    """Return where etcd is, ETCD=folder before all; None when .ci/cluster-setup has not put it there."""
    beside = Path(sys.executable).parent.parent / "cluster" / "etcd"
    folders = [os.environ.get("ETCD", ""), str(ROOT / ".venv/cluster/etcd"), str(beside)]
    return shutil.which(name, path=":".join([*filter(None, folders), os.environ["PATH"]]))


def turn_on_passwords(etcds: Etcds) -> Access:
    """Make root:secret the only one that may use etcd; returns how it does."""
    program = binary("etcdctl")
    assert program is not None
    for words in (
        ("user", "add", "root:secret"),
        ("user", "grant-role", "root", "root"),
        ("auth", "enable"),
    ):
        command = [program, "--endpoints", etcds.endpoints[0], *words]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        subprocess.run(command, check=True, capture_output=True, env=environment)
    return Access(etcds.endpoints, user="root", password="secret")


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody has now."""
    with ExitStack() as opened:
        ports = []
        for _ in range(count):
            taken = opened.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            ports.append(int(taken.getsockname()[1]))
    return ports


class Member:
    """One member's process, its ports and its folder."""

    def __init__(
        self,
        name: str,
        folder: Path,
        client: int,
        peer: int,
        extra: Sequence[str],
        host: str,
    ) -> None:
        self.name, self.folder, self.client, self.peer = name, folder, client, peer
        self.extra, self.host = extra, host
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        return f"{self.host}:{self.client}"

    def start(self, cluster: str, scheme: str) -> None:
        program = binary()
        assert program is not None
        here, peer = f"{scheme}://{self.target}", f"http://{self.host}:{self.peer}"
        flags = {
            "name": self.name,
            "data-dir": str(self.folder / self.name),
            "listen-client-urls": here,
            "advertise-client-urls": here,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": cluster,
            "initial-cluster-state": "new",
            "heartbeat-interval": "50",
            "election-timeout": "500",
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", value)]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, *words, "--pre-vote", *self.extra], stdout=log, stderr=log
            )

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.send_signal(signal.SIGCONT)
            self.process.wait()


class Etcds:
    """A cluster of members."""

    def __init__(
        self,
        folder: Path,
        count: int,
        scheme: str,
        extra: Sequence[str],
        ports: Sequence[int] = (),
        host: str = "127.0.0.1",
    ) -> None:
        self._scheme = scheme
        ports = ports or free_ports(2 * count)
        self.members = [
            Member(f"e{n}", folder, ports[2 * n], ports[2 * n + 1], extra, host)
            for n in range(count)
        ]
        self._cluster = ",".join(f"{m.name}=http://{host}:{m.peer}" for m in self.members)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"{self._scheme}://{member.target}" for member in self.members)

    def access(self) -> Access:
        return Access(self.endpoints)

    def start(self, *members: Member) -> None:
        for member in members or self.members:
            member.start(self._cluster, self._scheme)

    def leader(self, etcd: Etcd) -> Member:
        """Return the member that leads; waits for one."""
        end = time.monotonic() + START_S
        while True:
            for member in self.members:
                try:
                    status = etcd.status(member.target)
                except ShardgitError:
                    continue
                if status.leader and status.leader == status.header.member_id:
                    return member
            assert time.monotonic() < end, "no member leads"
            time.sleep(0.05)

    def stop(self) -> None:
        for member in self.members:
            member.stop()


@contextmanager
def running(
    folder: Path,
    *,
    count: int = 3,
    scheme: str = "http",
    extra: Sequence[str] = (),
    ports: Sequence[int] = (),
    host: str = "127.0.0.1",
) -> Iterator[Etcds]:
    """Run members while the block lasts; the first answers of a leader are there when it begins.

    ``ports`` are two a member, for clients and for each other; free ones without. What ``folder`` has is gone on with.
    """
    folder.mkdir(exist_ok=True)
    etcds = Etcds(folder, count, scheme, extra, ports, host)
    try:
        etcds.start()
        if scheme == "http":
            etcd = Etcd(etcds.access())
            try:
                etcds.leader(etcd)
            finally:
                etcd.close()
        yield etcds
    finally:
        etcds.stop()
