"""A cluster to measure: etcd, an S3 server, and nodes on loopback or on hosts of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import etcds
import seaweed
from certificates import certificates
from hosts import ETCD_HOST, S3_HOST, Host
from servers import Server, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOOPBACK = "127.0.0.1"
BLOCKS_URL = f"s3://{seaweed.BUCKET}/bench"
PORTS = (7420, 7421, 7423, 7424)  # of a node that has a host of its own: gRPC, HTTP, admin, peers


def can() -> bool:
    """Say whether etcd and weed are there: .ci/cluster-setup brings them."""
    return etcds.binary() is not None and Path(sys.executable).with_name("weed").exists()


@dataclass(slots=True)
class Node:
    """A node that is served."""

    name: str
    folder: Path
    config: Path
    host: Host | None
    ports: tuple[int, ...]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return self.host.address if self.host else LOOPBACK

    def server(self, name: str) -> Server:
        """Return where it serves a repository."""
        assert self.process is not None
        url = f"http://{self.address}:{self.ports[1]}/{name}.git"
        return Server(self.name, self.process.pid, url, f"{self.address}:{self.ports[0]}")

    def start(self) -> None:
        """Serve it; returns when it is ready."""
        words = [sys.executable, "-m", "shardgit", "serve", "--config", str(self.config)]
        words = [*(self.host.inside if self.host else ()), *words]
        with self.folder.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                words, env=self.environment, stdout=subprocess.DEVNULL, stderr=log
            )
        for _ in range(600):
            try:
                with urlopen(f"http://{self.address}:{self.ports[2]}/readyz") as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.05)
        raise SystemExit(f"node does not come up: {self.folder.with_suffix('.log')}")

    def stop(self) -> None:
        """Have it end."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def empty(self) -> None:
        """Take what it has on its disk, and begin anew."""
        self.stop()
        shutil.rmtree(self.folder)
        self.start()

    def command(self, *words: str) -> None:
        """Run a command on its folder."""
        command = [sys.executable, "-m", "shardgit", *words]
        command = [*(self.host.inside if self.host else ()), *command]
        subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def carry_blocks(self) -> tuple[float, int]:
        """Get all blocks from the S3 server to where it runs, with nothing behind; returns seconds and bytes."""
        command = [sys.executable, str(Path(__file__).with_name("carry.py")), BLOCKS_URL]
        command = [*(self.host.inside if self.host else ()), *command]
        told = subprocess.run(command, env=self.environment, check=True, stdout=subprocess.PIPE)
        seconds, size = told.stdout.split()
        return float(seconds), int(size)

    def counted(self, metric: str, label: str) -> float:
        """Return one of its counters."""
        with urlopen(f"http://{self.address}:{self.ports[2]}/metrics") as answer:
            text = answer.read().decode()
        pattern = rf"^{metric}\{{[^}}]*{re.escape(label)}[^}}]*\}} ([0-9.e+]+)$"
        return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))


@contextmanager
def cluster(folder: Path, count: int, *, places: Sequence[Host] = ()) -> Iterator[list[Node]]:
    """Run a cluster whose nodes have joined; on hosts of their own, or on loopback."""
    with ExitStack() as held:
        members = held.enter_context(
            etcds.running(folder / "etcd", host=ETCD_HOST if places else LOOPBACK)
        )
        s3 = held.enter_context(
            seaweed.seaweed(folder / "s3", host=S3_HOST if places else LOOPBACK)
        )
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SHARDGIT_")}
        environment = {**kept, **s3.environment}
        endpoints = ", ".join(f'"{one}"' for one in members.endpoints)
        files = certificates(folder, [one.address for one in places]) if places else {}
        made: list[Node] = []
        for number in range(count):
            host = places[number] if places else None
            name = f"node-{number + 1}"
            ports = PORTS if host else tuple(free_port() for _ in PORTS)
            node = Node(name, folder / name, folder / f"{name}.toml", host, ports, environment)
            grpc, http, admin, peers = (f"{node.address}:{port}" for port in ports)
            tls = "".join(f'{key} = "{file}"\n' for key, file in files.items())
            node.config.write_text(
                f'data = "{node.folder}"\ngrpc = "{grpc}"\nhttp = "{http}"\nssh = "off"\n'
                f'admin = "{admin}"\nauth = "off"\nworkers = 1\n[cluster]\netcd = [{endpoints}]\n'
                f'node = "{name}"\nzone = "{name}"\nlisten = "{peers}"\n{tls}'
                f'[blocks]\nurl = "{BLOCKS_URL}"\ntier_bytes = {4 << 30}\n'
            )
            node.start()
            held.callback(node.stop)
            made.append(node)
        for node in made:
            node.command("cluster", "join", "--config", str(node.config))
        yield made
