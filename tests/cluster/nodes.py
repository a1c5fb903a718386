"""Nodes of a cluster as they are run: ``shardgit serve --config``, a process each, over real etcd and S3."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

from etcds import free_ports
from served import Server, serving, shardgit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hosts import Host


class Nodes:
    """Starts, kills and empties nodes; ``url`` is where the blocks are."""

    def __init__(self, folder: Path, endpoints: Sequence[str], url: str, opened: ExitStack) -> None:
        self.folder, self.endpoints, self.url = folder, endpoints, url
        self.name = f"test-{os.urandom(6).hex()}"
        self.servers: dict[str, Server] = {}
        # Of single nodes: other endpoints of etcd, variables, and what else stands in [cluster].
        self.endpoints_of: dict[str, Sequence[str]] = {}
        self.environment_of: dict[str, dict[str, str]] = {}
        self.inside_of: dict[str, str] = {}
        self.host_of: dict[str, Host] = {}
        self._opened = opened
        self._held: dict[str, ExitStack] = {}

    def config(self, node: str, more: str = "") -> Path:
        """Write a node's configuration."""
        endpoints = self.endpoints_of.get(node, self.endpoints)
        listed = ", ".join(f'"{one}"' for one in endpoints)
        if node not in self.inside_of:
            (port,) = free_ports(1)
            self.inside_of[node] = f'listen = "127.0.0.1:{port}"'
        inside = self.inside_of[node]
        if node in self.host_of:  # beyond loopback, where tests want no tokens
            more = f'auth = "off"\n{more}'
        file = self.folder / f"{node}.toml"
        file.write_text(
            f"{more}\n"
            f'[cluster]\nname = "{self.name}"\nnode = "{node}"\nzone = "{node}"\n'
            f"etcd = [{listed}]\n{inside}\n"
            f'[blocks]\nurl = "{self.url}"\ntier_bytes = {256 << 20}\n'
        )
        return file

    def start(self, node: str, *words: str, more: str = "") -> Server:
        """Serve a node; again where it was."""
        held = self._held[node] = self._opened.enter_context(ExitStack())
        file = self.config(node, more)
        host = self.host_of.get(node)
        server = held.enter_context(
            serving(
                self.folder / node,
                *("--config", str(file), "--workers", "1", *words),
                environment=self.environment_of.get(node),
                inside=host.inside if host is not None else (),
                address=host.address if host is not None else "127.0.0.1",
            )
        )
        self.servers[node] = server
        return server

    def kill(self, node: str) -> None:
        """Kill a node with all of its processes."""
        server = self.servers.pop(node)
        for process in [*server.workers(), server.process.pid]:
            os.kill(process, signal.SIGKILL)
        server.process.wait()
        self._held.pop(node).close()

    def stop(self, node: str) -> int:
        """Have a node drain and end; returns its exit code."""
        code = self.servers.pop(node).stop()
        self._held.pop(node).close()
        return code

    def empty(self, node: str) -> None:
        """Take all that a node has on its disk."""
        shutil.rmtree(self.folder / node)

    def command(self, node: str, *words: str) -> str:
        """Run a command on a node's folder; return what it prints."""
        done = shardgit(
            *(*words, "--data", str(self.folder / node)),
            cwd=self.folder,
            environment=self.environment_of.get(node),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
